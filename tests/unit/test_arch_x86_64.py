"""x86_64 page tables with known answers, and registers in notes."""

from __future__ import annotations

import struct

import pytest

from kvm_dbg.arch import ARCHES, find_arch
from kvm_dbg.arch.base import Paging
from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.arch.x86_64_register import parse_qemu_cpu_state
from kvm_dbg.errors import CorruptError, NotInImageError, NotMappedError, UnsupportedError
from kvm_dbg.image.base import BytesImage
from tests.writers.page_table import PAGE_FLAGS, PageTables

TEXT = 0xFFFFFFFF81000000
DIRECT = 0xFFFF888000000000
DIRECT_5 = 0xFF11000000000000
USER = 0x00007F1234567000
MASK = 0x000FFFFFFFFFF000


def translate(tables: PageTables, vaddr: int, encryption_mask: int = 0) -> tuple[int, int]:
    image = BytesImage(tables.segments())
    return X86_64.translate_page(image.read, Paging(tables.root, tables.levels, encryption_mask), vaddr)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize(
    ("level", "paddr", "size"), [(1, 0x5555000, 1 << 12), (2, 0x5400000, 1 << 21), (3, 0x3C0000000, 1 << 30)]
)
@pytest.mark.parametrize("vaddr", [TEXT & -(1 << 30), USER & -(1 << 30)])
def test_each_page_size(levels: int, level: int, paddr: int, size: int, vaddr: int) -> None:
    tables = PageTables(levels)
    tables.map(vaddr, paddr, level)
    assert translate(tables, vaddr) == (paddr, size)
    assert translate(tables, vaddr + size - 1) == (paddr, size)


def test_walk_names_every_entry() -> None:
    tables = PageTables(5, root=0x9000, first_table=0x20000)
    leaf = tables.map(DIRECT_5 + 0x1234000, 0x7654000, flags=0x8000000000000163)
    image = BytesImage(tables.segments())
    walk = X86_64.walk(image.read, Paging(0x9000, 5), DIRECT_5 + 0x1234567)
    assert walk.paddr == 0x7654567
    assert walk.page_size == 4096
    assert [step.name for step in walk.steps] == ["PML5E", "PML4E", "PDPTE", "PDE", "PTE"]
    # 0xff11000000000000: bits 56:48 are 0x111
    assert walk.steps[0].entry_paddr == 0x9000 + 0x111 * 8
    assert walk.steps[0].entry == 0x20067
    assert walk.steps[4].entry_paddr == leaf
    assert walk.steps[4].entry == 0x8000000007654163
    assert walk.flags == ("P", "RW", "A", "D", "G", "XD")


@pytest.mark.parametrize(
    ("vaddr", "levels", "canonical"),
    [
        (0, 4, True),
        (0x00007FFFFFFFFFFF, 4, True),
        (0x0000800000000000, 4, False),
        (0xFFFF7FFFFFFFFFFF, 4, False),
        (0xFFFF800000000000, 4, True),
        (0xFFFFFFFFFFFFFFFF, 4, True),
        (DIRECT_5, 4, False),
        (DIRECT_5, 5, True),
        (0x00FFFFFFFFFFFFFF, 5, True),
        (0x0100000000000000, 5, False),
        (0xFEFFFFFFFFFFFFFF, 5, False),
        (0xFF00000000000000, 5, True),
        (1 << 64, 4, False),
        (-1, 4, False),
        (1 << 64, 5, False),
    ],
)
def test_canonical(vaddr: int, levels: int, canonical: bool) -> None:
    assert X86_64.is_canonical(vaddr, levels) is canonical
    if not canonical:
        with pytest.raises(NotMappedError, match="not canonical") as caught:
            translate(PageTables(levels), vaddr)
        assert caught.value.level is None


def test_halves() -> None:
    assert X86_64.is_user(USER)
    assert not X86_64.is_user(TEXT)
    assert not X86_64.is_user(DIRECT_5)


@pytest.mark.parametrize(("level", "name"), [(1, "PTE"), (2, "PDE"), (3, "PDPTE"), (4, "PML4E"), (5, "PML5E")])
def test_an_empty_entry_is_named(level: int, name: str) -> None:
    tables = PageTables(5)
    place = tables.set_entry(TEXT, level, 0)
    with pytest.raises(NotMappedError) as caught:
        translate(tables, TEXT)
    error = caught.value
    assert (error.level, error.entry, error.entry_paddr, error.address) == (name, 0, place, TEXT)
    assert f"{name} 0x0000000000000000 at physical address {place:#x}" in str(error)
    assert "empty" in str(error)


def test_prot_none_keeps_its_frame() -> None:
    # With the L1TF mitigation the frame number is inverted, without it is plain: both are frame 0x1234.
    inverted = (~0x1234000 & MASK) | 0x100
    for entry in (inverted, 0x1234000 | 0x100):
        tables = PageTables()
        tables.set_entry(USER, 1, entry)
        assert translate(tables, USER + 5) == (0x1234000, 4096)
        image = BytesImage(tables.segments())
        assert X86_64.walk(image.read, Paging(tables.root, 4), USER).flags == ("PROTNONE",)


@pytest.mark.parametrize("low", [0x180, 0x80])  # PROT_NONE; invalid while it is split
def test_huge_pages_that_are_not_present(low: int) -> None:
    tables = PageTables()
    tables.set_entry(USER, 2, (~0x40000000 & 0x000FFFFFFFE00000) | low)
    assert translate(tables, USER) == (0x40000000, 1 << 21)


def test_swap_entries_are_told_apart() -> None:
    # Type 3, page 0x42: bits 63:59 and the inverted bits 58:9.
    entry = (3 << 59) | ((~0x42 & ((1 << 50) - 1)) << 9)
    tables = PageTables()
    tables.set_entry(USER, 1, entry & ~0x1FF)
    with pytest.raises(NotMappedError, match="swap area 3, page 0x42") as caught:
        translate(tables, USER)
    assert caught.value.level == "PTE"
    # A migration entry is of one of the last of the 32 types.
    tables.set_entry(USER, 1, (26 << 59) | (entry & ((1 << 59) - 1) & ~0x1FF))
    with pytest.raises(NotMappedError, match="special swap type 26"):
        translate(tables, USER)


def test_a_present_table_that_became_a_swap_entry_is_not_followed() -> None:
    tables = PageTables()
    tables.set_entry(USER, 2, 0x100)  # G without PS: no page, and no table either
    with pytest.raises(NotMappedError) as caught:
        translate(tables, USER)
    assert caught.value.level == "PDE"


@pytest.mark.parametrize(("levels", "level", "name"), [(4, 4, "PML4E"), (5, 5, "PML5E"), (5, 4, "PML4E")])
def test_page_size_bit_is_reserved_at_the_top(levels: int, level: int, name: str) -> None:
    tables = PageTables(levels)
    tables.set_entry(TEXT, level, 0x40000000 | PAGE_FLAGS | 0x80)
    with pytest.raises(NotMappedError, match="reserved bit 7") as caught:
        translate(tables, TEXT)
    assert caught.value.level == name


@pytest.mark.parametrize(("level", "bit"), [(2, 13), (2, 20), (3, 13), (3, 21), (3, 29)])
def test_reserved_address_bits_of_large_pages(level: int, bit: int) -> None:
    tables = PageTables()
    tables.map(TEXT, 1 << bit, level)
    with pytest.raises(NotMappedError, match="reserved address bits"):
        translate(tables, TEXT)


@pytest.mark.parametrize("level", [2, 3])
def test_pat_bit_of_large_pages_is_no_address(level: int) -> None:
    tables = PageTables()
    tables.map(TEXT, 0x80000000 | 1 << 12, level)
    assert translate(tables, TEXT)[0] == 0x80000000


def test_encryption_mask_is_no_address() -> None:
    c_bit = 1 << 47
    tables = PageTables()
    place = tables.map(TEXT, 0x5000 | c_bit)
    tables.put(place, tables.get(place))
    pde = tables.entry_paddr(TEXT, 2)
    tables.put(pde, tables.get(pde) | c_bit)
    assert translate(tables, TEXT, c_bit) == (0x5000, 4096)
    with pytest.raises(NotInImageError, match="PTE of virtual address"):
        translate(tables, TEXT)


def test_a_table_outside_the_image_is_named() -> None:
    tables = PageTables()
    tables.set_entry(TEXT, 2, 0x7000000 | 0x67)
    with pytest.raises(NotInImageError, match=f"the PTE of virtual address {TEXT:#x}") as caught:
        translate(tables, TEXT)
    assert caught.value.address == 0x7000000 + (TEXT >> 12 & 511) * 8
    assert caught.value.reason == "hole"


def test_a_table_that_contains_itself_ends() -> None:
    tables = PageTables()
    for index in range(512):
        tables.put(tables.root + 8 * index, tables.root | 0x67)
    assert translate(tables, TEXT) == (tables.root, 4096)


def test_prstatus() -> None:
    text = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base"
    names = [*text.split(" "), "ds", "es", "fs", "gs"]
    desc = bytearray(336)
    struct.pack_into("<i", desc, 32, 4711)
    struct.pack_into("<27Q", desc, 112, *range(100, 127))
    pid, registers = X86_64.parse_prstatus(bytes(desc))
    assert pid == 4711
    assert registers == dict(zip(names, range(100, 127), strict=True))
    assert {register.name for register in X86_64.registers} <= set(names)
    for size in (0, 100, 327):
        with pytest.raises(CorruptError, match="too short"):
            X86_64.parse_prstatus(bytes(desc[:size]))


def test_registers_are_in_gdb_order() -> None:
    names = [register.name for register in X86_64.registers]
    assert names[:8] == ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"]
    assert names[16:] == ["rip", "eflags", "cs", "ss", "ds", "es", "fs", "gs", "fs_base", "gs_base"]
    assert {register.bits for register in X86_64.registers[17:24]} == {32}


def test_qemu_note() -> None:
    general = list(range(1, 19))
    segments = [(0x10 + index, 0xFFFFFFFF, 0, 0, 0x1000 * index) for index in range(10)]
    desc = struct.pack("<II18Q", 1, 440, *general) + b"".join(struct.pack("<IIIIQ", *segment) for segment in segments)
    desc += struct.pack("<5Q", 0x80050033, 0, 0xDEAD, 0x1234005, 0x1000)
    state = parse_qemu_cpu_state(desc + struct.pack("<Q", 0xFFFF888000000000))
    assert state.control == (0x80050033, 0, 0xDEAD, 0x1234005, 0x1000)
    assert state.kernel_gs_base == 0xFFFF888000000000
    expected = {"rax": 1, "rbx": 2, "rsp": 7, "rbp": 8, "r8": 9, "rip": 17, "eflags": 18, "cs": 0x10, "ss": 0x15}
    assert expected.items() <= state.registers.items()
    assert (state.registers["fs_base"], state.registers["gs_base"]) == (0x3000, 0x4000)
    assert parse_qemu_cpu_state(desc).kernel_gs_base is None
    with pytest.raises(CorruptError, match="too short"):
        parse_qemu_cpu_state(desc[:-1])
    with pytest.raises(CorruptError, match="version 2"):
        parse_qemu_cpu_state(b"\2" + desc[1:])


def test_registry() -> None:
    assert find_arch("x86_64") is X86_64
    assert X86_64 in ARCHES
    with pytest.raises(UnsupportedError, match="x86_64"):
        find_arch("vax")
