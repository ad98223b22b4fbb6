"""Where QEMU keeps the memory of a virtual machine, and how it can be read from outside.

Facts: QEMU's softmmu/memory.c mtree_print_flatview() (`info mtree -f`: for each address space the ranges of physical
addresses, of RAM with the name of its memory region and the offset in it; the machine's own is "memory", with the root
"system"; RAM that firmware has made read-only is printed as "rom"), qapi/machine.json query-memdev, backends/hostmem.c
and hostmem-file.c (a region of RAM is called by the id of its memory backend, in /objects; properties `mem-path`,
`share`, since 8.1 `offset`), monitor/hmp-cmds.c (`xp`) and gpa2hva (the address in QEMU's own memory).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kvm_dbg.errors import CommandError, FileAccessError, FormatError, KvmDbgError, UnknownFormatError
from kvm_dbg.image.base import Presence
from kvm_dbg.image.extent import Extent, arrange, for_each_part
from kvm_dbg.image.qmp import Qmp
from kvm_dbg.image.source import DeviceSource, FileSource, Source, Stretch

VIEW = re.compile(r"^FlatView #\d+\r?$", re.MULTILINE)
SYSTEM = re.compile(r'^ AS "memory", root: system\r?$', re.MULTILINE)
RANGE = re.compile(
    r"^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (?:nv-)?(?:ram|rom)\): (.+?)(?: @([0-9a-f]{16}))?"
    r"(?: owner:.*| KVM| hvf| tcg)*\r?$",
    re.MULTILINE,
)
HOST_ADDRESS = re.compile(r"is (0x[0-9a-f]+)")
WORDS = re.compile(r": (0x[0-9a-f]{16}) (0x[0-9a-f]{16})")
SAMPLES = 8  # places that are compared with what QEMU says is there
PAGES = 64  # that are looked at for one place that is not zero
PAGE = 4096
PAIR = 16  # bytes of a sample
MAX_RANGES = 1 << 16


class Region(NamedTuple):
    """Guest-physical addresses [start, end), which are memory of the backend `name` from `offset` on."""

    start: int
    end: int
    name: str
    offset: int


class Memory(NamedTuple):
    """Memory of a guest that can be read: where, and what a careful reader wants to know of it."""

    source: Source
    extents: list[Extent]
    how: str
    quirks: tuple[str, ...] = ()


def read_regions(qmp: Qmp) -> list[Region]:
    """Return the machine's RAM, by its own word, ascending.

    Raises:
        FormatError: QEMU's answer has no map of the machine's memory.
        CommandError, FileAccessError: it has none at all.
    """
    text = qmp.ask_human("info mtree -f")
    names = {str(row["id"]) for row in qmp.execute("query-memdev") if "id" in row}
    view = next((part for part in VIEW.split(text) if SYSTEM.search(part)), None)
    if view is None:
        raise FormatError(qmp.address, 0, "info mtree -f", 'no address space "memory" is in what QEMU answers')
    regions = []
    for number, match in enumerate(RANGE.finditer(view)):
        if number >= MAX_RANGES:
            raise FormatError(qmp.address, match.start(), "info mtree -f", f"more than {MAX_RANGES} ranges")
        name = match[3].rpartition("/")[2]  # "/objects/ram" of machine types before 4.0
        if name in names:
            regions.append(Region(int(match[1], 16), int(match[2], 16) + 1, name, int(match[4] or "0", 16)))
    return regions


class JoinedSource(Source):
    """Files one after the other, each from an offset of its own on; what is between them is not there."""

    def __init__(self, path: str, parts: Sequence[tuple[int, Source]]) -> None:
        self.path = path
        self._parts = sorted(parts, key=lambda part: part[0])
        self._starts = [start for start, _ in self._parts]
        self.size = max((start + source.size for start, source in self._parts), default=0)

    def _part(self, offset: int) -> tuple[int, Source]:
        return self._parts[max(bisect_right(self._starts, offset) - 1, 0)]

    def read(self, offset: int, size: int) -> bytes:
        start, source = self._part(offset)
        return source.read(offset - start, size)

    def write(self, offset: int, data: bytes) -> None:
        start, source = self._part(offset)
        source.write(offset - start, data)

    def for_each_stretch(self, offset: int, size: int) -> Iterator[Stretch]:
        start, source = self._part(offset)
        for stretch in source.for_each_stretch(offset - start, size):
            yield stretch._replace(offset=stretch.offset + start)

    def check_size(self) -> None:
        for _, source in self._parts:
            source.check_size()

    def close(self) -> None:
        for _, source in self._parts:
            source.close()


class ProcessSource(DeviceSource):
    """The memory of a process, by its virtual addresses (proc(5), /proc/PID/mem).

    Args:
        pid: the process.
        writable: open it for writing as well.

    Raises:
        FileAccessError: it may not be read (ptrace(2), "Ptrace access mode checking").
    """

    ended_text = "has ended: QEMU is gone, and the guest's memory with it"

    def __init__(self, pid: int, *, writable: bool = False) -> None:
        super().__init__(f"/proc/{pid}/mem", writable=writable)


def open_memory(
    qmp: Qmp, regions: Sequence[Region], *, writable: bool = False
) -> tuple[Memory | None, tuple[str, ...]]:
    """Return the guest's memory as it can be read (and written) from here, and why it cannot in better ways.

    In this order: its RAM files, QEMU's own memory.

    Raises:
        FileAccessError: QEMU is gone.
    """
    if not regions:
        return None, ("QEMU names no memory backend",)
    problems: list[str] = []
    for find in (_open_files, _open_process):
        try:
            memory = find(qmp, regions, writable)
        except (FileAccessError, UnknownFormatError, CommandError) as error:
            problems.append(str(error))
            continue
        if _is_same(qmp, memory):
            return memory, tuple(problems)
        memory.source.close()
        problems.append(f"{memory.how} is not the memory of this guest: QEMU has other bytes in it")
    return None, tuple(problems)


def _open_files(qmp: Qmp, regions: Sequence[Region], writable: bool) -> Memory:
    """Return the memory in the backends' files. Raises FileAccessError, UnknownFormatError, CommandError."""
    backends = {str(row["id"]): row for row in qmp.execute("query-memdev") if "id" in row}
    parts: list[tuple[int, Source]] = []
    places: dict[str, int] = {}  # backend -> offset of its first byte in the joined source
    quirks: list[str] = []
    try:
        top = 0
        for name in dict.fromkeys(region.name for region in regions):
            source, first = _open_file(qmp, name, writable)
            parts.append((top, source))
            places[name] = top + first
            size = int(backends[name]["size"])
            if source.size < first + size:
                quirks.append(
                    f"{source.path} has {source.size} bytes, and the guest's memory there {first + size}: the rest is"
                    " missing"
                )
            top += max(source.size, first + size)
        source = parts[0][1] if len(parts) == 1 else JoinedSource(qmp.address, parts)
        extents: list[Extent] = []
        for region in regions:
            extents += for_each_part(
                source, region.start, places[region.name] + region.offset, region.end - region.start
            )
        how = ", ".join(source.path for _, source in parts)
        return Memory(source, arrange(extents), how, tuple(quirks))
    except BaseException:
        for _, source in parts:
            source.close()
        raise


def _open_file(qmp: Qmp, name: str, writable: bool) -> tuple[Source, int]:
    """Return the file of a backend, and where in it the memory starts. Raises as `_open_files`."""
    path = f"/objects/{name}"
    properties = {str(row["name"]) for row in qmp.execute("qom-list", path=path)}
    if "mem-path" not in properties:
        raise CommandError(f"the memory {name!r} is in no file (memory-backend-file,share=on)")
    file = str(qmp.execute("qom-get", path=path, property="mem-path"))
    if qmp.execute("qom-get", path=path, property="share") is not True:
        raise CommandError(f"{file} has not what the guest writes: its backend {name!r} has no share=on")
    first = int(qmp.execute("qom-get", path=path, property="offset")) if "offset" in properties else 0
    return FileSource(file, writable=writable), first


def _open_process(qmp: Qmp, regions: Sequence[Region], writable: bool) -> Memory:
    """Return the memory within QEMU's. Raises FileAccessError, CommandError."""
    if qmp.peer is None:
        raise CommandError("which process is QEMU is known of a Unix socket only")
    source = ProcessSource(qmp.peer, writable=writable)
    try:
        bases: dict[str, int] = {}
        for region in regions:
            if region.name not in bases:
                answer = qmp.ask_human(f"gpa2hva {region.start:#x}")
                match = HOST_ADDRESS.search(answer)
                if match is None:
                    raise CommandError(f"gpa2hva {region.start:#x}: {answer.strip()}")
                bases[region.name] = int(match[1], 16) - region.offset
        extents = [
            Extent(region.start, region.end, Presence.PRESENT, bases[region.name] + region.offset - region.start)
            for region in regions
        ]
        return Memory(source, arrange(extents), source.path)
    except BaseException:
        source.close()
        raise


def _is_same(qmp: Qmp, memory: Memory) -> bool:
    """Return whether a source has what the guest has, by a few looks; each may fail, for it may have changed."""
    equal = looks = 0
    present = [extent for extent in memory.extents if extent.presence is Presence.PRESENT]
    total = sum(extent.end - extent.start for extent in present)
    for number in range(SAMPLES):
        paddr = _place_at(present, total * number // SAMPLES)
        found = _find_filled(memory, present, paddr)
        if found is None:
            continue
        looks += 1
        for _ in range(2):
            ours = _read(memory, present, found)
            match = WORDS.search(qmp.ask_human(f"xp /2gx {found:#x}"))
            if match is not None and ours == b"".join(int(word, 16).to_bytes(8, "little") for word in match.groups()):
                equal += 1
                break
    return 2 * equal >= looks


def _place_at(extents: Sequence[Extent], position: int) -> int:
    for extent in extents:
        if position < extent.end - extent.start:
            return extent.start + position
        position -= extent.end - extent.start
    return extents[-1].start


def _find_filled(memory: Memory, extents: Sequence[Extent], paddr: int) -> int | None:
    """Return the first of some pages from `paddr` on that does not begin with zeros, None if there is none."""
    for page in range(paddr & -PAGE, (paddr & -PAGE) + PAGES * PAGE, PAGE):
        try:
            if any(_read(memory, extents, page)):
                return page
        except KvmDbgError:
            return None
    return None


def _read(memory: Memory, extents: Sequence[Extent], paddr: int) -> bytes:
    for extent in extents:
        if extent.start <= paddr and paddr + PAIR <= extent.end:
            return memory.source.read(paddr + extent.shift, PAIR)
    return b""
