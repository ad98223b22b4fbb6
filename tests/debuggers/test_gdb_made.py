"""gdb on real dumps without any kernel file: symbols and unwind rules are made from the image.

What is expected is the guest's own word: /proc/PID/task/TID/stack, /proc/kallsyms, and the call trace on its console;
where it has none, `kvm bt`, which the golden tests and those of peers compare with others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.rsp.target import IDLE_BASE
from tests.debuggers.conftest import SOURCE
from tests.debuggers.driver import Gdb
from tests.golden.subject import Subject, find_subject

SCENARIOS = ("deb11-4level", "deb12-panic", "deb13-kdump", "bpo13-5level")  # each kernel once
FRAMES = """
import gdb, json

def frames():
    found = []
    frame = gdb.newest_frame()
    while frame is not None and len(found) < 100:
        found.append([frame.name(), frame.pc(), frame.unwind_stop_reason() == gdb.FRAME_UNWIND_OUTERMOST])
        frame = frame.older()
    return found

def all_threads():
    found = {}
    for thread in gdb.selected_inferior().threads():
        thread.switch()
        known = str(gdb.parse_and_eval("$pc")) != "<unavailable>"
        found[thread.ptid[1]] = frames() if known else []
    return found
"""
INSTRUCTION = re.compile(r"^\s*(?:=> )?0x[0-9a-f]+ <(?:\w+)?\+?\d*>:\s+(\S.*)$", re.MULTILINE)


@pytest.fixture(params=SCENARIOS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return find_subject(request.param)


def evaluate(gdb: Gdb, files: str, folder: Path, expression: str, *commands: str) -> Any:
    """Return the value of a Python expression inside gdb, after `commands`."""
    script = folder / "frames.py"
    script.write_text(FRAMES)
    value = f"python print('value:' + json.dumps({expression}))"
    result = gdb.run([SOURCE, f"kvm open {files}", *commands, f"source {script}", value])
    assert result.returncode == 0, result.stderr
    assert "made from the image\n" in result.stderr
    return json.loads(result.stdout.rpartition("value:")[2])


def image_of(subject: Subject) -> str:
    return " ".join(map(str, subject.dump.files[subject.kind].paths))


def stacks_of(subject: Subject) -> Iterator[tuple[int, list[tuple[int, str | None]]]]:
    """Yield gdb's number of each task, and its stack as `kvm bt` has it, without guesses."""
    session = Session()
    session.open(OpenRequest(tuple(map(str, subject.dump.files[subject.kind].paths))))
    for thread in session.system.for_each_thread(session.kernel):
        tid = thread.lid or IDLE_BASE + (thread.cpu or 0)
        frames = session.system.unwind(session.kernel, thread)
        yield tid, [(frame.pc, frame.name) for frame in frames if frame.how != "scan"]
    session.close()


def shown(name: str | None) -> str | None:
    """Return a name as gdb shows it: what follows a dot and is a number is Ada's to gdb, and no part of the name."""
    return name and re.sub(r"\.\d+$", "", name)


def test_backtraces_of_all_tasks_are_those_of_bt(real: Gdb, subject: Subject, tmp_path: Path) -> None:
    threads = evaluate(real, image_of(subject), tmp_path, "all_threads()")
    expected = dict(stacks_of(subject))
    assert len(threads) == len(expected) > 100
    for tid, stack in expected.items():
        found = [(pc, name) for name, pc, _ in threads[str(tid)]]
        assert found == [(pc, shown(name)) for pc, name in stack], tid
        if found:
            assert threads[str(tid)][-1][2], "gdb was told that nobody called the last frame"
