"""Colours are for people at terminals: none in pipes, in files, or where NO_COLOR is set, in gdb, lldb and kvm-dbg."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.debuggers.child import TIMEOUT
from tests.debuggers.conftest import IMPORT, SOURCE, Demo
from tests.debuggers.debugger import ROOT
from tests.debuggers.driver import Gdb, Lldb

MARK = "a line of the source"
COLOR = "\x1b["
PROGRAM = [sys.executable, "-m", "kvm_dbg.cli"]


@pytest.fixture(scope="module")
def tree(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with source files for the demo's panicking task, each line a comment of C."""
    words = [*PROGRAM, "bt", str(demo.vmlinux), str(demo.vmcore), "--json"]
    answer = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, timeout=TIMEOUT)
    folder = tmp_path_factory.mktemp("tree")
    for row in json.loads(answer.stdout):
        if row["file"] is not None and not row["file"].startswith("/"):
            path = folder / row["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"int x; /* {MARK} */\n" * 20_000)
    return folder


def environment(base: dict[str, str], **more: str) -> dict[str, str]:
    kept = {name: value for name, value in base.items() if name not in ("NO_COLOR", "LESS", "PAGER")}
    return kept | {"TERM": "xterm", "PAGER": ""} | more


def in_terminal(words: list[str], env: dict[str, str]) -> str:
    """Return what a program prints in a terminal of its own, without waiting for any key."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (50, 200))  # lldb takes none without a size for a terminal
    child = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=env, cwd=ROOT, start_new_session=True)
    os.close(slave)
    output, end = b"", time.monotonic() + TIMEOUT
    try:
        while time.monotonic() < end:
            if not select.select([master], [], [], 1)[0]:
                continue
            try:
                data = os.read(master, 1 << 16)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            output += data
        child.wait(TIMEOUT)
    finally:
        child.kill()
        child.wait()
        os.close(master)
    return output.decode("utf-8", "replace")


def marked(text: str) -> list[str]:
    """Return the lines of the source in an output; there must be some."""
    found = [line for line in text.splitlines() if MARK in line]
    assert found, text
    return found


def test_the_program(demo: Demo, tree: Path) -> None:
    words = [*PROGRAM, "bt", str(demo.vmlinux), str(demo.vmcore), "-s", "3", "--source-dir", str(tree)]
    env = environment(dict(os.environ))
    assert all(COLOR in line for line in marked(in_terminal(words, env)))
    assert COLOR not in in_terminal(words, env | {"NO_COLOR": "1"})
    piped = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, check=True, text=True, timeout=TIMEOUT)
    assert COLOR not in "".join(marked(piped.stdout))


def test_gdb(real: Gdb, demo: Demo, tree: Path) -> None:
    bt = f"kvm bt -s 3 --source-dir {tree}"
    start = [
        real.program,
        "-nx",
        "-q",
        "-ex",
        "set confirm off",
        "-ex",
        "set pagination off",
        "-ex",
        "set width 0",
        "-ex",
        SOURCE,
    ]
    start += ["-ex", f"kvm open {demo.vmlinux} {demo.vmcore}"]
    end = ["-ex", "kvm close", "-ex", "quit"]
    env = environment(real.env)
    assert all(COLOR in line for line in marked(in_terminal([*start, "-ex", bt, *end], env)))
    plain = (
        [*start, "-ex", "set style enabled off", "-ex", bt, *end],
        [*start, "-ex", f"pipe {bt} | cat", *end],
        [*start, "-ex", f"python print(gdb.execute({bt!r}, to_string=True))", *end],
    )
    for words in plain:
        assert all(COLOR not in line for line in marked(in_terminal(words, env)))
    assert all(COLOR not in line for line in marked(in_terminal([*start, "-ex", bt, *end], env | {"NO_COLOR": "1"})))
    batch = real.run([SOURCE, f"kvm open {demo.vmlinux} {demo.vmcore}", bt])
    assert COLOR not in "".join(marked(batch.stdout))


def test_lldb(real_lldb: Lldb, demo: Demo, tree: Path) -> None:
    bt = f"kvm bt -s 3 --source-dir {tree}"
    words = [real_lldb.program, "--no-lldbinit", "-o", IMPORT, "-o", f"kvm open {demo.vmlinux} {demo.vmcore}"]
    words += ["-o", bt, "-o", "kvm close", "-o", "quit"]
    env = environment(real_lldb.env)
    assert all(COLOR in line for line in marked(in_terminal(words, env)))
    assert all(COLOR not in line for line in marked(in_terminal(words, env | {"NO_COLOR": "1"})))
    piped = subprocess.run(
        words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL
    )
    assert COLOR not in "".join(marked(piped.stdout))
