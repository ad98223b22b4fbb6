"""`kvm-dbg gdb` and `kvm-dbg serve`: from the command line into a debugger, or into the server for one.

`gdb` replaces this process by the debugger, with the adapter sourced and the image opened, so that a signal, an exit
status and the terminal are the debugger's own.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from kvm_dbg.adapter import find_adapter
from kvm_dbg.commands.open import add_open_arguments
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError
from kvm_dbg.rsp.program import ServeParser, run_program

INTERPRETER = "KVM_DBG_PYTHON"  # tells the adapter which interpreter has this package


def main(what: str, words: Sequence[str], session: Session) -> int:
    """Run `kvm-dbg gdb` or `kvm-dbg serve`, which `what` names, and return the exit status if gdb does not take over.

    Raises:
        CommandError: wrong use, or no such gdb.
        FileAccessError: the adapter is not installed.
    """
    if what == "gdb":
        launch_gdb(words)
    return run_program(words, session)


def launch_gdb(words: Sequence[str]) -> NoReturn:
    """Replace this process by gdb, working on the image that the words name.

    Raises:
        CommandError: wrong use, or no such gdb.
        FileAccessError: the adapter is not installed.
    """
    own, debugger_words = split_words(words)
    parser = ServeParser(prog="kvm-dbg gdb", description="Open a kernel memory image in gdb.", allow_abbrev=False)
    parser.add_argument("files", metavar="FILE", nargs="+", help="the kernel file, if any, and the image")
    parser.add_argument("--gdb", metavar="PROGRAM", default="gdb", help="the gdb to start (default: gdb)")
    parser.add_argument("--no-symbols", action="store_true", help="do not load the kernel file's symbols into gdb")
    add_open_arguments(parser)
    args = parser.parse_args(own)
    skipped = ("--gdb", args.gdb)
    opening = [word for word in own if word not in skipped and not word.startswith("--gdb=")]
    command = [
        args.gdb,
        "-iex",
        f"source {find_adapter('gdb')}",
        "-ex",
        "kvm open " + " ".join(shlex.quote(word) for word in opening),
        *debugger_words,
    ]
    os.environ[INTERPRETER] = sys.executable
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise CommandError(f"{command[0]}: {error.strerror}; --gdb names another gdb") from error


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (the words before `--`, those after it)."""
    if "--" not in words:
        return list(words), []
    at = list(words).index("--")
    return list(words[:at]), list(words[at + 1 :])
