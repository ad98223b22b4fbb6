"""Write the page maps of FreeBSD minidumps: entries for pages, or powerpc64's hashed table or radix tree.

By lib/libkvm/kvm_{amd64,aarch64,i386,riscv}.h (bits), Power ISA 2.07B 5.7 (hash) and 3.0B 6.7 (radix tree).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

PAGE_ENTRIES = {  # by platform: an entry for a page, from its physical address
    "amd64": lambda paddr: paddr | 0x63,
    "arm64": lambda paddr: paddr | 0x0060_0000_0000_0703,
    "riscv": lambda paddr: paddr >> 2 | 0xCF,
    "i386": lambda paddr: paddr | 0x63,
}
GROUPS = 256


def flat_map(platform: str, kernbase: int, pages: Mapping[int, int], page: int, entry_size: int) -> bytes:
    """Return entries from `kernbase` on; `pages` is virtual address -> physical address."""
    count = (max(pages) - kernbase) // page + 1
    table = bytearray(count * entry_size)
    for vaddr, paddr in pages.items():
        entry = PAGE_ENTRIES[platform](paddr)
        struct.pack_into("<Q" if entry_size == 8 else "<I", table, (vaddr - kernbase) // page * entry_size, entry)
    return bytes(table)


def hashed_map(pages: Mapping[int, int]) -> bytes:
    """Return a hashed table of GROUPS groups of eight entries."""
    table = bytearray(GROUPS * 128)
    for vaddr, paddr in pages.items():
        segment = vaddr >> 28
        vsid = ((segment << 8 | segment >> 28) * 0x13BB & (1 << 36) - 1) | 1 << 36  # machine/slb.h, KERNEL_VSID
        number = vaddr >> 12 & 0xFFFF
        for secondary in (0, 2):
            group = (vsid ^ number if not secondary else ~(vsid ^ number)) % GROUPS
            free = [slot for slot in range(8) if not table[group * 128 + slot * 16 + 7] & 1]
            if free:
                high = vsid << 12 | (number >> 11) << 7 | secondary | 1
                struct.pack_into(">QQ", table, group * 128 + free[0] * 16, high, paddr | 0x192)
                break
    return bytes(table)


def radix_map(pages: Mapping[int, int], first_table: int) -> tuple[bytes, dict[int, bytes]]:
    """Return a root of 2**13 entries, and the tables below it by page frame number, from `first_table` on."""
    root = bytearray(1 << 16)
    tables: dict[int, bytearray] = {}

    def below(table: bytearray, index: int) -> bytearray:
        (entry,) = struct.unpack_from(">Q", table, 8 * index)
        if not entry:
            pfn = first_table + len(tables)
            tables[pfn] = bytearray(4096)
            struct.pack_into(">Q", table, 8 * index, 1 << 63 | pfn << 12 | 9)
            return tables[pfn]
        return tables[entry >> 12 & 0xFF_FFFF_FFFF]

    for vaddr, paddr in pages.items():
        table = below(root, vaddr >> 39 & 0x1FFF)
        for shift in (30, 21):
            table = below(table, vaddr >> shift & 0x1FF)
        struct.pack_into(">Q", table, 8 * (vaddr >> 12 & 0x1FF), 3 << 62 | paddr | 0x18E)
    return bytes(root), {pfn: bytes(table) for pfn, table in tables.items()}
