"""AArch64: page tables of 4 and 16 KiB granules, registers.

A processor has two root tables, TTBR0_EL1 for addresses whose top bits are clear and TTBR1_EL1 for those whose top
bits are set; a `Paging` holds one of them, and it is its maker's business which.

Sources: Arm Architecture Reference Manual for A-profile (DDI 0487), D8.2 (translation granules: index bits of each
level) and D8.3 (descriptors: bits 1:0, output address 47:12, attributes); gdb's features/aarch64-core.xml (names and
order of registers); Linux arch/arm64/include/uapi/asm/ptrace.h (struct user_pt_regs, which pr_reg of NT_PRSTATUS is).
"""

from __future__ import annotations

from collections.abc import Mapping

from kvm_dbg.arch.base import Permissions, Register, Walk
from kvm_dbg.arch.table import Decoded, TableArch, parse_linux_prstatus

VALID, TABLE = 1 << 0, 1 << 1
TABLE_READ_ONLY, TABLE_PXN = 1 << 62, 1 << 59  # APTable[1], PXNTable: of all that lies below a table
ADDRESS_END = 1 << 48
FLAG_NAMES = (
    (1 << 6, "EL0"),  # AP[1]: user code may use it
    (1 << 7, "RO"),  # AP[2]
    (1 << 10, "AF"),
    (1 << 11, "nG"),
    (1 << 51, "DBM"),
    (1 << 52, "Contiguous"),
    (1 << 53, "PXN"),
    (1 << 54, "UXN"),
)
GENERAL = tuple(f"x{number}" for number in range(31))


class _AArch64(TableArch):
    """AArch64 with one granule; stateless.

    Args:
        page_shift: log2 of the granule's bytes.
        highest_block: the highest level (from 0, the pages') that can have blocks.
    """

    name = "aarch64"
    byteorder = "little"
    pointer_size = 8
    elf_machine = 183
    max_address_bits = 48
    flag_names = FLAG_NAMES
    registers = (
        *(Register(name, 64) for name in (*GENERAL, "sp", "pc")),
        Register("cpsr", 32),
    )

    def __init__(self, page_shift: int, highest_block: int) -> None:
        self.page_shift = page_shift
        self._highest_block = highest_block
        step = page_shift - 3
        self.levels = tuple((f"L{3 - level}", page_shift + level * step) for level in range(4))

    def decode(self, entry: int, level: int) -> Decoded:
        if not entry & VALID:
            return Decoded(0, reason="not valid" if entry else "the entry is empty")
        shift = self.levels[level][1]
        if level == 0:
            if not entry & TABLE:
                return Decoded(0, reason="a block has no place at the lowest level")
            return Decoded(entry & ADDRESS_END - (1 << shift), shift)
        if entry & TABLE:
            return Decoded(entry & ADDRESS_END - (1 << self.page_shift))
        if level > self._highest_block:
            return Decoded(0, reason="a block has no place at this level")
        return Decoded(entry & ADDRESS_END - (1 << shift), shift)

    def permissions(self, walk: Walk) -> Permissions:
        tables = [step.entry for step in walk.steps[:-1]]
        return Permissions(
            "RO" not in walk.flags and not any(entry & TABLE_READ_ONLY for entry in tables),
            "PXN" not in walk.flags and not any(entry & TABLE_PXN for entry in tables),
        )

    def parse_prstatus(self, desc: bytes) -> tuple[int, Mapping[str, int]]:
        return parse_linux_prstatus(self, desc, (*GENERAL, "sp", "pc", "cpsr"))


AARCH64 = _AArch64(12, 2)
AARCH64_16K = _AArch64(14, 1)
