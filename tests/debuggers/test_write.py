"""Writing into a kernel that runs, in a terminal: the question, and what the debugger writes by itself."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debuggers.child import TIMEOUT
from tests.debuggers.debugger import DEBUGGERS, Found, Missing, clean_environment, find
from tests.writers.system import DATA, write_ram

ROOT = Path(__file__).parents[2]
COUNTER = DATA + 64
PLACE = 0x201000 + 64  # of it in the RAM


class Terminal:
    """A debugger in a terminal; a context manager that ends it."""

    def __init__(self, words: list[str], prompt: str, environment: dict[str, str]) -> None:
        self._prompt = prompt
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.execvpe(words[0], words, environment)
        self._read([prompt])

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._terminal)

    def say(self, line: str) -> str:
        """Type a line; return what is shown up to the next prompt, or the question that it is asked."""
        os.write(self._terminal, line.encode() + b"\n")
        return self._read([self._prompt, "[y/N] "])

    def _read(self, ends: list[str]) -> str:
        shown = ""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            quiet = not select.select([self._terminal], [], [], 0.5)[0]
            if quiet and any(_plain(shown).endswith(end) for end in ends):
                return _plain(shown)
            if not quiet:
                shown += os.read(self._terminal, 1 << 16).decode(errors="replace")
        raise AssertionError(f"no prompt in time: {shown}")


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r", "", text)


@pytest.fixture(params=[debugger.name for debugger in DEBUGGERS])
def found(request: pytest.FixtureRequest) -> Found:
    debugger = find(next(one for one in DEBUGGERS if one.name == request.param))
    if isinstance(debugger, Missing):
        pytest.skip(debugger.reason)
    return debugger


@pytest.fixture
def ram(tmp_path: Path) -> Path:
    return Path(write_ram(tmp_path / "ram"))


@pytest.fixture
def terminal(found: Found, tmp_path: Path) -> Iterator[Terminal]:
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nshift 2\ncd {ROOT} && exec {sys.executable} -m tests.writers.system "$@"\n')
    program.chmod(0o755)
    environment = {**clean_environment(tmp_path), "KVM_DBG_PYTHON": str(program)}
    if found.debugger.kind == "gdb":
        words = [found.program, "-nx", "-q", "-ex", f"source {ROOT}/gdb/kvm_dbg_gdb.py"]
    else:
        words = [found.program, "--no-lldbinit", "-X", "-o", f"command script import {ROOT}/lldb/kvm_dbg_lldb.py"]
    with Terminal(words, f"({found.debugger.kind}) ", environment) as opened:
        yield opened


def byte(ram: Path) -> int:
    return ram.read_bytes()[PLACE]


def own(found: Found, value: int) -> str:
    """Return the debugger's own command to write one byte."""
    if found.debugger.kind == "gdb":
        return f"set var *(char *){COUNTER:#x} = {value}"
    return f"memory write -s 1 {COUNTER:#x} {value:#x}"


def test_the_first_write_asks_and_the_debuggers_own_wait_for_it(found: Found, terminal: Terminal, ram: Path) -> None:
    terminal.say(f"kvm open --live --write --no-symbols {ram}")
    text = terminal.say(own(found, 5))
    assert "nobody has agreed yet to writes into the running kernel 1.0-little" in text
    assert "`kvm write --allow` asks" in text
    assert f"Write 8 bytes to the running kernel 1.0-little in {ram} at counter+0x0 ({COUNTER:#x})?" in terminal.say(
        "kvm write counter 6"
    )
    assert "not written: the answer was no" in terminal.say("n")
    assert byte(ram) == 0
    assert terminal.say("kvm write counter 6").endswith("[y/N] ")
    assert "written into the running kernel itself" in terminal.say("y")
    assert byte(ram) == 6
    terminal.say(own(found, 7))
    assert byte(ram) == 7
    terminal.say("kvm write --undo")
    assert byte(ram) == 6
    assert terminal.say("kvm write counter 8").endswith(f"({found.debugger.kind}) ")
    assert byte(ram) == 8


def test_agreeing_beforehand(found: Found, terminal: Terminal, ram: Path) -> None:
    terminal.say(f"kvm open --live --write --no-symbols {ram}")
    assert f"Let the running kernel in {ram} be written to?" in terminal.say("kvm write --allow")
    terminal.say("y")
    terminal.say(own(found, 9))
    assert byte(ram) == 9
