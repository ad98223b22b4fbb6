"""Address spaces: reads through page tables, with a cache."""

from __future__ import annotations

import random

import pytest

from kvm_dbg.arch import paging as paging_module
from kvm_dbg.arch.base import Paging
from kvm_dbg.arch.paging import AddressSpace
from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.errors import NotInImageError, NotMappedError
from kvm_dbg.image.base import BytesImage, Presence, Range
from kvm_dbg.kernel.space import ImageSpace
from tests.writers.page_table import PAGE, PageTables

BASE = 0xFFFFC90000000000


class CountingImage(BytesImage):
    """Counts reads."""

    reads = 0

    def read(self, paddr: int, size: int) -> bytes:
        self.reads += 1
        return super().read(paddr, size)


def make(pages: list[int | None], excluded: tuple[tuple[int, int], ...] = ()) -> tuple[ImageSpace, CountingImage]:
    """Map consecutive virtual pages from BASE to the given physical ones (None: not mapped)."""
    tables = PageTables()
    absent = {paddr for paddr, _ in excluded}
    for index, paddr in enumerate(pages):
        if paddr is None:
            continue
        tables.map(BASE + index * PAGE, paddr)
        if paddr not in absent:
            tables.page(paddr, random.Random(paddr).randbytes(PAGE))
    image = CountingImage(tables.segments(), excluded=excluded)
    return ImageSpace(X86_64, image, Paging(tables.root, 4)), image


def test_read_inside_one_page_and_again() -> None:
    space, image = make([0x50000])
    data = image.read(0x50000, PAGE)
    assert space.read(BASE + 5, 100) == data[5:105]
    before = image.reads
    assert space.read(BASE + 4000, 96) == data[4000:]
    assert image.reads == before + 1  # no table was read again
    assert space.translate(BASE + 7) == 0x50007


def test_read_across_pages_wherever_they_are() -> None:
    pages: list[int | None] = [0x52000, 0x53000, 0x50000, 0x61000, 0x62000, 0x63000]
    space, image = make(pages)
    whole = b"".join(image.read(paddr, PAGE) for paddr in pages if paddr is not None)
    generator = random.Random(7)
    for _ in range(300):
        start = generator.randrange(len(whole))
        size = generator.randrange(len(whole) - start + 1)
        assert space.read(BASE + start, size) == whole[start : start + size]


def test_contiguous_pages_are_read_at_once() -> None:
    space, image = make([0x52000, 0x53000, 0x54000])
    space.read(BASE, 3 * PAGE)
    before = image.reads
    space.read(BASE, 3 * PAGE)
    assert image.reads == before + 1


def test_nothing_of_a_read_that_fails() -> None:
    space, _ = make([0x50000, None])
    with pytest.raises(NotMappedError) as caught:
        space.read(BASE + PAGE - 4, 8)
    assert caught.value.address == BASE + PAGE
    assert caught.value.level == "PTE"


def test_a_page_that_was_left_out() -> None:
    space, _ = make([0x50000, 0x70000], excluded=((0x70000, PAGE),))
    with pytest.raises(NotInImageError) as caught:
        space.read(BASE, 2 * PAGE)
    assert (caught.value.address, caught.value.reason) == (0x70000, "excluded")


def test_read_partial_names_virtual_ranges() -> None:
    space, image = make([0x50000, 0x70000, None, None, 0x51000], excluded=((0x70000, PAGE),))
    part = space.read_partial(BASE + 0x800, 4 * PAGE)
    assert part.missing == (
        Range(BASE + PAGE, PAGE, Presence.EXCLUDED),
        Range(BASE + 2 * PAGE, 2 * PAGE, Presence.HOLE),
    )
    assert part.data == image.read(0x50800, 0x800) + bytes(3 * PAGE) + image.read(0x51000, 0x800)
    assert space.read_partial(BASE, PAGE) == (image.read(0x50000, PAGE), ())


def test_read_partial_inside_a_page() -> None:
    tables = PageTables()
    tables.map(BASE, 0x80000)
    image = BytesImage({**tables.segments(), 0x80000: b"x" * 0x10, 0x80020: b"y" * 0x10})
    part = ImageSpace(X86_64, image, Paging(tables.root, 4)).read_partial(BASE + 8, 0x28)
    assert part.data == b"x" * 8 + bytes(16) + b"y" * 16
    assert part.missing == (Range(BASE + 0x10, 0x10, Presence.HOLE),)


@pytest.mark.parametrize("level", [2, 3])
def test_large_pages(level: int) -> None:
    tables = PageTables()
    start = 0xFFFF888000000000
    tables.map(start, 0x40000000, level)
    size = {2: 1 << 21, 3: 1 << 30}[level]
    image = BytesImage({**tables.segments(), 0x40000000: b"first", 0x40000000 + size - 4: b"last"})
    space = ImageSpace(X86_64, image, Paging(tables.root, 4))
    assert space.read(start, 5) == b"first"
    assert space.read(start + size - 4, 4) == b"last"
    with pytest.raises(NotMappedError):
        space.read(start + size - 4, 5)
    across = BytesImage({**tables.segments(), 0x40000000 + (1 << 21) - 4: b"abcdefgh"})
    if level == 3:  # two blocks of one page, in one read
        assert ImageSpace(X86_64, across, Paging(tables.root, 4)).read(start + (1 << 21) - 4, 8) == b"abcdefgh"


def test_with_root_shares_tables_but_not_translations() -> None:
    space, image = make([0x50000])
    tables = PageTables(root=0x8000, first_table=0x200000)
    tables.map(BASE, 0x51000)
    tables.page(0x51000, b"other")
    both = {run.start: image.read(run.start, run.size) for run in image.coverage()} | tables.segments()
    merged = BytesImage(both)
    first = ImageSpace(X86_64, merged, space.paging)
    second = first.with_root(0x8000)
    assert isinstance(second, ImageSpace)
    assert first.translate(BASE) == 0x50000
    assert second.translate(BASE) == 0x51000
    assert second.read(BASE, 5) == b"other"


def test_invalidate_sees_changed_tables() -> None:
    space, image = make([0x50000, 0x51000])
    space.read(BASE, 1)
    other = space.with_root(space.paging.root)
    other.read(BASE, 1)
    pte = space.walk(BASE).steps[-1].entry_paddr

    class Changed(BytesImage):
        def read(self, paddr: int, size: int) -> bytes:
            data = bytearray(super().read(paddr, size))
            if paddr <= pte < paddr + size:
                data[pte - paddr : pte - paddr + 8] = (0x51000 | 0x63).to_bytes(8, "little")
            return bytes(data)

    changed = Changed({run.start: image.read(run.start, run.size) for run in image.coverage()})
    space._tables._physical = other._tables._physical = changed
    space._read_physical = changed.read
    assert space.translate(BASE) == 0x50000
    space.invalidate()
    assert space.translate(BASE) == 0x51000
    assert other.translate(BASE) == 0x51000


def test_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging_module, "MAX_TRANSLATIONS", 2)
    monkeypatch.setattr(paging_module, "MAX_TABLES", 2)
    pages: list[int | None] = [0x50000 + index * 2 * PAGE for index in range(8)]
    space, image = make(pages)
    for index, paddr in enumerate(pages):
        assert paddr is not None
        assert space.read(BASE + index * PAGE, PAGE) == image.read(paddr, PAGE)
        assert len(space._pages) <= 2
    assert len(space._tables._pages) <= 2


def test_a_table_of_which_only_a_part_is_there() -> None:
    tables = PageTables()
    tables.map(BASE, 0x50000)
    tables.page(0x50000, b"here")
    segments = tables.segments()
    leaf = tables.entry_paddr(BASE, 1)
    table = leaf & -PAGE
    segments[table] = segments[table][: leaf - table + 8]
    space = AddressSpace(X86_64, BytesImage(segments), Paging(tables.root, 4))
    assert space.read(BASE, 4) == b"here"


def test_impossible_addresses() -> None:
    space, _ = make([0x50000])
    for vaddr in (-1, 1 << 64, 1 << 70, 0x0000800000000000):
        with pytest.raises(NotMappedError, match="not canonical"):
            space.read(vaddr, 1)
