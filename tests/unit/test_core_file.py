"""Core files as ELF: segments for what is there, none for what is not, and more of them than fit into the header."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import pytest

from kvm_dbg.arch.base import Paging
from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.commands.core_file import CoreFile
from kvm_dbg.image.base import BytesImage, PartialRead, Presence, Range
from kvm_dbg.kernel.base import MemoryMapping
from kvm_dbg.kernel.space import ImageSpace
from tests.writers.page_table import PageTables

PAGE = 4096
BASE = 0x10_0000_0000


class Striped:
    """An address space of which every second page is present."""

    def read(self, vaddr: int, size: int) -> bytes:
        return vaddr.to_bytes(8, "little") * (size // 8)

    def read_partial(self, vaddr: int, size: int) -> PartialRead:
        return PartialRead(self.read(vaddr, size), ())

    def translate(self, vaddr: int) -> int:
        return vaddr

    def for_each_run(self, start: int, end: int) -> Iterator[Range]:
        for vaddr in range(start, end, 2 * PAGE):
            yield Range(vaddr, PAGE, Presence.PRESENT)


def mapping(start: int, end: int, permissions: str = "rw-p") -> MemoryMapping:
    return MemoryMapping(start, end, permissions, 0, 0, 0, 0, None, False, 0)


def test_more_segments_than_the_header_can_count() -> None:
    file = io.BytesIO()
    core = CoreFile(file, 62, PAGE)
    core.add_notes([])
    pages = 0x10000
    assert core.add_mapping(mapping(BASE, BASE + 2 * PAGE * pages), Striped()) == (PAGE * pages, 0)
    assert core.finish() == len(file.getvalue())
    data = file.getbuffer()
    segments, sections = struct.unpack_from("<2Q", data, 32)
    count, _, section_count = struct.unpack_from("<3H", data, 56)
    assert (count, section_count) == (0xFFFF, 1)
    [real] = struct.unpack_from("<I", data, sections + 44)  # sh_info
    assert real == pages + 1
    kind, flags, offset, vaddr, _, size, memory, _ = struct.unpack_from("<IIQQQQQQ", data, segments + 56 * pages)
    assert (kind, flags, vaddr, size, memory) == (1, 6, BASE + 2 * PAGE * (pages - 1), PAGE, PAGE)
    assert struct.unpack_from("<Q", data, offset)[0] == vaddr


def space_of(tables: PageTables, missing: set[int]) -> ImageSpace:
    segments = {start: data for start, data in tables.segments().items() if start not in missing}
    return ImageSpace(X86_64, BytesImage(segments), Paging(tables.root, 4))


@pytest.fixture
def tables() -> PageTables:
    tables = PageTables(4)
    for index in range(4):
        tables.page(0x40_0000 + 0x10_0000 * index, bytes([index + 1]) * PAGE)
    return tables


def test_runs(tables: PageTables) -> None:
    """Neighbours in the address space are one run; what is not mapped is none; what is lost is one of its own."""
    for page, index in ((0, 3), (1, 0), (4, 1), (5, 2)):
        tables.map(BASE + page * PAGE, 0x40_0000 + 0x10_0000 * index)
    space = space_of(tables, {0x60_0000})
    assert list(space.for_each_run(BASE, BASE + (1 << 38))) == [
        Range(BASE, 2 * PAGE, Presence.PRESENT),
        Range(BASE + 4 * PAGE, PAGE, Presence.PRESENT),
        Range(BASE + 5 * PAGE, PAGE, Presence.HOLE),
    ]
    file = io.BytesIO()
    core = CoreFile(file, 62, PAGE)
    assert core.add_mapping(mapping(BASE, BASE + 16 * PAGE), space) == (3 * PAGE, PAGE)
    core.finish()
    first = struct.unpack_from("<IIQQQQQQ", file.getbuffer(), struct.unpack_from("<Q", file.getbuffer(), 32)[0])
    assert first[3:7] == (BASE, 0, 2 * PAGE, 2 * PAGE)
    assert file.getvalue()[first[2] : first[2] + 2 * PAGE] == b"\4" * PAGE + b"\1" * PAGE


def test_a_mapping_that_starts_and_ends_inside_a_run(tables: PageTables) -> None:
    for page in range(4):
        tables.map(BASE + page * PAGE, 0x40_0000 + 0x10_0000 * page)
    space = space_of(tables, set())
    assert list(space.for_each_run(BASE + PAGE, BASE + 3 * PAGE)) == [Range(BASE + PAGE, 2 * PAGE, Presence.PRESENT)]


def test_swapped_pages_are_lost(tables: PageTables) -> None:
    tables.map(BASE, 0x40_0000)
    space = space_of(tables, set())
    entry = space.walk(BASE).steps[-1].entry_paddr
    tables.put(entry, 0x1234_5678_0000_0002)
    assert list(space_of(tables, set()).for_each_run(BASE, BASE + PAGE)) == [Range(BASE, PAGE, Presence.HOLE)]


def test_a_lost_page_table_loses_what_it_maps(tables: PageTables) -> None:
    tables.map(BASE, 0x40_0000)
    tables.map(BASE + (4 << 20), 0x50_0000)
    table = space_of(tables, set()).walk(BASE).steps[-1].entry_paddr & -PAGE
    runs = list(space_of(tables, {table}).for_each_run(BASE, BASE + (8 << 20)))
    assert [(run.start, run.size) for run in runs if run.presence is Presence.PRESENT] == [(BASE + (4 << 20), PAGE)]
    assert sum(run.size for run in runs if run.presence is not Presence.PRESENT) == 2 << 20
