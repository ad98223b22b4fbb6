"""The symbol table of a kernel file (vmlinux): names to run-time addresses, without a look at its debug information.

Facts:
- Letters are those of nm(1), which goes by the section's flags: code t, no bytes in the file b, writable d, else r.
- KASLR moves every section that is loaded by one slide, except x86's per-CPU section where that is linked at address
  0: its symbols are offsets into each CPU's area (arch/x86/kernel/vmlinux.lds.S, PERCPU_VADDR). Linux 6.15 linked it
  like any other section (9d7de2aa8b41), so its address decides, not its name. `__per_cpu_load` names that section
  and yet has a usual address: the value decides, too.
- Absolute symbols are numbers and stay, unless they lie inside the kernel's own addresses, like `init_per_cpu__*`.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping

from kvm_dbg.elf import ET_CORE, SHF_ALLOC, SHF_EXECINSTR, SHT_NOBITS, ElfFile, Section, open_elf
from kvm_dbg.errors import FormatError, UnknownFormatError
from kvm_dbg.index import Index
from kvm_dbg.symbols.base import Symbol, SymbolTable
from kvm_dbg.symbols.elf_data import (
    SHN_ABS,
    SHN_COMMON,
    SHN_UNDEF,
    STB_GNU_UNIQUE,
    STB_LOCAL,
    STB_WEAK,
    STT_FILE,
    STT_FUNC,
    STT_GNU_IFUNC,
    STT_OBJECT,
    STT_SECTION,
    AddressTable,
    NameTable,
    Row,
    SymbolData,
    find_symbol_section,
)

INDEX_LAYOUT = b"symbols 1 "  # raise it when what is kept changes
FEW = 8  # look-ups by search; from then on a table of all names is built
LOOK_BACK = 64  # symbols below an address among which one that encloses it is looked for
PER_CPU_SECTION = ".data..percpu"
SHF_WRITE = 1
UNTOLD = ""  # the letter of a section that does not tell: code without bytes, in which savecore(8) puts every symbol
BANNER_MAX = 4096  # bytes

# the magic of what vmlinuz is packed with, and of the boot image around it (Documentation/arch/x86/boot.rst)
PACKED = (
    (0x202, b"HdrS", "a compressed boot image (bzImage, vmlinuz)"),
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"\xfd7zXZ", "xz data"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data"),
    (0, b"BZh", "bzip2 data"),
    (0x38, b"ARM\x64", "a boot image for arm64"),
)


def open_kernel_file(path: str | os.PathLike[str]) -> ElfFile:
    """Map a vmlinux and return its ELF outside.

    Raises:
        FileAccessError: missing, not a regular file, no permission.
        UnknownFormatError: not a kernel's ELF file; the text says what it is, if that is known.
        FormatError: the ELF header is cut off or impossible.
    """
    try:
        elf = open_elf(path)
    except UnknownFormatError as error:
        with open(path, "rb") as file:
            head = file.read(1024)
        for offset, magic, what in PACKED:
            if head[offset : offset + len(magic)] == magic:
                raise UnknownFormatError(
                    error.path, f"{what}, which has no symbols: give the vmlinux of the same build"
                ) from error
        raise
    if elf.header.type == ET_CORE:
        elf.close()
        raise UnknownFormatError(path, "an ELF core, not a kernel file")
    return elf


class ElfSymbolTable(SymbolTable):
    """The symbols of a vmlinux.

    Args:
        path: the file, or one that `open_kernel_file` opened; it stays mapped until `close`.
        slide: bytes that the kernel was moved by (run-time minus link-time address).
        index: where tables are kept, so that the next process need not build them.

    Raises:
        FileAccessError, UnknownFormatError: see `open_kernel_file`.
        FormatError: a header is impossible, or the file has no symbol table (it was stripped).
    """

    def __init__(self, path: str | os.PathLike[str] | ElfFile, *, slide: int = 0, index: Index | None = None) -> None:
        self.elf = path if isinstance(path, ElfFile) else open_kernel_file(path)
        self.slide = slide
        section = find_symbol_section(self.elf)
        if section is None:
            raise FormatError(
                self.elf.path,
                self.elf.header.shoff,
                ".symtab",
                "no symbol table: the file was stripped; the vmlinux of the debug package has one",
            )
        self._data = SymbolData(self.elf, section)
        self._index = index
        self._names: NameTable | None = None
        self._addresses: AddressTable | None = None
        self._searches = 0
        sections = self.elf.sections
        self._letters: dict[int, str] = {}
        loaded = [s for s in sections if s.flags & SHF_ALLOC and s.size]
        self._per_cpu = next((s for s in loaded if s.name == PER_CPU_SECTION and s.addr == 0), None)
        moved = [s for s in loaded if s is not self._per_cpu]
        self._moved = {s.number for s in moved}
        self._start = min((s.addr for s in moved), default=0)
        self._end = max((s.addr + s.size for s in moved), default=0)

    @property
    def path(self) -> str:
        """Return the name of the file."""
        return self.elf.path

    @property
    def build_id(self) -> bytes | None:
        """Return the GNU build-id, None if the file has none."""
        return self.elf.find_build_id()

    def slid(self, slide: int) -> ElfSymbolTable:
        """Return the same table for a kernel at another place; both share the file and what was built."""
        other = object.__new__(ElfSymbolTable)
        other.__dict__.update(self.__dict__)
        other.slide = slide
        return other

    def close(self) -> None:
        """Release the file."""
        self.elf.close()

    def _slide_of(self, row: Row) -> int:
        if row.section == SHN_ABS:
            return self.slide if self._start <= row.value <= self._end else 0
        per_cpu = self._per_cpu
        return 0 if per_cpu is not None and row.section == per_cpu.number and row.value <= per_cpu.size else self.slide

    def is_per_cpu(self, symbol: Symbol) -> bool:
        """Return whether the address of `symbol` is an offset into every CPU's area: the section is linked at 0."""
        return self._per_cpu is not None and symbol.address <= self._per_cpu.size and symbol.kind not in "Aa"

    def _symbol(self, row: Row, name: str | None = None) -> Symbol:
        if name is None:
            name = self._data.name(row.name).decode("utf-8", "replace")
        return Symbol(name, row.value + self._slide_of(row), row.size, self._letter(row))

    def _letter(self, row: Row) -> str:
        binding, kind = row.binding, row.type
        if binding == STB_WEAK:
            return "V" if kind == STT_OBJECT else "W"
        if binding == STB_GNU_UNIQUE:
            return "u"
        if kind == STT_GNU_IFUNC:
            return "i"
        letter = self._letters.get(row.section)
        if letter is None:
            letter = self._letters[row.section] = self._section_letter(row.section)
        if letter == UNTOLD:
            letter = "t" if kind == STT_FUNC else "d"
        return letter if binding == STB_LOCAL else letter.upper()

    def _section_letter(self, number: int) -> str:
        if number == SHN_ABS:
            return "a"
        if number == SHN_COMMON:
            return "c"
        if number >= len(self.elf.sections):
            return "?"
        section = self.elf.sections[number]
        if section.flags & SHF_EXECINSTR:
            return UNTOLD if section.type == SHT_NOBITS else "t"
        if section.type == SHT_NOBITS:
            return "b"
        if not section.flags & SHF_ALLOC:
            return "N" if section.flags & SHF_WRITE else "n"
        return "d" if section.flags & SHF_WRITE else "r"

    @staticmethod
    def _is_name(row: Row) -> bool:
        return row.section != SHN_UNDEF and row.name != 0 and row.type not in (STT_SECTION, STT_FILE)

    # by name

    def _find_rows(self, name: str) -> list[Row]:
        wanted = name.encode()
        if not wanted:
            return []
        self._searches += 1
        table = self._name_table(build=self._searches > FEW)
        numbers = self._data.find_rows(wanted) if table is None else table.find_rows(wanted)
        return [row for row in map(self._data.row, numbers) if self._is_name(row)]

    def _name_table(self, *, build: bool) -> NameTable | None:
        """Return the table of names: the one that is kept, or a new one if it can be kept or `build` is set."""
        if self._names is None and (self._index is not None or build):
            self._names = NameTable(self._data, self._kept("symbols", self._data.name_tables, ("buckets", "chain")))
        return self._names

    def _kept(
        self, table: str, build: Callable[[], Mapping[str, array[int]]], names: tuple[str, ...]
    ) -> Mapping[str, memoryview]:
        """Return the parts `names` of a table as kept, each of whole 32-bit words, or else built and kept."""
        identity = INDEX_LAYOUT + self._data.sample()
        parts = self._index.find(table, identity) if self._index is not None else None
        if parts is None or any(name not in parts or len(parts[name]) % 4 for name in names):
            parts = {name: memoryview(part).cast("B") for name, part in build().items()}
            if self._index is not None:
                self._index.store(table, identity, parts)
        return parts

    def _find_row(self, name: str) -> Row | None:
        rows = self._find_rows(name)
        return next((row for row in rows if row.binding != STB_LOCAL), rows[0] if rows else None)

    def find(self, name: str) -> Symbol | None:
        row = self._find_row(name)
        return None if row is None else self._symbol(row, name)

    def find_type(self, name: str) -> int | None:
        row = self._find_row(name)
        return None if row is None else row.type

    def find_many(self, names: Iterable[str]) -> dict[str, Symbol]:
        wanted = {name.encode(): name for name in names if name}
        if len(wanted) <= FEW or self._name_table(build=False) is not None:
            return super().find_many(wanted.values())
        best: dict[str, Row] = {}
        for number in self._data.find_rows_of(set(wanted)):
            row = self._data.row(number)
            if self._is_name(row):
                name = wanted[self._data.name(row.name)]
                known = best.get(name)
                if known is None or (known.binding == STB_LOCAL and row.binding != STB_LOCAL):
                    best[name] = row
        return {name: self._symbol(row, name) for name, row in best.items()}

    def find_all(self, name: str) -> tuple[Symbol, ...]:
        found = [self._symbol(row, name) for row in self._find_rows(name)]
        return tuple(sorted(found, key=lambda symbol: symbol.address))

    # by address

    def _address_table(self) -> AddressTable:
        if self._addresses is None:
            parts = self._kept("addresses", lambda: {"rows": self._data.address_table(self._moved)}, ("rows",))
            self._addresses = AddressTable(self._data, parts["rows"])
        return self._addresses

    def find_at(self, address: int) -> Symbol | None:
        value = address - self.slide
        if not self._start <= value < self._end:
            return None
        table = self._address_table()
        place = table.place(value)
        best: Row | None = None
        nearest: int | None = None
        for at in range(place - 1, max(place - 1 - LOOK_BACK, -1), -1):
            number = table.rows[at]
            if number >= self._data.count:
                break  # of a kept table that is none
            row = self._data.row(number)
            if nearest is None:
                nearest = row.value
            if best is not None and row.value != best.value:
                break
            if row.size:
                covers = value < row.value + row.size
            else:
                covers = row.value == nearest and self._in_section(row, value)
            if covers and (best is None or _rank(row) >= _rank(best)):
                best = row
        return self._symbol(best) if best is not None else None

    def _in_section(self, row: Row, value: int) -> bool:
        section = self.elf.sections[row.section] if row.section < len(self.elf.sections) else None
        return section is not None and section.addr <= value < section.addr + section.size

    def for_each(self) -> Iterator[Symbol]:
        rows = filter(self._is_name, map(self._data.row, range(self._data.count)))
        yield from sorted(map(self._symbol, rows), key=lambda symbol: symbol.address)

    def __len__(self) -> int:
        return sum(map(self._is_name, map(self._data.row, range(self._data.count))))

    # what else the file says

    def find_section(self, name: str) -> Section | None:
        """Return a section of the file, with its link-time address; None if there is none."""
        return self.elf.find_section(name)

    def read_linked(self, address: int, size: int) -> bytes | None:
        """Return the bytes that the file has for a link-time address, up to `size`; None where it has none."""
        for section in self.elf.sections:
            if section.flags & SHF_ALLOC and section.type != SHT_NOBITS:
                offset = address - section.addr
                if 0 <= offset < section.size:
                    return bytes(self.elf.section_data(section)[offset : offset + size])
        return None

    def linux_banner(self) -> bytes | None:
        """Return the text of `linux_banner` ("Linux version 6.1..."), None if the file does not hold it."""
        symbol = self.find("linux_banner")
        data = self.read_linked(symbol.address - self.slide, BANNER_MAX) if symbol is not None else None
        return data.partition(b"\0")[0] if data else None


def _rank(row: Row) -> tuple[bool, bool, bool]:
    """Return how well a symbol names its address: typed and sized ones, then global ones."""
    return row.type in (STT_FUNC, STT_OBJECT), row.size > 0, row.binding != STB_LOCAL
