"""bt: which tasks, and how their frames are shown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvm_dbg import cli
from tests.unit.conftest import Little
from tests.writers.system import DATA, JOB, TEXT, USER

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, little: Little, *words: str, status: int = 0) -> str:
    assert cli.main(["bt", little.image, *words]) == status
    captured = capsys.readouterr()
    assert bool(captured.err) == bool(status), captured.err
    return captured.out


def ask(capsys: Capture, little: Little, *words: str) -> Any:
    return json.loads(run(capsys, little, *words, "--json"))


def tasks(rows: list[dict[str, Any]]) -> list[int]:
    """Return the thread ids in order, each once."""
    return list(dict.fromkeys(row["lwp"] for row in rows))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], [41]),
        (["-a"], [41, 0]),
        (["--cpus"], [41, 0]),
        (["--all"], [41, 0, 1, 2, 40, 43]),
        (["40"], [40, 43]),
        (["43"], [43]),
        (["2", "1"], [1, 2]),
        (["0"], [0]),
    ],
)
def test_the_tasks_that_are_asked_for(words: list[str], expected: list[int], little: Little, capsys: Capture) -> None:
    assert tasks(ask(capsys, little, *words)) == expected


def test_a_task_that_is_not_there(little: Little, capsys: Capture) -> None:
    assert cli.main(["bt", little.image, "1", "99", "--json"]) == 1
    captured = capsys.readouterr()
    assert tasks(json.loads(captured.out)) == [1]
    assert "no task with PID 99" in captured.err


@pytest.mark.parametrize("words", [["1", "--all"], ["1", "-a"], ["--all", "-a"]])
def test_questions_that_exclude_each_other(words: list[str], little: Little, capsys: Capture) -> None:
    assert cli.main(["bt", little.image, *words]) != 0
    assert "kvm-dbg" in capsys.readouterr().err


def test_the_fields_of_a_frame(little: Little, capsys: Capture) -> None:
    first, second, third, last = ask(capsys, little)
    assert first == {
        "pid": 41, "lwp": 41, "cpu": 0, "run": True, "name": "job", "frame": 0, "address": hex(TEXT + 0x40),
        "sp": hex(DATA + 0x300), "function": "handle", "offset": 0x10, "module": "ext", "stack": "IRQ",
        "how": "registers", "why": None, "registers": [], "task": hex(JOB.address), "file": None, "line": None,
        "inline": [], "locals": [],
    }  # fmt: skip
    assert second["registers"] == [f"rip={TEXT + 0x50:#x}", "cs=0x10"]
    assert third["why"].startswith("no row")
    assert (last["frame"], last["how"]) == (3, "scan")


def test_a_task_without_frames_says_why(little: Little, capsys: Capture) -> None:
    (row,) = ask(capsys, little, "43")
    assert row["frame"] is None
    assert row["why"].startswith("its registers are lost")


def test_as_text(little: Little, capsys: Capture) -> None:
    lines = run(capsys, little).splitlines()
    assert lines[0] == "PID 41  CPU 0  job  (registers of CPU 0)"
    assert [line.split() for line in lines[1:]] == [
        ["<IRQ>"],
        ["#0", hex(TEXT + 0x40), "handle+0x10", "[ext]", "registers"],
        ["<TASK>"],
        ["#1", hex(TEXT + 0x50), "work+0x4", "exception"],
        ["#2", hex(TEXT + 0x58), "call+0x8", "orc"],
        ["not", "sure", "beyond:", "no", "row\\x1b]0;owned\\x07\\u202e"],
        ["#3", hex(TEXT + 0x70), "?", "perhaps+0x30", "scan"],
    ]


def test_verbose_text_has_stack_pointers_and_registers(little: Little, capsys: Capture) -> None:
    text = run(capsys, little, "-v", "1")
    assert f"sp {DATA + 0x100:#x}" in text
    assert f"rip {USER:#018x}" in text
    assert "cs 0x0000000000000033" in text
    assert "cs 0x" not in run(capsys, little, "1")


def test_the_same_stacks_together(little: Little, capsys: Capture) -> None:
    groups = ask(capsys, little, "--all", "--group")
    assert [group["count"] for group in groups] == [2, 1, 1, 1, 1]
    assert groups[0]["tasks"][0] == "init/1"
    assert groups[0]["tasks"][1].endswith("/40")
    assert groups[0]["frames"] == ["schedule+0x20", "user space"]
    assert groups[1]["frames"] == ["handle+0x10 [ext]", "work+0x4", "call+0x8", "? perhaps+0x30"]
    assert groups[1]["why"].startswith("no row")
    assert groups[4]["why"].startswith("its registers are lost")
    text = run(capsys, little, "--all", "--group")
    assert "2 tasks\n  init/1, sh" in text
    assert "1 task\n" in text
    assert "no frames: its registers are lost" in text
