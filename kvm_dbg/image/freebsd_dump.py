"""FreeBSD's dump partitions, before savecore has run: a header at both ends of the dump, which is as it will be saved.

The last header is in the last sector of the partition; before it are the dump, for encrypted ones a key, and the first
header, which is the same. What is between is what savecore writes to vmcore.N (a minidump or an ELF file), perhaps
compressed. savecore clears the magic of the last header when it has saved the dump, and leaves everything else.

Facts: FreeBSD `sys/sys/kerneldump.h` (struct kerneldumpheader, big-endian everywhere, 512 bytes whose words have the
exclusive sum 0; version 2 with a key came in 12, 3 and 4 with compression; version 4 moved the new fields to where
older ones had the end of panicstring), `sys/kern/kern_shutdown.c` (dump_start(), dump_finish()), `sbin/savecore/
savecore.c` (where the headers are; text dumps are written backwards).
"""

from __future__ import annotations

import mmap
import struct
from datetime import UTC, datetime
from typing import NamedTuple

from kvm_dbg.errors import FormatError, KvmDbgError, UnknownFormatError, UnsupportedError
from kvm_dbg.image.freebsd_minidump_header import parse_fields
from kvm_dbg.image.source import Source

KERNEL, TEXT, CLEARED = b"FreeBSD Kernel Dump\0", b"FreeBSD Text Dump\0", b"Cleared Kernel Dump\0"
MAGICS = (KERNEL, TEXT, CLEARED)
SIZE = 512
SECTORS = (512, 4096)
MAX_SECTOR = 1 << 16
COMPRESSIONS = {0: "", 1: "gzip", 2: "zstd"}
_START = "20s:magic 12s:architecture I:version I:architectureversion Q:dumplength "
_TEXTS = "64s:hostname 192s:versionstring "
VERSIONS = (  # struct's codes and the fields' names
    _START + "Q:dumptime I:blocksize " + _TEXTS + "192s:panicstring I:parity",
    _START + "Q:dumptime I:dumpkeysize I:blocksize " + _TEXTS + "188s:panicstring I:parity",
    _START + "Q:dumpextent Q:dumptime I:dumpkeysize I:blocksize B:compression " + _TEXTS + "179s:panicstring I:parity",
    _START + "Q:dumptime I:dumpkeysize I:blocksize " + _TEXTS
    + "175s:panicstring B:compression Q:dumpextent 4s:unused I:parity",
)  # fmt: skip
_CHUNK = 1 << 20
_SEARCH_STEP = 512


class DumpHeader(NamedTuple):
    """A header, and where it leads.

    start: offset of the dump in the file; size: its bytes; first, last: the offsets of both headers. numbers, texts:
    the struct's fields. cleared: savecore has saved it.
    """

    start: int
    size: int
    first: int
    last: int
    numbers: dict[str, int]
    texts: dict[str, str]
    cleared: bool


def is_header(source: Source, offset: int) -> bool:
    """Tell whether something like a header is at `offset`."""
    return source.read(offset, SIZE).startswith(MAGICS)


def probe(source: Source) -> bool:
    """Tell whether a header is where one must be: in the last sector of the file, or at its start.

    Raises:
        FormatError: it is damaged.
        UnsupportedError: it is of a version that is not known.
    """
    return bool(_places(source)) and find_header(source) is not None


def _places(source: Source) -> list[int]:
    """Return where something like a header is, the last sector first."""
    places = [source.size - sector for sector in SECTORS if source.size >= sector]
    return [place for place in dict.fromkeys((*places, 0)) if is_header(source, place)]


def find_header(source: Source, offset: int | None = None, *, anywhere: bool = False) -> DumpHeader:
    """Return the header of the dump in a partition.

    Args:
        source: the partition.
        offset: where one of the two headers is, in bytes; None if it is where it must be.
        anywhere: look for it in the whole file.

    Raises:
        FormatError, UnsupportedError: it is damaged, or of a kind that is not known.
        UnknownFormatError: there is none.
    """
    problem: KvmDbgError | None = None
    places = _places(source) if offset is None else [offset]
    for place in places:
        try:
            return read_header(source, place)
        except (FormatError, UnsupportedError) as error:
            problem = problem or error
    if anywhere and offset is None:
        for place in range(0, source.size, _CHUNK):
            data = source.read(place, _CHUNK)
            for at in range(0, len(data), _SEARCH_STEP):
                if data.startswith(MAGICS, at):
                    try:
                        return read_header(source, place + at)
                    except (FormatError, UnsupportedError) as error:
                        problem = problem or error
    where = "anywhere in it" if offset is None else f"at offset {offset:#x}"
    raise problem or UnknownFormatError(source.path, f"no header of a FreeBSD dump is {where}")


def read_header(source: Source, offset: int) -> DumpHeader:
    """Read one of the two headers.

    Raises:
        UnknownFormatError: it is none.
        FormatError: it is cut off, its parity is wrong, or a field is impossible.
        UnsupportedError: a version or a compression that is not known.
    """
    data = source.read(offset, SIZE)
    if not data.startswith(MAGICS):
        raise UnknownFormatError(source.path, f"no header of a FreeBSD dump is at offset {offset:#x}")
    if len(data) < SIZE:
        raise FormatError(source.path, offset + len(data), "kerneldumpheader", "the file ends inside the header")
    cleared = data.startswith(CLEARED)
    parity = 0
    # savecore changes the magic and not the parity
    for (word,) in struct.iter_unpack(">I", (KERNEL + data[len(KERNEL) :]) if cleared else data):
        parity ^= word
    if parity:
        text = f"the header's words have the exclusive sum {parity:#x}, not 0"
        raise FormatError(source.path, offset + SIZE - 4, "parity", text)
    (version,) = struct.unpack_from(">I", data, 32)
    if not 1 <= version <= len(VERSIONS):
        text = f"{source.path}: offset {offset + 32:#x}: version: known are 1 to {len(VERSIONS)}"
        raise UnsupportedError(f"version {version} of the headers of FreeBSD's dumps", text)
    layout = parse_fields(VERSIONS[version - 1])
    values = dict(zip(layout.names, struct.unpack(">" + layout.codes, data), strict=True))
    place = {name: offset + at for name, at in zip(layout.names, layout.offsets, strict=True)}
    numbers = {name: value for name, value in values.items() if isinstance(value, int)}
    texts = {name: _text(value) for name, value in values.items() if isinstance(value, bytes)}
    return _locate(source, offset, numbers, texts, place, cleared=cleared)


def _locate(
    source: Source, offset: int, numbers: dict[str, int], texts: dict[str, str], place: dict[str, int], *, cleared: bool
) -> DumpHeader:
    """Return the header with the places that it leads to. Raises FormatError, UnsupportedError."""
    size, block, key = numbers["dumplength"], numbers["blocksize"], numbers.get("dumpkeysize", 0)
    extent = numbers.get("dumpextent", size)
    if not 0 < size <= extent:
        text = f"a dump of {size} bytes in {extent}"
        raise FormatError(source.path, place["dumplength"], "dumplength", text)
    if block & block - 1 or not SIZE <= block <= MAX_SECTOR:
        raise FormatError(source.path, place["blocksize"], "blocksize", f"sectors of {block} bytes")
    if numbers.get("compression", 0) not in COMPRESSIONS:
        raise UnsupportedError(f"compression {numbers['compression']} of FreeBSD's dumps", source.path)
    first, after = offset - extent - key - block, offset + block + key + extent
    if first >= 0 and is_header(source, first):
        last = offset
    elif not is_header(source, after) and first >= 0 and offset + block >= source.size:
        last = offset  # its partner is lost
    else:
        first, last = offset, after
    start = first + block + key
    if start >= source.size:
        text = f"a dump of {size} bytes, and the file ends at its header"
        raise FormatError(source.path, place["dumplength"], "dumplength", text)
    return DumpHeader(start, size, first, last, numbers, texts, cleared)


def _text(data: bytes) -> str:
    return data.split(b"\0")[0].decode("utf-8", "backslashreplace").strip()


class DumpSource(Source):
    """The dump inside a partition.

    Args:
        partition: closed with this source.
        header: from `find_header`.

    Raises:
        UnsupportedError: it is a text dump, or encrypted; says what to do.
    """

    def __init__(self, partition: Source, header: DumpHeader) -> None:
        self.path = partition.path
        self.size = min(header.size, partition.size - header.start)
        self.ended = self.size == header.size and partition.ended
        self.place = header.start
        self.container = f"dump partition, {partition.container}" if partition.container else "dump partition"
        self._partition = partition
        self._header = header
        if header.texts["magic"] == _text(TEXT):
            raise UnsupportedError(
                "a text dump of FreeBSD, which has no memory",
                f"{self.path}: savecore(8) makes textdump.tar.N of it, whose files are to be read as they are",
            )
        if header.numbers.get("dumpkeysize"):
            raise UnsupportedError(
                "an encrypted dump of FreeBSD",
                f"{self.path}: let savecore(8) make vmcore_encrypted.N and key.N of it, and decryptcore(8) vmcore.N",
            )

    def read(self, offset: int, size: int) -> bytes:
        size = min(size, self.size - offset)
        return self._partition.read(self.place + offset, size) if size > 0 and offset >= 0 else b""

    def map(self) -> mmap.mmap | None:
        return None  # offsets in a map of the partition are not those of the dump

    def check_size(self) -> None:
        self._partition.check_size()

    def describe(self) -> tuple[tuple[str, str], ...]:
        head = self._header
        texts = [(name, head.texts[field]) for name, field in _SHOWN if head.texts[field]]
        when = _time(head.numbers["dumptime"])
        state = "as savecore wants it"
        if head.cleared:
            state = "cleared: savecore has saved this dump, and swapping may have damaged it since"
        elif self._partition.read(head.first, SIZE) != self._partition.read(head.last, SIZE):
            state = "the two headers differ: what is between may be damaged"
        compression = COMPRESSIONS[head.numbers.get("compression", 0)]
        return (
            ("container", self.container),
            ("dump header", f"version {head.numbers['version']}, {state}"),
            *texts,
            *((("dump time", when),) if when else ()),
            *((("dump compression", compression),) if compression else ()),
        )

    def close(self) -> None:
        self._partition.close()


_SHOWN = (
    ("dump architecture", "architecture"),
    ("hostname", "hostname"),
    ("kernel version", "versionstring"),
    ("panic", "panicstring"),
)


def _time(seconds: int) -> str:
    """Return the time of the dump, "" for one that cannot be."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if seconds else ""
    except (OverflowError, ValueError, OSError):
        return ""
