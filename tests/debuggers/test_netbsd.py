"""Debuggers on a real dump of NetBSD, with a layout file for types, and the list of symbols that savecore wrote.

What is expected: the LWPs that NetBSD's own libkvm counted, and that process 19 slept in read(2) on a pipe. Names are
those of the list. The dump was published with its code overwritten by zeros, so nothing can be made of instructions.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvm_dbg.symbols.elf import ElfSymbolTable
from tests.debuggers.conftest import IMPORT, SOURCE
from tests.debuggers.debugger import Found
from tests.debuggers.driver import Gdb, Lldb
from tests.debuggers.neutral import Answers, Subject, kvm, step
from tests.debuggers.plugin import CACHE
from tests.shared import shared_data, unpack

LWPS = 52  # of all 22 processes: libkvm's p_nlwps, and 27 of the kernel
WITHOUT_REGISTERS = 11  # what the other CPU ran, two zombies, four soft interrupts of each CPU: nobody kept any
BOTTOM = ("lwp_trampoline", "main", "do_syscall", "doreti_checkast", "longmode_hi")
"""Where stacks of LWPs end: cpu_lwp_fork() has new ones begin there, main(), which longmode_hi calls, becomes the
swapper, and sys/arch/amd64/amd64 enters system calls from user space and, on the way back, does what is still to do."""
STACK = ["sleepq_block", "cv_wait_sig", "pipe_read", "dofileread", "sys_read", "syscall"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the words that open the dump."""
    data, folder = shared_data("netbsd"), tmp_path_factory.mktemp("netbsd")
    paths: list[Path] = [unpack(data / name, folder) for name in ("netbsd.0.zst", "netbsd.0.core.zst")]
    return f"{paths[0]} {paths[1]} --layout {data / 'layout.json'}"


def test_gdb_shows_threads_and_stacks(real: Gdb, files: str) -> None:
    choose = "python next(t for t in gdb.selected_inferior().threads() if t.ptid[1] == 19).switch()"
    result = real.run([SOURCE, f"kvm open {files}", "info threads", choose, "bt", "kvm procs --pid 13"])
    assert result.returncode == 0, result.stderr
    assert "NetBSD 6.99.16, x86_64" in result.stderr + result.stdout
    assert len(re.findall(r"^[* ] +\d+ +Thread \d+ ", result.stdout, re.M)) == LWPS
    assert re.search(r'^\* 1 +Thread 99 "reboot/99\.1" \(.*in cpu_reboot \(\)', result.stdout, re.M)
    assert re.search(r'Thread 200013 "wk1/13\.3"', result.stdout)
    frames = re.findall(r"^#\d+ .* in (\w+) \(\)", result.stdout, re.M)
    assert frames[1:7] == STACK
    assert re.search(r"^ 13 +2 +0 Sl\+", result.stdout, re.M)


def test_lldb_shows_threads_and_stacks(real_lldb: Lldb, files: str) -> None:
    result = real_lldb.run([IMPORT, f"kvm open {files}", "thread list", "bt", "kvm bt 19"])
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^[* ] thread #\d+: tid = ", result.stdout, re.M)) == LWPS
    assert "name = 'wk1/13.3'" in result.stdout
    assert len(re.findall(r"frame #\d+: 0xffffffff80", result.stdout)) >= 3
    assert re.findall(r"#\d+ +0x\w+ +(\w+)\+0x", result.stdout)[1:7] == STACK
    assert re.search(r"frame #0: 0xffffffff80198743 netbsd\.0`cpu_reboot \+ 218$", result.stdout, re.M)


@pytest.fixture(scope="module")
def asked(
    files: str, debugger: Found, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Answers:
    """Open the dump in a debugger, once, and ask everything."""
    steps = {
        "open": kvm(f"open {files}"),
        "threads": step("threads"),
        "stacks": step("stacks"),
        "end": kvm("close"),
    }
    with Subject(debugger, tmp_path_factory.mktemp("netbsd"), pytestconfig.stash[CACHE]) as subject:
        return subject.ask(steps)


def test_all_frames_have_names_and_stacks_end(asked: Answers, files: str) -> None:
    table = ElfSymbolTable(files.split()[0])
    starts = {symbol.name: symbol.address for symbol in table.for_each()}
    table.close()
    stacks = asked.stacks("stacks")
    assert len(stacks) == LWPS
    told = 0
    for thread in asked.threads("threads"):
        frames = [frame for frame in stacks[thread.id] if frame.in_kernel and frame.pc + 1 < 1 << 64]
        if not frames:
            continue
        told += 1
        names = []
        for frame in frames:
            assert frame.function is not None, (thread, frame)
            names.append(frame.function)
            assert 0 <= frame.pc - starts[frame.function] < 1 << 14, (thread, frame)
        assert names[-1] in BOTTOM, (thread, names)
        assert len([frame for frame in stacks[thread.id] if not frame.in_kernel]) <= 1, thread
    assert told == LWPS - WITHOUT_REGISTERS
    one = next(thread for thread in asked.threads("threads") if thread.name == "zoo/19.1")
    assert [frame.function for frame in stacks[one.id]][1:7] == STACK
