"""Write makedumpfile's flattened streams."""

from __future__ import annotations

import struct
from collections.abc import Iterable

SIGNATURE = b"makedumpfile".ljust(16, b"\0")


def write_stream(records: Iterable[tuple[int, bytes]], *, end: bool = True) -> bytes:
    """Return a stream of (file offset, bytes) records."""
    out = [(SIGNATURE + struct.pack(">qq", 1, 1)).ljust(4096, b"\0")]
    for offset, data in records:
        out.append(struct.pack(">qq", offset, len(data)) + data)
    if end:
        out.append(struct.pack(">qq", -1, -1))
    return b"".join(out)


def write_flattened(data: bytes, size: int = 1000, *, end: bool = True) -> bytes:
    """Return `data` as a stream of records of `size` bytes; runs of zeros are left out, as sparse writers do."""
    records = [(at, data[at : at + size]) for at in range(0, len(data), size)]
    kept = [record for record in records[:-1] if any(record[1])] + records[-1:]
    return write_stream(kept, end=end)
