"""Every debugger on a made FreeBSD: types and variables of its kernel file, and the symbols of its modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.debuggers.debugger import Found
from tests.debuggers.neutral import Answers, Subject, kvm, kvm_open, step
from tests.debuggers.plugin import CACHE
from tests.writers.freebsd_system import FreebsdSystem


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> FreebsdSystem:
    return FreebsdSystem(tmp_path_factory.mktemp("system"), 14, "dwarf")


@pytest.fixture(scope="module")
def answers(
    debugger: Found, system: FreebsdSystem, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Answers:
    """Open the dump in a debugger, once, and ask everything."""
    dump: Path = system.write(f"vmcore-{debugger.debugger.name}")
    steps = {
        "open": kvm_open(system.kernel, dump),
        "threads": step("threads"),
        "stacks": step("stacks"),
        "pid": step("evaluate", "p_make.p_pid"),
        "load": kvm("mods --load"),
        "symbol": step("symbol_at", system.address("toy_text") + 0x18),
        "procs": kvm("procs"),
        "files": kvm("files 700"),
        "end": kvm("close"),
    }
    with Subject(debugger, tmp_path_factory.mktemp("made"), pytestconfig.stash[CACHE]) as subject:
        return subject.ask(steps)


def test_threads(answers: Answers) -> None:
    names = [thread.name for thread in answers.threads("threads")]
    assert names[0] == "(pid 704) crashme (crashed)"
    assert len(names) == 11
    assert "(pid 701) make (on CPU 1)" in names
    assert "(pid 12) intr/irq1: atkbd0" in names


def test_stacks(answers: Answers, system: FreebsdSystem) -> None:
    stack = answers.stacks("stacks")[answers.threads("threads")[0].id]
    assert [frame.function for frame in stack][:3] == ["kern_reboot", "panic", "trap"]
    interrupted = stack[4:]  # behind the handler, for which gdb shows no name
    assert interrupted[0].pc == system.address("toy_text") + 0x2C
    assert [frame.function for frame in interrupted[1:3]] == ["sys_ioctl", "fast_syscall_common"]
    assert [frame.pc for frame in interrupted[3:]] == [0x401234]


def test_variables_have_their_types(answers: Answers) -> None:
    assert answers["pid"] == 701


def test_symbols_of_modules_are_placed(answers: Answers) -> None:
    assert "1 of 2 modules" in answers["load"]
    assert "toy_ioctl" in answers["symbol"]


def test_commands(answers: Answers) -> None:
    assert "RNX+" in answers["procs"]
    assert "/usr/home/notes" in answers["files"]
