"""procs: the processes, as ps(1) would have shown them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.process import for_each_selected
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import KvmDbgError
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
LETTERS = "RSDTtZXIWPOUL"


class Procs(Command):
    """The process table."""

    name = "procs"
    summary = "List the processes, as ps would have shown them"
    columns = COLUMNS
    description = "A cell that the image has no bytes for is `-` (null in JSON); UNREAD in JSON names such fields."
    watchable = True
    examples = (
        "procs",
        "procs --pid 1 --json",
        "procs --state D",
        "procs --tree",
        "procs --threads",
        "procs --state R --watch 1",
    )

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--pid", metavar="PID", type=int, action="append", help="only this process (may be repeated)"
        )
        parser.add_argument(
            "--state",
            metavar="LETTERS",
            type=parse_states,
            help=f"only processes in one of these states ({LETTERS})",
        )
        parser.add_argument("--uid", metavar="UID", type=int, help="only processes of this effective user")
        shape = parser.add_mutually_exclusive_group()
        shape.add_argument("--tree", action="store_true", help="indent children under their parents")
        shape.add_argument("--threads", action="store_true", help="one line for each thread")

    def run(self, session: Session, args: Any) -> Table:
        notes: list[str] = []
        processes: Iterable[Process] = self._select(session, args, notes)
        if args.tree:
            rows = (process_row(process, depth=depth) for process, depth in tree_order(processes))
            return Table(COLUMNS, rows, notes=notes)
        if args.threads:
            lwps = session.system.for_each_lwp
            rows = (process_row(one, lwp) for one in processes for lwp in lwps(session.kernel, one.pid))
            return Table(THREAD_COLUMNS, rows, notes=notes)
        return Table(COLUMNS, map(process_row, processes), notes=notes)

    def _select(self, session: Session, args: Any, notes: list[str]) -> Iterator[Process]:
        unread = 0
        for process in for_each_selected(session, args.pid):
            if args.state is not None and process.state not in args.state:
                continue
            if args.uid is not None and process.uid != args.uid:
                continue
            unread += bool(process.unread)
            yield process
        if unread:
            notes.append(f"fields whose memory is not in the image are shown as -, in {unread} of these processes")


def parse_states(text: str) -> str:
    """Return state letters. Raises ArgumentTypeError."""
    if not text or set(text) - set(LETTERS):
        raise argparse.ArgumentTypeError(f"{text!r}: states are {' '.join(LETTERS)}")
    return text


def kibibytes(size: int | None) -> int | None:
    """Return a size in bytes as KiB."""
    return None if size is None else size >> 10


def process_row(process: Process, lwp: Lwp | None = None, depth: int = 0) -> list[Cell]:
    """Return the row of a process, or of its thread `lwp`, with that one's own id, state, CPU, times and address.

    Args:
        process: the process.
        lwp: one of its threads.
        depth: how far the command is indented.
    """
    one = process if lwp is None else lwp
    name = process.command if lwp is None else lwp.name
    return [
        process.pid,
        *([] if lwp is None else [lwp.lid]),
        process.ppid,
        process.uid,
        one.state + process.flags,
        one.cpu,
        kibibytes(process.rss),
        one.time,
        process.tty,
        "  " * depth + (f"[{name}]" if process.kernel_thread else name),
        one.address,
        one.state,
        process.pgid,
        process.sid,
        process.ruid,
        process.gid,
        process.rgid,
        process.nice,
        process.threads,
        kibibytes(process.vsize),
        one.user_time,
        one.system_time,
        process.start_time,
        process.kernel_thread,
        list(process.unread if lwp is None else dict.fromkeys((*process.unread, *lwp.unread))),
    ]


def tree_order(processes: Iterable[Process]) -> Iterator[tuple[Process, int]]:
    """Yield (process, depth), children after their parents; those with an absent parent are roots."""
    everyone: dict[int, Process] = {}
    failure: KvmDbgError | None = None
    try:
        for process in processes:
            everyone[process.pid] = process
    except KvmDbgError as error:  # those that were found are shown first
        failure = error
    children: dict[int | None, list[Process]] = {}
    for process in everyone.values():
        parent = process.ppid if process.ppid in everyone and process.ppid != process.pid else None
        children.setdefault(parent, []).append(process)
    seen: set[int] = set()
    # After the roots, everyone once more: processes whose parents form a loop hang under no root.
    for start in (*children.get(None, ()), *everyone.values()):
        stack = [(start, 0)]
        while stack:
            process, depth = stack.pop()
            if process.pid in seen:
                continue
            seen.add(process.pid)
            yield process, depth
            stack.extend((child, depth + 1) for child in reversed(children.get(process.pid, ())))
    if failure is not None:
        raise failure
