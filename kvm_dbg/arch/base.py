"""What a processor is to the rest of kvm_dbg: page tables, registers, word size.

An `Arch` is handed `read_phys(paddr, size) -> bytes` and never sees an image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

ReadPhys = Callable[[int, int], bytes]  # (paddr, size in bytes) -> bytes; raises ReadError


class Paging(NamedTuple):
    """How one address space is set up.

    root: physical address of the top table. levels: number of table levels. encryption_mask: bits of an entry that
    say "encrypted" and are no part of the address (AMD's SME C-bit), 0 if there is none.
    """

    root: int
    levels: int
    encryption_mask: int = 0


class Step(NamedTuple):
    """One entry that a walk read: `name` as in the vendor's manual ("PML4E"), where it is, and its value."""

    name: str
    entry_paddr: int
    entry: int


class Walk(NamedTuple):
    """A successful walk: vaddr -> paddr, through `steps`; the leaf maps `page_size` bytes."""

    vaddr: int
    paddr: int
    page_size: int
    steps: tuple[Step, ...]
    flags: tuple[str, ...]  # the leaf's, as in the vendor's manual: "P", "RW", "US", "NX", ...


class Permissions(NamedTuple):
    """What all entries of a walk together let the kernel's own code do with the page."""

    write: bool
    execute: bool


class Register(NamedTuple):
    """One register that a debugger sees: its name as gdb calls it, and its size in bits."""

    name: str
    bits: int


class Arch(ABC):
    """One kind of processor. Stateless: everything that differs between machines is passed in."""

    name: str
    byteorder: str  # "little" or "big"
    pointer_size: int  # bytes
    page_shift: int
    elf_machine: int  # e_machine
    registers: tuple[Register, ...]  # general registers in gdb's order
    levels: tuple[tuple[str, int], ...]  # page tables' entries from the leaf upwards: name, log2 of the bytes it maps

    @abstractmethod
    def walk(self, read_phys: ReadPhys, paging: Paging, vaddr: int) -> Walk:
        """Translate `vaddr`, keeping every entry read.

        Raises:
            NotMappedError: not canonical, or an entry is not present (which entry, its value).
            ReadError: a table is not in the image.
        """

    @abstractmethod
    def translate_page(self, read_phys: ReadPhys, paging: Paging, vaddr: int) -> tuple[int, int]:
        """Return (paddr of the start of the page that holds `vaddr`, its size in bytes); the fast form of `walk`."""

    @abstractmethod
    def permissions(self, walk: Walk) -> Permissions:
        """Return what the entries of a walk allow."""

    @abstractmethod
    def is_canonical(self, vaddr: int, levels: int) -> bool:
        """Return whether the processor would accept `vaddr` at all."""

    @abstractmethod
    def is_user(self, vaddr: int) -> bool:
        """Return whether `vaddr` lies in the user's half of the address space."""

    @abstractmethod
    def parse_prstatus(self, desc: bytes) -> tuple[int, Mapping[str, int]]:
        """Return (pr_pid, registers by name) of an NT_PRSTATUS descriptor.

        Raises:
            CorruptError: the descriptor is too short.
        """
