"""Write LiME images."""

from __future__ import annotations

import struct
from collections.abc import Iterable


def write_lime(ranges: Iterable[tuple[int, bytes]], *, order: str = "<", version: int = 1) -> bytes:
    """Return an image of (physical address, bytes) ranges."""
    out = b""
    for paddr, data in ranges:
        out += struct.pack(order + "IIQQ8x", 0x4C694D45, version, paddr, paddr + len(data) - 1) + data
    return out
