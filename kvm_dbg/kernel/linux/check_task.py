"""Tasks, as the list of tasks, the allocator of PIDs, the run queues and the counters know them.

Sources: kernel/fork.c copy_process() (one lock covers the list, the allocator's `tasks` and nr_threads),
kernel/exit.c __unhash_process(), kernel/sched/core.c (rq->curr, rq->idle, rq->nr_running), kernel/sched/loadavg.c (a
load average is a mean of the number of tasks that run or wait uninterruptibly: never more than there are or were).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.errors import ReadError
from kvm_dbg.kernel.check import Finding
from kvm_dbg.kernel.layout import Record, observed
from kvm_dbg.kernel.linux.check_finding import compare, count_unread

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel


def _read_listed(kernel: Kernel) -> dict[int, Record]:
    """Return address -> task of all that hang on the list of tasks. Raises the list's own error."""
    from kvm_dbg.kernel.linux.task import read_leaders, read_threads, thread_head_offset

    leaders, failure = read_leaders(kernel)
    found: dict[int, Record] = {}
    offset = thread_head_offset(kernel)
    for leader in leaders:
        threads, problem = read_threads(kernel, leader, offset)
        failure = failure or problem
        found.update((task.address, task) for task in threads)
    if failure is not None:
        raise failure
    return found


def _name(task: Record) -> str:
    try:
        return f"{task.text('comm')}/{task['pid']}"
    except ReadError:
        return f"the task at {task.address:#x}"


def check_pids(kernel: Kernel) -> Iterator[Finding]:
    """Compare the list of tasks with the allocator of PIDs."""
    from kvm_dbg.kernel.linux.pid import for_each_numbered_task

    listed = observed(kernel, _read_listed)
    numbered = {task.address: task for task in for_each_numbered_task(kernel)}
    yield from compare(
        f"the same {len(listed)} tasks in both",
        [f"{_name(task)} has no PID that leads to it" for at, task in listed.items() if at not in numbered]
        + [f"{_name(task)} has a PID and is not in the list" for at, task in numbered.items() if at not in listed],
    )


def check_count(kernel: Kernel) -> Iterator[Finding]:
    """Compare the number of tasks with nr_threads."""
    from kvm_dbg.kernel.linux.loadavg import read_thread_count

    listed = len(observed(kernel, _read_listed))
    count = read_thread_count(kernel)
    yield from compare(
        f"{count} tasks by both", [] if listed == count else [f"{listed} tasks in the list, nr_threads is {count}"]
    )


def check_run_queues(kernel: Kernel) -> Iterator[Finding]:
    """Look for each CPU's current task in the list of tasks."""
    from kvm_dbg.kernel.linux.cpu import read_current_tasks, read_idle_tasks, read_running

    listed = observed(kernel, _read_listed)
    idle = read_idle_tasks(kernel)
    current = read_current_tasks(kernel)
    wrong = []
    for cpu, address in current.items():
        if address == idle.get(cpu):
            continue
        task = listed.get(address)
        if task is None:
            wrong.append(f"CPU {cpu} runs {address:#x}, which is neither its idle task nor in the list")
        elif "on_cpu" in task and not task["on_cpu"]:
            wrong.append(f"CPU {cpu} runs {_name(task)}, which says that it is on no CPU")
    running = read_running(kernel)
    if running > len(listed):
        wrong.append(f"{running} tasks are runnable, of {len(listed)}")
    yield from compare(f"the current tasks of {len(current)} CPUs are in the list, or idle", wrong)


def check_processes(kernel: Kernel) -> Iterator[Finding]:
    """Count the fields of processes that cannot be read."""
    from kvm_dbg.kernel.linux.process import for_each_process

    records = ((f"{process.command}/{process.pid}", process.unread) for process in for_each_process(kernel))
    yield from count_unread("processes", records)


def check_lwps(kernel: Kernel) -> Iterator[Finding]:
    """Count the fields of threads that cannot be read."""
    from kvm_dbg.kernel.linux.process import for_each_lwp

    yield from count_unread("threads", ((f"{lwp.name}/{lwp.lid}", lwp.unread) for lwp in for_each_lwp(kernel)))


def check_load_average(kernel: Kernel) -> Iterator[Finding]:
    """Compare the load averages with the number of PIDs that there can have been, and with each other's format."""
    from kvm_dbg.kernel.linux.list import LIMIT
    from kvm_dbg.kernel.linux.loadavg import read_load_average

    found = read_load_average(kernel)
    averages = (found.one, found.five, found.fifteen)
    wrong = [f"a load average of {average}" for average in averages if not 0 <= average <= LIMIT]
    if found.running is not None and found.threads is not None and found.running > found.threads:
        wrong.append(f"{found.running} of {found.threads} tasks run")
    yield from compare(f"{found.one} {found.five} {found.fifteen} can be", wrong)
    lost = [name for name in ("running", "threads", "last_pid") if getattr(found, name) is None]
    if lost:
        yield "partial", f"unknown: {', '.join(lost)}"
