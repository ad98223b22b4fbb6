"""Stacks in lldb: those of all tasks are the kernel's own unwinder's, and the panic's is what the guest printed."""

from __future__ import annotations

import json
import re
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.debuggers.conftest import IMPORT, Demo
from tests.debuggers.demo_truth import user_registers
from tests.debuggers.driver import Lldb
from tests.lab import Dump
from tests.lab import find as find_dump

TIMEOUT = 240  # seconds; the first lldb of a version that sees a kernel file makes its index
IDLE_BASE = 10_000_000  # the thread of CPU n's idle task has the number IDLE_BASE + n

# PAUSED, PANIC and kdump scenarios of all four kernels, with panics in an interrupt and an NMI; deb13-5level has page
# tables of five levels.
CASES = (
    ("deb11-kdump", "zlib-d31"),
    ("deb12-4level", "elf"),
    ("deb12-panic", "elf"),
    ("deb13-5level", "elf"),
    ("bpo13-panic", "elf"),
    ("deb12-irq", "elf"),
    ("bpo13-nmi", "elf"),
)
# Each kernel; CPUs that a panic stopped in an interrupt, panics in an interrupt and an NMI, idle tasks whose first
# callers have been freed.
WITHOUT_VMLINUX = (
    "deb11-4level", "deb12-irq", "deb12-nmi", "deb13-nmi", "deb13-panic", "bpo13-irq", "bpo13-nmi",
)  # fmt: skip

FUNCTIONS = """
import json, lldb

def places(thread):
    '''Return [program counter, names] of each frame: inlined functions have a frame with the one that they are in.'''
    found = []
    inlined = False
    for frame in thread.frames:
        if frame.IsArtificial():  # lldb infers a tail call: the call is gone from the stack
            continue
        symbol = frame.GetSymbol()
        names = [frame.GetFunctionName(), symbol.GetName() if symbol.IsValid() else None]
        if inlined and frame.GetCFA() == cfa:
            found[-1][1] += names
        else:
            found.append([frame.GetPC(), names])
        inlined, cfa = frame.IsInlined(), frame.GetCFA()
    return found

def process():
    return lldb.debugger.GetSelectedTarget().GetProcess()

def user_registers(names):
    frames = list(process().GetSelectedThread().frames)
    return {name: frames[-1].FindRegister(name).GetValueAsUnsigned() for name in names}

def say(value):
    print("value:" + json.dumps(value))
"""


class Frame(NamedTuple):
    """A frame as `kvm bt` has it."""

    pc: int
    name: str | None


def lab_dump(name: str) -> Dump:
    dump = find_dump(name)
    assert dump is not None, f"the lab has no {name}: python -m tests.lab build"
    return dump


def evaluate(lldb: Lldb, folder: Path, files: list[Path], *steps: str) -> list[Any]:
    """Return what the steps say: values of expressions of Python behind `=`, else JSON that a command prints."""
    (folder / "stack_functions.py").write_text(FUNCTIONS)
    commands = [IMPORT, "kvm open " + " ".join(map(str, files)), f"command script import {folder}/stack_functions.py"]
    for step in steps:
        commands += [f"script import lldb; stack_functions.say({step[1:]})"] if step.startswith("=") else [step]
    result = lldb.run(commands, timeout=TIMEOUT)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    return [json.loads(line) for line in re.findall(r"^value:(.*)$", result.stdout, re.MULTILINE)]


def unwound(lldb: Lldb, files: list[Path]) -> dict[int, list[Frame]]:
    """Return the frames of each thread, as the server finds them by the kernel's tables."""
    result = lldb.run([IMPORT, "kvm open --no-symbols " + " ".join(map(str, files)), "kvm bt --all --json"])
    found: dict[int, list[Frame]] = {}
    for row in json.loads(result.stdout):
        frames = found.setdefault(row["lwp"] or IDLE_BASE + row["cpu"], [])
        if row["address"] is not None:
            frames.append(Frame(int(row["address"], 16), row["function"]))
    return found


def plain(name: str | None) -> str | None:
    """Return a function's name without what the compiler put behind it (.cold, .part.0)."""
    return name.partition(".")[0] if name else None


def check_stacks(stacks: dict[str, Any], expected: dict[int, list[Frame]]) -> None:
    """Assert that lldb's stacks, as `places` has them, are those that the server found."""
    assert len(expected) >= 150
    assert set(map(int, stacks)) == set(expected)
    for tid, frames in expected.items():
        stack = stacks[str(tid)]
        if not frames:  # a zombie has no stack, and lldb shows one frame of nothing
            assert len(stack) <= 1
            continue
        assert [pc for pc, _ in stack] == [frame.pc for frame in frames], f"thread {tid}"
        for frame, (pc, names) in zip(frames, stack, strict=True):
            assert plain(frame.name) in map(plain, names), f"thread {tid} at {pc:#x}"


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_all_stacks_are_those_of_the_kernels_own_unwinder(
    real_lldb: Lldb, tmp_path: Path, name: str, kind: str
) -> None:
    dump = lab_dump(name)
    files = [dump.vmlinux, *dump.files[kind].paths]
    step = "={thread.id: stack_functions.places(thread) for thread in stack_functions.process()}"
    (stacks,) = evaluate(real_lldb, tmp_path, files, step)
    check_stacks(stacks, unwound(real_lldb, files))


@pytest.mark.parametrize("name", WITHOUT_VMLINUX)
def test_all_stacks_without_a_kernel_file(real_lldb: Lldb, tmp_path: Path, name: str) -> None:
    """Symbols, types and rules are made from the image then, and a stack ends where the tables end it."""
    files = list(lab_dump(name).files["elf"].paths)
    stacks, size = evaluate(
        real_lldb,
        tmp_path,
        files,
        "={thread.id: stack_functions.places(thread) for thread in stack_functions.process()}",
        "=stack_functions.process().GetTarget().FindFirstType('task_struct').size",
    )
    check_stacks(stacks, unwound(real_lldb, files))
    assert size > 4096


@pytest.mark.parametrize("name", ["deb11-panic", "deb12-panic", "deb13-panic", "bpo13-panic"])
def test_the_panics_stack_is_what_the_guest_printed(real_lldb: Lldb, tmp_path: Path, name: str) -> None:
    """From the function that called panic() on; the guest printed it from within."""
    dump = lab_dump(name)
    console = dump.console.read_text(errors="replace")
    trace = console[console.index("Kernel panic - not syncing") :].split("Call Trace:")[1].splitlines()[1:]
    certain = [line for line in takewhile(lambda line: "RIP: 0033:" not in line, trace) if "? " not in line]
    printed = [match[1] for line in certain if (match := re.search(r"\]  ([a-z_]\w*)(?:\.\w+)*\+0x", line))]
    user = re.search(r"RIP: 0033:0x([0-9a-f]+)", console[console.index("Kernel panic - not syncing") :])
    assert user is not None
    files = [dump.vmlinux, *dump.files["elf"].paths]
    (stack,) = evaluate(
        real_lldb, tmp_path, files, "=stack_functions.places(stack_functions.process().GetSelectedThread())"
    )
    start = printed.index("sysrq_handle_crash")
    names = [set(map(plain, names)) for _, names in stack]
    first = next(index for index, found in enumerate(names) if "sysrq_handle_crash" in found)
    assert "panic" in names[first - 1]
    assert len(printed[start:]) == len(names[first:-1]) >= 7
    assert all(theirs in ours for theirs, ours in zip(printed[start:], names[first:-1], strict=True))
    assert stack[-1] == [int(user[1], 16), [None, None]]


def test_the_frame_of_the_user_has_the_users_registers(real_lldb: Lldb, demo: Demo, tmp_path: Path) -> None:
    registers = user_registers()
    (values,) = evaluate(
        real_lldb,
        tmp_path,
        [demo.vmlinux, demo.vmcore],
        f"kvm mods --load {demo.modules}",
        f"=stack_functions.user_registers({sorted(registers)!r})",
    )
    assert values == registers


def test_backtraces_keep_their_source_lines(real_lldb: Lldb) -> None:
    dump = lab_dump("deb12-4level")
    command = f"kvm open {dump.vmlinux} {dump.files['elf'].paths[0]}"
    result = real_lldb.run([IMPORT, command, "thread backtrace all"], timeout=TIMEOUT)
    frame = re.compile(r"frame #\d+: 0xffffffff(?!f{8})")  # all ones: a zombie's, which has no registers
    lines = [line for line in result.stdout.splitlines() if frame.search(line)]
    assert len(lines) >= 1000
    assert [line for line in lines if not re.search(r" at [\w.-]+\.[chS]:\d+", line)] == []


@pytest.mark.parametrize("name", ["deb12-4level", "bpo13-panic"])
def test_a_cpus_copy_of_a_per_cpu_variable_is_at_its_offset(real_lldb: Lldb, name: str) -> None:
    """Linked at 0 before Linux 6.15; `rq->cpu` is the number of its CPU (kernel/sched/core.c, sched_init)."""
    dump = lab_dump(name)
    command = f"kvm open {dump.vmlinux} {dump.files['elf'].paths[0]}"
    expression = "p ((struct rq *)((char *)&runqueues + __per_cpu_offset[{}]))->cpu"
    result = real_lldb.run([IMPORT, command, *(expression.format(cpu) for cpu in (0, 1))], timeout=TIMEOUT)
    assert re.findall(r"^\(int\) (\d+)$", result.stdout, re.MULTILINE) == ["0", "1"]
