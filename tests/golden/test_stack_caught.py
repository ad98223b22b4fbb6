"""Stacks of CPUs that QEMU stopped in the middle of an interrupt, a softirq, a page fault, an NMI.

What must be there is known from outside: the function that QEMU stopped at and the CPU's registers (its stub for gdb),
the program that the task runs and its instructions, and which stack x86 takes for what. tests/peers compares the same
stacks with drgn's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import pytest

from kvm_dbg.elf import open_elf
from kvm_dbg.kernel import system_of
from kvm_dbg.kernel.base import Frame, Kernel, Thread
from tests.golden.subject import Subject, find_subject
from tests.lab import SCENARIOS, CaughtFile

CAUGHT = [(scenario.name, catch) for scenario in SCENARIOS for catch in scenario.catches]
KERNEL_CODE, USER_CODE = 0x10, 0x33  # __KERNEL_CS and __USER_CS, arch/x86/include/asm/segment.h
INTERRUPTS_ENABLED = 1 << 9  # IF in eflags
SYSTEM_CALL = bytes.fromhex("0f05")  # syscall
STORE = bytes.fromhex("c607")  # movb $.., (%rdi): the toiler touches a page
PAGE_MASK = ~0xFFF


class Caught(NamedTuple):
    """A dump at a catch, and the stack of the CPU that was caught."""

    name: str
    subject: Subject
    file: CaughtFile
    kernel: Kernel
    thread: Thread
    frames: list[Frame]


@pytest.fixture(params=CAUGHT, ids="-".join, scope="module")
def caught(request: pytest.FixtureRequest) -> Iterator[Caught]:
    scenario, name = request.param
    subject = find_subject(scenario)
    kernel = subject.open_caught(name)
    system = system_of(kernel)
    [thread] = [thread for thread in system.for_each_thread(kernel) if thread.on_cpu and thread.cpu == 0]
    frames = list(system.unwind(kernel, thread))
    yield Caught(name, subject, subject.dump.caught[name], kernel, thread, frames)
    kernel.image.close()


def toiler_code(subject: Subject, address: int, size: int) -> bytes:
    """Return instructions of the animal `toiler`, a static program, from its file."""
    path = subject.dump.programs / "zoo/toiler"
    with open_elf(path) as program:
        for segment in program.segments:
            if segment.vaddr <= address < segment.vaddr + segment.filesz:
                start = segment.offset + address - segment.vaddr
                return path.read_bytes()[start : start + size]
    raise AssertionError(f"{address:#x} is not in the program")


def test_the_caught_cpu_is_where_qemu_stopped_it(caught: Caught) -> None:
    registers, first = caught.file.registers, caught.frames[0]
    assert registers.items() <= dict(caught.thread.registers).items()
    assert registers["rip"] == caught.subject.truth.symbols[caught.file.function]
    assert (first.pc, first.sp, first.name, first.offset) == (
        registers["rip"],
        registers["rsp"],
        caught.file.function,
        0,
    )


def test_every_frame_is_certain(caught: Caught) -> None:
    """On every CPU: the other one is wherever it happened to be."""
    system = system_of(caught.kernel)
    for thread in system.for_each_thread(caught.kernel):
        frames = list(system.unwind(caught.kernel, thread)) if thread.on_cpu else []
        assert not any(frame.why for frame in frames)
        assert {frame.how for frame in frames} <= {"registers", "orc", "exception"}


def test_stacks_follow_one_another_as_the_processor_changed_them(caught: Caught) -> None:
    stacks = [stack for stack, _ in groupby(frame.stack for frame in caught.frames)]
    process = caught.subject.truth.processes.get(caught.thread.lid)  # none: a kernel thread that started later
    user = ["USER"] if process is not None and not process.kernel_thread else []
    expected = {"tick": ["IRQ", "TASK"], "softirq": ["IRQ", "TASK"], "fault": ["TASK"], "nmi": ["NMI", "IRQ", "TASK"]}
    assert stacks == [*expected[caught.name], *user]


def test_what_was_interrupted_has_its_registers(caught: Caught) -> None:
    """An interrupt comes only where interrupts are enabled; an NMI came at the first instruction of the tick."""
    interrupted = [frame for frame in caught.frames if frame.how == "exception" and frame.stack != "USER"]
    for index, frame in enumerate(interrupted):
        assert frame.exact
        assert frame.registers is not None
        assert (frame.registers["rip"], frame.registers["rsp"]) == (frame.pc, frame.sp)
        assert frame.registers["cs"] == KERNEL_CODE
        assert bool(frame.registers["eflags"] & INTERRUPTS_ENABLED) == (caught.name != "nmi" or index > 0)
    if caught.name == "tick":
        assert interrupted
    if caught.name == "nmi":
        tick = interrupted[0]
        assert tick.registers is not None
        assert (tick.name, tick.offset, tick.registers["rdi"] & 1) == ("update_process_times", 0, 0)
        assert tick.stack == "IRQ"
        assert len(interrupted) > 1  # the tick itself came over the kernel


def test_a_task_ends_in_the_instruction_that_brought_it_into_the_kernel(caught: Caught) -> None:
    last = caught.frames[-1]
    if caught.name in ("fault", "softirq"):
        assert caught.thread.name == "toiler"
    if caught.thread.name != "toiler":
        return
    assert last.registers is not None
    assert last.registers["cs"] == USER_CODE
    assert (last.stack, last.registers["rip"], last.registers["rsp"]) == ("USER", last.pc, last.sp)
    names = [frame.name or "" for frame in caught.frames]
    if "asm_exc_page_fault" in names:
        assert toiler_code(caught.subject, last.pc, len(STORE)) == STORE
    else:
        assert any(name.startswith("entry_SYSCALL_64") for name in names)
        assert toiler_code(caught.subject, last.pc - len(SYSTEM_CALL), len(SYSTEM_CALL)) == SYSTEM_CALL
    if caught.name == "fault":  # handle_mm_fault(vma, address, flags, regs)
        assert "asm_exc_page_fault" in names
        assert last.registers["rdi"] & PAGE_MASK == caught.file.registers["rsi"] & PAGE_MASK
