"""Write DWARF, versions 4 and 5, as GCC does: the name first, DW_AT_sibling where there are children.

An entry is (tag, [(attribute, form, value)...], children). A value of a reference form is the label of an entry; the
label of an entry is its "name" in `labels`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.writers.kernel_file import COMPRESSED, Part

ARRAY, ENUMERATION, MEMBER, POINTER, COMPILE_UNIT, STRUCTURE, TYPEDEF, UNION = 1, 4, 13, 15, 17, 19, 22, 23
SUBRANGE, BASE, CONST, ENUMERATOR, SUBPROGRAM, SUBROUTINE = 0x21, 0x24, 0x26, 0x28, 0x2E, 0x15
SIBLING, LOCATION, NAME, BYTE_SIZE, BIT_OFFSET, BIT_SIZE = 0x01, 0x02, 0x03, 0x0B, 0x0C, 0x0D
CONST_VALUE, UPPER_BOUND, COUNT, MEMBER_LOCATION, DECLARATION, ENCODING, TYPE = 0x1C, 0x2F, 0x37, 0x38, 0x3C, 0x3E, 0x49
DATA_BIT_OFFSET = 0x6B
BLOCK1, DATA2, DATA4, DATA8, STRING, DATA1, SDATA, STRP, UDATA, REF4, FLAG_PRESENT, EXPRLOC = (
    0x0A, 0x05, 0x06, 0x07, 0x08, 0x0B, 0x0D, 0x0E, 0x0F, 0x13, 0x19, 0x18,
)  # fmt: skip
ADDR, SEC_OFFSET = 0x01, 0x17
STRX1, STRX2, STR_OFFSETS_BASE = 0x25, 0x26, 0x72
PARAMETER, LEXICAL_BLOCK, INLINED, VARIABLE = 0x05, 0x0B, 0x1D, 0x34
STMT_LIST, LOW_PC, HIGH_PC, COMP_DIR, INLINE, ABSTRACT_ORIGIN, FRAME_BASE = 0x10, 0x11, 0x12, 0x1B, 0x20, 0x31, 0x40
RANGES, CALL_COLUMN, CALL_FILE, CALL_LINE = 0x55, 0x57, 0x58, 0x59

FIXED = {DATA1: "B", DATA2: "H", DATA4: "I", DATA8: "Q", ADDR: "Q", SEC_OFFSET: "I"}
Value = int | str | bytes
Attribute = tuple[int, int, Value]


@dataclass
class Die:
    """One entry; `label` is what references name it by."""

    tag: int
    attributes: list[Attribute]
    children: list[Die] = field(default_factory=list)
    label: str = ""
    sibling: bool = True


def leb128(value: int) -> bytes:
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        if not value:
            return bytes([*out, byte])
        out.append(byte | 0x80)


def sleb128(value: int) -> bytes:
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        if (value == 0 and not byte & 0x40) or (value == -1 and byte & 0x40):
            return bytes([*out, byte])
        out.append(byte | 0x80)


class DwarfWriter:
    """Writes units into sections; strings are shared as ld shares them, ends included.

    clang: strings of the form STRP are written as Clang's DWARF 5 has them, as indexes into a table for each unit;
    there are no siblings. address_size: in bytes.
    """

    def __init__(
        self, order: str = "<", version: int = 5, first_code: int = 1, *, clang: bool = False, address_size: int = 8
    ) -> None:
        self.clang = clang
        self.address_size = address_size
        self.tables = b""
        self._table: list[int] = []
        self.order = order
        self.version = version
        self.first_code = first_code
        self.info = b""
        self.abbrev = b""
        self.strings = b"\0"

    def string(self, text: str) -> int:
        raw = text.encode() + b"\0"
        if raw not in self.strings:
            self.strings += raw
        return self.strings.index(raw)

    def unit(self, *dies: Die, attributes: Sequence[Attribute] = ()) -> None:
        """Add a unit with these entries below its own, which is called unit.c and has these attributes."""
        own: list[Attribute] = [(STR_OFFSETS_BASE, SEC_OFFSET, len(self.tables) + 8)] if self.clang else []
        top = Die(COMPILE_UNIT, [(NAME, STRP, "unit.c"), *own, *attributes], list(dies), sibling=False)
        self._table = []
        start = len(self.info)
        codes: dict[tuple[object, ...], int] = {}
        table_at = len(self.abbrev)
        offset_size = 4
        if self.version >= 5:
            head = struct.pack(self.order + "HBBI", self.version, 1, self.address_size, table_at)
        else:
            head = struct.pack(self.order + "HIB", self.version, table_at, self.address_size)
        labels: dict[str, int] = {}
        fixes: list[tuple[int, str]] = []
        body = bytearray(bytes(offset_size) + head)
        self._write(top, body, codes, labels, fixes)
        for place, label in fixes:
            struct.pack_into(self.order + "I", body, place, labels[label])
        struct.pack_into(self.order + "I", body, 0, len(body) - offset_size)
        assert len(self.info) == start
        self.info += bytes(body)
        if self.clang:
            self.tables += struct.pack(self.order + "IHH", 4 + 4 * len(self._table), 5, 0)
            self.tables += struct.pack(f"{self.order}{len(self._table)}I", *self._table)
        for shape, code in codes.items():
            tag, children, *pairs = shape
            assert isinstance(tag, int)
            self.abbrev += leb128(code) + leb128(tag) + bytes([bool(children)])
            for pair in pairs:
                assert isinstance(pair, tuple)
                self.abbrev += leb128(pair[0]) + leb128(pair[1])
            self.abbrev += b"\0\0"
        self.abbrev += b"\0"

    def _write(
        self,
        die: Die,
        body: bytearray,
        codes: dict[tuple[object, ...], int],
        labels: dict[str, int],
        fixes: list[tuple[int, str]],
    ) -> None:
        labels[die.label] = len(body)
        attributes = list(die.attributes)
        if self.clang:
            attributes = [(name, STRX2 if form == STRP else form, value) for name, form, value in attributes]
        end = f"end of {len(body)}"
        if die.children and die.sibling and not self.clang:
            attributes.append((SIBLING, REF4, end))
        shape = (die.tag, bool(die.children), *((attribute, form) for attribute, form, _ in attributes))
        code = codes.setdefault(shape, self.first_code + len(codes))
        body += leb128(code)
        for _, form, value in attributes:
            if form == REF4:
                fixes.append((len(body), str(value)))
                body += bytes(4)
            else:
                body += self._value(form, value)
        for child in die.children:
            self._write(child, body, codes, labels, fixes)
        if die.children:
            body += b"\0"
            labels[end] = len(body)

    def _value(self, form: int, value: Value) -> bytes:
        if isinstance(value, str) and form == STRX2:
            self._table.append(self.string(value))
            return struct.pack(self.order + "H", len(self._table) - 1)
        if isinstance(value, str):
            return value.encode() + b"\0" if form == STRING else struct.pack(self.order + "I", self.string(value))
        if isinstance(value, bytes):
            return leb128(len(value)) + value if form == EXPRLOC else bytes([len(value)]) + value
        if form == FLAG_PRESENT:
            return b""
        if form == SDATA:
            return sleb128(value)
        if form == UDATA:
            return leb128(value)
        return struct.pack(self.order + FIXED[form], value)

    def parts(self, *, compressed: bool = False) -> list[Part]:
        """Return the sections, zlib-compressed if asked for (in 64-bit files)."""
        found = []
        sections = [("info", self.info), ("abbrev", self.abbrev), ("str", self.strings)]
        for name, data in sections + ([("str_offsets", self.tables)] if self.clang else []):
            flags = 0
            if compressed:
                data = struct.pack(self.order + "IIQQ", 1, 0, len(data), 1) + zlib.compress(data)
                flags = COMPRESSED
            found.append(Part(f".debug_{name}", flags=flags, data=data))
        return found
