"""The ELF files that a process runs, and the files on this machine that are the same.

Which files they are, the kernel's mappings say. A file on this machine is the same if its build-id is the one in the
process's memory (the note lies in a page that is mapped with the file's head), and if its PT_LOAD segments are those
that are mapped, all moved by one amount, the bias. Where that page is not in the image, only files below a directory
that the user named are taken: if pages of code are in the image, these must be the file's, and prove it; if there are
none, the file is called unproven.

Facts: gABI chapter 5 (program headers); the gdb manual, "Debugging Information in Separate Files" (`.build-id`,
`.gnu_debuglink` with the CRC-32 of the file, and where such files lie).
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kvm_dbg.elf import NT_GNU_BUILD_ID, PF_W, PT_LOAD, PT_NOTE, ElfFile, Segment, for_each_note, open_elf
from kvm_dbg.errors import FileAccessError, KvmDbgError, ReadError
from kvm_dbg.image.base import Presence
from kvm_dbg.kernel.base import AddressSpaceReader, MemoryMapping

DELETED = " (deleted)"
BUILD_IDS = ".build-id"  # below a directory of debug files: xx/rest.debug
SYSTEM_DEBUG = "/usr/lib/debug"
DEBUG_SECTIONS = (".debug_info", ".zdebug_info")
PT_DYNAMIC = 2
PAGE = 4096  # bytes; what an ELF header and its program headers never exceed in a file that runs
MAX_NOTES = 1 << 16  # bytes of one PT_NOTE segment
MAX_PAGES = 64  # of code that are compared
MAX_FILES = 200_000  # looked at below one directory
CRC_PIECE = 1 << 20  # bytes


@dataclass
class MappedFile:
    """One ELF file of a process.

    name: as the kernel has it, with " (deleted)" if it has no name any more. mappings: ascending. build_id: in the
    process's memory, hexadecimal; None where it has none, or `unreadable` says why it cannot be read. path: the same
    file on this machine. proven: by its build-id, or by its code. bias: what is added to the file's addresses. debug:
    a file with its debug information, if that is another. refused: files that are not the same, and why. segments: of
    the file at `path`. dynamic: run-time address of its PT_DYNAMIC, None if it has none.
    """

    name: str
    mappings: list[MemoryMapping]
    build_id: str | None = None
    unreadable: str = ""
    path: str | None = None
    proven: bool = False
    bias: int = 0
    debug: str | None = None
    refused: list[str] = field(default_factory=list)
    segments: tuple[Segment, ...] = ()
    dynamic: int | None = None

    @property
    def start(self) -> int:
        """Return the lowest address."""
        return self.mappings[0].start

    @property
    def end(self) -> int:
        """Return the address behind the highest."""
        return self.mappings[-1].end

    def span_of(self, vaddr: int, size: int) -> tuple[int, int]:
        """Return (offset, bytes) in the file of code or constants that nobody could write; 0 bytes of everything else.

        There are at most `size` bytes: those up to the end of the mapping or segment.
        """
        mapping = next((one for one in self.mappings if one.start <= vaddr < one.end), None)
        if mapping is None or "w" in mapping.permissions:
            return 0, 0
        address = vaddr - self.bias
        for segment in self.segments:
            end = segment.vaddr + segment.filesz
            if segment.vaddr <= address < end and not segment.flags & PF_W:
                return segment.offset + address - segment.vaddr, min(size, end - address, mapping.end - vaddr)
        return 0, 0


def find_mapped_files(
    mappings: Sequence[MemoryMapping], space: AddressSpaceReader, sysroots: Sequence[str], search: Sequence[str]
) -> list[MappedFile]:
    """Return the files of the mappings that are run, ascending by address.

    Args:
        mappings: of one process.
        space: its memory.
        sysroots: directories that stand for the root of the machine in the image.
        search: directories to look into, with everything below.

    Raises:
        FileAccessError: one of the directories cannot be read.
    """
    for directory in (*sysroots, *search):
        if not os.path.isdir(directory):
            raise FileAccessError(directory, "not a directory that can be read")
    groups: list[MappedFile] = []
    for mapping in mappings:
        if not mapping.is_file or mapping.path is None:
            continue
        last = groups[-1] if groups else None
        if last is None or _identity(last.mappings[-1]) != _identity(mapping) or mapping.offset == 0:
            groups.append(MappedFile(mapping.path, [mapping]))
        else:
            last.mappings.append(mapping)
    found = [group for group in groups if any("x" in one.permissions for one in group.mappings)]
    trees = [_Tree(directory) for directory in search]
    for file in found:
        _read_build_id(file, space)
        _find(file, space, sysroots, trees)
    return found


def _identity(mapping: MemoryMapping) -> tuple[object, ...]:
    return (mapping.path, mapping.major, mapping.minor, mapping.inode)


def _read_build_id(file: MappedFile, space: AddressSpaceReader) -> None:
    """Take the build-id from memory, or say why it cannot be."""
    head = file.mappings[0]
    if head.offset:
        file.unreadable = "the head of the file is not mapped"
        return
    try:
        elf = ElfFile(space.read(head.start, min(PAGE, head.end - head.start)), file.name)
        first = next((one for one in elf.segments if one.type == PT_LOAD), None)
        if first is None:
            return
        bias = head.start - (first.vaddr - first.offset)
        for segment in elf.segments:
            if segment.type == PT_NOTE and file.start <= segment.vaddr + bias < file.end:
                data = space.read(segment.vaddr + bias, min(segment.filesz, MAX_NOTES))
                for note in for_each_note(data, elf.header.order, 0, len(data), file.name):
                    if note.name == "GNU" and note.type == NT_GNU_BUILD_ID:
                        file.build_id = note.desc.hex()
                        return
    except ReadError as error:
        file.unreadable = f"the page with its build-id cannot be read: {error}"
    except KvmDbgError as error:
        file.unreadable = str(error)


class _Tree:
    """A directory to search, with everything below; walked when first asked for a name."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._names: dict[str, list[str]] | None = None

    def paths(self, name: str) -> list[str]:
        """Return the files called `name`."""
        if self._names is None:
            self._names = {}
            seen = 0
            for parent, _, names in os.walk(self.root):
                for found in sorted(names):
                    self._names.setdefault(found, []).append(os.path.join(parent, found))
                seen += len(names)
                if seen > MAX_FILES:
                    break
        return self._names.get(name, [])


def _find(file: MappedFile, space: AddressSpaceReader, sysroots: Sequence[str], trees: Sequence[_Tree]) -> None:
    """Find the same file on this machine, and its debug file."""
    for path, named in _candidates(file, sysroots, trees):
        if not os.path.isfile(path):
            continue
        try:
            problem = _compare(file, space, path, named)
        except KvmDbgError as error:
            problem = str(error)
        if problem is None:
            file.path = path
            break
        if problem not in file.refused:
            file.refused.append(problem)
    if file.path is not None:
        try:
            file.debug = _find_debug(file.path, file.name, sysroots, trees)
        except KvmDbgError as error:
            file.refused.append(str(error))


def _candidates(file: MappedFile, sysroots: Sequence[str], trees: Sequence[_Tree]) -> Iterator[tuple[str, bool]]:
    """Yield (path, whether the user named the directory): the places where the same file may be."""
    name = file.name.removesuffix(DELETED)
    below = name.lstrip("/")
    for root in sysroots:
        yield os.path.join(root, below), True
    for tree in trees:
        yield os.path.join(tree.root, below), True
    for tree in trees:
        if file.build_id:
            yield os.path.join(tree.root, BUILD_IDS, file.build_id[:2], file.build_id[2:]), True
        for path in tree.paths(os.path.basename(name)):
            yield path, True
    if name.startswith("/"):
        yield name, False


def _compare(file: MappedFile, space: AddressSpaceReader, path: str, named: bool) -> str | None:
    """Return None and take the file if it is the same, else why it is not."""
    with open_elf(path) as elf:
        found = elf.find_build_id()
        own = found.hex() if found is not None else None
        if file.build_id is not None and own != file.build_id:
            return f"{path} is another build: {own or 'without build-id'}, in memory {file.build_id}"
        if file.build_id is None and not named:
            why = file.unreadable or "it has no build-id"
            return f"{path} is not taken, since nothing proves that it is the same: {why}"
        loads = [one for one in elf.segments if one.type == PT_LOAD]
        bias = _find_bias(file.mappings, loads)
        if bias is None:
            return f"{path} is another build: its segments are not those that are mapped"
        file.bias = bias
        file.segments = tuple(loads)
        file.proven = file.build_id is not None
        if not file.proven:
            equal, different = _compare_pages(file, space, elf)
            if different is not None:
                return f"{path} is another build: it has other bytes than the memory at {different:#x}"
            file.proven = equal > 0
        dynamic = next((one.vaddr for one in elf.segments if one.type == PT_DYNAMIC), None)
        file.dynamic = dynamic + bias if dynamic is not None else None
    return None


def _compare_pages(file: MappedFile, space: AddressSpaceReader, elf: ElfFile) -> tuple[int, int | None]:
    """Return how many pages of code are the same in memory and file, and the first one that is not."""
    equal = 0
    for mapping in file.mappings:
        if "x" not in mapping.permissions:
            continue
        for run in space.for_each_run(mapping.start, mapping.end):
            for vaddr in range(run.start, run.end, PAGE):
                offset, size = file.span_of(vaddr, PAGE)
                if run.presence is not Presence.PRESENT or not size:
                    continue
                if space.read(vaddr, size) != bytes(elf.data[offset : offset + size]):
                    return equal, vaddr
                equal += 1
                if equal == MAX_PAGES:
                    return equal, None
    return equal, None


def _find_bias(mappings: Sequence[MemoryMapping], loads: Sequence[Segment]) -> int | None:
    """Return how far all segments were moved; None if a mapping is of none, or they were not moved alike."""
    biases = set()
    for mapping in mappings:
        fitting = {
            mapping.start - (one.vaddr - one.offset) - mapping.offset
            for one in loads
            if one.offset & -PAGE <= mapping.offset < one.offset + one.filesz
            and (one.flags & PF_W != 0 or "w" not in mapping.permissions)
        }
        if not fitting:
            return None
        biases.add(frozenset(fitting))
    common = frozenset.intersection(*biases) if biases else frozenset()
    return min(common) if common else None


def _find_debug(path: str, name: str, sysroots: Sequence[str], trees: Sequence[_Tree]) -> str | None:
    """Return the separate file with the debug information of the file at `path`; None if it has its own, or none is."""
    with open_elf(path) as elf:
        if any(elf.find_section(section) is not None for section in DEBUG_SECTIONS):
            return None
        build_id = elf.find_build_id()
        link = elf.find_section(".gnu_debuglink")
        data = bytes(elf.section_data(link)) if link is not None else b""
        order = elf.header.byteorder
    roots = [*(os.path.join(root, SYSTEM_DEBUG[1:]) for root in sysroots), *(tree.root for tree in trees), SYSTEM_DEBUG]
    if build_id is not None:
        own = build_id.hex()
        for root in roots:
            place = os.path.join(root, BUILD_IDS, own[:2], own[2:] + ".debug")
            if os.path.isfile(place) and _build_id_of(place) == build_id:
                return place
    linked = os.fsdecode(data.partition(b"\0")[0])
    if not linked or "/" in linked or len(data) < 4:
        return None
    crc = int.from_bytes(data[-4:], "big" if order == "big" else "little")
    parents = [os.path.dirname(path), os.path.join(os.path.dirname(path), ".debug")]
    below = os.path.dirname(name.removesuffix(DELETED)).lstrip("/")
    places = [os.path.join(parent, linked) for parent in [*parents, *(os.path.join(root, below) for root in roots)]]
    places += [place for tree in trees for place in tree.paths(linked)]
    for place in places:
        if os.path.isfile(place) and _checksum(place) == crc and _build_id_of(place) in (build_id, None):
            return place
    return None


def _build_id_of(path: str) -> bytes | None:
    with open_elf(path) as elf:
        return elf.find_build_id()


def _checksum(path: str) -> int | None:
    """Return the CRC-32 of a file; None if it cannot be read."""
    crc = 0
    try:
        with open(path, "rb") as stream:
            while piece := stream.read(CRC_PIECE):
                crc = zlib.crc32(piece, crc)
    except OSError:
        return None
    return crc
