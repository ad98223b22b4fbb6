"""log: the kernel's message buffer."""

from __future__ import annotations

import argparse
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.render import printable
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import KvmDbgError
from kvm_dbg.kernel.base import LogRecord

LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")  # syslog(3), 0 to 7
COLUMNS = (
    Column("SEQ", "number"),
    Column("TIME", "float", "seconds since boot"),
    Column("FACILITY", "number"),
    Column("LEVEL", "number"),
    Column("CALLER", "text", "T<thread> or C<cpu>, if the kernel keeps it"),
    Column("TEXT"),
    Column("UNREAD", "list", "fields whose memory is not in the image", extra=True),
)


class Log(Command):
    """The message buffer, as dmesg prints it."""

    name = "log"
    summary = "Print the kernel's log, as dmesg would have"
    columns = COLUMNS
    description = "Control characters in the text, line breaks and tabs apart, are shown as \\xNN."
    examples = ("log --tail 20", "log --level err", "log --grep 'BUG|Oops'", "log --json")

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--tail", metavar="N", type=parse_count, help="only the last N records")
        parser.add_argument(
            "--level",
            metavar="LEVEL",
            type=parse_level,
            help=f"only this level and worse ({', '.join(LEVELS)}, or 0 to 7)",
        )
        parser.add_argument("--grep", metavar="REGEX", type=parse_pattern, help="only records whose text matches")
        parser.add_argument("--raw", action="store_true", help="with the <priority> prefix, as dmesg --raw")
        parser.add_argument("--caller", action="store_true", help="with the caller, where the kernel keeps it")

    def run(self, session: Session, args: Any) -> Table:
        notes: list[str] = []
        records = select_records(session.system.for_each_log_record(session.kernel), args, notes)
        if args.output is None:
            return Table(COLUMNS, (), text=(line for record in records for line in lines_of(record, args)), notes=notes)
        return Table(COLUMNS, map(row_of, records))


def parse_count(text: str) -> int:
    """Return a number that is not negative. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def parse_level(text: str) -> int:
    """Return the number of a syslog level given by name or number. Raises ArgumentTypeError."""
    if text in LEVELS:
        return LEVELS.index(text)
    if text in map(str, range(len(LEVELS))):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: levels are {', '.join(LEVELS)}, or 0 to 7")


def parse_pattern(text: str) -> re.Pattern[str]:
    """Return a compiled regular expression. Raises ArgumentTypeError."""
    try:
        return re.compile(text)
    except (re.error, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def select_records(records: Iterable[LogRecord], args: Any, notes: list[str]) -> Iterator[LogRecord]:
    """Yield the records that the options ask for; `notes` is told of those that an option cannot judge.

    Raises:
        KvmDbgError: what reading the log raises, after the last record.
    """
    tail: deque[LogRecord] = deque(maxlen=args.tail)
    unjudged = 0
    failure: KvmDbgError | None = None
    try:
        for record in records:
            if args.level is not None and record.level is None:
                unjudged += 1
                continue
            if args.level is not None and record.level is not None and record.level > args.level:
                continue
            if args.grep is not None and not args.grep.search(record.text):
                continue
            if args.tail is None:
                yield record
            else:
                tail.append(record)
    except KvmDbgError as error:
        failure = error
    yield from tail
    if unjudged:
        notes.append(f"{unjudged} records are left out whose level this system does not keep")
    if failure is not None:
        raise failure


def row_of(record: LogRecord) -> list[Cell]:
    """Return a record's row; the text of one whose text is lost says so, other fields that are lost are None."""
    numbers: dict[str, Cell] = {
        "sequence": record.sequence,
        "seconds": record.seconds,
        "facility": record.facility,
        "level": record.level,
    }
    known = [None if name in record.unread else number for name, number in numbers.items()]
    return [*known, record.caller, record.text, list(record.unread)]


def lines_of(record: LogRecord, args: Any) -> Iterator[str]:
    """Yield a record's lines as the kernel's own syslog interface prints them: every line with the prefix."""
    prefix = f"[{record.seconds:12.6f}] " if record.seconds is not None else ""
    if args.raw and record.facility is not None and record.level is not None:
        prefix = f"<{record.facility << 3 | record.level}>{prefix}"
    if args.caller and record.caller is not None:
        prefix = f"{prefix.removesuffix(' ')}[{printable(record.caller):>6}] "
    for line in record.text.split("\n"):
        yield prefix + printable(line, "\t")
