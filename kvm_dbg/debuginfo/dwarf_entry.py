"""Read the entries of one unit of DWARF by their offsets: attributes, strings, references and ranges of addresses.

Facts: the DWARF standard, versions 2 to 5: 7.5 (units, abbreviations, forms), 2.17 and 7.25 (range lists), 7.26 (string
offsets), 7.27 (address tables); version 4 has .debug_ranges in place of .debug_rnglists.

Nothing is read but what is asked for: `DW_AT_sibling` skips the entries inside others, so that the functions of a unit
of a megabyte are listed in a hundredth of a second.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from kvm_dbg.debuginfo.dwarf_search import (
    AT_NAME,
    AT_SIBLING,
    BLOCK_FORMS,
    FORM_ADDR,
    FORM_IMPLICIT_CONST,
    FORM_STRING,
    FORM_STRP,
    OFFSET_FORMS,
    SIZES,
    Abbreviation,
    Area,
    Unit,
    read_abbreviations,
    read_leb128,
    read_sleb128,
    read_unit,
)
from kvm_dbg.elf import ElfFile
from kvm_dbg.errors import FormatError, UnsupportedError

AT_LOW_PC, AT_HIGH_PC, AT_ABSTRACT_ORIGIN, AT_SPECIFICATION, AT_RANGES = 0x11, 0x12, 0x31, 0x47, 0x55
AT_STR_OFFSETS_BASE, AT_ADDR_BASE, AT_RNGLISTS_BASE = 0x72, 0x73, 0x74
FORM_SDATA, FORM_UDATA, FORM_REF_ADDR, FORM_REF_UDATA, FORM_INDIRECT = 0x0D, 0x0F, 0x10, 0x15, 0x16
FORM_FLAG_PRESENT, FORM_LINE_STRP, FORM_LOCLISTX, FORM_RNGLISTX = 0x19, 0x1F, 0x22, 0x23
UNIT_REFERENCES: Final = frozenset((0x11, 0x12, 0x13, 0x14, FORM_REF_UDATA))
STRING_INDEXES: Final = frozenset((0x1A, 0x25, 0x26, 0x27, 0x28))
ADDRESS_INDEXES: Final = frozenset((0x1B, 0x29, 0x2A, 0x2B, 0x2C))
INDEX_FORMS: Final = frozenset((0x1A, 0x1B, FORM_LOCLISTX, FORM_RNGLISTX))
(
    RLE_END, RLE_BASEX, RLE_STARTX_ENDX, RLE_STARTX_LENGTH, RLE_OFFSET_PAIR, RLE_BASE, RLE_START_END, RLE_START_LENGTH,
) = range(8)  # fmt: skip
MAX_RANGES = 1 << 16  # of one entry
MAX_ORIGINS = 16  # abstract origins of abstract origins
MAX_STRING = 1 << 16  # bytes
MAX_ENTRIES = 1 << 22  # walked in one unit

Run = tuple[int, int]  # [start, end) of addresses
Raw = int | bytes


class Entry(NamedTuple):
    """One entry: its place in .debug_info, and (form, value) of its attributes; a value is as the file has it.

    children: whether it has any; the first one's place is `end`. sibling: the place of the next entry, 0 if not told.
    """

    offset: int
    tag: int
    attributes: dict[int, tuple[int, Raw]]
    children: bool
    end: int
    sibling: int


class DwarfSections:
    """The sections of one file that addresses lead through; each is mapped when first needed.

    Raises:
        UnsupportedError: the file has no debug information.
    """

    def __init__(self, elf: ElfFile) -> None:
        self.elf = elf
        self.path = elf.path
        self.order = elf.header.order
        self.byteorder: Literal["little", "big"] = "little" if elf.header.order == "<" else "big"
        self._areas: dict[str, Area] = {}
        self._tables: dict[int, dict[int, Abbreviation]] = {}
        if not len(self["info"]) or not len(self["abbrev"]):
            raise UnsupportedError("a file without debug information", elf.path)

    def __getitem__(self, name: str) -> Area:
        """Return a section by its name without ".debug_"; empty if there is none."""
        area = self._areas.get(name)
        if area is None:
            area = self._areas[name] = Area(self.elf, f".debug_{name}")
        return area

    def abbreviations(self, unit: Unit) -> dict[int, Abbreviation]:
        """Return a unit's abbreviations. Raises FormatError."""
        table = self._tables.get(unit.abbreviations)
        if table is None:
            table = read_abbreviations(self["abbrev"], unit.abbreviations, self.path)
            self._tables[unit.abbreviations] = table
        return table

    def wrong(self, name: str, at: int, message: str) -> FormatError:
        """Return the error that names a place in a section."""
        return FormatError(self.path, self[name].file_offset + at, f".debug_{name}", message)

    def number(self, name: str, at: int, size: int) -> int:
        """Return an unsigned number out of a section. Raises FormatError."""
        data = self[name].read(at, size)
        if at < 0 or len(data) < size:
            raise self.wrong(name, at, f"{size} bytes are past the end of the section")
        return int.from_bytes(data, self.byteorder)

    def string(self, name: str, at: int) -> str:
        """Return the string at an offset of a section. Raises FormatError."""
        for size in (256, MAX_STRING):
            data = self[name].read(at, size)
            end = data.find(b"\0")
            if end >= 0:
                return data[:end].decode("utf-8", "replace")
        raise self.wrong(name, at, "a string without an end")


class UnitReader:
    """Reads the entries of one unit."""

    def __init__(self, sections: DwarfSections, start: int) -> None:
        self.sections = sections
        self.unit = read_unit(sections["info"], start, sections.order, sections.path)
        self._data = sections["info"].read(start, self.unit.end - start)
        self._table = sections.abbreviations(self.unit)
        self._sizes = SIZES | dict.fromkeys(OFFSET_FORMS, self.unit.offset_size) | {FORM_ADDR: self.unit.address_size}
        if self.unit.version == 2:  # where a reference is as wide as an address
            self._sizes[FORM_REF_ADDR] = self.unit.address_size
        self._plans: dict[int, tuple[int, int]] = {}
        self.top = self.entry(self.unit.first)
        self.base = self.address(self.top, AT_LOW_PC) or 0

    def wrong(self, offset: int, message: str) -> FormatError:
        """Return the error that names a place in .debug_info."""
        return self.sections.wrong("info", offset, message)

    def entry(self, offset: int) -> Entry:
        """Return the entry at `offset` of .debug_info. Raises FormatError."""
        try:
            return self._entry(offset)
        except (IndexError, KeyError, struct.error) as error:
            raise self.wrong(offset, "there is no entry that can be read") from error

    def _entry(self, offset: int) -> Entry:
        start, data = self.unit.start, self._data
        if not self.unit.first <= offset < self.unit.end:
            raise IndexError
        code, at = read_leb128(data, offset - start)
        abbreviation = self._table[code]
        found: dict[int, tuple[int, Raw]] = {}
        for attribute, form in abbreviation.attributes:
            if form == FORM_IMPLICIT_CONST:
                found[attribute] = form, abbreviation.implicit[attribute]
                continue
            form, value, at = self._value(form, at)
            found[attribute] = form, value
        if at > len(data):
            raise IndexError
        sibling = self._reference(*found[AT_SIBLING]) if AT_SIBLING in found else 0
        return Entry(offset, abbreviation.tag, found, abbreviation.children, at + start, sibling)

    def _value(self, form: int, at: int) -> tuple[int, Raw, int]:
        """Return (form, value, the place after it). Raises IndexError, KeyError."""
        data, byteorder = self._data, self.sections.byteorder
        if form == FORM_INDIRECT:
            form, at = read_leb128(data, at)
        size = self._sizes.get(form)
        if size is not None:
            if form == FORM_FLAG_PRESENT:
                return form, 1, at
            return form, int.from_bytes(data[at : at + size], byteorder), at + size
        if form == FORM_STRING:
            end = data.find(b"\0", at)
            if end < 0:
                raise IndexError
            return form, data[at:end], end + 1
        if form == FORM_SDATA:
            value, at = read_sleb128(data, at)
            return form, value, at
        if form in BLOCK_FORMS:
            width = BLOCK_FORMS[form]
            if width:
                length, at = int.from_bytes(data[at : at + width], byteorder), at + width
            else:
                length, at = read_leb128(data, at)
            return form, data[at : at + length], at + length
        if form in INDEX_FORMS or form in (FORM_UDATA, FORM_REF_UDATA):
            value, at = read_leb128(data, at)
            return form, value, at
        raise KeyError(form)

    def children(self, parent: Entry) -> Iterator[Entry]:
        """Yield the entries right below one. Raises FormatError."""
        if not parent.children:
            return
        for at in self._places(parent.end):
            yield self.entry(at)

    def children_of_tag(self, parent: Entry, tags: frozenset[int]) -> Iterator[Entry]:
        """Yield the entries of these tags right below one, without reading the others. Raises FormatError."""
        if not parent.children:
            return
        start, data, table = self.unit.start, self._data, self._table
        for at in self._places(parent.end):
            if table[read_leb128(data, at - start)[0]].tag in tags:
                yield self.entry(at)

    def _places(self, at: int) -> Iterator[int]:
        """Yield the places of an entry's children, the first of which is at `at`. Raises FormatError."""
        start, data, plans = self.unit.start, self._data, self._plans
        at -= start
        depth = 0
        try:
            for _ in range(MAX_ENTRIES):
                code, body = read_leb128(data, at)
                if not code:
                    if not depth:
                        return
                    depth -= 1
                    at = body
                    continue
                size, sibling_at = plans.get(code) or self._plan(code)
                if not depth:
                    yield at + start
                if size < 0:
                    entry = self._entry(at + start)
                    body, sibling = entry.end - start, entry.sibling - start
                else:
                    sibling = 0
                    if sibling_at >= 0:
                        place = body + sibling_at
                        sibling = int.from_bytes(data[place : place + 4], self.sections.byteorder)
                    body += size
                if at < sibling <= len(data):
                    at = sibling
                    continue
                depth += self._table[code].children
                at = body
        except (IndexError, KeyError) as error:
            raise self.wrong(at + start, "there is no entry that can be read") from error
        raise self.wrong(at + start, f"more than {MAX_ENTRIES} entries")

    def _plan(self, code: int) -> tuple[int, int]:
        """Return (bytes of an entry's attributes or -1, where among them a four-byte sibling is or -1)."""
        size, sibling_at = 0, -1
        for attribute, form in self._table[code].attributes:
            if form not in self._sizes or (attribute == AT_SIBLING and form != 0x13):
                size = -1
                break
            if attribute == AT_SIBLING:
                sibling_at = size
            size += self._sizes[form]
        self._plans[code] = size, sibling_at
        return size, sibling_at

    def _reference(self, form: int, value: Raw) -> int:
        if isinstance(value, int):
            if form in UNIT_REFERENCES:
                return self.unit.start + value
            if form == FORM_REF_ADDR:
                return value
        return 0

    def reference(self, entry: Entry, attribute: int) -> int:
        """Return the place in .debug_info that an attribute refers to, 0 for none, or for one in another file."""
        found = entry.attributes.get(attribute)
        return 0 if found is None else self._reference(*found)

    def string(self, entry: Entry, attribute: int = AT_NAME) -> str | None:
        """Return a string, None if the entry has none. Raises FormatError."""
        found = entry.attributes.get(attribute)
        if found is None:
            return None
        form, value = found
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if form == FORM_STRP:
            return self.sections.string("str", value)
        if form == FORM_LINE_STRP:
            return self.sections.string("line_str", value)
        if form in STRING_INDEXES:
            size = self.unit.offset_size
            base = self._top_number(AT_STR_OFFSETS_BASE, 2 * size)
            return self.sections.string("str", self.sections.number("str_offsets", base + value * size, size))
        return None

    def number(self, entry: Entry, attribute: int) -> int | None:
        """Return a constant or flag, None if the entry has none."""
        found = entry.attributes.get(attribute)
        return found[1] if found is not None and isinstance(found[1], int) else None

    def address(self, entry: Entry, attribute: int) -> int | None:
        """Return an address, None if the entry has none. Raises FormatError."""
        form, value = entry.attributes.get(attribute, (0, b""))
        if not isinstance(value, int):
            return None
        if form in ADDRESS_INDEXES:
            return self.indexed_address(value)
        return value if form == FORM_ADDR else None

    def indexed_address(self, index: int) -> int:
        """Return an address of the unit's table of addresses. Raises FormatError."""
        size = self.unit.address_size
        return self.sections.number("addr", self._top_number(AT_ADDR_BASE, 8) + index * size, size)

    def _top_number(self, attribute: int, default: int) -> int:
        """Return a number that the unit's own entry has, else the default."""
        found = self.number(self.top, attribute)
        return default if found is None else found

    def ranges(self, entry: Entry) -> list[Run]:
        """Return the runs of addresses that an entry covers; none if it covers no code. Raises FormatError."""
        form, place = entry.attributes.get(AT_RANGES, (0, b""))
        if isinstance(place, int):
            return self._range_list(form, place) if self.unit.version >= 5 else self._old_ranges(place)
        low = self.address(entry, AT_LOW_PC)
        high = entry.attributes.get(AT_HIGH_PC)
        if low is None or high is None or not isinstance(high[1], int):
            return []
        end = self.address(entry, AT_HIGH_PC)
        return [(low, low + high[1] if end is None else end)]

    def _old_ranges(self, at: int) -> list[Run]:
        size = self.unit.address_size
        base, top = self.base, (1 << 8 * size) - 1
        found: list[Run] = []
        for _ in range(MAX_RANGES):
            start, end = self.sections.number("ranges", at, size), self.sections.number("ranges", at + size, size)
            at += 2 * size
            if start == top:
                base = end
            elif not start and not end:
                return found
            elif start < end:
                found.append((base + start, base + end))
        raise self.sections.wrong("ranges", at, f"more than {MAX_RANGES} ranges")

    def _range_list(self, form: int, at: int) -> list[Run]:
        sections, unit = self.sections, self.unit
        if form == FORM_RNGLISTX:
            start = self._top_number(AT_RNGLISTS_BASE, 12 if unit.offset_size == 4 else 20)
            at = start + sections.number("rnglists", start + at * unit.offset_size, unit.offset_size)
        walk = ListWalk(self, "rnglists", at)
        found: list[Run] = []
        base = self.base
        for _ in range(MAX_RANGES):
            kind = walk.byte()
            if kind == RLE_END:
                return found
            pair = walk.run(kind, base)
            if isinstance(pair, int):
                base = pair
            elif pair[0] < pair[1]:
                found.append(pair)
        raise sections.wrong("rnglists", at, f"more than {MAX_RANGES} ranges")

    def named(self, entry: Entry) -> str | None:
        """Return an entry's name, or that of what it is an instance of in the same unit. Raises FormatError."""
        for origin in self.origins(entry):
            if AT_NAME in origin.attributes:
                return self.string(origin)
        return None

    def origins(self, entry: Entry) -> Iterator[Entry]:
        """Yield the entry, and what it is an instance of, as far as that is in the same unit. Raises FormatError."""
        for _ in range(MAX_ORIGINS):
            yield entry
            origin = self.reference(entry, AT_ABSTRACT_ORIGIN) or self.reference(entry, AT_SPECIFICATION)
            if not self.unit.first <= origin < self.unit.end:
                return
            entry = self.entry(origin)
        raise self.wrong(entry.offset, f"more than {MAX_ORIGINS} origins in a row")


class ListWalk:
    """A walk over a range list or location list of version 5, whose entries for addresses are the same."""

    def __init__(self, reader: UnitReader, name: str, at: int) -> None:
        self._reader = reader
        self._name = name
        self.at = at

    def byte(self) -> int:
        """Return the next byte. Raises FormatError."""
        self.at += 1
        return self._reader.sections.number(self._name, self.at - 1, 1)

    def leb128(self) -> int:
        """Return the next number. Raises FormatError."""
        data = self._reader.sections[self._name].read(self.at, 10)
        try:
            value, size = read_leb128(data, 0)
        except IndexError:
            raise self._reader.sections.wrong(self._name, self.at, "a number is cut off") from None
        self.at += size
        return value

    def address(self) -> int:
        """Return the next address. Raises FormatError."""
        size = self._reader.unit.address_size
        self.at += size
        return self._reader.sections.number(self._name, self.at - size, size)

    def run(self, kind: int, base: int) -> Run | int:
        """Return the run of addresses of an entry whose kind was read, or the new base. Raises FormatError."""
        reader = self._reader
        if kind == RLE_OFFSET_PAIR:
            return base + self.leb128(), base + self.leb128()
        if kind == RLE_BASE:
            return self.address()
        if kind == RLE_BASEX:
            return reader.indexed_address(self.leb128())
        if kind == RLE_START_END:
            return self.address(), self.address()
        if kind == RLE_START_LENGTH:
            start = self.address()
            return start, start + self.leb128()
        if kind == RLE_STARTX_ENDX:
            return reader.indexed_address(self.leb128()), reader.indexed_address(self.leb128())
        if kind == RLE_STARTX_LENGTH:
            start = reader.indexed_address(self.leb128())
            return start, start + self.leb128()
        raise reader.sections.wrong(self._name, self.at - 1, f"an entry of kind {kind}")
