"""Core files that `gcore` writes, opened by each gdb."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.debuggers.conftest import Demo
from tests.debuggers.debugger import ROOT
from tests.debuggers.driver import Gdb

PROCESSES = json.loads((ROOT / "sample" / "truth" / "processes.json").read_text())


@pytest.fixture(scope="module")
def cores(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return core files of some of the demo's processes."""
    folder = tmp_path_factory.mktemp("cores")
    return {name: write(demo, name, folder / f"{name}.core") for name in ("statue", "catalogue")}


def kvm_dbg(demo: Demo, command: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "kvm_dbg.cli", command, demo.vmlinux, demo.vmcore, *words]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


def write(demo: Demo, name: str, path: Path) -> Path:
    rows = json.loads(kvm_dbg(demo, "procs", "--json").stdout)
    [pid] = [row["pid"] for row in rows if row["command"] == name]
    done = kvm_dbg(demo, "gcore", str(pid), path, "--json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["remarks"] == []
    assert answer["size"] == path.stat().st_size
    return path


def stat(name: str) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name, the first being the third of proc(5)."""
    [line] = [one["stat"] for one in PROCESSES.values() if f"({name})" in one["stat"]]
    return str(line).rpartition(") ")[2].split()


def test_a_stopped_process(gdb: Gdb, cores: dict[str, Path]) -> None:
    start = int(stat("statue")[45])  # arg_start
    commands = [
        f"core-file {cores['statue']}",
        "info threads",
        'printf "%#lx %#lx %#x %#x\\n", $rip, $rsp, $cs, $ss',
        f'printf "<%s>\\n", (char *) {start}',
        "info auxv",
        "info proc mappings",
        "x/1bx 0x400000",
    ]
    done = gdb.run(commands)
    assert "* 1    LWP 53" in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.startswith("0x") and line.endswith("0x33 0x2b"))
    rip, rsp = (int(word, 16) for word in line.split()[:2])
    code, stack = (int(stat("statue")[at]) for at in (23, 25))  # start_code, start_stack
    assert code <= rip < int(stat("statue")[24])
    assert stack - 132 * 1024 < rsp < stack
    assert "<parent>" in done.stdout  # its arguments are those of the process that forked it
    assert '"/bin/parent"' in done.stdout
    mapped = [line.split() for line in done.stdout.splitlines() if line.rstrip().endswith("/bin/zoo")]
    said = next(one["maps"] for one in PROCESSES.values() if "(statue)" in one["stat"])
    assert [int(row[0], 16) for row in mapped] == [int(row[:8], 16) for row in said if row.endswith("/bin/zoo")]
    # never zeros for what the dump lacks
    assert "Cannot access memory at address 0x400000" in done.stderr or "0x400000:\t<unavailable>" in done.stdout


def test_all_threads(gdb: Gdb, cores: dict[str, Path]) -> None:
    threads = next(one["threads"] for one in PROCESSES.values() if "(catalogue)" in one["stat"])
    bases = 'thread apply all printf "base %#lx\\n", $fs_base'
    done = gdb.run([f"core-file {cores['catalogue']}", "info threads", bases])
    for thread in threads:
        assert f"LWP {thread.split()[0]} " in done.stdout
    shown = [line for line in done.stdout.splitlines() if line.startswith("base 0x")]
    assert len(set(shown)) == len(threads) == 4  # each thread has its own


def test_an_existing_file_is_left_alone(demo: Demo, cores: dict[str, Path]) -> None:
    before = cores["statue"].read_bytes()
    done = kvm_dbg(demo, "gcore", "53", cores["statue"])
    assert done.returncode == 1
    assert "File exists" in done.stderr
    assert cores["statue"].read_bytes() == before


def test_no_core_of_what_has_no_memory(demo: Demo, tmp_path: Path) -> None:
    for pid, why in (("2", "a kernel thread"), ("52", "gone"), ("4000", "no process")):
        done = kvm_dbg(demo, "gcore", pid, tmp_path / "core")
        assert done.returncode == 1
        assert why in done.stderr
        assert not (tmp_path / "core").exists()
