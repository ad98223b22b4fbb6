"""help: what there is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from kvm_dbg.commands.base import Column, Command, Table
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError


class Help(Command):
    """List the commands, or show one's help."""

    name = "help"
    summary = "List the commands, or show the help of one"
    needs_kernel = False

    def __init__(self, others: tuple[Command, ...]) -> None:
        self.commands = (*others, self)

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("command", metavar="COMMAND", nargs="?", help="the command to explain")

    def run(self, session: Session, args: Any) -> Table:
        columns = (Column("COMMAND"), Column("SUMMARY"))
        if args.command is None:
            return Table(columns, [(command.name, command.summary) for command in self.commands])
        for command in self.commands:
            if command.name == args.command:
                return Table(columns, [(command.name, command.summary)], single=True, text=self._explain(command))
        raise CommandError(f"no command {args.command!r}; `help` lists the commands")

    def _explain(self, command: Command) -> Iterator[str]:
        from kvm_dbg.commands.run import CommandParser

        yield from CommandParser(command).format_help().splitlines()
