"""Images that can be written to: each change is kept with the bytes before and after, and can be taken back."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from kvm_dbg.errors import CommandError, NotInImageError
from kvm_dbg.image.base import ImageInfo, MemoryImage, Note, PartialRead, Presence

MAX_CHANGES = 1 << 14  # changes that are remembered
MAX_BYTES = 1 << 26  # of data in them; the oldest are forgotten first


class Part(NamedTuple):
    """A physically contiguous part of a change: the bytes at `paddr` before (as far as there were any) and after."""

    paddr: int
    old: PartialRead
    new: bytes


class Change(NamedTuple):
    """One write, at a virtual address; its parts are in the order of virtual addresses.

    time: when, in seconds since the epoch, by the clock of the machine that wrote.
    """

    vaddr: int
    parts: tuple[Part, ...]
    time: float

    @property
    def size(self) -> int:
        """Return how many bytes were written."""
        return sum(len(part.new) for part in self.parts)


class WritableImage(MemoryImage):
    """An image over another one, whose bytes can be written; derived classes implement `write` and `_put_back`.

    Attributes:
        image: the one below; closed with this one.
        changes: what `change` wrote, oldest first, bounded by MAX_CHANGES and MAX_BYTES.
    """

    def __init__(self, image: MemoryImage) -> None:
        self.image = image
        self.paths = image.paths
        self.page_map = image.page_map
        self.live = image.live
        self.control = image.control
        self.changes: deque[Change] = deque()
        self._bytes = 0

    @property
    def info(self) -> ImageInfo:
        return self.image.info

    @property
    def notes(self) -> tuple[Note, ...]:
        """The notes of the image below, as they are now."""
        return self.image.notes

    @notes.setter
    def notes(self, notes: tuple[Note, ...]) -> None:
        self.image.notes = notes

    @property
    def ran_on(self) -> bool:
        """Whether the CPUs that the notes are of have run on since."""
        return self.image.ran_on

    @ran_on.setter
    def ran_on(self, ran_on: bool) -> None:
        self.image.ran_on = ran_on

    def refresh(self) -> None:
        self.image.refresh()

    def still(self) -> AbstractContextManager[None]:
        return self.image.still()

    @abstractmethod
    def write(self, paddr: int, data: bytes) -> None:
        """Put `data` at the physical address `paddr`, unlogged.

        Raises:
            NotInImageError: part of it is not memory that the image describes; nothing is written then.
        """

    @abstractmethod
    def _put_back(self, part: Part) -> None:
        """Make a part as it was before."""

    def _check(self, part: Part) -> None:
        """Raise NotInImageError if a part cannot be written: some of it is not memory that the image describes."""
        for run in part.old.missing:
            if run.presence is Presence.HOLE:
                raise NotInImageError(run.start, run.size, run.presence.value, self.paths[0] if self.paths else "")

    def _write_all(self, parts: Sequence[Part]) -> None:
        """Write parts that were checked; all of them, or none."""
        for part in parts:
            self.write(part.paddr, part.new)

    def change(self, vaddr: int, pieces: Sequence[tuple[int, bytes]]) -> Change:
        """Write the pieces (paddr, bytes) of one change at the virtual address `vaddr`, and remember it.

        Raises:
            NotInImageError: part of it is not memory that the image describes; nothing is written then.
        """
        parts = tuple(Part(paddr, self.read_partial(paddr, len(data)), data) for paddr, data in pieces)
        for part in parts:
            self._check(part)
        self._write_all(parts)
        change = Change(vaddr, parts, time.time())
        self.changes.append(change)
        self._bytes += change.size
        while len(self.changes) > MAX_CHANGES or (self._bytes > MAX_BYTES and len(self.changes) > 1):
            self._bytes -= self.changes.popleft().size
        return change

    def _check_unchanged(self, part: Part) -> None:
        """Raise CommandError if the bytes of a part are not what was written any more."""

    def undo(self, *, force: bool = False) -> Change:
        """Take the last change back and return it.

        Args:
            force: even if the bytes are not what was written any more.

        Raises:
            CommandError: there is none, or somebody else has written there since.
        """
        if not self.changes:
            raise CommandError("nothing was written that could be taken back")
        change = self.changes[-1]
        if not force:
            for part in change.parts:
                self._check_unchanged(part)
        for part in reversed(change.parts):
            self._put_back(part)
        self.changes.pop()
        self._bytes -= change.size
        return change
