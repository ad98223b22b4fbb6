"""Command lines: one kind of argparse parser, for every command and for the programs that serve them.

argparse prints its complaints and leaves the program; inside a debugger neither may happen. Help is as wide
everywhere, whatever the terminal, since it also stands in the documentation.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import partial
from itertools import zip_longest
from typing import NoReturn

from kvm_dbg.commands.base import Command
from kvm_dbg.commands.watch import add_watch_arguments
from kvm_dbg.errors import UsageError

HELP_WIDTH = 100  # columns
NUMBER = re.compile(r"\d+(\.\d+)?")


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError and never leaves the program.

    Args:
        title: what the user typed so far ("kvm procs"), in front of every complaint.
        files: how the files that come before the arguments are written in the usage line.
    """

    def __init__(self, title: str, *, files: str = "", description: str = "", epilog: str | None = None) -> None:
        super().__init__(
            prog=f"{title} {files}".strip(),
            description=description,
            epilog=epilog,
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=HELP_WIDTH),
            add_help=False,
            allow_abbrev=False,
        )
        self.title = title
        self.add_argument("-h", "--help", action="store_true", help="show this help")

    def error(self, message: str) -> NoReturn:
        """Raise the message as a UsageError."""
        raise UsageError(f"{self.title}: {message}\n{self.format_usage().rstrip()}")

    def find_option(self, word: str) -> argparse.Action | None:
        """Return the option that is written `word`, None if there is none."""
        return self._option_string_actions.get(word)

    def takes_value(self, word: str, after: str) -> bool:
        """Return whether `word` is an option whose value is the next word, `after`; "" if there is none."""
        option = self.find_option(word)
        if option is None or option.nargs == 0:
            return False
        return option.nargs != "?" or NUMBER.fullmatch(after) is not None  # those that may have a value have a number

    def option_words(self) -> list[str]:
        """Return the long options, sorted."""
        return sorted(word for word in self._option_string_actions if word.startswith("--"))

    def actions(self) -> list[argparse.Action]:
        """Return all arguments, positional ones first."""
        return sorted(self._actions, key=lambda action: bool(action.option_strings))

    def positional_at(self, words: Sequence[str]) -> argparse.Action | None:
        """Return the positional argument that a word after `words` would be; the last one may repeat."""
        count = 0
        skip = False
        for word, after in zip_longest(words, words[1:], fillvalue=""):
            if skip:
                skip = False
            elif word.startswith("-") and len(word) > 1:
                skip = self.takes_value(word, after)
            else:
                count += 1
        positionals = self._get_positional_actions()
        if count < len(positionals):
            return positionals[count]
        repeats = bool(positionals) and positionals[-1].nargs in ("*", "+")
        return positionals[-1] if repeats else None


class CommandParser(Parser):
    """The parser of one command.

    Args:
        command: the command.
        program: what stands before its name: "kvm" in a debugger.
        files: how the image is written where it comes before the arguments; "" where one is open already.
    """

    def __init__(self, command: Command, program: str = "kvm", files: str = "") -> None:
        super().__init__(
            f"{program} {command.name}".strip(),
            files=files,
            description="\n\n".join(filter(None, [f"{command.summary}.", command.description])),
            epilog="\n".join(["examples:", *(f"  {line}" for line in example_lines(command, program, bool(files)))]),
        )
        output = self.add_mutually_exclusive_group()
        output.add_argument("--json", dest="output", action="store_const", const="json", help="print JSON")
        output.add_argument("--csv", dest="output", action="store_const", const="csv", help="print CSV")
        command.configure(self)
        if command.watchable:
            add_watch_arguments(self)


def example_lines(command: Command, program: str, with_image: bool) -> list[str]:
    """Return a command's examples as one would type them, with an image where each command is given one."""
    image = " vmcore" if with_image else ""
    lines = []
    for example in command.examples:
        name, _, rest = example.partition(" ")
        lines.append(f"{program} {name}{image} {rest}".strip())
    return lines
