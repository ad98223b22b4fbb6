"""Tasks as a debugger's threads.

A task that a CPU runs has the registers that were recorded of that CPU; a sleeping one has those that the kernel
saved on its stack when it switched away (`thread.sp`). All others are left out: nobody knows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.base import CpuState, Thread
from kvm_dbg.kernel.layout import Record, remembered
from kvm_dbg.kernel.linux.cpu import read_idle_tasks
from kvm_dbg.kernel.linux.kthread import read_name
from kvm_dbg.kernel.linux.panic import read_panic_cpu
from kvm_dbg.kernel.linux.process import signal_layout
from kvm_dbg.kernel.linux.register import SwitchFrame, read_cpu_states, read_noted_states
from kvm_dbg.kernel.linux.stack import make_saved
from kvm_dbg.kernel.linux.task import read_leaders, read_threads, task_layout

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

STACK_LIMIT = 1 << 16  # bytes: THREAD_SIZE is 16 KiB, with KASAN 32 or 64 KiB

MISSING = (ReadError, CorruptError, SymbolNotFound, TypeNotFound, MemberNotFound)


def for_each_thread(kernel: Kernel) -> Iterator[Thread]:
    """Yield all tasks: the panicking one first, then those on CPUs, the rest by PID, idle ones last.

    Raises:
        ReadError, CorruptError: after the last one that could be found: one of the kernel's lists is broken.
    """
    reader = ThreadReader(kernel)
    yield from reader.running()
    leaders, failure = read_leaders(kernel)
    head = signal_layout(kernel).offsets["thread_head"]
    for leader in leaders:
        threads, broken = read_threads(kernel, leader, head)
        failure = failure or broken
        for task in threads:
            if task.address not in reader.seen:
                yield reader.thread(task)
    yield from reader.idle()
    if failure is not None:
        raise failure


class ThreadReader:
    """Describes the tasks of one kernel as threads."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._task = task_layout(kernel)
        self._stack = remembered(kernel, make_saved)
        self._frame = SwitchFrame(kernel)
        self.seen: set[int] = set()
        try:
            self._states: dict[int, CpuState] = {state.cpu: state for state in read_cpu_states(kernel)}
        except MISSING:
            self._states = {state.cpu: state for state in read_noted_states(kernel)}

    def running(self) -> Iterator[Thread]:
        """Yield the tasks that CPUs run, that of the panicking CPU first."""
        panic_cpu = read_panic_cpu(self._kernel)
        for state in sorted(self._states.values(), key=lambda state: (state.cpu != panic_cpu, state.cpu)):
            if state.task_address is None:
                if state.registers:
                    why = f"{state.source}, CPU {state.cpu}; which task it ran is not known"
                    yield Thread(0, 0, "", 0, state.cpu, True, state.registers, why)
                continue
            if state.task_address in self.seen:
                continue
            try:
                task = self._task.read(self._kernel, state.task_address)
                yield self.thread(task, state)
            except MISSING:
                why = f"{state.source} of CPU {state.cpu}; the task itself cannot be read"
                yield Thread(0, 0, "", state.task_address, state.cpu, True, state.registers, why)
            self.seen.add(state.task_address)

    def idle(self) -> Iterator[Thread]:
        """Yield the idle tasks that no CPU runs at the moment."""
        try:
            tasks: Mapping[int, int] = read_idle_tasks(self._kernel)
        except MISSING:
            return
        for cpu, address in tasks.items():
            if address in self.seen:
                continue
            self.seen.add(address)
            try:
                thread = self.thread(self._task.read(self._kernel, address))
            except MISSING:
                continue
            yield Thread(0, 0, thread.name, address, cpu, False, thread.registers, thread.why)

    def thread(self, task: Record, state: CpuState | None = None) -> Thread:
        """Return a task, with the registers of the CPU that runs it if `state` is given. Raises ReadError."""
        if state is None:
            registers, why = self._saved(task)
        elif state.registers:
            registers, why = dict(state.registers), f"{state.source}, CPU {state.cpu}"
        else:
            told = "does not tell its registers while it runs" if self._kernel.image.live else "has none recorded"
            registers, why = {}, f"runs on CPU {state.cpu}, which {told}"
        cpu = state.cpu if state is not None else task.get("cpu")
        name = read_name(self._kernel, task)
        return Thread(task["pid"], task["tgid"], name, task.address, cpu, state is not None, registers, why)

    def _saved(self, task: Record) -> tuple[dict[str, int], str]:
        """Return the registers that a sleeping task left on its stack, and where they are from."""
        if task.get("on_cpu"):
            return {}, f"CPU {task.get('cpu')} was switching to or from it, its registers are on the move"
        try:
            place = self._stack.read(self._kernel, task.address)
            sp, stack = place["sp"], place["stack"]
            if not stack:
                return {}, "it has exited and its stack is gone"
            if not stack <= sp < stack + STACK_LIMIT:
                return {}, f"its saved stack pointer {sp:#x} is outside of its stack at {stack:#x}"
            registers = self._frame.read(sp)
        except (ReadError, MemberNotFound) as error:
            return {}, f"its saved registers cannot be read: {error}"
        return registers, "inactive_task_frame at thread.sp"
