"""The table of exports, written as the kernel links it, found and read, and refused where it cannot be right."""

from __future__ import annotations

import struct

import pytest

from kvm_dbg.errors import NotInImageError
from kvm_dbg.symbols.base import Symbol
from kvm_dbg.symbols.kallsyms import ListedSymbols
from kvm_dbg.symbols.ksymtab import search_exports

BASE = 0xFFFF_FFFF_8200_0000
TEXT = 0xFFFF_FFFF_8100_0000
SIZE = 6 << 20  # bytes of the kernel's image
TABLE = 0x20_1000  # where things are in it
STRINGS = 0x20_8000
INIT_TASK = BASE + 0x50_0000
COUNT = 900


class Image:
    """Memory from BASE on."""

    def __init__(self) -> None:
        self.data = bytearray(SIZE)

    def read(self, vaddr: int, size: int) -> bytes:
        start = vaddr - BASE
        if start < 0 or start + size > SIZE:
            raise NotInImageError(vaddr, size, "hole")
        return bytes(self.data[start : start + size])


def write(entry_size: int, shift: int = 0) -> tuple[Image, ListedSymbols]:
    """Return an image with a table of functions and init_task, sorted by name as modpost does, and kallsyms.

    shift: what is added to the functions' addresses in the table only.
    """
    image = Image()
    names = sorted([f"export_{number:03}" for number in range(COUNT)] + ["init_task"])
    strings = STRINGS + 1
    for number, name in enumerate(names):
        place = TABLE + number * entry_size
        value = INIT_TASK if name == "init_task" else TEXT + 0x100 * int(name[-3:]) + shift
        struct.pack_into("<ii", image.data, place, value - (BASE + place), strings - (place + 4))
        image.data[strings : strings + len(name) + 1] = name.encode() + b"\0"
        strings += len(name) + 1
    image.data[TABLE + len(names) * entry_size : TABLE + (len(names) + 1) * entry_size] = b"\xff" * entry_size
    functions = ListedSymbols(
        [Symbol(f"export_{number:03}", TEXT + 0x100 * number, 0, "T") for number in range(COUNT)]
        + [Symbol("_stext", TEXT, 0, "T")]
    )
    return image, functions


def blocks(image: Image) -> list[tuple[int, bytes]]:
    half = SIZE // 2
    return [(BASE, bytes(image.data[:half])), (BASE + half, bytes(image.data[half:]))]


@pytest.mark.parametrize("entry_size", [12, 8])
def test_all_exports(entry_size: int) -> None:
    image, functions = write(entry_size)
    found = search_exports(image, blocks(image), functions)
    assert len(found) == COUNT + 1
    assert found["init_task"] == INIT_TASK
    assert found["export_007"] == TEXT + 0x700


def test_a_table_that_kallsyms_contradicts_is_none() -> None:
    image, functions = write(12, shift=16)
    assert search_exports(image, blocks(image), functions) == {}


def test_a_name_without_an_entry_is_none() -> None:
    image, functions = write(12)
    image.data[TABLE : TABLE + 12 * (COUNT + 1)] = bytes(12 * (COUNT + 1))
    assert search_exports(image, blocks(image), functions) == {}


def test_too_few_entries_are_none() -> None:
    image, functions = write(12)
    image.data[TABLE : TABLE + 12 * 600] = bytes(12 * 600)
    assert search_exports(image, blocks(image), functions) == {}


def test_a_name_across_two_blocks() -> None:
    image, functions = write(12)
    at = image.data.find(b"\0init_task\0") + 4
    cut = [(BASE, bytes(image.data[:at])), (BASE + at, bytes(image.data[at:]))]
    assert len(search_exports(image, cut, functions)) == COUNT + 1


def test_missing_memory_is_none() -> None:
    image, functions = write(12)
    image.data[SIZE - 11 :] = b"\0init_task\0"
    assert search_exports(image, [(BASE + SIZE - 64, bytes(image.data[-64:]))], functions) == {}
