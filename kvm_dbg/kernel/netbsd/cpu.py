"""CPUs: which there are, and the LWP that each runs.

Sources: sys/arch/x86/include/cpu.h (struct cpu_info: `cpu_info_list`, the first one, and ci_next lead through all),
sys/kern/kern_cpu.c (`cpu_infos`, by index, and `ncpu`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.bsd.queue import for_each_entry
from kvm_dbg.kernel.layout import read_number, read_pointer, remembered

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MAX_CPUS = 4096


def read_cpus(kernel: Kernel) -> Mapping[int, int]:
    """Return address of a cpu_info -> number of its CPU, ascending by number.

    Raises:
        SymbolNotFound, TypeNotFound, MemberNotFound, ReadError, CorruptError: they cannot be told.
    """
    return remembered(kernel, _read_cpus)


def _read_cpus(kernel: Kernel) -> Mapping[int, int]:
    table, count = kernel.symbols.find("cpu_infos"), kernel.symbols.find("ncpu")
    if table is None or count is None:
        head = kernel.symbols.address("cpu_info_list")
        offset = kernel.types.offset_of("struct cpu_info", "ci_next")
        places = for_each_entry(kernel, head, offset, "CPUs", MAX_CPUS)
        return {place: number for number, place in enumerate(places)}
    number = read_number(kernel, count.address, 4)
    if not 0 < number <= MAX_CPUS:
        raise CorruptError(count.address, f"the kernel has {number} CPUs")
    array, word = read_pointer(kernel, table.address), kernel.arch.pointer_size
    return {read_pointer(kernel, array + cpu * word): cpu for cpu in range(number)}


def read_current_lwps(kernel: Kernel) -> Mapping[int, int]:
    """Return number of a CPU -> address of the LWP that it runs, ascending. Raises as `read_cpus`."""
    offset = kernel.types.offset_of("struct cpu_info", "ci_curlwp")
    return {cpu: read_pointer(kernel, place + offset) for place, cpu in read_cpus(kernel).items()}
