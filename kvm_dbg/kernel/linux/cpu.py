"""CPUs: which there are, where their per-CPU variables are, and which task each runs.

Sources: include/linux/cpumask.h (`__cpu_online_mask` since v4.5). A panic stops the other CPUs and takes them out of
that mask (arch/x86/kernel/process.c stop_this_cpu()), but not out of `__cpu_active_mask`: the CPUs which ran are those
in either. include/asm-generic/percpu.h (a per-CPU variable of CPU n is at its symbol plus `__per_cpu_offset[n]`),
arch/x86/include/asm/current.h (`current_task`; from v6.2 to v6.14 a member of `pcpu_hot`), kernel/sched/sched.h
(struct rq).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.base import size_of
from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.layout import observed, read_number, read_pointer

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MAX_CPUS = 8192  # NR_CPUS of CONFIG_MAXSMP


def read_per_cpu_offsets(kernel: Kernel) -> Mapping[int, int]:
    """Return CPU number -> what to add to a per-CPU symbol's address, for the CPUs that run, ascending.

    Those that were stopped by a panic count. Kernels for one processor (!CONFIG_SMP) keep per-CPU variables at their
    symbols: {0: 0}.

    Raises:
        ReadError, CorruptError: the masks or the table are broken.
    """
    return observed(kernel, _read_offsets)


def _read_offsets(kernel: Kernel) -> Mapping[int, int]:
    table = kernel.symbols.find("__per_cpu_offset")
    online = kernel.symbols.find("__cpu_online_mask")
    if table is None or online is None:
        return {0: 0}
    bits = _read_mask(kernel, online.address)
    active = kernel.symbols.find("__cpu_active_mask")
    if active is not None:
        bits |= _read_mask(kernel, active.address)
    if not bits:
        raise CorruptError(online.address, "no CPU is online")
    word = kernel.arch.pointer_size
    return {
        cpu: read_pointer(kernel, table.address + cpu * word) for cpu in range(bits.bit_length()) if bits >> cpu & 1
    }


def _read_mask(kernel: Kernel, address: int) -> int:
    """Return a struct cpumask, CPU 0 in the lowest bit."""
    size = size_of(kernel.types.struct("struct cpumask"))
    if not 0 < size <= MAX_CPUS // 8:
        raise CorruptError(address, f"a mask of CPUs has {size} bytes")
    word = kernel.arch.pointer_size
    order = "<" if kernel.arch.byteorder == "little" else ">"
    bits = 0
    for index, value in enumerate(
        struct.unpack(f"{order}{size // word}{'Q' if word == 8 else 'I'}", kernel.read(address, size))
    ):
        bits |= value << (8 * word * index)
    return bits


def read_current_tasks(kernel: Kernel) -> Mapping[int, int]:
    """Return CPU number -> address of the task that it runs, ascending.

    Raises:
        ReadError: a per-CPU area cannot be read.
        SymbolNotFound: the kernel keeps them where nobody looked yet.
    """
    hot = kernel.symbols.find("pcpu_hot")
    current = kernel.symbols.find("current_task")
    if hot is not None:
        place = hot.address + kernel.types.offset_of("struct pcpu_hot", "current_task")
    elif current is not None:
        place = current.address
    else:
        place = kernel.symbols.address("runqueues") + kernel.types.offset_of("struct rq", "curr")
    return _read_pointers(kernel, place)


def read_idle_tasks(kernel: Kernel) -> Mapping[int, int]:
    """Return CPU number -> address of its idle task, ascending. Raises ReadError, SymbolNotFound."""
    place = kernel.symbols.address("runqueues") + kernel.types.offset_of("struct rq", "idle")
    return _read_pointers(kernel, place)


def read_running(kernel: Kernel) -> int:
    """Return the number of runnable tasks on all CPUs, as /proc/loadavg shows. Raises ReadError, SymbolNotFound."""
    place = kernel.symbols.address("runqueues") + kernel.types.offset_of("struct rq", "nr_running")
    mask = (1 << 8 * kernel.arch.pointer_size) - 1
    return sum(read_number(kernel, (place + offset) & mask, 4) for offset in read_per_cpu_offsets(kernel).values())


def _read_pointers(kernel: Kernel, place: int) -> Mapping[int, int]:
    mask = (1 << 8 * kernel.arch.pointer_size) - 1
    return {cpu: read_pointer(kernel, (place + offset) & mask) for cpu, offset in read_per_cpu_offsets(kernel).items()}
