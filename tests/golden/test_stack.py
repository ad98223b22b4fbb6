"""Stacks equal the guest's own: /proc/PID/task/TID/stack of what sleeps, and the call trace of what panicked."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from kvm_dbg.kernel import system_of
from kvm_dbg.kernel.base import Frame, Kernel, Thread
from kvm_dbg.kernel.linux.wchan import SECTIONS
from tests.golden.sample import Sample
from tests.golden.subject import Subject
from tests.sample import ARCHIVE

IMAGE_IS_ENOUGH = True

PROC_LINE = re.compile(r"\[<0>\] (\S+?)\+0x([0-9a-f]+)/0x[0-9a-f]+(?: \[(\w+)\])?")
LOG_LINE = re.compile(r"\[[ .\d]+\](?:\[ *\w+\])? +(\S+?)\+0x([0-9a-f]+)/0x[0-9a-f]+(?: \[(\w+)\])?\s*")
LOG_USER = re.compile(r"\[[ .\d]+\](?:\[ *\w+\])? RIP: 0033:0x([0-9a-f]+)\s*")
WRITER = 1  # init writes the truth down: it sees its own stack from within
RCU = (b"rcu_preempt", b"rcu_sched")  # wakes up every few milliseconds, without a tick of CPU time to show for it

Place = tuple[str | None, int, str | None]


def places(frames: Iterable[Frame]) -> list[Place]:
    """Return function, offset and module of the frames in the kernel."""
    return [(frame.name, frame.offset, frame.module) for frame in frames if frame.stack != "USER"]


def matched(match: re.Match[str]) -> Place:
    return match[1], int(match[2], 16), match[3]


def stacks(kernel: Kernel) -> dict[int, tuple[Thread, list[Frame]]]:
    system = system_of(kernel)
    return {thread.lid: (thread, list(system.unwind(kernel, thread))) for thread in system.for_each_thread(kernel)}


def scheduler(kernel: Kernel) -> list[tuple[int, int]]:
    """Return [start, end) of the code that /proc leaves out, kernel/stacktrace.c stack_trace_consume_entry_nosched."""
    symbols = kernel.symbols
    return [(symbols.address(start), symbols.address(end)) for start, end in SECTIONS if start in symbols]


def test_stacks_of_sleeping_tasks_equal_proc(subject: Subject) -> None:
    ours = stacks(subject.kernel)
    left_out = scheduler(subject.kernel)
    checked = 0
    for process in subject.truth.processes.values():
        for lwp in process.lwps:
            if lwp.tid not in ours or not lwp.stack or lwp.tid == WRITER or lwp.comm in RCU:
                continue
            thread, frames = ours[lwp.tid]
            if thread.on_cpu or f"proc/{process.pid}/stat" in subject.dump.moved:
                continue
            shown = [frame for frame in frames if not any(start <= frame.pc < end for start, end in left_out)]
            lines = [PROC_LINE.fullmatch(line) for line in lwp.stack.decode().splitlines()]
            assert places(shown) == [matched(line) for line in lines if line], (lwp.comm, frames)
            assert {frame.how for frame in frames} <= {"registers", "orc", "exception"}
            assert not any(frame.why for frame in frames)
            assert (frames[-1].stack == "USER") == (not process.kernel_thread)
            checked += 1
    assert checked > 140


def test_tasks_without_a_stack_say_why(subject: Subject) -> None:
    without = {thread.name: thread.why for thread, frames in stacks(subject.kernel).values() if not frames}
    assert set(without.values()) == {"it has exited and its stack is gone"}
    dead = {lwp.comm.decode() for process in subject.truth.processes.values() for lwp in process.lwps if not lwp.stack}
    assert set(without) <= dead


def test_what_cpus_run_ends_in_user_space_or_where_the_cpu_began(subject: Subject) -> None:
    system, kernel = system_of(subject.kernel), subject.kernel
    running = [thread for thread in system.for_each_thread(kernel) if thread.on_cpu]
    assert running
    for thread in running:
        frames = list(system.unwind(kernel, thread))
        last = frames[-1]
        assert not last.why
        idle = ("secondary_startup_64_no_verify", "common_startup_64", "secondary_startup_64")
        forked = ("ret_from_fork_asm", "ret_from_fork")
        assert last.name in idle if thread.pid == 0 else last.stack == "USER" or last.name in forked
        if not subject.crashed:
            assert "scan" not in {frame.how for frame in frames}


def trace_of(lines: Iterable[str]) -> tuple[list[Place], int]:
    """Return the certain frames of the last call trace in a log, and the user address that it ends with."""
    found: list[Place] = []
    user = 0
    inside = False
    for line in lines:
        if "Call Trace:" in line:
            found, user, inside = [], 0, True
        elif inside and (match := LOG_LINE.fullmatch(line)):
            found.append(matched(match))
        elif inside and (match := LOG_USER.fullmatch(line)):
            user, inside = int(match[1], 16), False
    return found, user


def test_the_panic_equals_what_the_guest_printed(subject: Subject) -> None:
    """The trace was printed a little earlier than the dump was taken, from the same place in panic()."""
    if not subject.crashed:
        return
    lines = subject.dump.console.read_text(errors="replace").splitlines()
    crash = next(index for index, line in enumerate(lines) if "Kernel panic - not syncing" in line)
    end = next((index for index, line in enumerate(lines) if index > crash and "Linux version" in line), len(lines))
    theirs, user = trace_of(lines[crash:end])
    system, kernel = system_of(subject.kernel), subject.kernel
    frames = list(system.unwind(kernel, next(system.for_each_thread(kernel))))
    ours = places(frames)
    caller = ("sysrq_handle_crash", theirs[[place[0] for place in theirs].index("sysrq_handle_crash")][1], None)
    assert ours[ours.index(caller) :] == theirs[theirs.index(caller) :]
    assert [place[0] for place in ours[: ours.index(caller)]][-1] == "panic"
    assert (frames[-1].stack, frames[-1].pc) == ("USER", user)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return Sample(tmp_path_factory.mktemp("sample"))


def test_the_oops_of_the_sample_equals_what_it_printed(sample: Sample) -> None:
    """It crosses two modules."""
    lines = (ARCHIVE.parent / "truth" / "console").read_text(errors="replace").splitlines()
    theirs, user = trace_of(lines)
    assert {module for _, _, module in theirs} == {"shelf", "shelf_proc", None}
    session = sample.open()
    system, kernel = session.system, session.kernel
    frames = list(system.unwind(kernel, next(system.for_each_thread(kernel))))
    assert places(frames) == [("take_back", 0xA, "shelf"), *theirs]  # the log's RIP: line, and its trace
    assert any("RIP: 0010:take_back+0xa/0x1d [shelf]" in line for line in lines)
    assert {frame.how for frame in frames} == {"registers", "orc", "exception"}
    assert (frames[-1].stack, frames[-1].pc) == ("USER", user)
    session.close()
