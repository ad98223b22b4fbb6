"""Read the outside of ELF files: header, segments, sections, notes.

Facts: the System V ABI gABI chapters 4 and 5 (`Elf32_Ehdr`, `Elf64_Ehdr`, `Phdr`, `Shdr`, `Nhdr`), and the kernel's
include/uapi/linux/elf.h for PN_XNUM (the true number of segments is `sh_info` of section 0).

Only what is needed is checked. QEMU writes `e_ehsize` 8, program headers after the section headers, and on big-endian
machines a section header whose fields are not swapped: none of that may hinder a reader of segments. Notes are padded
to 4 bytes whatever `p_align` claims: that is what the kernel, makedumpfile and QEMU write, in 64-bit files too.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

from kvm_dbg.errors import FileAccessError, FormatError, UnknownFormatError, UnsupportedError

Buffer = bytes | bytearray | memoryview | mmap.mmap

MAGIC = b"\x7fELF"
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
PT_LOAD, PT_NOTE = 1, 4
PF_X, PF_W, PF_R = 1, 2, 4
PN_XNUM = 0xFFFF
SHN_XINDEX = 0xFFFF
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOTE, SHT_NOBITS = 1, 2, 3, 4, 7, 8
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_COMPRESSED = 0x1, 0x2, 0x4, 0x800
ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD = 1, 2
NT_GNU_BUILD_ID = 3
MAX_NOTES = 1 << 17  # a machine has at most a few notes per CPU
MAX_ENTRIES = 1 << 20  # program or section headers
MAX_INFLATED = 1 << 32  # bytes, of one compressed section

# e_machine -> the name of the architecture, as kvm_dbg's registry of architectures has it
MACHINES = {
    3: "i386",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    22: "s390x",
    40: "arm",
    62: "x86_64",
    183: "aarch64",
    243: "riscv64",
    258: "loongarch64",
}


class Header(NamedTuple):
    """The ELF header; `order` is struct's byte-order character, the counts are the true ones (extended numbering)."""

    word_bits: int  # 32 or 64
    byteorder: str  # "little" or "big"
    order: str
    type: int
    machine: int
    entry: int
    flags: int
    phoff: int
    phentsize: int
    phnum: int
    shoff: int
    shentsize: int
    shnum: int
    shstrndx: int


class Segment(NamedTuple):
    """A program header, in the order of `Elf64_Phdr` for both classes; `offset` and sizes in bytes."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


class Section(NamedTuple):
    """A section header with its name; `number` is its place in the table."""

    number: int
    name: str
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int
    addralign: int
    entsize: int


class ElfNote(NamedTuple):
    """A note: `offset` is where `desc` starts, in bytes from the start of the file or buffer."""

    name: str
    type: int
    desc: bytes
    offset: int


def for_each_note(data: Buffer, order: str, offset: int, size: int, path: object) -> Iterator[ElfNote]:
    """Yield the notes in data[offset : offset + size]; padding at the end (an all-zero header) ends them.

    `order` is struct's byte-order character; `path` is what errors name.

    Raises:
        FormatError: a note does not fit into the area, or there are more than MAX_NOTES.
    """
    end = offset + size
    if offset < 0 or end > len(data):
        raise FormatError(path, offset, "notes", f"{size} bytes do not fit into a file of {len(data)} bytes")
    nhdr = struct.Struct(order + "III")
    for _ in range(MAX_NOTES):
        if end - offset < 12:
            return
        namesz, descsz, kind = nhdr.unpack_from(data, offset)
        if not (namesz or descsz or kind):
            return
        desc_at = offset + 12 + (namesz + 3 & ~3)
        if offset + 12 + namesz > end:
            raise FormatError(path, offset, "n_namesz", f"a name of {namesz} bytes does not fit into the notes")
        if desc_at + descsz > end:
            raise FormatError(
                path, offset + 4, "n_descsz", f"a descriptor of {descsz} bytes does not fit into the area"
            )
        name = bytes(data[offset + 12 : offset + 12 + namesz]).split(b"\0", 1)[0].decode("latin-1")
        yield ElfNote(name, kind, bytes(data[desc_at : desc_at + descsz]), desc_at)
        offset = desc_at + (descsz + 3 & ~3)
    raise FormatError(path, offset, "notes", f"more than {MAX_NOTES} notes")


class ElfFile:
    """The outside of one ELF file held in a buffer; segments and sections are parsed when first asked for.

    Args:
        data: the whole file, as bytes or a map. It must live as long as this object; it is not copied.
        path: named in errors.

    Raises:
        UnknownFormatError: it does not start with ELF's magic.
        FormatError: the header is cut off or impossible.
    """

    __slots__ = ("_map", "_names", "_sections", "_segments", "data", "header", "path")

    def __init__(self, data: Buffer, path: object) -> None:
        self.data = data
        self.path = str(path)
        self.header = _read_header(data, self.path)
        self._map: mmap.mmap | None = None
        self._segments: tuple[Segment, ...] | None = None
        self._sections: tuple[Section, ...] | None = None
        self._names: dict[str, Section] = {}

    @property
    def machine(self) -> str | None:
        """Return the architecture's name, None if `e_machine` is not in MACHINES."""
        return MACHINES.get(self.header.machine)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Return all program headers.

        Raises:
            FormatError: the table does not fit into the file.
        """
        if self._segments is None:
            self._segments = self._read_segments()
        return self._segments

    def _read_segments(self) -> tuple[Segment, ...]:
        head = self.header
        if head.phnum == 0:
            return ()
        wide = head.word_bits == 64
        need = 56 if wide else 32
        _check_table(self.data, self.path, "e_phoff", head.phoff, "e_phentsize", head.phentsize, need, head.phnum)
        parser = struct.Struct(head.order + ("IIQQQQQQ" if wide else "IIIIIIII") + f"{head.phentsize - need}x")
        rows = parser.iter_unpack(self.data[head.phoff : head.phoff + head.phnum * head.phentsize])
        if wide:
            return tuple(map(Segment._make, rows))
        return tuple(Segment(t, f, o, v, p, fs, ms, a) for t, o, v, p, fs, ms, f, a in rows)

    @property
    def sections(self) -> tuple[Section, ...]:
        """Return all section headers; empty if the file has none.

        Raises:
            FormatError: the table or the table of names does not fit into the file.
        """
        if self._sections is None:
            self._sections = self._read_sections()
            self._names = {section.name: section for section in reversed(self._sections)}
        return self._sections

    def _read_sections(self) -> tuple[Section, ...]:
        head = self.header
        if head.shnum == 0 or head.shoff == 0:
            return ()
        wide = head.word_bits == 64
        need = 64 if wide else 40
        _check_table(self.data, self.path, "e_shoff", head.shoff, "e_shentsize", head.shentsize, need, head.shnum)
        parser = struct.Struct(head.order + ("IIQQQQIIQQ" if wide else "10I") + f"{head.shentsize - need}x")
        rows = list(parser.iter_unpack(self.data[head.shoff : head.shoff + head.shnum * head.shentsize]))
        names = b""
        if head.shstrndx:
            if head.shstrndx >= head.shnum:
                raise FormatError(self.path, 0, "e_shstrndx", f"section {head.shstrndx} of {head.shnum} cannot be")
            _, kind, _, _, offset, size = rows[head.shstrndx][:6]
            if kind != SHT_NOBITS:
                if offset + size > len(self.data):
                    place = head.shoff + head.shstrndx * head.shentsize
                    raise FormatError(self.path, place, "sh_offset", "the section names are past the end of the file")
                names = bytes(self.data[offset : offset + size])
        found = []
        for index, row in enumerate(rows):
            start = row[0]
            stop = names.find(b"\0", start)
            name = names[start : stop if stop >= 0 else len(names)].decode("utf-8", "replace")
            found.append(Section(index, name, *row[1:]))
        return tuple(found)

    def find_section(self, name: str) -> Section | None:
        """Return the first section called `name`, None if there is none."""
        return self._names.get(name) if self.sections else None

    def section_data(self, section: Section) -> memoryview:
        """Return a section's bytes: a view of the file without a copy, or of the decompressed bytes.

        The view must be released (or forgotten) before `close`. SHT_NOBITS sections are empty here.

        Raises:
            FormatError: the section is not inside the file, or its compressed bytes are damaged.
        """
        if section.type == SHT_NOBITS:
            return memoryview(b"")
        if section.offset + section.size > len(self.data):
            raise FormatError(
                self.path,
                self.header.shoff + section.number * self.header.shentsize,
                "sh_offset",
                f"section {section.name or section.number} is past the end of the file ({len(self.data)} bytes)",
            )
        view = memoryview(self.data)[section.offset : section.offset + section.size]
        return self._inflate(section, view) if section.flags & SHF_COMPRESSED else view

    def _inflate(self, section: Section, view: memoryview) -> memoryview:
        wide = self.header.word_bits == 64
        parser = struct.Struct(self.header.order + ("IIQQ" if wide else "III"))
        if len(view) < parser.size:
            raise FormatError(self.path, section.offset, "ch_type", "the compression header is cut off")
        row = parser.unpack_from(view)
        kind, size = row[0], row[2] if wide else row[1]
        if size > MAX_INFLATED:
            raise FormatError(self.path, section.offset, "ch_size", f"{size} bytes are more than {MAX_INFLATED}")
        packed = view[parser.size :]
        if kind == ELFCOMPRESS_ZLIB:
            import zlib

            try:
                out = zlib.decompressobj().decompress(packed, size + 1)
            except zlib.error as error:
                raise FormatError(self.path, section.offset, section.name, f"zlib: {error}") from error
        elif kind == ELFCOMPRESS_ZSTD:
            import zstandard

            try:
                with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
                    out = reader.read(size + 1)
            except zstandard.ZstdError as error:
                raise FormatError(self.path, section.offset, section.name, f"zstd: {error}") from error
        else:
            raise UnsupportedError(f"compression type {kind} of section {section.name}", self.path)
        if len(out) != size:
            raise FormatError(self.path, section.offset, "ch_size", f"says {size} bytes, there are {len(out)}")
        return memoryview(out)

    def for_each_note(self, segment: Segment) -> Iterator[ElfNote]:
        """Yield the notes of a PT_NOTE segment; see the function of the same name."""
        return for_each_note(self.data, self.header.order, segment.offset, segment.filesz, self.path)

    def find_build_id(self) -> bytes | None:
        """Return the GNU build-id, None if the file has none; looks into note sections, then note segments."""
        areas = [(s.offset, s.size) for s in self.sections if s.type == SHT_NOTE]
        areas += [(s.offset, s.filesz) for s in self.segments if s.type == PT_NOTE]
        for offset, size in areas:
            for note in for_each_note(self.data, self.header.order, offset, size, self.path):
                if note.name == "GNU" and note.type == NT_GNU_BUILD_ID:
                    return note.desc
        return None

    def close(self) -> None:
        """Release the map, if `open_elf` made it; views that are still held keep it alive until they go."""
        if self._map is not None:
            self.data = b""
            with contextlib.suppress(BufferError):  # a caller still holds a view: the map goes with the last of them
                self._map.close()
            self._map = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def open_elf(path: str | os.PathLike[str]) -> ElfFile:
    """Map the file `path` and return its ELF outside; close it, or use it in a `with`.

    Raises:
        FileAccessError: missing, not a regular file, no permission.
        UnknownFormatError: empty, or not ELF.
        FormatError: the header is cut off or impossible.
    """
    name = os.fspath(path)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # never waits for a FIFO's writer
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileAccessError(name, "not a regular file")
            if os.fstat(descriptor).st_size == 0:
                raise UnknownFormatError(name, "the file is empty")
            mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise FileAccessError(name, getattr(error, "strerror", None) or str(error)) from error
    try:
        elf = ElfFile(mapped, name)
    except (UnknownFormatError, FormatError):
        mapped.close()
        raise
    elf._map = mapped
    return elf


def _read_header(data: Buffer, path: str) -> Header:
    ident = bytes(data[:16])
    if not ident.startswith(MAGIC):
        raise UnknownFormatError(path, "not an ELF file")
    if len(ident) < 16:
        raise FormatError(path, len(ident), "e_ident", "the file ends inside the ELF header")
    if ident[4] not in (1, 2):
        raise FormatError(path, 4, "EI_CLASS", f"{ident[4]} is neither 32-bit (1) nor 64-bit (2)")
    if ident[5] not in (1, 2):
        raise FormatError(path, 5, "EI_DATA", f"{ident[5]} is neither little-endian (1) nor big-endian (2)")
    wide = ident[4] == 2
    order = "<" if ident[5] == 1 else ">"
    parser = struct.Struct(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"))
    if len(data) < 16 + parser.size:
        raise FormatError(path, len(data), "Elf_Ehdr", "the file ends inside the ELF header")
    kind, machine, _, entry, phoff, shoff, flags, _, phentsize, phnum, shentsize, shnum, shstrndx = parser.unpack_from(
        data, 16
    )
    if shoff and (phnum == PN_XNUM or shstrndx == SHN_XINDEX or shnum == 0):
        # extended numbering: the first section header holds the true counts
        zero = struct.Struct(order + ("IIQQQQII" if wide else "IIIIIIII"))
        if shoff + zero.size > len(data):
            if phnum == PN_XNUM:
                raise FormatError(path, shoff, "e_shoff", "section 0, which holds the number of segments, is missing")
        else:
            _, _, _, _, _, size, link, info = zero.unpack_from(data, shoff)
            phnum = info if phnum == PN_XNUM and info else phnum
            shstrndx = link if shstrndx == SHN_XINDEX else shstrndx
            shnum = size if shnum == 0 else shnum
    return Header(
        64 if wide else 32,
        "little" if order == "<" else "big",
        order,
        kind,
        machine,
        entry,
        flags,
        phoff,
        phentsize,
        phnum,
        shoff,
        shentsize,
        shnum,
        shstrndx,
    )


def _check_table(
    data: Buffer, path: str, field: str, offset: int, size_field: str, entry_size: int, need: int, count: int
) -> None:
    """Raise FormatError unless `count` entries of `entry_size` bytes, `need` of them used, lie inside the file."""
    if entry_size < need or entry_size > 4096:
        raise FormatError(path, 0, size_field, f"entries of {entry_size} bytes, where {need} are needed")
    if count > MAX_ENTRIES:
        raise FormatError(path, offset, field, f"{count} entries are more than {MAX_ENTRIES}")
    if offset + entry_size * count > len(data):
        raise FormatError(
            path, offset, field, f"{count} entries of {entry_size} bytes do not fit into a file of {len(data)} bytes"
        )
