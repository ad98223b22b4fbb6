"""Page maps of FreeBSD minidumps: entries with known answers, laid out as each machine's manual and headers say."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kvm_dbg.errors import NotInImageError, NotMappedError, ReadError, UnsupportedError
from kvm_dbg.image import open_image
from kvm_dbg.image.freebsd_minidump import FreebsdMinidumpImage
from kvm_dbg.image.overlay import OverlayImage
from tests.writers.freebsd_minidump import KERNELS, write_minidump
from tests.writers.memory import PAGE

PAGES = {pfn: bytes([pfn]) * PAGE for pfn in range(16)}


def opened(tmp_path: Path, data: bytes) -> FreebsdMinidumpImage:
    path = tmp_path / "vmcore"
    path.write_bytes(data)
    image = open_image(path)
    assert isinstance(image, FreebsdMinidumpImage)
    return image


def entries(order: str, *values: int) -> bytes:
    return struct.pack(f"{order}{len(values)}Q", *values)


# platform, version, options, pmap, (virtual address minus kernbase, physical address) that it maps
FLAT = [
    ("amd64", 1, {}, entries("<", 0, 0x5003, 0x8000000000007063), [(0x1234, 0x5234), (0x2FFF, 0x7FFF)]),
    ("arm64", 1, {}, entries("<", 0, 0x0060000000005703), [(0x1234, 0x5234)]),
    ("arm64", 2, {}, entries("<", 0, 0x0060000000005703), [(0x1234, 0x5234)]),
    ("arm64", 3, {"page": 16384}, entries("<", 0, 0x00600000000087C3), [(0x4000, 0x8000), (0x7FFF, 0xBFFF)]),
    ("riscv", 1, {}, entries("<", 0, 5 << 10 | 0xCF, 9 << 10 | 0xCB), [(0x1234, 0x5234), (0x2001, 0x9001)]),
    ("riscv", 2, {}, entries("<", 0, 5 << 10 | 0xCF), [(0x1234, 0x5234)]),
    ("i386", 1, {}, struct.pack("<3I", 0, 0x5163, 0x9003), [(0x1234, 0x5234), (0x2001, 0x9001)]),
    ("i386", 2, {"pae": 1}, entries("<", 0, 0x8000000000005163), [(0x1234, 0x5234)]),
]


@pytest.mark.parametrize(("platform", "version", "options", "pmap", "answers"), FLAT)
def test_entries_of_pages(
    tmp_path: Path, platform: str, version: int, options: dict[str, int], pmap: bytes, answers: list[tuple[int, int]]
) -> None:
    kernel = KERNELS[platform]._replace(pae=options.get("pae", 0))
    page = options.get("page", PAGE)
    base = kernel.kernbase
    with opened(
        tmp_path, write_minidump(platform, PAGES, version=version, kernel=kernel, pmap=pmap, page=page)
    ) as image:
        for distance, paddr in answers:
            assert image.translate(base + distance) == paddr
            assert image.page_map is not None
            assert image.page_map.translate_page(image.read, base + distance) == (paddr & -page, page)
        with pytest.raises(NotMappedError, match=r"empty.* at file offset 0x"):
            image.translate(base + 8)
        with pytest.raises(NotMappedError, match="past the end of the page map"):
            image.translate(base + 0x100000)
        for vaddr in (0x1000, base - 1) if platform != "amd64" else (0x1000,):
            with pytest.raises(NotMappedError, match="kernel addresses"):
                image.translate(vaddr)


INVALID = [
    ("amd64", 3, 0x5002),
    ("arm64", 3, 0x0060000000005701),  # a block has no place at level 3
    ("riscv", 2, 5 << 10 | 1),  # a pointer to a table has no place at the lowest level
    ("i386", 1, 0x5162),
]


@pytest.mark.parametrize(("platform", "version", "entry"), INVALID)
def test_entries_that_are_not_valid(tmp_path: Path, platform: str, version: int, entry: int) -> None:
    image = opened(tmp_path, write_minidump(platform, PAGES, version=version, pmap=entries("<", entry)))
    with image, pytest.raises(NotMappedError, match="not valid"):
        image.translate(KERNELS[platform].kernbase)


def test_direct_map(tmp_path: Path) -> None:
    for platform, paddr in (("amd64", 0x3123), ("arm64", 0x80003123), ("riscv", 0x80003123), ("powerpc64", 0x3123)):
        kernel = KERNELS[platform]._replace(dmapphys=paddr & 0x80000000)
        with opened(tmp_path, write_minidump(platform, PAGES, kernel=kernel)) as image:
            assert image.translate(kernel.dmapbase + 0x3123) == paddr
    with opened(tmp_path, write_minidump("powerpc64", PAGES)) as image:
        assert image.translate(0xCFFFFFFFFFFFFFFF) == 0x0FFFFFFFFFFFFFFF  # dmapend is the last address there


def amd64_tables(tmp_path: Path, **options: object) -> FreebsdMinidumpImage:
    """Return a minidump whose directory has: nothing, a table at 0x2000, 2 MiB at 0x5400000, a table not there."""
    table = struct.pack("<3Q", 0, 0x8000000000004003, 0x5002).ljust(PAGE, b"\0")
    pmap = entries("<", 0, 0x2003, 0x80000000054010E3, 0x7777003)
    return opened(tmp_path, write_minidump("amd64", {**PAGES, 2: table}, pmap=pmap, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [2, 3])
def test_page_directories(tmp_path: Path, version: int) -> None:
    base = KERNELS["amd64"].kernbase
    with amd64_tables(tmp_path, version=version) as image:
        page_map = image.page_map
        assert page_map is not None
        assert page_map.translate_page(image.read, base + 0x201678) == (0x4000, 1 << 12)
        # bit 12 of a large page's entry is PAT, no part of its address
        assert page_map.translate_page(image.read, base + 0x412345) == (0x5400000, 1 << 21)
        assert image.translate(base + 0x412345) == 0x5412345
        assert image.read(image.translate(base + 0x201678), 4) == b"\4\4\4\4"
        with pytest.raises(NotMappedError, match=r"not valid \(PTE 0x0000000000005002 at physical address 0x2010\)"):
            image.translate(base + 0x202000)
        with pytest.raises(NotInImageError, match="the PTE of virtual address"):
            image.translate(base + 0x600000)


def test_written_page_tables_count(tmp_path: Path) -> None:
    base = KERNELS["amd64"].kernbase
    with OverlayImage(amd64_tables(tmp_path)) as image:
        assert image.page_map is not None
        image.write(0x2008, struct.pack("<Q", 0x6003))
        assert image.page_map.translate_page(image.read, base + 0x201000) == (0x6000, 1 << 12)


def test_page_map_that_is_cut_off(tmp_path: Path) -> None:
    base = KERNELS["amd64"].kernbase
    data = write_minidump("amd64", PAGES, pmap=entries("<", *[0x2003] * 512))
    start = len(data) - len(PAGES) * PAGE - PAGE
    with opened(tmp_path, data[: start + 20]) as image:
        with pytest.raises(NotInImageError, match="truncated"):
            image.translate(base + (1 << 21))
        with pytest.raises(ReadError, match=rf"ends before offset {start + 16:#x}"):
            image.translate(base + (2 << 21))


# powerpc64


def test_radix_tree(tmp_path: Path) -> None:
    """Power ISA 3.0B, 6.7: bit 0 valid, bit 1 leaf, the root has 2**13 entries of 512 GiB each, all big-endian."""
    kernel = KERNELS["powerpc64"]._replace(mmu=b"mmu_radix")
    valid, leaf = 1 << 63, 1 << 62
    root = bytearray(1 << 16)
    vaddr = 0xE000008040201345  # index 1 at each level
    for index, entry in ((1, valid | 0x1009), (2, valid | leaf | 0x8000000000 | 0x18E)):
        struct.pack_into(">Q", root, 8 * index, entry)
    tables = {
        1: entries(">", 0, valid | 0x2009, valid | leaf | 0x40000000),
        2: entries(">", 0, valid | 0x3009, valid | leaf | 0x5400000),
        3: entries(">", 0, valid | leaf | 0x418E, valid | 0x5000),
    }
    pages = {**PAGES, **{pfn: table.ljust(PAGE, b"\0") for pfn, table in tables.items()}}
    for order in "<>":
        data = write_minidump("powerpc64", pages, kernel=kernel, pmap=bytes(root), order=order)
        with opened(tmp_path, data) as image:
            page_map = image.page_map
            assert page_map is not None
            assert page_map.translate_page(image.read, vaddr) == (0x4000, 1 << 12)
            assert page_map.translate_page(image.read, 0xE000008040400000) == (0x5400000, 1 << 21)
            assert page_map.translate_page(image.read, 0xE000008080000000) == (0x40000000, 1 << 30)
            assert page_map.translate_page(image.read, 0xE000010000000000) == (0x8000000000, 1 << 39)
            with pytest.raises(NotMappedError, match="RPTE"):
                image.translate(0xE000008040200000)


def test_hashed_page_table(tmp_path: Path) -> None:
    """Power ISA 2.07B, 5.7.9: the group is the hash of segment and page, modulo the number of groups.

    The kernel's first segment, number 0xe00000000 of 36 bits, has the ID that the kernel computes of it: its number
    turned right by 28 bits, times 0x13bb, modulo 2**36, with bit 36 set (KERNEL_VSID in machine/slb.h).
    """
    vsid = (0xE0000000000 | 0xE0) * 0x13BB % (1 << 36) | 1 << 36
    groups = 64
    table = bytearray(groups * 128)

    def put(group: int, slot: int, high: int, low: int) -> None:
        struct.pack_into(">QQ", table, group * 128 + slot * 16, high, low)

    # page 0x12345 of the segment: the abbreviated page number is its top five bits, 0x12345 >> 11 of 16 bits = 2
    page = 0x2345
    primary = (vsid ^ page) % groups
    put(primary, 3, vsid << 12 | (page >> 11) << 7 | 1, 0x5000 | 0x192)
    put(primary, 5, vsid << 12 | (page >> 11) << 7 | 5, 0x6000)  # a large page, which the kernel's segments have not
    other = 0x0678
    put(~(vsid ^ other) % groups, 7, vsid << 12 | (other >> 11) << 7 | 3, 0x7000 | 0x192)  # by the secondary hash
    for order in "<>":
        with opened(tmp_path, write_minidump("powerpc64", PAGES, pmap=bytes(table), order=order)) as image:
            assert image.translate(0xE000000000000000 | page << 12 | 0xABC) == 0x5ABC
            assert image.translate(0xE000000000000000 | other << 12) == 0x7000
            for vaddr in (0xE000000000000000 | 0x2346 << 12, 0xE000000010000000 | page << 12):
                with pytest.raises(NotMappedError, match="no entry"):
                    image.translate(vaddr)
            with pytest.raises(NotMappedError, match="last address"):
                image.translate(0xE000000800000000)


def test_page_tables_of_another_kind(tmp_path: Path) -> None:
    base = KERNELS["powerpc64"].kernbase
    for mmu, size, error, text in (
        (b"mmu_book4", 1 << 16, UnsupportedError, "mmu_book4"),
        (b"mmu_radix", 1 << 12, UnsupportedError, "mmu_radix"),
        (b"mmu_g5", 384, NotMappedError, "3 groups"),
    ):
        kernel = KERNELS["powerpc64"]._replace(mmu=mmu)
        with opened(tmp_path, write_minidump("powerpc64", PAGES, kernel=kernel, pmap=bytes(size))) as image:
            with pytest.raises(error, match=text):
                image.translate(base)
            assert image.translate(kernel.dmapbase + 5) == 5
