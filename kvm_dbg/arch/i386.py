"""i386: page tables of two levels, and of three with PAE, registers.

Sources: Intel SDM volume 3, chapters 4.3 ("32-bit paging", with PSE-36) and 4.4 ("PAE paging"); gdb's
features/i386/32bit-core.xml (names and order of registers); Linux arch/x86/include/asm/user_32.h (struct
user_regs_struct, which pr_reg of NT_PRSTATUS is).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from kvm_dbg.arch.base import Permissions, Register, Walk
from kvm_dbg.arch.table import Decoded, TableArch, parse_linux_prstatus

PRESENT, WRITABLE, PAGE_SIZE_BIT, EXECUTE_DISABLE = 1 << 0, 1 << 1, 1 << 7, 1 << 63
FLAG_NAMES = (
    (1 << 0, "P"),
    (1 << 1, "RW"),
    (1 << 2, "US"),
    (1 << 3, "PWT"),
    (1 << 4, "PCD"),
    (1 << 5, "A"),
    (1 << 6, "D"),
    (1 << 7, "PS"),
    (1 << 8, "G"),
    (1 << 63, "XD"),
)
PAE_ADDRESS = 0x000F_FFFF_FFFF_F000
PAT_LARGE = 1 << 12

# fmt: off
REGISTERS = (
    "eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip", "eflags", "cs", "ss", "ds", "es", "fs", "gs",
)
USER_REGS = (
    "ebx", "ecx", "edx", "esi", "edi", "ebp", "eax", "ds", "es", "fs", "gs", "orig_eax", "eip", "cs", "eflags", "esp",
    "ss",
)
# fmt: on


USER_END = 0xC000_0000  # the usual split between user and kernel


class I386Arch(TableArch):
    """One way of paging of an i386; stateless.

    Args:
        user_end: the first address that is the kernel's; a kernel with an address space of its own has it low.
    """

    name = "i386"
    byteorder = "little"
    pointer_size = 4
    page_shift = 12
    elf_machine = 3
    max_address_bits = 32
    flag_names = FLAG_NAMES
    registers = tuple(Register(name, 32) for name in REGISTERS)

    def __init__(self, user_end: int = USER_END) -> None:
        self.user_end = user_end

    def split_at(self, user_end: int) -> Self:
        """Return the same processor under a kernel whose own addresses begin at `user_end`."""
        return self if user_end == self.user_end else type(self)(user_end)

    def is_user(self, vaddr: int) -> bool:
        return 0 <= vaddr < self.user_end

    def permissions(self, walk: Walk) -> Permissions:
        entries = [step.entry for step in walk.steps if step.name != "PDPTE"]  # whose bits 1 and 63 are reserved
        return Permissions(
            all(entry & WRITABLE for entry in entries), not any(entry & EXECUTE_DISABLE for entry in entries)
        )

    def parse_prstatus(self, desc: bytes) -> tuple[int, Mapping[str, int]]:
        return parse_linux_prstatus(self, desc, USER_REGS, 4)


class _TwoLevels(I386Arch):
    """32-bit paging."""

    entry_size = 4
    levels = (("PTE", 12), ("PDE", 22))

    def decode(self, entry: int, level: int) -> Decoded:
        if not entry & PRESENT:
            return Decoded(0, reason="not present" if entry else "the entry is empty")
        if level == 0:
            return Decoded(entry & 0xFFFF_F000, 12)
        if not entry & PAGE_SIZE_BIT:
            return Decoded(entry & 0xFFFF_F000)
        return Decoded(entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32, 22)


class _ThreeLevels(I386Arch):
    """PAE paging: the root has four entries."""

    levels: tuple[tuple[str, int], ...] = (("PTE", 12), ("PDE", 21), ("PDPTE", 30))

    def decode(self, entry: int, level: int) -> Decoded:
        if not entry & PRESENT:
            return Decoded(0, reason="not present" if entry else "the entry is empty")
        address = entry & PAE_ADDRESS
        if level == 0:
            return Decoded(address, 12)
        if level == 1 and entry & PAGE_SIZE_BIT:
            return Decoded(address & ~PAT_LARGE, 21)
        return Decoded(address)


class _Directories(_ThreeLevels):
    """PAE paging without the four entries at its root: the page directories that they lead to, one after another.

    NetBSD keeps them so for the kernel (lib/libkvm/kvm_i386pae.c).
    """

    levels = (("PTE", 12), ("PDE", 21))

    def _address_bits(self, levels: int) -> int:  # noqa: ARG002 - it has but one number
        return 32


I386 = _TwoLevels()
I386_PAE = _ThreeLevels()
I386_PAE_DIRECTORIES = _Directories()
