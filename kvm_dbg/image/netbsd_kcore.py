"""NetBSD's crash dumps: savecore's file, and the dump partition as the kernel wrote it.

Facts: see `netbsd_kcore_header`. Memory is packed: segment after segment, without gaps. The format of sparse and full
dumps (sysctl machdep.sparse_dump) is the same, the list of segments is finer: a sparse dump leaves out user memory,
the file cache and free pages. Nothing says which of the two a dump is, but the segments of a full dump are the
kernel's mem_clusters, of which there are at most VM_PHYSSEG_MAX (sys/arch/amd64/include/vmparam.h): where there are
more, memory between them was left out.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from itertools import accumulate, pairwise, repeat
from typing import Final

from kvm_dbg.errors import FormatError, UnknownFormatError, UnsupportedError
from kvm_dbg.image.base import ImageInfo, Presence
from kvm_dbg.image.extent import Extent, ExtentImage, arrange, for_each_part
from kvm_dbg.image.netbsd_kcore_header import (
    KCORE_HDR_SIZE,
    KCORE_MAGIC,
    KCORE_SEG_SIZE,
    MACHINES,
    KcoreHeader,
    is_partition,
    is_savecore_file,
    read_partition_header,
    read_savecore_header,
)
from kvm_dbg.image.source import Source

NAME = "netbsd"
PARTITION = "netbsd-dump"
BLOCK: Final = 512  # bytes of disk (DEV_BSIZE); a dump starts at a multiple
MAX_CLUSTERS: Final = 64  # VM_PHYSSEG_MAX of amd64 has been up to 64
VIDEO_HOLE: Final = (0xA0000, 0x100000)  # no PC has memory here
_CHUNK = 1 << 20
_START = re.compile(rb"[\x04-\x07](?s:.)" + re.escape(KCORE_MAGIC.to_bytes(2, "big")))  # CORE_CPU, any machine


def probe(source: Source) -> bool:
    """Tell whether the file is one that savecore wrote."""
    return is_savecore_file(source.read(0, KCORE_HDR_SIZE))


def probe_partition(source: Source, offset: int = 0) -> bool:
    """Tell whether a dump as the kernel writes it starts at `offset` bytes of a partition."""
    return is_partition(source.read(offset, KCORE_SEG_SIZE))


def find_dump(source: Source) -> int:
    """Return the lowest offset at which a dump starts whose header can be read; reads all before it.

    Raises:
        FormatError: what starts like a dump is none, anywhere.
        UnsupportedError: what starts like a dump is of a machine whose dumps are not read.
        UnknownFormatError: nothing starts like a dump.
    """
    problem: FormatError | UnsupportedError | None = None
    for place in range(0, source.size, _CHUNK):
        for match in _START.finditer(source.read(place, _CHUNK)):
            offset = place + match.start()
            if offset % BLOCK == 0 and is_partition(source.read(offset, KCORE_SEG_SIZE)):
                try:
                    read_partition_header(source, offset)
                    return offset
                except (FormatError, UnsupportedError) as error:
                    problem = problem or error
    raise problem or UnknownFormatError(source.path, "no crash dump of NetBSD starts anywhere in it")


class NetbsdImage(ExtentImage):
    """A crash dump of NetBSD.

    Args:
        source: the file; closed with the image.
        offset: where the dump starts on a partition; None for savecore's file.

    Attributes:
        header: what the headers say.

    Raises:
        FormatError: a header is impossible.
        UnsupportedError: the dump is of a machine whose dumps are not read.
    """

    def __init__(self, source: Source, offset: int | None = None) -> None:
        self._offset = offset
        self.header = read_savecore_header(source) if offset is None else read_partition_header(source, offset)
        self._size = self.header.size
        self._sparse = len(self.header.starts) > MAX_CLUSTERS
        extents = _place(source, self.header, self._size)
        super().__init__(source, list(_for_each_with_gaps(extents)) if self._sparse else extents)

    @property
    def info(self) -> ImageInfo:
        header, source = self.header, self._source
        complete = source.ended and header.offset + self._size <= source.size
        quirks = [] if complete else ["the file is truncated: memory at its end is missing"]
        if self._sparse:
            quirks.append("a sparse dump: user memory, the file cache and free pages were left out")
        if header.said is not None and header.said != self._size & 0xFFFFFFFF:
            quirks.append(f"CORE_DATA's c_size is {header.said}, the segments have {self._size} bytes (modulo 2^32)")
        rest = source.size - header.offset - self._size
        if rest > 0 and self._offset is None:
            quirks.append(f"{rest} bytes at the end belong to no segment")
        details = [("machine id", f"{header.mid} ({MACHINES[header.mid]})"), ("segments", str(len(header.starts)))]
        if self._offset is not None:
            details.append(("offset", f"{self._offset:#x}"))
        return ImageInfo(
            NAME if self._offset is None else PARTITION,
            "savecore" if self._offset is None else "the kernel (not yet saved by savecore)",
            header.machine.name,
            "little",
            header.machine.word_bits,
            complete=complete,
            quirks=tuple(quirks),
            details=(*details, *source.describe()),
            system="NetBSD",
            root=header.root,
            pae=header.pae,
        )


def _place(source: Source, header: KcoreHeader, size: int) -> list[Extent]:
    """Return where the segments are, ascending; `size` is the sum of theirs."""
    starts, sizes = header.starts, header.sizes
    ends = list(map(operator.add, starts, sizes))
    places = list(accumulate(sizes, initial=header.offset))[:-1]
    if source.is_written(header.offset, size):
        extents = list(map(Extent, starts, ends, repeat(Presence.PRESENT), map(operator.sub, places, starts)))
    else:
        extents = []
        for start, length, place in zip(starts, sizes, places, strict=True):
            extents.extend(for_each_part(source, start, place, length))
    ordered = all(map(operator.le, ends, starts[1:])) and 0 not in sizes
    return extents if ordered else arrange(extents)


def _for_each_with_gaps(extents: list[Extent]) -> Iterator[Extent]:
    """Yield extents, and what a sparse dump left out before and between them."""
    yield from _for_each_gap(0, extents[0].start)
    for extent, following in pairwise(extents):
        yield extent
        if extent.end < following.start:
            yield from _for_each_gap(extent.end, following.start)
    yield extents[-1]


def _for_each_gap(start: int, end: int) -> Iterator[Extent]:
    low, high = VIDEO_HOLE
    for part_start, part_end in ((start, min(end, low)), (max(start, high), end)):
        if part_start < part_end:
            yield Extent(part_start, part_end, Presence.EXCLUDED, 0)
