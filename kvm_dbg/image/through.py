"""Writes that go into the memory itself: what runs on it sees them at once.

The counterpart of `overlay`, for memory that is live. Which writes are sensible is the business of `kernel.write`;
here, all bytes of a change must be there before the first is written, and what was written of a change that then fails
is put back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvm_dbg.errors import CommandError, KvmDbgError, NotInImageError
from kvm_dbg.image.base import MemoryImage, PartialRead, Piece, Range
from kvm_dbg.image.writable import Part, WritableImage


class WriteThroughImage(WritableImage):
    """An image over another one, whose `put` takes what is written.

    Args:
        image: the one below; closed with this one.
        confirmed: nobody need be asked before the first write.

    Attributes:
        confirmed: see above; set by whoever has asked.
    """

    def __init__(self, image: MemoryImage, *, confirmed: bool = True) -> None:
        super().__init__(image)
        self.confirmed = confirmed
        self.read = image.read  # type: ignore[method-assign] # one call less, for each page that is looked at

    def write(self, paddr: int, data: bytes) -> None:
        """Put `data` at physical address `paddr` of the memory itself. Raises as `MemoryImage.put`."""
        if data:
            self.image.put(paddr, data)

    put = write

    def _check(self, part: Part) -> None:
        for run in part.old.missing:
            raise NotInImageError(run.start, run.size, run.presence.value, self.paths[0] if self.paths else "")

    def _check_unchanged(self, part: Part) -> None:
        now = self.read_partial(part.paddr, len(part.new)).digits(part.paddr)
        if now != part.new.hex():
            raise CommandError(
                f"the {len(part.new)} bytes at physical {part.paddr:#x} are {now} now, and not {part.new.hex()} any"
                " more, which was written: --force takes the change back all the same"
            )

    def _write_all(self, parts: Sequence[Part]) -> None:
        done: list[Part] = []
        try:
            for part in parts:
                done.append(part)
                self.write(part.paddr, part.new)
        except KvmDbgError:
            for part in reversed(done):
                if self.read_partial(part.paddr, len(part.old.data)).data != part.old.data:
                    self._put_back(part)
            raise

    def _put_back(self, part: Part) -> None:
        self.write(part.paddr, part.old.data)

    def read_partial(self, paddr: int, size: int) -> PartialRead:
        return self.image.read_partial(paddr, size)

    def pieces(self, paddr: int, size: int) -> Iterator[Piece]:
        return self.image.pieces(paddr, size)

    def coverage(self, start: int = 0, end: int | None = None) -> Iterator[Range]:
        return self.image.coverage(start, end)

    def for_each_chunk(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        return self.image.for_each_chunk(start, end)

    def close(self) -> None:
        self.changes.clear()
        self.image.close()
