"""Images that are runs of plain bytes in a file: ELF cores, LiME, raw RAM.

An extent says: these physical addresses are at that offset of the file. `arrange` puts extents in order and decides
where they overlap; `ExtentImage` reads through them.
"""

from __future__ import annotations

import heapq
import mmap
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from kvm_dbg.errors import NotInImageError
from kvm_dbg.image.base import CHUNK_SIZE, MemoryImage, Piece, Presence, Range
from kvm_dbg.image.source import Source

_RANK = {presence: rank for rank, presence in enumerate(Presence)}


class Extent(NamedTuple):
    """Physical addresses [start, end); `shift` is the file offset of a byte minus its physical address."""

    start: int
    end: int
    presence: Presence
    shift: int


def for_each_part(source: Source, paddr: int, offset: int, size: int) -> Iterator[Extent]:
    """Yield extents for `size` bytes of memory at file `offset`, TRUNCATED where the file does not have them."""
    for stretch in source.for_each_stretch(offset, size):
        start = paddr + stretch.offset - offset
        presence = Presence.PRESENT if stretch.written else Presence.TRUNCATED
        yield Extent(start, start + stretch.size, presence, offset - paddr)


def arrange(extents: Iterable[Extent]) -> list[Extent]:
    """Return the extents in ascending order without overlap, neighbours merged.

    Where extents overlap, bytes that are present win, then the larger extent: /proc/vmcore holds the kernel's text
    twice, and QEMU with paging on lists one range once for each place where it is mapped.
    """
    ordered = sorted((extent for extent in extents if extent.start < extent.end), key=lambda e: (e.start, -e.end))
    if any(one.end > two.start for one, two in pairwise(ordered)):
        ordered = list(_flatten(ordered))
    merged: list[Extent] = []
    for extent in ordered:
        if merged:
            last = merged[-1]
            same = last.presence is extent.presence and (
                last.shift == extent.shift or extent.presence is not Presence.PRESENT
            )
            if last.end == extent.start and same:
                merged[-1] = Extent(last.start, extent.end, last.presence, last.shift)
                continue
        merged.append(extent)
    return merged


def _flatten(ordered: list[Extent]) -> Iterator[Extent]:
    """Cut extents, sorted by start, into pieces that do not overlap, the best one kept at each address."""
    edges = sorted({extent.start for extent in ordered} | {extent.end for extent in ordered})
    active: list[tuple[int, int, int, Extent]] = []  # a heap, best extent first; those that ended go lazily
    following = 0
    for low, high in pairwise(edges):
        while following < len(ordered) and ordered[following].start <= low:
            extent = ordered[following]
            heapq.heappush(active, (_RANK[extent.presence], extent.start - extent.end, following, extent))
            following += 1
        while active and active[0][3].end <= low:
            heapq.heappop(active)
        if active:
            best = active[0][3]
            yield Extent(low, high, best.presence, best.shift)


class ExtentImage(MemoryImage):
    """An image whose memory lies in plain runs of one source.

    Args:
        source: the file; closed with the image.
        extents: as from `arrange`.
    """

    def __init__(self, source: Source, extents: list[Extent]) -> None:
        self.paths = (source.path,)
        self._source = source
        mapped = source.map()
        self._mapped = mapped is not None
        self._map: mmap.mmap | bytes = mapped if mapped is not None else b""
        self._arrange(extents)

    def _arrange(self, extents: list[Extent]) -> None:
        self._extents = extents
        self._starts = [extent.start for extent in extents]
        self._low = self._high = self._shift = 0  # the extent that served the last read, if mapped

    def read(self, paddr: int, size: int) -> bytes:
        end = paddr + size
        if self._low <= paddr and end <= self._high:  # few steps: this is called for every page that is looked at
            return self._map[paddr + self._shift : end + self._shift]
        extent = self._extents[bisect_right(self._starts, paddr) - 1] if self._extents else None
        if extent is None or not extent.start <= paddr < extent.end or end > extent.end:
            return super().read(paddr, size)
        if extent.presence is not Presence.PRESENT:
            raise NotInImageError(paddr, size, extent.presence.value, self.paths[0])
        if self._mapped:
            self._low, self._high, _, self._shift = extent
        return self._source.read(paddr + extent.shift, size)

    def coverage(self, start: int = 0, end: int | None = None) -> Iterator[Range]:
        index = max(bisect_right(self._starts, start) - 1, 0)
        pending: Range | None = None
        while index < len(self._extents):
            extent = self._extents[index]
            index += 1
            low = max(start, extent.start)
            high = extent.end if end is None else min(end, extent.end)
            if end is not None and extent.start >= end:
                break
            if low >= high:
                continue
            if pending is not None and pending.end == low and pending.presence is extent.presence:
                pending = Range(pending.start, high - pending.start, extent.presence)
                continue
            if pending is not None:
                yield pending
            pending = Range(low, high - low, extent.presence)
        if pending is not None:
            yield pending

    def pieces(self, paddr: int, size: int) -> Iterator[Piece]:
        end = paddr + size
        index = max(bisect_right(self._starts, paddr) - 1, 0)
        while paddr < end:
            extent = self._extents[index] if index < len(self._extents) else None
            if extent is None or extent.start >= end:
                yield Piece(paddr, end - paddr, Presence.HOLE, None)
                return
            index += 1
            if extent.end <= paddr:
                continue
            if paddr < extent.start:
                yield Piece(paddr, extent.start - paddr, Presence.HOLE, None)
                paddr = extent.start
            stop = min(end, extent.end)
            data = None
            if extent.presence is Presence.PRESENT:
                self._source.check_size()
                data = self._source.read(paddr + extent.shift, stop - paddr)
            yield Piece(paddr, stop - paddr, extent.presence, data)
            paddr = stop

    def put(self, paddr: int, data: bytes) -> None:
        places: list[tuple[int, bytes]] = []
        end = paddr + len(data)
        at = paddr
        for extent in self._extents:
            if extent.end <= at or at < extent.start or at >= end:
                continue
            if extent.presence is not Presence.PRESENT:
                break
            stop = min(end, extent.end)
            places.append((at + extent.shift, data[at - paddr : stop - paddr]))
            at = stop
        if at < end:
            missing = next(piece for piece in self.pieces(at, end - at) if piece.data is None)
            raise NotInImageError(missing.paddr, missing.size, missing.presence.value, self.paths[0])
        for offset, part in places:
            self._source.write(offset, part)

    def for_each_chunk(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        for run in self.coverage(start, end):
            if run.presence is not Presence.PRESENT:
                continue
            for paddr in range(run.start, run.end, CHUNK_SIZE):
                self._source.check_size()
                yield paddr, self.read(paddr, min(CHUNK_SIZE, run.end - paddr))

    def close(self) -> None:
        self._map, self._mapped = b"", False
        self._source.close()
        self._arrange([])
