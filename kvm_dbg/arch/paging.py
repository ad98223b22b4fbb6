"""An address space: memory by virtual address, through page tables, with a cache.

Nothing is assumed about the kernel's direct map or its text: every address is walked, and walks are remembered.
The cost of a read whose page was translated before is two dictionary look-ups on top of the image's own read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, Self
from weakref import WeakSet

from kvm_dbg.arch.base import Arch, Paging, Walk
from kvm_dbg.errors import NotInImageError

BLOCK_SHIFT = 21  # translations of pages of at least 2 MiB are remembered by their 2 MiB blocks
BLOCK_SIZE = 1 << BLOCK_SHIFT
BLOCK_MASK = BLOCK_SIZE - 1
MAX_TRANSLATIONS = 1 << 17  # of either kind; then the cache starts anew
MAX_TABLES = 1 << 12  # cached table pages: 16 MiB


class Physical(Protocol):
    """What an address space reads from: an image, or anything else with physical memory."""

    def read(self, paddr: int, size: int) -> bytes:
        """Return `size` bytes at `paddr`; raises ReadError."""


class TableCache:
    """Page-table pages of one image, shared by its address spaces."""

    __slots__ = ("_page_mask", "_pages", "_physical", "spaces")

    def __init__(self, physical: Physical, page_shift: int) -> None:
        self._physical = physical
        self._pages: dict[int, bytes] = {}
        self._page_mask = (1 << page_shift) - 1
        self.spaces: WeakSet[AddressSpace] = WeakSet()

    def read(self, paddr: int, size: int) -> bytes:
        """Return `size` bytes at `paddr`, which do not cross a page. Raises ReadError."""
        offset = paddr & self._page_mask
        base = paddr - offset
        page = self._pages.get(base)
        if page is None:
            try:
                page = self._physical.read(base, self._page_mask + 1)
            except NotInImageError:
                return self._physical.read(paddr, size)  # a page of which only a part is there
            if len(self._pages) >= MAX_TABLES:
                self._pages.clear()
            self._pages[base] = page
        return page[offset : offset + size]

    def clear(self) -> None:
        """Forget everything: memory has changed."""
        self._pages.clear()


class AddressSpace:
    """Memory by virtual address.

    Args:
        arch: how page tables are read.
        physical: where their bytes and the memory's come from.
        paging: the root table and its shape.
        tables: a cache to share with other spaces of the same image.
    """

    def __init__(self, arch: Arch, physical: Physical, paging: Paging, tables: TableCache | None = None) -> None:
        self.arch = arch
        self.paging = paging
        self._physical = physical
        self._read_physical = physical.read
        self._tables = tables if tables is not None else TableCache(physical, arch.page_shift)
        self._tables.spaces.add(self)
        self._pages: dict[int, int] = {}  # vaddr >> page_shift -> paddr of the page
        self._blocks: dict[int, int] = {}  # vaddr >> BLOCK_SHIFT -> paddr minus vaddr, the same in all of the block
        self._page_shift = arch.page_shift
        self._page_size = 1 << arch.page_shift

    def with_root(self, root: int) -> Self:
        """Return another address space of the same machine, whose top table is at the physical address `root`."""
        return type(self)(self.arch, self._physical, self.paging._replace(root=root), self._tables)

    def walk(self, vaddr: int) -> Walk:
        """Translate `vaddr` afresh, with every entry on the way. Raises NotMappedError, ReadError."""
        return self.arch.walk(self._physical.read, self.paging, vaddr)

    def translate(self, vaddr: int) -> int:
        """Return the physical address of `vaddr`. Raises NotMappedError, ReadError."""
        distance = self._blocks.get(vaddr >> BLOCK_SHIFT)
        if distance is not None:
            return vaddr + distance
        page = self._pages.get(vaddr >> self._page_shift)
        if page is not None:
            return page + (vaddr & (self._page_size - 1))
        return self._fill(vaddr)

    def _translate_page(self, vaddr: int) -> tuple[int, int]:
        """Return (paddr of the page that holds `vaddr`, its size in bytes), whatever is remembered."""
        return self.arch.translate_page(self._tables.read, self.paging, vaddr)

    def _fill(self, vaddr: int) -> int:
        """Walk, remember and return the translation of `vaddr`."""
        base, size = self._translate_page(vaddr)
        paddr = base + (vaddr & (size - 1))
        if size >= BLOCK_SIZE:
            if len(self._blocks) >= MAX_TRANSLATIONS:
                self._blocks.clear()
            self._blocks[vaddr >> BLOCK_SHIFT] = paddr - vaddr
        else:
            if len(self._pages) >= MAX_TRANSLATIONS:
                self._pages.clear()
            self._pages[vaddr >> self._page_shift] = paddr & -self._page_size
        return paddr

    def read(self, vaddr: int, size: int) -> bytes:
        """Return `size` bytes at `vaddr`.

        Raises:
            NotMappedError: an address on the way is not mapped.
            NotInImageError: a page, or a page table, is not in the image.
        """
        distance = self._blocks.get(vaddr >> BLOCK_SHIFT)
        if distance is not None and (vaddr & BLOCK_MASK) + size <= BLOCK_SIZE:
            return self._read_physical(vaddr + distance, size)
        if (vaddr & (self._page_size - 1)) + size <= self._page_size:
            page = self._pages.get(vaddr >> self._page_shift)
            if page is not None:
                return self._read_physical(page + (vaddr & (self._page_size - 1)), size)
            return self._read_physical(self._fill(vaddr), size)
        return b"".join([self._read_physical(paddr, length) for _, paddr, length in self._runs(vaddr, size)])

    def _runs(self, vaddr: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Yield (vaddr, paddr, bytes) that cover [vaddr, vaddr + size), physically contiguous neighbours merged."""
        run_vaddr = run_paddr = run_size = 0
        end = vaddr + size
        while vaddr < end:
            paddr = self.translate(vaddr)
            unit = BLOCK_SIZE if vaddr >> BLOCK_SHIFT in self._blocks else self._page_size
            length = min(unit - (vaddr & (unit - 1)), end - vaddr)
            if run_size and run_paddr + run_size == paddr:
                run_size += length
            else:
                if run_size:
                    yield run_vaddr, run_paddr, run_size
                run_vaddr, run_paddr, run_size = vaddr, paddr, length
            vaddr += length
        if run_size:
            yield run_vaddr, run_paddr, run_size

    def invalidate(self) -> None:
        """Forget all translations, in all spaces that share the tables: memory has been written to."""
        self._tables.clear()
        for space in self._tables.spaces:
            space._pages.clear()
            space._blocks.clear()
