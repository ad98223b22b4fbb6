"""What every part of gdb's adapter uses: settings that are put back, quiet commands, words of command lines."""

from __future__ import annotations

import contextlib
import glob
import os

import gdb


class Setup:
    """Settings of gdb that are changed for a while, and put back."""

    def __init__(self) -> None:
        self._saved: list[tuple[str, str]] = []

    def change(self, name: str, value: str) -> None:
        """Set a parameter, if this gdb has it, and remember what it was."""
        try:
            old = gdb.parameter(name)
            gdb.execute(f"set {name} {value}", to_string=True)
        except (gdb.error, RuntimeError):
            return
        if old is None:
            old = "unlimited"
        elif isinstance(old, bool):
            old = "on" if old else "off"
        self._saved.append((name, str(old)))

    def restore(self) -> None:
        """Put everything back, last change first."""
        while self._saved:
            name, value = self._saved.pop()
            with contextlib.suppress(gdb.error):
                gdb.execute(f"set {name} {value}", to_string=True)


def warn(text: str) -> None:
    """Say something that is no command's output: standard output stays clean for scripts."""
    gdb.write(f"kvm: {text}\n", gdb.STDERR)


def quiet(command: str) -> str:
    """Execute a gdb command without showing its output."""
    return str(gdb.execute(command, False, True))


def quoted(path: str) -> str:
    """Return the path as one word for gdb commands that split their arguments."""
    return "".join("\\" + character if character in " \t\n\"'\\" else character for character in path)


def split_words(text: str) -> list[str]:
    """Return the words of a command line. Raises gdb.GdbError."""
    try:
        return list(gdb.string_to_argv(text))
    except (gdb.error, ValueError) as error:
        raise gdb.GdbError(str(error)) from None


def shows_color(own_child: int) -> bool:
    """Return whether what gdb prints now goes to a terminal, with gdb's own styling on and nothing in between.

    gdb does not tell its Python of `pipe COMMAND | PROGRAM`, but the program is then a child of gdb beside the server.
    """
    try:
        styled = gdb.parameter("style enabled") and not gdb.parameter("logging enabled")
    except RuntimeError:
        return False
    if not styled or not os.isatty(1) or os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return False
    children = []
    try:
        lists = glob.glob("/proc/self/task/*/children")
        for path in lists:
            with open(path, encoding="ascii") as file:
                children += file.read().split()
    except OSError:
        return False
    return bool(lists) and children == [str(own_child)]
