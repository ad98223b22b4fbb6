"""kdump-compressed dumps (and diskdump, their ancestor): makedumpfile's own format, which QEMU writes too.

The formats of the headers are in `kdump_header`, pages of one file in `kdump_part`; here files are joined into one
image, and missing pages told apart: a page that the first bitmap knows and the second one does not was excluded; one
that the second bitmap knows, but whose bytes are not there, is truncated; one that neither knows is a hole.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from kvm_dbg.errors import FormatError
from kvm_dbg.image.base import ImageInfo, MemoryImage, Note, Piece, Presence, Range
from kvm_dbg.image.bitmap import GROUP, UNIT, for_each_run
from kvm_dbg.image.kdump_header import FLAGS, INCOMPLETE, NEWEST_VERSION, SIGNATURES, KdumpHeader, read_header
from kvm_dbg.image.kdump_part import KdumpPart
from kvm_dbg.image.note import MAX_AREA, VMCOREINFO, find_vmcoreinfo_value, read_notes
from kvm_dbg.image.source import Source

NAME = "kdump"
_PAGES_KEPT = 256
_NEARBY = 8  # pages: reads that go forward by no more are taken for sequential ones
_MACHINES = {"i486": "i386", "i586": "i386", "i686": "i386", "ppc64le": "ppc64", "arm64": "aarch64"}
_UNKNOWN = ("", "Unknown")


def probe(source: Source) -> bool:
    """Tell whether the file is kdump-compressed.

    Raises:
        FormatError: the file ends inside the header.
    """
    head = source.read(0, 464)
    if head[:8] not in SIGNATURES:
        return False
    if len(head) < 464:
        raise FormatError(source.path, len(head), "disk_dump_header", "the file ends inside the header")
    return True


class KdumpImage(MemoryImage):
    """A kdump-compressed dump of one file, or of the files of a split set in any order.

    Raises:
        FormatError: a header is impossible, or the files are not of one set.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.paths = tuple(source.path for source in sources)
        parts = [KdumpPart(source, read_header(source)) for source in sources]
        first = parts[0].header
        for part in parts[1:]:
            _check_same_set(first, part)
        self._parts = sorted(parts, key=lambda part: part.start)
        for one, two in zip(self._parts, self._parts[1:], strict=False):
            if one.end > two.start:
                raise FormatError(
                    two.source.path, first.block_size, "start_pfn", f"holds pages that {one.source.path} holds too"
                )
        self._starts = [part.start for part in self._parts]
        self._header = first
        self._block = first.block_size
        self._shift = self._block.bit_length() - 1
        self._max_pfn = first.max_mapnr
        self._pages: dict[int, bytes] = {}  # recently read ones by page frame number, oldest first
        self._last = -_NEARBY - 1
        self._whole: bool | None = None
        self._info: ImageInfo | None = None
        self.notes, self._quirks = _read_notes(self._parts[0].source, first)

    def _find_part(self, pfn: int) -> KdumpPart | None:
        part = self._parts[bisect_right(self._starts, pfn) - 1]
        return part if part.start <= pfn < part.end else None

    def read(self, paddr: int, size: int) -> bytes:
        at = paddr & self._block - 1
        if not 0 < size <= self._block - at:
            return super().read(paddr, size)
        pfn = paddr >> self._shift
        page = self._pages.pop(pfn, None)
        if page is None:
            part = self._find_part(pfn)
            page = part.load(pfn, 0 < pfn - self._last <= _NEARBY) if part is not None else None
            if page is None:
                return super().read(paddr, size)  # which finds out why, and raises
            if len(self._pages) >= _PAGES_KEPT:
                del self._pages[next(iter(self._pages))]
        self._last = pfn
        self._pages[pfn] = page
        return page if size == self._block else page[at : at + size]

    def pieces(self, paddr: int, size: int) -> Iterator[Piece]:
        end = paddr + size
        shift, block = self._shift, self._block
        while paddr < end:
            pfn = paddr >> shift
            if pfn >= self._max_pfn:
                yield Piece(paddr, end - paddr, Presence.HOLE, None)
                return
            stop = min(-(-end >> shift), (pfn // GROUP + 1) * GROUP, self._max_pfn)
            for first, last, presence, data in self._for_each_run(pfn, stop):
                low, high = max(paddr, first << shift), min(end, last << shift)
                if data is None:
                    yield Piece(low, high - low, presence, None)
                else:
                    cut = low - (first << shift)
                    whole = high - low == (last - first) * block
                    yield Piece(low, high - low, presence, data if whole else data[cut : cut + high - low])
            paddr = stop << shift

    def _for_each_run(self, pfn: int, stop: int) -> Iterator[tuple[int, int, Presence, bytes | None]]:
        """Yield (first, last, presence, data) for the page frames [pfn, stop), which are of one group."""
        number = pfn // GROUP
        base = number * GROUP
        while pfn < stop:
            part = self._find_part(pfn)
            if part is None or pfn >= part.dumped.readable:
                # in a file that was not given, or after the end of the bitmap: there is no telling
                yield from self._for_each_unread(pfn, stop)
                return
            limit = min(stop, part.end)
            bits = part.group(number)[0] >> pfn - base
            if bits & 1:
                count = min((bits + 1 & ~bits).bit_length() - 1, limit - pfn)
                yield from _join(pfn, list(part.for_each_page(number, pfn - base, count)))
            else:
                count = limit - pfn if not bits else min((bits & -bits).bit_length() - 1, limit - pfn)
                exists = part.exists.group(number)[0] >> pfn - base if part.exists is not None else 0
                presence = Presence.EXCLUDED if exists & 1 else Presence.HOLE
                if exists & 1:
                    exists = ~exists
                if exists:
                    count = min(count, (exists & -exists).bit_length() - 1)
                yield pfn, pfn + count, presence, None
            pfn += count

    def _for_each_unread(self, pfn: int, stop: int) -> Iterator[tuple[int, int, Presence, None]]:
        """Yield (first, last, presence, None) for page frames whose file or whose bitmap is not there."""
        for first, last, presence in self._for_each_gap(pfn, stop):
            if pfn < first:
                yield pfn, first, Presence.HOLE, None
            yield first, last, presence, None
            pfn = last
        if pfn < stop:
            yield pfn, stop, Presence.HOLE, None

    def coverage(self, start: int = 0, end: int | None = None) -> Iterator[Range]:
        shift = self._shift
        stop = self._max_pfn if end is None else min(-(-end >> shift), self._max_pfn)
        pending: Range | None = None
        for first, last, presence in self._for_each_page_run(start >> shift, stop):
            low, high = max(first << shift, start), last << shift
            if end is not None:
                high = min(high, end)
            if pending is not None and pending.end == low and pending.presence is presence:
                pending = Range(pending.start, high - pending.start, presence)
                continue
            if pending is not None:
                yield pending
            pending = Range(low, high - low, presence)
        if pending is not None:
            yield pending

    def _for_each_page_run(self, pfn: int, stop: int) -> Iterator[tuple[int, int, Presence]]:
        """Yield (first, last, presence) of the page frames [pfn, stop) that are memory."""
        for part in self._parts:
            if pfn < min(part.start, stop):
                yield from self._for_each_gap(pfn, min(part.start, stop))
            low, high = max(pfn, part.start), min(stop, part.end)
            known = min(high, part.dumped.readable)
            if low < known:
                yield from self._for_each_known(part, low, known)
            if max(low, known) < high:
                yield max(low, known), high, Presence.TRUNCATED
            pfn = max(pfn, high)
        if pfn < stop:
            yield from self._for_each_gap(pfn, stop)

    def _for_each_gap(self, pfn: int, stop: int) -> Iterator[tuple[int, int, Presence]]:
        """Yield the runs of [pfn, stop), which no file holds, by the bitmaps of the first file."""
        part = self._parts[0]
        known = min(stop, part.dumped.readable)
        while pfn < known:
            unit = pfn // UNIT
            high = min((unit + 1) * UNIT, known)
            yield from self._for_each_bits(part, unit, pfn, high, Presence.TRUNCATED)
            pfn = high
        if pfn < stop:
            yield pfn, stop, Presence.TRUNCATED

    def _for_each_known(self, part: KdumpPart, pfn: int, stop: int) -> Iterator[tuple[int, int, Presence]]:
        """Yield the runs of [pfn, stop), which `part` holds."""
        if self._whole is None:
            self._whole = all(each.is_whole() for each in self._parts)
        while pfn < stop:
            unit = pfn // UNIT
            high = min((unit + 1) * UNIT, stop)
            for first, last, presence in self._for_each_bits(part, unit, pfn, high, Presence.PRESENT):
                if self._whole or presence is not Presence.PRESENT:
                    yield first, last, presence
                    continue
                for low, top, there in part.for_each_kept(first, last):
                    yield low, top, Presence.PRESENT if there else Presence.TRUNCATED
            pfn = high

    def _for_each_bits(
        self, part: KdumpPart, unit: int, pfn: int, stop: int, kept: Presence
    ) -> Iterator[tuple[int, int, Presence]]:
        """Yield the runs of [pfn, stop), all of one unit: dumped ones as `kept`, others that exist as excluded."""
        dumped = part.dumped.value(unit)
        excluded = part.exists.value(unit) & ~dumped if part.exists is not None else 0
        base = unit * UNIT
        low, high = pfn - base, stop - base
        runs = [(base + first, base + last, kept) for first, last in for_each_run(dumped, low, high)] if dumped else []
        if excluded:
            runs += [(base + one, base + two, Presence.EXCLUDED) for one, two in for_each_run(excluded, low, high)]
            runs.sort(key=lambda run: run[0])
        yield from runs

    @property
    def info(self) -> ImageInfo:
        if self._info is None:
            self._info = self._describe()
        return self._info

    def _describe(self) -> ImageInfo:
        head = self._header
        if self._whole is None:
            self._whole = all(part.is_whole() for part in self._parts)
        quirks = list(self._quirks)
        containers = sorted({part.source.container for part in self._parts if part.source.container})
        missing = self._max_pfn - sum(part.end - part.start for part in self._parts)
        if head.status & INCOMPLETE:
            quirks.append("flagged incomplete by its writer: the disk was full, or the writer failed")
        elif not self._whole:
            quirks.append("the file is truncated: memory at its end is missing")
        if missing > 0:
            quirks.append(f"files of a split dump are missing: {missing} page frames of {self._max_pfn} are in none")
        if any("flattened" in container for container in containers):
            quirks.append("a flattened stream, read through an index; makedumpfile -R rearranges it")
        if head.version > NEWEST_VERSION:
            quirks.append(f"header version {head.version} is newer than {NEWEST_VERSION}: read as that")
        seen = set().union(*(part.sample() for part in self._parts))
        said = {name for flag, name in FLAGS.items() if head.status & flag}
        if said - seen and seen == {""}:
            quirks.append(f"the header says {', '.join(sorted(said))}, the pages are not compressed")
        elif not seen:
            seen = said
        details = [
            ("header version", str(head.version)),
            ("signature", head.signature.decode("ascii").strip()),
            ("block size", str(self._block)),
            ("page frames", str(self._max_pfn)),
            ("dumped pages", str(self._parts[0].dumped.rank(self._max_pfn))),
        ]
        if head.split is not None:
            for part in self._parts:
                details.append(("part", f"{part.source.path}: page frames {part.start:#x}-{part.end:#x}"))
        details += [("container", container) for container in containers]
        machine = head.uts["machine"]
        machine = _MACHINES.get(machine, "arm" if machine.startswith("armv") else machine)
        return ImageInfo(
            NAME,
            self._producer(),
            None if machine in _UNKNOWN else machine,
            "little" if head.order == "<" else "big",
            head.word_bits,
            head.uts["release"] or find_vmcoreinfo_value(self.notes, "OSRELEASE"),
            head.dump_level,
            tuple(sorted(seen - {""})),
            self._whole and missing <= 0,
            tuple(quirks),
            tuple(details),
        )

    def _producer(self) -> str:
        head = self._header
        if head.signature == SIGNATURES[1]:
            return "diskdump (by its signature)"
        if not any(head.uts[name] for name in ("sysname", "nodename", "release", "version")):
            return "QEMU (its header names no kernel)"
        return "makedumpfile (its header names the kernel)"

    def close(self) -> None:
        self._pages.clear()
        for part in self._parts:
            part.source.close()


def _join(pfn: int, pages: list[bytes | None]) -> Iterator[tuple[int, int, Presence, bytes | None]]:
    """Yield (first, last, presence, data) for dumped pages from `pfn` on, neighbours joined."""
    if None not in pages:
        data = pages[0] if len(pages) == 1 else b"".join(page for page in pages if page is not None)
        yield pfn, pfn + len(pages), Presence.PRESENT, data
        return
    index = 0
    while index < len(pages):
        lost = pages[index] is None
        stop = index + 1
        while stop < len(pages) and (pages[stop] is None) is lost:
            stop += 1
        data = None if lost else b"".join(page for page in pages[index:stop] if page is not None)
        yield pfn + index, pfn + stop, Presence.TRUNCATED if lost else Presence.PRESENT, data
        index = stop


def _check_same_set(first: KdumpHeader, part: KdumpPart) -> None:
    """Raise FormatError unless `part` is of the same split set as the file with the header `first`."""
    head, path = part.header, part.source.path
    if first.split is None or head.split is None:
        raise FormatError(path, head.block_size, "split", "several files were given, and they are not a split set")
    if (head.order, head.word_bits, head.block_size) != (first.order, first.word_bits, first.block_size):
        raise FormatError(path, 0, "block_size", "is not of the same dump as the first file: another layout")
    if head.max_mapnr != first.max_mapnr:
        raise FormatError(path, 0, "max_mapnr", "is not of the same dump as the first file: another size of memory")
    if head.uts != first.uts:
        raise FormatError(path, 12, "utsname", "is not of the same dump as the first file: another kernel or machine")


def _read_notes(source: Source, head: KdumpHeader) -> tuple[tuple[Note, ...], tuple[str, ...]]:
    """Return the notes, with VMCOREINFO made one if only the sub header points to it, and what is wrong with them."""
    notes: tuple[Note, ...] = ()
    quirks: tuple[str, ...] = ()
    for area, what in ((head.note, "notes"), (head.vmcoreinfo, "VMCOREINFO")):
        if not area.size:
            continue
        data = source.read(area.offset, min(area.size, MAX_AREA))
        if len(data) < area.size:
            quirks += (f"{area.size - len(data)} bytes of the {what} at file offset {area.offset:#x} are missing",)
        if what == "notes":
            notes, damage = read_notes(data, head.order, source.path, area.offset)
            quirks += damage
        elif data and not any(note.name == VMCOREINFO for note in notes):
            notes += (Note(VMCOREINFO, 0, data),)
    return notes, quirks
