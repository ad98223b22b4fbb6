"""The shapes of debugging information entries: .debug_abbrev, and how each shape is packed.

Facts: DWARF version 5, sections 7.5.3 (abbreviations), 7.5.5 (forms) and 7.5.4 (tags and attributes). All forms here
have a fixed size, so that the place of every entry is known before one is written.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

# forms: number, and struct's character for what is written
ADDR, DATA1, DATA4, DATA8, STRP, FLAG_PRESENT = 0x01, 0x0B, 0x06, 0x07, 0x0E, 0x19
REF_ADDR, REF4, EXPRLOC, SDATA = 0x10, 0x13, 0x18, 0x0D
REF: Final = -1  # REF4 in the kernel's unit, REF_ADDR in a module's, which refers to the kernel's
FORM_CHARACTERS: Final = {
    DATA1: "B", DATA4: "I", DATA8: "Q", STRP: "I", REF: "I", FLAG_PRESENT: "",
}  # fmt: skip
SDATA_SIZE: Final = 10  # bytes: any 64-bit number fits into a LEB128 of this length, shorter ones are padded

(
    LOCATION, NAME, BYTE_SIZE, BIT_SIZE, LOW_PC, HIGH_PC, LANGUAGE, CONST_VALUE, PRODUCER, PROTOTYPED, COUNT,
    DATA_MEMBER_LOCATION, DECLARATION, ENCODING, EXTERNAL, TYPE, DATA_BIT_OFFSET,
) = (
    0x02, 0x03, 0x0B, 0x0D, 0x11, 0x12, 0x13, 0x1C, 0x25, 0x27, 0x37,
    0x38, 0x3C, 0x3E, 0x3F, 0x49, 0x6B,
)  # fmt: skip


class Entry(IntEnum):
    """The abbreviation codes; a name's last word says what differs from the plain shape."""

    END = 0
    UNIT = 1
    UNIT_TEXT = 2
    BASE_TYPE = 3
    POINTER = 4
    POINTER_VOID = 5
    CONST = 6
    CONST_VOID = 7
    VOLATILE = 8
    VOLATILE_VOID = 9
    RESTRICT = 10
    RESTRICT_VOID = 11
    TYPEDEF = 12
    TYPEDEF_VOID = 13
    ARRAY = 14
    SUBRANGE = 15
    SUBRANGE_OPEN = 16
    STRUCT = 17
    STRUCT_NAMELESS = 18
    STRUCT_DECLARED = 19
    UNION = 20
    UNION_NAMELESS = 21
    UNION_DECLARED = 22
    MEMBER = 23
    MEMBER_NAMELESS = 24
    MEMBER_BITS = 25
    ENUM = 26
    ENUM_NAMELESS = 27
    ENUM_DECLARED = 28
    ENUMERATOR_4 = 29
    ENUMERATOR_8 = 30
    ENUMERATOR_SIGNED = 31
    PROTOTYPE = 32
    PROTOTYPE_VOID = 33
    PARAMETER = 34
    PARAMETER_NAMED = 35
    PARAMETERS_MORE = 36
    FUNCTION = 37
    FUNCTION_VOID = 38
    FUNCTION_LOCAL = 39
    FUNCTION_LOCAL_VOID = 40
    VARIABLE = 41
    VARIABLE_LOCAL = 42


class Shape(NamedTuple):
    """What an entry consists of: its tag, whether it has children, and (attribute, form) pairs."""

    tag: int
    children: bool
    attributes: tuple[tuple[int, int], ...]


_NAME, _TYPE, _SIZE_1, _SIZE_4 = (NAME, STRP), (TYPE, REF), (BYTE_SIZE, DATA1), (BYTE_SIZE, DATA4)
_EXTERNAL, _DECLARATION, _PROTOTYPED = (EXTERNAL, FLAG_PRESENT), (DECLARATION, FLAG_PRESENT), (PROTOTYPED, FLAG_PRESENT)
_TEXT = ((LOW_PC, ADDR), (HIGH_PC, DATA4))

SHAPES: Final = {
    Entry.UNIT: Shape(0x11, True, ((PRODUCER, STRP), (LANGUAGE, DATA1), _NAME)),
    Entry.UNIT_TEXT: Shape(0x11, True, ((PRODUCER, STRP), (LANGUAGE, DATA1), _NAME, (LOW_PC, ADDR), (HIGH_PC, DATA8))),
    Entry.BASE_TYPE: Shape(0x24, False, (_NAME, _SIZE_1, (ENCODING, DATA1))),
    Entry.POINTER: Shape(0x0F, False, (_SIZE_1, _TYPE)),
    Entry.POINTER_VOID: Shape(0x0F, False, (_SIZE_1,)),
    Entry.CONST: Shape(0x26, False, (_TYPE,)),
    Entry.CONST_VOID: Shape(0x26, False, ()),
    Entry.VOLATILE: Shape(0x35, False, (_TYPE,)),
    Entry.VOLATILE_VOID: Shape(0x35, False, ()),
    Entry.RESTRICT: Shape(0x37, False, (_TYPE,)),
    Entry.RESTRICT_VOID: Shape(0x37, False, ()),
    Entry.TYPEDEF: Shape(0x16, False, (_NAME, _TYPE)),
    Entry.TYPEDEF_VOID: Shape(0x16, False, (_NAME,)),
    Entry.ARRAY: Shape(0x01, True, (_TYPE,)),
    Entry.SUBRANGE: Shape(0x21, False, ((COUNT, DATA4),)),
    Entry.SUBRANGE_OPEN: Shape(0x21, False, ()),
    Entry.STRUCT: Shape(0x13, True, (_NAME, _SIZE_4)),
    Entry.STRUCT_NAMELESS: Shape(0x13, True, (_SIZE_4,)),
    Entry.STRUCT_DECLARED: Shape(0x13, False, (_NAME, _DECLARATION)),
    Entry.UNION: Shape(0x17, True, (_NAME, _SIZE_4)),
    Entry.UNION_NAMELESS: Shape(0x17, True, (_SIZE_4,)),
    Entry.UNION_DECLARED: Shape(0x17, False, (_NAME, _DECLARATION)),
    Entry.MEMBER: Shape(0x0D, False, (_NAME, _TYPE, (DATA_MEMBER_LOCATION, DATA4))),
    Entry.MEMBER_NAMELESS: Shape(0x0D, False, (_TYPE, (DATA_MEMBER_LOCATION, DATA4))),
    Entry.MEMBER_BITS: Shape(0x0D, False, (_NAME, _TYPE, (BIT_SIZE, DATA1), (DATA_BIT_OFFSET, DATA4))),
    Entry.ENUM: Shape(0x04, True, (_NAME, _SIZE_1, _TYPE)),
    Entry.ENUM_NAMELESS: Shape(0x04, True, (_SIZE_1, _TYPE)),
    Entry.ENUM_DECLARED: Shape(0x04, False, (_NAME, _SIZE_1, _DECLARATION)),
    Entry.ENUMERATOR_4: Shape(0x28, False, (_NAME, (CONST_VALUE, DATA4))),
    Entry.ENUMERATOR_8: Shape(0x28, False, (_NAME, (CONST_VALUE, DATA8))),
    Entry.ENUMERATOR_SIGNED: Shape(0x28, False, (_NAME, (CONST_VALUE, SDATA))),
    Entry.PROTOTYPE: Shape(0x15, True, (_PROTOTYPED, _TYPE)),
    Entry.PROTOTYPE_VOID: Shape(0x15, True, (_PROTOTYPED,)),
    Entry.PARAMETER: Shape(0x05, False, (_TYPE,)),
    Entry.PARAMETER_NAMED: Shape(0x05, False, (_NAME, _TYPE)),
    Entry.PARAMETERS_MORE: Shape(0x18, False, ()),
    Entry.FUNCTION: Shape(0x2E, True, (_NAME, _EXTERNAL, _PROTOTYPED, *_TEXT, _TYPE)),
    Entry.FUNCTION_VOID: Shape(0x2E, True, (_NAME, _EXTERNAL, _PROTOTYPED, *_TEXT)),
    Entry.FUNCTION_LOCAL: Shape(0x2E, True, (_NAME, _PROTOTYPED, *_TEXT, _TYPE)),
    Entry.FUNCTION_LOCAL_VOID: Shape(0x2E, True, (_NAME, _PROTOTYPED, *_TEXT)),
    Entry.VARIABLE: Shape(0x34, False, (_NAME, _EXTERNAL, _TYPE, (LOCATION, EXPRLOC))),
    Entry.VARIABLE_LOCAL: Shape(0x34, False, (_NAME, _TYPE, (LOCATION, EXPRLOC))),
}


def packers(byteorder: str, address_size: int) -> dict[Entry, struct.Struct]:
    """Return a Struct for each shape; it takes the entry's code, then its values.

    The value of EXPRLOC is three numbers: the expression's length, its operation, and an address. That of SDATA is
    the bytes of a LEB128 of SDATA_SIZE.
    """
    address = "Q" if address_size == 8 else "I"
    characters = {**FORM_CHARACTERS, ADDR: address, EXPRLOC: f"BB{address}", SDATA: f"{SDATA_SIZE}s"}
    order = "<" if byteorder == "little" else ">"
    return {
        entry: struct.Struct(order + "B" + "".join(characters[form] for _, form in shape.attributes))
        for entry, shape in SHAPES.items()
    }


def abbreviations(reference: int) -> bytes:
    """Return a table for .debug_abbrev whose references have the form `reference`: REF4 or REF_ADDR."""
    table = bytearray()
    for entry, shape in SHAPES.items():
        table += bytes((entry, shape.tag, shape.children))
        for attribute, form in shape.attributes:
            table += bytes((attribute, reference if form == REF else form))
        table += b"\0\0"
    return bytes(table) + b"\0"
