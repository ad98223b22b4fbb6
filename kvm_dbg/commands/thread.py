"""thread: the debugger's selected thread. Adapters select it; here are the help, the completion and the refusal."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from kvm_dbg.commands.base import Column, Command
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError

COLUMNS = (Column("THREAD", "text", "as the debugger shows it"),)


class Thread(Command):
    """The selected thread."""

    name = "thread"
    summary = "Select the thread of a process or thread id, in gdb or lldb"
    columns = COLUMNS
    description = (
        "The debugger shows where the thread is. After that its own commands, and those here that are about the\n"
        "selected thread if they are given no PID (bt, vm), are about this one. Thread 1 is the task that panicked."
    )
    examples = ("thread 1",)

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pid", metavar="PID", type=int, help="a process or thread id; 0: the idle task of one CPU")

    def run(self, session: Session, args: Any) -> NoReturn:
        raise CommandError(
            f"thread {args.pid}: only a debugger has a selected thread: use `kvm thread` in gdb or lldb"
            f" (`kvm-dbg gdb`, `kvm-dbg lldb`), or `bt {args.pid}`"
        )
