"""Address spaces of processes.

Sources: sys/arch/x86/include/pmap.h (struct pmap: pm_pdirpa is the physical address of the top page table, an array of
them with PAE), sys/uvm/uvm_map.h (struct vm_map).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.errors import CommandError
from kvm_dbg.kernel.layout import Record, read_pointer
from kvm_dbg.kernel.netbsd.proc import find_proc
from kvm_dbg.kernel.netbsd.state import PK_SYSTEM, SDEAD, SZOMB
from kvm_dbg.kernel.space import kernel_space

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel
    from kvm_dbg.kernel.space import ImageSpace

PMAP, ROOT = ("struct vmspace", "vm_map.pmap"), ("struct pmap", "pm_pdirpa")


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
    root = read_pointer(kernel, pmap + kernel.types.offset_of(*ROOT))
    return kernel_space(kernel).with_root(root)
