"""From a line of words to pieces of output: parsing, running, rendering and completing commands."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from kvm_dbg.commands import COMMANDS, find_command
from kvm_dbg.commands.base import Command
from kvm_dbg.commands.render import RENDERERS
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError, KvmDbgError

COMPLETIONS = 200  # at most so many are offered


class CommandParser(argparse.ArgumentParser):
    """An argparse parser that raises CommandError and never leaves the program."""

    def __init__(self, command: Command, program: str = "kvm") -> None:
        super().__init__(
            prog=f"{program} {command.name}".strip(),
            description="\n\n".join(filter(None, [command.summary + ".", command.description])),
            epilog="\n".join(["examples:", *(f"  {program} {line}".rstrip() for line in command.examples)])
            if command.examples
            else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
        )
        self.add_argument("-h", "--help", action="store_true", help="show this help")
        output = self.add_mutually_exclusive_group()
        output.add_argument("--json", dest="output", action="store_const", const="json", help="print JSON")
        output.add_argument("--csv", dest="output", action="store_const", const="csv", help="print CSV")
        command.configure(self)

    def error(self, message: str) -> NoReturn:
        """Raise the message as a CommandError."""
        raise CommandError(f"{self.prog}: {message}\n{self.format_usage().rstrip()}")


def run_line(session: Session, line: str, *, program: str = "kvm") -> Iterator[str]:
    """Run one line ("procs --json") and yield its output; see `run_command`."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise CommandError(f"{line!r}: {error}") from error
    yield from run_command(session, words or ["help"], program=program)


def run_command(session: Session, words: Sequence[str], *, program: str = "kvm") -> Iterator[str]:
    """Run a command and yield its output in pieces of text, as they come.

    Raises:
        KvmDbgError: the command failed, perhaps after some output; its text is in `session.last_error` as well.
    """
    try:
        command = find_command(words[0])
        if any(word in ("-h", "--help") for word in words[1:]):
            yield CommandParser(command, program).format_help()
            return
        args = CommandParser(command, program).parse_args(words[1:])
        yield from run_parsed(session, command, args)
    except KvmDbgError as error:
        session.last_error = str(error)
        raise


def run_parsed(session: Session, command: Command, args: Any) -> Iterator[str]:
    """Run a command whose arguments are parsed, and yield its output."""
    if command.needs_kernel:
        _ = session.kernel
    table = command.run(session, args)
    output = args.output or "text"
    yield from RENDERERS[output](table)
    if output == "text":
        for note in table.notes:
            yield f"note: {note}\n"


def complete_line(session: Session, line: str) -> list[str]:
    """Return what the last word of `line` can become: command names, options, PIDs, symbol names.

    A line that ends in a space asks for a new word.
    """
    words = line.split(" ")
    last = words[-1]
    if len(words) == 1:
        return [command.name for command in COMMANDS if command.name.startswith(last)]
    try:
        command = find_command(words[0])
    except CommandError:
        return []
    parser = CommandParser(command)
    if last.startswith("-"):
        return sorted(
            option for option in parser._option_string_actions if option.startswith(last) and option[:2] == "--"
        )
    return sorted(set(_complete_values(session, parser, words[1:-1], last)))[:COMPLETIONS]


def _complete_values(session: Session, parser: argparse.ArgumentParser, before: list[str], last: str) -> Iterator[str]:
    option = parser._option_string_actions.get(before[-1]) if before else None
    actions = [option] if option is not None and option.nargs != 0 else parser._get_positional_actions()
    for action in actions:
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        if action.choices is not None:
            yield from (str(choice) for choice in action.choices if str(choice).startswith(last))
        elif metavar == "COMMAND":
            yield from (command.name for command in COMMANDS if command.name.startswith(last))
        elif metavar == "PID" and session.is_open:
            processes = session.system.for_each_process(session.kernel)
            yield from (str(process.pid) for process in processes if str(process.pid).startswith(last))
        elif metavar in ("NAME", "ADDRESS") and session.is_open and last:
            symbols = session.kernel.symbols.for_each()
            yield from (symbol.name for symbol in symbols if symbol.name.startswith(last))
