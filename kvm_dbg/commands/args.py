"""args and env: what a process was started with, out of its own memory."""

from __future__ import annotations

import argparse
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.process import for_each_selected
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CorruptError, ReadError
from kvm_dbg.kernel.base import Process


def columns_with(strings: str) -> tuple[Column, ...]:
    """Return the columns of a command whose strings are called `strings`."""
    return (
        Column("PID", "number"),
        Column("COMMAND", "text", "the kernel's short name"),
        Column(strings, "argv"),
        Column("ERROR", "text", "why it could not be read", extra=True),
    )


class StringsCommand(Command):
    """A command that shows a vector of strings for each process."""

    @abstractmethod
    def strings(self, session: Session, process: Process) -> list[bytes] | None:
        """Return the strings; None if the process has none by its nature. Raises ReadError, CorruptError."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pid", metavar="PID", type=int, nargs="*", help="only these processes")

    def run(self, session: Session, args: Any) -> Table:
        notes: list[str] = []
        return Table(self.columns, self._rows(session, args, notes), notes=notes)

    def _rows(self, session: Session, args: Any, notes: list[str]) -> Iterator[list[Cell]]:
        for process in for_each_selected(session, args.pid):
            error: str | None = None
            strings: list[bytes] | None = None
            try:
                strings = self.strings(session, process)
            except (ReadError, CorruptError) as failure:
                error = str(failure)
                notes.append(f"PID {process.pid}: {error}")
            listed = None if strings is None else [string.decode("utf-8", "backslashreplace") for string in strings]
            yield [process.pid, process.command, listed, error]


class Args(StringsCommand):
    """Argument vectors."""

    name = "args"
    summary = "Show the argument vectors of processes"
    description = (
        "Kernel threads and zombies have none (-). Words are quoted as for a shell; bytes that are not UTF-8 are \\xNN."
    )
    examples = ("args", "args 1 --json")
    columns = columns_with("ARGS")

    def strings(self, session: Session, process: Process) -> list[bytes] | None:
        return session.system.read_arguments(session.kernel, process)


class Env(StringsCommand):
    """Environments."""

    name = "env"
    summary = "Show the environments of processes"
    description = Args.description
    examples = ("env 1", "env 1 --json")
    columns = columns_with("ENV")

    def strings(self, session: Session, process: Process) -> list[bytes] | None:
        return session.system.read_environment(session.kernel, process)
