"""Page tables of aarch64, riscv64, i386 and ppc64 with known answers, the illegal entries apart, and their notes."""

from __future__ import annotations

import struct

import pytest

from kvm_dbg.arch import ARCHES, find_arch
from kvm_dbg.arch.aarch64 import AARCH64, AARCH64_16K
from kvm_dbg.arch.base import Arch, Paging
from kvm_dbg.arch.i386 import I386, I386_PAE
from kvm_dbg.arch.paging import AddressSpace
from kvm_dbg.arch.ppc64 import PPC64, PPC64LE
from kvm_dbg.arch.riscv64 import RISCV64
from kvm_dbg.errors import CorruptError, NotInImageError, NotMappedError, UnsupportedError
from kvm_dbg.image.base import BytesImage

# Each case: the processor, its paging, entries by physical address (struct's code, value), the virtual address, and the
# page that it must give. Indexes are written out where they are not 0 or the last.
ARM_TEXT = 0xFFFFFFFF80201000  # of 4 KiB granules, from level 0 on: indexes 511, 510, 1, 1
ARM_TABLE, ARM_PAGE, ARM_BLOCK = 3, 0x0060000000000703, 0x0060000000000701
RISCV_TEXT = 0xFFFFFFC040201000  # Sv39, from level 2 on: indexes 257, 1, 1
POWER_TEXT = 0xC008000040201000  # 13, 9, 9, 9 bits: indexes 0x1000, 1, 1, 1
LEAF = 3 << 62
TABLE = 1 << 63

CASES: dict[str, tuple[Arch, Paging, dict[int, tuple[str, int]], int, tuple[int, int]]] = {
    "aarch64 page": (
        AARCH64,
        Paging(0x1000, 4),
        {
            0x1000 + 511 * 8: ("<Q", 0x2000 | ARM_TABLE),
            0x2000 + 510 * 8: ("<Q", 0x3000 | ARM_TABLE),
            0x3008: ("<Q", 0x4000 | ARM_TABLE),
            0x4008: ("<Q", 0x7FFF12345000 | ARM_PAGE),
        },
        ARM_TEXT + 0x123,
        (0x7FFF12345000, 1 << 12),
    ),
    "aarch64 2 MiB": (
        AARCH64,
        Paging(0x1000, 3),
        {0x1000 + 510 * 8: ("<Q", 0x3000 | ARM_TABLE), 0x3008: ("<Q", 0x40200000 | ARM_BLOCK)},
        ARM_TEXT,
        (0x40200000, 1 << 21),
    ),
    "aarch64 1 GiB, user": (
        AARCH64,
        Paging(0x1000, 4),
        {0x1000: ("<Q", 0x2000 | ARM_TABLE), 0x2008: ("<Q", 0x80000000 | ARM_BLOCK)},
        0x7FFFFFFF,
        (0x80000000, 1 << 30),
    ),
    "aarch64 16 KiB granules, 4 levels": (  # 1, 11, 11, 11 bits: indexes 1, 2047, 2047, 1
        AARCH64_16K,
        Paging(0x4000, 4),
        {
            0x4008: ("<Q", 0x8000 | ARM_TABLE),
            0x8000 + 2047 * 8: ("<Q", 0xC000 | ARM_TABLE),
            0xC000 + 2047 * 8: ("<Q", 0x10000 | ARM_TABLE),
            0x10008: ("<Q", 0x7FFF12344000 | ARM_PAGE),
        },
        0xFFFFFFFFFE004010,
        (0x7FFF12344000, 1 << 14),
    ),
    "aarch64 16 KiB granules, 32 MiB": (
        AARCH64_16K,
        Paging(0x4000, 3),
        {0x4000 + 2047 * 8: ("<Q", 0xC000 | ARM_TABLE), 0xC000 + 2047 * 8: ("<Q", 0x42000000 | ARM_BLOCK)},
        0xFFFFFFFFFE004010,
        (0x42000000, 1 << 25),
    ),
    "riscv64 Sv39": (
        RISCV64,
        Paging(0x1000, 3),
        {
            0x1000 + 257 * 8: ("<Q", 0x2 << 10 | 1),
            0x2008: ("<Q", 0x3 << 10 | 1),
            0x3008: ("<Q", 0x82345 << 10 | 0xCF),
        },
        RISCV_TEXT + 7,
        (0x82345000, 1 << 12),
    ),
    "riscv64 Sv39, 1 GiB": (
        RISCV64,
        Paging(0x1000, 3),
        {0x1000 + 257 * 8: ("<Q", 0x80000 << 10 | 0xCF)},
        RISCV_TEXT,
        (0x80000000, 1 << 30),
    ),
    "riscv64 Sv48, 2 MiB": (
        RISCV64,
        Paging(0x1000, 4),
        {
            0x1000 + 511 * 8: ("<Q", 0x2 << 10 | 1),
            0x2000 + 257 * 8: ("<Q", 0x3 << 10 | 1),
            0x3008: ("<Q", 0x80200 << 10 | 0xCB),
        },
        RISCV_TEXT,
        (0x80200000, 1 << 21),
    ),
    "riscv64 64 KiB by Svnapot": (
        RISCV64,
        Paging(0x1000, 3),
        {
            0x1000 + 257 * 8: ("<Q", 0x2 << 10 | 1),
            0x2008: ("<Q", 0x3 << 10 | 1),
            0x3008: ("<Q", 1 << 63 | 0x82348 << 10 | 0xCF),
        },
        RISCV_TEXT,
        (0x82340000, 1 << 16),
    ),
    "i386": (  # 0xc0801234: indexes 770, 1
        I386,
        Paging(0x1000, 2),
        {0x1000 + 770 * 4: ("<I", 0x2067), 0x2004: ("<I", 0x345163)},
        0xC0801234,
        (0x345000, 1 << 12),
    ),
    "i386 4 MiB, above 4 GiB by PSE-36": (
        I386,
        Paging(0x1000, 2),
        {0x1000 + 770 * 4: ("<I", 0x008021E3)},  # bit 13 is bit 32 of the address
        0xC0801234,
        (0x100800000, 1 << 22),
    ),
    "i386 PAE": (  # indexes 3, 4, 1; the root is aligned to 32 bytes only
        I386_PAE,
        Paging(0x1020, 3),
        {0x1020 + 3 * 8: ("<Q", 0x2001), 0x2000 + 4 * 8: ("<Q", 0x3067), 0x3008: ("<Q", 0x8000000345678163)},
        0xC0801234,
        (0x345678000, 1 << 12),
    ),
    "i386 PAE 2 MiB": (
        I386_PAE,
        Paging(0x1020, 3),
        {0x1020 + 3 * 8: ("<Q", 0x2001), 0x2000 + 4 * 8: ("<Q", 0x3456011E3)},  # bit 12 is PAT
        0xC0801234,
        (0x345600000, 1 << 21),
    ),
    "ppc64 page": (
        PPC64,
        Paging(0x10000, 4),
        {
            0x10000 + 0x1000 * 8: (">Q", TABLE | 0x2009),
            0x2008: (">Q", TABLE | 0x3009),
            0x3008: (">Q", TABLE | 0x4009),
            0x4008: (">Q", LEAF | 0x12345000 | 0x187),
        },
        POWER_TEXT + 5,
        (0x12345000, 1 << 12),
    ),
    "ppc64 little-endian, 64 KiB pages": (  # Linux: 13, 9, 9, 5 bits; the table below has 32 entries, 256 bytes
        PPC64LE,
        Paging(0x10000, 4),
        {
            0x10000 + 0x1000 * 8: (">Q", TABLE | 0x2009),
            0x2008: (">Q", TABLE | 0x3009),
            0x3008: (">Q", TABLE | 0x4105),
            0x4100: (">Q", LEAF | 0x12340000 | 0x187),
        },
        POWER_TEXT + 5,
        (0x12340000, 1 << 16),
    ),
    "ppc64 1 GiB": (
        PPC64,
        Paging(0x10000, 4),
        {0x10000 + 0x1000 * 8: (">Q", TABLE | 0x2009), 0x2008: (">Q", LEAF | 0x40000000 | 0x187)},
        POWER_TEXT,
        (0x40000000, 1 << 30),
    ),
}


def memory(entries: dict[int, tuple[str, int]], size: int = 0x24000) -> BytesImage:
    data = bytearray(size)
    for paddr, (code, value) in entries.items():
        struct.pack_into(code, data, paddr, value)
    return BytesImage({0: bytes(data)})


@pytest.mark.parametrize("case", CASES)
def test_translation(case: str) -> None:
    arch, paging, entries, vaddr, page = CASES[case]
    image = memory(entries)
    assert arch.translate_page(image.read, paging, vaddr) == page
    walk = arch.walk(image.read, paging, vaddr)
    assert (walk.page_size, walk.paddr) == (page[1], page[0] + vaddr % page[1])
    assert [(step.entry_paddr, step.entry) for step in walk.steps] == [
        (at, entry) for at, (_, entry) in entries.items()
    ]
    assert AddressSpace(arch, image, paging).translate(vaddr) == walk.paddr


@pytest.mark.parametrize("case", CASES)
def test_each_entry_can_be_missing(case: str) -> None:
    arch, paging, entries, vaddr, _ = CASES[case]
    for place in entries:
        rest = {at: entry for at, entry in entries.items() if at != place}
        with pytest.raises(NotMappedError) as caught:
            arch.translate_page(memory(rest).read, paging, vaddr)
        assert (caught.value.entry, caught.value.entry_paddr) == (0, place)
    last = list(entries)[-1]
    image = BytesImage({0: memory(entries).read(0, last)})
    with pytest.raises(NotInImageError, match=f"of virtual address {vaddr:#x}"):
        arch.translate_page(image.read, paging, vaddr)


ILLEGAL = [  # case, which of its entries, what it is instead, what the error says
    ("aarch64 page", 3, 0x7FFF12345000 | ARM_BLOCK, "no place at the lowest"),
    ("aarch64 page", 0, 0x2000 | ARM_BLOCK, "no place at this level"),
    ("aarch64 16 KiB granules, 4 levels", 1, 0x8000 | ARM_BLOCK, "no place at this level"),
    ("aarch64 page", 2, 0x4002, "not valid"),
    ("riscv64 Sv39", 2, 0x82345 << 10 | 1, "lowest level"),
    ("riscv64 Sv39", 2, 0x82345 << 10 | 5, "reserved"),
    ("riscv64 Sv39", 1, 0x80201 << 10 | 0xCF, "multiple of its size"),
    ("riscv64 Sv39", 2, 1 << 63 | 0x82344 << 10 | 0xCF, "reserved size"),
    ("riscv64 Sv39", 2, 0x82345 << 10 | 0xCE, "not valid"),
    ("i386", 1, 0x345162, "not present"),
    ("i386 PAE", 2, 0x345162, "not present"),
    ("ppc64 page", 3, 1 << 62 | 0x12345187, "not valid"),
    ("ppc64 page", 3, TABLE | 0x5009, "cannot be below"),
    ("ppc64 page", 2, TABLE | 0x4000, "cannot be below"),
    ("ppc64 page", 2, TABLE | 0x400A, "cannot be below"),
]


@pytest.mark.parametrize(("case", "number", "value", "text"), ILLEGAL)
def test_illegal_entries(case: str, number: int, value: int, text: str) -> None:
    arch, paging, entries, vaddr, _ = CASES[case]
    place = list(entries)[number]
    changed = {**entries, place: (entries[place][0], value)}
    with pytest.raises(NotMappedError, match=text) as caught:
        arch.translate_page(memory(changed).read, paging, vaddr)
    assert (caught.value.entry, caught.value.entry_paddr) == (value, place)


def test_page_of_a_size_that_no_power_has() -> None:
    arch, paging, entries, vaddr, _ = CASES["ppc64 little-endian, 64 KiB pages"]
    changed = {**entries, 0x3008: (">Q", TABLE | 0x4104)}  # a table of 16 entries below 2 MiB
    with pytest.raises(NotMappedError, match=r"2\*\*17 bytes"):
        arch.translate_page(memory(changed).read, paging, vaddr)


@pytest.mark.parametrize(
    ("arch", "levels", "vaddr", "canonical"),
    [
        (AARCH64, 4, 0xFFFF800000000000, True),
        (AARCH64, 4, 0xFFFF7FFFFFFFFFFF, False),
        (AARCH64, 4, 0x0000800000000000, False),
        (AARCH64, 3, 0xFFFFFFC000000000, True),
        (AARCH64_16K, 4, 0xFFFF800000000000, True),
        (AARCH64_16K, 3, 0xFFFFC00000000000, True),
        (AARCH64_16K, 3, 0xFFFF800000000000, False),
        (RISCV64, 3, 0xFFFFFFC000000000, True),
        (RISCV64, 3, 0xFFFFFFBFFFFFFFFF, False),
        (RISCV64, 3, 0x0000003FFFFFFFFF, True),
        (RISCV64, 4, 0x0000004000000000, True),
        (RISCV64, 5, 0xFF00000000000000, True),
        (I386, 2, 0xFFFFFFFF, True),
        (I386_PAE, 3, 0x7FFFFFFF, True),
        (I386, 2, 1 << 32, False),
        (PPC64, 4, 0xC008000000000000, True),
        (PPC64, 4, 0xC010000000000000, False),
    ],
)
def test_canonical(arch: Arch, levels: int, vaddr: int, canonical: bool) -> None:
    assert arch.is_canonical(vaddr, levels) is canonical
    if not canonical:
        with pytest.raises(NotMappedError):
            arch.translate_page(memory({}).read, Paging(0x1000, levels), vaddr)


def test_user_half() -> None:
    for arch in ARCHES:
        assert arch.is_user(0x10000)
        assert not arch.is_user((1 << 8 * arch.pointer_size) - 4096)


def test_registry() -> None:
    assert find_arch("aarch64") is AARCH64
    assert find_arch("aarch64", page_shift=14) is AARCH64_16K
    assert find_arch("ppc64", byteorder="little") is PPC64LE
    assert find_arch("ppc64", byteorder="big") is PPC64
    assert find_arch("riscv64").elf_machine == 243
    with pytest.raises(UnsupportedError, match="x86_64, big-endian"):
        find_arch("x86_64", byteorder="big")
    with pytest.raises(UnsupportedError, match="pages of 65536 bytes"):
        find_arch("aarch64", page_shift=16)


# NT_PRSTATUS: sizes are those of struct elf_prstatus on each machine
@pytest.mark.parametrize(
    ("arch", "size", "count", "known"),
    [
        (AARCH64, 392, 34, {"x0": 0, "x30": 30, "sp": 31, "pc": 32, "cpsr": 33}),
        (RISCV64, 376, 32, {"pc": 0, "ra": 1, "sp": 2, "fp": 8, "a0": 10, "t6": 31}),
        (PPC64, 504, 44, {"r0": 0, "r31": 31, "pc": 32, "msr": 33, "lr": 36, "cr": 38}),
        (PPC64LE, 504, 44, {"r1": 1, "ctr": 35, "xer": 37}),
        (I386, 144, 17, {"ebx": 0, "eax": 6, "orig_eax": 11, "eip": 12, "eflags": 14, "esp": 15, "ss": 16}),
    ],
)
def test_prstatus(arch: Arch, size: int, count: int, known: dict[str, int]) -> None:
    order = "<" if arch.byteorder == "little" else ">"
    word, code = (4, "I") if arch is I386 else (8, "Q")
    start = 72 if arch is I386 else 112
    desc = bytearray(size)
    struct.pack_into(order + "i", desc, 24 if arch is I386 else 32, -1234)
    struct.pack_into(f"{order}{count}{code}", desc, start, *(0x1000 + number for number in range(count)))
    pid, registers = arch.parse_prstatus(bytes(desc))
    assert pid == -1234
    assert {name: registers[name] - 0x1000 for name in known} == known
    with pytest.raises(CorruptError, match="too short"):
        arch.parse_prstatus(bytes(desc[: start + count * word - 1]))
