"""A stretch of kernel memory that is read in large pieces, as they are needed."""

from __future__ import annotations

from kvm_dbg.debuginfo.value import Memory
from kvm_dbg.errors import CorruptError, ReadError

PIECE = 1 << 16  # bytes
MAX_PIECES = 256  # that are kept


class Window:
    """The `size` bytes at `address`, by offset. What there is of an incomplete piece can still be read."""

    def __init__(self, memory: Memory, address: int, size: int, what: str) -> None:
        self._memory = memory
        self._pieces: dict[int, bytes | None] = {}
        self.address = address
        self.size = size
        self.what = what

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`.

        Raises:
            CorruptError: they are not all inside.
            ReadError: some of them cannot be read.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise CorruptError(
                self.address,
                f"{size} bytes from offset {offset} are outside of {self.what}, which has {self.size} bytes",
            )
        start = offset % PIECE
        piece = self._piece(offset // PIECE)
        if piece is None or start + size > len(piece):
            return self._memory.read(self.address + offset, size)
        return piece[start : start + size]

    def _piece(self, number: int) -> bytes | None:
        if number not in self._pieces:
            offset = number * PIECE
            try:
                piece = self._memory.read(self.address + offset, min(PIECE, self.size - offset))
            except ReadError:
                piece = None
            if len(self._pieces) >= MAX_PIECES:  # of a ring that is read in order: what is far back is not needed
                self._pieces.clear()
            self._pieces[number] = piece
        return self._pieces[number]
