"""The bytes of an ELF symbol table: its columns, its names, and the tables that find a row by name or address.

Facts: the System V gABI, chapter 4 (`Elf32_Sym`, `Elf64_Sym`, SHT_SYMTAB_SHNDX). Local symbols come first, then global
and weak ones. GNU ld shares the ends of strings, so that a name may start in the middle of another one.

A kernel has 120,000 symbols: everything here goes over columns at the speed of C, never over rows.
Names are found by a hash table like DT_HASH's, with CRC-32 for the hash.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import compress
from typing import NamedTuple

from kvm_dbg.elf import SHT_SYMTAB, ElfFile, Section
from kvm_dbg.errors import FormatError

SHT_SYMTAB_SHNDX = 18
SHN_UNDEF, SHN_ABS, SHN_COMMON, SHN_XINDEX = 0, 0xFFF1, 0xFFF2, 0xFFFF
STB_LOCAL, STB_GLOBAL, STB_WEAK, STB_GNU_UNIQUE = 0, 1, 2, 10
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE, STT_GNU_IFUNC = 0, 1, 2, 3, 4, 10
EXACT_IN_FLOAT = 1 << 53


class Row(NamedTuple):
    """One symbol as the file has it; `section` is the section's number, SHN_XINDEX resolved."""

    name: int  # offset into the strings
    info: int
    section: int
    value: int
    size: int

    @property
    def binding(self) -> int:
        """Return STB_..."""
        return self.info >> 4

    @property
    def type(self) -> int:
        """Return STT_..."""
        return self.info & 15


class SymbolData:
    """The symbol table of one ELF file.

    Args:
        elf: the file.
        section: its SHT_SYMTAB section.

    Raises:
        FormatError: the table or its strings are not inside the file.
    """

    def __init__(self, elf: ElfFile, section: Section) -> None:
        self.path = elf.path
        self.wide = elf.header.word_bits == 64
        self.swapped = elf.header.byteorder != sys.byteorder
        self.section = section
        order = elf.header.order
        self._row = struct.Struct(order + ("IBBHQQ" if self.wide else "IIIBBH"))
        self._name = struct.Struct(order + "I")
        sections = elf.sections
        if not 0 < section.link < len(sections):
            raise FormatError(self.path, section.offset, "sh_link", "the symbol table has no strings")
        self._strings_view = elf.section_data(sections[section.link])
        view = elf.section_data(section)
        self.count = len(view) // self._row.size
        self.rows = view[: self.count * self._row.size]
        self._strings: bytes | None = None
        self._extended = b""
        for other in sections:
            if other.type == SHT_SYMTAB_SHNDX and other.link == section.number:
                self._extended = bytes(elf.section_data(other))
        self._order = order

    def sample(self) -> bytes:
        """Return what tells this table from another one of the same kernel: sizes, and a checksum of the ends."""
        ends = (self.rows[:4096], self.rows[-4096:], self._strings_view[:4096], self._strings_view[-4096:])
        return struct.pack("<QQ4I", len(self.rows), len(self._strings_view), *map(zlib.crc32, ends))

    def row(self, number: int) -> Row:
        """Return one symbol. `number` must be below `count`."""
        fields = self._row.unpack_from(self.rows, number * self._row.size)
        if self.wide:
            name, info, _, section, value, size = fields
        else:
            name, value, size, info, _, section = fields
        if section == SHN_XINDEX and len(self._extended) >= 4 * number + 4:
            (section,) = struct.unpack_from(self._order + "I", self._extended, 4 * number)
        return Row(name, info, section, value, size)

    def has_string(self, row: int, wanted: bytes) -> bool:
        """Return whether the name of a row is `wanted`, which ends with NUL."""
        (name,) = self._name.unpack_from(self.rows, row * self._row.size)
        return self._strings_view[name : name + len(wanted)] == wanted

    @property
    def strings(self) -> bytes:
        """Return all names."""
        if self._strings is None:
            self._strings = bytes(self._strings_view)
            if not self._strings.endswith(b"\0"):
                self._strings += b"\0"
        return self._strings

    def name(self, offset: int) -> bytes:
        """Return the name at `offset`. Raises FormatError: outside the strings."""
        strings = self._strings
        if strings is None:
            part = bytes(self._strings_view[offset : offset + 256])
            end = part.find(b"\0")
            if end >= 0:
                return part[:end]
            strings = self.strings
        if offset >= len(strings):
            raise FormatError(self.path, self.section.offset, "st_name", f"no string at {offset:#x}")
        return strings[offset : strings.find(b"\0", offset)]

    def _column(self, code: str, first: int, step: int) -> array[int]:
        column = array(code, self.rows.tobytes())[first::step]
        if self.swapped:
            column.byteswap()
        return column

    def names(self) -> array[int]:
        """Return the offset of the name of every row."""
        return self._column("I", 0, 6 if self.wide else 4)

    def values(self) -> array[int]:
        """Return the value of every row."""
        return self._column("Q", 1, 3) if self.wide else self._column("I", 1, 4)

    def sections(self) -> array[int]:
        """Return the 16-bit section number of every row, SHN_XINDEX unresolved."""
        return self._column("H", 3, 12) if self.wide else self._column("H", 7, 8)

    def infos(self) -> bytes:
        """Return the binding and type of every row."""
        return self.rows.tobytes()[4::24] if self.wide else self.rows.tobytes()[12::16]

    def find_rows(self, name: bytes) -> list[int]:
        """Return the rows with a name, ascending, without any table: one look through all strings."""
        strings, wanted = self.strings, name + b"\0"
        places = set()
        at = strings.find(wanted)
        while at >= 0:
            places.add(at)
            at = strings.find(wanted, at + 1)
        if not places:
            return []
        names = self.names().tolist()
        return list(compress(range(self.count), map(places.__contains__, names)))

    def find_rows_of(self, wanted: set[bytes]) -> list[int]:
        """Return the rows with any of these names, ascending, without any table: one pass over all rows."""
        strings = self.strings
        find = strings.find
        return [row for row, at in enumerate(self.names()) if strings[at : find(b"\0", at)] in wanted]

    def name_tables(self) -> dict[str, array[int]]:
        """Return the hash table of all names: `buckets` and `chain`.

        A bucket (their number is a power of two) holds its first row, the chain the row after each row. Rows ascend
        along a chain, 0 ends it: row 0 of every symbol table is empty.
        """
        strings, crc32 = self.strings, zlib.crc32
        find = strings.find
        hashes = [crc32(strings[name : find(b"\0", name)]) for name in self.names()]
        mask = (1 << max(self.count, 2).bit_length() - 1) - 1
        buckets = [0] * (mask + 1)
        chain = [0] * self.count
        for row in range(self.count - 1, 0, -1):
            bucket = hashes[row] & mask
            chain[row] = buckets[bucket]
            buckets[bucket] = row
        return {"buckets": array("I", buckets), "chain": array("I", chain)}

    def address_table(self, sections: Iterable[int]) -> array[int]:
        """Return the rows of symbols with an address in one of `sections`, in ascending order of address."""
        wanted = set(sections)
        infos = self.infos()
        mask = infos.translate(bytes(number & 15 not in (STT_SECTION, STT_FILE) for number in range(256)))
        numbers = self.sections().tolist()
        if SHN_XINDEX in numbers:
            numbers = [self.row(i).section if n == SHN_XINDEX else n for i, n in enumerate(numbers)]
        rows = list(compress(range(self.count), map(int.__and__, mask, map(wanted.__contains__, numbers))))
        values = self.values().tolist()
        if not rows:
            return array("I")
        base = min(map(values.__getitem__, rows))
        keys = [value - base for value in values]
        if max(map(keys.__getitem__, rows)) < EXACT_IN_FLOAT:  # floats compare faster than large integers
            keys = list(map(float, keys))  # type: ignore[arg-type]
        rows.sort(key=keys.__getitem__)
        return array("I", rows)


class NameTable:
    """`name_tables` in use: finds rows by name. What was kept is checked against the names themselves."""

    def __init__(self, data: SymbolData, parts: Mapping[str, memoryview]) -> None:
        self.data = data
        self.buckets = (parts["buckets"] or memoryview(bytes(4))).cast("I")
        self.chain = parts["chain"].cast("I")

    def find_rows(self, name: bytes) -> list[int]:
        """Return the rows with a name, ascending."""
        data, chain = self.data, self.chain
        wanted, found = name + b"\0", []
        row, before = self.buckets[zlib.crc32(name) & len(self.buckets) - 1], 0
        limit = min(data.count, len(chain))
        while before < row < limit:
            if data.has_string(row, wanted):
                found.append(row)
            row, before = chain[row], row
        return found


class AddressTable:
    """`address_table` in use: finds rows by link-time address."""

    def __init__(self, data: SymbolData, rows: memoryview) -> None:
        self.data = data
        self.rows = rows.cast("I")

    def place(self, value: int) -> int:
        """Return the number of entries whose value is at or below `value`."""
        return bisect_right(self.rows, value, key=self.value)

    def value(self, number: int) -> int:
        """Return the value of a row, which may come from a table that was kept: 0 if there is no such row."""
        return self.data.row(number).value if number < self.data.count else 0


def find_symbol_section(elf: ElfFile) -> Section | None:
    """Return the section with the full symbol table, None if the file has none."""
    return next((section for section in elf.sections if section.type == SHT_SYMTAB and section.size), None)
