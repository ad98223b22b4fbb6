"""procs: the processes, as ps(1) would have shown them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError
from kvm_dbg.kernel.base import Lwp, Process

COLUMNS = (
    Column("PID", "number"),
    Column("PPID", "number"),
    Column("UID", "number", "effective user id"),
    Column("STAT", "text", "state letter and flags as in ps"),
    Column("CPU", "number", "the CPU that it last ran on"),
    Column("RSS", "number", "resident memory in KiB"),
    Column("TIME", "duration", "CPU time of all threads, in seconds in JSON"),
    Column("TTY"),
    Column("COMMAND"),
    Column("ADDRESS", "address", "of the task or process structure"),
    Column("STATE", "text", "the state letter alone", extra=True),
    Column("PGID", "number", extra=True),
    Column("SID", "number", extra=True),
    Column("RUID", "number", extra=True),
    Column("GID", "number", "effective group id", extra=True),
    Column("RGID", "number", extra=True),
    Column("NICE", "number", extra=True),
    Column("THREADS", "number", extra=True),
    Column("VSIZE", "number", "virtual memory in KiB", extra=True),
    Column("UTIME", "float", "user CPU time in seconds", extra=True),
    Column("STIME", "float", "system CPU time in seconds", extra=True),
    Column("START", "float", "start, in seconds since the epoch", extra=True),
    Column("KERNEL", "bool", "a kernel thread", extra=True),
    Column("UNREAD", "list", "fields whose memory is not in the image", extra=True),
)
THREAD_COLUMNS = (COLUMNS[0], Column("LWP", "number", "thread id"), *COLUMNS[1:])
LETTERS = "RSDTtZXIWP"


class Procs(Command):
    """The process table."""

    name = "procs"
    summary = "List the processes, as ps would have shown them"
    description = "A cell that the image has no bytes for is `-` (null in JSON); UNREAD in JSON names such fields."
    examples = ("procs", "procs --pid 1 --json", "procs --state D", "procs --tree", "procs --threads")

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--pid", metavar="PID", type=int, action="append", help="only this process (may be repeated)"
        )
        parser.add_argument("--state", metavar="LETTERS", help=f"only processes in one of these states ({LETTERS})")
        parser.add_argument("--uid", metavar="UID", type=int, help="only processes of this effective user")
        parser.add_argument("--tree", action="store_true", help="indent children under their parents")
        parser.add_argument("--threads", action="store_true", help="one line for each thread")

    def run(self, session: Session, args: Any) -> Table:
        if args.state is not None and (not args.state or set(args.state) - set(LETTERS)):
            raise CommandError(f"--state {args.state!r}: states are {' '.join(LETTERS)}")
        notes: list[str] = []
        processes: Iterable[Process] = self._select(session, args, notes)
        if args.tree:
            if args.threads:
                raise CommandError("--tree and --threads cannot be combined")
            return Table(
                COLUMNS, (process_row(process, depth) for process, depth in tree_order(processes)), notes=notes
            )
        if args.threads:
            rows = (
                thread_row(process, lwp)
                for process in processes
                for lwp in session.system.for_each_lwp(session.kernel, process.pid)
            )
            return Table(THREAD_COLUMNS, rows, notes=notes)
        return Table(COLUMNS, map(process_row, processes), notes=notes)

    def _select(self, session: Session, args: Any, notes: list[str]) -> Iterator[Process]:
        wanted = set(args.pid or ())
        unread = 0
        for process in session.system.for_each_process(session.kernel):
            if args.pid is not None and process.pid not in wanted:
                continue
            wanted.discard(process.pid)
            if args.state is not None and process.state not in args.state:
                continue
            if args.uid is not None and process.uid != args.uid:
                continue
            unread += bool(process.unread)
            yield process
        if unread:
            notes.append(f"{unread} processes have fields whose memory is not in the image, shown as -")
        if wanted:
            missing = ", ".join(map(str, sorted(wanted)))
            raise CommandError(f"no process with PID {missing} in this image")


def kibibytes(size: int | None) -> int | None:
    """Return a size in bytes as KiB."""
    return None if size is None else size >> 10


def process_row(process: Process, depth: int = 0) -> list[Cell]:
    """Return the row of a process; `depth` indents the command."""
    times = [time for time in (process.user_time, process.system_time) if time is not None]
    command = f"[{process.command}]" if process.kernel_thread else process.command
    return [
        process.pid,
        process.ppid,
        process.uid,
        process.state + process.flags,
        process.cpu,
        kibibytes(process.rss),
        round(sum(times), 6) if times else None,
        process.tty,
        "  " * depth + command,
        process.address,
        process.state,
        process.pgid,
        process.sid,
        process.ruid,
        process.gid,
        process.rgid,
        process.nice,
        process.threads,
        kibibytes(process.vsize),
        process.user_time,
        process.system_time,
        process.start_time,
        process.kernel_thread,
        list(process.unread),
    ]


def thread_row(process: Process, lwp: Lwp) -> list[Cell]:
    """Return the row of one thread: its own state, CPU and time in its process's row."""
    row = process_row(process)
    times = [time for time in (lwp.user_time, lwp.system_time) if time is not None]
    row[3] = lwp.state + process.flags
    row[4] = lwp.cpu
    row[6] = round(sum(times), 6) if times else None
    row[8] = f"[{lwp.name}]" if lwp.kernel_thread else lwp.name
    row[9] = lwp.address
    row[10] = lwp.state
    row[15 + 4] = lwp.user_time
    row[15 + 5] = lwp.system_time
    return [row[0], lwp.lid, *row[1:]]


def tree_order(processes: Iterable[Process]) -> Iterator[tuple[Process, int]]:
    """Yield (process, depth), children after their parents; those with an absent parent are roots."""
    everyone = {process.pid: process for process in processes}
    children: dict[int | None, list[Process]] = {}
    for process in everyone.values():
        parent = process.ppid if process.ppid in everyone and process.ppid != process.pid else None
        children.setdefault(parent, []).append(process)
    seen: set[int] = set()
    for start in (None, *everyone):  # a second round finds those that hang in a loop of parents
        stack = [(process, 0) for process in reversed(children.get(start, ()))] if start is None else []
        if start is not None and start not in seen:
            stack = [(everyone[start], 0)]
        while stack:
            process, depth = stack.pop()
            if process.pid in seen:
                continue
            seen.add(process.pid)
            yield process, depth
            stack.extend((child, depth + 1) for child in reversed(children.get(process.pid, ())))
