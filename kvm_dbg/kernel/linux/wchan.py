"""Wait channels: the function in which a sleeping task waits, as /proc/PID/wchan has it.

Sources: kernel/sched/core.c get_wchan(), arch/x86/kernel/process.c __get_wchan(): the innermost function on the task's
stack that is not one of the scheduler (`__sched_text_start`) or of the locks (`__lock_text_start`).
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.layout import Record, observed, remembered
from kvm_dbg.kernel.linux.register import SwitchFrame
from kvm_dbg.kernel.linux.stack import USER, make_saved
from kvm_dbg.kernel.linux.unwind import ORC, REGISTERS, Unwinder

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

FRAME_LIMIT = 32  # functions of the scheduler and locks on top of each other; three or four is usual
SECTIONS = (("__sched_text_start", "__sched_text_end"), ("__lock_text_start", "__lock_text_end"))
MISSING = (ReadError, CorruptError, SymbolNotFound, TypeNotFound, MemberNotFound)


class WaitChannelReader:
    """Finds where the tasks of one kernel sleep."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._ranges: list[tuple[int, int]] = []
        self._unwinder: Unwinder | None = None
        try:
            self._unwinder = observed(kernel, Unwinder)
            self._saved = remembered(kernel, make_saved)
            self._frame = SwitchFrame(kernel)
        except MISSING:
            return
        for start, end in SECTIONS:
            first, last = kernel.symbols.find(start), kernel.symbols.find(end)
            if first is not None and last is not None:
                self._ranges.append((first.address, last.address))

    def read(self, task: Record) -> str | None:
        """Return the name of the function; None if the task runs or has exited, or if its stack does not tell."""
        unwinder = self._unwinder
        if unwinder is None or unwinder.rows.why:
            return None
        try:
            if not task["state"] or task["exit_state"] or task.get("on_cpu"):
                return None
            saved = self._saved.read(self._kernel, task.address)
            stack = unwinder.stacks.task_stack(task.address)
            if stack is None:
                return None
            steps = unwinder.walk(self._frame.read(saved["sp"]), [stack], exact=False)
            for step in islice(steps, FRAME_LIMIT):
                state = step.state
                if state.how not in (REGISTERS, ORC) or step.stack == USER:
                    return None
                if not any(start <= state.pc < end for start, end in self._ranges):
                    return unwinder.name(state.pc, exact=True)[0]
        except (*MISSING, KeyError):
            return None
        return None
