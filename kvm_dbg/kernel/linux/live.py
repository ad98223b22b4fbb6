"""Linux while it runs: the same questions, asked so that what changes meanwhile does no harm.

A list that is walked while the kernel changes it can lead astray: a task that has ended gives its memory to another
one, whose links lead past everybody between. The allocator of PIDs can not: each number in its tree is looked up by
itself, a task must bear that number and point back to its struct pid (`thread_pid`, which release_task() clears,
kernel/exit.c), and a node of the tree that leads to a living task is never freed; only the root may be exchanged
(lib/xarray.c, lib/radix-tree.c), and then the tree is walked again. So a process that lives all the time is always
found, and none that was gone before. What was read of a task is believed if the task is still the same afterwards,
else it is read again; what has ended meanwhile is left out, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from kvm_dbg.errors import CorruptError, KvmDbgError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.base import LogRecord, Lwp, MemoryMapping, Module, OpenFile, Process, Thread
from kvm_dbg.kernel.layout import Record, observed, read_pointer
from kvm_dbg.kernel.linux import Linux
from kvm_dbg.kernel.linux.mm import kernel_space
from kvm_dbg.kernel.linux.task import read_leaders, read_threads, task_layout, thread_head_offset

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Frame, Kernel

RETRIES = 8
MISSING = (ReadError, CorruptError, SymbolNotFound, TypeNotFound, MemberNotFound)
SAME = ("pid", "tgid", "thread_pid", "start_boottime")
"""Members that are a task's own for as long as it lives; exec(2) by another thread than the leader changes two."""
STEADY = ("signal", "mm", "real_cred", "files")
"""Members that lead to what a description is read from."""

Result = TypeVar("Result")


def read_tasks(kernel: Kernel) -> Mapping[int, list[Record]]:
    """Return process -> its tasks, ascending, of all that live; read once until the kernel is refreshed.

    Raises:
        ReadError, CorruptError, SymbolNotFound: the allocator of PIDs cannot be read.
    """
    return observed(kernel, _read_tasks)


def _read_tasks(kernel: Kernel) -> Mapping[int, list[Record]]:
    from kvm_dbg.kernel.linux.pid import for_each_idr_entry

    types = kernel.types
    holder = kernel.symbols.address("init_pid_ns")
    head = holder + types.offset_of("struct pid_namespace", "idr")
    head_size = types.size_of("struct idr")
    found: dict[int, Record] = {}
    failure: KvmDbgError | None = None
    for _ in range(RETRIES):
        before = kernel.read(head, head_size)[:16]  # xarray: lock, flags and xa_head come first
        failure = None
        try:
            for number, address in for_each_idr_entry(kernel, holder, "struct pid_namespace", "idr"):
                if number not in found and (task := _read_numbered(kernel, number, address)) is not None:
                    found[number] = task
        except (ReadError, CorruptError) as error:
            failure = error
        if failure is None and kernel.read(head, head_size)[:16] == before:
            break
    if failure is not None:
        raise failure
    tasks: dict[int, list[Record]] = {}
    for number in sorted(found):
        tasks.setdefault(found[number]["tgid"], []).append(found[number])
    return tasks


def _read_numbered(kernel: Kernel, number: int, address: int) -> Record | None:
    """Return the task of the PID `number`, whose struct pid is at `address`; None if it has none, or has ended."""
    layout = task_layout(kernel)
    first, link = observed(kernel, _find_links)
    for _ in range(RETRIES):
        try:
            node = read_pointer(kernel, address + first)
            if not node:
                return None
            task = layout.read(kernel, node - link)
            if task["pid"] == number and ("pids" in task or task["thread_pid"] == address):
                return task
        except (ReadError, MemberNotFound):
            continue  # it has ended, and its memory is something else's
    return None


def _find_links(kernel: Kernel) -> tuple[int, int]:
    """Return the offsets of the first task in struct pid, and of the link to it in task_struct."""
    types = kernel.types
    first = types.offset_of("struct pid", "tasks")
    if types.has_member("struct task_struct", "pid_links"):
        return first, types.offset_of("struct task_struct", "pid_links")
    return first, types.offset_of("struct task_struct", "pids") + types.offset_of("struct pid_link", "node")


def read_live_leaders(kernel: Kernel) -> tuple[list[Record], KvmDbgError | None]:
    """Return what `task.read_leaders` does."""
    try:
        tasks = read_tasks(kernel)
    except (ReadError, CorruptError) as error:
        return [], error
    leaders = (next((task for task in group if task["pid"] == tgid), None) for tgid, group in tasks.items())
    return sorted((task for task in leaders if task is not None), key=lambda task: task["tgid"]), None


def read_live_threads(kernel: Kernel, leader: Record) -> tuple[list[Record], KvmDbgError | None]:
    """Return what `task.read_threads` does."""
    try:
        return list(read_tasks(kernel).get(leader["tgid"], [leader])), None
    except (ReadError, CorruptError) as error:
        return [leader], error


def settled(kernel: Kernel, task: Record, describe: Callable[[Record], Result]) -> Result | None:
    """Return `describe(task)`, read while the task was the same all the time; None if it has ended.

    Raises:
        KvmDbgError: what `describe` raises, though the task did not change.
    """
    problem: KvmDbgError | None = None
    result: Result | None = None
    for _ in range(RETRIES):
        problem = None
        try:
            result = describe(task)
        except MISSING as error:
            problem = error
        now = _read_again(kernel, task)
        if now is None:
            kernel.note_change("changed while reading: a task ended, and is left out")
            return None
        if problem is None and not getattr(result, "unread", ()) and _are_equal(task, now, STEADY):
            return result
        task = now
    if problem is not None:
        raise problem
    if not getattr(result, "unread", ()):
        kernel.note_change(f"changed while reading: task {task['pid']}; what is shown of it may not fit together")
    return result


def _read_again(kernel: Kernel, task: Record) -> Record | None:
    """Return the task as it is now, None if it has ended."""
    try:
        now = task_layout(kernel).read(kernel, task.address)
        return now if _are_equal(task, now, SAME) else None
    except MISSING:
        return None


def _are_equal(one: Record, other: Record, names: tuple[str, ...]) -> bool:
    return all(one.numbers.get(name) == other.numbers.get(name) for name in names)


def steady(kernel: Kernel, read: Callable[[], list[Result]]) -> list[Result]:
    """Return what `read` does, asked again if memory changed under it.

    Raises:
        KvmDbgError: what `read` raises the last time.
    """
    for left in reversed(range(RETRIES)):
        try:
            return read()
        except MISSING:
            if not left:
                raise
            kernel.refresh()
    return []


class _LiveLinux(Linux):
    """Linux as an `OperatingSystem`, of memory that changes."""

    def for_each_process(self, kernel: Kernel) -> Iterator[Process]:
        from kvm_dbg.kernel.linux.process import ProcessReader

        reader = ProcessReader(kernel)
        leaders, failure = read_leaders(kernel)
        for leader in leaders:
            reader.forget()
            process = settled(kernel, leader, reader.process)
            if process is not None:
                yield process
        if failure is not None:
            raise failure

    def for_each_lwp(self, kernel: Kernel, pid: int | None = None) -> Iterator[Lwp]:
        from kvm_dbg.kernel.linux.process import ProcessReader
        from kvm_dbg.kernel.linux.wchan import WaitChannelReader

        reader, channels = ProcessReader(kernel), WaitChannelReader(kernel)
        leaders, failure = read_leaders(kernel)
        for leader in leaders:
            if pid is not None and leader["tgid"] != pid:
                continue
            threads, broken = read_threads(kernel, leader, thread_head_offset(kernel))
            failure = failure or broken
            for task in threads:
                lwp = settled(kernel, task, lambda task: reader.lwp(task, channels.read(task)))
                if lwp is not None:
                    yield lwp
        if failure is not None:
            raise failure

    def read_arguments(self, kernel: Kernel, process: Process) -> list[bytes] | None:
        return self._strings(kernel, process, super().read_arguments)

    def read_environment(self, kernel: Kernel, process: Process) -> list[bytes] | None:
        return self._strings(kernel, process, super().read_environment)

    def _strings(
        self, kernel: Kernel, process: Process, read: Callable[[Kernel, Process], list[bytes] | None]
    ) -> list[bytes] | None:
        try:
            task = task_layout(kernel).read(kernel, process.address)
        except ReadError:
            return None
        if task["pid"] != process.pid:
            return None  # it has ended, and another one has its memory

        def look(_: Record) -> list[bytes] | None:
            kernel_space(kernel).invalidate()  # what was a page table of one process may be another's by now
            return read(kernel, process)

        return settled(kernel, task, look)

    def for_each_file(self, kernel: Kernel, pid: int | None = None) -> Iterator[OpenFile]:
        from kvm_dbg.kernel.linux.file import FileReader

        reader = FileReader(kernel)
        leaders, failure = read_leaders(kernel)
        for leader in leaders:
            if pid is None or leader["tgid"] == pid:
                yield from settled(kernel, leader, lambda task: list(reader.files(task))) or ()
        if failure is not None:
            raise failure

    def for_each_mapping(self, kernel: Kernel, pid: int) -> Iterator[MemoryMapping]:
        whole = super().for_each_mapping
        leaders, failure = read_leaders(kernel)
        for leader in leaders:
            if leader["tgid"] == pid:
                failure = None
                yield from settled(kernel, leader, lambda _: list(whole(kernel, pid))) or ()
        if failure is not None:
            raise failure

    def for_each_log_record(self, kernel: Kernel) -> Iterator[LogRecord]:
        whole = super().for_each_log_record
        yield from steady(kernel, lambda: list(whole(kernel)))

    def for_each_module(self, kernel: Kernel) -> Iterator[Module]:
        whole = super().for_each_module
        yield from steady(kernel, lambda: list(whole(kernel)))

    def for_each_thread(self, kernel: Kernel) -> Iterator[Thread]:
        whole = super().for_each_thread
        yield from steady(kernel, lambda: list(whole(kernel)))

    def unwind(self, kernel: Kernel, thread: Thread) -> Iterator[Frame]:
        from kvm_dbg.kernel.linux.register import SwitchFrame
        from kvm_dbg.kernel.linux.stack import make_saved

        frames = list(super().unwind(kernel, thread))
        if thread.registers and thread.address and not thread.on_cpu:
            try:
                saved = make_saved(kernel).read(kernel, thread.address)
                now = SwitchFrame(kernel).read(saved["sp"])
            except MISSING:
                now = {}
            if any(thread.registers.get(name) != value for name, value in now.items()) or not now:
                kernel.note_change("changed while reading: a task ran on, and its stack may not be what it was")
        yield from frames


LIVE_LINUX = _LiveLinux()
