"""bt: backtraces."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.render import printable
from kvm_dbg.commands.session import Session
from kvm_dbg.commands.source_view import NO_CELLS, SourceView
from kvm_dbg.errors import CommandError, KvmDbgError
from kvm_dbg.kernel.base import Frame, Thread

COLUMNS = (
    Column("PID", "number"),
    Column("LWP", "number", "thread id"),
    Column("CPU", "number", "the CPU that it runs on, or last ran on"),
    Column("RUN", "bool", "on its CPU when the image was taken"),
    Column("NAME"),
    Column("FRAME", "number", "from 0, the innermost; null where a task has no frame at all"),
    Column("ADDRESS", "address", "of the next instruction, or a return address"),
    Column("SP", "address", "the stack pointer"),
    Column("FUNCTION"),
    Column("OFFSET", "number", "bytes from the function's start"),
    Column("MODULE"),
    Column("STACK", "text", "TASK, IRQ, NMI, #DF, ... or USER where user space was left"),
    Column("HOW", "text", "registers, orc, frame-pointer, exception (saved registers), or scan (a guess)"),
    Column("WHY", "text", "why there is no frame, or no sure one, after this"),
    Column("REGISTERS", "list", "name=value of an exception's saved registers", extra=True),
    Column("TASK", "address", "of the task structure", extra=True),
    Column("FILE", "text", "of the innermost function there, inlined or not"),
    Column("LINE", "number"),
    Column("INLINE", "list", "inlined functions there, the innermost first, each with the place of its call"),
    Column("LOCALS", "list", "with --locals: name = value, after the name of a function that is inlined"),
)
GROUP_COLUMNS = (
    Column("COUNT", "number", "tasks with this stack"),
    Column("TASKS", "list", "name/thread id"),
    Column("FRAMES", "list", "function+offset [module], the innermost first"),
    Column("WHY", "text", "why there is no frame, or no sure one, after the last"),
)
DESCRIPTION = """Without arguments: the selected thread in gdb and lldb; elsewhere the task that panicked, or else the
first that runs on a CPU. The kernel's own unwind tables (ORC) in the image are used, where code has none its frame
pointer, and at last a search of the stack for return addresses: such frames are marked with a question mark. A stack
ends where user space was left, or where the task was made. With debug information (DWARF) in vmlinux, and in the files
of modules that are found, each frame has its source line and the functions that the compiler inlined there; for --cpus,
--all and --group only if asked for."""
GUESS = "scan"
REGISTERS_IN_LINE = 4


class Bt(Command):
    """Backtraces."""

    name = "bt"
    summary = "Print kernel stacks, of the selected thread, of the task that panicked, or of any others"
    columns = COLUMNS
    description = DESCRIPTION
    examples = ("bt", "bt 1", "bt --cpus", "bt --all --group", "bt -v", "bt --source 3", "bt --all --json")

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pid", metavar="PID", type=int, nargs="*", help="these processes or threads; 0: idle tasks")
        which = parser.add_mutually_exclusive_group()
        which.add_argument("-a", "--cpus", action="store_true", help="what each CPU runs")
        which.add_argument("--all", action="store_true", help="all tasks")
        parser.add_argument("--group", action="store_true", help="print identical stacks once, with their tasks")
        parser.add_argument("-v", "--verbose", action="store_true", help="with stack pointers and saved registers")
        SourceView.configure(parser)

    def run(self, session: Session, args: Any) -> Table:
        tasks = _unwound(session, select(session, args))
        few = not (args.all or args.cpus or args.group)
        view = SourceView.open(session, args, unasked=few)
        if args.group:
            if args.output is None:
                return Table(GROUP_COLUMNS, (), text=group_lines(tasks, view), notes=view.notes)
            return Table(GROUP_COLUMNS, group_rows(tasks))
        if args.output is None:
            return Table(COLUMNS, (), text=task_lines(tasks, view, verbose=args.verbose), notes=view.notes)
        return Table(COLUMNS, (row for thread, frames in tasks for row in rows_of(thread, frames, view)))


def select(session: Session, args: Any) -> Iterator[Thread]:
    """Yield the threads that the arguments ask for.

    Raises:
        CommandError: after the last one: some of the PIDs are of no task.
    """
    threads = session.system.for_each_thread(session.kernel)
    if args.pid:
        if args.cpus or args.all:
            raise CommandError("bt: name PIDs, or ask for --cpus or --all, not both")
        yield from _named(threads, args.pid)
    elif args.all:
        yield from threads
    elif args.cpus:
        yield from (thread for thread in threads if thread.on_cpu)
    else:
        selected = session.selected
        yield from islice(threads, 1) if selected is None else (selected,)


def _named(threads: Iterable[Thread], pids: list[int]) -> Iterator[Thread]:
    wanted = set(pids)
    missing = set(pids)
    for thread in threads:
        own = thread.lid if thread.tid is None else thread.tid
        if thread.pid in wanted or own in wanted:
            missing -= {thread.pid, own}
            yield thread
    if missing:
        raise CommandError(f"no task with PID {', '.join(map(str, sorted(missing)))} in this image")


def _unwound(session: Session, threads: Iterable[Thread]) -> Iterator[tuple[Thread, list[Frame]]]:
    for thread in threads:
        yield thread, list(session.system.unwind(session.kernel, thread))


def place_of(frame: Frame) -> str:
    """Return the function and the distance from its start, as the kernel prints them."""
    if frame.name is None:
        return f"{frame.pc:#x}"
    module = f" [{frame.module}]" if frame.module else ""
    return f"{frame.name}+{frame.offset:#x}{module}"


def rows_of(thread: Thread, frames: list[Frame], view: SourceView) -> Iterator[list[Cell]]:
    """Yield a task's rows; one that says why if it has no frame."""
    head: list[Cell] = [thread.pid, thread.lid, thread.cpu, thread.on_cpu, thread.name]
    if not frames:
        yield [*head, *[None] * 8, thread.why, [], thread.address, *NO_CELLS]
    for number, frame in enumerate(frames):
        named = frame.name is not None
        yield [
            *head,
            number,
            frame.pc,
            frame.sp,
            frame.name,
            frame.offset if named else None,
            frame.module,
            frame.stack,
            frame.how,
            frame.why or None,
            [f"{name}={value:#x}" for name, value in (frame.registers or {}).items()],
            thread.address,
            *view.cells(thread, frames, number),
        ]


def task_lines(tasks: Iterable[tuple[Thread, list[Frame]]], view: SourceView, *, verbose: bool) -> Iterator[str]:
    """Yield a paragraph for each task."""
    lead = False
    for thread, frames in tasks:
        if lead:
            yield ""
        lead = True
        cpu = "" if thread.cpu is None else f"  CPU {thread.cpu}"
        lwp = f"  LWP {thread.lid}" if thread.lid != thread.pid else ""
        yield printable(f"PID {thread.pid}{lwp}{cpu}  {thread.name}  ({thread.why})")
        yield from frame_lines(frames, view, thread, verbose=verbose)


def frame_lines(
    frames: list[Frame], view: SourceView, thread: Thread | None = None, *, verbose: bool = False
) -> Iterator[str]:
    """Yield a line for each frame, and one wherever another stack begins."""
    stack = ""
    for number, frame in enumerate(frames):
        if frame.stack != stack:
            stack = frame.stack
            yield f" <{printable(stack)}>"
        mark = "? " if frame.how == GUESS else "  "
        sp = f" sp {frame.sp:#018x}" if verbose else ""
        yield f" #{number:<2} {frame.pc:#018x}{sp} {mark}{printable(place_of(frame)):<44} {frame.how}"
        yield from view.lines(thread, frames, number)
        if verbose and frame.registers:
            cells = [f"{name:>8} {value:#018x}" for name, value in frame.registers.items()]
            for first in range(0, len(cells), REGISTERS_IN_LINE):
                yield "     " + " ".join(cells[first : first + REGISTERS_IN_LINE])
        if frame.why:
            yield printable(f"     not sure beyond: {frame.why}")


class Group:
    """Tasks with the same stack."""

    def __init__(self, frames: list[Frame], why: str) -> None:
        self.frames = frames
        self.why = why
        self.tasks: list[str] = []


def group(tasks: Iterable[tuple[Thread, list[Frame]]]) -> tuple[list[Group], KvmDbgError | None]:
    """Return the groups, the largest first, and what went wrong after the last task.

    Stacks are the same if their functions, places in them and stacks are; user space is one place.
    """
    groups: dict[tuple[object, ...], Group] = {}
    failure: KvmDbgError | None = None
    try:
        for thread, frames in tasks:
            key = tuple((frame.stack, frame.how, 0 if frame.stack == "USER" else frame.pc) for frame in frames)
            why = "" if frames else thread.why
            found = groups.setdefault((why, *key), Group(frames, why))
            found.tasks.append(f"{thread.name}/{thread.label}")
    except KvmDbgError as error:  # what was found before it is shown first
        failure = error
    return sorted(groups.values(), key=lambda found: -len(found.tasks)), failure


def group_rows(tasks: Iterable[tuple[Thread, list[Frame]]]) -> Iterator[list[Cell]]:
    """Yield a row for each group. Raises what reading the tasks raises, after the last of them."""
    groups, failure = group(tasks)
    for found in groups:
        frames = [
            "user space" if frame.stack == "USER" else ("? " if frame.how == GUESS else "") + place_of(frame)
            for frame in found.frames
        ]
        whys = [found.why, *(frame.why for frame in found.frames)]
        yield [len(found.tasks), list(found.tasks), list(frames), next(filter(None, whys), None)]
    if failure is not None:
        raise failure


def group_lines(tasks: Iterable[tuple[Thread, list[Frame]]], view: SourceView) -> Iterator[str]:
    """Yield a paragraph for each group. Raises what reading the tasks raises, after the last of them."""
    groups, failure = group(tasks)
    for number, found in enumerate(groups):
        if number:
            yield ""
        yield f"{len(found.tasks)} {'task' if len(found.tasks) == 1 else 'tasks'}"
        yield printable("  " + ", ".join(found.tasks))
        if found.why:
            yield printable(f"  no frames: {found.why}")
        yield from frame_lines(found.frames, view)
    if failure is not None:
        raise failure
