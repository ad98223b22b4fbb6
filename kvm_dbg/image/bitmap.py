"""A bitmap in a file, one bit for each page, read only where it is asked about.

Bit `pfn` is bit `pfn & 7` of byte `pfn >> 3`, or where a machine numbers the bits of big-endian words, bit `pfn & 63`
of word `pfn >> 6`. The place of a page's descriptor, or of the page, is the number of bits set before its own: counts
are kept for each UNIT (4096 bytes, 128 MiB of 4 KiB pages), found from the start up to the last unit that was asked
for, and within recently used units for each group of GROUP pages.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator

from kvm_dbg.image.source import Source

GROUP = 512  # pages
GROUP_BYTES = GROUP // 8
UNIT_BYTES = 4096
UNIT = UNIT_BYTES * 8  # pages
_GROUPS = UNIT_BYTES // GROUP_BYTES
_AHEAD = 256  # units read at a time while counting
_CACHED = 256  # units kept in detail, about 10 KiB each
_ZEROS = bytes(UNIT_BYTES)
_ONES = b"\xff" * UNIT_BYTES


class Bitmap:
    """A bitmap of `size` bytes at `offset` of a source; bits that the source does not have read as 0.

    Args:
        big_words: bits are numbered in big-endian words of 64 bits, not in bytes.

    Attributes:
        readable: number of bits that the source has.
    """

    def __init__(self, source: Source, offset: int, size: int, *, big_words: bool = False) -> None:
        self._source = source
        self._offset = offset
        self._size = max(0, min(size, source.size - offset))
        if big_words:
            self._size &= -8
        self._big_words = big_words
        self.readable = 8 * self._size
        self._before = array("Q", [0])  # bits set before unit i
        self._units: dict[int, tuple[list[int], list[int]]] = {}

    def _read(self, start: int, size: int) -> bytes:
        size = min(size, self._size - start)
        data = self._source.read(self._offset + start, size) if size > 0 else b""
        if not self._big_words:
            return data
        words = array("Q", data)
        words.byteswap()
        return words.tobytes()

    def group(self, number: int) -> tuple[int, int]:
        """Return the bits of group `number` as an integer, and the count of bits set before the group."""
        unit, index = divmod(number, _GROUPS)
        known = self._units.get(unit)
        if known is None:
            known = self._load(unit)
        return known[0][index], known[1][index]

    def _load(self, unit: int) -> tuple[list[int], list[int]]:
        data = self._read(unit * UNIT_BYTES, UNIT_BYTES).ljust(UNIT_BYTES, b"\0")
        count = self.count_before_unit(unit)
        groups, before = [], []
        for at in range(0, UNIT_BYTES, GROUP_BYTES):
            bits = int.from_bytes(data[at : at + GROUP_BYTES], "little")
            groups.append(bits)
            before.append(count)
            count += bits.bit_count()
        if len(self._units) >= _CACHED:
            del self._units[next(iter(self._units))]
        self._units[unit] = (groups, before)
        return groups, before

    def count_before_unit(self, unit: int) -> int:
        """Return how many bits are set before unit `unit`; counts as far as it was not done before."""
        before = self._before
        last = -(-self._size // UNIT_BYTES)
        unit = min(unit, last)
        while len(before) <= unit:
            done = len(before) - 1
            data = self._read(done * UNIT_BYTES, _AHEAD * UNIT_BYTES)
            total = before[done]
            for at in range(0, min(_AHEAD, last - done) * UNIT_BYTES, UNIT_BYTES):
                part = data[at : at + UNIT_BYTES]
                if part == _ONES:
                    total += UNIT
                elif part != _ZEROS:
                    total += int.from_bytes(part, "little").bit_count()
                before.append(total)
        return before[unit]

    def rank(self, pfn: int) -> int:
        """Return how many bits are set before `pfn`."""
        if pfn >= self.readable:
            return self.count_before_unit(-(-self._size // UNIT_BYTES))
        bits, before = self.group(pfn // GROUP)
        return before + (bits & (1 << pfn % GROUP) - 1).bit_count()

    def find(self, rank: int) -> int:
        """Return the number of the set bit before which `rank` bits are set, `readable` if there are no more."""
        units = -(-self._size // UNIT_BYTES)
        if rank >= self.count_before_unit(units):
            return self.readable
        unit = bisect_right(self._before, rank) - 1
        groups, before = self._units.get(unit) or self._load(unit)
        index = bisect_right(before, rank) - 1
        bits = groups[index]
        for _ in range(rank - before[index]):
            bits &= bits - 1
        return unit * UNIT + index * GROUP + (bits & -bits).bit_length() - 1

    def value(self, unit: int) -> int:
        """Return the bits of unit `unit` as an integer."""
        data = self._read(unit * UNIT_BYTES, UNIT_BYTES)
        return 0 if data == _ZEROS else int.from_bytes(data, "little")


def for_each_run(value: int, low: int, high: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) of the runs of set bits in bits [low, high) of `value`, ascending.

    It goes by groups: shifting an integer of a whole unit for each run would be slow.
    """
    pending = -1
    for group in range(low // GROUP, -(-high // GROUP)):
        first = group * GROUP
        at = max(low - first, 0)
        stop = min(high - first, GROUP)
        bits = (value >> first & (1 << stop) - 1) >> at
        while True:
            if pending >= 0:  # inside a run: find its end
                ones = (bits + 1 & ~bits).bit_length() - 1
                at += ones
                if at >= stop:
                    break
                yield pending, first + at
                pending = -1
                bits >>= ones
            if not bits:
                break
            zeros = (bits & -bits).bit_length() - 1
            at += zeros
            bits >>= zeros
            pending = first + at
    if pending >= 0:
        yield pending, high
