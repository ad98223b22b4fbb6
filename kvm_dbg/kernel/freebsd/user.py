"""The memory of processes, by their own page tables.

Sources: sys/amd64/include/pmap.h (pm_cr3: the physical address of the top table, since 11; pm_pml4, before that: where
the kernel has it mapped), sys/vm/vm_map.h (a vmspace
ends with its pmap), sys/amd64/amd64/minidump_machdep.c and sys/kern/kern_dump.c: a minidump has what the kernel has
mapped for itself; page tables and pages of processes are none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.errors import CommandError, NotInImageError
from kvm_dbg.kernel.bsd.kernel import BsdKernel
from kvm_dbg.kernel.freebsd.offset import require_types
from kvm_dbg.kernel.freebsd.proc import MISSING, find_proc
from kvm_dbg.kernel.freebsd.state import P_KPROC, PRS_ZOMBIE
from kvm_dbg.kernel.layout import Layout, Names, Record

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel
    from kvm_dbg.kernel.space import ImageSpace

ROOTS = {"x86_64": 0x000F_FFFF_FFFF_F000}  # processors whose tables are found, and the address' bits in their register
PMAP: dict[str, Names] = {"physical": ("vm_pmap.pm_cr3", None), "virtual": ("vm_pmap.pm_pml4", None)}


def has_memory(proc: Record) -> bool:
    """Return whether a process has memory of its own; zombies and processes of the kernel have none."""
    numbers = proc.numbers
    return numbers.get("state") != PRS_ZOMBIE and not numbers.get("flag", 0) & P_KPROC and numbers.get("vmspace") != 0


def user_space(kernel: Kernel, proc: Record) -> ImageSpace:
    """Return a process's address space.

    Raises:
        CommandError: it has none, or nothing is known of those of this processor.
        ReadError, MemberNotFound, TypeNotFound: it cannot be read; minidumps have none of them.
    """
    require_types(kernel, "processes' page tables")
    pid = proc.numbers.get("pid", "?")
    if not has_memory(proc):
        kind = "gone" if proc.numbers.get("state") == PRS_ZOMBIE else "the kernel's own"
        raise CommandError(f"process {pid} ({proc.text('comm')}) has no user address space: it is {kind}")
    mask = ROOTS.get(kernel.arch.name)
    if mask is None or not isinstance(kernel, BsdKernel):
        raise CommandError(f"the memory of processes is not read on {kernel.arch.name}")
    pmap = Layout(kernel.types, "struct vmspace", PMAP, kernel.arch.byteorder).read(kernel, proc["vmspace"])
    place = pmap["physical"] & mask if "physical" in pmap else kernel.translate(pmap["virtual"])
    if kernel.image.page_map is not None:
        role = f"the top page table of process {pid} (minidumps have no memory of processes)"
        raise NotInImageError(place, 1 << kernel.arch.page_shift, "excluded", role=role)
    return kernel.space.with_root(place)


def address_space(kernel: Kernel, address: int) -> ImageSpace:
    """Return the user address space of the process at `address`, or of that whose thread is there.

    Raises:
        CommandError: there is no such process, or it has no memory of its own.
        ReadError: it cannot be read.
    """
    try:
        proc = find_proc(kernel, address)
    except MISSING as error:
        raise CommandError(f"no process or thread is at {address:#x}: {error}") from error
    return user_space(kernel, proc)
