"""Processes and threads of layouts old and new, and of lists that are broken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvm_dbg.errors import CorruptError, KvmDbgError, NotMappedError
from kvm_dbg.kernel.base import Lwp, Process
from kvm_dbg.kernel.layout import Record
from kvm_dbg.kernel.linux.cpu import read_current_tasks, read_per_cpu_offsets
from kvm_dbg.kernel.linux.loadavg import hundredths
from kvm_dbg.kernel.linux.pid import for_each_numbered_task, read_last_pid
from kvm_dbg.kernel.linux.process import for_each_lwp, for_each_process
from kvm_dbg.kernel.linux.task import for_each_leader, state_letter
from kvm_dbg.kernel.linux.time import read_clock
from kvm_dbg.kernel.linux.tty import encode_device
from tests.writers.linux_task import PER_CPU, Tasks

PF_KTHREAD = 0x00200000


@pytest.fixture(params=[True, False], ids=["v6.12", "v4.18"])
def kernel(request: pytest.FixtureRequest) -> Tasks:
    return Tasks(modern=request.param)


def populate(kernel: Tasks) -> dict[int, int]:
    init = kernel.process(1, comm=b"init")
    return {1: init, **{pid: kernel.process(pid, init, comm=b"p%d" % pid) for pid in (7, 3, 200)}}


def collect(walk: Iterator[Process] | Iterator[Lwp]) -> tuple[list[int], KvmDbgError | None]:
    found: list[int] = []
    try:
        for process in walk:
            found.append(process.pid)
    except KvmDbgError as error:
        return found, error
    return found, None


def test_processes_come_by_pid(kernel: Tasks) -> None:
    tasks = populate(kernel)
    processes = list(for_each_process(kernel))
    assert [process.pid for process in processes] == [1, 3, 7, 200]
    assert [process.address for process in processes] == [tasks[pid] for pid in (1, 3, 7, 200)]
    assert [process.ppid for process in processes] == [0, 1, 1, 1]
    assert [process.command for process in processes] == ["init", "p3", "p7", "p200"]


def test_identities(kernel: Tasks) -> None:
    task = kernel.process(50)
    kernel.groups(task, 48, 40)
    groups = kernel.place("struct group_info", ngroups=3)
    kernel.write(groups + 8, b"".join(group.to_bytes(4, "little") for group in (5, 6, 4294967295)))
    cred = kernel.place(
        "struct cred", uid__val=1, euid__val=2, suid__val=3, gid__val=4, egid__val=5, sgid__val=6, group_info=groups
    )
    kernel.put(task, "struct task_struct", "real_cred", cred)
    (process,) = for_each_process(kernel)
    assert (process.ruid, process.uid, process.svuid, process.rgid, process.gid, process.svgid) == (1, 2, 3, 4, 5, 6)
    assert process.groups == (5, 6, 4294967295)
    assert (process.pgid, process.sid) == (48, 40)
    assert process.unread == ()


@pytest.mark.parametrize("pts", [True, False])
def test_terminals(kernel: Tasks, *, pts: bool) -> None:
    task = kernel.process(50)
    kernel.groups(task, 50, 50)
    driver = kernel.place(
        "struct tty_driver",
        name=kernel.string(b"pts" if pts else b"ttyS"),
        major=136 if pts else 4,
        minor_start=0 if pts else 64,
        type=4 if pts else 3,
        subtype=2 if pts else 1,
    )
    tty = kernel.place("struct tty_struct", driver=driver, index=300 if pts else 1)
    kernel.put(tty, "struct tty_struct", "ctrl.pgrp" if kernel.modern else "pgrp", kernel.pids[50])
    kernel.put(kernel.signal(task), "struct signal_struct", "tty", tty)
    (process,) = for_each_process(kernel)
    assert process.tty == ("pts/300" if pts else "ttyS1")
    assert process.tty_device == ((136 << 8 | 300 & 0xFF | (300 & ~0xFF) << 12) if pts else 4 << 8 | 65)
    assert (process.tty_pgid, process.flags) == (50, "s+")


def test_sizes(kernel: Tasks) -> None:
    mm = kernel.place("struct mm_struct", total_vm=1000, locked_vm=3)
    rss = mm + kernel.types.offset_of("struct mm_struct", "rss_stat")
    if kernel.modern:
        size = kernel.types.size_of("struct percpu_counter")
        for index, count in enumerate((100, 20, 7, -3)):  # file, anonymous, swap, shared memory
            kernel.put(rss + index * size, "struct percpu_counter", "count", count)
            kernel.put(rss + index * size, "struct percpu_counter", "counters", kernel.area + 4 * index)
            kernel.write(kernel.area + 4 * index, (5).to_bytes(4, "little"))
            kernel.write(kernel.area + PER_CPU + 4 * index, (-1).to_bytes(4, "little", signed=True))
        pages = (100 + 4) + (20 + 4) + (-3 + 4)
    else:
        kernel.words(rss, 100, 20, 7, (1 << 64) - 3)
        pages = 120  # a counter below zero is taken for zero
    kernel.process(5, mm=mm)
    kernel.process(6, mm=mm, flags=PF_KTHREAD)
    user, thread = for_each_process(kernel)
    assert (user.rss, user.vsize, user.flags) == (pages * 4096, 1000 * 4096, "L")
    assert (thread.rss, thread.vsize, thread.kernel_thread) == (0, 0, True)


def test_times_and_threads(kernel: Tasks) -> None:
    leader = kernel.process(5, utime=30, stime=10)
    kernel.put(leader, "struct task_struct", "se.sum_exec_runtime", 4_000_000_000)
    other = kernel.thread(leader, 9, utime=0, stime=40)
    kernel.put(other, "struct task_struct", "se.sum_exec_runtime", 2_000_000_000)
    kernel.put(kernel.signal(leader), "struct signal_struct", "sum_sched_runtime", 2_000_000_000)
    start = "start_boottime" if kernel.modern else "real_start_time"
    kernel.put(leader, "struct task_struct", start, 2_500_000_000)
    (process,) = for_each_process(kernel)
    assert (process.threads, process.flags) == (2, "l")
    assert (process.user_time, process.system_time) == (3.0, 5.0)  # 8 s, in proportion 30 to 50
    assert process.start_time == 1_700_000_002.5
    first, second = for_each_lwp(kernel)
    assert ((first.lid, first.pid), (second.lid, second.pid)) == ((5, 5), (9, 5))
    assert (first.user_time, first.system_time) == (3.0, 1.0)
    assert (second.user_time, second.system_time) == (0.0, 2.0)


def test_states_and_nice(kernel: Tasks) -> None:
    kernel.process(5, exit_state=0x20)
    nice = kernel.process(6)
    kernel.put(nice, "struct task_struct", "static_prio", 130)
    keen = kernel.process(7)
    kernel.put(keen, "struct task_struct", "static_prio", 100)
    kernel.put(keen, "struct task_struct", "__state" if kernel.modern else "state", 0x402)
    assert [(p.state, p.flags, p.nice) for p in for_each_process(kernel)] == [
        ("Z", "", 0),
        ("R", "N", 10),
        ("I", "<", -20),
    ]


@pytest.mark.parametrize(
    ("state", "exit_state", "letter"),
    [
        (0, 0, "R"),
        (1, 0, "S"),
        (2, 0, "D"),
        (0x102, 0, "D"),  # TASK_KILLABLE
        (0x2001, 0, "S"),  # TASK_INTERRUPTIBLE | TASK_FREEZABLE
        (4, 0, "T"),
        (8, 0, "t"),
        (0x40, 0, "P"),
        (0x402, 0, "I"),
        (0x2402, 0, "I"),
        (0x80, 0x10, "X"),
        (0x80, 0x20, "Z"),
        (0x8000, 0, "D"),  # TASK_FROZEN
        (0x1000, 0, "D"),  # TASK_RTLOCK_WAIT
        (0x200, 0, "R"),  # TASK_WAKING
    ],
)
def test_letters(state: int, exit_state: int, letter: str) -> None:
    assert state_letter(state, exit_state) == letter


def test_a_list_that_loops(kernel: Tasks) -> None:
    """What the list shows comes, and what the allocator of PIDs knows besides; then the error."""
    tasks = populate(kernel)
    kernel.number()
    kernel.words(tasks[3] + kernel.link, tasks[7] + kernel.link)  # 1 7 3 -> 7
    assert [task["pid"] for task in walk_until_error(kernel)] == [1, 7, 3]
    found, error = collect(for_each_process(kernel))
    assert found == [1, 3, 7, 200]
    assert isinstance(error, CorruptError)
    assert "loops" in str(error)


def walk_until_error(kernel: Tasks) -> list[Record]:
    found: list[Record] = []
    walk = for_each_leader(kernel)
    try:
        for task in walk:
            found.append(task)
    except CorruptError:
        return found
    pytest.fail("the list is broken, and nobody said so")


@pytest.mark.parametrize("target", [0, 0x1000, 0xFFFF_8880_7000_0000])
def test_a_list_that_leads_nowhere(kernel: Tasks, target: int) -> None:
    tasks = populate(kernel)
    kernel.number()
    kernel.words(tasks[1] + kernel.link, target)
    found, error = collect(for_each_process(kernel))
    assert found == [1, 3, 7, 200]
    assert isinstance(error, (CorruptError, NotMappedError))


def test_a_list_that_leads_to_something_else(kernel: Tasks) -> None:
    tasks = populate(kernel)
    kernel.number()
    kernel.words(tasks[7] + kernel.link, kernel.allocate(0x1000, page=True) + 0x800)
    found, error = collect(for_each_process(kernel))
    assert found == [1, 3, 7, 200]
    assert error is not None
    assert "no task" in str(error)


def test_both_ways_broken(kernel: Tasks) -> None:
    tasks = populate(kernel)
    kernel.number()
    slots = kernel.types.offset_of("struct xa_node" if kernel.modern else "struct radix_tree_node", "slots")
    kernel.words(kernel.tree + slots + 8 * (200 >> 6), kernel.tree | (2 if kernel.modern else 1))  # a loop
    kernel.words(tasks[7] + kernel.link, 0)
    kernel.words(kernel.init_task + kernel.link + 8, 0)
    found, error = collect(for_each_process(kernel))
    assert found == [1, 3, 7]
    assert isinstance(error, CorruptError)
    with pytest.raises(CorruptError, match="radix tree loops"):
        list(for_each_numbered_task(kernel))


def test_the_other_end_of_a_broken_list(kernel: Tasks) -> None:
    """Without an allocator of PIDs that could help, a list that is broken once still shows all."""
    tasks = populate(kernel)
    kernel.words(tasks[7] + kernel.link, 0x1000)
    found, error = collect(for_each_process(kernel))
    assert found == [1, 3, 7, 200]
    assert isinstance(error, NotMappedError)


def test_threads_of_another_process(kernel: Tasks) -> None:
    tasks = populate(kernel)
    kernel.words(tasks[7] + kernel.node, tasks[3] + kernel.node)
    found, error = collect(for_each_lwp(kernel))
    assert found == [1, 3, 7, 200]
    assert isinstance(error, CorruptError)
    assert "process 3" in str(error)


def test_numbered_tasks(kernel: Tasks) -> None:
    tasks = populate(kernel)
    kernel.thread(tasks[7], 64)
    kernel.number()
    assert [task["pid"] for task in for_each_numbered_task(kernel)] == [1, 3, 7, 64, 200]
    assert read_last_pid(kernel) == 200


def test_fields_that_cannot_be_read(kernel: Tasks) -> None:
    task = kernel.process(5)
    kernel.put(task, "struct task_struct", "real_cred", 0x1234)
    kernel.put(task, "struct task_struct", "signal", 0x1234)
    kernel.put(task, "struct task_struct", "mm", 0x1234)
    kernel.put(task, "struct task_struct", "real_parent", 0x1234)
    (process,) = for_each_process(kernel)
    assert (process.uid, process.pgid, process.rss, process.ppid, process.tty, process.user_time) == (None,) * 6
    assert {"uid", "pgid", "rss", "ppid", "tty", "user_time", "threads"} <= set(process.unread)
    assert process.command == "proc"


def test_cpus(kernel: Tasks) -> None:
    task = kernel.process(5)
    kernel.run(1, task)
    assert read_per_cpu_offsets(kernel) == {0: 0, 1: PER_CPU}
    assert read_current_tasks(kernel) == {0: kernel.init_task, 1: task}
    assert [lwp.on_cpu for lwp in for_each_lwp(kernel)] == [True]
    active = kernel.place("struct cpumask", symbol="__cpu_active_mask")
    kernel.words(active, 0b11)
    kernel.words(kernel.symbols.address("__cpu_online_mask"), 0b01)
    assert list(read_per_cpu_offsets(kernel)) == [0, 1]
    kernel.words(active, 0)
    kernel.words(kernel.symbols.address("__cpu_online_mask"), 0)
    with pytest.raises(CorruptError):
        read_per_cpu_offsets(kernel)


def test_the_clock(kernel: Tasks) -> None:
    clock = read_clock(kernel)
    assert clock.realtime == 1_700_000_100_500_000_000
    assert clock.boottime == 100_500_000_000


def test_load_averages_are_rounded_as_the_kernel_rounds() -> None:
    assert [hundredths(value) for value in (0, 10, 11, 1024, 2037, 2038, 2048, 3072, 204800)] == [
        0, 0, 1, 50, 99, 100, 100, 150, 10000,
    ]  # fmt: skip


def test_device_numbers() -> None:
    assert encode_device(4, 64) == 0x440
    assert encode_device(136, 0) == 0x8800
    assert encode_device(5, 0x12345) == 0x12300545
