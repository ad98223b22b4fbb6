"""sys: what the machine was and what happened to it."""

from __future__ import annotations

from typing import Any

from kvm_dbg.commands.base import Column, Command, Table
from kvm_dbg.commands.coverage import describe_coverage
from kvm_dbg.commands.open import find_running
from kvm_dbg.commands.session import Session

COLUMNS = (
    Column("IMAGE", "list"),
    Column("FORMAT"),
    Column("RUNNING", "bool", "whether the machine runs, of a virtual machine"),
    Column("KERNEL", "text", "the kernel file with symbols and types"),
    Column("SYSTEM"),
    Column("NODENAME"),
    Column("RELEASE"),
    Column("VERSION"),
    Column("MACHINE"),
    Column("CPUS", "number"),
    Column("MEMORY", "size", "RAM that the kernel manages, in bytes in JSON"),
    Column("PAGE_SIZE", "number", "bytes"),
    Column("DATE", "text", "when the image was taken, UTC"),
    Column("UPTIME", "duration", "in seconds in JSON"),
    Column("LOAD", "list", "averages of 1, 5 and 15 minutes"),
    Column("TASKS", "number"),
    Column("SLIDE", "address", "KASLR"),
    Column("TAINTS"),
    Column("COMMAND_LINE"),
    Column("COVERAGE"),
    Column("PANIC", "text", "the message"),
    Column("PANIC_CPU", "number"),
    Column("PANIC_PID", "number"),
    Column("PANIC_COMMAND"),
    Column("PANIC_TASK", "address"),
    Column("QUIRKS", "lines", "what a careful reader wants to know"),
)


class Sys(Command):
    """The state of the system."""

    name = "sys"
    summary = "Show the system, its state, and what it panicked of"
    columns = COLUMNS
    watchable = True
    examples = ("sys", "sys --json")

    def run(self, session: Session, args: Any) -> Table:
        summary = session.system.read_summary(session.kernel)
        info = session.image.info
        load = summary.load_average
        panic = summary.panic_task
        request = session.request
        row = (
            list(session.image.paths),
            info.format,
            find_running(session.image),
            getattr(session.kernel, "vmlinux_path", None) or (request.vmlinux if request else None),
            summary.system,
            summary.nodename,
            summary.release,
            summary.version,
            summary.machine,
            summary.cpus,
            summary.memory,
            summary.page_size,
            format_date(summary.date),
            summary.uptime,
            None if load is None else [round(value, 2) for value in (load.one, load.five, load.fifteen)],
            summary.tasks,
            summary.slide,
            summary.taints or None,
            summary.command_line,
            describe_coverage(session.image),
            summary.panic_message,
            summary.panic_cpu,
            summary.panic_lid,
            panic.command if panic is not None else None,
            panic.address if panic is not None else None,
            [*info.quirks, *getattr(session.kernel, "quirks", ())],
        )
        return Table(COLUMNS, [row], single=True)


def format_date(seconds: float | None) -> str | None:
    """Return seconds since the epoch as "2026-11-23 14:29:26 UTC"."""
    if seconds is None:
        return None
    import time

    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return None
