"""`kvm attach`: a stub with virtual addresses only, and what is no machine. QEMU's stub is in tests/live.

The stub is this project's own server, on a dump of the lab: it has no physical addresses, and its threads are tasks,
which is what kgdb shows as well. (A dump that kdump took has not all that a running kernel has: where VMCOREINFO was,
there is the copy that the crash kernel kept.)
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.debuggers.case import Case, find_case
from tests.debuggers.conftest import IMPORT, SOURCE, Demo
from tests.debuggers.debugger import ROOT
from tests.debuggers.driver import Gdb, Lldb

MAP = "physical memory is read through the kernel's map of it at 0x"
NAME = "deb13-5level"


class Stub(NamedTuple):
    """A server that stands in for a machine's stub, for one debugger."""

    path: Path
    pid: int
    case: Case


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    """Return a server of a lab's dump."""
    case = find_case(NAME)
    path = tmp_path / "stub"
    words = [sys.executable, "-m", "kvm_dbg.cli", "serve", "--socket", str(path), *map(str, case.files)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert "ready" in json.loads(server.stdout.readline())
        yield Stub(path, server.pid, case)
        server.terminate()


def check(case: Case, stdout: str) -> None:
    """Hold the processes and the status that were printed as JSON against the guest's own word."""
    start = stdout.index("[\n")
    procs, end = json.JSONDecoder().raw_decode(stdout[start:])
    status = json.loads(stdout[stdout.index("{", start + end) :].partition("MARK")[0].partition("(lldb)")[0])
    named = {row["pid"]: row["command"].strip("[]").encode() for row in procs}
    steady = {pid: name for pid, name in case.names.items() if pid in case.truth.processes and name.isascii()}
    assert len(steady) > 50
    assert {pid: named.get(pid) for pid in steady} == steady
    assert (status["format"], status["open"]) == ("attached", True)
    assert any(quirk.startswith(MAP) for quirk in status["quirks"])


@pytest.mark.parametrize("named", [True, False])
def test_virtual_addresses_in_gdb(real: Gdb, stub: Stub, named: bool) -> None:
    attach = f"kvm attach --no-symbols {stub.case.vmlinux if named else ''}"
    lines = ["kvm procs --json", "kvm status --json", "echo MARK\\n", "kvm detach", "kvm procs", "info threads"]
    result = real.run([SOURCE, f"target remote {stub.path}", attach, *lines])
    check(stub.case, result.stdout)
    assert "no kernel image is open" in result.stderr
    assert '"kthreadd/2"' in result.stdout  # gdb is attached all the time


def test_virtual_addresses_in_lldb(real_lldb: Lldb, stub: Stub) -> None:
    lines = ["kvm procs --json", "kvm status --json", "script print('MARK')", "kvm detach", "thread list"]
    connect = f"process connect -p gdb-remote unix-connect://{stub.path}"
    result = real_lldb.run([IMPORT, connect, f"kvm attach --no-symbols {stub.case.vmlinux}", *lines])
    check(stub.case, result.stdout)
    assert "kthreadd/2" in result.stdout


def test_a_stub_that_ends(real: Gdb, stub: Stub) -> None:
    kill = f"python import os, time; os.kill({stub.pid}, 15); time.sleep(2)"
    lines = [f"kvm attach --no-symbols {stub.case.vmlinux}", kill, "kvm procs", "kvm procs", "kvm status"]
    result = real.run([SOURCE, f"target remote {stub.path}", *lines])
    assert "gdb could not ask the machine" in result.stderr
    assert "gdb is not attached to the machine any more; connect again, and `kvm attach`" in result.stderr
    assert result.stdout.rstrip().endswith("no kernel image is open")


def test_nothing_is_attached_to(real: Gdb) -> None:
    result = real.run([SOURCE, "kvm attach", "kvm detach"])
    assert "gdb is not attached to a machine: first `target remote`" in result.stderr
    assert "no kernel image is open" in result.stderr
    assert result.returncode == 1


def test_nothing_is_attached_to_in_lldb(real_lldb: Lldb) -> None:
    result = real_lldb.run([IMPORT, "kvm attach"])
    assert "lldb is not attached to a machine: first `gdb-remote`" in result.stderr


def test_a_process_is_no_machine(real: Gdb) -> None:
    result = real.run([SOURCE, "file /bin/true", "starti", "kvm attach"])
    assert "a process of this machine: there is no kernel to work on" in result.stderr


def test_an_image_is_no_machine(real: Gdb, demo: Demo) -> None:
    result = real.run(
        [SOURCE, f"kvm open --no-symbols {demo.vmlinux} {demo.vmcore}", "kvm attach", "kvm detach", "kvm loadavg"]
    )
    assert "gdb is attached to an opened image: `kvm close` it first" in result.stderr
    assert "an image is open, and no machine attached to" in result.stderr
    assert result.stdout.split()[-3:] == (ROOT / "sample" / "truth" / "loadavg").read_text().split()[:3]
