"""The running kernel by /proc alone, against what the system says of this process."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import pytest

from kvm_dbg.kvm import (
    KERN_PROC_PID,
    KVM_NO_FILES,
    kvm_close,
    kvm_getargv,
    kvm_geterr,
    kvm_getprocs,
    kvm_open,
    kvm_read,
)
from kvm_dbg.kvm.descriptor import Kvm, open_without_files


@pytest.fixture
def kd() -> Kvm:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("there is no Linux on x86_64 here")
    return open_without_files()


def test_this_process(kd: Kvm) -> None:
    me = kd.process(os.getpid())
    assert (me.ppid, me.pgid, me.sid) == (os.getppid(), os.getpgid(0), os.getsid(0))
    assert (me.uid, me.ruid, me.gid, me.rgid) == (os.geteuid(), os.getuid(), os.getegid(), os.getgid())
    assert set(me.groups) == set(os.getgroups())
    assert me.nice == os.nice(0)
    assert not me.kernel_thread
    assert kd.arguments(me) == Path("/proc/self/cmdline").read_bytes().split(b"\0")[:-1]
    assert os.getpid() in {lwp.lid for lwp in kd.lwps(os.getpid())}


def test_load_averages(kd: Kvm) -> None:
    for _ in range(5):
        before = Path("/proc/loadavg").read_text().split()[:3]
        load = kd.load_average()
        if Path("/proc/loadavg").read_text().split()[:3] == before:
            break
    assert [f"{one:.2f}" for one in (load.one, load.five, load.fifteen)] == before


def test_memory_is_out_of_reach(kd: Kvm) -> None:
    opened = kvm_open("no file", "is looked at", None, KVM_NO_FILES)
    assert opened is not None
    assert kvm_read(opened, 0x1000, bytearray(8)) == -1
    assert "opened without files" in kvm_geterr(opened)
    found = kvm_getprocs(opened, KERN_PROC_PID, os.getpid())
    assert found is not None
    assert kvm_getargv(opened, found[0]) == kd.arguments(kd.process(os.getpid()))
    kvm_close(opened)
