"""The processes that a command is about, and their address spaces."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError, UsageError
from kvm_dbg.kernel.base import AddressSpaceReader, Process


def for_each_selected(session: Session, pids: Collection[int] | None) -> Iterator[Process]:
    """Yield the processes with these PIDs, or all of them if none are given.

    Raises:
        CommandError: after the last one: some of the PIDs are of no process.
    """
    wanted = set(pids or ())
    for process in session.system.for_each_process(session.kernel):
        if not pids:
            yield process
        elif process.pid in wanted:
            wanted.discard(process.pid)
            yield process
    if wanted:
        raise CommandError(f"no process with PID {', '.join(map(str, sorted(wanted)))} in this image")


def find_process(session: Session, pid: int) -> Process:
    """Return the process `pid`. Raises CommandError if there is none."""
    for process in session.system.for_each_process(session.kernel):
        if process.pid == pid:
            return process
    raise CommandError(f"no process with PID {pid} in this image")


def find_selected(session: Session, pid: int | None) -> Process:
    """Return the process `pid`, or that of the debugger's selected thread for None.

    Raises:
        UsageError: no PID, and no debugger.
        CommandError: there is no such process.
    """
    if pid is None:
        selected = session.selected
        if selected is None:
            raise UsageError("no PID given; only gdb and lldb have a selected thread")
        pid = selected.pid
    return find_process(session, pid)


def address_space(session: Session, pid: int | None) -> AddressSpaceReader:
    """Return the address space of process `pid`, or the kernel's own for None. Raises CommandError, ReadError."""
    if pid is None:
        return session.system.kernel_space(session.kernel)
    return session.system.address_space(session.kernel, find_process(session, pid).address)
