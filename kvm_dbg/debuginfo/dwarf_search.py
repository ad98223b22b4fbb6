"""Find a type's entry in DWARF by name, without parsing what lies before it.

Facts: the DWARF standard, versions 4 and 5, chapter 7 (unit headers, abbreviations, forms).

Distributions' vmlinux has no index of names, and 160 MB of entries: a parser needs minutes for what a search for
bytes does in a tenth of a second. An entry is its abbreviation code and its attributes. The first is DW_AT_name (of
GCC's base types the third, of Clang's typedefs and enums the second, after DW_AT_type): the offset of the name in
.debug_str, or the name itself if it is short. So the name is looked for, and each hit is checked: it must fit an
abbreviation of its unit, and the walk over the unit's entries, which DW_AT_sibling makes short, must come by it.

Clang's DWARF 5 has indexes in the place of offsets (DW_FORM_strx1, ...): 7.26 says how .debug_str_offsets turns them
into offsets, by a table for each unit, whose place the unit's own entry tells (DW_AT_str_offsets_base). The offset is
looked for in the tables then, and its index in the units that they belong to.

Linkers merge the ends of strings: a name may start inside a longer one. GNU ld takes, of all strings that end in
the name, the one that comes first when they are ordered by their reversed text; that one is tried first.
"""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from kvm_dbg.elf import SHF_COMPRESSED, SHT_NOBITS, ElfFile
from kvm_dbg.errors import FormatError, UnsupportedError

TAG_ENUMERATION, TAG_STRUCTURE, TAG_TYPEDEF, TAG_UNION, TAG_BASE, TAG_ENUMERATOR = 0x04, 0x13, 0x16, 0x17, 0x24, 0x28
AT_SIBLING, AT_NAME, AT_DECLARATION, AT_STR_OFFSETS_BASE = 0x01, 0x03, 0x3C, 0x72
FORM_ADDR, FORM_STRING, FORM_STRP, FORM_REF4, FORM_SEC_OFFSET, FORM_IMPLICIT_CONST = (
    0x01, 0x08, 0x0E, 0x13, 0x17, 0x21,
)  # fmt: skip
UNIT_TYPE, UNIT_SKELETON, UNIT_SPLIT_COMPILE, UNIT_SPLIT_TYPE = 0x02, 0x04, 0x05, 0x06
MAX_UNITS = 1 << 20
MAX_TABLE = 1 << 20  # bytes of a unit's abbreviations
TOP_ENTRY = 1 << 12  # bytes within which a unit's own entry says where its strings are
MAX_CANDIDATES = 32  # places of a name in .debug_str that are tried
NAME_PLACES: Final = (0, 2, 4)  # bytes before the name: none, DW_AT_byte_size and DW_AT_encoding, DW_AT_type
SHORT: Final = 3  # names up to this length are written in place of their offset


# forms of a fixed size in bytes, but for those of an address's or an offset's size
SIZES: Final = {
    0x05: 2, 0x06: 4, 0x07: 8, 0x0B: 1, 0x0C: 1, 0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8, 0x19: 0, 0x1C: 4, 0x1E: 16,
    0x20: 8, 0x21: 0, 0x24: 8, 0x25: 1, 0x26: 2, 0x27: 3, 0x28: 4, 0x29: 1, 0x2A: 2, 0x2B: 3, 0x2C: 4,
}  # fmt: skip
OFFSET_FORMS: Final = frozenset((0x0E, 0x10, 0x17, 0x1D, 0x1F))  # strp, ref_addr, sec_offset, strp_sup, line_strp
LEB128_FORMS: Final = frozenset((0x0D, 0x0F, 0x15, 0x1A, 0x1B, 0x22, 0x23))
STRX_FORMS: Final = {0x25: 1, 0x26: 2, 0x27: 3, 0x28: 4}  # form -> bytes of the index
STRX_HEADER: Final = 8  # bytes of a unit's table in .debug_str_offsets before the offsets, in 32-bit DWARF
BLOCK_FORMS: Final = {0x0A: 1, 0x03: 2, 0x04: 4, 0x09: 0, 0x18: 0}  # form -> bytes of the length, 0 for LEB128


class Unit(NamedTuple):
    """One unit of .debug_info: [start, end) and the first entry in bytes of the section, its abbreviations' offset."""

    start: int
    end: int
    first: int
    abbreviations: int
    address_size: int
    offset_size: int
    version: int


class Abbreviation(NamedTuple):
    """What is needed of an abbreviation.

    name: (bytes of attributes before the name, its form); None if there is no name or what is before it varies.
    attributes: (attribute, form). implicit: the values that stand in the abbreviation (DW_FORM_implicit_const), by
    attribute.
    """

    tag: int
    name: tuple[int, int] | None
    declaration: bool
    children: bool
    attributes: tuple[tuple[int, int], ...]
    implicit: dict[int, int]


class Area:
    """The bytes of a section: part of a mapped file, or decompressed."""

    def __init__(self, elf: ElfFile, name: str) -> None:
        section = elf.find_section(name)
        self.name = name
        self.data: bytes | mmap.mmap = b""
        self.start = self.end = self.file_offset = 0
        if section is None or section.type == SHT_NOBITS:
            return
        view = elf.section_data(section)
        self.file_offset = section.offset
        if isinstance(elf.data, mmap.mmap) and not section.flags & SHF_COMPRESSED:
            self.data, self.start, self.end = elf.data, section.offset, section.offset + section.size
        else:
            self.data, self.end = bytes(view), len(view)

    def __len__(self) -> int:
        return self.end - self.start

    def find(self, needle: bytes, at: int = 0, end: int | None = None) -> int:
        """Return where `needle` is, from `at` on and before `end`; -1 if it is nowhere."""
        found = self.data.find(needle, self.start + at, self.end if end is None else min(self.start + end, self.end))
        return found - self.start if found >= 0 else -1

    def read(self, at: int, size: int) -> bytes:
        """Return up to `size` bytes."""
        at += self.start
        return self.data[at : min(at + size, self.end)] if at < self.end else b""


def read_unit(info: Area, at: int, order: str, path: str) -> Unit:
    """Return the unit whose header is at `at` of .debug_info.

    Raises:
        UnsupportedError: a version of DWARF that is not known.
        FormatError: the header is impossible.
    """
    wrong = FormatError(path, info.file_offset + at, "unit_length", "a unit does not fit into .debug_info")
    head = info.read(at, 24)
    if len(head) < 12:
        raise wrong
    (length,) = struct.unpack_from(order + "I", head)
    wide = length == 0xFFFFFFFF
    if wide:
        if len(head) < 24:
            raise wrong
        (length,) = struct.unpack_from(order + "Q", head, 4)
    field = 12 if wide else 4
    end = at + field + length
    (version,) = struct.unpack_from(order + "H", head, field)
    if length < 7 or end > len(info):
        raise wrong
    if not 2 <= version <= 5:
        raise UnsupportedError(f"DWARF version {version}", path)
    offset_size = 8 if wide else 4
    if version >= 5:  # the order changed, and units of some types have more fields
        unit_type, address_size, where = head[field + 2], head[field + 3], field + 4
        more = {UNIT_TYPE: 8 + offset_size, UNIT_SPLIT_TYPE: 8 + offset_size}
        more |= {UNIT_SKELETON: 8, UNIT_SPLIT_COMPILE: 8}
        first = where + offset_size + more.get(unit_type, 0)
    else:
        where, first = field + 2, field + 3 + offset_size
        address_size = head[first - 1] if first <= len(head) else 0
    if len(head) < where + offset_size or at + first > end:
        raise wrong
    (abbreviations,) = struct.unpack_from(order + ("Q" if wide else "I"), head, where)
    return Unit(at, end, at + first, abbreviations, address_size, offset_size, version)


class DwarfSearch:
    """The search in one file.

    Raises:
        UnsupportedError: the file has no debug information.
        FormatError: a unit's header is impossible.
    """

    def __init__(self, elf: ElfFile) -> None:
        self.path = elf.path
        self.order = elf.header.order
        self.info = Area(elf, ".debug_info")
        self.strings = Area(elf, ".debug_str")
        self.abbreviations = Area(elf, ".debug_abbrev")
        if not len(self.info) or not len(self.abbreviations):
            raise UnsupportedError("a kernel file without debug information", elf.path)
        self.string_tables = Area(elf, ".debug_str_offsets")
        self.units = list(self._for_each_unit())
        self._starts = [unit.start for unit in self.units]
        self._last: tuple[int, dict[int, Abbreviation]] = (-1, {})
        self._depths: tuple[int, dict[int, int]] = (-1, {})  # of the unit that was walked last
        self._tables: tuple[list[int], list[Unit]] | None = None

    def _for_each_unit(self) -> Iterator[Unit]:
        at, size = 0, len(self.info)
        for _ in range(MAX_UNITS):
            if at + 12 > size:
                return
            unit = read_unit(self.info, at, self.order, self.path)
            yield unit
            at = unit.end
        raise FormatError(self.path, self.info.file_offset + at, "unit_length", f"more than {MAX_UNITS} units")

    def unit_of(self, offset: int) -> Unit | None:
        """Return the unit that a byte of .debug_info lies in."""
        number = bisect_right(self._starts, offset) - 1
        return self.units[number] if number >= 0 and offset < self.units[number].end else None

    def for_each_entry(self, tags: tuple[int, ...], name: bytes) -> Iterator[tuple[Unit, int]]:
        """Yield (unit, offset of the entry) of complete entries of that name, as far as the search can tell.

        Raises:
            FormatError: damaged abbreviations.
        """
        found = False
        ways = [self._in_place, self._by_offset] if len(name) <= SHORT else [self._by_offset, self._in_place]
        if len(self.string_tables):
            ways.insert(0, self._by_index)
        for way in ways:
            for place, form in way(name):
                entry = self._check(place, form, tags)
                if entry is not None:
                    found = True
                    yield entry
            if found:
                return

    def _in_place(self, name: bytes) -> Iterator[tuple[int, int]]:
        needle = name + b"\0"
        at = self.info.find(needle)
        while at >= 0:
            yield at, FORM_STRING
            at = self.info.find(needle, at + 1)

    def _by_offset(self, name: bytes) -> Iterator[tuple[int, int]]:
        for offset in self.string_offsets(name)[:MAX_CANDIDATES]:
            needle = struct.pack(self.order + "I", offset)
            at = self.info.find(needle)
            if at < 0:
                continue
            while at >= 0:
                yield at, FORM_STRP
                at = self.info.find(needle, at + 1)
            return

    def _by_index(self, name: bytes) -> Iterator[tuple[int, int]]:
        for offset in self.string_offsets(name)[:MAX_CANDIDATES]:
            needle = struct.pack(self.order + "I", offset)
            at = self.string_tables.find(needle)
            while at >= 0:
                unit, index = self._owner_of(at)
                if unit is not None:
                    yield from self._by_index_in(unit, index)
                at = self.string_tables.find(needle, at + 1)

    def _by_index_in(self, unit: Unit, index: int) -> Iterator[tuple[int, int]]:
        byteorder: Literal["little", "big"] = "little" if self.order == "<" else "big"
        for form, size in STRX_FORMS.items():
            if index >> 8 * size:
                continue
            needle = index.to_bytes(size, byteorder)
            at = self.info.find(needle, unit.first, unit.end)
            while at >= 0:
                yield at, form
                at = self.info.find(needle, at + 1, unit.end)

    def _owner_of(self, place: int) -> tuple[Unit | None, int]:
        """Return the unit whose table of strings has an offset at `place`, and that offset's index in the table."""
        if self._tables is None:
            found = sorted((base, unit) for unit in self.units if (base := self._table_of(unit)) is not None)
            self._tables = [base for base, _ in found], [unit for _, unit in found]
        bases, units = self._tables
        number = bisect_right(bases, place) - 1
        if number < 0 or (place - bases[number]) % 4:
            return None, 0
        end = bases[number + 1] - STRX_HEADER if number + 1 < len(bases) else len(self.string_tables)
        return (units[number], (place - bases[number]) // 4) if place < end else (None, 0)

    def _table_of(self, unit: Unit) -> int | None:
        """Return where in .debug_str_offsets the strings of a unit start, None if it does not say it."""
        if unit.version < 5 or unit.offset_size != 4:
            return None
        data = self.info.read(unit.first, min(TOP_ENTRY, unit.end - unit.first))
        try:
            code, at = read_leb128(data, 0)
            top = read_abbreviations(self.abbreviations, unit.abbreviations, self.path, only=code)[code]
            return EntryWalk(self, unit, {code: top}).find_offset(top, data, at, AT_STR_OFFSETS_BASE)
        except (IndexError, KeyError):
            return None

    def string_offsets(self, name: bytes) -> list[int]:
        """Return the places of a name in .debug_str, the likeliest first."""
        needle, strings = name + b"\0", self.strings
        found: list[tuple[bytes, int]] = []
        at = strings.find(needle)
        while at >= 0:
            head = strings.read(max(0, at - 1024), min(at, 1024))
            prefix = head[head.rfind(b"\0") + 1 :]
            found.append((prefix[::-1], at))
            at = strings.find(needle, at + 1)
        return [place for _, place in sorted(found)]

    def _check(self, place: int, form: int, tags: tuple[int, ...]) -> tuple[Unit, int] | None:
        """Return the entry whose first attribute is at `place`, None if there is none that counts."""
        unit = self.unit_of(place)
        if unit is None:
            return None
        table = self._abbreviations_of(unit)
        for name_at in NAME_PLACES:
            before = self.info.read(place - name_at - 2, 2)
            if len(before) < 2 or before[1] >= 0x80:
                continue
            # the code is a LEB128 number of one byte or, where that has a byte with the top bit before it, of two
            codes = [(before[1], 1)]
            if before[0] >= 0x80:
                codes.insert(0, (before[0] & 0x7F | before[1] << 7, 2))
            for code, size in codes:
                found = table.get(code)
                if found is None or found.tag not in tags or found.name != (name_at, form) or found.declaration:
                    continue
                # types of a file are children of the unit, enumerators of their enum; others are a function's own
                entry = place - name_at - size
                if self._depth_of(unit, table, entry, form) == (2 if found.tag == TAG_ENUMERATOR else 1):
                    return unit, entry
        return None

    def _depth_of(self, unit: Unit, table: dict[int, Abbreviation], entry: int, form: int) -> int | None:
        if form not in STRX_FORMS:
            return EntryWalk(self, unit, table).depth_of(entry)
        if self._depths[0] != unit.start:  # many bytes look like a short index, and Clang writes no siblings
            self._depths = unit.start, EntryWalk(self, unit, table).depths()
        return self._depths[1].get(entry)

    def _abbreviations_of(self, unit: Unit) -> dict[int, Abbreviation]:
        if self._last[0] != unit.abbreviations:
            self._last = (unit.abbreviations, read_abbreviations(self.abbreviations, unit.abbreviations, self.path))
        return self._last[1]


def read_abbreviations(area: Area, start: int, path: str, *, only: int = 0) -> dict[int, Abbreviation]:
    """Return the table of abbreviations at `start` of .debug_abbrev, by code; with `only`, up to that code.

    Raises:
        FormatError: the table is cut off.
    """
    data = area.read(start, MAX_TABLE)
    found: dict[int, Abbreviation] = {}
    try:
        code, at = read_leb128(data, 0)
        while code:
            tag, at = read_leb128(data, at)
            children = data[at] != 0
            at += 1
            attributes: list[tuple[int, int]] = []
            implicit: dict[int, int] = {}
            while True:
                attribute, at = read_leb128(data, at)
                form, at = read_leb128(data, at)
                if form == FORM_IMPLICIT_CONST:
                    implicit[attribute], at = read_sleb128(data, at)
                if not attribute and not form:
                    break
                attributes.append((attribute, form))
            declaration = any(attribute == AT_DECLARATION for attribute, _ in attributes)
            found[code] = Abbreviation(tag, _name_of(attributes), declaration, children, tuple(attributes), implicit)
            if code == only:
                break
            code, at = read_leb128(data, at)
    except IndexError as error:
        where = area.file_offset + start
        raise FormatError(path, where, ".debug_abbrev", "a table of abbreviations is cut off") from error
    return found


def _name_of(attributes: list[tuple[int, int]]) -> tuple[int, int] | None:
    before = 0
    for attribute, form in attributes:
        if attribute == AT_NAME:
            return before, form
        if form not in SIZES:
            return None
        before += SIZES[form]
    return None


class EntryWalk:
    """A walk over the entries of one unit, to tell entries from bytes that look like one."""

    def __init__(self, search: DwarfSearch, unit: Unit, table: dict[int, Abbreviation]) -> None:
        self.unit = unit
        self._table = table
        self._byteorder: Literal["little", "big"] = "little" if search.order == "<" else "big"
        self._data = search.info.read(unit.start, unit.end - unit.start)
        self._sizes = SIZES | dict.fromkeys(OFFSET_FORMS, unit.offset_size) | {FORM_ADDR: unit.address_size}
        self._plans: dict[int, tuple[int, int | None]] = {}  # code -> size or -1, place of a sibling's ref4

    def depth_of(self, offset: int) -> int | None:
        """Return how deep the entry at `offset` of .debug_info lies (the unit's own is 0), None if there is none."""
        data, unit = self._data, self.unit
        at, target, depth = unit.first - unit.start, offset - unit.start, 0
        try:
            while at < target:
                code, body = read_leb128(data, at)
                if not code:
                    depth -= 1
                    at = body
                    continue
                size, sibling_at = self._plan(code)
                after, sibling = (body + size, 0) if size >= 0 else self._measure(code, body)
                if sibling_at is not None:
                    sibling = int.from_bytes(data[body + sibling_at : body + sibling_at + 4], self._byteorder)
                if at < sibling <= target:
                    at = sibling
                    continue
                depth += self._table[code].children
                at = after
        except (IndexError, KeyError):
            return None  # the unit is damaged, or has forms that are not known
        return depth if at == target else None

    def depths(self) -> dict[int, int]:
        """Return how deep every entry lies, by its offset; up to where the unit is damaged."""
        data, start = self._data, self.unit.start
        at, end, depth = self.unit.first - start, self.unit.end - start, 0
        found: dict[int, int] = {}
        try:
            while at < end:
                code, body = read_leb128(data, at)
                if not code:
                    depth -= 1
                    at = body
                    continue
                size, _ = self._plan(code)
                found[start + at] = depth
                depth += self._table[code].children
                at = body + size if size >= 0 else self._measure(code, body)[0]
        except (IndexError, KeyError):
            return found
        return found

    def find_offset(self, top: Abbreviation, data: bytes, at: int, wanted: int) -> int | None:
        """Return the value of an attribute of the form sec_offset of the entry whose attributes start at `at`."""
        for attribute, form in top.attributes:
            if attribute == wanted and form == FORM_SEC_OFFSET:
                part = data[at : at + self.unit.offset_size]
                return int.from_bytes(part, self._byteorder) if len(part) == self.unit.offset_size else None
            at = self._skip(form, data, at)
        return None

    def _plan(self, code: int) -> tuple[int, int | None]:
        plan = self._plans.get(code)
        if plan is None:
            size, sibling_at = 0, None
            for attribute, form in self._table[code].attributes:
                if form not in self._sizes:
                    size, sibling_at = -1, None
                    break
                if attribute == AT_SIBLING and form == FORM_REF4:
                    sibling_at = size
                size += self._sizes[form]
            plan = self._plans[code] = (size, sibling_at)
        return plan

    def _measure(self, code: int, at: int) -> tuple[int, int]:
        """Return (end, sibling or 0) of an entry whose attributes start at `at`. Raises IndexError, KeyError."""
        data, sibling = self._data, 0
        for attribute, form in self._table[code].attributes:
            if attribute == AT_SIBLING and form == FORM_REF4:
                sibling = int.from_bytes(data[at : at + 4], self._byteorder)
            at = self._skip(form, data, at)
        return at, sibling

    def _skip(self, form: int, data: bytes, at: int) -> int:
        """Return the place after a value. Raises IndexError, KeyError: a form that is not known."""
        if form == FORM_STRING:
            return (data.find(b"\0", at) + 1) or len(data)
        if form in LEB128_FORMS:
            return read_leb128(data, at)[1]
        if form in BLOCK_FORMS:
            width = BLOCK_FORMS[form]
            if width:
                return at + width + int.from_bytes(data[at : at + width], self._byteorder)
            length, at = read_leb128(data, at)
            return at + length
        return at + self._sizes[form]


def read_leb128(data: bytes, at: int) -> tuple[int, int]:
    """Return (an unsigned LEB128 number, the place after it). Raises IndexError."""
    value = data[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    for shift in range(7, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return value, at


def read_sleb128(data: bytes, at: int) -> tuple[int, int]:
    """Return (a signed LEB128 number, the place after it). Raises IndexError."""
    start = at
    value, at = read_leb128(data, at)
    bits = 7 * (at - start)
    return (value - (1 << bits) if data[at - 1] & 0x40 else value), at
