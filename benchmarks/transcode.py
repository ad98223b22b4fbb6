"""Write a kdump-compressed dump again with another compression, page by page, without holding it in memory."""

from __future__ import annotations

import struct
from pathlib import Path

from kvm_dbg.image.base import MemoryImage
from kvm_dbg.image.flattened import SIGNATURE, FlattenedSource
from kvm_dbg.image.kdump_header import read_header
from kvm_dbg.image.source import FileSource, Source
from tests.writers.kdump import FLAGS, compress


def transcode(path: Path, image: MemoryImage, method: str, out: Path) -> int:
    """Write the dump `path`, which `image` is open on, to `out`; return the number of its pages.

    The copy has the headers and bitmaps of the original. Pages that `method` does not make smaller are stored as they
    are, as makedumpfile stores them, and pages of zeros share one place.
    """
    source: Source = FileSource(path)
    if source.read(0, 16) == SIGNATURE:
        source = FlattenedSource(source)
    header = read_header(source)
    head = bytearray(source.read(0, header.descriptor_offset))
    struct.pack_into(header.order + "I", head, 424 if header.word_bits == 64 else 412, FLAGS[method])
    rows: list[bytes] = []
    block = header.block_size
    count = sum(run.size for run in image.coverage() if run.presence.value == "present") // block
    place = header.descriptor_offset + 24 * count
    zeros = b""
    with out.open("wb") as file:
        file.write(head)
        file.seek(place)
        for _, chunk in image.for_each_chunk():
            for at in range(0, len(chunk), block):
                page = chunk[at : at + block]
                if not any(page) and zeros:
                    rows.append(zeros)
                    continue
                packed, flag = compress(method, page), FLAGS[method]
                if len(packed) >= block:
                    packed, flag = page, 0
                rows.append(struct.pack(header.order + "QIIQ", place, len(packed), flag, 0))
                if not any(page):
                    zeros = rows[-1]
                file.write(packed)
                place += len(packed)
        file.seek(header.descriptor_offset)
        file.write(b"".join(rows))
    source.close()
    return count
