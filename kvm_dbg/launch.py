"""`kvm-dbg gdb`, `lldb` and `serve`: from the command line into a debugger, or into the server for one.

`gdb` and `lldb` replace this process by the debugger, with the adapter loaded and the image opened, so that a signal,
an exit status and the terminal are the debugger's own.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from kvm_dbg.adapter import find_adapter
from kvm_dbg.commands.open import add_open_arguments
from kvm_dbg.commands.parser import Parser
from kvm_dbg.commands.run import HELP_WORDS
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError
from kvm_dbg.rsp.program import make_parser, run_program

INTERPRETER = "KVM_DBG_PYTHON"  # tells the adapter which interpreter has this package


DEBUGGERS = ("gdb", "lldb")


def main(what: str, words: Sequence[str], session: Session) -> int:
    """Run what `what` names, and return the exit status if no debugger takes over.

    Raises:
        UsageError: wrong use.
        CommandError: no such debugger.
        FileAccessError: the adapter is not installed.
    """
    parser = make_debugger_parser(what) if what in DEBUGGERS else make_parser()
    if any(word in HELP_WORDS for word in split_words(words)[0]):
        sys.stdout.write(parser.format_help())
        return 0
    if what in DEBUGGERS:
        launch(what, parser, words)
    return run_program(words, session)


def make_debugger_parser(debugger: str) -> Parser:
    """Return the parser of `kvm-dbg gdb` or `kvm-dbg lldb`."""
    batch = {"gdb": "-batch -ex bt", "lldb": "-b -o bt"}[debugger]
    parser = Parser(
        f"kvm-dbg {debugger}",
        description=f"Open a kernel memory image in {debugger}. Words after -- are {debugger}'s own.",
        epilog=f"examples:\n  kvm-dbg {debugger} vmlinux vmcore\n  kvm-dbg {debugger} vmcore -- {batch}",
    )
    parser.add_argument("files", metavar="FILE", nargs="*", help="the kernel file, if any, and the image")
    parser.add_argument(
        f"--{debugger}",
        metavar="PROGRAM",
        dest="program",
        default=debugger,
        help=f"the {debugger} to start (default: {debugger})",
    )
    parser.add_argument(
        "--no-symbols", action="store_true", help=f"do not load the kernel file's symbols into {debugger}"
    )
    if debugger == "gdb":
        parser.add_argument("--socket", metavar="PATH", help="serve there, for a debug adapter that connects itself")
    add_open_arguments(parser)
    return parser


def launch(debugger: str, parser: Parser, words: Sequence[str]) -> NoReturn:
    """Replace this process by the debugger, working on the image that the words name.

    Raises:
        UsageError: wrong use.
        CommandError: no such debugger.
        FileAccessError: the adapter is not installed.
    """
    own, debugger_words = split_words(words)
    args = parser.parse_args(own)
    adapter = find_adapter(debugger)
    opening = "kvm open " + " ".join(shlex.quote(word) for word in without_option(own, f"--{debugger}"))
    if debugger == "gdb":
        command = [args.program, "-iex", f"source {adapter}", "-ex", opening, *debugger_words]
    else:
        command = [args.program, "-O", f'command script import "{adapter}"', "-o", opening, *debugger_words]
    os.environ[INTERPRETER] = sys.executable
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise CommandError(f"{command[0]}: {error.strerror}; --{debugger} names another {debugger}") from error


def without_option(words: Sequence[str], option: str) -> list[str]:
    """Return the words without `option` and its value, whether that is the next word or stands after a `=`."""
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word != option and not word.startswith(f"{option}="):
            kept.append(word)
        skip = not skip and word == option
    return kept


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (the words before `--`, those after it)."""
    if "--" not in words:
        return list(words), []
    at = list(words).index("--")
    return list(words[:at]), list(words[at + 1 :])
