"""Debuggers on a real dump of NetBSD, with a layout file for types.

What is expected: the LWPs that NetBSD's own libkvm counted, and that process 19 slept in read(2) on a pipe.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.debuggers.conftest import IMPORT, SOURCE
from tests.debuggers.driver import Gdb, Lldb
from tests.shared import shared_data, unpack

LWPS = 52  # of all 22 processes: libkvm's p_nlwps, and 27 of the kernel
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
