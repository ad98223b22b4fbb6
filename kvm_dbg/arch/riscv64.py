"""RISC-V with 64 bits: page tables of Sv39, Sv48 and Sv57, registers.

Sources: The RISC-V Instruction Set Manual, volume II (privileged), chapters "Supervisor-Level ISA" (Sv39, Sv48, Sv57:
levels, bits of entries, misaligned superpages) and "Svnapot"; gdb's features/riscv/64bit-cpu.xml (names and order of
registers); Linux arch/riscv/include/uapi/asm/ptrace.h (struct user_regs_struct, which pr_reg of NT_PRSTATUS is).
"""

from __future__ import annotations

from collections.abc import Mapping

from kvm_dbg.arch.base import Permissions, Register, Walk
from kvm_dbg.arch.table import Decoded, TableArch, parse_linux_prstatus

V, R, W, X = 1 << 0, 1 << 1, 1 << 2, 1 << 3
N = 1 << 63  # a naturally aligned range of pages
NAPOT_64K = 0b1000  # in the low bits of the page's number
PAGE_NUMBER = (1 << 54) - (1 << 10)
FLAG_NAMES = (
    (V, "V"),
    (R, "R"),
    (W, "W"),
    (X, "X"),
    (1 << 4, "U"),
    (1 << 5, "G"),
    (1 << 6, "A"),
    (1 << 7, "D"),
    (N, "N"),
)

# fmt: off
GENERAL = (
    "ra", "sp", "gp", "tp", "t0", "t1", "t2", "fp", "s1", "a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7",
    "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
)
# fmt: on


class _Riscv64(TableArch):
    """The one riscv64; stateless."""

    name = "riscv64"
    byteorder = "little"
    pointer_size = 8
    page_shift = 12
    elf_machine = 243
    flag_names = FLAG_NAMES
    registers = tuple(Register(name, 64) for name in ("zero", *GENERAL, "pc"))
    levels = tuple((f"PTE level {level}", 12 + 9 * level) for level in range(5))

    def decode(self, entry: int, level: int) -> Decoded:
        if not entry & V:
            return Decoded(0, reason="not valid" if entry else "the entry is empty")
        if entry & (R | W) == W:
            return Decoded(0, reason="writable and not readable is reserved")
        address = (entry & PAGE_NUMBER) << 2
        if not entry & (R | W | X):
            return Decoded(address, reason="" if level else "a pointer to a table at the lowest level")
        if not entry & N:
            return Decoded(address, self.levels[level][1])
        if level or address >> 12 & 15 != NAPOT_64K:
            return Decoded(0, reason="a range of pages of a reserved size")
        return Decoded(address & -(1 << 16), 16)

    def permissions(self, walk: Walk) -> Permissions:
        return Permissions("W" in walk.flags, "X" in walk.flags)

    def parse_prstatus(self, desc: bytes) -> tuple[int, Mapping[str, int]]:
        return parse_linux_prstatus(self, desc, ("pc", *GENERAL))


RISCV64 = _Riscv64()
