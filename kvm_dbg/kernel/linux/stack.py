"""The stacks that the kernel runs on: each task's own, and those of each CPU.

Sources: arch/x86/kernel/dumpstack_64.c and irq_64.c (which stacks there are, what they are called, and how the kernel
knows one); arch/x86/include/asm/cpu_entry_area.h. The IRQ stack's top is the per-CPU `hardirq_stack_ptr`
(`irq_stack_ptr` before v5.2; a member of `pcpu_hot` from v6.2 to v6.14), 8 bytes below the real
top since v5.12, 64 before v5.2. The stacks of exceptions lie one beside the other behind guard pages at the per-CPU
`cea_exception_stacks` (v5.1); before, `orig_ist` had their tops.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.base import StructType, size_of
from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.layout import Layout, read_pointer, remembered
from kvm_dbg.kernel.linux.cpu import read_per_cpu_offsets

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

PAGE = 4096
THREAD_SIZE = 1 << 14  # bytes, where types do not tell; with KASAN four times that
MAX_THREAD_SIZE = 1 << 17
IRQ_STACK_SIZE = 1 << 14
TASK, IRQ, ENTRY, USER = "TASK", "IRQ", "ENTRY_TRAMPOLINE", "USER"
EXCEPTIONS = {"DF": "#DF", "NMI": "NMI", "DB": "#DB", "DB1": "#DB", "MCE": "#MC", "VC": "#VC", "VC2": "#VC2"}
OLD_EXCEPTIONS = (("#DF", PAGE), ("NMI", PAGE), ("#DB", 2 * PAGE), ("#MC", PAGE))  # in the order of orig_ist.ist
MISSING = (ReadError, CorruptError, SymbolNotFound, TypeNotFound, MemberNotFound)
WORD = 8


class Stack:
    """One stack: its name as the kernel prints it ("TASK", "IRQ", "NMI", "#DF"), and [start, end).

    Memory is read once, from the lowest address that anybody asked for to the end.
    """

    def __init__(self, kernel: Kernel, name: str, start: int, end: int) -> None:
        self.name = name
        self.start = start
        self.end = end
        self._kernel = kernel
        self._low = end
        self._data = b""

    def read(self, address: int, size: int) -> bytes:
        """Return bytes of the stack. Raises ReadError, CorruptError if they are not on it."""
        if not self.start <= address <= self.end - size:
            raise CorruptError(address, f"{size} bytes there are not on the stack {self.start:#x}-{self.end:#x}")
        if address < self._low:
            try:
                self._data = self._kernel.read(address, self.end - address)
            except ReadError:  # a page of it is missing: word by word then
                return self._kernel.read(address, size)
            self._low = address
        offset = address - self._low
        return self._data[offset : offset + size]

    def word(self, address: int) -> int:
        """Return the word at `address`. Raises ReadError, CorruptError."""
        return int.from_bytes(self.read(address, WORD), "little")

    def words(self, address: int) -> tuple[int, ...]:
        """Return the words from `address` to the end. Raises ReadError, CorruptError."""
        size = (self.end - address) // WORD * WORD
        return struct.unpack(f"<{size // WORD}Q", self.read(address, size))


class StackReader:
    """Knows the stacks of one kernel's tasks and CPUs."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._task = remembered(kernel, make_saved)
        self._cpus: dict[int, list[tuple[str, int, int]]] = {}
        union = kernel.types.find_type("union thread_union")
        size = size_of(union) if union is not None else THREAD_SIZE
        self._size = size if THREAD_SIZE <= size <= MAX_THREAD_SIZE else THREAD_SIZE

    def task_stack(self, task: int) -> Stack | None:
        """Return the stack of the task at `task`, None if it has none any more. Raises ReadError."""
        start = self._task.read(self._kernel, task)["stack"]
        return Stack(self._kernel, TASK, start, start + self._size) if start else None

    def cpu_stacks(self, cpu: int) -> list[Stack]:
        """Return the stacks that belong to a CPU, as far as the image tells."""
        if cpu not in self._cpus:
            self._cpus[cpu] = self._find(cpu)
        return [Stack(self._kernel, name, start, end) for name, start, end in self._cpus[cpu]]

    def _find(self, cpu: int) -> list[tuple[str, int, int]]:
        found: list[tuple[str, int, int]] = []
        for find in (self._irq_stack, self._exception_stacks):
            try:
                offset = read_per_cpu_offsets(self._kernel).get(cpu)
                if offset is not None:
                    found += find(offset)
            except MISSING:
                continue
        return found

    def _variable(self, name: str, offset: int) -> int | None:
        """Return the address of a per-CPU variable, None if this kernel has none of that name."""
        symbol = self._kernel.symbols.find(name)
        return None if symbol is None else (symbol.address + offset) & (1 << 64) - 1

    def _irq_stack(self, offset: int) -> list[tuple[str, int, int]]:
        types = self._kernel.types
        place = self._variable("hardirq_stack_ptr", offset) or self._variable("irq_stack_ptr", offset)
        if place is None and (hot := self._variable("pcpu_hot", offset)) is not None:
            place = hot + types.offset_of("struct pcpu_hot", "hardirq_stack_ptr")
        if place is None:
            return []
        top = read_pointer(self._kernel, place)
        end = -(-top // PAGE) * PAGE
        known = types.find_type("struct irq_stack")
        size = size_of(known) if known is not None else IRQ_STACK_SIZE
        return [(IRQ, end - size, end)] if top else []

    def _exception_stacks(self, offset: int) -> list[tuple[str, int, int]]:
        place = self._variable("cea_exception_stacks", offset)
        if place is None:
            return self._old_exception_stacks(offset)
        types = self._kernel.types
        base = read_pointer(self._kernel, place)
        stacks = types.struct("struct cea_exception_stacks")
        found = []
        for member in stacks.members if base else ():
            name = EXCEPTIONS.get((member.name or "").removesuffix("_stack"))
            size = size_of(member.type)
            if name is not None and size:
                found.append((name, base + member.offset, base + member.offset + size))
        area = types.find_type("struct cpu_entry_area")
        if base and isinstance(area, StructType):
            page = area.member("entry_stack_page")
            start = base - area.member("estacks").offset + page.offset
            found.append((ENTRY, start, start + size_of(page.type)))
        return found

    def _old_exception_stacks(self, offset: int) -> list[tuple[str, int, int]]:
        place = self._variable("orig_ist", offset)
        if place is None:
            return []
        found = []
        for index, (name, size) in enumerate(OLD_EXCEPTIONS):
            top = read_pointer(self._kernel, place + index * WORD)
            if top:
                found.append((name, top - size, top))
        return found


def make_saved(kernel: Kernel) -> Layout:
    """Return where a task's stack is, and its stack pointer when it does not run."""
    return Layout(kernel.types, "struct task_struct", {"stack": "stack", "sp": "thread.sp"}, kernel.arch.byteorder)
