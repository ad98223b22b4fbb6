"""`docs/commands.md`, made from the list of commands: `python -m kvm_dbg.commands.document > docs/commands.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from kvm_dbg.commands import COMMANDS
from kvm_dbg.commands.base import Column, Command
from kvm_dbg.commands.parser import CommandParser, example_lines

COMMON = ("--help", "--json", "--csv")
HEAD = """\
# Commands

This page is made from the program's own list (`python -m kvm_dbg.commands.document`). The same commands exist

- on the command line, each with the image: `kvm-dbg procs vmlinux vmcore --json`. The first argument is the image or
  the kernel file, and so are those after it that exist as files; `--` ends them. Without a kernel file the usual places
  are searched, see `open`, whose options every command has here; beside them `--no-index` and `--no-pager`;
- in gdb, after `kvm open [VMLINUX] IMAGE`: `kvm procs --json`. They complete with TAB;
- in lldb, likewise; before lldb 20 only their names, files, PIDs and symbols complete, options do not;
- in any client of the gdb remote protocol: `monitor procs --json`.

Every command has `--help`, `--json` and `--csv`. JSON is one array of objects, or one object where there is a single
answer. Its keys are the columns' names in lower case; addresses are strings (`"0xffff..."`), since 64 bits do not
survive every reader of JSON; what is absent is `null`. Where the image can be checked against itself, each object also
has the key `grade`: `ok`, `partial` or `suspect`, see `selftest`. The columns marked * are in JSON and CSV only. CSV
has the same columns; lists are words quoted as for a shell.

Strings out of an image are printed with control characters as `\\xNN`, in text and CSV.

Exit status on the command line: 0, 1 for a failure, 2 for wrong use, 130 after Ctrl-C. What could be found is printed
before the error is; JSON is whole even then.
"""


def document(commands: Sequence[Command] = COMMANDS) -> Iterator[str]:
    """Yield the page, line by line."""
    yield from HEAD.splitlines()
    yield ""
    yield "| command | |"
    yield "|---|---|"
    for command in commands:
        yield f"| [`{command.name}`](#{command.name}) | {command.summary} |"
    for command in commands:
        yield ""
        yield from _document_command(command)


def _document_command(command: Command) -> Iterator[str]:
    parser = CommandParser(command, "kvm")
    yield f"## {command.name}"
    yield ""
    yield f"{command.summary}. {' '.join(command.description.split())}".rstrip()
    yield ""
    actions = [action for action in parser.actions() if not set(action.option_strings) & set(COMMON)]
    if actions:
        yield "| argument | |"
        yield "|---|---|"
        for action in actions:
            metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
            name = ", ".join(action.option_strings) + (f" {metavar}" if action.nargs != 0 else "")
            many = {"+": f"{metavar}...", "*": f"[{metavar}...]", "?": f"[{metavar}]"}
            shown = name.strip() if action.option_strings else many.get(str(action.nargs), metavar)
            yield f"| `{shown}` | {action.help or ''} |".replace("|  |", "| |")
        yield ""
    yield "| column | |"
    yield "|---|---|"
    for column in command.columns:
        mark = " *" if column.extra else ""
        yield f"| `{column.name}`{mark} | {_describe(column)} |".replace("|  |", "| |")
    yield ""
    yield "```"
    yield from example_lines(command, "kvm", False)
    yield "```"


def _describe(column: Column) -> str:
    kinds = {"address": "address", "bool": "yes or no", "list": "list", "argv": "list of words", "lines": "list"}
    parts = [kinds.get(column.kind, ""), column.help]
    return "; ".join(part for part in parts if part)


def main() -> None:
    """Write the page to standard output."""
    sys.stdout.write("".join(f"{line}\n" for line in document()))


if __name__ == "__main__":
    main()
