"""What processors with page tables in memory have in common: the way from a root table down to a page.

A processor says by data how its tables are laid out, and by `decode` what an entry means; the loop is here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal, NamedTuple

from kvm_dbg.arch.base import Arch, Paging, ReadPhys, Step, Walk
from kvm_dbg.errors import CorruptError, NotInImageError, NotMappedError


class Decoded(NamedTuple):
    """What an entry means.

    address: of the next table, or of the page. page_shift: log2 of the page's bytes, 0 for a table. reason: why it
    maps nothing, "" if it does.
    """

    address: int
    page_shift: int = 0
    reason: str = ""


class EntryArch(Arch):
    """A processor whose page tables are entries in memory.

    Attributes:
        entry_size: bytes.
        entry_byteorder: "little" or "big", of entries whatever the kernel's own is.
        flag_names: bits of a leaf entry, and the manual's names.
    """

    entry_size = 8
    entry_byteorder: Literal["little", "big"] = "little"
    flag_names: tuple[tuple[int, str], ...]

    def is_user(self, vaddr: int) -> bool:
        return 0 <= vaddr < 1 << 8 * self.pointer_size - 1

    def read_entry(self, read_phys: ReadPhys, place: int, name: str, vaddr: int) -> int:
        """Return the entry at a physical address; an error says which one, of which walk, is not in the image."""
        try:
            return int.from_bytes(read_phys(place, self.entry_size), self.entry_byteorder)
        except NotInImageError as error:
            role = f"the {name} of virtual address {vaddr:#x}"
            raise NotInImageError(error.address, error.size, error.reason, error.path, role) from None

    def walk(self, read_phys: ReadPhys, paging: Paging, vaddr: int) -> Walk:
        steps: list[Step] = []

        def record(paddr: int, size: int) -> bytes:
            data = read_phys(paddr, size)
            name = self.levels[max(paging.levels - 1 - len(steps), 0)][0]
            steps.append(Step(name, paddr, int.from_bytes(data, self.entry_byteorder)))
            return data

        base, page_size = self.translate_page(record, paging, vaddr)
        leaf = steps[-1].entry
        flags = tuple(name for bit, name in self.flag_names if leaf & bit)
        return Walk(vaddr, base + (vaddr & page_size - 1), page_size, tuple(steps), flags)


class TableArch(EntryArch):
    """A processor whose tables fill a page each, but perhaps the top one.

    Attributes:
        max_address_bits: bits of an address that are translated at most.
    """

    max_address_bits = 64

    @abstractmethod
    def decode(self, entry: int, level: int) -> Decoded:
        """Return what an entry means; `level` counts from 0, the one of the smallest pages."""

    def _address_bits(self, levels: int) -> int:
        bits = self.levels[levels - 1][1] + self.page_shift - (self.entry_size.bit_length() - 1)
        return min(bits, self.max_address_bits)

    def is_canonical(self, vaddr: int, levels: int) -> bool:
        bits = self._address_bits(levels)
        top = vaddr >> bits - 1
        return top == 0 or top == (1 << 8 * self.pointer_size - bits + 1) - 1

    def translate_page(self, read_phys: ReadPhys, paging: Paging, vaddr: int) -> tuple[int, int]:
        table, levels, _ = paging
        if not self.is_canonical(vaddr, levels):
            raise NotMappedError(vaddr, f"not canonical with {levels} levels of page tables")
        below = vaddr & (1 << self._address_bits(levels)) - 1
        for level in range(levels - 1, -1, -1):
            name, shift = self.levels[level]
            place = table + (below >> shift) * self.entry_size
            below &= (1 << shift) - 1
            entry = self.read_entry(read_phys, place, name, vaddr)
            table, page_shift, reason = self.decode(entry, level)
            if page_shift and not table & (1 << page_shift) - 1:
                return table, 1 << page_shift
            if page_shift:
                reason = "the address of a large page is not a multiple of its size"
            if reason:
                raise NotMappedError(vaddr, reason, level=name, entry=entry, entry_paddr=place)
        raise NotMappedError(vaddr, "the tables do not end in a page")


def parse_linux_prstatus(
    arch: Arch, desc: bytes, names: tuple[str, ...], word: int = 8
) -> tuple[int, Mapping[str, int]]:
    """Return (pr_pid, registers) of an NT_PRSTATUS descriptor whose pr_reg holds `names` in words of `word` bytes.

    Source: Linux include/uapi/linux/elfcore.h (struct elf_prstatus: pr_pid at 32 and pr_reg at 112 where words have
    64 bits, at 24 and 72 where they have 32).

    Raises:
        CorruptError: the descriptor is too short.
    """
    pid_at, start = (32, 112) if word == 8 else (24, 72)
    end = start + word * len(names)
    if len(desc) < end:
        text = f"an NT_PRSTATUS note of {len(desc)} bytes is too short for {arch.name}: {end} are needed"
        raise CorruptError(0, text)
    order: Literal["little", "big"] = "little" if arch.byteorder == "little" else "big"
    values = [int.from_bytes(desc[at : at + word], order) for at in range(start, end, word)]
    pid = int.from_bytes(desc[pid_at : pid_at + 4], order, signed=True)
    return pid, dict(zip(names, values, strict=True))
