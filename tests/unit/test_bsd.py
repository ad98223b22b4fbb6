"""What the BSDs' rooms share: queues, message buffers, load averages."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest

from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.errors import CorruptError, NotMappedError, ReadError
from kvm_dbg.image.base import BytesImage
from kvm_dbg.kernel.base import Kernel
from kvm_dbg.kernel.bsd.loadavg import read_load_average
from kvm_dbg.kernel.bsd.msgbuf import for_each_record, unroll
from kvm_dbg.kernel.bsd.queue import for_each_entry
from kvm_dbg.kernel.bsd.symbolize import symbolize
from kvm_dbg.symbols.base import Symbol
from kvm_dbg.symbols.kallsyms import ListedSymbols
from tests.writers.stand_in import NoTypes

HEAD = 0xFFFF_8000_0000_1000
ENTRY = 8  # where the elements below have their entry


class Words(Kernel):
    """A kernel of a few words of memory, all else is not mapped."""

    def __init__(self, words: Mapping[int, int], symbols: Mapping[str, int] | None = None) -> None:
        self.image = BytesImage({})
        self.arch = X86_64
        self.types = NoTypes()
        self.symbols = ListedSymbols(Symbol(name, address, 0, "T") for name, address in (symbols or {}).items())
        self._bytes = {
            address + n: byte for address, word in words.items() for n, byte in enumerate(word.to_bytes(8, "little"))
        }

    def read(self, vaddr: int, size: int) -> bytes:
        try:
            return bytes(self._bytes[address] for address in range(vaddr, vaddr + size))
        except KeyError:
            raise NotMappedError(vaddr, "nothing is here") from None

    def translate(self, vaddr: int) -> int:
        return vaddr


def chain(*elements: int, end: int = 0) -> dict[int, int]:
    """Return the words of a queue of these elements."""
    places = (HEAD, *(element + ENTRY for element in elements))
    return dict(zip(places, (*elements, end), strict=True))


def walk(words: Mapping[int, int], limit: int = 100) -> list[int]:
    """Return a walk's elements."""
    return list(for_each_entry(Words(words), HEAD, ENTRY, "processes", limit))


def test_an_empty_queue_has_no_elements() -> None:
    assert walk(chain()) == []


def test_a_queue_yields_its_elements_in_order() -> None:
    assert walk(chain(0x5000, 0x3000, 0x4000)) == [0x5000, 0x3000, 0x4000]


def test_a_queue_that_loops_is_corrupt_after_what_came_before() -> None:
    elements = for_each_entry(Words(chain(0x5000, 0x3000, 0x4000, end=0x3000)), HEAD, ENTRY, "processes")
    assert [next(elements) for _ in range(3)] == [0x5000, 0x3000, 0x4000]
    with pytest.raises(CorruptError, match="the list of processes loops back to 0x3000") as caught:
        next(elements)
    assert caught.value.address == 0x4000 + ENTRY


def test_a_queue_that_is_too_long_is_corrupt() -> None:
    with pytest.raises(CorruptError, match="more than 2 entries"):
        walk(chain(0x5000, 0x3000, 0x4000), limit=2)


def test_a_queue_that_leads_into_nothing_says_where() -> None:
    with pytest.raises(ReadError) as caught:
        walk(chain(0x5000, end=0x9000))
    assert caught.value.address == 0x9000 + ENTRY


def test_a_ring_is_unrolled_at_its_write_position() -> None:
    assert unroll(b"new\n\0\0old\n", 4) == b"old\nnew\n"
    assert unroll(b"text\n\0\0\0", 5) == b"text\n"


def test_lines_of_the_log_are_records_without_times() -> None:
    records = list(for_each_record(b"cpu0 at mainbus0\n<38>login: root\n\n<999 x\nbad \xff byte"))
    assert [record.text for record in records] == ["cpu0 at mainbus0", "login: root", "", "<999 x", "bad \\xff byte"]
    assert [record.level for record in records] == [None, 38 & 7, None, None, None]
    assert [record.facility for record in records] == [None, 38 >> 3, None, None, None]
    assert {record.seconds for record in records} == {None}
    assert [record.sequence for record in records] == [0, 1, 2, 3, 4]


def averages(scale: int) -> dict[int, int]:
    """Return the words of a struct loadavg."""
    one, two, third = struct.unpack("<3Q", struct.pack("<3IxxxxQ", 1067, 257, 90, scale))
    return {0x1000: one, 0x1008: two, 0x1010: third}


def test_load_averages_are_scaled_by_their_own_member() -> None:
    load = read_load_average(Words(averages(2048), {"averunnable": 0x1000}))
    assert (load.one, load.five, load.fifteen) == (1067 / 2048, 257 / 2048, 90 / 2048)


def test_the_variable_fscale_wins_over_the_member() -> None:
    load = read_load_average(Words(averages(1) | {0x2000: 1000}, {"averunnable": 0x1000, "fscale": 0x2000}))
    assert (load.one, load.five, load.fifteen) == (1.067, 0.257, 0.09)


def test_a_scale_of_zero_is_corrupt() -> None:
    with pytest.raises(CorruptError, match="scale of 0"):
        read_load_average(Words(averages(0), {"averunnable": 0x1000}))


def test_addresses_have_names_as_far_as_symbols_reach() -> None:
    kernel = Words({}, {"panic": 0x1000})
    assert symbolize(kernel, 0x1000) == "panic"
    assert symbolize(kernel, 0x1010) == "panic+0x10"
    assert symbolize(kernel, 0x0FFF) is None
    assert symbolize(kernel, 0x1000 + (2 << 20)) is None
