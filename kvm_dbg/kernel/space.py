"""An address space over an image: `AddressSpace`, and the reads that say which of their bytes were there."""

from __future__ import annotations

from kvm_dbg.arch.base import Arch, Paging
from kvm_dbg.arch.paging import BLOCK_SHIFT, BLOCK_SIZE, AddressSpace, TableCache
from kvm_dbg.errors import NotInImageError, ReadError
from kvm_dbg.image.base import MemoryImage, PartialRead, Presence, Range


class ImageSpace(AddressSpace):
    """Memory of `image` by virtual address."""

    def __init__(self, arch: Arch, image: MemoryImage, paging: Paging, tables: TableCache | None = None) -> None:
        super().__init__(arch, image, paging, tables)
        self._image = image

    def read_partial(self, vaddr: int, size: int) -> PartialRead:
        """Return what is there of [vaddr, vaddr + size), and which virtual ranges are not.

        Addresses that are not mapped are holes. Zeros stand in for the missing bytes.
        """
        try:
            return PartialRead(self.read(vaddr, size), ())
        except ReadError:
            pass  # something is missing: look page by page
        parts: list[bytes] = []
        missing: list[Range] = []
        end = vaddr + size
        while vaddr < end:
            length = min(self._page_size - (vaddr & (self._page_size - 1)), end - vaddr)
            try:
                paddr = self.translate(vaddr)
                if vaddr >> BLOCK_SHIFT in self._blocks:
                    length = min(BLOCK_SIZE - (vaddr & (BLOCK_SIZE - 1)), end - vaddr)
            except ReadError as error:
                presence = Presence(error.reason) if isinstance(error, NotInImageError) else Presence.HOLE
                parts.append(bytes(length))
                _add(missing, Range(vaddr, length, presence))
            else:
                part = self._image.read_partial(paddr, length)
                parts.append(part.data)
                for run in part.missing:
                    _add(missing, Range(vaddr + run.start - paddr, run.size, run.presence))
            vaddr += length
        return PartialRead(b"".join(parts), tuple(missing))


def _add(missing: list[Range], run: Range) -> None:
    """Append a run, or extend the last one if it is its continuation."""
    last = missing[-1] if missing else None
    if last is not None and last.end == run.start and last.presence is run.presence:
        missing[-1] = Range(last.start, last.size + run.size, last.presence)
    else:
        missing.append(run)
