"""loadavg: the load averages."""

from __future__ import annotations

from typing import Any

from kvm_dbg.commands.base import Column, Command, Table
from kvm_dbg.commands.session import Session

COLUMNS = (
    Column("LOAD1", "float", "of the last minute"),
    Column("LOAD5", "float", "of the last 5 minutes"),
    Column("LOAD15", "float", "of the last 15 minutes"),
    Column("RUNNING", "number", "runnable threads", extra=True),
    Column("THREADS", "number", "all threads", extra=True),
    Column("LAST_PID", "number", "the last PID given out", extra=True),
)


class LoadAvg(Command):
    """The load averages."""

    name = "loadavg"
    summary = "Print the load averages of 1, 5 and 15 minutes"
    columns = COLUMNS
    watchable = True
    examples = ("loadavg", "loadavg --json", "loadavg --watch 5")

    def run(self, session: Session, args: Any) -> Table:
        load = session.system.read_load_average(session.kernel)
        row = (
            round(load.one, 2),
            round(load.five, 2),
            round(load.fifteen, 2),
            load.running,
            load.threads,
            load.last_pid,
        )
        return Table(COLUMNS, [row], single=True, text=[f"{row[0]:.2f} {row[1]:.2f} {row[2]:.2f}"])
