"""Address spaces of processes.

Sources: sys/arch/x86/include/pmap.h (struct pmap: pm_pdirpa is the physical address of the top page table, an array of
the four page directories with PAE, which are anywhere), sys/uvm/uvm_map.h (struct vm_map).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from kvm_dbg.arch.base import Arch, Paging, Walk
from kvm_dbg.arch.i386 import I386_PAE, I386_PAE_DIRECTORIES
from kvm_dbg.errors import CommandError
from kvm_dbg.kernel.layout import Record, read_pointer
from kvm_dbg.kernel.netbsd.proc import find_proc
from kvm_dbg.kernel.netbsd.state import PK_SYSTEM, SDEAD, SZOMB
from kvm_dbg.kernel.space import ImageSpace, kernel_space

if TYPE_CHECKING:
    from kvm_dbg.image.base import MemoryImage
    from kvm_dbg.kernel.base import Kernel

PMAP, ROOT = ("struct vmspace", "vm_map.pmap"), ("struct pmap", "pm_pdirpa")
PAE_ENTRY = struct.Struct("<4Q")  # pm_pdirpa with PAE
LEVELS, GIGABYTE = 2, 30


def address_space(kernel: Kernel, address: int) -> ImageSpace:
    """Return the user address space of the process at `address`, or of that whose LWP is there.

    Raises:
        CommandError: there is no such process, or it has no memory of its own.
        ReadError: it cannot be read.
    """
    proc = find_proc(kernel, address)
    if proc is None:
        raise CommandError(f"no process or LWP is at {address:#x}")
    return user_space(kernel, proc)


def user_space(kernel: Kernel, proc: Record) -> ImageSpace:
    """Return a process's address space. Raises CommandError, ReadError."""
    if proc["flag"] & PK_SYSTEM or proc["stat"] in (SZOMB, SDEAD) or not proc["vmspace"]:
        kind = "the kernel's own" if proc["flag"] & PK_SYSTEM else "gone"
        raise CommandError(f"process {proc['pid']} ({proc.text('comm')}) has no user address space: it is {kind}")
    pmap = read_pointer(kernel, proc["vmspace"] + kernel.types.offset_of(*PMAP))
    place, own = pmap + kernel.types.offset_of(*ROOT), kernel_space(kernel)
    if own.arch in (I386_PAE, I386_PAE_DIRECTORIES):
        data = kernel.read(place, PAE_ENTRY.size)
        return PaeSpace(I386_PAE_DIRECTORIES, kernel.image, PAE_ENTRY.unpack(data))
    return own.with_root(read_pointer(kernel, place))


class PaeSpace(ImageSpace):
    """The memory of a process by the physical addresses of its four page directories of PAE."""

    def __init__(self, arch: Arch, image: MemoryImage, directories: tuple[int, ...]) -> None:
        super().__init__(arch, image, Paging(directories[0], LEVELS))
        self._directories = directories

    def _paging(self, vaddr: int) -> Paging:
        """Return page tables in which the directory for `vaddr` is where it would be if the four were in a row."""
        number = vaddr >> GIGABYTE & len(self._directories) - 1
        return Paging(self._directories[number] - (number << self._page_shift), LEVELS)

    def _translate_page(self, vaddr: int) -> tuple[int, int]:
        return self.arch.translate_page(self._tables.read, self._paging(vaddr), vaddr)

    def walk(self, vaddr: int) -> Walk:
        return self.arch.walk(self._image.read, self._paging(vaddr), vaddr)
