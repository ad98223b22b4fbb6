"""Stacks equal the guest's own: /proc/PID/task/TID/stack of what sleeps, and the call trace of what panicked."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from kvm_dbg.kernel import system_of
from kvm_dbg.kernel.base import Frame, Kernel, Thread
from kvm_dbg.kernel.linux.wchan import SECTIONS
from tests.call_trace import Place, Trace, proc_stack, trace_of
from tests.golden.sample import Sample
from tests.golden.subject import Subject
from tests.sample import ARCHIVE


@pytest.fixture
def subject(either: Subject) -> Subject:
    """Everything here is asked of the image alone as well."""
    return either


PANICKING = ("sysrq_handle_crash", "unknown_nmi_error")  # who calls panic() in the lab's guests
WRITER = 1  # init writes the truth down: it sees its own stack from within
RCU = (b"rcu_preempt", b"rcu_sched")  # wakes up every few milliseconds, without a tick of CPU time to show for it


def places(frames: Iterable[Frame]) -> list[Place]:
    """Return function, offset and module of the frames in the kernel."""
    return [(frame.name, frame.offset, frame.module) for frame in frames if frame.stack != "USER"]


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
            assert places(shown) == proc_stack(lwp.stack), (lwp.comm, frames)
            assert {frame.how for frame in frames} <= {"registers", "orc", "exception"}
            assert not any(frame.why for frame in frames)
            assert (frames[-1].stack == "USER") == (not process.kernel_thread)
            if not process.kernel_thread:
                assert user_place(frames[-1]) == said_place(subject, process.pid, lwp.tid), lwp.comm
            checked += 1
    assert checked > 140


def user_place(frame: Frame) -> tuple[int, int, int]:
    """Return stack pointer, instruction pointer and segment of the frame of user space."""
    assert frame.registers is not None
    assert (frame.registers["rip"], frame.registers["rsp"]) == (frame.pc, frame.sp)
    return frame.sp, frame.pc, frame.registers["cs"]


def said_place(subject: Subject, pid: int, tid: int) -> tuple[int, int, int]:
    """Return the same as /proc/PID/task/TID/syscall ends with; the animal `ia32` runs 32-bit code."""
    sp, pc = (int(word, 0) for word in subject.truth.text(f"proc/{pid}/task/{tid}/syscall").split()[-2:])
    return sp, pc, 0x23 if subject.truth.processes[pid].comm == b"ia32" else 0x33


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


def panic_trace(subject: Subject) -> Trace:
    """Return the trace that the guest printed when it panicked, from the function on that called panic()."""
    lines = subject.dump.console.read_text(errors="replace").splitlines()
    crash = next(index for index, line in enumerate(lines) if "Kernel panic - not syncing" in line)
    end = next((index for index, line in enumerate(lines) if index > crash and "Linux version" in line), len(lines))
    trace = trace_of(lines[crash:end])
    names = [(frame.place[0] or "").removesuffix(".cold") for frame in trace.frames]
    first = next(index for index, name in enumerate(names) if name in PANICKING)
    assert {"panic", "vpanic"} & set(names[:first])
    return Trace(trace.frames[first:], {index - first: saved for index, saved in trace.interrupted.items()})


def test_the_panic_equals_what_the_guest_printed(subject: Subject) -> None:
    """The trace was printed a little earlier than the dump was taken, from the same place in panic().

    Frames, the stacks that they are on, and the registers of what was interrupted on the way. In a kdump the search
    has to begin: __crash_kexec() notes its own registers, and has no ORC rows (STACK_FRAME_NON_STANDARD).
    """
    if not subject.crashed:
        return
    theirs = panic_trace(subject)
    system, kernel = system_of(subject.kernel), subject.kernel
    frames = list(system.unwind(kernel, next(system.for_each_thread(kernel))))
    kdump = subject.dump.manifest["scenario"]["take"] == "kdump"
    assert [frame.name for frame in frames if frame.why] == (["__crash_kexec"] if kdump and frames[0].why else [])
    first = places(frames).index(theirs.frames[0].place)
    assert {"panic", "vpanic"} & {frame.name for frame in frames[:first]}
    ours = frames[first:]
    assert places(ours) == [frame.place for frame in theirs.frames]
    # where registers are printed, they stand under the stack on which they were saved: that of the frame before
    shown = [
        ours[index - 1].stack if index in theirs.interrupted else ours[index].stack for index in range(len(ours) - 1)
    ]
    assert shown == [frame.stack for frame in theirs.frames]
    assert [index for index, frame in enumerate(ours) if frame.registers is not None] == list(theirs.interrupted)
    for index, said in theirs.interrupted.items():
        frame = ours[index]
        assert frame.registers is not None
        assert frame.exact
        assert (frame.registers["rip"], frame.registers["rsp"]) == (frame.pc, frame.sp)
        assert said.items() <= dict(frame.registers).items()
        assert {"rip" if frame.stack == "USER" else "rax", "rsp", "r15"} <= set(said)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return Sample(tmp_path_factory.mktemp("sample"))


def test_the_oops_of_the_sample_equals_what_it_printed(sample: Sample) -> None:
    """It crosses two modules."""
    lines = (ARCHIVE.parent / "truth" / "console").read_text(errors="replace").splitlines()
    theirs = trace_of(lines)
    printed = [frame.place for frame in theirs.frames]
    assert {module for _, _, module in printed} == {"shelf", "shelf_proc", None}
    session = sample.open()
    system, kernel = session.system, session.kernel
    frames = list(system.unwind(kernel, next(system.for_each_thread(kernel))))
    assert places(frames) == [("take_back", 0xA, "shelf"), *printed]  # the log's RIP: line, and its trace
    assert any("RIP: 0010:take_back+0xa/0x1d [shelf]" in line for line in lines)
    assert {frame.how for frame in frames} == {"registers", "orc", "exception"}
    user = theirs.interrupted[len(printed)]
    assert (frames[-1].stack, frames[-1].pc, frames[-1].sp) == ("USER", user["rip"], user["rsp"])
    session.close()
