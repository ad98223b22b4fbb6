"""The memory of a machine that somebody else is attached to: bytes are asked for, and no file is open.

Whoever is attached (a debugger with a remote stub) hands in two functions. The machine stands still while anything is
asked, and may have run between two questions: what was read is kept until `refresh` is called.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

from kvm_dbg.errors import CommandError, NotInImageError
from kvm_dbg.image.base import ImageInfo, MemoryImage, Note, Piece, Presence, Range

Fetch = Callable[[Sequence[tuple[int, int]]], Sequence[bytes | None]]
"""Returns the bytes of each (paddr, size), None for a range of which any byte cannot be read. Raises KvmDbgError."""
Store = Callable[[int, bytes], None]
"""Writes bytes at a physical address. Raises KvmDbgError: not all were written."""

NAME = "attached"
PAGE = 4096  # bytes: what is fetched and kept together
MAX_FETCH = 1 << 18  # bytes that are asked for in one go
MAX_PAGES = 1 << 15  # that are kept


class AttachedImage(MemoryImage):
    """A machine's memory by way of whoever is attached to it.

    Which addresses are RAM is not known before a kernel is found; `set_ram` tells, and from then on nothing else is
    asked for. Until then there is no coverage either, so nobody searches through what may be devices.

    Args:
        name: what the machine is called, for people.
        fetch: reads.
        store: writes, None if that is not allowed.
        describe: what the machine says of itself.
        read_notes: returns ELF notes with the state of its CPUs as it is now.
    """

    live = True

    def __init__(
        self,
        name: str,
        fetch: Fetch,
        store: Store | None,
        describe: ImageInfo,
        read_notes: Callable[[], tuple[Note, ...]] = tuple,
    ) -> None:
        self.paths = (name,)
        self._fetch = fetch
        self._store = store
        self._info = describe
        self._read_notes = read_notes
        self._notes: tuple[Note, ...] | None = None
        self._pages: dict[int, bytes | None] = {}
        self._ram: list[Range] | None = None
        self._starts: list[int] = []

    @property
    def info(self) -> ImageInfo:
        return self._info

    @property
    def notes(self) -> tuple[Note, ...]:
        """Return the notes, asked for when they are first wanted."""
        if self._notes is None:
            self._notes = self._read_notes()
        return self._notes

    @notes.setter
    def notes(self, notes: tuple[Note, ...]) -> None:
        self._notes = notes

    def set_ram(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Say which addresses are RAM: (start, end), ascending and apart; those at both ends of a page count whole."""
        self._ram = []
        for start, end in ranges:
            low, high = start & -PAGE, end + PAGE - 1 & -PAGE
            if self._ram and low <= self._ram[-1].end:
                low, high = self._ram[-1].start, max(high, self._ram.pop().end)
            self._ram.append(Range(low, high - low, Presence.PRESENT))
        self._starts = [run.start for run in self._ram]

    def refresh(self) -> None:
        self._pages.clear()
        self._notes = None

    def coverage(self, start: int = 0, end: int | None = None) -> Iterator[Range]:
        for run in self._ram or ():
            low, high = max(run.start, start), run.end if end is None else min(run.end, end)
            if low < high:
                yield Range(low, high - low, Presence.PRESENT)

    def read(self, paddr: int, size: int) -> bytes:
        page = self._pages.get(paddr // PAGE)
        offset = paddr % PAGE
        if page is not None and offset + size <= PAGE:
            return page[offset : offset + size]
        return super().read(paddr, size)

    def pieces(self, paddr: int, size: int) -> Iterator[Piece]:
        end = paddr + size
        while paddr < end:
            stop = min(end, (paddr // PAGE + MAX_FETCH // PAGE) * PAGE)
            self._load(paddr // PAGE, (stop - 1) // PAGE)
            while paddr < stop:
                number = paddr // PAGE
                length = min(stop, (number + 1) * PAGE) - paddr
                page = self._pages.get(number)
                if page is not None:
                    yield Piece(paddr, length, Presence.PRESENT, page[paddr % PAGE : paddr % PAGE + length])
                else:
                    # RAM that is not shown, or what nobody calls RAM
                    known = self._ram is not None and self._is_ram(number)
                    yield Piece(paddr, length, Presence.REFUSED if known else Presence.HOLE, None)
                paddr += length

    def _is_ram(self, number: int) -> bool:
        """Tell whether a page may be asked for."""
        if self._ram is None:
            return True
        index = bisect_right(self._starts, number * PAGE) - 1
        return index >= 0 and number * PAGE < self._ram[index].end

    def _load(self, first: int, last: int) -> None:
        """Have the pages from `first` to `last`, as far as they can be read."""
        wanted = [number for number in range(first, last + 1) if number not in self._pages and self._is_ram(number)]
        if not wanted:
            return
        if len(self._pages) + len(wanted) > MAX_PAGES:
            self._pages.clear()
            wanted = [number for number in range(first, last + 1) if self._is_ram(number)]
        runs: list[tuple[int, int]] = []
        for number in wanted:
            if runs and sum(runs[-1]) == number:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((number, 1))
        single = [run for run in self._take(runs) if run[1] > 1]
        self._take([(number, 1) for start, count in single for number in range(start, start + count)])

    def _take(self, runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Fetch runs of pages (number of the first, how many), and return those that could not be read."""
        if not runs:
            return []
        refused = []
        answers = self._fetch([(start * PAGE, count * PAGE) for start, count in runs])
        for (start, count), data in zip(runs, answers, strict=True):
            if data is None:
                refused.append((start, count))
            for index in range(count):
                self._pages[start + index] = None if data is None else data[index * PAGE : (index + 1) * PAGE]
        return refused

    def put(self, paddr: int, data: bytes) -> None:
        if self._store is None:
            raise CommandError(
                f"{self.paths[0]}: the machine's memory is only read: `kvm attach --write` allows writing to it"
            )
        for piece in self.pieces(paddr, len(data)):  # of pages that can be read alone
            if piece.data is None:
                raise NotInImageError(piece.paddr, piece.size, piece.presence.value, self.paths[0])
        for number in range(paddr // PAGE, (paddr + max(len(data), 1) - 1) // PAGE + 1):
            self._pages.pop(number, None)
        self._store(paddr, data)
