"""Finding kallsyms in memory without being told where it is."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest

from kvm_dbg.errors import NotInImageError
from kvm_dbg.symbols.kallsyms_search import DIGITS, search_places
from kvm_dbg.symbols.kallsyms_table import Places, read_kallsyms
from tests.writers.kallsyms import write_old_kallsyms

BASE = 0xFFFFFFFF81000000
START = 0xFFFFFFFF82000000
SIZE = 1 << 18
BLOCK = 1 << 16


class Memory:
    """One run of bytes from START, and nothing else."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, vaddr: int, size: int) -> bytes:
        at = vaddr - START
        if at < 0 or at + size > len(self.data):
            raise NotInImageError(vaddr, size, "hole")
        return self.data[at : at + size]

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        for at in range(0, len(self.data), BLOCK):
            yield START + at, self.data[at : at + BLOCK]


def make(count: int, at: int, marker: str = "I") -> tuple[Memory, Places]:
    symbols = [("T", f"function_{number}_{number * 7919 % 1000}", BASE + 16 * number) for number in range(count)]
    data = bytearray(random.Random(count).randbytes(SIZE))
    data[0x1000 : 0x1000 + len(DIGITS)] = DIGITS  # digits that are no tokens
    body, places = write_old_kallsyms(symbols, START + at, BASE, marker)
    data[at : at + len(body)] = body
    return Memory(bytes(data)), places


@pytest.mark.parametrize("marker", ["I", "Q"])
@pytest.mark.parametrize("count", [300, 512, 513, 2000])
def test_found_wherever_it_is(count: int, marker: str) -> None:
    for at in (0x8000, 0x9008, 0xF000):
        memory, places = make(count, at, marker)
        assert search_places(memory, memory.blocks()) == places
        table = read_kallsyms(memory, places, {"function_0_0": BASE})
        assert table.address("function_299_781") == BASE + 16 * 299


def test_digits_across_two_blocks() -> None:
    probe, places = make(300, 0x8000)
    digits = probe.data.index(DIGITS, 0x8000)
    for cut in (1, 7, 19):
        memory, moved = make(300, (0x8000 + 2 * BLOCK - digits - cut) & ~7)
        assert memory.data.index(DIGITS, 0x8000) // BLOCK in (1, 2)
        assert search_places(memory, memory.blocks()) == moved
        assert moved != places


def test_nothing_there() -> None:
    memory = Memory(random.Random(1).randbytes(BLOCK) + DIGITS * 100 + bytes(BLOCK))
    assert search_places(memory, memory.blocks()) is None
    assert search_places(Memory(b""), iter(())) is None


def test_damage_is_noticed() -> None:
    memory, places = make(600, 0x8000)
    for address, data in (
        (places.num_syms, struct.pack("<I", 5000)),
        (places.token_index, b"\1\0"),
        (places.token_index + 100, b"\0\0"),
        (places.token_table - 8, b"\xff" * 8),
    ):
        broken = bytearray(memory.data)
        broken[address - START : address - START + len(data)] = data
        other = Memory(bytes(broken))
        assert search_places(other, other.blocks()) is None
