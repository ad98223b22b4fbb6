"""Write x86_64 page tables into a dictionary of pages, entry by entry, as Intel's manual draws them."""

from __future__ import annotations

import struct

PAGE = 4096
SHIFTS = {1: 12, 2: 21, 3: 30, 4: 39, 5: 48}
TABLE_FLAGS = 0x67  # P RW US A D
PAGE_FLAGS = 0x63  # P RW A D
PS = 0x80


class PageTables:
    """Physical pages with page tables in them; `memory` is what a BytesImage takes."""

    def __init__(self, levels: int = 4, root: int = 0x1000, first_table: int = 0x100000) -> None:
        self.levels = levels
        self.root = root
        self.memory: dict[int, bytearray] = {root: bytearray(PAGE)}
        self._next = first_table

    def page(self, paddr: int, data: bytes = b"") -> None:
        """Put a page of memory at `paddr`, filled up with zeros."""
        self.memory[paddr] = bytearray(data.ljust(PAGE, b"\0"))

    def new_table(self) -> int:
        """Return the physical address of a new empty table."""
        paddr = self._next
        self._next += PAGE
        self.memory[paddr] = bytearray(PAGE)
        return paddr

    def entry_paddr(self, vaddr: int, level: int) -> int:
        """Return where the entry of `level` (1 is the PTE) for `vaddr` is, making the tables above it."""
        table = self.root
        for above in range(self.levels, level, -1):
            place = table + (vaddr >> SHIFTS[above] & 511) * 8
            entry = self.get(place)
            if not entry:
                entry = self.new_table() | TABLE_FLAGS
                self.put(place, entry)
            table = entry & 0x000FFFFFFFFFF000
        return table + (vaddr >> SHIFTS[level] & 511) * 8

    def set_entry(self, vaddr: int, level: int, entry: int) -> int:
        """Write a raw entry and return its physical address."""
        place = self.entry_paddr(vaddr, level)
        self.put(place, entry)
        return place

    def map(self, vaddr: int, paddr: int, level: int = 1, flags: int = PAGE_FLAGS) -> int:
        """Map one page: 4 KiB (level 1), 2 MiB (2) or 1 GiB (3)."""
        return self.set_entry(vaddr, level, paddr | flags | (PS if level > 1 else 0))

    def get(self, paddr: int) -> int:
        """Return the entry at `paddr`."""
        page = self.memory[paddr & -PAGE]
        return int(struct.unpack_from("<Q", page, paddr % PAGE)[0])

    def put(self, paddr: int, entry: int) -> None:
        """Write the entry at `paddr`."""
        struct.pack_into("<Q", self.memory[paddr & -PAGE], paddr % PAGE, entry)

    def segments(self) -> dict[int, bytes]:
        """Return all pages."""
        return {paddr: bytes(data) for paddr, data in self.memory.items()}
