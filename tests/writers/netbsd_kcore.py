"""Write NetBSD crash dumps: what the kernel leaves on its dump partition, and what savecore makes of it.

From NetBSD's sys/sys/kcore.h, sys/arch/{amd64,i386}/include/kcore.h, cpu_dump() and dump_seg_iter() in
sys/arch/amd64/amd64/machdep.c, and kvm_dump_wrtheader() in lib/libkvm/kvm.c.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

AMD64, I386 = 157, 134
BLOCK = 512


def midmag(flags: int, mid: int, magic: int) -> bytes:
    """Return a c_midmag, which is in network byte order."""
    return struct.pack(">I", flags << 26 | mid << 16 | magic)


def cpu_header(segments: Sequence[tuple[int, int]], root: int, mid: int = AMD64, nmemsegs: int | None = None) -> bytes:
    """Return cpu_kcore_hdr and the segments (start, size), without padding."""
    count = len(segments) if nmemsegs is None else nmemsegs
    return struct.pack("<II" if mid == I386 else "<QQ", root, count) + b"".join(
        struct.pack("<QQ", *segment) for segment in segments
    )


def write_partition(memory: dict[int, bytes], root: int = 0x1000, mid: int = AMD64) -> bytes:
    """Return a dump as the kernel writes it; memory by physical address, packed in the order given."""
    cpu = cpu_header([(paddr, len(data)) for paddr, data in memory.items()], root, mid)
    cpu += bytes(-(len(cpu) + 8) % BLOCK)
    return midmag(1, mid, 0x8FCA) + struct.pack("<I", len(cpu)) + cpu + b"".join(memory.values())


def write_kcore(
    memory: dict[int, bytes],
    root: int = 0x1000,
    *,
    mid: int = AMD64,
    hdrsize: int | None = None,
    seghdrsize: int = 8,
    nseg: int = 2,
    nmemsegs: int | None = None,
    segments: Sequence[tuple[int, int]] | None = None,
    cpu_midmag: bytes | None = None,
    cpu_size: int | None = None,
    data_midmag: bytes | None = None,
    data_size: int | None = None,
) -> bytes:
    """Return savecore's file; every field that is given replaces the right one."""
    if segments is None:
        segments = [(paddr, len(data)) for paddr, data in memory.items()]
    cpu = cpu_header(segments, root, mid, nmemsegs)
    cpu += bytes(-(len(cpu) + 8) % BLOCK)
    size = sum(map(len, memory.values()))
    align = 12 if mid == I386 else 16
    parts = [
        (midmag(0, mid, 0x8FCA) + struct.pack("<HHI", hdrsize or align, seghdrsize, nseg)).ljust(
            hdrsize or align, b"\0"
        ),
        (cpu_midmag or midmag(1, 0, 0x8FAC)) + struct.pack("<I", len(cpu) if cpu_size is None else cpu_size),
        bytes(seghdrsize - 8),
        cpu,
        (data_midmag or midmag(2, 0, 0x8FAC))
        + struct.pack("<I", size & 0xFFFFFFFF if data_size is None else data_size),
        bytes(seghdrsize - 8),
        *memory.values(),
    ]
    return b"".join(parts)
