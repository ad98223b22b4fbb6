"""Write kdump-compressed dumps: header versions 1 to 6, both word sizes and byte orders, every compression."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Mapping

FLAGS = {"raw": 0, "zlib": 1, "lzo": 2, "snappy": 4, "zstd": 0x20}
METHODS = tuple(FLAGS)
UTS = ("Linux", "guest", "6.1.0-test", "#1 SMP", "x86_64", "(none)")


def compress(method: str, page: bytes) -> bytes:
    """Return the page, compressed by `method`."""
    if method == "zlib":
        return zlib.compress(page, 1)
    if method == "lzo":
        from lzallright import LZOCompressor

        return bytes(LZOCompressor().compress(page))
    if method == "snappy":
        from cramjam import snappy

        return bytes(snappy.compress_raw(page))
    if method == "zstd":
        import zstandard

        return zstandard.ZstdCompressor().compress(page)
    return page


def write_kdump(
    pages: Mapping[int, bytes],
    *,
    excluded: Iterable[int] = (),
    max_mapnr: int | None = None,
    method: str | Callable[[int], str] = "zlib",
    bits: int = 64,
    order: str = "<",
    version: int = 6,
    block: int = 4096,
    padded: bool = False,
    split: tuple[int, int] | None = None,
    status: int | None = None,
    level: int = 31,
    notes: bytes = b"",
    vmcoreinfo: bytes = b"",
    signature: bytes = b"KDUMP   ",
    uts: tuple[str, ...] = UTS,
    bitmaps: int = 2,
) -> bytes:
    """Return the file.

    pages: page frame number -> bytes of the dumped pages. method: for all pages, or for each. padded: align 64-bit
    members of the 32-bit sub header to 8. split: which page frames' data this file holds. bitmaps: 1 for the oldest
    diskdump files.
    """
    excluded = set(excluded)
    top = max_mapnr or max([*pages, *excluded]) + 1
    status = FLAGS[method] if status is None and isinstance(method, str) else status or 0
    bitmap_blocks = bitmaps * -(-top // (8 * block))
    sub_blocks = 1 + -(-(len(notes) + len(vmcoreinfo)) // block)

    header = signature + struct.pack(order + "i", version)
    header += b"".join(name.encode().ljust(65, b"\0") for name in uts)
    header = header.ljust(424 if bits == 64 else 412, b"\0")
    header += struct.pack(
        order + "IIIIIIIIIi",
        status,
        block,
        sub_blocks,
        bitmap_blocks,
        min(top, 0xFFFFFFFF),
        len(pages),
        0,
        len(pages),
        0,
        1,
    )
    start, end = split or (0, 0)
    vmcoreinfo_at = 2 * block if vmcoreinfo else 0
    notes_at = 2 * block + len(vmcoreinfo) if notes else 0
    layout = "QIIQQQQQQQQQQQ" if bits == 64 else "IIIII4xQI4xQI4xQI4xQQQ" if padded else "IIIIIQIQIQIQQQ"
    members = [
        0, level, int(split is not None), start, end,
        vmcoreinfo_at, len(vmcoreinfo), notes_at, len(notes), 0, 0, start, end, top,
    ]  # fmt: skip
    for since, index in ((1, 1), (2, 2), (3, 5), (4, 7), (5, 9), (6, 11)):
        if version < since:  # a reader must not look at members that its version does not have
            members[index:] = [0x0D15EA5E] * (14 - index)
            break
    sub = struct.pack(order + layout, *members)
    first = _bitmap(set(pages) | excluded, bitmap_blocks // bitmaps * block)
    second = _bitmap(pages, bitmap_blocks // bitmaps * block)
    out = header.ljust(block, b"\0") + sub.ljust(block, b"\0")
    out += (vmcoreinfo + notes).ljust((sub_blocks - 1) * block, b"\0")
    out += first + second if bitmaps == 2 else second

    kept = [pfn for pfn in sorted(pages) if split is None or start <= pfn < end]
    place = len(out) + 24 * len(kept)
    table, data, shared = b"", [], None
    for pfn in kept:
        page = pages[pfn]
        name = method if isinstance(method, str) else method(pfn)
        packed = compress(name, page)
        if len(packed) >= block:
            name, packed = "raw", page
        if not any(page) and shared is not None:
            table += shared
            continue
        row = struct.pack(order + "QIIQ", place, len(packed), FLAGS[name], 0)
        if not any(page):
            shared = row
        table += row
        data.append(packed)
        place += len(packed)
    return out + table + b"".join(data)


def _bitmap(pfns: Iterable[int], size: int) -> bytes:
    bits = bytearray(size)
    for pfn in pfns:
        bits[pfn >> 3] |= 1 << (pfn & 7)
    return bytes(bits)
