"""top: who uses the processors, by two readings of the processes' run times."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.procs import kibibytes
from kvm_dbg.commands.render import format_size, render_text
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import KvmDbgError
from kvm_dbg.kernel.base import LoadAverage, Process, SystemSummary

COLUMNS = (
    Column("PID", "number"),
    Column("UID", "number", "effective user id"),
    Column("STAT", "text", "state letter and flags as in ps"),
    Column("PCPU", "float", "of one processor's time since the last look; of a dump, since the process started"),
    Column("TIME", "duration", "CPU time of all threads, in seconds in JSON"),
    Column("RSS", "number", "resident memory in KiB"),
    Column("THREADS", "number"),
    Column("COMMAND"),
)
LIMIT = 20  # processes
FIRST_WAIT = 0.5  # seconds between the two readings of the first look


class Reading:
    """What was read at one moment: each process with its time, by PID and start."""

    def __init__(self, processes: Iterable[Process]) -> None:
        self.at = time.monotonic()
        self.processes: list[Process] = []
        self.problem = ""
        try:
            self.processes += processes
        except KvmDbgError as error:  # those that were found are shown
            self.problem = str(error)
        self.times = {(one.pid, one.start_time): one.time for one in self.processes}


class Top(Command):
    """The processes that run."""

    name = "top"
    summary = "Show who uses the processors, again and again, until Ctrl-C"
    columns = COLUMNS
    watchable = True
    moving = True
    description = (
        "PCPU is a process's time on processors between two looks, of the time between them: 100 is one processor.\n"
        "In a terminal it is a screen, which `q` ends; in a pipe and in a debugger each look is a block of lines.\n"
        "A dump has one look, with PCPU of each process's whole life."
    )
    examples = ("top", "top --watch 5", "top --count 1 --json")

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--limit", metavar="N", type=int, default=LIMIT, help=f"processes (default {LIMIT}; 0: all)"
        )

    def start(self, session: Session, args: Any) -> Callable[[], Table]:
        last: list[Reading] = []

        def look() -> Table:
            if not last:
                last.append(read(session))
                time.sleep(FIRST_WAIT)
                session.refresh()
            now = read(session)
            table = make_table(session, now, shares_since(last[0], now), args.limit)
            last[0] = now
            return table

        return look

    def run(self, session: Session, args: Any) -> Table:
        now = read(session)
        date = session.system.read_summary(session.kernel).date
        table = make_table(session, now, shares_of_life(now, date), args.limit)
        return table._replace(notes=[*table.notes, "a dump does not change: PCPU is of each process's whole life"])


def read(session: Session) -> Reading:
    """Return the processes as they are now."""
    return Reading(session.system.for_each_process(session.kernel))


def shares_since(before: Reading, now: Reading) -> dict[int, float | None]:
    """Return PID -> percents of one processor between two readings; what began between them counts from its start."""
    elapsed = now.at - before.at
    found: dict[int, float | None] = {}
    for process in now.processes:
        spent = process.time
        earlier = before.times.get((process.pid, process.start_time), 0.0)
        unknown = spent is None or earlier is None or elapsed <= 0
        found[process.pid] = None if unknown else max(100 * ((spent or 0.0) - (earlier or 0.0)) / elapsed, 0.0)
    return found


def shares_of_life(now: Reading, date: float | None) -> dict[int, float | None]:
    """Return PID -> percents of one processor since each process started, as ps has it; None where unknown."""
    found: dict[int, float | None] = {}
    for process in now.processes:
        age = None if date is None or process.start_time is None else date - process.start_time
        spent = process.time
        found[process.pid] = None if age is None or age <= 0 or spent is None else 100 * spent / age
    return found


def make_table(session: Session, now: Reading, shares: dict[int, float | None], limit: int) -> Table:
    """Return the processes, those first that use most, below lines about the system."""
    ordered = sorted(now.processes, key=lambda one: (-(shares[one.pid] or 0.0), -(one.time or 0.0), one.pid))
    rows = [process_row(process, shares[process.pid]) for process in ordered[: limit or None]]
    notes = [now.problem] if now.problem else []
    summary = session.system.read_summary(session.kernel)
    return Table(COLUMNS, rows, text=_lines(summary, now.processes, rows), notes=notes)


def process_row(process: Process, share: float | None) -> list[Cell]:
    """Return the row of a process."""
    return [
        process.pid,
        process.uid,
        process.state + process.flags,
        None if share is None else round(share, 1),
        process.time,
        kibibytes(process.rss),
        process.threads,
        f"[{process.command}]" if process.kernel_thread else process.command,
    ]


def _lines(summary: SystemSummary, processes: Sequence[Process], rows: Sequence[Sequence[Cell]]) -> Iterator[str]:
    yield _load_line(summary.load_average, processes)
    sizes = (("", summary.memory), (" free", summary.free_memory), (" in file cache", summary.file_cache))
    known = [f"{format_size(size)}{what}" for what, size in sizes if size is not None]
    if known:
        yield "memory " + ", ".join(known)
    for line in render_text(Table(COLUMNS, rows)):
        yield line.rstrip("\n")


def _load_line(load: LoadAverage | None, processes: Sequence[Process]) -> str:
    states: dict[str, int] = {}
    for process in processes:
        states[process.state] = states.get(process.state, 0) + 1
    counts = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    averages = "" if load is None else f"load {load.one:.2f} {load.five:.2f} {load.fifteen:.2f}; "
    return f"{averages}{len(processes)} processes: {counts}"
