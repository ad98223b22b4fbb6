"""What a command is: it takes a session and arguments, and returns a table. It never prints.

Text, JSON, CSV, help and completion are made from the declarations here and in `render.py`, the same for the
command line, gdb and lldb.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import argparse

    from kvm_dbg.commands.session import Session

Cell = int | float | str | bool | None | list[str] | list[float]


class Column(NamedTuple):
    """A column of a table.

    name: as in the heading; its lower case is the JSON key. kind: "text", "number", "size" (bytes, shown with a
    unit), "address" (an int, shown and serialised as a hexadecimal string), "float", "duration" (seconds, shown as ps
    does), "bool", "list", "lines" (a list of sentences, each shown on its own line), "argv" (a list of words, quoted
    for a shell). extra: in JSON and CSV only, too wide or too special for the terminal.
    """

    name: str
    kind: str = "text"
    help: str = ""
    extra: bool = False

    @property
    def key(self) -> str:
        """Return the JSON key."""
        return self.name.lower()


class Table(NamedTuple):
    """A command's answer: `rows` may be a generator and is consumed once.

    single: one object instead of an array in JSON, "name: value" lines in text. text: another rendering for text
    mode (lines without newline, consumed instead of rows); None for the usual columns. notes: lines for people
    (what could not be read, ...), shown after the table and never part of JSON or CSV; may be filled in while rows
    are consumed. grade: how far it can be believed, part of every object in JSON; None if nothing tells.
    """

    columns: tuple[Column, ...]
    rows: Iterable[Sequence[Cell]]
    single: bool = False
    text: Iterable[str] | None = None
    notes: Sequence[str] = ()
    grade: str | None = None


class Command(ABC):
    """One command of the list. Subclasses set the attributes and implement `configure` and `run`.

    columns: those of its answer, where no option asks for others. needs_kernel: False for commands that work without
    an opened kernel (help, identify, ...). watchable: it has --watch and --count, which ask it again and again.
    moving: of a kernel that runs it is always asked so.
    """

    name: str
    summary: str  # one line, imperative, no full stop
    description: str = ""  # further paragraphs of help
    columns: tuple[Column, ...]
    examples: tuple[str, ...] = ()
    needs_kernel: bool = True
    watchable: bool = False
    moving: bool = False

    def configure(self, parser: argparse.ArgumentParser) -> None:  # noqa: B027 - most commands have no arguments
        """Add the command's own arguments; name one's `metavar` PID, ADDRESS, NAME or COMMAND and it completes."""

    def start(self, session: Session, args: Any) -> Callable[[], Table]:
        """Return what gives the answer, called once for each look; those that compare looks remember the last one."""
        return lambda: self.run(session, args)

    @abstractmethod
    def run(self, session: Session, args: Any) -> Table:
        """Return the answer. Raises KvmDbgError."""
