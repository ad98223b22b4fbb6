"""attach and detach: the machine that a debugger is attached to. Adapters do it; here are the help and the refusal."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from kvm_dbg.commands.base import Column, Command
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError

COLUMNS = (Column("KERNEL", "text", "the one that was found, as a line on standard error"),)
ONLY_THERE = "only a debugger is attached to a machine: use it in gdb or lldb (`kvm-dbg gdb`, `kvm-dbg lldb`)"


class Attach(Command):
    """Work on the machine that the debugger is attached to."""

    name = "attach"
    summary = "Work on the machine that gdb or lldb is attached to, by its own connection"
    columns = COLUMNS
    description = (
        "For a debugger with a remote connection to QEMU's stub for gdb, kgdb, or another stub of a whole machine.\n"
        "All commands then read the machine's memory through that connection, while it is stopped. Stepping,\n"
        "breakpoints and registers stay the debugger's. Its symbols are placed where the kernel is, unless it has\n"
        "them there or --no-symbols is given. Without a kernel file the usual places are searched for the right one,\n"
        "and without any the kernel's own tables serve."
    )
    examples = ("attach", "attach vmlinux", "attach --write vmlinux")
    needs_kernel = False

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("vmlinux", metavar="FILE", nargs="?", help="the kernel file")
        parser.add_argument("--no-symbols", action="store_true", help="leave the debugger's symbols alone")
        parser.add_argument("--write", action="store_true", help="let `write` change the machine's memory")

    def run(self, session: Session, args: Any) -> NoReturn:
        raise CommandError(f"attach: {ONLY_THERE}")


class Detach(Command):
    """Leave the machine to the debugger."""

    name = "detach"
    summary = "Leave the machine to the debugger, as it was before `attach`"
    columns = COLUMNS
    description = "The debugger stays attached to it."
    examples = ("detach",)
    needs_kernel = False

    def run(self, session: Session, args: Any) -> NoReturn:
        raise CommandError(f"detach: {ONLY_THERE}")
