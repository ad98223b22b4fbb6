"""One file of a kdump-compressed dump: from a page frame number to the page's bytes.

Files differ only in which page frames they hold the data of; bitmaps are whole in each of a split set. The place of a
page's descriptor is the count of dumped pages before it, from the file's first page frame on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kvm_dbg.errors import FormatError, UnsupportedError
from kvm_dbg.image.bitmap import GROUP, Bitmap
from kvm_dbg.image.codec import Codec, CodecError, codec_for
from kvm_dbg.image.kdump_header import DESCRIPTOR, DESCRIPTOR_SIZE, FLAGS, INCOMPLETE, KdumpHeader
from kvm_dbg.image.source import Source

AHEAD = 1 << 20  # bytes of compressed pages read at a time
_NEAR = 1 << 16  # the same, where pages are asked for one by one in order
_GROUPS_KEPT = 1024  # groups of descriptors in memory, 12 KiB each
_MAX_BITMAP = 1 << 33  # bytes: 256 TiB of memory in pages of 4 KiB
_TAIL_BATCHES = 64
_CODECS = 0x27

Row = tuple[int, int, int, int]  # a descriptor: offset, size, flags, page_flags
Group = tuple[int, int, bytes]  # which pages are dumped, the number of the first descriptor, the descriptors


class KdumpPart:
    """One file.

    Attributes:
        start, end: the page frames whose data it holds, [start, end).
        dumped: which pages are in the dump.
        exists: which pages are memory, None if the file does not say.

    Raises:
        UnsupportedError: bitmaps of more than 8 GiB.
    """

    __slots__ = (
        "_base", "_block", "_check", "_codecs", "_descriptor", "_groups", "_limit", "_window", "_window_at", "_zero_at",
        "_zeros", "dumped", "end", "exists", "header", "source", "start",
    )  # fmt: skip

    def __init__(self, source: Source, header: KdumpHeader) -> None:
        self.source = source
        self.header = header
        self._block = block = header.block_size
        self._limit = block + block // 8 + 1024  # no compressor makes a page larger
        size = header.bitmap_blocks * block
        if size > _MAX_BITMAP:
            raise UnsupportedError(f"a bitmap of {size} bytes", source.path)
        offset = header.bitmap_offset
        if header.max_mapnr <= size // 2 * 8:
            self.exists: Bitmap | None = Bitmap(source, offset, size // 2)
            self.dumped = Bitmap(source, offset + size // 2, size // 2)
        else:  # the oldest files have one bitmap only
            self.exists = None
            self.dumped = Bitmap(source, offset, size)
        self.start, self.end = 0, header.max_mapnr
        if header.split is not None:
            self.start, self.end = header.split[0], min(header.split[1], header.max_mapnr)
        self._descriptor = struct.Struct(header.order + DESCRIPTOR)
        self._codecs: dict[int, Codec] = {}
        self._groups: dict[int, Group] = {}
        self._base = -1  # number of dumped pages before `start`; counted when needed
        self._check = not source.ended
        self._window = b""
        self._window_at = 0
        self._zero_at = -1  # file offset of the page of zeros that others share
        self._zeros = bytes(block)

    def _rank(self, pfn: int) -> int:
        """Return the number of the descriptor of `pfn`, or of the first one after it."""
        if self._base < 0:
            self._base = self.dumped.rank(self.start) if self.start else 0
        return self.dumped.rank(pfn) - self._base

    def group(self, number: int) -> Group:
        """Return what the file says of the GROUP pages from number * GROUP on."""
        known = self._groups.get(number)
        if known is not None:
            return known
        bits, _ = self.dumped.group(number)
        first = number * GROUP
        if first < self.start:
            bits = bits >> (self.start - first) << (self.start - first)
        if first + GROUP > self.end:
            bits &= (1 << max(self.end - first, 0)) - 1
        index = self._rank(max(first, self.start))
        place = self.header.descriptor_offset + index * DESCRIPTOR_SIZE
        data = self.source.read(place, bits.bit_count() * DESCRIPTOR_SIZE) if bits else b""
        if len(self._groups) >= _GROUPS_KEPT:
            del self._groups[next(iter(self._groups))]
        self._groups[number] = bits, index, data
        return self._groups[number]

    def load(self, pfn: int, near: bool) -> bytes | None:
        """Return the page `pfn`, None if it is not dumped or truncated; `near`: one shortly before it was just read.

        Raises:
            FormatError: its descriptor or its bytes are damaged.
        """
        bits, index, data = self.group(pfn // GROUP)
        shift = pfn % GROUP
        if not bits >> shift & 1:
            return None
        at = (bits & (1 << shift) - 1).bit_count() * DESCRIPTOR_SIZE
        if at + DESCRIPTOR_SIZE > len(data):
            return None
        row: Row = self._descriptor.unpack_from(data, at)
        place = self.header.descriptor_offset + index * DESCRIPTOR_SIZE + at
        return self._unpack(row, place, _NEAR if near else 0)

    def for_each_page(self, number: int, first: int, count: int) -> Iterator[bytes | None]:
        """Yield `count` dumped pages from bit `first` of group `number` on; None for those that are truncated.

        Raises:
            FormatError: a descriptor or a page is damaged.
        """
        bits, index, data = self.group(number)
        skip = (bits & (1 << first) - 1).bit_count()
        rows = data[skip * DESCRIPTOR_SIZE : (skip + count) * DESCRIPTOR_SIZE]
        rows = rows[: len(rows) // DESCRIPTOR_SIZE * DESCRIPTOR_SIZE]
        parsed: list[Row] = list(self._descriptor.iter_unpack(rows))
        ahead = min(sum(min(row[1], self._limit) for row in parsed), AHEAD)
        place = self.header.descriptor_offset + (index + skip) * DESCRIPTOR_SIZE
        for row in parsed:
            yield self._unpack(row, place, ahead)
            ahead -= row[1]
            if ahead <= 0:
                ahead = AHEAD
            place += DESCRIPTOR_SIZE
        for _ in range(count - len(parsed)):
            yield None

    def _unpack(self, row: Row, place: int, ahead: int) -> bytes | None:
        """Return the page that a descriptor stands for, None if its bytes are not in the file.

        Args:
            row: the descriptor.
            place: its file offset.
            ahead: bytes to read from the page's place on, if it must be read.
        """
        offset, size, flags, _ = row
        if offset == self._zero_at:
            return self._zeros
        at = offset - self._window_at
        outside = at < 0 or at + size > len(self._window) or size == 0
        if (outside or self._check) and not self._is_there(offset, size, place):
            return None
        if outside:
            self._window = self.source.read(offset, max(size, ahead))
            self._window_at, at = offset, 0
            if len(self._window) < size:
                return None
        packed = self._window[at : at + size]
        if flags == 0:
            if size != self._block:
                raise FormatError(
                    self.source.path, place + 8, "size", f"an uncompressed page of {size} bytes cannot be"
                )
            page = packed
        else:
            codec = self._codecs.get(flags) or self._codec(flags, place)
            if size == 0 or size > self._limit:
                raise FormatError(self.source.path, place + 8, "size", f"a compressed page of {size} bytes cannot be")
            try:
                page = codec(packed)
            except CodecError as error:
                raise FormatError(self.source.path, offset, "page data", str(error)) from error
        if page == self._zeros:
            self._zero_at = offset
        return page

    def _is_there(self, offset: int, size: int, place: int) -> bool:
        """Tell whether a page's bytes are in the file.

        Raises:
            FormatError: the descriptor is impossible.
        """
        if offset == 0 and size == 0:
            return False  # a descriptor that was never written
        if size == 0 or size > self._limit:
            if size == 0 and self.header.status & INCOMPLETE:
                return False
            raise FormatError(self.source.path, place + 8, "size", f"a page of {size} bytes cannot be")
        if offset + size > self.source.size:
            return False
        if offset < self.header.block_size:
            raise FormatError(self.source.path, place, "offset", f"page data at {offset:#x}, inside the header")
        return not self._check or self.source.is_written(offset, size)

    def _codec(self, flags: int, place: int) -> Codec:
        """Return the decompressor for a descriptor's flags, and keep it."""
        name = FLAGS.get(flags & _CODECS)
        if name is None:
            if flags & _CODECS == 0:
                raise FormatError(self.source.path, place + 12, "flags", f"{flags:#x} is unknown")
            raise FormatError(self.source.path, place + 12, "flags", f"{flags:#x} names more than one compression")
        self._codecs[flags] = codec = codec_for(name, self._block)
        return codec

    def is_whole(self) -> bool:
        """Tell whether all dumped pages can be expected to be there, by the end of the file and of the descriptors."""
        count = self._rank(self.end)
        start = self.header.descriptor_offset
        if self.header.status & INCOMPLETE or self._check or start + count * DESCRIPTOR_SIZE > self.source.size:
            return False
        if self.dumped.readable < self.end:
            return False
        # the data lie in the order of the descriptors, but for pages of zeros, which share one place near the start
        last = count
        for _ in range(_TAIL_BATCHES):
            first = max(last - GROUP, 0)
            data = self.source.read(start + first * DESCRIPTOR_SIZE, (last - first) * DESCRIPTOR_SIZE)
            rows: list[Row] = list(self._descriptor.iter_unpack(data))
            if any(row[0] + row[1] > self.source.size or row[1] == 0 for row in rows):
                return False
            last = first
            if last == 0 or len({row[0] for row in rows}) > 1:
                break
        return True

    def for_each_kept(self, first: int, last: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (first, last, is there) for the dumped pages [first, last), by looking at each descriptor."""
        pending: tuple[int, int, bool] | None = None
        while first < last:
            number, shift = divmod(first, GROUP)
            bits, _, data = self.group(number)
            stop = min(last, (number + 1) * GROUP)
            at = (bits & (1 << shift) - 1).bit_count() * DESCRIPTOR_SIZE
            for pfn in range(first, stop):
                there = at + DESCRIPTOR_SIZE <= len(data)
                if there:
                    offset, size, _, _ = self._descriptor.unpack_from(data, at)
                    there = size > 0 and offset + size <= self.source.size
                    there = there and (not self._check or self.source.is_written(offset, size))
                at += DESCRIPTOR_SIZE
                if pending is not None and pending[2] is there:
                    pending = pending[0], pfn + 1, there
                    continue
                if pending is not None:
                    yield pending
                pending = pfn, pfn + 1, there
            first = stop
        if pending is not None:
            yield pending

    def sample(self) -> set[str]:
        """Return the names of the compressions among the first descriptors ("" for none)."""
        data = self.source.read(self.header.descriptor_offset, min(self._rank(self.end), GROUP) * DESCRIPTOR_SIZE)
        data = data[: len(data) // DESCRIPTOR_SIZE * DESCRIPTOR_SIZE]
        return {FLAGS.get(row[2] & _CODECS, "") for row in self._descriptor.iter_unpack(data) if row[1]}
