"""Memory of processes: struct mm_struct, its sizes and its page tables.

Sources: include/linux/mm_types.h, mm.h (get_mm_rss(): file, anonymous and shared-memory pages). `rss_stat` was a struct
with an array of atomic counters and became percpu_counter[] in v6.2 (commit f1a7941243c1): a total and a part per CPU.
The exact sum is returned; /proc/PID/stat of some kernels shows the total alone, which lags by up to a batch per CPU.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.base import ArrayType, StructType, Type, size_of
from kvm_dbg.errors import CommandError, MemberNotFound
from kvm_dbg.kernel.layout import Layout, Names, Record, remembered
from kvm_dbg.kernel.linux.cpu import read_per_cpu_offsets
from kvm_dbg.kernel.linux.task import PF_KTHREAD, task_layout
from kvm_dbg.kernel.space import kernel_space

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel
    from kvm_dbg.kernel.space import ImageSpace

MEMBERS: dict[str, Names] = {
    "pgd": "pgd",
    "total_vm": "total_vm",
    "locked_vm": ("locked_vm", None),
    "arg_start": "arg_start",
    "arg_end": "arg_end",
    "env_start": "env_start",
    "env_end": "env_end",
    "rss_stat": "rss_stat",
}
NEAR = 256  # bytes: counters of one mm_struct that lie this close are read together (one allocation since v6.6)
RESIDENT = (("MM_FILEPAGES", 0), ("MM_ANONPAGES", 1), ("MM_SHMEMPAGES", 3))  # of the enum in mm_types_task.h


def mm_layout(kernel: Kernel) -> Layout:
    """Return the members of mm_struct that processes are described from."""
    return remembered(kernel, _make_layout)


def _make_layout(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct mm_struct", MEMBERS, kernel.arch.byteorder)


class ResidentCounter:
    """Adds up the resident pages of an mm_struct."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        types = kernel.types
        array, start = _find_counters(types.struct("struct mm_struct").member("rss_stat").type.stripped())
        element = array.element.stripped()
        count = element.find_member("count") if isinstance(element, StructType) else None
        parts = element.find_member("counters") if isinstance(element, StructType) else None
        self._parts = None if count is None or parts is None else parts.offset - count.offset
        start += count.offset if count is not None else 0
        width = size_of(element)
        indexes = [usual if (found := types.find_enumerator(name)) is None else found for name, usual in RESIDENT]
        self._places = tuple(start + index * width for index in indexes)
        self._order = "<" if kernel.arch.byteorder == "little" else ">"
        self._values = [struct.Struct(f"{self._order}{place}xq") for place in self._places]

    def count(self, mm: Record) -> int:
        """Return the number of resident pages, never less than 0. Raises ReadError."""
        data = mm.bytes("rss_stat")
        values = [value.unpack_from(data)[0] for value in self._values]
        if self._parts is not None:
            order = self._order
            pointers = [struct.unpack_from(f"{order}Q", data, place + self._parts)[0] for place in self._places]
            values = [value + part for value, part in zip(values, self._sum_parts(pointers, order), strict=True)]
        return sum(max(value, 0) for value in values)

    def _sum_parts(self, pointers: list[int], order: str) -> list[int]:
        """Return what the CPUs hold of each counter; neighbours are read together."""
        low, high = min(pointers), max(pointers)
        mask = (1 << 8 * self._kernel.arch.pointer_size) - 1
        sums = [0] * len(pointers)
        if not low:  # a counter that is not set up has no parts
            return sums
        for offset in read_per_cpu_offsets(self._kernel).values():
            data = self._kernel.read((low + offset) & mask, high - low + 4) if high - low < NEAR else None
            for index, pointer in enumerate(pointers):
                part = data[pointer - low :] if data is not None else self._kernel.read((pointer + offset) & mask, 4)
                sums[index] += struct.unpack_from(f"{order}i", part)[0]
        return sums


def _find_counters(found: Type) -> tuple[ArrayType, int]:
    """Return the array of counters in rss_stat, and its offset there."""
    start = 0
    if isinstance(found, StructType):
        member = found.member("count")
        found, start = member.type.stripped(), member.offset
    if not isinstance(found, ArrayType):
        raise MemberNotFound("struct mm_struct", "rss_stat as an array of counters")
    return found, start


def user_space(kernel: Kernel, mm: Record) -> ImageSpace:
    """Return the address space of the process that `mm` describes. Raises ReadError, CommandError."""
    return kernel_space(kernel).with_root(kernel.translate(mm["pgd"]))


def address_space(kernel: Kernel, address: int) -> ImageSpace:
    """Return the user address space of the task at `address`.

    Raises:
        CommandError: it has none of its own: a kernel thread, or a process that has exited.
        ReadError: the task cannot be read.
    """
    task = task_layout(kernel).read(kernel, address)
    mm = read_own_mm(kernel, task)
    if mm is None:
        kind = "a kernel thread" if task["flags"] & PF_KTHREAD else "gone"
        raise CommandError(f"task {task['pid']} ({task.text('comm')}) has no user address space: it is {kind}")
    return user_space(kernel, mm)


def read_own_mm(kernel: Kernel, task: Record) -> Record | None:
    """Return the mm_struct of a task; None for kernel threads, which borrow one, and for the dead. Raises ReadError."""
    address = task["mm"]
    if not address or task["flags"] & PF_KTHREAD:
        return None
    return mm_layout(kernel).read(kernel, address)
