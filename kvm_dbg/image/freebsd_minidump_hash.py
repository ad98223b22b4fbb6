"""The hashed page table that FreeBSD's minidumps of powerpc64 hold: from kernel addresses to physical ones.

Facts: Power ISA 2.07B, book III-S, 5.7 (segments, virtual page numbers, the primary and secondary hash, groups of
eight entries of two doublewords, their fields), FreeBSD `lib/libkvm/kvm_minidump_powerpc64_hpt.c` (which segment a
kernel address has; segments of 256 MiB; pages of 4 KiB but in the direct map, which needs no table) and
`sys/powerpc/aim/moea64_native.c` (entries are big-endian in either byte order).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from kvm_dbg.errors import NotMappedError

GROUP_BYTES = 128  # eight entries of 16 bytes
SEGMENT_SHIFT = 28
PAGE_SHIFT = 12
KERNEL_VSID = 1 << 36  # set in the segment IDs of the kernel
VSID_FACTOR = 0x13BB
HASH_MASK = (1 << 39) - 1
VALID, SECONDARY, LARGE = 1, 2, 4
SIZE_MASK = 0xC000_0000_0000_0000  # B: 0 for segments of 256 MiB
ADDRESS_MASK = 0x0FFF_FFFF_FFFF_F000
_GROUP = struct.Struct(">16Q")


class HashedTable:
    """How kernel addresses are looked up.

    Args:
        fields: the header's.
    """

    def __init__(self, fields: dict[str, int]) -> None:
        self._groups = fields["pmapsize"] // GROUP_BYTES
        self._end = fields["kernend"]

    def find(self, read_pmap: Callable[[int, int, int], bytes], vaddr: int) -> tuple[int, int]:
        """Return (paddr of the start of the page that holds `vaddr`, its size in bytes).

        Args:
            read_pmap: reads (offset in the table, bytes, virtual address for errors).
            vaddr: an address from the kernel's first one on.

        Raises:
            NotMappedError: no entry is about it.
            ReadError: the group is not in the file.
        """
        if vaddr > self._end:
            raise NotMappedError(vaddr, f"it is past the kernel's last address, {self._end:#x}")
        if not self._groups or self._groups & self._groups - 1:
            raise NotMappedError(vaddr, f"a hashed page table of {self._groups} groups cannot be")
        segment = vaddr >> SEGMENT_SHIFT
        vsid = ((segment << 8 | segment >> 28) * VSID_FACTOR & KERNEL_VSID - 1) | KERNEL_VSID
        inside = vaddr & (1 << SEGMENT_SHIFT) - 1
        primary = vsid & HASH_MASK ^ inside >> PAGE_SHIFT
        wanted = vsid << 5 | inside >> 23  # of the page's number an entry has what its place does not tell
        for secondary in (0, SECONDARY):
            number = (~primary if secondary else primary) & HASH_MASK & self._groups - 1
            group = _GROUP.unpack(read_pmap(number * GROUP_BYTES, GROUP_BYTES, vaddr))
            for high, low in zip(group[::2], group[1::2], strict=True):
                if high & (VALID | SECONDARY | LARGE | SIZE_MASK) == VALID | secondary and high >> 7 == wanted:
                    return low & ADDRESS_MASK, 1 << PAGE_SHIFT
        raise NotMappedError(vaddr, f"no entry of the hashed page table is about it (segment {vsid:#x})")
