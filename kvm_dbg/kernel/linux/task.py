"""Tasks: struct task_struct, where they are listed, and what their state words mean.

Sources: include/linux/sched.h (state bits as of v4.14, commits 8ef9925b02c2, 06eb61844d84; `state` became `__state`
in v5.14, commit 2f064a59a11f), include/linux/sched/signal.h (thread_head), fs/proc/array.c (the letters).
Thread groups hang on `init_task.tasks` by their leaders, the threads of one on `signal->thread_head` by
`thread_node`. Where the list of leaders is broken, the allocator of PIDs knows them too (`pid.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError, KvmDbgError, ReadError
from kvm_dbg.kernel.layout import Layout, Names, Record, read_pointer, remembered
from kvm_dbg.kernel.linux.list import LIMIT, ListGuard

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

PF_WQ_WORKER = 0x00000020
PF_KTHREAD = 0x00200000

TASK_REPORT = 0x007F  # RUNNING, INTERRUPTIBLE, UNINTERRUPTIBLE, STOPPED, TRACED, EXIT_DEAD, EXIT_ZOMBIE, PARKED
TASK_IDLE = 0x0402  # UNINTERRUPTIBLE | NOLOAD
TASK_RTLOCK_WAIT = 0x1000  # since v5.15
TASK_FROZEN = 0x8000  # v6.1, commit f5d39b020809
LETTERS = "RSDTtXZPI"  # by the number of the highest bit of the state, fs/proc/array.c task_state_array

MAX_RT_PRIO = 100  # include/linux/sched/prio.h
DEFAULT_PRIO = 120

MEMBERS: dict[str, Names] = {
    "state": ("__state", "state"),
    "exit_state": "exit_state",
    "flags": "flags",
    "next_task": "tasks.next",
    "previous_task": "tasks.prev",
    "tasks": "tasks",
    "next_thread": "thread_node.next",
    "thread_node": "thread_node",
    "pid": "pid",
    "tgid": "tgid",
    "thread_pid": ("thread_pid", "pids", None),  # v4.19, commit 2c4704756cab; `pids` starts with PIDTYPE_PID's link
    "pids": ("pids", None),
    "comm": "comm",
    "cpu": ("thread_info.cpu", "cpu", None),  # in thread_info again since v5.16, commit bcf9033e5449; neither: !SMP
    "on_cpu": ("on_cpu", None),
    "prio": "prio",
    "static_prio": "static_prio",
    "real_parent": "real_parent",
    "group_leader": "group_leader",
    "signal": "signal",
    "mm": "mm",
    "real_cred": "real_cred",
    "files": "files",
    "utime": "utime",
    "stime": "stime",
    "sum_exec_runtime": "se.sum_exec_runtime",
    "prev_utime": ("prev_cputime.utime", None),
    "prev_stime": ("prev_cputime.stime", None),
    "start_boottime": ("start_boottime", "real_start_time"),  # v5.5, commit cf25e24db61c
    "worker_private": ("worker_private", None),  # v5.17, commit e32cf5dfbe22
    "set_child_tid": "set_child_tid",
}


def task_layout(kernel: Kernel) -> Layout:
    """Return the members of task_struct that processes and threads are described from."""
    return remembered(kernel, _make_layout)


def _make_layout(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct task_struct", MEMBERS, kernel.arch.byteorder)


def thread_head_offset(kernel: Kernel) -> int:
    """Return the offset of signal_struct.thread_head in bytes."""
    return kernel.types.offset_of("struct signal_struct", "thread_head")


def for_each_leader(kernel: Kernel) -> Iterator[Record]:
    """Yield the leader of every thread group in the order of the kernel's list, the idle task left out.

    Raises:
        ReadError, CorruptError: after all that can be reached: the list is broken.
        SymbolNotFound: no init_task.
    """
    layout = task_layout(kernel)
    init_task = kernel.symbols.address("init_task")
    offset = layout.offsets["tasks"]
    guard = ListGuard(init_task + offset, "tasks")
    previous, node = init_task + offset, read_pointer(kernel, init_task + offset)
    while node != guard.head:
        guard.check(node, previous)
        task = layout.read(kernel, node - offset)
        check_task(task, previous)
        yield task
        previous, node = node, task["next_task"]


def check_task(task: Record, where: int) -> None:
    """Refuse what cannot be a task. Raises CorruptError at `where`, the pointer that led to it."""
    if not 0 < task["pid"] <= LIMIT or not 0 < task["tgid"] <= LIMIT:
        raise CorruptError(where, f"the list of tasks leads to {task.address:#x}, which is no task: pid {task['pid']}")


def read_leaders(kernel: Kernel) -> tuple[list[Record], KvmDbgError | None]:
    """Return all thread group leaders in ascending order of PID, and what was wrong with the kernel's list.

    Where the list is broken, its other end and the allocator of PIDs supply the rest, as far as they can be read.
    Where memory changes while it is read, they come from the allocator of PIDs.
    """
    if kernel.image.live:
        from kvm_dbg.kernel.linux.live import read_live_leaders

        return read_live_leaders(kernel)
    leaders: list[Record] = []
    try:
        for task in for_each_leader(kernel):
            leaders.append(task)  # one by one: those before an error count
    except (ReadError, CorruptError) as error:
        _add_backwards(kernel, leaders)
        _add_numbered(kernel, leaders)
        return sorted(leaders, key=_by_tgid), error
    return sorted(leaders, key=_by_tgid), None


def _add_backwards(kernel: Kernel, leaders: list[Record]) -> None:
    """Walk the list of leaders from its end, as far as it leads."""
    layout = task_layout(kernel)
    known = {task.address for task in leaders}
    offset = layout.offsets["tasks"]
    head = kernel.symbols.address("init_task") + offset
    guard = ListGuard(head, "tasks")
    with contextlib.suppress(ReadError, CorruptError):  # the failure of the walk forwards is the one to report
        previous, node = head, read_pointer(kernel, head + kernel.arch.pointer_size)
        while node != head and node - offset not in known:
            guard.check(node, previous)
            task = layout.read(kernel, node - offset)
            check_task(task, previous)
            leaders.append(task)
            previous, node = node, task["previous_task"]


def _by_tgid(task: Record) -> int:
    return task["tgid"]


def _add_numbered(kernel: Kernel, leaders: list[Record]) -> None:
    from kvm_dbg.kernel.linux.pid import for_each_numbered_task

    known = {task.address for task in leaders}
    with contextlib.suppress(KvmDbgError):  # a second way that fails as well: the first failure is the one to report
        for task in for_each_numbered_task(kernel):
            if task["pid"] == task["tgid"] and task.address not in known:
                known.add(task.address)
                leaders.append(task)


def read_threads(kernel: Kernel, leader: Record, thread_head: int) -> tuple[list[Record], KvmDbgError | None]:
    """Return the threads of a thread group, the leader among them, in ascending order, and what was wrong.

    `thread_head` is the offset of signal_struct.thread_head in bytes.
    """
    if kernel.image.live:
        from kvm_dbg.kernel.linux.live import read_live_threads

        return read_live_threads(kernel, leader)
    layout = leader.layout
    offset = layout.offsets["thread_node"]
    threads: list[Record] = []
    failure: KvmDbgError | None = None
    try:
        head = leader["signal"] + thread_head
        guard = ListGuard(head, f"threads of process {leader['tgid']}")
        previous, node = head, read_pointer(kernel, head)
        while node != head:
            guard.check(node, previous)
            task = leader if node - offset == leader.address else layout.read(kernel, node - offset)
            if task["tgid"] != leader["tgid"]:
                raise CorruptError(
                    previous,
                    f"the list of threads of process {leader['tgid']} leads to {task.address:#x},"
                    f" which is a thread of process {task['tgid']}",
                )
            threads.append(task)
            previous, node = node, task["next_thread"]
    except (ReadError, CorruptError) as error:
        failure = error
    if leader.address not in {task.address for task in threads}:
        threads.append(leader)
    return sorted(threads, key=lambda task: task["pid"]), failure


def state_letter(state: int, exit_state: int) -> str:
    """Return ps's letter for a task's state words, by the rules of fs/proc/array.c and task_state_index()."""
    reported = (state | exit_state) & TASK_REPORT
    if state & TASK_IDLE == TASK_IDLE:
        reported = TASK_REPORT + 1
    elif state & (TASK_RTLOCK_WAIT | TASK_FROZEN):
        reported = 2
    index = reported.bit_length()
    return LETTERS[index]
