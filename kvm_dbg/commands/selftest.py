"""selftest: how far this image can be believed, command by command."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.session import Session, worst_grade
from kvm_dbg.errors import CommandError
from kvm_dbg.kernel.base import GRADES, Check

COLUMNS = (
    Column("COMMAND"),
    Column("GRADE", "text", "ok, partial (something is not in the image) or suspect (two witnesses disagree)"),
    Column("WHY", "list", "what is missing, or what contradicts what"),
    Column("CHECKED", "list", "what was compared, and what it came to", extra=True),
)


class SelfTest(Command):
    """Compare independent structures of the image."""

    name = "selftest"
    summary = "Check this image against itself, and grade what each command shows of it"
    columns = COLUMNS
    description = (
        "Independent structures are compared: the list of tasks with the allocator of PIDs and the run queues,\n"
        "types with slab objects and VMCOREINFO, page tables with the image's memory, modules with their symbols, ...\n"
        "A command is ok, partial (something is not in the image), or suspect (two witnesses contradict each other).\n"
        'In JSON, every command\'s objects carry its own "grade".'
    )
    examples = ("selftest", "selftest procs bt", "selftest -v", "selftest --json")

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("commands", metavar="COMMAND", nargs="*", help="only what these commands show")
        parser.add_argument("-v", "--verbose", action="store_true", help="with everything that was compared")

    def run(self, session: Session, args: Any) -> Table:
        checks: dict[str, list[Check]] = {}
        for check in session.system.for_each_check(session.kernel):
            checks.setdefault(check.command, []).append(check)
        unknown = [name for name in args.commands if name not in checks]
        if unknown:
            raise CommandError(f"selftest: nothing is known to compare for {', '.join(unknown)}")
        names = args.commands or list(checks)
        rows = (self._row(name, checks[name]) for name in names)
        text = self._lines(names, checks) if args.verbose and args.output is None else None
        return Table(COLUMNS, rows, text=text)

    def _row(self, name: str, checks: list[Check]) -> list[Cell]:
        whys = [f"{check.subject}: {check.text}" for check in checks if check.grade != GRADES[0]]
        compared = [f"{check.grade}: {check.subject}: {check.text}" for check in checks]
        return [name, worst_grade(checks), whys, compared]

    def _lines(self, names: list[str], checks: dict[str, list[Check]]) -> Iterator[str]:
        from kvm_dbg.commands.render import printable

        for name in names:
            yield f"{name}: {worst_grade(checks[name])}"
            for check in checks[name]:
                yield printable(f"  {check.grade:<7} {check.subject}: {check.text}")
