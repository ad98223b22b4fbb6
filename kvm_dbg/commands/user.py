"""user: a process of the image as a debugger of programs sees it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from kvm_dbg.commands.base import Column, Command, Table
from kvm_dbg.commands.mapped_file import MappedFile
from kvm_dbg.commands.session import Session
from kvm_dbg.commands.user_process import StackPages, UserProcess, open_process
from kvm_dbg.errors import CommandError, UsageError
from kvm_dbg.kernel.base import UserThread

COLUMNS = (
    Column("PID", "number"),
    Column("COMMAND"),
    Column("EXECUTABLE", "text", "the program's file on this machine"),
    Column("THREADS", "lines", "thread id, name, registers at the entry to the kernel, pages of the stack"),
    Column("FILES", "lines", "the program and its libraries: the name in the image, and the file on this machine"),
    Column("STACK", "number", "pages of the threads' stacks, from their stack pointers up"),
    Column("LOST", "number", "how many of those are not in the image"),
    Column("MISSING", "number", "files that were not found on this machine", extra=True),
    Column("REMARKS", "lines", "what is missing, and what that means"),
)
MAX_RUNS = 4  # runs of lost pages that are named for one thread


class User(Command):
    """A process."""

    name = "user"
    summary = "Open a process in the debugger, with its threads, executable and libraries"
    columns = COLUMNS
    description = (
        "The threads have the registers with which they entered the kernel. The debugger gets another inferior (gdb)\n"
        "or target (lldb) for the process; the kernel's stays, and `inferior 1` or `target select 0` goes back to it.\n"
        "Elsewhere this prints what there is to open.\n"
        "Executable and libraries are looked for below each --sysroot by their names in the image, below each\n"
        "--search by name or build-id, and then on this machine, where the build-id in the process's memory must be\n"
        "the file's. Files of another build are refused. Code and constants that the image lacks are read from a file\n"
        "that is proven to be the same; nothing else is ever made up."
    )
    examples = ("user 1", "user 1 --sysroot /srv/guest", "user 1 --search ./programs")

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pid", metavar="PID", type=int, nargs="?", help="the process")
        parser.add_argument(
            "--sysroot", metavar="DIR", action="append", default=[], help="stands for the root directory"
        )
        parser.add_argument("--search", metavar="DIR", action="append", default=[], help="look for files below DIR")
        parser.add_argument("--close", action="store_true", help="in a debugger: close PID again, or all of them")

    def run(self, session: Session, args: Any) -> Table:
        return describe(open_named(session, args))


def open_named(session: Session, args: Any) -> UserProcess:
    """Return the process that the command's arguments name. Raises UsageError, and as `open_process` does."""
    if args.close:
        raise CommandError("user --close is for debuggers: nothing is open here")
    if args.pid is None:
        raise UsageError("user: the PID of a process is missing")
    return open_process(session, args.pid, args.sysroot, args.search)


def describe(user: UserProcess) -> Table:
    """Return what can be said of a process before it is debugged."""
    stacks = [user.stack_pages(thread) for thread in user.threads]
    executable = user.executable
    lost = sum(stack.lost_pages for stack in stacks)
    row = (
        user.process.pid,
        user.process.command,
        executable.path if executable is not None else None,
        [_thread_line(user, thread, stack) for thread, stack in zip(user.threads, stacks, strict=True)],
        [_file_line(file) for file in user.files],
        sum(stack.present for stack in stacks) + lost,
        lost,
        sum(file.path is None for file in user.files),
        [*user.remarks, *_remarks(user, stacks)],
    )
    return Table(COLUMNS, [row], single=True)


def _thread_line(user: UserProcess, thread: UserThread, stack: StackPages) -> str:
    if not thread.registers:
        return f"{thread.lid} {thread.name}: {thread.problem}"
    pc, sp = thread.registers["rip"], thread.registers["rsp"]
    mapping = user.find_mapping(pc)
    where = f" in {mapping.path}" if mapping is not None and mapping.path else ""
    if stack.mapping is None:
        pages = "the stack pointer is in no mapping"
    else:
        pages = f"stack pages present: {stack.present} of {stack.present + stack.lost_pages}"
    if stack.lost:
        shown = ", ".join(f"{start:#x}-{end:#x}" for start, end in stack.lost[:MAX_RUNS])
        pages += f" (not in the image: {shown}{', ...' if len(stack.lost) > MAX_RUNS else ''})"
    return f"{thread.lid} {thread.name}: pc {pc:#x}{where}, sp {sp:#x}, {pages}"


def _file_line(file: MappedFile) -> str:
    if file.path is None:
        build_id = f", build-id {file.build_id}" if file.build_id else ""
        return f"{file.name}: not found{build_id}"
    own = "" if file.path == file.name else f" {file.path}"
    unproven = "" if file.proven else ", not proven to be the same"
    debug = f", debug information in {file.debug}" if file.debug is not None else ""
    return f"{file.name}:{own or ' the same here'}{unproven}{debug}"


def _remarks(user: UserProcess, stacks: list[StackPages]) -> Iterator[str]:
    if any(stack.lost for stack in stacks):
        yield "where a backtrace needs a page of the stack that is not in the image, it ends"
    for file in user.files:
        yield from file.refused
    unproven = [file for file in user.files if file.path is not None and not file.proven]
    if unproven:
        why = unproven[0].unreadable or "it has no build-id"
        names = ", ".join(file.name for file in unproven)
        yield f"the files found for {names} fit by their segments, and nothing else can be compared: {why}"
    missing = [file.name for file in user.files if file.path is None]
    if missing:
        yield (
            f"without {', '.join(missing)} frames there have no names, and a backtrace may end or err at the first of"
            " them; --sysroot DIR or --search DIR names where they are"
        )
