"""help: what there is."""

from __future__ import annotations

import argparse
from typing import Any

from kvm_dbg.commands.base import Column, Command, Table
from kvm_dbg.commands.session import Session

COLUMNS = (Column("COMMAND"), Column("SUMMARY"))


class Help(Command):
    """List the commands, or show one's help."""

    name = "help"
    summary = "List the commands, or show the help of one"
    columns = COLUMNS
    examples = ("help", "help procs")
    needs_kernel = False

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("command", metavar="COMMAND", nargs="?", help="the command to explain")

    def run(self, session: Session, args: Any) -> Table:
        from kvm_dbg.commands import COMMANDS, find_command  # which has this module in its list
        from kvm_dbg.commands.parser import CommandParser

        if args.command is None:
            return Table(COLUMNS, [(command.name, command.summary) for command in COMMANDS])
        command = find_command(args.command)
        text = CommandParser(command).format_help().splitlines()
        return Table(COLUMNS, [(command.name, command.summary)], single=True, text=text)
