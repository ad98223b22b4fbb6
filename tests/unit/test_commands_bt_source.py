"""bt: source lines, lines of source files with and without colours, and variables."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvm_dbg import cli
from kvm_dbg.commands.run import run_line
from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.debuginfo.base import IntType
from kvm_dbg.debuginfo.value import Value
from kvm_dbg.errors import FormatError, KvmDbgError
from kvm_dbg.kernel.base import Frame, SourcePlace, Thread, Variable
from tests.unit.conftest import Little
from tests.writers.system import DATA, ESCAPE, TEXT

Capture = pytest.CaptureFixture[str]
INT = IntType("int", 4, signed=True)
CODE = ["int f(void)", "{", "\treturn 1; /* one", "\ttwo */", f"}} // {ESCAPE}"]


def at(line: int, function: str | None = "work", *, file: str = "kernel/job.c", inlined: bool = False) -> SourcePlace:
    return SourcePlace(function, file, f"/build/little/{file}", line, 3, inlined)


class LittleSource:
    """Knows the source of three frames of the job; the fourth is damaged."""

    def __init__(self, memory: Any = None) -> None:
        self.memory = memory

    def places(self, frame: Frame) -> Sequence[SourcePlace]:
        if frame.how == "scan":
            raise FormatError("vmlinux", 0x77, ".debug_line", "a line program is cut off")
        return {
            TEXT + 0x40: [at(3, "deep", inlined=True), at(20, f"mid{ESCAPE}", file="include/m.h", inlined=True), at(2)],
            TEXT + 0x50: [at(4)],
            TEXT + 0x58: [SourcePlace("call", None, None, 0, 0, False)],
        }.get(frame.pc, [])

    def variables(self, thread: Thread, frames: Sequence[Frame], number: int) -> Sequence[Sequence[Variable]]:
        if frames[number].pc == TEXT + 0x40:
            five = Value(self.memory, INT, 0, "little", b"\5\0\0\0")
            return [[Variable("x", five)], [Variable("y", None, "optimized out")], []]
        if frames[number].pc == TEXT + 0x50:
            return [[Variable(f"z{ESCAPE}", None, "unknown: needs rbx")]]
        return [[]]


@pytest.fixture
def sourced(little: Little) -> Little:
    little.system.source = LittleSource()
    return little


def run(capsys: Capture, little: Little, *words: str) -> str:
    assert cli.main(["bt", little.image, *words]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def below(text: str, number: int) -> list[str]:
    """Return the lines below a frame, up to the next frame or stack."""
    lines = iter(text.splitlines())
    next(line for line in lines if line.startswith(f" #{number} "))
    found = []
    for line in lines:
        if line.startswith((" #", " <")):
            break
        found.append(line.strip())
    return found


def test_lines_and_inlined_functions(sourced: Little, capsys: Capture) -> None:
    text = run(capsys, sourced)
    assert below(text, 0) == [
        "at kernel/job.c:3 in deep (inlined)",
        "at include/m.h:20 in mid\\x1b]0;owned\\x07\\u202e (inlined)",
        "at kernel/job.c:2",
    ]
    assert below(text, 1) == ["at kernel/job.c:4"]
    assert below(text, 2)[0].startswith("not sure beyond")
    assert text.count("note: not all of the source is known: vmlinux") == 1
    assert "a line program is cut off" in text


def test_lines_of_many_tasks_only_if_asked_for(sourced: Little, capsys: Capture) -> None:
    for words in (["--all"], ["--cpus"], ["--all", "--group"]):
        assert "kernel/job.c" not in run(capsys, sourced, *words)
        assert "at kernel/job.c:4" in run(capsys, sourced, *words, "--lines")


def test_columns(sourced: Little, capsys: Capture) -> None:
    rows = json.loads(run(capsys, sourced, "--locals", "--json"))
    assert (rows[0]["file"], rows[0]["line"]) == ("kernel/job.c", 3)
    assert rows[0]["inline"] == ["deep include/m.h:20", f"mid{ESCAPE} kernel/job.c:2"]
    assert rows[0]["locals"] == ["deep: x = 5", f"mid{ESCAPE}: y = <optimized out>"]
    assert rows[1]["locals"] == [f"z{ESCAPE} = <unknown: needs rbx>"]
    for row in rows[2:]:
        assert (row["file"], row["line"], row["inline"], row["locals"]) == (None, None, [], [])


def test_variables_as_text(sourced: Little, capsys: Capture) -> None:
    text = run(capsys, sourced, "--locals")
    assert below(text, 0)[:3] == ["at kernel/job.c:3 in deep (inlined)", "x = 5", below(text, 0)[2]]
    assert below(text, 0)[3] == "y = <optimized out>"
    assert below(text, 1) == ["at kernel/job.c:4", "z\\x1b]0;owned\\x07\\u202e = <unknown: needs rbx>"]


def test_without_debug_information(little: Little, capsys: Capture) -> None:
    assert " at " not in run(capsys, little)
    for word in ("--lines", "--locals", "--source"):
        assert cli.main(["bt", little.image, word]) == 1
        assert "vmlinux with debug information" in capsys.readouterr().err


def test_damaged_debug_information(little: Little, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(kernel: object, find_file: object) -> None:
        raise FormatError("vmlinux", 1, ".debug_aranges", "a set of ranges does not fit")

    monkeypatch.setattr(little.system, "open_source_reader", damaged)
    assert "note: no source lines: vmlinux" in run(capsys, little)
    assert cli.main(["bt", little.image, "--lines"]) == 1
    assert "a set of ranges does not fit" in capsys.readouterr().err


def write_source(folder: Path) -> Path:
    (folder / "kernel").mkdir(parents=True)
    (folder / "kernel" / "job.c").write_text("\n".join(CODE) + "\n")
    return folder


def test_source_lines(sourced: Little, capsys: Capture, tmp_path: Path) -> None:
    tree = write_source(tmp_path / "tree")
    text = run(capsys, sourced, "--source", "3", "--source-dir", str(tree))
    assert below(text, 1) == [
        "at kernel/job.c:4",
        "3          return 1; /* one",
        ">     4          two */",
        "5  } // \\x1b]0;owned\\x07\\u202e",
    ]
    assert below(text, 0)[1:4] == ["2  {", ">     3          return 1; /* one", "4          two */"]
    assert "note: the source file include/m.h was not found" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(("count", "numbers"), [(1, [4]), (2, [4, 5]), (4, [2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_how_many_lines(count: int, numbers: list[int], sourced: Little, capsys: Capture, tmp_path: Path) -> None:
    tree = write_source(tmp_path / "tree")
    shown = below(run(capsys, sourced, "-s", str(count), "--source-dir", str(tree)), 1)[1:]
    assert [int(line.lstrip("> ").split()[0]) for line in shown] == numbers


def test_an_option_that_may_have_a_number_leaves_the_image_alone(sourced: Little, capsys: Capture) -> None:
    for words in (["-s", sourced.image], ["-s", "2", sourced.image], [sourced.image, "-s"]):
        assert cli.main(["bt", *words]) == 0
        assert below(capsys.readouterr().out, 1) == ["at kernel/job.c:4"]


def test_paths_are_substituted(sourced: Little, capsys: Capture, tmp_path: Path) -> None:
    tree = write_source(tmp_path / "tree")
    assert ">     4" in run(capsys, sourced, "-s", "--source-dir", f"/build/little={tree}")
    assert ">     4" not in run(capsys, sourced, "-s", "--source-dir", f"/build/lit={tree}")


def test_a_source_of_another_version(sourced: Little, capsys: Capture, tmp_path: Path) -> None:
    tree = write_source(tmp_path / "tree")
    (tree / "kernel" / "job.c").write_text("short\n")
    assert "note: kernel/job.c has 1 lines, and not 4" in run(capsys, sourced, "-s", "--source-dir", str(tree))


def test_names_that_lead_out_of_the_directory(little: Little, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "secret").write_text("a secret\n")
    place = SourcePlace("f", "../secret", "x/../../secret", 1, 0, False)

    class Leading(LittleSource):
        def places(self, frame: Frame) -> Sequence[SourcePlace]:
            return [place]

    little.system.source = Leading()
    text = run(capsys, little, "-s", "--source-dir", str(tmp_path / "tree"))
    assert "a secret" not in text
    assert "was not found" in text


@pytest.mark.parametrize(
    "words", [["-s", "0"], ["-s", "--source-dir", "/nonexistent"], ["-s", "--source-dir", "a=/nonexistent"]]
)
def test_wrong_arguments(words: list[str], sourced: Little, capsys: Capture) -> None:
    assert cli.main(["bt", sourced.image, *words]) == 1
    assert capsys.readouterr().out == ""


@pytest.fixture
def session(sourced: Little) -> Iterator[Session]:
    session = Session()
    session.open(OpenRequest((sourced.image,)))
    yield session
    session.close()


def test_colours_only_where_they_are_wanted(session: Session, tmp_path: Path) -> None:
    line = f"bt -s --source-dir {write_source(tmp_path / 'tree')}"
    plain = "".join(run_line(session, line))
    assert "\x1b" not in plain
    session.color = True
    colored = "".join(run_line(session, line))
    assert "\x1b[" in colored
    assert "\x1b]" not in colored  # what was in the source file is made safe all the same
    for output in ("--json", "--csv"):
        assert "\x1b" not in "".join(run_line(session, f"{line} {output}"))
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain


@pytest.mark.parametrize(
    ("environment", "terminal", "paged", "expected"),
    [
        ({}, True, False, True),
        ({}, False, False, False),
        ({"NO_COLOR": "1"}, True, False, False),
        ({"NO_COLOR": ""}, True, False, True),
        ({"TERM": "dumb"}, True, False, False),
        ({}, True, True, True),
        ({"PAGER": "more"}, True, True, False),
        ({"PAGER": ""}, True, True, True),
        ({"LESS": "FX"}, True, True, False),
        ({"LESS": "-R"}, True, True, True),
        ({"PAGER": "less -R", "LESS": "F"}, True, True, True),
    ],
)
def test_who_gets_colours(
    environment: dict[str, str], terminal: bool, paged: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "PAGER", "LESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    master, slave = os.openpty()
    with open(slave if terminal else os.devnull, "w") as output:
        monkeypatch.setattr("sys.stdout", output)
        assert cli.wants_color(paged=paged) is expected
    os.close(master)
    if not terminal:
        os.close(slave)


def test_a_value_that_cannot_be_read_costs_itself_only(little: Little, capsys: Capture) -> None:
    class Lost(LittleSource):
        def variables(self, thread: Thread, frames: Sequence[Frame], number: int) -> Sequence[Sequence[Variable]]:
            memory = self.memory
            if number == 1:
                raise FormatError("vmlinux", 5, ".debug_loclists", "a number is cut off")
            return [[Variable("here", Value(memory, INT, DATA)), Variable("gone", Value(memory, INT, 0x1000))]]

    session = Session()
    session.open(OpenRequest((little.image,)))
    little.system.source = Lost(session.kernel)
    text = "".join(run_line(session, "bt --locals"))
    session.close()
    number = int.from_bytes(b"Litt", "little")
    assert below(text, 0)[1:3] == [f"here = {number}", "gone = <not in the image>"]
    assert "a number is cut off" in text
    assert issubclass(FormatError, KvmDbgError)
