"""log: the kernel's message buffer."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.render import LINE_CONTROLS
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError
from kvm_dbg.kernel.base import LogRecord

LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")  # syslog(3), 0 to 7
COLUMNS = (
    Column("SEQ", "number"),
    Column("TIME", "float", "seconds since boot"),
    Column("FACILITY", "number"),
    Column("LEVEL", "number"),
    Column("CALLER", "text", "T<thread> or C<cpu>, if the kernel keeps it"),
    Column("TEXT"),
)


class Log(Command):
    """The message buffer, as dmesg prints it."""

    name = "log"
    summary = "Print the kernel's log, as dmesg would have"
    examples = ("log --tail 20", "log --level err", "log --grep 'BUG|Oops'", "log --json")

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--tail", metavar="N", type=int, help="only the last N records")
        parser.add_argument(
            "--level", metavar="LEVEL", help=f"only this level and worse ({', '.join(LEVELS)}, or 0 to 7)"
        )
        parser.add_argument("--grep", metavar="REGEX", help="only records whose text matches")
        parser.add_argument("--raw", action="store_true", help="with the <priority> prefix, as dmesg --raw")
        parser.add_argument("--caller", action="store_true", help="with the caller, where the kernel keeps it")

    def run(self, session: Session, args: Any) -> Table:
        if args.tail is not None and args.tail < 0:
            raise CommandError("--tail needs a number that is not negative")
        records = select_records(session.system.for_each_log_record(session.kernel), args)
        if args.output is None:
            return Table(COLUMNS, (), text=(line for record in records for line in lines_of(record, args)))
        return Table(COLUMNS, map(row_of, records))


def parse_level(text: str) -> int:
    """Return the number of a syslog level given by name or number. Raises CommandError."""
    if text in LEVELS:
        return LEVELS.index(text)
    if text.isdigit() and int(text) < len(LEVELS):
        return int(text)
    raise CommandError(f"--level {text!r}: levels are {', '.join(LEVELS)}, or 0 to 7")


def select_records(records: Iterable[LogRecord], args: Any) -> Iterable[LogRecord]:
    """Return the records that the options ask for."""
    if args.level is not None:
        worst = parse_level(args.level)
        records = (record for record in records if record.level <= worst)
    if args.grep is not None:
        import re

        try:
            pattern = re.compile(args.grep)
        except re.error as error:
            raise CommandError(f"--grep {args.grep!r}: {error}") from None
        records = (record for record in records if pattern.search(record.text))
    return records if args.tail is None else deque(records, maxlen=args.tail)


def row_of(record: LogRecord) -> list[Cell]:
    """Return a record's row."""
    return [record.sequence, record.seconds, record.facility, record.level, record.caller, record.text]


def lines_of(record: LogRecord, args: Any) -> Iterator[str]:
    """Yield a record's lines as the kernel's own syslog interface prints them: every line with the prefix."""
    prefix = f"[{record.seconds:12.6f}] "
    if args.raw:
        prefix = f"<{record.facility << 3 | record.level}>{prefix}"
    if args.caller and record.caller is not None:
        prefix = f"{prefix[:-1]}[{record.caller:>6}] "
    for line in record.text.split("\n"):
        yield prefix + line.translate(LINE_CONTROLS)
