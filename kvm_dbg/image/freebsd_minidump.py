"""FreeBSD's minidumps, as savecore writes them: the kernel's own pages, with a page map of its own.

The header is in `freebsd_minidump_header`, the page map in `freebsd_minidump_map`; here physical addresses become
file offsets. Pages lie in the order of the bits of the bitmap: the place of a page is the number of bits set before
its own. Which page a bit stands for is said by the table `dump_avail`, in files that have it: bits number the pages
of its ranges, one range after the other. In older files they number all pages from 0 on.

A page whose bit is not set was left out on purpose where `dump_avail` says that it is memory, else it may be none.

Facts: FreeBSD `sys/vm/vm_dumpset.h` (`dump_avail`, its pairs of addresses ended by a zero, and bits),
`sys/*/*/minidump_machdep.c`, `lib/libkvm/kvm_private.c`.
"""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from kvm_dbg.errors import FormatError
from kvm_dbg.image.base import CHUNK_SIZE, ImageInfo, MemoryImage, Piece, Presence, Range
from kvm_dbg.image.bitmap import GROUP, UNIT, Bitmap, for_each_run
from kvm_dbg.image.freebsd_minidump_header import MinidumpHeader, is_minidump, read_header
from kvm_dbg.image.freebsd_minidump_map import MinidumpMap
from kvm_dbg.image.source import Source

NAME = "freebsd-minidump"
BLOCK_SHIFT = 21  # of the physical addresses that one run is kept for
MAX_BLOCKS = 1 << 15
MAX_GROUPS = 256  # of pages, that a run is followed up and down
SYSTEM = "FreeBSD"


class _Area(NamedTuple):
    """Page frames [start, end), whose bits begin at `bit`."""

    start: int
    end: int
    bit: int


def probe(source: Source) -> bool:
    """Tell whether the file is a minidump of FreeBSD.

    Raises:
        FormatError: the file ends inside its header, or a field is impossible.
        UnsupportedError: of a machine or a version that is not known.
    """
    if not is_minidump(source):
        return False
    read_header(source)
    return True


class FreebsdMinidumpImage(MemoryImage):
    """A minidump.

    Raises:
        FormatError: the header or `dump_avail` are impossible or cut off.
        UnsupportedError: of a machine or a version that is not known.
    """

    def __init__(self, source: Source) -> None:
        self.paths = (source.path,)
        self._source = source
        self.header = head = read_header(source)
        self._bitmap = Bitmap(source, head.bitmap_offset, head.fields["bitmapsize"], big_words=head.byteorder == "big")
        self._known_memory = bool(head.fields.get("dumpavailsize"))
        self._areas = _read_areas(source, head)
        self._starts = [area.start for area in self._areas]
        self._shift = head.page_shift
        self._cut: int | None = None
        self._info: ImageInfo | None = None
        self.page_map = self._page_map = MinidumpMap(source, head)
        mapped = source.map()
        self._mapped = mapped is not None
        self._map: mmap.mmap | bytes = mapped if mapped is not None else b""
        self._low = self._high = self._distance = 0  # the run that served the last read, if mapped: its offset - paddr
        self._runs: dict[int, tuple[int, int, int]] = {}  # the one that served the last read of each block, if mapped

    def read_message_buffer(self) -> bytes:
        """Return the kernel's message buffer as it was in memory: a ring, whose ends only the kernel knows."""
        return self._source.read(self.header.msgbuf_offset, self.header.fields["msgbufsize"])

    def translate(self, vaddr: int) -> int:
        """Return the physical address of a kernel address, by the page map. Raises NotMappedError, ReadError."""
        start, size = self._page_map.translate_page(self.read, vaddr)
        return start + (vaddr & size - 1)

    def read(self, paddr: int, size: int) -> bytes:
        end = paddr + size
        if self._low <= paddr and end <= self._high:  # few steps: this is called for every page that is looked at
            return self._map[paddr + self._distance : end + self._distance]
        run = self._runs.get(paddr >> BLOCK_SHIFT)
        if run is None or not run[0] <= paddr or end > run[1]:
            run = self._find_run(paddr)
            if run is None or end > run[1] or size <= 0:
                return super().read(paddr, size)
            if not self._mapped:
                return self._source.read(paddr + run[2], size)
            if len(self._runs) >= MAX_BLOCKS:
                self._runs.clear()
            self._runs[paddr >> BLOCK_SHIFT] = run
        self._low, self._high, distance = run
        self._distance = distance
        return self._map[paddr + distance : end + distance]

    def _find_run(self, paddr: int) -> tuple[int, int, int] | None:
        """Return (first, last + 1, file offset minus address) of bytes that are there around `paddr`, None if not.

        It leaves the group of pages whose bits are read at once for up to MAX_GROUPS others on either side.
        """
        pfn = paddr >> self._shift
        area = self._areas[bisect_right(self._starts, pfn) - 1]
        if not area.start <= pfn < area.end:
            return None
        number, at = divmod(area.bit + pfn - area.start, GROUP)
        bits, before = self._bitmap.group(number)
        if not bits >> at & 1:
            return None
        rank = before + (bits & (1 << at) - 1).bit_count()
        distance = self.header.data_offset + (rank - pfn << self._shift)
        below, above = ~bits & (1 << at) - 1, ~(bits >> at)
        first = max(pfn - at + below.bit_length(), area.start)
        last = min(pfn + (above & -above).bit_length() - 1, area.end)
        if first == pfn - at:
            first = self._extend_down(area, first, number)
        if last == pfn - at + GROUP:
            last = self._extend_up(area, last, number)
        low, high = first << self._shift, min(last << self._shift, self._source.size - distance)
        return (low, high, distance) if low <= paddr < high else None

    def _extend_down(self, area: _Area, first: int, number: int) -> int:
        """Return where the run begins that goes on below group `number`, whose first page is `first`."""
        for other in range(number - 1, max(number - MAX_GROUPS, 0) - 1, -1):
            zeros = ~self._bitmap.group(other)[0] & (1 << GROUP) - 1
            first = max(first - GROUP + zeros.bit_length(), area.start)
            if zeros or first == area.start:
                break
        return first

    def _extend_up(self, area: _Area, last: int, number: int) -> int:
        """Return where the run ends that goes on above group `number`, behind whose last page is `last`."""
        for other in range(number + 1, number + MAX_GROUPS + 1):
            if last >= area.end or other * GROUP >= self._bitmap.readable:
                break
            bits = self._bitmap.group(other)[0]
            last = min(last + (~bits & bits + 1).bit_length() - 1, area.end)
            if bits != (1 << GROUP) - 1:
                break
        return last

    def pieces(self, paddr: int, size: int) -> Iterator[Piece]:
        end = paddr + size
        for run in self.coverage(paddr, end):
            if paddr < run.start:
                yield Piece(paddr, run.start - paddr, Presence.HOLE, None)
            if run.presence is Presence.PRESENT:
                yield from self._for_each_present(run)
            else:
                yield Piece(*run, None)
            paddr = run.end
        if paddr < end:
            yield Piece(paddr, end - paddr, Presence.HOLE, None)

    def for_each_chunk(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        for run in self.coverage(start, end):
            found = self._find_run(run.start) if run.presence is Presence.PRESENT else None
            if found is None:
                continue
            for paddr in range(run.start, run.end, CHUNK_SIZE):  # pages that follow each other do so in the file
                self._source.check_size()
                yield paddr, self._source.read(paddr + found[2], min(CHUNK_SIZE, run.end - paddr))

    def _for_each_present(self, run: Range) -> Iterator[Piece]:
        """Yield the bytes of a run, all of which are there: pages that follow each other do so in the file as well."""
        self._source.check_size()
        found = self._find_run(run.start)
        if found is None:
            raise FormatError(self.paths[0], self.header.bitmap_offset, "bitmap", "changed while it was read")
        data = self._source.read(run.start + found[2], run.size)
        yield Piece(run.start, run.size, Presence.PRESENT, data)

    def coverage(self, start: int = 0, end: int | None = None) -> Iterator[Range]:
        pending: Range | None = None
        for low, high, presence in self._for_each_part(start, end):
            low = max(low, start)
            high = high if end is None else min(high, end)
            if low >= high:
                continue
            if pending is not None and pending.end == low and pending.presence is presence:
                pending = Range(pending.start, high - pending.start, presence)
                continue
            if pending is not None:
                yield pending
            pending = Range(low, high - low, presence)
        if pending is not None:
            yield pending

    def _for_each_part(self, start: int, end: int | None) -> Iterator[tuple[int, int, Presence]]:
        """Yield (first, last + 1, presence) of physical addresses, ascending, those of [start, end) among them."""
        shift = self._shift
        cut = self._find_cut()
        for low, high, presence in self._for_each_page_run(start >> shift, None if end is None else -(-end >> shift)):
            if presence is not Presence.PRESENT or high << shift <= cut:
                yield low << shift, high << shift, presence
                continue
            if low << shift < cut:
                yield low << shift, cut, Presence.PRESENT
            yield max(low << shift, cut), high << shift, Presence.TRUNCATED

    def _for_each_page_run(self, pfn: int, stop: int | None) -> Iterator[tuple[int, int, Presence]]:
        """Yield (first, last + 1, presence) of page frames; dumped ones as present, wherever the file ends."""
        for area in self._areas[max(bisect_right(self._starts, pfn) - 1, 0) :]:
            if stop is not None and area.start >= stop:
                return
            low = max(pfn, area.start)
            high = area.end if stop is None else min(stop, area.end)
            if low >= high:
                continue
            delta = area.start - area.bit
            known = min(high - delta, self._bitmap.readable)
            for first, last, presence in self._for_each_bit_run(low - delta, known):
                yield first + delta, last + delta, presence
            if known < high - delta:
                yield max(known + delta, low), high, Presence.TRUNCATED

    def _for_each_bit_run(self, bit: int, stop: int) -> Iterator[tuple[int, int, Presence]]:
        """Yield (first, last + 1, presence) of the bits [bit, stop)."""
        while bit < stop:
            unit = bit // UNIT
            base, high = unit * UNIT, min((unit + 1) * UNIT, stop)
            value = self._bitmap.value(unit)
            for one, two in for_each_run(value, bit - base, high - base) if value else ():
                first, last = base + one, base + two
                if self._known_memory and bit < first:
                    yield bit, first, Presence.EXCLUDED
                yield first, last, Presence.PRESENT
                bit = last
            if self._known_memory and bit < high:
                yield bit, high, Presence.EXCLUDED
            bit = high

    def _find_cut(self) -> int:
        """Return the first physical address of a dumped page that is not in the file, the end of memory if all are."""
        if self._cut is None:
            there = max(self._source.size - self.header.data_offset, 0)
            bit = self._bitmap.find(there >> self._shift)
            area = self._areas[bisect_right([each.bit for each in self._areas], bit) - 1]
            self._cut = area.start + bit - area.bit << self._shift
            if bit < self._bitmap.readable:
                self._cut += there & (1 << self._shift) - 1
        return self._cut

    @property
    def info(self) -> ImageInfo:
        if self._info is None:
            self._info = self._describe()
        return self._info

    def _describe(self) -> ImageInfo:
        head = self.header
        dumped = self._bitmap.rank(self._bitmap.readable)
        whole = self._bitmap.readable >= 8 * head.fields["bitmapsize"]
        complete = whole and head.data_offset + (dumped << self._shift) <= self._source.size and self._source.ended
        quirks = [] if complete else ["the file is truncated: memory at its end is missing"]
        low, high = self._page_map.direct_map
        details = [
            ("minidump version", f"{head.version} ({head.platform})"),
            ("page size", str(1 << self._shift)),
            ("kernel addresses", f"from {head.fields['kernbase']:#x}"),
        ]
        if low < high:
            details.append(("direct map", f"{low:#x}-{high:#x}"))
        if head.mmu_name:
            details.append(("MMU", head.mmu_name))
        details.append(("dumped pages", str(dumped)))
        details += self._source.describe()
        return ImageInfo(
            NAME,
            "FreeBSD (a minidump)",
            head.machine,
            head.byteorder,
            head.word_bits,
            complete=complete,
            quirks=tuple(quirks),
            details=tuple(details),
            system=SYSTEM,
        )

    def close(self) -> None:
        self._map, self._mapped = b"", False
        self._low = self._high = 0
        self._runs.clear()
        self._source.close()


def _read_areas(source: Source, head: MinidumpHeader) -> list[_Area]:
    """Return which page frames the bits of the bitmap stand for, ascending.

    Raises:
        FormatError: `dump_avail` is cut off, its ranges are not in order, or are more than the bitmap.
    """
    bits = 8 * head.fields["bitmapsize"]
    size = head.fields.get("dumpavailsize", 0)
    if not size:
        return [_Area(0, bits, 0)]
    data = source.read(head.dump_avail_offset, size)
    if len(data) < size:
        place = head.dump_avail_offset + len(data)
        raise FormatError(source.path, place, "dump_avail", "the file ends inside the table of memory")
    areas: list[_Area] = []
    bit = 0
    for index, (start, end) in enumerate(struct.iter_unpack(head.order + "QQ", data[: size & -16])):
        place = head.dump_avail_offset + 16 * index
        if not end:
            break
        if start >= end:
            raise FormatError(source.path, place, "dump_avail", f"a range from {start:#x} to {end:#x}")
        low, high = start >> head.page_shift, -(-end >> head.page_shift)
        if areas and low < areas[-1].end:
            raise FormatError(source.path, place, "dump_avail", f"the range from {start:#x} is below the one before it")
        areas.append(_Area(low, high, bit))
        bit += high - low
        if bit > bits:
            text = f"it has {bit} pages up to {end:#x}, the bitmap {bits} bits"
            raise FormatError(source.path, place, "dump_avail", text)
    if not areas:
        raise FormatError(source.path, head.dump_avail_offset, "dump_avail", "no memory is listed")
    return areas
