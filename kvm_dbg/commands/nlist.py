"""nlist: where symbols are."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError

COLUMNS = (
    Column("NAME"),
    Column("ADDRESS", "address", "at run time"),
    Column("SIZE", "number", "bytes"),
    Column("KIND", "text", "nm's letter"),
    Column("MODULE", "text", "the module that it is from"),
)


class Nlist(Command):
    """Look up symbols by name."""

    name = "nlist"
    summary = "Look up symbols by name"
    columns = COLUMNS
    description = "A name that is not found has no address, and makes the command fail after all are shown."
    examples = ("nlist init_task jiffies", "nlist init_task --json")

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("names", metavar="NAME", nargs="+", help="symbol names")

    def run(self, session: Session, args: Any) -> Table:
        return Table(COLUMNS, self._rows(session, args.names))

    def _rows(self, session: Session, names: list[str]) -> Iterator[list[Cell]]:
        found = session.find_symbols(names)
        missing = [name for name in names if name not in found]
        for name in names:
            symbol = found.get(name)
            if symbol is None:
                yield [name, None, None, None, None]
            else:
                yield [name, symbol.address, symbol.size or None, symbol.kind, symbol.module]
        if missing:
            raise CommandError(f"{len(missing)} of {len(names)} names not found: {', '.join(missing)}")
