"""LiME images: ranges of RAM, each behind a header of its own.

Facts: LiME's src/lime.h, `lime_mem_range_header` (u32 magic 0x4C694D45, u32 version 1, u64 s_addr, u64 e_addr
inclusive, u8 reserved[8]; in the byte order of the machine). Its "padded" and "raw" outputs have no headers: they are
raw RAM.
"""

from __future__ import annotations

import struct

from kvm_dbg.errors import FormatError, UnsupportedError
from kvm_dbg.image.base import ImageInfo, Presence
from kvm_dbg.image.extent import Extent, ExtentImage, arrange, for_each_part
from kvm_dbg.image.source import Source

NAME = "lime"
MAGIC = 0x4C694D45
HEADER_SIZE = 32
MAX_RANGES = 1 << 16
_PAGE = 4096


def probe(source: Source) -> bool:
    """Tell whether the file is a LiME image.

    Raises:
        FormatError: the first header is cut off.
        UnsupportedError: a version other than 1.
    """
    head = source.read(0, HEADER_SIZE)
    for order in ("<", ">"):
        if head[:4] == struct.pack(order + "I", MAGIC):
            if len(head) < HEADER_SIZE:
                raise FormatError(source.path, len(head), "lime_header", "the file ends inside the first header")
            version = struct.unpack_from(order + "I", head, 4)[0]
            if version != 1:
                raise UnsupportedError(f"LiME version {version}", source.path)
            return True
    return False


class LimeImage(ExtentImage):
    """A LiME image, version 1.

    Raises:
        FormatError: a header is impossible.
    """

    def __init__(self, source: Source) -> None:
        self._order = "<" if source.read(0, 1) == b"E" else ">"
        self._ranges = 0
        self._rest = 0  # bytes at the end that belong to no range
        self._cut = False  # the file ends inside a header
        super().__init__(source, arrange(self._walk(source)))

    def _walk(self, source: Source) -> list[Extent]:
        header = struct.Struct(self._order + "IIQQ8x")
        extents: list[Extent] = []
        offset = 0
        while offset < source.size:
            head = source.read(offset, HEADER_SIZE)
            if len(head) < HEADER_SIZE or not any(head[:4]):
                padded = offset + _PAGE - 1 & ~(_PAGE - 1)
                if offset < padded < source.size and not any(source.read(offset, padded - offset)):
                    offset = padded
                    continue
                self._rest = source.size - offset
                self._cut = struct.pack(self._order + "I", MAGIC).startswith(head[:4])
                break
            magic, version, start, last = header.unpack(head)
            if magic != MAGIC:
                raise FormatError(source.path, offset, "magic", f"{magic:#x} is not LiME's, where a range should start")
            if version != 1:
                raise FormatError(source.path, offset + 4, "version", f"{version} is not 1")
            if last < start:
                raise FormatError(source.path, offset + 16, "e_addr", f"{last:#x} is below s_addr {start:#x}")
            self._ranges += 1
            if self._ranges > MAX_RANGES:
                raise FormatError(source.path, offset, "magic", f"more than {MAX_RANGES} ranges")
            size = last + 1 - start
            extents.extend(for_each_part(source, start, offset + HEADER_SIZE, size))
            offset += HEADER_SIZE + size
        return extents

    @property
    def info(self) -> ImageInfo:
        complete = (
            self._source.ended
            and not self._cut
            and all(extent.presence is Presence.PRESENT for extent in self._extents)
        )
        quirks = [] if complete else ["the file is truncated: memory at its end is missing"]
        if self._rest:
            quirks.append(f"{self._rest} bytes at the end belong to no range")
        return ImageInfo(
            NAME,
            "LiME (by its headers)",
            byteorder="little" if self._order == "<" else "big",
            complete=complete,
            quirks=tuple(quirks),
            details=(("ranges", str(self._ranges)), *self._source.describe()),
        )
