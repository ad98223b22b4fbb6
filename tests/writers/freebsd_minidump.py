"""Write FreeBSD minidumps of every machine and version.

By the definitions in FreeBSD's `sys/{amd64,arm64,i386,riscv,powerpc}/include/minidump.h` and the order in which each
`minidump_machdep.c` writes: header page, message buffer, dump_avail, bitmap, page map, pages.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Kernel(NamedTuple):
    """Where a kernel has its memory: what the headers say beside sizes."""

    kernbase: int
    dmapbase: int = 0
    dmapend: int = 0
    dmapphys: int = 0
    kernend: int = 0
    pae: int = 0
    mmu: bytes = b""
    startkernel: int = 0x100100
    endkernel: int = 0x2000000


# VM_MIN_KERNEL_ADDRESS, DMAP_MIN_ADDRESS and DMAP_MAX_ADDRESS of each machine's vmparam.h
KERNELS = {
    "amd64": Kernel(0xFFFFFE0000000000, 0xFFFFF80000000000, 0xFFFFFC0000000000),
    "arm64": Kernel(0xFFFF000000000000, 0xFFFFA00000000000, 0xFFFFFD0000000000),
    "riscv": Kernel(0xFFFFFFC000000000, 0xFFFFFFD000000000, 0xFFFFFFF000000000),
    "i386": Kernel(0xC0000000),
    "powerpc64": Kernel(
        0xE000000000000000, 0xC000000000000000, 0xCFFFFFFFFFFFFFFF, kernend=0xE0000007FFFFFFFF, mmu=b"mmu_phyp"
    ),
}
NEWEST = {"amd64": 3, "arm64": 3, "riscv": 2, "i386": 2, "powerpc64": 2}
HAS_DUMP_AVAIL = {"amd64": 3, "arm64": 2, "riscv": 2, "i386": 2, "powerpc64": 2}  # from this version on


def write_minidump(
    platform: str,
    pages: Mapping[int, bytes],
    *,
    version: int | None = None,
    kernel: Kernel | None = None,
    pmap: bytes = b"",
    avail: Sequence[tuple[int, int]] | None = None,
    msgbuf: bytes = b"<118>FreeBSD\n",
    order: str = "<",
    page: int = 4096,
) -> bytes:
    """Return a minidump.

    `pages` is by page frame number; `avail` has the ranges of physical addresses that are memory, None for all up to
    the last page; `order` is powerpc64's byte order; `page` is in bytes, 4096 or on arm64 16384.
    """
    version = version or NEWEST[platform]
    kernel = kernel or KERNELS[platform]
    listed = version >= HAS_DUMP_AVAIL[platform]
    top = max(pages, default=0) + 1
    areas = list(avail) if listed and avail is not None else [(0, top * page)]
    numbers: dict[int, int] = {}  # of bits, by page frame
    for start, end in areas:
        for pfn in range(start // page, -(-end // page)):
            numbers[pfn] = len(numbers)
    words = [0] * -(-len(numbers) // 64)
    for pfn in pages:
        words[numbers[pfn] // 64] |= 1 << numbers[pfn] % 64
    bitmap = struct.pack(f"{order}{len(words)}Q", *words)
    table = b"".join(struct.pack(order + "QQ", *area) for area in areas) + bytes(16) if listed else b""
    sizes = (version, len(msgbuf), len(bitmap), len(pmap))
    head = f"minidump FreeBSD/{platform}".encode().ljust(32 if platform == "powerpc64" else 24, b"\0")
    if platform == "powerpc64":
        head += kernel.mmu.ljust(32, b"\0") + struct.pack(order + "4I", *sizes)
        head += struct.pack(order + "4Q", kernel.kernbase, kernel.kernend, kernel.dmapbase, kernel.dmapend)
        head += struct.pack(order + "iIQQ", 1, 0, kernel.startkernel, kernel.endkernel)
    elif platform == "i386":
        head += struct.pack("<6I", *sizes, kernel.kernbase, kernel.pae)
    elif platform == "amd64":
        head += struct.pack("<4I3Q", *sizes, kernel.kernbase, kernel.dmapbase, kernel.dmapend)
    else:
        head += struct.pack("<4I4Q", *sizes, kernel.kernbase, kernel.dmapphys, kernel.dmapbase, kernel.dmapend)
    if listed:
        head += struct.pack(order + "I", len(table))
    if platform == "arm64" and version >= 3:
        head += struct.pack("<I", {4096: 0, 16384: 1}[page])
    parts = [head, msgbuf, table, bitmap, pmap, *(pages[pfn].ljust(page, b"\0") for pfn in sorted(pages))]
    return b"".join(part.ljust(-(-len(part) // page) * page, b"\0") for part in parts)
