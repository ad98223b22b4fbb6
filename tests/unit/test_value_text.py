"""Values as text, as gdb writes them where they are short."""

from __future__ import annotations

import struct

import pytest

from kvm_dbg.commands.value_text import WIDTH, type_name, value_text
from kvm_dbg.debuginfo.base import (
    ArrayType,
    Enumerator,
    EnumType,
    FloatType,
    FunctionType,
    IntType,
    PointerType,
    StructType,
    Type,
    TypedefType,
    VoidType,
)
from kvm_dbg.debuginfo.value import Value
from tests.unit.test_value import CHAR, DATA, INT, NODE, U64, Ram

BOOL = IntType("_Bool", 1, signed=False, is_bool=True)
STATE = EnumType("state", 4, signed=True, enumerators=lambda: (Enumerator("idle", 0), Enumerator("busy", -2)))
LIST = StructType("struct", "empty", 0, tuple)


def pointer(target: Type) -> PointerType:
    return PointerType(8, lambda: target)


def array(element: Type, count: int) -> ArrayType:
    return ArrayType(count, lambda: element)


def symbol(address: int) -> str | None:
    return "schedule+0x10" if address == 0x5000 else None


def shown(type_: Type, data: bytes, ranges: dict[int, bytes] | None = None) -> str:
    return value_text(Value(Ram(ranges or {}), type_, 0x2000, "little", data), symbol)


@pytest.mark.parametrize(
    ("type_", "data", "expected"),
    [
        (INT, b"\xff\xff\xff\xff", "-1"),
        (U64, b"\xff" * 8, str((1 << 64) - 1)),
        (BOOL, b"\1", "true"),
        (BOOL, b"\0", "false"),
        (BOOL, b"\7", "7"),
        (CHAR, b"a", "97 'a'"),
        (CHAR, b"\x1b", "27"),
        (STATE, struct.pack("<i", -2), "busy"),
        (STATE, struct.pack("<i", 7), "7"),
        (FloatType("double", 8), struct.pack("<d", 0.5), "0.5"),
        (pointer(INT), bytes(8), "(int *) 0x0"),
        (pointer(INT), b"\0\x50" + bytes(6), "(int *) 0x5000 <schedule+0x10>"),
        (pointer(VoidType()), b"\1" + bytes(7), "(void *) 0x1"),
        (pointer(TypedefType("loff_t", lambda: U64)), b"\1" + bytes(7), "(loff_t *) 0x1"),
        (pointer(FunctionType("", 0)), b"\0\x50" + bytes(6), "(void (*)()) 0x5000 <schedule+0x10>"),
        (array(INT, 3), struct.pack("<3i", 1, 2, 3), "{1, 2, 3}"),
        (array(CHAR, 6), b'a"b\0cd', '"a\\"b"'),
        (array(INT, 0), b"", "{}"),
        (LIST, b"", "{...}"),
        (VoidType(), b"", "<of no size>"),
    ],
)
def test_values(type_: Type, data: bytes, expected: str) -> None:
    assert shown(type_, data) == expected


def test_a_struct() -> None:
    text = shown(NODE, DATA, {0x3000: b"text\0".ljust(256, b"\0")})
    assert text.startswith('{number = -5, low = -3, rest = 291, next = 0x2000, name = "task", text = 0x3000 "text", {')


def test_long_values_are_cut() -> None:
    assert len(shown(array(U64, 1000), b"\xff" * 8000)) == WIDTH
    assert shown(array(INT, 1000), bytes(4000)).endswith("0, ...}")


def test_what_is_not_in_the_image() -> None:
    assert value_text(Value(Ram({}), INT, 0x2000), symbol) == "<not in the image>"
    assert shown(pointer(CHAR), b"\0\x40" + bytes(6)) == "(char *) 0x4000"


def test_a_string_behind_a_pointer() -> None:
    ranges = {0x4000: (b"it's \x1b[2J " + b"x" * 60).ljust(256, b"\0")}
    text = shown(pointer(CHAR), b"\0\x40" + bytes(6), ranges)
    assert text == "(char *) 0x4000 \"it's \x1b[2J " + "x" * 38 + '"...'


@pytest.mark.parametrize(
    ("type_", "name"),
    [
        (pointer(pointer(NODE)), "struct node **"),
        (pointer(StructType("union", "", 4, tuple)), "union {...} *"),
        (pointer(array(INT, 4)), "int (*)[4]"),
        (STATE, "enum state"),
        (BOOL, "bool"),
    ],
)
def test_names_of_types(type_: Type, name: str) -> None:
    assert type_name(type_) == name
