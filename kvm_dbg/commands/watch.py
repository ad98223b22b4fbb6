"""Watching a kernel that runs: the same question again and again, each answer a block with its time.

A block of text is a line with the time, then what the command prints; a block of JSON is one object on one line,
{"time": ..., "rows": [...]}; CSV has one heading, and the time in the first column of each row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from kvm_dbg.commands.base import Column, Command, Table
from kvm_dbg.errors import CommandError

if TYPE_CHECKING:
    from kvm_dbg.commands.session import Session

Wait = Callable[[float], bool]  # waits so many seconds; False if that is enough
USUAL_INTERVAL = 1.0  # seconds
SHORTEST, LONGEST = 0.05, 86400.0
TIME = Column("TIME", "text", "UTC")


def add_watch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that can be watched."""
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=parse_interval,
        const=USUAL_INTERVAL,
        help=f"of a kernel that runs: ask again after so many seconds (default {USUAL_INTERVAL:g}), until Ctrl-C",
    )
    parser.add_argument("--count", metavar="N", type=parse_count, help="end after N looks")


def parse_interval(text: str) -> float:
    """Return seconds between two looks. Raises ArgumentTypeError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not SHORTEST <= seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {SHORTEST:g} to {LONGEST:g}")
    return seconds


def parse_count(text: str) -> int:
    """Return a number of looks. Raises ArgumentTypeError."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def find_interval(session: Session, command: Command, args: Any) -> float | None:
    """Return the seconds between two looks, None if the command is to be asked once.

    Raises:
        CommandError: --count without --watch.
    """
    if not command.watchable:
        return None
    interval: float | None = args.watch
    if interval is None and command.moving and session.image.live:
        return USUAL_INTERVAL
    if interval is None and args.count is not None:
        raise CommandError("--count is of looks with --watch")
    return interval


def sleep(seconds: float) -> bool:
    """Wait, and go on."""
    time.sleep(seconds)
    return True


def watch(session: Session, command: Command, args: Any, interval: float, wait: Wait = sleep) -> Iterator[str]:
    """Yield a block for each look, as one piece of text.

    Args:
        session: with a kernel that runs.
        command: what to ask.
        args: its arguments, parsed.
        interval: seconds between the starts of two looks; longer if one takes longer.
        wait: waits, and says whether to go on.

    Raises:
        CommandError: the kernel does not run, or is another one by now.
        KvmDbgError: what a look raises.
    """
    from datetime import UTC, datetime

    if not session.image.live:
        name = session.image.paths[0] if session.image.paths else "the image"
        raise CommandError(f"{name} is a dump, which does not change: --watch is for a kernel that runs (--live)")
    look = command.start(session, args)
    number = 0
    while True:
        started = time.monotonic()
        session.refresh()
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        yield "".join(_block(session, look(), args.output or "text", stamp, first=not number))
        number += 1
        if args.count is not None and number >= args.count:
            return
        if not wait(max(interval - (time.monotonic() - started), 0.0)):
            return


def _block(session: Session, table: Table, output: str, stamp: str, *, first: bool) -> Iterator[str]:
    import json

    from kvm_dbg.commands.render import printable, render_csv, render_text, row_object

    if output == "json":
        rows = [row_object(table.columns, row) for row in table.rows]
        yield json.dumps({"time": stamp, "rows": rows}) + "\n"
    elif output == "csv":
        stamped = ((stamp, *row) for row in table.rows)
        lines = render_csv(table._replace(columns=(TIME, *table.columns), rows=stamped))
        heading = next(lines)
        if first:
            yield heading
        yield from lines
    else:
        yield f"{stamp}\n"
        yield from render_text(table)
        for note in (*table.notes, *session.kernel.changes):
            yield f"note: {printable(note)}\n"
        yield "\n"
