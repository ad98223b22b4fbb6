"""CPU time of threads and processes, as /proc/PID/stat and ps(1) show it.

Source: kernel/sched/cputime.c. Timer ticks give the proportion of user to system time (`utime`, `stime`, nanoseconds
since v4.11), the scheduler's `sum_exec_runtime` the precise total; cputime_adjust() scales the one by the other and
never lets either value fall (`prev_cputime`). Kernels with CONFIG_VIRT_CPU_ACCOUNTING_NATIVE have no prev_cputime and
show the counters as they are.
"""

from __future__ import annotations

from typing import NamedTuple

from kvm_dbg.kernel.layout import Record


class CpuTime(NamedTuple):
    """User and system time, and the scheduler's total, in nanoseconds."""

    user: int
    system: int
    runtime: int


def adjust(time: CpuTime, previous_user: int, previous_system: int) -> tuple[int, int]:
    """Return (user, system) in nanoseconds as the kernel would show them now."""
    runtime = time.runtime
    if previous_user + previous_system >= runtime:
        return previous_user, previous_system
    if not time.system:
        system = 0
    elif not time.user:
        system = runtime
    else:
        system = min(time.system * runtime // (time.system + time.user), runtime)
    system = max(system, previous_system)
    user = runtime - system
    if user < previous_user:
        user = previous_user
        system = runtime - user
    return user, system


def read_thread_time(task: Record) -> tuple[int, int]:
    """Return (user, system) of one thread in nanoseconds. Raises ReadError."""
    time = CpuTime(task["utime"], task["stime"], task["sum_exec_runtime"])
    if "prev_utime" not in task:
        return time.user, time.system
    return adjust(time, task["prev_utime"], task["prev_stime"])


def read_process_time(signal: Record, threads: list[Record]) -> tuple[int, int]:
    """Return (user, system) of a process, its dead threads included, in nanoseconds. Raises ReadError."""
    user, system, runtime = signal["utime"], signal["stime"], signal["sum_sched_runtime"]
    for task in threads:
        user += task["utime"]
        system += task["stime"]
        runtime += task["sum_exec_runtime"]
    if "prev_utime" not in signal:
        return user, system
    return adjust(CpuTime(user, system, runtime), signal["prev_utime"], signal["prev_stime"])
