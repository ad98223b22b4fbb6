"""x86_64: 4- and 5-level page tables.

Sources: Intel SDM volume 3 chapter 4.5 ("4-level paging and 5-level paging": names and bits of entries, reserved
bits); AMD APM volume 2 chapter 7.10 (SME's C-bit); Linux arch/x86/include/asm/pgtable_types.h (_PAGE_PROTNONE is
_PAGE_GLOBAL in an entry that is not present), pgtable-invert.h (since 4.19, commit 6b28baca9b1f, and in every
kernel with the L1TF mitigation, the frame number of a non-zero entry that is not present is stored inverted)
and pgtable_64.h (swap entries: type in bits 59-63, inverted offset in bits 9-58).
"""

from __future__ import annotations

from collections.abc import Mapping

from kvm_dbg.arch.base import Arch, Paging, Permissions, ReadPhys, Step, Walk
from kvm_dbg.arch.x86_64_register import REGISTERS, parse_prstatus
from kvm_dbg.errors import NotInImageError, NotMappedError

PRESENT = 1 << 0
WRITABLE = 1 << 1  # R/W: counts if it is set in every entry (SDM volume 3, 4.6.1)
EXECUTE_DISABLE = 1 << 63  # XD: counts if it is set in any
PAGE_SIZE_BIT = 1 << 7  # PS
GLOBAL = 1 << 8  # G; PROT_NONE where P is clear
ADDRESS_MASK = 0x000F_FFFF_FFFF_F000  # bits 51:12
TOP_ADDRESS_BIT = 1 << 51  # set in an inverted frame number, never in the address of real memory
PAT_LARGE = 1 << 12  # PAT of a 2 MiB or 1 GiB page: no part of the address
FIRST_SPECIAL_SWAP_TYPE = 22  # include/linux/swap.h: migration, poison, device and marker types are at the top of 32

# Entry names and shifts from the leaf upwards; LEVELS[n] is the entry that indexes with bits [shift+8:shift].
LEVELS = (("PTE", 12), ("PDE", 21), ("PDPTE", 30), ("PML4E", 39), ("PML5E", 48))

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


class _X86_64(Arch):  # noqa: N801 - the processor's name
    """The one x86_64; stateless."""

    name = "x86_64"
    byteorder = "little"
    pointer_size = 8
    page_shift = 12
    elf_machine = 62
    registers = REGISTERS
    levels = LEVELS

    def is_canonical(self, vaddr: int, levels: int) -> bool:
        """Return whether the bits above the top level's index all equal its highest bit."""
        top = vaddr >> (11 + 9 * levels)
        return top == 0 or top == (1 << (53 - 9 * levels)) - 1

    def is_user(self, vaddr: int) -> bool:
        return 0 <= vaddr < 1 << 63

    def translate_page(self, read_phys: ReadPhys, paging: Paging, vaddr: int) -> tuple[int, int]:
        root, levels, encryption_mask = paging
        if not self.is_canonical(vaddr, levels):
            raise NotMappedError(vaddr, f"not canonical with {levels} levels of page tables")
        table = root
        keep = ADDRESS_MASK & ~encryption_mask
        level = levels
        while True:
            level -= 1
            shift = 12 + 9 * level
            entry_paddr = table + ((vaddr >> shift & 511) << 3)
            try:
                entry = int.from_bytes(read_phys(entry_paddr, 8), "little")
            except NotInImageError as error:
                raise _table_missing(error, vaddr, level) from None
            if level == 0 or not entry & PRESENT or entry & PAGE_SIZE_BIT:
                return _leaf(vaddr, level, entry, entry_paddr, keep), 1 << shift
            table = entry & keep

    def walk(self, read_phys: ReadPhys, paging: Paging, vaddr: int) -> Walk:
        steps: list[Step] = []

        def record(paddr: int, size: int) -> bytes:
            data = read_phys(paddr, size)
            steps.append(Step(LEVELS[paging.levels - 1 - len(steps)][0], paddr, int.from_bytes(data, "little")))
            return data

        base, page_size = self.translate_page(record, paging, vaddr)
        return Walk(vaddr, base + (vaddr & (page_size - 1)), page_size, tuple(steps), flags_of(steps[-1].entry))

    def permissions(self, walk: Walk) -> Permissions:
        entries = [step.entry for step in walk.steps]
        return Permissions(
            all(entry & WRITABLE for entry in entries), not any(entry & EXECUTE_DISABLE for entry in entries)
        )

    def parse_prstatus(self, desc: bytes) -> tuple[int, Mapping[str, int]]:
        return parse_prstatus(desc)


X86_64 = _X86_64()


def flags_of(entry: int) -> tuple[str, ...]:
    """Return the names of a leaf entry's flags; "PROTNONE" for a page that is mapped without any access."""
    if not entry & PRESENT:
        return ("PROTNONE",) if entry & GLOBAL else ("INVALID",)
    return tuple(name for bit, name in FLAG_NAMES if entry & bit)


def describe_absent(entry: int) -> str:
    """Return what an entry says that maps nothing: empty, a swap entry, or one of the kernel's special ones."""
    if not entry:
        return "the entry is empty"
    kind = entry >> 59
    offset = (~entry >> 9) & ((1 << 50) - 1)
    if kind >= FIRST_SPECIAL_SWAP_TYPE:
        return f"not present, special swap type {kind} (migration, poisoned or device memory, or a marker)"
    return f"not present, swapped out (swap area {kind}, page {offset:#x})"


def _leaf(vaddr: int, level: int, entry: int, entry_paddr: int, keep: int) -> int:
    """Return the physical address that a leaf entry maps `vaddr`'s page to, or raise what is wrong with it."""
    name, shift = LEVELS[level]
    if not entry & PRESENT:
        # Present to the kernel, not to the processor: PROT_NONE (and NUMA hinting), or a huge page being split
        # (pmd_mkinvalid() leaves PS set). Huge pages need PS: a swap entry never has it.
        huge = bool(entry & PAGE_SIZE_BIT)
        if not (huge if level in (1, 2) else level == 0 and entry & GLOBAL):
            raise NotMappedError(vaddr, describe_absent(entry), level=name, entry=entry, entry_paddr=entry_paddr)
        if entry & TOP_ADDRESS_BIT:
            return ~entry & keep & -(1 << shift)  # of a large page only the bits of its frame number are inverted
    elif level > 2:
        raise NotMappedError(vaddr, "reserved bit 7 is set", level=name, entry=entry, entry_paddr=entry_paddr)
    paddr = entry & keep
    if not level:
        return paddr
    below = paddr & ((1 << shift) - 1) & ~PAT_LARGE
    if below:
        reason = f"reserved address bits {below:#x} of a large page are set"
        raise NotMappedError(vaddr, reason, level=name, entry=entry, entry_paddr=entry_paddr)
    return paddr & ~PAT_LARGE


def _table_missing(error: NotInImageError, vaddr: int, level: int) -> NotInImageError:
    """Return the error again, saying which entry of which walk it is about."""
    return NotInImageError(
        error.address, error.size, error.reason, error.path, f"the {LEVELS[level][0]} of virtual address {vaddr:#x}"
    )
