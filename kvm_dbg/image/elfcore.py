"""ELF vmcores: /proc/vmcore, copies of it, `makedumpfile -E`, QEMU's dump-guest-memory with paging on or off.

Facts: fs/proc/vmcore.c (one merged PT_NOTE first; the kernel's text once by its virtual address and once more in the
range of RAM that holds it), makedumpfile's elf_info.c and write_elf_pages (excluded pages: p_filesz < p_memsz), QEMU's
dump/dump.c (memory that a filter left out: p_filesz 0). Addresses are `p_paddr`; `p_vaddr` is not looked at, so that
QEMU's virtual segments (paging on) read like any others.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvm_dbg import elf
from kvm_dbg.errors import FormatError, UnknownFormatError
from kvm_dbg.image.base import ImageInfo, Note, Presence
from kvm_dbg.image.extent import Extent, ExtentImage, arrange, for_each_part
from kvm_dbg.image.note import MAX_AREA, NT_AUXV, NT_FILE, find_vmcoreinfo_value, read_notes
from kvm_dbg.image.source import Source

NAME = "elf"
_ADDRESS_END = 1 << 64
_TYPES = {
    elf.ET_REL: "an object file or kernel module",
    elf.ET_EXEC: "a program or kernel file (vmlinux)",
    elf.ET_DYN: "a program or shared library",
}


def probe(source: Source) -> bool:
    """Tell whether the file is an ELF core.

    Raises:
        UnknownFormatError: it is another kind of ELF file.
        FormatError: its ELF header is cut off or impossible.
    """
    head = source.read(0, 64)
    if not head.startswith(elf.MAGIC):
        return False
    if len(head) < 18:
        raise FormatError(source.path, len(head), "e_ident", "the file ends inside the ELF header")
    kind = int.from_bytes(head[16:18], "big" if head[5] == 2 else "little")
    if kind in _TYPES:
        raise UnknownFormatError(
            source.path, f"is ELF, but {_TYPES[kind]}, not a memory image; a kernel file is given beside the image"
        )
    if kind != elf.ET_CORE:
        raise FormatError(source.path, 16, "e_type", f"{kind} is no type of ELF file that holds memory")
    return True


class ElfCoreImage(ExtentImage):
    """An ELF vmcore.

    Raises:
        FormatError: the header or the program headers are cut off or impossible.
        UnknownFormatError: the core of a process, not of a kernel.
    """

    def __init__(self, source: Source) -> None:
        outside = elf.ElfFile(_head(source), source.path)
        self._header, self._machine, self._segments = outside.header, outside.machine, outside.segments
        self._quirks: list[str] = []
        notes: list[Note] = []
        for segment in self._segments:
            if segment.type == elf.PT_NOTE:
                data = source.read(segment.offset, min(segment.filesz, MAX_AREA))
                if len(data) < segment.filesz:
                    self._quirks.append(f"{segment.filesz - len(data)} bytes of the notes are missing")
                some, quirks = read_notes(data, self._header.order, source.path, segment.offset)
                notes.extend(some)
                self._quirks.extend(quirks)
        self.notes = tuple(notes)
        if any(note.type in (NT_AUXV, NT_FILE) and note.name == "CORE" for note in notes):
            raise UnknownFormatError(source.path, "is the core of a process, not of a kernel")
        self._info: ImageInfo | None = None
        super().__init__(source, arrange(self._for_each_extent(source)))

    def _for_each_extent(self, source: Source) -> Iterator[Extent]:
        head = self._header
        for number, segment in enumerate(self._segments):
            _, _, offset, _, paddr, filesz, memsz, _ = segment
            if segment.type != elf.PT_LOAD:
                continue
            place = head.phoff + number * head.phentsize
            if filesz > memsz:
                raise FormatError(source.path, place, "p_filesz", f"{filesz:#x} is more than p_memsz {memsz:#x}")
            if paddr == _ADDRESS_END - 1 or (head.word_bits == 32 and paddr == (1 << 32) - 1):
                continue  # /proc/kcore: virtual memory without one physical address
            if paddr + memsz > _ADDRESS_END:
                raise FormatError(source.path, place, "p_paddr", f"{paddr:#x} + {memsz:#x} bytes is past 64 bits")
            yield from for_each_part(source, paddr, offset, filesz)
            yield Extent(paddr + filesz, paddr + memsz, Presence.EXCLUDED, 0)

    @property
    def info(self) -> ImageInfo:
        if self._info is None:
            self._info = self._describe()
        return self._info

    def _describe(self) -> ImageInfo:
        head = self._header
        loads = [segment for segment in self._segments if segment.type == elf.PT_LOAD]
        complete = self._source.ended and all(run.presence is not Presence.TRUNCATED for run in self.coverage())
        quirks = list(self._quirks)
        if not complete:
            quirks.append("the file is truncated: memory at its end is missing")
        qemu = self.find_note("QEMU") is not None
        filtered = any(segment.filesz < segment.memsz for segment in loads)
        flattened = "flattened" in self._source.container
        if flattened or filtered:
            what = "it is flattened" if flattened else "segments are shorter in the file than in memory"
            producer = f"makedumpfile ({what})" + (", from a dump that QEMU wrote" if qemu else "")
        elif qemu:
            producer = "QEMU (it has QEMU's notes)"
        elif self.find_note("VMCOREINFO") is not None:
            producer = "/proc/vmcore (it has VMCOREINFO and nothing is left out)"
        else:
            producer = None
        paging = qemu and any(segment.vaddr not in (0, segment.paddr) for segment in loads)
        if paging:
            quirks.append("QEMU wrote it with paging on: only memory mapped at that moment is in it")
        if flattened:
            quirks.append("a flattened stream, read through an index")
        if head.word_bits == 64 and head.machine == 3:
            quirks.append("a 64-bit container around a 32-bit machine")
        details = (("segments", str(len(loads))), ("notes", str(len(self.notes))), *self._source.describe())
        return ImageInfo(
            NAME,
            producer,
            self._machine,
            head.byteorder,
            head.word_bits,
            find_vmcoreinfo_value(self.notes, "OSRELEASE"),
            complete=complete,
            quirks=tuple(quirks),
            details=details,
        )


def _head(source: Source) -> elf.Buffer:
    """Return a buffer with the ELF header and the program headers in place: the map, or the start of the stream."""
    mapped = source.map()
    if mapped is not None:
        return mapped
    size = 4096
    data = source.read(0, size)
    # a stream has no map: fetch what the header says is needed, and as much again if section 0 is beyond it
    for _ in range(3):
        try:
            header = elf.ElfFile(data, source.path).header
        except FormatError:
            needed = min(source.size, 1 << 27)
        else:
            needed = header.phoff + header.phnum * header.phentsize
        needed = min(needed, source.size, 1 << 27)
        if needed <= len(data):
            break
        data = source.read(0, needed)
    return data
