"""Writes into an image that never reach its file: a private copy of the bytes that were written."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import groupby
from operator import eq, itemgetter

from kvm_dbg.errors import NotInImageError
from kvm_dbg.image.base import ImageInfo, MemoryImage, Note, Piece, Presence, Range
from kvm_dbg.image.writable import Part, WritableImage


class OverlayImage(WritableImage):
    """An image over another one, whose bytes can be written.

    Only the bytes that were written are kept, in blocks that neither overlap nor touch. Closing it closes the image
    below and forgets the writes.
    """

    def __init__(self, image: MemoryImage) -> None:
        super().__init__()
        self.image = image
        self.paths = image.paths
        self.page_map = image.page_map
        self.live = image.live
        self._starts: list[int] = []
        self._blocks: list[bytearray] = []

    @property
    def info(self) -> ImageInfo:
        return self.image.info

    @property
    def notes(self) -> tuple[Note, ...]:
        """Return those of the image below."""
        return self.image.notes

    @notes.setter
    def notes(self, notes: tuple[Note, ...]) -> None:
        self.image.notes = notes

    @property
    def written(self) -> int:
        """Return how many bytes differ in origin from the image below."""
        return sum(map(len, self._blocks))

    def write(self, paddr: int, data: bytes) -> None:
        """Put `data` at physical address `paddr`.

        Memory that the image describes but does not hold (excluded, truncated) can be written.

        Raises:
            NotInImageError: part of it is not memory that the image describes; nothing is written then.
        """
        if not data:
            return
        end = paddr + len(data)
        for piece in self.pieces(paddr, len(data)):
            if piece.presence is Presence.HOLE:
                raise NotInImageError(piece.paddr, piece.size, "hole", self.paths[0] if self.paths else "")
        first = bisect_right(self._starts, paddr)
        if first and self._starts[first - 1] + len(self._blocks[first - 1]) >= paddr:
            first -= 1
        last = bisect_right(self._starts, end)
        block, start = bytearray(data), paddr
        if first < last:
            low, before = self._starts[first], self._blocks[first]
            if low < paddr:
                if last - first == 1 and end <= low + len(before):  # wholly inside: no copy of the block
                    before[paddr - low : end - low] = data
                    return
                block[:0] = before[: paddr - low]
                start = low
            high, after = self._starts[last - 1], self._blocks[last - 1]
            if high + len(after) > end:
                block += after[end - high :]
        self._starts[first:last] = [start]
        self._blocks[first:last] = [block]

    def for_each_block(self) -> Iterator[tuple[int, bytes]]:
        """Yield (paddr, bytes) of all that was written, ascending; the blocks neither overlap nor touch."""
        for start, block in zip(self._starts, self._blocks, strict=True):
            yield start, bytes(block)

    def _put_back(self, part: Part) -> None:
        """Make the bytes what they were: those of the image below are no longer covered."""
        end = part.paddr + len(part.new)
        self._uncover(part.paddr, end)
        start = part.paddr
        for missing in (*part.old.missing, Range(end, 0, Presence.HOLE)):
            old = part.old.data[start - part.paddr : missing.start - part.paddr]
            for at, data in self._differing(start, old):  # earlier writes
                self.write(at, data)
            start = missing.end

    def _differing(self, paddr: int, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (paddr, bytes) of the runs of `data` that the image below does not have."""
        for piece in self.image.pieces(paddr, len(data)):
            at = piece.paddr - paddr
            new = data[at : at + piece.size]
            if piece.data is None:
                yield piece.paddr, new
                continue
            same = map(eq, new, piece.data)
            for is_same, run in groupby(enumerate(same), key=itemgetter(1)):
                if not is_same:
                    numbers = [number for number, _ in run]
                    yield piece.paddr + numbers[0], new[numbers[0] : numbers[-1] + 1]

    def _uncover(self, paddr: int, end: int) -> None:
        """Forget what was written in [paddr, end)."""
        first = max(bisect_right(self._starts, paddr) - 1, 0)
        last = bisect_left(self._starts, end)
        kept: list[tuple[int, bytearray]] = []
        for start, block in zip(self._starts[first:last], self._blocks[first:last], strict=True):
            if start < paddr:
                kept.append((start, block[: paddr - start]))
            if start + len(block) > end:
                kept.append((end, block[end - start :]))
        self._starts[first:last] = [start for start, _ in kept]
        self._blocks[first:last] = [block for _, block in kept]

    def _touches(self, paddr: int, end: int) -> bool:
        """Tell whether any written byte is in [paddr, end)."""
        index = bisect_left(self._starts, end)
        return index > 0 and self._starts[index - 1] + len(self._blocks[index - 1]) > paddr

    def read(self, paddr: int, size: int) -> bytes:
        if self._starts and self._touches(paddr, paddr + size):
            return super().read(paddr, size)
        return self.image.read(paddr, size)

    def pieces(self, paddr: int, size: int) -> Iterator[Piece]:
        end = paddr + size
        index = max(bisect_right(self._starts, paddr) - 1, 0)
        while paddr < end:
            start = self._starts[index] if index < len(self._starts) else end
            block = self._blocks[index] if index < len(self._blocks) else b""
            index += 1
            if start < end and start + len(block) <= paddr:
                continue
            if start > paddr:
                stop = min(start, end)
                yield from self.image.pieces(paddr, stop - paddr)
                paddr = stop
            if paddr < end:
                stop = min(start + len(block), end)
                yield Piece(paddr, stop - paddr, Presence.PRESENT, bytes(block[paddr - start : stop - start]))
                paddr = stop

    def coverage(self, start: int = 0, end: int | None = None) -> Iterator[Range]:
        pending: Range | None = None
        for run in self._split(start, end):
            if pending is not None and pending.end == run.start and pending.presence is run.presence:
                pending = Range(pending.start, pending.size + run.size, run.presence)
                continue
            if pending is not None:
                yield pending
            pending = run
        if pending is not None:
            yield pending

    def _split(self, start: int, end: int | None) -> Iterator[Range]:
        """Yield the ranges of the image below, written bytes made present; neighbours are not merged."""
        for run in self.image.coverage(start, end):
            low = run.start
            index = max(bisect_right(self._starts, low) - 1, 0)
            while low < run.end and index < len(self._starts):
                block, stop = self._starts[index], self._starts[index] + len(self._blocks[index])
                index += 1
                if stop <= low:
                    continue
                if block >= run.end:
                    break
                if block > low:
                    yield Range(low, block - low, run.presence)
                    low = block
                stop = min(stop, run.end)
                yield Range(low, stop - low, Presence.PRESENT)
                low = stop
            if low < run.end:
                yield Range(low, run.end - low, run.presence)

    def forget(self) -> None:
        self.image.forget()

    def close(self) -> None:
        self._starts.clear()
        self._blocks.clear()
        self.changes.clear()
        self.image.close()
