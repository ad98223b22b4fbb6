"""lwps: the threads."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.process import for_each_selected
from kvm_dbg.commands.session import Session
from kvm_dbg.kernel.base import Lwp

COLUMNS = (
    Column("PID", "number"),
    Column("LWP", "number", "thread id"),
    Column("STATE"),
    Column("CPU", "number", "the CPU that it last ran on"),
    Column("RUN", "bool", "on its CPU when the image was taken"),
    Column("PRI", "number"),
    Column("TIME", "duration", "CPU time, in seconds in JSON"),
    Column("WCHAN", "text", "the kernel function it sleeps in"),
    Column("NAME"),
    Column("ADDRESS", "address", "of the task or lwp structure"),
    Column("KERNEL", "bool", "a kernel thread", extra=True),
    Column("UNREAD", "list", "fields whose memory is not in the image", extra=True),
)


class Lwps(Command):
    """The threads of one process, or of all."""

    name = "lwps"
    summary = "List the threads of some processes, or of all"
    columns = COLUMNS
    watchable = True
    examples = ("lwps", "lwps 1 --json")

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pid", metavar="PID", type=int, nargs="*", help="only the threads of these processes")

    def run(self, session: Session, args: Any) -> Table:
        lwps = session.system.for_each_lwp
        if not args.pid:
            return Table(COLUMNS, self._rows(lwps(session.kernel)))
        processes = for_each_selected(session, args.pid)
        return Table(COLUMNS, self._rows(lwp for one in processes for lwp in lwps(session.kernel, one.pid)))

    def _rows(self, lwps: Iterator[Lwp]) -> Iterator[list[Cell]]:
        for lwp in lwps:
            yield [
                lwp.pid,
                lwp.lid,
                lwp.state,
                lwp.cpu,
                lwp.on_cpu,
                lwp.priority,
                lwp.time,
                lwp.wait_channel,
                lwp.name,
                lwp.address,
                lwp.kernel_thread,
                list(lwp.unread),
            ]
