"""An address space over an image: `AddressSpace`, and the reads that say which of their bytes were there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.arch import find_arch
from kvm_dbg.arch.base import Arch, Paging
from kvm_dbg.arch.i386 import I386, I386_PAE_DIRECTORIES
from kvm_dbg.arch.paging import BLOCK_SHIFT, BLOCK_SIZE, AddressSpace, TableCache
from kvm_dbg.errors import CommandError, NotInImageError, NotMappedError, ReadError
from kvm_dbg.image.base import MemoryImage, PartialRead, Presence, Range

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

RUN_SIZE = 1 << 20  # bytes that `for_each_run` yields at most at a time
LEVELS = {I386.name: 2}  # of page tables that an image tells the root of
USUAL_LEVELS = 4


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

    def for_each_run(self, start: int, end: int) -> Iterator[Range]:
        """Yield the runs of [start, end) that exist, in ascending order, at most RUN_SIZE bytes long, page by page.

        PRESENT: all bytes are in the image. EXCLUDED, TRUNCATED: mapped, but the image lacks them, or lacks the page
        table that would tell. HOLE: swapped out, or mapped to what is not memory. What the page tables have never
        heard of is left out; the cost is that of the tables that exist.
        """
        run: Range | None = None
        for vaddr, size, presence in self._for_each_piece(start, end):
            if run is not None and run.end == vaddr and run.presence is presence and run.size + size <= RUN_SIZE:
                run = Range(run.start, run.size + size, presence)
                continue
            if run is not None:
                yield run
            run = Range(vaddr, size, presence)
        if run is not None:
            yield run

    def _for_each_piece(self, vaddr: int, end: int) -> Iterator[Range]:
        """Yield what `for_each_run` joins."""
        shifts = dict(self.arch.levels)
        table_size = 1 << self.arch.levels[1][1]  # what a table of the lowest level maps
        while vaddr < end:
            following = min((vaddr | self._page_size - 1) + 1, end)
            try:
                paddr = self.translate(vaddr)
            except NotMappedError as error:
                if error.entry:
                    yield Range(vaddr, following - vaddr, Presence.HOLE)
                elif error.level is not None:
                    following = min((vaddr | (1 << shifts[error.level]) - 1) + 1, end)
            except NotInImageError as error:
                following = min((vaddr | table_size - 1) + 1, end)
                yield from _cut(Range(vaddr, following - vaddr, Presence(error.reason)))
            else:
                pieces = self._image.pieces(paddr, following - vaddr)
                lost = next((piece.presence for piece in pieces if piece.presence is not Presence.PRESENT), None)
                yield Range(vaddr, following - vaddr, lost or Presence.PRESENT)
            vaddr = following


def kernel_space(kernel: Kernel) -> ImageSpace:
    """Return the kernel's own address space. Raises CommandError if it was opened without page tables."""
    space = getattr(kernel, "space", None)
    if not isinstance(space, ImageSpace):
        raise CommandError("this kernel was opened without page tables, so processes' memory cannot be read")
    return space


def header_space(image: MemoryImage) -> ImageSpace | None:
    """Return the kernel's address space by what the image itself says of page tables, None if it says nothing.

    Raises:
        UnsupportedError: of a processor that is not known.
    """
    info = image.info
    if info.root is None or info.machine is None:
        return None
    arch = I386_PAE_DIRECTORIES if info.pae else find_arch(info.machine)
    return ImageSpace(arch, image, Paging(info.root, LEVELS.get(arch.name, USUAL_LEVELS)))


def _cut(run: Range) -> Iterator[Range]:
    """Yield a run in parts of at most RUN_SIZE bytes."""
    for start in range(run.start, run.end, RUN_SIZE):
        yield Range(start, min(RUN_SIZE, run.end - start), run.presence)


def _add(missing: list[Range], run: Range) -> None:
    """Append a run, or extend the last one if it is its continuation."""
    last = missing[-1] if missing else None
    if last is not None and last.end == run.start and last.presence is run.presence:
        missing[-1] = Range(last.start, last.size + run.size, last.presence)
    else:
        missing.append(run)
