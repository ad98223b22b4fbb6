"""The header of FreeBSD's minidumps, for every machine and version, and where the parts of a file lie.

A minidump is: a page with the header, the message buffer, (since the versions with `dumpavailsize`) the table
`dump_avail`, a bitmap of the dumped pages, the kernel's page map, and the pages themselves, each part rounded up to
whole pages.

Facts: FreeBSD `sys/{amd64,arm64,i386,riscv,powerpc}/include/minidump.h` (struct minidumphdr, MINIDUMP_VERSION), and
`minidump_machdep.c` of each machine for the order of the parts. amd64: version 2 holds page directories instead of
page tables, version 3 adds `dumpavailsize` (commit 00e6614750de, September 2020, as do version 2 of the others).
arm64: version 3 adds `flags`, whose low two bits are the page size. powerpc64: fields are in the kernel's byte order
under one magic, and so the byte order is told by which reading of the version is a small number.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from kvm_dbg.errors import FormatError, UnsupportedError
from kvm_dbg.image.source import Source

MAGIC = b"minidump FreeBSD/"
MAX_DUMP_AVAIL = 1 << 20  # bytes; the kernel's table has at most some hundred entries
_ARM64_PAGE_SHIFTS = {0: 12, 1: 14}  # MINIDUMP_FLAG_PS_4K, MINIDUMP_FLAG_PS_16K


class Machine(NamedTuple):
    """One machine's headers.

    name: the processor in kvm_dbg's registry. magic_size: bytes of `magic`. word_bits: of a kernel address.
    versions: for each version, from 1 on, struct's codes and names of the fields behind the magic.
    """

    name: str
    magic_size: int
    word_bits: int
    versions: tuple[str, ...]


_SIZES = "I:version I:msgbufsize I:bitmapsize I:pmapsize "
_AMD64 = _SIZES + "Q:kernbase Q:dmapbase Q:dmapend"
_ARM64 = _SIZES + "Q:kernbase Q:dmapphys Q:dmapbase Q:dmapend"  # and riscv
_I386 = _SIZES + "I:kernbase I:paemode"  # pmapsize is called ptesize
_PPC64 = "32s:mmu_name " + _SIZES + "Q:kernbase Q:kernend Q:dmapbase Q:dmapend"
_PPC64 += " i:hw_direct_map 4x: Q:startkernel Q:endkernel"
_AVAIL = " I:dumpavailsize"

MACHINES = {  # by what follows MAGIC
    "amd64": Machine("x86_64", 24, 64, (_AMD64, _AMD64, _AMD64 + _AVAIL)),
    "arm64": Machine("aarch64", 24, 64, (_ARM64, _ARM64 + _AVAIL, _ARM64 + _AVAIL + " I:flags")),
    "i386": Machine("i386", 24, 32, (_I386, _I386 + _AVAIL)),
    "riscv": Machine("riscv64", 24, 64, (_ARM64, _ARM64 + _AVAIL)),
    "powerpc64": Machine("ppc64", 32, 64, (_PPC64, _PPC64 + _AVAIL)),
}


class Fields(NamedTuple):
    """A list of fields as struct wants them: the codes without byte order, and the fields' names and offsets."""

    codes: str
    names: tuple[str, ...]
    offsets: tuple[int, ...]


class MinidumpHeader(NamedTuple):
    """A header, and the file offsets and sizes (bytes) of what follows it.

    platform: as in the magic. fields: as in the struct, without the magic; those of later versions are missing.
    """

    platform: str
    machine: str
    word_bits: int
    byteorder: str  # "little" or "big"
    version: int
    page_shift: int
    fields: dict[str, int]
    mmu_name: str  # powerpc64's; "" elsewhere
    msgbuf_offset: int
    dump_avail_offset: int
    bitmap_offset: int
    pmap_offset: int
    data_offset: int

    @property
    def order(self) -> str:
        """Return struct's byte-order character."""
        return ">" if self.byteorder == "big" else "<"


def is_minidump(source: Source) -> bool:
    """Tell whether the file starts as a minidump does."""
    return source.read(0, len(MAGIC)) == MAGIC


def read_header(source: Source) -> MinidumpHeader:
    """Read the header.

    Raises:
        FormatError: the file ends inside it, or a field is impossible.
        UnsupportedError: another machine, version or page size than is known.
    """
    head = source.read(0, 4096)
    if len(head) < 32:
        raise FormatError(source.path, len(head), "magic", "the file ends inside the header")
    platform = head[len(MAGIC) : 32].split(b"\0")[0].decode("ascii", "backslashreplace")
    machine = MACHINES.get(platform)
    if machine is None:
        raise UnsupportedError(f"a FreeBSD minidump of {platform!r}", f"{source.path}: known are {', '.join(MACHINES)}")
    version, byteorder = _read_version(source, head, platform, machine)
    layout = parse_fields(machine.versions[version - 1])
    form = struct.Struct((">" if byteorder == "big" else "<") + layout.codes)
    if len(head) < machine.magic_size + form.size:
        raise FormatError(source.path, len(head), "minidumphdr", "the file ends inside the header")
    values = form.unpack_from(head, machine.magic_size)
    fields = dict(zip(layout.names, values, strict=True))
    mmu_name = fields.pop("mmu_name", b"").split(b"\0")[0].decode("ascii", "backslashreplace")
    place = {name: machine.magic_size + at for name, at in zip(layout.names, layout.offsets, strict=True)}
    page_shift = 12
    if "flags" in fields:
        size = fields["flags"] & 3
        if size not in _ARM64_PAGE_SHIFTS:
            raise UnsupportedError(f"a FreeBSD minidump with page size code {size} in its flags", source.path)
        page_shift = _ARM64_PAGE_SHIFTS[size]
    _check(source, fields, place)
    offset, offsets = 1 << page_shift, []
    for name in ("msgbufsize", "dumpavailsize", "bitmapsize", "pmapsize"):
        offsets.append(offset)
        offset += -(-fields.get(name, 0) >> page_shift) << page_shift
    return MinidumpHeader(
        platform,
        machine.name,
        machine.word_bits,
        byteorder,
        version,
        page_shift,
        fields,
        mmu_name,
        offsets[0],
        offsets[1],
        offsets[2],
        offsets[3],
        offset,
    )


def parse_fields(text: str) -> Fields:
    """Return the fields of "code:name code:name ...", where a code without a name is padding."""
    codes, names, offsets, offset = "", [], [], 0
    for item in text.split():
        code, _, name = item.partition(":")
        if name:
            names.append(name)
            offsets.append(offset)
        codes += code
        offset += struct.calcsize("<" + code)
    return Fields(codes, tuple(names), tuple(offsets))


def _read_version(source: Source, head: bytes, platform: str, machine: Machine) -> tuple[int, str]:
    """Return the version, and the byte order in which it is one that is known."""
    layout = parse_fields(machine.versions[0])
    at = machine.magic_size + layout.offsets[layout.names.index("version")]
    raw = head[at : at + 4]
    if len(raw) < 4:
        raise FormatError(source.path, len(head), "version", "the file ends inside the header")
    little, big = int.from_bytes(raw, "little"), int.from_bytes(raw, "big")
    if 1 <= little <= len(machine.versions):
        return little, "little"
    if platform == "powerpc64" and 1 <= big <= len(machine.versions):
        return big, "big"
    version = min(little, big) if platform == "powerpc64" else little
    raise UnsupportedError(
        f"version {version} of FreeBSD's {platform} minidumps",
        f"{source.path}: offset {at:#x}: version: known are 1 to {len(machine.versions)}",
    )


def _check(source: Source, fields: dict[str, int], place: dict[str, int]) -> None:
    """Raise FormatError for a field that no kernel would write."""
    if not fields["bitmapsize"]:
        raise FormatError(source.path, place["bitmapsize"], "bitmapsize", "a bitmap without a bit")
    if fields.get("dumpavailsize", 0) > MAX_DUMP_AVAIL:
        size = fields["dumpavailsize"]
        raise FormatError(source.path, place["dumpavailsize"], "dumpavailsize", f"{size} bytes are no table of memory")
    if fields.get("dmapend", 0) < fields.get("dmapbase", 0):
        low, high = fields["dmapbase"], fields["dmapend"]
        raise FormatError(source.path, place["dmapend"], "dmapend", f"{high:#x} is below dmapbase {low:#x}")
    if fields.get("kernend", 1 << 64) < fields["kernbase"]:
        low, high = fields["kernbase"], fields["kernend"]
        raise FormatError(source.path, place["kernend"], "kernend", f"{high:#x} is below kernbase {low:#x}")
