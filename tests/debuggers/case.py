"""The lab's dumps that every debugger opens, and what their guests said of themselves, as a debugger would say it."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.call_trace import Place, Trace, proc_stack, trace_of
from tests.debuggers.child import run
from tests.debuggers.debugger import ROOT, clean_environment
from tests.debuggers.neutral import Frame
from tests.lab import Dump, ThreadTruth, find

CASES = {
    "deb11-4level": "elf",
    "deb12-nokaslr": "elf",
    "deb13-5level": "elf",
    "bpo13-5level": "qemu-kdump-zlib",
    "deb12-panic": "elf",
    "deb13-panic": "elf",  # 5 levels
    "deb11-kdump": "zlib-d31",
    "bpo13-kdump": "lzo-d0",
}
"""Each kernel of the lab twice: paused, and panicked or dumped by its crash kernel; with four and five levels."""

HIDDEN = ("deb11-4level", "deb12-panic", "deb13-panic", "bpo13-5level")
"""Each kernel of the lab, to be opened without its kernel file."""

IDLE_BASE = 10_000_000  # see rsp/target.py: the idle task of CPU n
WRITER = 1  # init writes the truth down: it sees its own stack from within
RESTLESS = ("kworker", "rcu_preempt", "rcu_sched")  # that wake up at any time, and are renamed
SCHEDULER = (("__sched_text_start", "__sched_text_end"), ("__lock_text_start", "__lock_text_end"))
"""What /proc/PID/stack leaves out: in_sched_functions() of kernel/sched/core.c."""


class Known(NamedTuple):
    """What a type's size and the offsets of some of its members are, in bytes."""

    size: int
    offsets: dict[str, int]


class Case:
    """One dump, beside its guest's own word.

    files: what a debugger shall open: the image, and the kernel file unless that is hidden.
    """

    def __init__(self, dump: Dump, *, hidden: bool = False) -> None:
        self.dump = dump
        self.hidden = hidden
        self.truth = dump.truth
        self.vmlinux = dump.vmlinux
        self.images = dump.files[CASES[dump.name]].paths
        self.files = [*([] if hidden else [self.vmlinux]), *self.images]
        self.crashed = dump.truth_after is None

    @functools.cached_property
    def symbols(self) -> dict[str, list[int]]:
        """All addresses of each name in the guest's /proc/kallsyms, those of modules as well."""
        table: dict[str, list[int]] = {}
        for line in self.truth.text("proc/kallsyms").splitlines():
            address, _, name = line.split()[:3]
            table.setdefault(name, []).append(int(address, 16))
        return table

    @functools.cached_property
    def lwps(self) -> dict[int, ThreadTruth]:
        """Return all threads by their ids, without the programs that only wrote the truth down."""
        threads = [lwp for process in self.truth.processes.values() for lwp in process.lwps]
        return {lwp.tid: lwp for lwp in threads if lwp.comm not in (b"ps", b"dmesg", b"uname", b"cat", b"sh")}

    @functools.cached_property
    def names(self) -> dict[int, bytes]:
        """Return the names of all threads that keep theirs."""
        return {tid: lwp.comm for tid, lwp in self.lwps.items() if not lwp.comm.startswith(b"kworker")}

    @functools.cached_property
    def stacks(self) -> dict[int, list[Place]]:
        """Return /proc/PID/task/TID/stack of the threads that slept from the truth to the dump."""
        panicked = (self.dump.manifest["panic"] or {}).get("pid")
        return {
            tid: proc_stack(lwp.stack)
            for tid, lwp in self.lwps.items()
            if lwp.stack
            and lwp.state not in "RX"
            and tid not in (WRITER, panicked)
            and not lwp.comm.decode("latin-1").startswith(RESTLESS)
            and f"proc/{self.process_of(tid)}/stat" not in self.dump.moved
        }

    @functools.cached_property
    def user_places(self) -> dict[int, int]:
        """Return where threads that sleep in a system call came from: the last word of /proc/PID/task/TID/syscall.

        proc_pid_syscall(5); threads of the kernel have zeros there.
        """
        found = {}
        for tid in self.stacks:
            words = self.truth.contents.get(f"proc/{self.process_of(tid)}/task/{tid}/syscall", b"").split()
            if len(words) == 9 and int(words[-1], 16):
                found[tid] = int(words[-1], 16)
        return found

    @property
    def sleeper(self) -> int:
        """Return a thread that sleeps in a system call."""
        return next(tid for tid, places in self.stacks.items() if "do_syscall_64" in [place[0] for place in places])

    def process_of(self, tid: int) -> int:
        """Return the process that a thread belongs to."""
        processes = self.truth.processes.values()
        return next(process.pid for process in processes if any(lwp.tid == tid for lwp in process.lwps))

    @functools.cached_property
    def panic(self) -> Trace:
        """The call trace that the guest printed when it panicked."""
        lines = self.dump.console.read_text(errors="replace").splitlines()
        crash = next(index for index, line in enumerate(lines) if "Kernel panic - not syncing" in line)
        end = next((index for index, line in enumerate(lines) if index > crash and "Linux version" in line), len(lines))
        return trace_of(lines[crash:end])

    @property
    def call_trace(self) -> list[Place]:
        """Return where the panicking task was in the kernel, from the function on that called panic()."""
        places = [frame.place for frame in self.panic.frames]
        return places[[place[0] for place in places].index("sysrq_handle_crash") :]

    @property
    def user_address(self) -> int:
        """Return the address in user space that the panicking task called the kernel from."""
        return self.panic.interrupted[len(self.panic.frames)]["rip"]

    def in_scheduler(self, pc: int) -> bool:
        """Return whether /proc leaves out what is at `pc`."""
        spans = [(self.symbols[start][0], self.symbols[end][0]) for start, end in SCHEDULER]
        return any(start <= pc < end for start, end in spans)

    @functools.cached_property
    def types(self) -> dict[str, Known]:
        """Return what drgn reads of some types from the kernel file."""
        return _types(self.vmlinux, tuple(TYPES))

    @functools.cached_property
    def module_types(self) -> dict[str, Known]:
        """Return what drgn reads of a module's types from its debug file."""
        folder = self.dump.debug / "lib" / "modules" / self.dump.release / "kernel"
        return _types(folder / MODULE, tuple(MODULE_TYPES))

    @property
    def has_module_types(self) -> bool:
        """Return whether the kernel keeps its modules' types: CONFIG_DEBUG_INFO_BTF_MODULES, since 5.11."""
        return tuple(map(int, self.dump.release.split(".")[:2])) >= (5, 11)

    def code(self, function: str, count: int) -> list[tuple[int, str]]:
        """Return what objdump takes the function's first instructions in the kernel file for, where the kernel ran."""
        return _code(self.vmlinux, self.symbols[function][0] - self.dump.slide, count, self.dump.slide)

    def cli(self, line: str) -> str:
        """Return what `kvm-dbg` prints for a command, without any debugger."""
        return _cli(line, tuple(map(str, self.files)))


# Without `struct rq`: when lldb 19 has once read `struct task_struct` of a new kernel, it lays that out wrongly, and so
# it does with a kernel file alone, without kvm_dbg.
TYPES = {
    "struct task_struct": ("tasks", "comm", "pid", "mm", "signal", "thread_node", "stack"),
    "struct list_head": ("next", "prev"),
    "struct signal_struct": ("thread_head", "nr_threads"),
    "struct module": ("list", "name", "state"),
    "struct pt_regs": ("ip", "sp"),
    "struct cred": ("uid", "euid"),
    "struct file": ("f_op", "f_flags"),
    "struct page": ("flags",),
    "struct pid_namespace": ("level", "child_reaper"),
    "struct super_block": ("s_list", "s_id"),
}


MODULE = "fs/xfs/xfs.ko"
MODULE_TYPES = {
    "struct xfs_mount": ("m_sb", "m_super"),
    "struct xfs_inode": ("i_mount", "i_ino"),  # struct inode is inside
    "struct xfs_buf": ("b_lock", "b_target"),
}


@functools.cache
def find_case(name: str, *, hidden: bool = False) -> Case:
    """Return a case, each made once in a run. Skips where the lab has not built its dump."""
    dump = find(name)
    if dump is None:
        pytest.skip(f"the lab has no dump {name}: python -m tests.lab build {name}")
    return Case(dump, hidden=hidden)


@functools.cache
def _types(path: Path, names: Sequence[str]) -> dict[str, Known]:
    import drgn

    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    module = program.extra_module("kernel", create=True)
    module.try_file(str(path), force=True)
    found = {}
    for name in names:
        members = (TYPES | MODULE_TYPES)[name]
        kind = program.type(name)
        there = [member for member in members if kind.has_member(member)]
        found[name] = Known(kind.size, {member: kind.member(member).offset for member in there})
    return found


@functools.cache
def _cli(line: str, files: Sequence[str]) -> str:
    name, *rest = line.split()
    words = [sys.executable, "-m", "kvm_dbg.cli", name, *files, *rest]
    result = run(words, env=clean_environment() | {"PYTHONPATH": str(ROOT)}, cwd=os.fspath(ROOT), timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


@functools.cache
def _code(vmlinux: Path, address: int, count: int, slide: int) -> list[tuple[int, str]]:
    span = [f"--start-address={address:#x}", f"--stop-address={address + 16 * count:#x}"]
    result = run(["objdump", "-d", "--no-show-raw-insn", *span, str(vmlinux)], env=clean_environment(), timeout=600)
    lines = re.findall(r"^([0-9a-f]{16}):\s+(\w+)", result.stdout, re.MULTILINE)
    return [(int(at, 16) + slide, mnemonic) for at, mnemonic in lines[:count]]


def matches(case: Case, frame: Frame, place: Place) -> bool:
    """Return whether a frame is at the place that the guest names: its address, and its function if it has a name.

    A debugger calls a part of a function (`.cold`, `.isra.0`) by the name in the source, and a label within assembler
    code (`entry_SYSCALL_64_after_hwframe`) by the symbol that holds it.
    """
    name, offset, _ = place
    assert name is not None
    if frame.pc not in [address + offset for address in case.symbols[name]]:
        return False
    return frame.function is None or plain(frame.function) == plain(name)


def plain(function: str) -> str:
    """Return a function's name as it is in the source."""
    return re.sub(r"_after_hwframe$", "", function.partition(".")[0])


def differences(case: Case, frames: Iterable[Frame], places: Sequence[Place]) -> str:
    """Return "" if frames are at places, else both lists."""
    frames = list(frames)
    if len(frames) == len(places) and all(map(functools.partial(matches, case), frames, places)):
        return ""
    theirs = [f"{frame.function} {frame.pc:#x}" for frame in frames]
    return f"\n  debugger: {theirs}\n  guest: {[f'{name}+{offset:#x}' for name, offset, _ in places]}"
