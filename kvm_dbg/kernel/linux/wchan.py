"""Wait channels: the function in which a sleeping task waits, as /proc/PID/wchan has it.

Sources: kernel/sched/core.c get_wchan(), arch/x86/kernel/process.c __get_wchan(): the innermost function on the task's
stack that is not one of the scheduler (`__sched_text_start`) or of the locks (`__lock_text_start`); scripts/kallsyms.c
(of names for one address the first is shown).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.linux.layout import Layout, Record, remembered
from kvm_dbg.kernel.linux.register import SwitchFrame
from kvm_dbg.kernel.linux.stack import Frame, OrcTable
from kvm_dbg.kernel.linux.symbolize import find_symbol

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel
    from kvm_dbg.symbols.base import Symbol

FRAME_LIMIT = 32  # functions of the scheduler and locks on top of each other; three or four is usual
SECTIONS = (("__sched_text_start", "__sched_text_end"), ("__lock_text_start", "__lock_text_end"))
ALIASES = ("__do", "__ia32", "__se", "__x64")  # one function where a system call has no arguments; SYSCALL_DEFINE0
MISSING = (ReadError, CorruptError, SymbolNotFound, TypeNotFound, MemberNotFound)


class WaitChannelReader:
    """Finds where the tasks of one kernel sleep."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._names: dict[int, str | None] = {}
        self._ranges: list[tuple[int, int]] = []
        self._table: OrcTable | None = None
        try:
            self._table = OrcTable(kernel)
            self._saved = remembered(kernel, _make_saved)
            self._frame = SwitchFrame(kernel)
        except MISSING:
            self._table = None
            return
        for start, end in SECTIONS:
            first, last = kernel.symbols.find(start), kernel.symbols.find(end)
            if first is not None and last is not None:
                self._ranges.append((first.address, last.address))

    def read(self, task: Record) -> str | None:
        """Return the name of the function; None if the task runs or has exited, or if its stack does not tell."""
        if self._table is None:
            return None
        try:
            if not task["state"] or task["exit_state"] or task.get("on_cpu"):
                return None
            saved = self._saved.read(self._kernel, task.address)
            if not saved["stack"]:
                return None
            registers = self._frame.read(saved["sp"])
            frame: Frame | None = Frame(registers["rip"], registers["rsp"], registers["rbp"])
            for _ in range(FRAME_LIMIT):
                if frame is None:
                    return None
                if not any(start <= frame.ip < end for start, end in self._ranges):
                    return self._name(frame.ip)
                frame = self._table.caller(frame)
        except (*MISSING, KeyError):
            return None
        return None

    def _name(self, ip: int) -> str | None:
        if ip not in self._names:
            symbol = find_symbol(self._kernel, ip)
            self._names[ip] = self._shown_name(symbol) if symbol is not None else None
        return self._names[ip]

    def _shown_name(self, symbol: Symbol) -> str:
        """Return the one of a system call's several names that the kernel shows, the first in alphabetical order."""
        prefix, sys, name = symbol.name.partition("_sys_")
        if sys and prefix in ALIASES:
            for other in ALIASES:
                alias = self._kernel.symbols.find(f"{other}_sys_{name}")
                if alias is not None and alias.address == symbol.address:
                    return alias.name
        return symbol.name


def _make_saved(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct task_struct", {"stack": "stack", "sp": "thread.sp"}, kernel.arch.byteorder)
