"""From a line of words to pieces of output: parsing, running and rendering commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from kvm_dbg.commands import find_command
from kvm_dbg.commands.base import Command
from kvm_dbg.commands.parser import CommandParser
from kvm_dbg.commands.render import RENDERERS, printable
from kvm_dbg.commands.session import Session
from kvm_dbg.commands.watch import find_interval, watch
from kvm_dbg.errors import KvmDbgError, UsageError

HELP_WORDS = ("-h", "--help")


def run_line(session: Session, line: str, *, program: str = "kvm") -> Iterator[str]:
    """Run one line ("procs --json") and yield its output; see `run_command`."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        session.last_error = f"{line!r}: {error}"
        raise UsageError(session.last_error) from error
    yield from run_command(session, words or ["help"], program=program)


def run_command(session: Session, words: Sequence[str], *, program: str = "kvm") -> Iterator[str]:
    """Run a command and yield its output in pieces of text, as they come.

    Raises:
        UsageError: the words make no sense.
        KvmDbgError: the command failed, perhaps after some output. Its text is in `session.last_error` as well.
    """
    try:
        command = find_command(words[0])
        parser = CommandParser(command, program)
        if any(word in HELP_WORDS for word in words[1:]):
            yield parser.format_help()
            return
        yield from run_parsed(session, command, parser.parse_args(words[1:]))
    except KvmDbgError as error:
        session.last_error = str(error)
        raise


def run_parsed(session: Session, command: Command, args: Any) -> Iterator[str]:
    """Run a command whose arguments are parsed, and yield its output.

    Raises:
        KvmDbgError: the command failed, perhaps after some output.
    """
    if command.needs_kernel:
        session.require_kernel()
    interval = find_interval(session, command, args)
    if interval is not None:
        yield from watch(session, command, args, interval)
        return
    if command.needs_kernel and session.image.live:
        session.refresh()
    table = command.run(session, args)
    output = args.output or "text"
    if output == "json" and command.needs_kernel:
        table = table._replace(grade=session.grade(command.name))
    yield from RENDERERS[output](table)
    if output == "text":
        changes = session.kernel.changes if command.needs_kernel else ()
        for note in (*table.notes, *changes):
            yield f"note: {printable(note)}\n"
