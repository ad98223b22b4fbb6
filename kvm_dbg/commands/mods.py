"""mods: the loaded modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.session import Session

COLUMNS = (
    Column("NAME"),
    Column("ADDRESS", "address", "of its text"),
    Column("SIZE", "number", "bytes"),
    Column("USED", "number", "reference count"),
    Column("STATE"),
    Column("TAINTS", "text", "letters as in /proc/modules"),
    Column("USERS", "list", "modules that use it"),
    Column("STRUCT", "address", "of the module structure", extra=True),
    Column("BUILD_ID", "text", extra=True),
)


class Mods(Command):
    """The loaded modules."""

    name = "mods"
    summary = "List the loaded modules"
    columns = COLUMNS
    examples = ("mods", "mods --json")

    def run(self, session: Session, args: Any) -> Table:
        return Table(COLUMNS, self._rows(session))

    def _rows(self, session: Session) -> Iterator[list[Cell]]:
        for module in session.system.for_each_module(session.kernel):
            yield [
                module.name,
                module.address,
                module.size,
                module.reference_count,
                module.state,
                module.taints or None,
                list(module.users),
                module.struct_address or None,
                module.build_id,
            ]
