"""What a half-typed command line can become."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

from kvm_dbg.commands import COMMANDS, find_command
from kvm_dbg.commands.parser import CommandParser
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError, KvmDbgError

COMPLETIONS = 200  # at most so many are offered


def complete_line(session: Session, line: str) -> list[str]:
    """Return what the last word of `line` can become: command names, options, PIDs, symbol names.

    A line that ends in a space asks for a new word. What cannot be read from the image is not offered.
    """
    *before, last = line.lstrip().split(" ")
    before = [word for word in before if word]
    if not before:
        return [command.name for command in COMMANDS if command.name.startswith(last)]
    try:
        parser = CommandParser(find_command(before[0]))
    except CommandError:
        return []
    if last.startswith("-"):
        return [word for word in parser.option_words() if word.startswith(last)]
    previous = before[-1]
    action = parser.find_option(previous) if parser.takes_value(previous, "") else parser.positional_at(before[1:])
    found: set[str] = set()
    if action is not None:
        with contextlib.suppress(KvmDbgError):  # half of the processes are better than none
            for value in _values(session, action, last):
                found.add(value)
    return sorted(found, key=lambda word: (len(word), word) if word.isdecimal() else (0, word))[:COMPLETIONS]


def _values(session: Session, action: argparse.Action, last: str) -> Iterator[str]:
    """Yield what an argument can be, as far as its choices or its metavar say what it is."""
    if action.choices is not None:
        yield from (str(choice) for choice in action.choices if str(choice).startswith(last))
    elif action.metavar == "COMMAND":
        yield from (command.name for command in COMMANDS if command.name.startswith(last))
    elif action.metavar == "PID" and session.is_open:
        for process in session.system.for_each_process(session.kernel):
            if str(process.pid).startswith(last):
                yield str(process.pid)
    elif action.metavar in ("NAME", "ADDRESS") and session.is_open and last:
        symbols = session.system.all_symbols(session.kernel)
        yield from (symbol.name for symbol in symbols.for_each() if symbol.name.startswith(last))
