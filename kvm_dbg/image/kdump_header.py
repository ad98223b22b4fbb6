"""Headers of kdump-compressed files, as they lie in the file.

Facts: makedumpfile's diskdump_mod.h (`disk_dump_header`, `kdump_sub_header`, `page_desc_t`, which header version added
which member) and QEMU's include/sysemu/dump.h (the same, packed). `long`, `off_t` and `timeval` differ by machine:
64-bit; 32-bit with 64-bit members aligned to 4 (i386, and QEMU for all); 32-bit with them aligned to 8 (ARM).

In blocks of `block_size`: 0 the header, 1 the sub header, notes and so on (`sub_hdr_size` blocks), then `bitmap_blocks`
blocks of bitmaps (which pages exist; which pages are dumped), then a descriptor for each dumped page.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from kvm_dbg.errors import FormatError
from kvm_dbg.image.source import Source

SIGNATURES = (b"KDUMP   ", b"DISKDUMP")
INCOMPLETE = 0x8
FLAGS = {0x1: "zlib", 0x2: "lzo", 0x4: "snappy", 0x20: "zstd"}
DESCRIPTOR = "QIIQ"  # offset, size, flags, page_flags
DESCRIPTOR_SIZE = 24
NEWEST_VERSION = 6
_UTSNAME = ("sysname", "nodename", "release", "version", "machine", "domainname")
_MIN_BLOCK, _MAX_BLOCK = 512, 1 << 20
_COUNTS = "IIIIIIIIIi"
_SUB_64 = "QIIQQQQQQQQQQQ"
_SUB_PACKED = "IIIIIQIQIQIQQQ"
_SUB_PADDED = "IIIII4xQI4xQI4xQI4xQQQ"


class Area(NamedTuple):
    """A part of the file: notes, VMCOREINFO, erase information."""

    offset: int
    size: int


class KdumpHeader(NamedTuple):
    """The header and the sub header; sizes in bytes unless they say blocks, page frame numbers in blocks."""

    signature: bytes
    order: str  # struct's byte-order character
    word_bits: int
    version: int
    uts: dict[str, str]
    status: int
    block_size: int
    sub_blocks: int
    bitmap_blocks: int
    max_mapnr: int
    cpus: int
    phys_base: int
    dump_level: int | None
    split: tuple[int, int] | None  # (start_pfn, end_pfn)
    vmcoreinfo: Area
    note: Area
    erase: Area

    @property
    def bitmap_offset(self) -> int:
        """Return the file offset of the first bitmap."""
        return (1 + self.sub_blocks) * self.block_size

    @property
    def descriptor_offset(self) -> int:
        """Return the file offset of the first page descriptor."""
        return (1 + self.sub_blocks + self.bitmap_blocks) * self.block_size


def read_header(source: Source) -> KdumpHeader:
    """Read and check the headers.

    Raises:
        FormatError: cut off, or a field is impossible.
    """
    head = source.read(0, 464)
    if len(head) < 464:
        raise FormatError(source.path, len(head), "disk_dump_header", "the file ends inside the header")
    order, version = _byte_order(source, head)
    bits, at = _word_size(source, head, order)
    status, block_size, sub_blocks, bitmap_blocks, max_mapnr, _, _, _, _, cpus = struct.unpack_from(
        order + _COUNTS, head, at
    )
    uts = {
        name: head[12 + 65 * i : 77 + 65 * i].split(b"\0", 1)[0].decode("utf-8", "replace")
        for i, name in enumerate(_UTSNAME)
    }
    none = Area(0, 0)
    fields = _read_sub_header(source, order, bits, version, block_size, sub_blocks)
    phys_base, level, split, start, end = fields[:5]
    if version >= 6:
        start, end, mapnr = fields[11:14]
        max_mapnr = mapnr or max_mapnr
    header = KdumpHeader(
        head[:8],
        order,
        bits,
        version,
        uts,
        status,
        block_size,
        sub_blocks,
        bitmap_blocks,
        max_mapnr,
        cpus,
        phys_base,
        level if version >= 1 and head[:1] == b"K" else None,
        (start, end) if version >= 2 and split else None,
        Area(*fields[5:7]) if version >= 3 else none,
        Area(*fields[7:9]) if version >= 4 else none,
        Area(*fields[9:11]) if version >= 5 else none,
    )
    _check(source, header, at)
    return header


def _byte_order(source: Source, head: bytes) -> tuple[str, int]:
    """Return struct's byte-order character and the header version, the one that is small in one order only."""
    for order in ("<", ">"):
        version: int = struct.unpack_from(order + "i", head, 8)[0]
        if 0 <= version < 256:
            return order, version
    raise FormatError(source.path, 8, "header_version", f"{head[8:12].hex()} is small in neither byte order")


def _word_size(source: Source, head: bytes, order: str) -> tuple[int, int]:
    """Return 32 or 64, and the offset of `status`; the right one has sizes that fit each other."""
    best: tuple[int, int, int] | None = None
    for bits, at in ((64, 424), (32, 412)):
        _, block_size, sub_blocks, bitmap_blocks, max_mapnr = struct.unpack_from(order + "IIIII", head, at)
        if not _MIN_BLOCK <= block_size <= _MAX_BLOCK or block_size & block_size - 1:
            continue
        capacity = bitmap_blocks * block_size * 8
        # both bitmaps are as large as needed, and no larger: the strongest of the signs
        fits = capacity >= max_mapnr > 0
        snug = fits and capacity // 2 - block_size * 8 < max_mapnr
        score = 2 * fits + snug + (0 < sub_blocks <= 1 << 16)
        if best is None or score > best[0]:
            best = score, bits, at
    if best is None:
        raise FormatError(source.path, 428, "block_size", "no power of two between 512 bytes and 1 MiB is there")
    return best[1], best[2]


def _read_sub_header(source: Source, order: str, bits: int, version: int, block: int, blocks: int) -> tuple[int, ...]:
    """Return the sub header's members in the order of `kdump_sub_header`; what is not in the file is 0."""
    if blocks == 0 or version == 0:
        return (0,) * 14
    data = source.read(block, min(block * blocks, 104))
    if len(data) < min(104, block * blocks):
        raise FormatError(source.path, block + len(data), "kdump_sub_header", "the file ends inside the sub header")
    if bits == 64:
        return struct.unpack_from(order + _SUB_64, data)
    packed = struct.unpack_from(order + _SUB_PACKED, data)
    padded = struct.unpack_from(order + _SUB_PADDED, data)
    if version < 3:
        return packed
    first, last = block, (1 + blocks) * block
    plausible = [
        all(row[i] + row[i + 1] <= last and (row[i] > first or not row[i + 1]) for i in (5, 7, 9)[: version - 2])
        for row in (packed, padded)
    ]
    return padded if plausible == [False, True] else packed


def _check(source: Source, header: KdumpHeader, at: int) -> None:
    """Raise FormatError where a field contradicts the others."""
    path = source.path
    if header.sub_blocks > 1 << 20:
        raise FormatError(path, at + 8, "sub_hdr_size", f"{header.sub_blocks} blocks are too many")
    if header.max_mapnr == 0:
        raise FormatError(path, at + 16, "max_mapnr", "is 0: the dump describes no memory")
    if header.max_mapnr > (1 << 64) // header.block_size:
        raise FormatError(path, at + 16, "max_mapnr", f"{header.max_mapnr:#x} blocks are more than 64 bits address")
    if header.bitmap_blocks * header.block_size * 8 < header.max_mapnr:
        raise FormatError(
            path,
            at + 12,
            "bitmap_blocks",
            f"{header.bitmap_blocks} blocks of bitmap cannot describe {header.max_mapnr} blocks of memory",
        )
    if header.split is not None and not header.split[0] <= header.split[1]:
        start, end = header.split
        raise FormatError(path, header.block_size, "start_pfn", f"{start:#x} is above end_pfn {end:#x}")
