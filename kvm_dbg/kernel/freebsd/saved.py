"""Which layout of saved registers a kernel has, where a processor's has changed.

The registers themselves tell: a thread that does not run has its struct pcb at the end of its kernel stack, and what it
holds as stack pointer is below that on the same stack (sys/arm64/arm64/vm_machdep.c, cpu_fork()). A layout that makes
no such sense of any thread is not this kernel's. Where no thread says it, the variable `osreldate` does; a kernel file
of symbols alone may lack that.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, cast

from kvm_dbg.errors import KvmDbgError, ReadError
from kvm_dbg.kernel.freebsd.machine import Saved
from kvm_dbg.kernel.freebsd.proc import for_each_proc, for_each_thread_of, oncpu_of
from kvm_dbg.kernel.layout import remembered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvm_dbg.kernel.base import Kernel
    from kvm_dbg.kernel.freebsd.kernel import FreeBSDKernel

STACK_LIMIT = 1 << 18  # bytes; kernel stacks have 16 to 64 KiB
MAX_WITNESSES = 64  # threads that are asked


def saved_layout(kernel: Kernel) -> Saved:
    """Return where this kernel has saved registers in struct pcb and in struct trapframe."""
    return remembered(kernel, _find)


def read_variable(kernel: FreeBSDKernel, name: str) -> int | None:
    """Return the value of an int: the image's, or if that lacks it the kernel file's; None if there is none."""
    symbol = kernel.symbols.find(name)
    if symbol is None:
        return None
    try:
        data: bytes | None = kernel.read(symbol.address, 4)
    except ReadError:
        data = kernel.read_file(symbol.address, 4)
    order = kernel.arch.byteorder
    return None if data is None else int.from_bytes(data, "little" if order == "little" else "big", signed=True)


def decode_registers(kernel: Kernel, places: Mapping[str, int], data: bytes) -> dict[str, int]:
    """Return register -> value, of words at `places` in `data`; a register of 32 bits is the word's low half."""
    size = kernel.arch.pointer_size
    order = kernel.arch.byteorder
    narrow = {register.name for register in kernel.arch.registers if register.bits < 8 * size}
    values = {
        name: int.from_bytes(data[at : at + size], "little" if order == "little" else "big")
        for name, at in places.items()
    }
    return {name: value & 0xFFFF_FFFF if name in narrow else value for name, value in values.items()}


def _find(kernel: Kernel) -> Saved:
    own = cast("FreeBSDKernel", kernel)
    machine = own.machine
    new = Saved(machine.pcb, machine.trapframe)
    if machine.old is None:
        return new
    threads = (thread for proc in for_each_proc(kernel) for thread in for_each_thread_of(kernel, proc))
    try:
        for thread in islice(threads, MAX_WITNESSES):
            if oncpu_of(thread) is not None:
                continue
            fits = [saved for saved in (new, machine.old) if _fits(own, saved, thread["pcb"])]
            if len(fits) == 1:
                return fits[0]
    except KvmDbgError:
        pass  # a list that breaks has told what it could; without types there are no threads to ask
    release = read_variable(own, "osreldate")
    return machine.old if release is not None and 0 < release < machine.changed else new


def _fits(kernel: FreeBSDKernel, saved: Saved, pcb: int) -> bool:
    """Return whether the registers at `pcb` are those of a thread whose stack ends there."""
    machine, size = kernel.machine, kernel.arch.pointer_size
    try:
        data = kernel.read(pcb, max(saved.pcb.values()) + size)
    except ReadError:
        return False
    registers = decode_registers(kernel, saved.pcb, data)
    pc, sp = registers[machine.pc], registers[machine.sp]
    return 0 < pcb - sp <= STACK_LIMIT and not sp % size and not kernel.arch.is_user(pc)
