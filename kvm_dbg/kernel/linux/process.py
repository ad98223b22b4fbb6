"""Processes and threads as ps(1) shows them.

Sources: fs/proc/array.c do_task_stat() and /proc/PID/status, and procps' ps for the letters after the state:
"<" and "N" by nice, "L" pages locked in memory, "s" session leader, "l" several threads, "+" in the foreground group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.base import Lwp, Process
from kvm_dbg.kernel.layout import Layout, Names, Record, read_number, remembered
from kvm_dbg.kernel.linux.cpu import read_current_tasks
from kvm_dbg.kernel.linux.cputime import read_process_time, read_thread_time
from kvm_dbg.kernel.linux.cred import CredentialReader
from kvm_dbg.kernel.linux.kthread import read_name
from kvm_dbg.kernel.linux.mm import ResidentCounter, read_own_mm
from kvm_dbg.kernel.linux.pid import PidReader
from kvm_dbg.kernel.linux.task import (
    DEFAULT_PRIO,
    MAX_RT_PRIO,
    PF_KTHREAD,
    read_leaders,
    read_threads,
    state_letter,
    task_layout,
)
from kvm_dbg.kernel.linux.time import read_clock
from kvm_dbg.kernel.linux.tty import Terminal, TerminalReader

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

Result = TypeVar("Result")

NSEC = 1e9
CREDENTIALS = ("uid", "ruid", "svuid", "gid", "rgid", "svgid", "groups")
MISSING = (ReadError, CorruptError, SymbolNotFound, TypeNotFound, MemberNotFound)  # what costs a field, not the line

SIGNAL: dict[str, Names] = {
    "thread_head": "thread_head",
    "nr_threads": "nr_threads",
    "pids": ("pids", None),  # since v4.19, commit 2c4704756cab; see pid.py
    "tty": "tty",
    "utime": "utime",
    "stime": "stime",
    "sum_sched_runtime": "sum_sched_runtime",
    "prev_utime": ("prev_cputime.utime", None),
    "prev_stime": ("prev_cputime.stime", None),
}


def signal_layout(kernel: Kernel) -> Layout:
    """Return the members of signal_struct that processes are described from."""
    return remembered(kernel, _make_layout)


def _make_layout(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct signal_struct", SIGNAL, kernel.arch.byteorder)


def for_each_process(kernel: Kernel) -> Iterator[Process]:
    """Yield all processes in ascending order of PID, zombies included.

    Raises:
        ReadError, CorruptError: after the last one that could be found: the kernel's list is broken.
    """
    reader = ProcessReader(kernel)
    leaders, failure = read_leaders(kernel)
    reader.learn(leaders)
    for leader in leaders:
        yield reader.process(leader)
    if failure is not None:
        raise failure


def for_each_lwp(kernel: Kernel, pid: int | None = None) -> Iterator[Lwp]:
    """Yield the threads of one process or of all, ascending by PID, then by thread id.

    Raises:
        ReadError, CorruptError: after the last one that could be found: one of the kernel's lists is broken.
    """
    from kvm_dbg.kernel.linux.wchan import WaitChannelReader

    reader, channels = ProcessReader(kernel), WaitChannelReader(kernel)
    leaders, failure = read_leaders(kernel)
    for leader in leaders:
        if pid is not None and leader["tgid"] != pid:
            continue
        threads, broken = read_threads(kernel, leader, signal_layout(kernel).offsets["thread_head"])
        failure = failure or broken
        for task in threads:
            yield reader.lwp(task, channels.read(task))
    if failure is not None:
        raise failure


class ProcessReader:
    """Describes tasks of one kernel; what several of them share is read once."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._signal = signal_layout(kernel)
        self._resident = ResidentCounter(kernel)
        self._pids = PidReader(kernel)
        self._credentials = CredentialReader(kernel)
        self._terminals = TerminalReader(kernel, self._pids)
        self._tgid = task_layout(kernel).offsets["tgid"]
        self._page_shift = kernel.arch.page_shift
        self._tgids: dict[int, int] = {0: 0}
        self._boot: int | None = None
        self._running: set[int] | None = None

    def learn(self, tasks: list[Record]) -> None:
        """Remember which process each task belongs to, so that parents need not be read again."""
        for task in tasks:
            self._tgids[task.address] = task["tgid"]

    def forget(self) -> None:
        """Forget what was read once for several tasks: another object may be at its address by now."""
        self._tgids = {0: 0}
        self._pids.forget()
        self._credentials.forget()
        self._terminals.forget()

    def find_boot_time(self) -> int | None:
        """Return when the machine started, in nanoseconds since the epoch; None if that cannot be read."""
        try:
            return self._boot_time()
        except MISSING:
            return None

    def process(self, task: Record) -> Process:
        """Return the process that the thread group leader `task` stands for. Raises ReadError."""
        unread: list[str] = []
        tgid = task["tgid"]
        nice = attempt(unread, ("nice",), lambda: task["static_prio"] - DEFAULT_PRIO)
        ppid = attempt(unread, ("ppid",), lambda: self._tgid_of(task["real_parent"]))
        who = attempt(unread, CREDENTIALS, lambda: self._credentials.read(task["real_cred"]))
        signal = attempt(unread, ("threads",), lambda: self._signal.read(self._kernel, task["signal"]))
        threads, group, times, terminal = 1, None, None, None
        if signal is None:
            unread += ["pgid", "sid", "user_time", "system_time", "tty", "tty_device", "tty_pgid"]
        else:
            known = signal
            threads = attempt(unread, ("threads",), lambda: max(known["nr_threads"], 1)) or 1
            group = attempt(unread, ("pgid", "sid"), lambda: self._pids.group_and_session(task, known))
            times = attempt(unread, ("user_time", "system_time"), lambda: self._times(task, known))
            terminal = attempt(unread, ("tty", "tty_device", "tty_pgid"), lambda: self._terminal(known["tty"]))
        sizes = attempt(unread, ("rss", "vsize"), lambda: self._sizes(task))
        start = attempt(unread, ("start_time",), lambda: (task["start_boottime"] + self._boot_time()) / NSEC)
        pgid, sid = group if group is not None else (None, None)
        flags = "" if not nice else "<" if nice < 0 else "N"
        flags += "L" if sizes is not None and sizes[2] else ""
        flags += "s" if sid == tgid else ""
        flags += "l" if threads > 1 else ""
        flags += "+" if terminal is not None and pgid == terminal.pgid else ""
        return Process(
            pid=tgid,
            address=task.address,
            ppid=ppid,
            pgid=pgid,
            sid=sid,
            uid=who.uid if who is not None else None,
            ruid=who.ruid if who is not None else None,
            svuid=who.svuid if who is not None else None,
            gid=who.gid if who is not None else None,
            rgid=who.rgid if who is not None else None,
            svgid=who.svgid if who is not None else None,
            groups=who.groups if who is not None else (),
            state=read_state(unread, task),
            flags=flags,
            nice=nice,
            priority=attempt(unread, ("priority",), lambda: task["prio"] - MAX_RT_PRIO),
            cpu=attempt(unread, ("cpu",), lambda: task.get("cpu")),
            threads=threads,
            rss=sizes[0] if sizes is not None else None,
            vsize=sizes[1] if sizes is not None else None,
            user_time=times[0] / NSEC if times is not None else None,
            system_time=times[1] / NSEC if times is not None else None,
            start_time=start,
            tty=terminal.name if terminal is not None else None,
            tty_device=terminal.device if terminal is not None else None,
            tty_pgid=terminal.pgid if terminal is not None else None,
            command=attempt(unread, ("command",), lambda: read_name(self._kernel, task)) or "",
            kernel_thread=bool(attempt(unread, ("kernel_thread",), lambda: task["flags"] & PF_KTHREAD)),
            unread=tuple(unread),
        )

    def lwp(self, task: Record, wait_channel: str | None = None) -> Lwp:
        """Return the thread that `task` is, which waits in the function `wait_channel`."""
        unread: list[str] = []
        times = attempt(unread, ("user_time", "system_time"), lambda: read_thread_time(task))
        return Lwp(
            lid=task["pid"],
            pid=task["tgid"],
            address=task.address,
            state=read_state(unread, task),
            cpu=attempt(unread, ("cpu",), lambda: task.get("cpu")),
            on_cpu=self._is_running(task),
            priority=attempt(unread, ("priority",), lambda: task["prio"] - MAX_RT_PRIO),
            user_time=times[0] / NSEC if times is not None else None,
            system_time=times[1] / NSEC if times is not None else None,
            wait_channel=wait_channel,
            name=attempt(unread, ("name",), lambda: read_name(self._kernel, task)) or "",
            kernel_thread=bool(attempt(unread, ("kernel_thread",), lambda: task["flags"] & PF_KTHREAD)),
            unread=tuple(unread),
        )

    def _tgid_of(self, address: int) -> int:
        """Return the process that the task at `address` belongs to; 0 for the idle task. Raises ReadError."""
        found = self._tgids.get(address)
        if found is None:
            found = self._tgids[address] = read_number(self._kernel, address + self._tgid, 4, signed=True)
        return found

    def _times(self, task: Record, signal: Record) -> tuple[int, int]:
        tasks = [task]
        if signal["nr_threads"] > 1:
            tasks, failure = read_threads(self._kernel, task, self._signal.offsets["thread_head"])
            self.learn(tasks)
            if failure is not None:
                raise failure
        return read_process_time(signal, tasks)

    def _terminal(self, address: int) -> Terminal | None:
        return self._terminals.read(address) if address else None

    def _sizes(self, task: Record) -> tuple[int, int, int]:
        """Return (resident, virtual, locked) in bytes. Raises ReadError."""
        mm = read_own_mm(self._kernel, task)
        if mm is None:
            return 0, 0, 0
        shift = self._page_shift
        return self._resident.count(mm) << shift, mm["total_vm"] << shift, mm.get("locked_vm") << shift

    def _boot_time(self) -> int:
        if self._boot is None:
            self._boot = read_clock(self._kernel).boot
        return self._boot

    def _is_running(self, task: Record) -> bool:
        """Return whether a CPU runs the task, by that CPU's word; by the task's own where CPUs have none."""
        if self._running is None:
            try:
                self._running = set(read_current_tasks(self._kernel).values())
            except MISSING:
                return bool(task.numbers.get("on_cpu"))
        return task.address in self._running


def read_state(unread: list[str], task: Record) -> str:
    """Return the letter of a task's state, "?" if it cannot be read."""
    return attempt(unread, ("state",), lambda: state_letter(task["state"], task["exit_state"])) or "?"


def attempt(unread: list[str], names: tuple[str, ...], read: Callable[[], Result]) -> Result | None:
    """Return what `read` returns; if the image lacks it, note the fields `names` as unread and return None."""
    try:
        return read()
    except MISSING:
        unread += names
        return None
