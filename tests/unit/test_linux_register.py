"""Whose registers are whose: the kernel's own notes, QEMU's, and the image's in order; and frames of sleeping tasks."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest

from kvm_dbg.errors import KvmDbgError
from kvm_dbg.image.base import BytesImage, Note
from kvm_dbg.kernel.linux.panic import read_panic_cpu
from kvm_dbg.kernel.linux.register import read_cpu_states
from kvm_dbg.kernel.linux.thread import for_each_thread
from tests.writers.linux_task import PER_CPU, Tasks

USER_REGS = 27  # of struct user_regs_struct; rbp is number 4, rip 16, cs 17, rsp 19, fs_base 21


def prstatus(pid: int, **registers: int) -> bytes:
    """Return an NT_PRSTATUS descriptor."""
    places = {"rbp": 4, "rip": 16, "cs": 17, "rsp": 19, "fs_base": 21}
    values = [0] * USER_REGS
    for name, value in registers.items():
        values[places[name]] = value
    return bytes(32) + struct.pack("<i", pid) + bytes(76) + struct.pack(f"<{USER_REGS}Q", *values) + bytes(8)


def qemu_state(*, rip: int, gs_base: int = 0, kernel_gs_base: int | None = None) -> bytes:
    """Return a "QEMU" note: version, size, 18 registers (rip is the 17th), ten segments (gs is the 5th), cr0 to cr4."""
    general = [0] * 18
    general[16] = rip
    segments = [(0, 0, 0, 0, gs_base if index == 4 else 0) for index in range(10)]
    data = struct.pack("<II18Q", 1, 440, *general) + b"".join(struct.pack("<IIIIQ", *s) for s in segments) + bytes(40)
    return data + (b"" if kernel_gs_base is None else struct.pack("<Q", kernel_gs_base))


def core(*descriptors: bytes, name: str = "CORE", kind: int = 1) -> tuple[Note, ...]:
    return tuple(Note(name, kind, descriptor) for descriptor in descriptors)


@pytest.fixture
def kernel() -> Tasks:
    kernel = Tasks()
    kernel.struct(
        "struct inactive_task_frame", r15="u64", r14="u64", r13="u64", r12="u64", bx="u64", bp="u64", ret_addr="u64"
    )
    return kernel


def rips(kernel: Tasks) -> dict[int, int | None]:
    return {state.cpu: state.registers.get("rip") for state in read_cpu_states(kernel)}


def attach(kernel: Tasks, notes: tuple[Note, ...]) -> None:
    kernel.image = BytesImage({}, notes=notes)


def test_no_notes(kernel: Tasks) -> None:
    assert rips(kernel) == {0: None, 1: None}


def test_notes_in_order(kernel: Tasks) -> None:
    attach(kernel, core(prstatus(0, rip=0x10, fs_base=5), prstatus(0, rip=0x11)))
    assert rips(kernel) == {0: 0x10, 1: 0x11}
    assert "fs_base" not in read_cpu_states(kernel)[0].registers  # the kernel does not save it


def test_fewer_notes_than_cpus_are_told_by_their_task(kernel: Tasks) -> None:
    kernel.run(1, kernel.process(77))
    attach(kernel, core(prstatus(77, rip=0x10)))
    assert rips(kernel) == {0: None, 1: 0x10}


def test_notes_that_are_cut_off(kernel: Tasks) -> None:
    attach(kernel, core(b"short", prstatus(0, rip=0x11)))
    assert rips(kernel) == {0: None, 1: 0x11}


def test_qemu_tells_cpus_by_their_per_cpu_offset(kernel: Tasks) -> None:
    notes = core(
        qemu_state(rip=0x10, gs_base=PER_CPU),
        qemu_state(rip=0x11, gs_base=0x7000, kernel_gs_base=0),
        name="QEMU",
        kind=0,
    )
    attach(kernel, core(prstatus(1, rip=0x98), prstatus(2, rip=0x99)) + notes)
    assert rips(kernel) == {0: 0x11, 1: 0x10}


def test_the_kernels_own_notes_win(kernel: Tasks) -> None:
    attach(kernel, core(prstatus(0, rip=0x98), prstatus(0, rip=0x99)))
    buffer = kernel.symbols.address("current_task") + 0x800
    kernel.words(kernel.allocate(8, symbol="crash_notes"), buffer)
    descriptor = prstatus(0, rip=0x42)
    kernel.write(buffer + PER_CPU, struct.pack("<III8s", 5, len(descriptor), 1, b"CORE\0") + descriptor)
    assert rips(kernel) == {0: None, 1: 0x42}


def test_a_note_of_zeros_says_nothing(kernel: Tasks) -> None:
    attach(kernel, core(prstatus(0), prstatus(0, rip=0x11)))
    assert rips(kernel) == {0: None, 1: 0x11}


def threads(kernel: Tasks) -> Mapping[str, tuple[bool, Mapping[str, int], str]]:
    return {thread.name: (thread.on_cpu, thread.registers, thread.why) for thread in for_each_thread(kernel)}


def test_sleeping_tasks(kernel: Tasks) -> None:
    stack = kernel.allocate(0x4000, page=True)
    sp = stack + 0x3F00
    kernel.words(sp, 15, 14, 13, 12, 3, 5, 0xFFFFFFFF81000000)
    task = kernel.process(5, comm=b"sleeper", stack=stack)
    kernel.put(task, "struct task_struct", "thread.sp", sp)
    on_cpu, registers, why = threads(kernel)["sleeper"]
    assert not on_cpu
    assert registers == {
        "r15": 15, "r14": 14, "r13": 13, "r12": 12, "rbx": 3, "rbp": 5, "rip": 0xFFFFFFFF81000000, "rsp": sp + 56,
    }  # fmt: skip
    assert "inactive_task_frame" in why


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("stack", 0, "its stack is gone"),
        ("thread.sp", 0x1234, "outside of its stack"),
        ("on_cpu", 1, "on the move"),
    ],
)
def test_tasks_whose_registers_nobody_knows(kernel: Tasks, field: str, value: int, why: str) -> None:
    stack = kernel.allocate(0x4000, page=True)
    task = kernel.process(5, comm=b"odd", stack=stack)
    kernel.put(task, "struct task_struct", "thread.sp", stack + 0x3F00)
    kernel.put(task, "struct task_struct", field, value)
    _, registers, reason = threads(kernel)["odd"]
    assert registers == {}
    assert why in reason


def test_order(kernel: Tasks) -> None:
    """The panicking task first, then those on CPUs, then the rest, idle ones last."""
    tasks = {pid: kernel.process(pid, comm=b"p%d" % pid) for pid in (3, 4, 5)}
    for cpu, pid in ((0, 5), (1, 4)):
        kernel.run(cpu, tasks[pid])
        kernel.put(kernel.symbols.address("runqueues") + cpu * PER_CPU, "struct rq", "idle", kernel.init_task)
    assert [thread.name for thread in for_each_thread(kernel)] == ["p5", "p4", "p3", "swapper/0"]
    panic = kernel.allocate(8, symbol="panic_cpu")
    kernel.words(panic, 1)
    assert read_panic_cpu(kernel) == 1
    assert [thread.name for thread in for_each_thread(kernel)] == ["p4", "p5", "p3", "swapper/0"]
    kernel.words(panic, 0xFFFFFFFF)
    assert read_panic_cpu(kernel) is None
    kernel.words(panic, 77)
    assert read_panic_cpu(kernel) is None


def test_a_broken_list_still_shows_the_running(kernel: Tasks) -> None:
    tasks = [kernel.process(pid, comm=b"p%d" % pid) for pid in (3, 4)]
    kernel.run(0, tasks[1])
    kernel.words(tasks[0] + kernel.link, 0)
    kernel.put(kernel.symbols.address("runqueues"), "struct rq", "idle", kernel.init_task)
    kernel.put(kernel.symbols.address("runqueues") + PER_CPU, "struct rq", "idle", kernel.init_task)
    names = []
    error: KvmDbgError | None = None
    try:
        for thread in for_each_thread(kernel):
            names.append(thread.name)
    except KvmDbgError as raised:
        error = raised
    assert names == ["p4", "swapper/0", "p3"]
    assert error is not None


@pytest.mark.parametrize(
    "notes",
    [
        core(qemu_state(rip=0x11), qemu_state(rip=0x22, gs_base=PER_CPU), name="QEMU", kind=0),
        core(prstatus(3, rip=0x11), prstatus(0, rip=0x22)),
        core(prstatus(3, rip=0x11), prstatus(0), prstatus(0, rip=0x22)),
    ],
)
def test_notes_of_an_image_whose_memory_is_cut_off(kernel: Tasks, notes: tuple[Note, ...]) -> None:
    attach(kernel, notes)
    kernel.missing = set(range(len(kernel.memory) // 4096 + 1))
    threads = for_each_thread(kernel)
    found = [next(threads), next(threads)]
    with pytest.raises(KvmDbgError):
        next(threads)
    assert [thread.registers["rip"] for thread in found] == [0x11, 0x22]
    assert [thread.cpu for thread in found] == [0, len(notes) - 1]
    assert {(thread.lid, thread.address, thread.on_cpu) for thread in found} == {(0, 0, True)}
    assert all("which task it ran is not known" in thread.why for thread in found)
