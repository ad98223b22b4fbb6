"""Write FreeBSD's dump partitions: headers, key and dump.

By sys/sys/kerneldump.h (struct kerneldumpheader of versions 1 to 4, big-endian, its words' exclusive sum is 0) and
sys/kern/kern_shutdown.c, dump_start() and dump_finish() (the last header is in the last sector, the dump before it).
"""

from __future__ import annotations

import struct

KERNEL, TEXT, CLEARED = b"FreeBSD Kernel Dump", b"FreeBSD Text Dump", b"Cleared Kernel Dump"
SWAP = b"swapped out " * 43


def write_header(
    length: int,
    *,
    version: int = 4,
    magic: bytes = KERNEL,
    extent: int | None = None,
    key_size: int = 0,
    block: int = 512,
    compression: int = 0,
    parity: int | None = None,
) -> bytes:
    """Return a header of 512 bytes; `parity` replaces the right one."""
    extent = length if extent is None else extent
    texts = b"panicked.example.org".ljust(64, b"\0") + b"FreeBSD 14.1-RELEASE releng/14.1 GENERIC\n".ljust(192, b"\0")
    head = magic.ljust(20, b"\0") + b"amd64".ljust(12, b"\0") + struct.pack(">IIQ", version, 2, length)
    when = struct.pack(">Q", 1700000000)  # 2023-11-14 22:13:20 UTC
    panic = b"kdb_sysctl_panic"
    if version == 1:
        head += when + struct.pack(">I", block) + texts + panic.ljust(192, b"\0")
    elif version == 2:
        head += when + struct.pack(">II", key_size, block) + texts + panic.ljust(188, b"\0")
    elif version == 3:
        head += struct.pack(">Q", extent) + when + struct.pack(">IIB", key_size, block, compression)
        head += texts + panic.ljust(179, b"\0")
    else:
        head += when + struct.pack(">II", key_size, block) + texts + panic.ljust(175, b"\0")
        head += struct.pack(">BQI", compression, extent, 0)
    assert len(head) == 508
    if parity is None:
        parity = 0
        for (word,) in struct.iter_unpack(">I", head):
            parity ^= word
    return head + struct.pack(">I", parity)


def write_partition(
    dump: bytes,
    *,
    before: int = 64,
    block: int = 512,
    key: bytes = b"",
    room: int = 0,
    first: bytes | None = None,
    last: bytes | None = None,
    version: int = 4,
    magic: bytes = KERNEL,
    compression: int = 0,
) -> bytes:
    """Return a partition with the dump at its end.

    before: blocks of swapped pages in front. room: bytes that were reserved and not needed, as compressed dumps leave.
    first, last: replace the headers.
    """
    extent = -(-(len(dump) + room) // block) * block
    header = write_header(
        len(dump) if compression or room else extent,
        version=version,
        magic=magic,
        extent=extent,
        key_size=len(key),
        block=block,
        compression=compression,
    )
    front = (SWAP * (before * block // len(SWAP) + 1))[: before * block]
    parts = [
        front,
        (first or header).ljust(block, b"\0"),
        key,
        dump.ljust(extent, b"\0"),
        (last or header).ljust(block, b"\0"),
    ]
    return b"".join(parts)
