"""mods: the loaded modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.module_file import plan_modules
from kvm_dbg.commands.session import Session
from kvm_dbg.kernel.base import Module

COLUMNS = (
    Column("NAME"),
    Column("ADDRESS", "address", "of its text"),
    Column("SIZE", "number", "bytes"),
    Column("USED", "number", "reference count"),
    Column("STATE"),
    Column("TAINTS", "text", "letters as in /proc/modules"),
    Column("USERS", "list", "modules that use it"),
    Column("SYMBOLS", "text", "the file that has them, or why there is none; in gdb and lldb what is loaded"),
    Column("STRUCT", "address", "of the module structure", extra=True),
    Column("BUILD_ID", "text", extra=True),
)


class Mods(Command):
    """The loaded modules."""

    name = "mods"
    summary = "List the loaded modules"
    columns = COLUMNS
    description = (
        "Files are looked for below the directories searched for vmlinux, beside vmlinux, in /usr/lib/debug and in\n"
        "/lib/modules, and checked against the image. In gdb and lldb, `kvm mods --load [DIRECTORY]` loads their\n"
        "symbols, those of files below DIRECTORY if one is given."
    )
    watchable = True
    examples = ("mods", "mods --json")

    def run(self, session: Session, args: Any) -> Table:
        return Table(COLUMNS, self._rows(session))

    def _rows(self, session: Session) -> Iterator[list[Cell]]:
        for module, symbols in _with_symbols(session):
            yield [
                module.name,
                module.address,
                module.size,
                module.reference_count,
                module.state,
                module.taints or None,
                list(module.users),
                symbols,
                module.struct_address or None,
                module.build_id,
            ]


def _with_symbols(session: Session) -> Iterator[tuple[Module, str]]:
    """Yield each module, and what a debugger has loaded of it; without a debugger, what it would load."""
    if session.loaded is None:
        for module, plan in plan_modules(session, None, unpack=False):
            yield module, plan.summary
    else:
        for module in session.system.for_each_module(session.kernel):
            yield module, session.loaded.summary(module.name)
