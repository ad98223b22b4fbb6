"""The lines of source files, as far as the files are found, coloured where a terminal shows them.

Files are looked for below the directories that the user names, then where the compiler had them, then where Debian's
package linux-source-X.Y is unpacked by its users (/usr/src/linux-source-X.Y).
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence

from kvm_dbg.commands.render import printable
from kvm_dbg.errors import CommandError
from kvm_dbg.kernel.base import SourcePlace

DEBIAN = "/usr/src/linux-source-{version}"
MAX_SIZE = 16 << 20  # bytes of a source file
TAB = 8  # columns, as the kernel's coding style has it


class SourceFiles:
    """Finds source files and returns lines of them.

    Args:
        places: directories (the root of the sources), or FROM=TO, which replaces the beginning of paths.
        release: of the kernel, as uname -r.
        color: whether lines are coloured.

    Raises:
        CommandError: a directory is none.
    """

    def __init__(self, places: Sequence[str], release: str, *, color: bool) -> None:
        self._substitutions: list[tuple[str, str]] = []
        self._roots: list[str] = []
        self._color = color
        self._known: dict[str | None, list[str] | None] = {}
        self._notes: list[str] = []
        for place in places:
            old, equals, new = place.partition("=")
            path = os.path.expanduser(new if equals else old)
            if not os.path.isdir(path):
                raise CommandError(f"--source-dir {place}: {path} is no directory that can be read")
            if equals:
                self._substitutions.append((old, path))
            else:
                self._roots.append(path)
        version = ".".join(release.split(".")[:2])
        self._roots.append(DEBIAN.format(version=version.partition("-")[0]))

    def context(self, place: SourcePlace, count: int) -> Iterator[str]:
        """Yield up to `count` numbered lines around a place, the line itself marked; none if there is no file."""
        if place.path not in self._known:
            self._known[place.path] = self._read(place)
        lines = self._known[place.path]
        if lines is None:
            return
        if place.line > len(lines):
            self._notes.append(f"{place.file} has {len(lines)} lines, and not {place.line}: it is of another version")
            return
        first = max(1, place.line - (count - 1) // 2)
        last = min(len(lines), first + count - 1)
        first = max(1, last - count + 1)
        for number in range(first, last + 1):
            mark = ">" if number == place.line else " "
            yield f"{mark}{number:>6}  {lines[number - 1]}".rstrip()

    def take_notes(self) -> list[str]:
        """Return what was not found since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def _paths(self, place: SourcePlace) -> Iterator[str]:
        """Yield where a file may be. A name that leads out of a directory is not looked for in it."""
        path, name = place.path or "", place.file or ""
        for old, new in self._substitutions:
            rest = path.removeprefix(old.rstrip("/") + "/")
            if rest != path and not _leads_out(rest):
                yield os.path.join(new, rest)
        if not _leads_out(name):
            yield from (os.path.join(root, name) for root in self._roots[:-1])
        if posixpath.isabs(path):
            yield path
        if not _leads_out(name):
            yield os.path.join(self._roots[-1], name)

    def _read(self, place: SourcePlace) -> list[str] | None:
        for path in self._paths(place):
            try:
                if not os.path.isfile(path) or os.path.getsize(path) > MAX_SIZE:
                    continue
                with open(path, encoding="utf-8", errors="backslashreplace") as file:
                    text = file.read()
            except OSError:
                continue
            lines = [printable(line.expandtabs(TAB).rstrip()) for line in text.split("\n")]
            if not lines[-1]:
                lines.pop()
            return _colored(path, lines) if self._color else lines
        self._notes.append(f"the source file {place.file} was not found: name the root of the sources by --source-dir")
        return None


def _leads_out(name: str) -> bool:
    """Return whether a name is no relative one, or leaves the directory that it starts from."""
    return not name or posixpath.isabs(name) or posixpath.normpath(name).split("/")[0] == ".."


def _colored(path: str, lines: list[str]) -> list[str]:
    """Return the lines of C or assembler with a terminal's colours, each line for itself."""
    from pygments import highlight
    from pygments.formatters.terminal import TerminalFormatter
    from pygments.lexers.asm import GasLexer
    from pygments.lexers.c_cpp import CLexer

    make = GasLexer if path.endswith((".S", ".s")) else CLexer
    lexer = make(stripnl=False, stripall=False, ensurenl=False)
    colored = highlight("\n".join(lines), lexer, TerminalFormatter()).split("\n")
    return colored if len(colored) >= len(lines) else lines
