"""Read makedumpfile's flattened streams as the files that they stand for.

Facts: makedumpfile.h, `struct makedumpfile_header` (signature, type 1, version 1, all big-endian, in 4096 bytes) and
`struct makedumpfile_data_header` (int64 offset, int64 buf_size, big-endian) before each record; a header of two -1
ends the stream. `makedumpfile -F` writes them, and QEMU's `dump-guest-memory -z` does even into a file.

Only an index of the records is kept, 24 bytes for each: the data stay where they are. Records may overwrite earlier
ones; the last one wins. Bytes that no record wrote read as zero, as in the sparse file that `makedumpfile -R` makes.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import pairwise

from kvm_dbg.errors import FormatError, UnsupportedError
from kvm_dbg.image.source import Source, Stretch

SIGNATURE = b"makedumpfile\0"  # in 16 bytes, of which makedumpfile 1.6.8 leaves the last three as they happen to be
HEADER_SIZE = 4096
MAX_RECORDS = 1 << 24
MAX_EMPTY = 1 << 16  # records without data, which no writer makes
_LIMIT = 1 << 62  # file offsets above this are nonsense
_WINDOW = 1 << 16


class FlattenedSource(Source):
    """The file inside a flattened stream.

    Args:
        stream: the stream; closed with this source.

    Raises:
        FormatError: the stream's header or a record header is impossible.
        UnsupportedError: more than MAX_RECORDS records.
    """

    def __init__(self, stream: Source) -> None:
        self.path = stream.path
        self.container = f"flattened, {stream.container}" if stream.container else "flattened"
        self._stream = stream
        kind, version = _read_header(stream)
        if kind != 1 or version != 1:
            field = "version" if kind == 1 else "type"
            raise FormatError(self.path, 24 if kind == 1 else 16, field, f"{version if kind == 1 else kind} is not 1")
        self._starts = array("Q")
        self._sizes = array("Q")
        self._places = array("Q")
        self.ended = self._index()
        self._order()
        self.size = self._starts[-1] + self._sizes[-1] if self._starts else 0

    def _index(self) -> bool:
        """Walk the record headers; return True if the end marker was there."""
        header = struct.Struct(">qq")
        place = HEADER_SIZE
        total = self._stream.size
        starts, sizes, places = self._starts, self._sizes, self._places
        window, window_at, ahead = b"", 0, _WINDOW
        empty = 0
        while place + 16 <= total:
            at = place - window_at
            if at + 16 > len(window):
                window, window_at, at = self._stream.read(place, ahead), place, 0
            offset, size = header.unpack_from(window, at)
            if offset == -1 and size == -1:
                return True
            if not 0 <= offset < _LIMIT:
                raise FormatError(self.path, place, "offset", f"a record for file offset {offset} cannot be")
            if not 0 <= size < _LIMIT:
                raise FormatError(self.path, place + 8, "buf_size", f"a record of {size} bytes cannot be")
            place += 16
            held = min(size, total - place)
            if held:
                starts.append(offset)
                sizes.append(held)
                places.append(place)
                if len(starts) > MAX_RECORDS:
                    raise UnsupportedError(
                        f"a flattened stream of more than {MAX_RECORDS} records",
                        f"{self.path}: rearrange it first: makedumpfile -R OUTPUT < {self.path}",
                    )
            else:
                empty += 1
                if empty > MAX_EMPTY:
                    raise FormatError(self.path, place - 16, "buf_size", f"more than {MAX_EMPTY} empty records")
            ahead = 16 if held > 1024 else _WINDOW  # large records: skip the data, small ones: read through them
            place += size
        return False

    def _order(self) -> None:
        """Sort the index by file offset, and cut records where later ones overwrite them."""
        starts, sizes = self._starts, self._sizes
        count = len(starts)
        if any(one > two for one, two in pairwise(starts)):
            order = sorted(range(count), key=starts.__getitem__)
            rows = [array("Q", map(column.__getitem__, order)) for column in (starts, sizes, self._places)]
            self._starts, self._sizes, self._places = rows
            starts, sizes = rows[0], rows[1]
        if any(starts[i] + sizes[i] > starts[i + 1] for i in range(count - 1)):
            self._cut()

    def _cut(self) -> None:
        """Replace overlapping records by pieces that do not overlap; a record later in the stream wins."""
        starts, sizes, places = self._starts, self._sizes, self._places
        edges = sorted(set(starts) | {start + size for start, size in zip(starts, sizes, strict=True)})
        cut = (array("Q"), array("Q"), array("Q"))
        active: list[tuple[int, int]] = []  # a heap: the last in the stream first
        following = 0
        for low, high in pairwise(edges):
            while following < len(starts) and starts[following] <= low:
                heappush(active, (-places[following], following))
                following += 1
            while active and starts[active[0][1]] + sizes[active[0][1]] <= low:
                heappop(active)
            if active:
                best = active[0][1]
                for column, value in zip(cut, (low, high - low, places[best] + low - starts[best]), strict=True):
                    column.append(value)
        self._starts, self._sizes, self._places = cut

    def read(self, offset: int, size: int) -> bytes:
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        index = max(bisect_right(self._starts, offset) - 1, 0)
        start, held = self._starts[index], self._sizes[index]
        if start <= offset and end <= start + held:
            return self._stream.read(self._places[index] + offset - start, end - offset)
        parts = []
        for stretch in self._records(offset, end - offset):
            if not stretch.written:
                parts.append(bytes(stretch.size))
                continue
            index = bisect_right(self._starts, stretch.offset) - 1
            place = self._places[index] + stretch.offset - self._starts[index]
            parts.append(self._stream.read(place, stretch.size))
        return b"".join(parts)

    def _records(self, offset: int, size: int) -> Iterator[Stretch]:
        """Yield the stretches of [offset, offset + size) that records wrote, and those between."""
        end = offset + size
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while offset < end and index < len(self._starts):
            start = self._starts[index]
            stop = min(start + self._sizes[index], end)
            index += 1
            if start >= end:
                break
            if stop <= offset:
                continue
            if start > offset:
                yield Stretch(offset, start - offset, False)
                offset = start
            yield Stretch(offset, stop - offset, True)
            offset = stop
        if offset < end:
            yield Stretch(offset, end - offset, False)

    def for_each_stretch(self, offset: int, size: int) -> Iterator[Stretch]:
        # in a whole stream, what no record wrote is zeros; in one that was cut off it may have been on its way
        return super().for_each_stretch(offset, size) if self.ended else self._records(offset, size)

    def is_written(self, offset: int, size: int) -> bool:
        return offset + size <= self.size and (
            self.ended or all(stretch.written for stretch in self._records(offset, size))
        )

    def close(self) -> None:
        self._stream.close()


def _read_header(stream: Source) -> tuple[int, int]:
    """Return the stream's type and version.

    Raises:
        FormatError: the header is cut off.
    """
    head = stream.read(0, 32)
    if len(head) < 32:
        raise FormatError(stream.path, len(head), "makedumpfile_header", "the file ends inside the stream's header")
    kind, version = struct.unpack_from(">qq", head, 16)
    return kind, version
