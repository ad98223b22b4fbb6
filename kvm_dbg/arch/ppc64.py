"""64-bit Power of either byte order: the radix tree of page tables, registers.

Tables differ in size from level to level: each entry says how large the next one is, and only the root's size must be
known. The hashed page table, the other way in which these processors translate, is no tree; FreeBSD's minidumps, which
carry it as a part of their own, have its reader in the room of images.

Sources: Power ISA 3.0B, book III, 5.7.10 ("Radix Tree Translation": effective addresses of 52 bits below the two bits
of the quadrant, RTS, RPDS, entries' bits V, L, NLB, NLS, RPN, EAA); gdb's features/rs6000/power64-core.xml (names and
order of registers); Linux arch/powerpc/include/uapi/asm/ptrace.h (struct pt_regs, with which pr_reg of NT_PRSTATUS
begins).
"""

from __future__ import annotations

from collections.abc import Mapping

from kvm_dbg.arch.base import Paging, Permissions, ReadPhys, Register, Walk
from kvm_dbg.arch.table import EntryArch, parse_linux_prstatus
from kvm_dbg.errors import NotMappedError

VALID, LEAF = 1 << 63, 1 << 62
PAGE_ADDRESS = 0x00FF_FFFF_FFFF_F000  # RPN: bits 7 to 51, as the manual counts from the left
TABLE_ADDRESS = 0x00FF_FFFF_FFFF_FF00  # NLB: bits 4 to 55
TABLE_SIZE = 0x1F  # NLS: log2 of the next table's entries
ROOT_BITS = 13  # log2 of the root's entries, as Linux and FreeBSD have it (RPDS)
EFFECTIVE_BITS = 52  # of an address below the quadrant's bits (RTS)
MAX_LEVELS = 6
PAGE_SHIFTS = (12, 16, 21, 30, 39)
FLAG_NAMES = (
    (1 << 0, "EAA execute"),
    (1 << 1, "EAA write"),
    (1 << 2, "EAA read"),
    (1 << 3, "EAA privileged"),
    (1 << 7, "C"),
    (1 << 8, "R"),
)
GENERAL = tuple(f"r{number}" for number in range(32))
USER_REGS = (*GENERAL, "pc", "msr", "orig_r3", "ctr", "lr", "xer", "cr", "softe", "trap", "dar", "dsisr", "result")


class _Ppc64(EntryArch):
    """One byte order of the memory; entries of page tables are big-endian in both.

    Args:
        byteorder: "little" or "big".
    """

    name = "ppc64"
    pointer_size = 8
    page_shift = 12
    elf_machine = 21
    flag_names = FLAG_NAMES
    registers = (
        *(Register(name, 64) for name in (*GENERAL, "pc", "msr")),
        Register("cr", 32),
        Register("lr", 64),
        Register("ctr", 64),
        Register("xer", 32),
    )
    levels = (("PTE", 12), ("PDE 3", 21), ("PDE 2", 30), ("PDE 1", 39))
    entry_byteorder = "big"

    def __init__(self, byteorder: str) -> None:
        self.byteorder = byteorder

    def is_canonical(self, vaddr: int, levels: int) -> bool:  # noqa: ARG002 - tables say themselves how deep they are
        return not vaddr >> EFFECTIVE_BITS & 0x3FF and 0 <= vaddr < 1 << 64  # the quadrant may be any

    def translate_page(self, read_phys: ReadPhys, paging: Paging, vaddr: int) -> tuple[int, int]:
        if not self.is_canonical(vaddr, paging.levels):
            raise NotMappedError(vaddr, f"more than {EFFECTIVE_BITS} bits below the quadrant's")
        table, shift, bits = paging.root, EFFECTIVE_BITS, ROOT_BITS
        for depth in range(MAX_LEVELS):
            shift -= bits
            name = self.levels[max(len(self.levels) - 1 - depth, 0)][0]
            place = table + (vaddr >> shift & (1 << bits) - 1) * self.entry_size
            entry = self.read_entry(read_phys, place, name, vaddr)
            bits = entry & TABLE_SIZE
            reason = ""
            if not entry & VALID:
                reason = "not valid" if entry else "the entry is empty"
            elif entry & LEAF:
                if shift in PAGE_SHIFTS:
                    return entry & PAGE_ADDRESS & -(1 << shift), 1 << shift
                reason = f"a page of 2**{shift} bytes cannot be"
            elif not 0 < bits <= shift - PAGE_SHIFTS[0]:
                reason = f"a table of 2**{bits} entries cannot be below it"
            table = entry & TABLE_ADDRESS
            if reason:
                raise NotMappedError(vaddr, reason, level=name, entry=entry, entry_paddr=place)
        raise NotMappedError(vaddr, "the tables do not end in a page")

    def permissions(self, walk: Walk) -> Permissions:
        return Permissions("EAA write" in walk.flags, "EAA execute" in walk.flags)

    def parse_prstatus(self, desc: bytes) -> tuple[int, Mapping[str, int]]:
        return parse_linux_prstatus(self, desc, USER_REGS)


PPC64 = _Ppc64("big")
PPC64LE = _Ppc64("little")
