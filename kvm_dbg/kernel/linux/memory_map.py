"""Where a Linux machine has RAM, by the memory map that its firmware gave the kernel.

`e820_table` points to a `struct e820_table` (arch/x86/include/asm/e820/types.h since 4.12: u32 nr_entries, then packed
entries of u64 addr, u64 size, u32 type; type 1 is RAM).
"""

from __future__ import annotations

import struct

from kvm_dbg.errors import ReadError
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.symbols.base import SymbolTable

RAM = 1  # E820_TYPE_RAM
MAX_ENTRIES = 4096  # E820_MAX_ENTRIES is 128 + 3 * MAX_NUMNODES, at most 3200
ENTRY = struct.Struct("<QQI")


def read_ram(space: ImageSpace, symbols: SymbolTable) -> list[tuple[int, int]]:
    """Return the physical ranges (start, end) of RAM, in the order of the map; none if it cannot be read."""
    symbol = symbols.find("e820_table")
    if symbol is None:
        return []
    try:
        table = int.from_bytes(space.read(symbol.address, 8), "little")
        count = int.from_bytes(space.read(table, 4), "little")
        if not 0 < count <= MAX_ENTRIES:
            return []
        entries = list(ENTRY.iter_unpack(space.read(table + 4, count * ENTRY.size)))
    except ReadError:
        return []
    return [(start, start + size) for start, size, kind in entries if kind == RAM]
