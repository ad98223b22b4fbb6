"""Commands that are watched: blocks of lines, of JSON and CSV, and the screen in a terminal."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kvm_dbg.commands import COMMANDS, find_command
from kvm_dbg.commands.parser import CommandParser
from kvm_dbg.commands.run import run_line
from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.commands.top import Reading, shares_of_life, shares_since
from kvm_dbg.commands.watch import watch
from kvm_dbg.errors import CommandError, UsageError
from kvm_dbg.kernel.base import Process
from tests.unit.conftest import Little
from tests.unit.test_cli import child_environment
from tests.writers.system import INIT, LOST, PROCESSES, SHELL, SUMMARY, MovingSystem, write_ram

PROGRAM = [sys.executable, "-m", "tests.writers.system", "--moving"]
SECONDS = 60


@pytest.fixture
def ram(little: Little, tmp_path: Path) -> Path:
    little.entry.system = MovingSystem()
    return Path(write_ram(tmp_path / "ram"))


@pytest.fixture
def session(ram: Path) -> Iterator[Session]:
    session = Session()
    session.open(OpenRequest((str(ram),), live=True))
    yield session
    session.close()


def blocks(session: Session, line: str) -> list[str]:
    return list(run_line(session, line))


def test_each_look_is_a_block_with_its_time(session: Session) -> None:
    found = blocks(session, "loadavg --watch 0.05 --count 3")
    assert len(found) == 3
    for number, block in enumerate(found, 1):
        stamp, line, empty = block.split("\n")[:3]
        assert datetime.now(UTC) - datetime.fromisoformat(stamp) < timedelta(minutes=1)
        assert (line, empty) == (f"{number}.00 1.25 12.00", "")


def test_json_is_an_object_on_a_line(session: Session) -> None:
    found = [json.loads(block) for block in blocks(session, "loadavg --watch 0.05 --count 2 --json")]
    assert [one["rows"][0]["load1"] for one in found] == [1.0, 2.0]
    assert all(set(one) == {"time", "rows"} for one in found)
    one = json.loads("".join(blocks(session, "procs --watch 0.05 --count 1 --json")))
    assert [row["pid"] for row in one["rows"]] == [process.pid for process in PROCESSES]


def test_csv_has_one_heading(session: Session) -> None:
    rows = list(csv.reader("".join(blocks(session, "loadavg --watch 0.05 --count 2 --csv")).splitlines()))
    assert rows[0][:2] == ["time", "load1"]
    assert [row[1] for row in rows[1:]] == ["1.0", "2.0"]


def test_what_waits_says_when_it_is_enough(session: Session) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) < 3

    command = find_command("loadavg")
    args = CommandParser(command).parse_args([])
    assert len(list(watch(session, command, args, 100.0, wait))) == 3
    assert len(waits) == 3
    assert all(0 < seconds <= 100 for seconds in waits)


def test_a_dump_is_not_watched(little: Little) -> None:
    session = Session()
    session.open(OpenRequest((little.image,)))
    with pytest.raises(CommandError, match="is a dump, which does not change: --watch is for a kernel that runs"):
        blocks(session, "procs --watch")
    with pytest.raises(CommandError, match="--count is of looks"):
        blocks(session, "procs --count 3")
    session.close()


@pytest.mark.parametrize("words", ["--watch 0", "--watch never", "--watch nan", "--count 0 --watch", "--count -1"])
def test_impossible_intervals_and_counts(session: Session, words: str) -> None:
    with pytest.raises(UsageError):
        blocks(session, f"procs {words}")


def test_what_can_be_watched() -> None:
    found = {command.name for command in COMMANDS if command.watchable}
    assert found == {"procs", "lwps", "files", "vm", "loadavg", "top", "mods", "read", "sys"}


def processes(**times: float | None) -> list[Process]:
    return [
        SHELL._replace(pid=int(pid[1:]), user_time=used, system_time=None, start_time=100.0)
        for pid, used in times.items()
    ]


def test_shares_are_of_the_time_between_two_readings() -> None:
    before, now = (
        Reading(processes(p1=1.0, p2=5.0, p4=1.0, p5=None)),
        Reading(processes(p1=2.5, p2=5.0, p3=0.5, p4=None)),
    )
    now.at = before.at + 2.0
    assert shares_since(before, now) == {1: 75.0, 2: 0.0, 3: 25.0, 4: None}
    again = Reading([one._replace(start_time=200.0) for one in processes(p1=0.5)])  # another process of that number
    again.at = before.at + 2.0
    assert shares_since(before, again) == {1: 25.0}
    assert shares_of_life(now, 110.0) == {1: 25.0, 2: 50.0, 3: 5.0, 4: None}
    assert shares_of_life(now, None) == {1: None, 2: None, 3: None, 4: None}


def test_top_sorts_by_what_was_used(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvm_dbg.commands.top.FIRST_WAIT", 0.05)
    found = blocks(session, "top --count 2 --watch 0.05 --limit 2")
    for block in found:
        lines = block.splitlines()
        assert lines[1] == "load 0.50 1.25 12.00; 6 processes: 1 I, 1 R, 3 S, 1 Z"
        assert lines[2] == "memory 64.0 MiB"
        assert lines[3].split() == ["PID", "UID", "STAT", "PCPU", "TIME", "RSS", "THREADS", "COMMAND"]
        assert lines[4].split()[::7] == ["1", "init"]
        assert float(lines[4].split()[3]) > 10
        assert len([line for line in lines[4:] if line]) == 2
    assert len(found) == 2
    rows = json.loads("".join(blocks(session, "top --count 1 --json --limit 0")))["rows"]
    assert len(rows) == len(PROCESSES)


def test_top_of_a_dump_is_of_whole_lives(little: Little) -> None:
    session = Session()
    session.open(OpenRequest((little.image,)))
    rows = json.loads("".join(blocks(session, "top --json")))
    assert SUMMARY.date is not None
    assert INIT.start_time is not None
    share = 100 * 3.75 / (SUMMARY.date - INIT.start_time)
    assert {row["pid"]: row["pcpu"] for row in rows}[1] == round(share, 1)
    assert {row["pid"]: row["pcpu"] for row in rows}[LOST.pid] is None
    assert "note: a dump does not change" in "".join(blocks(session, "top"))
    little.system.broken.add("processes")
    assert "leads nowhere" in "".join(blocks(session, "top"))
    session.close()


# The program


def test_in_a_pipe_until_interrupted(ram: Path) -> None:
    words = [*PROGRAM, "loadavg", "--live", str(ram), "--watch", "0.1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment()) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        seen = b""
        while seen.count(b"1.25 12.00") < 3:
            seen += os.read(child.stdout.fileno(), 4096)
        child.send_signal(signal.SIGINT)
        assert child.wait(SECONDS) == 130
        assert child.stderr.read() == b"kvm-dbg: interrupted\n"
    assert b"1.00 1.25" in seen
    assert b"3.00 1.25" in seen


def on_screen(words: list[str], stop: Callable[[int, int], object]) -> tuple[int, str, list[int]]:
    """Run a command in a terminal, and call `stop(pid, terminal)` after three looks.

    Return its status, what it showed, and the terminal's settings before and after.
    """
    terminal, inner = pty.openpty()
    before = _flags(inner)
    with subprocess.Popen(
        [*PROGRAM, *words],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env=child_environment(TERM="xterm", LINES="24", COLUMNS="80"),
        start_new_session=True,
    ) as child:
        shown = b""
        end = time.monotonic() + SECONDS
        stopped = False
        while child.poll() is None and time.monotonic() < end:
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 65536)
            if len(set(re.findall(rb"(\d+)\.00 1\.25 12\.00", shown))) >= 3 and not stopped:
                stopped = True
                stop(child.pid, terminal)
        while select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65536)
        child.kill()
        after = _flags(inner)
    os.close(terminal)
    os.close(inner)
    return child.returncode, shown.decode(), [before, after]


def _flags(terminal: int) -> int:
    import termios

    return int(termios.tcgetattr(terminal)[3])


@pytest.mark.parametrize(
    "stop",
    [lambda _, terminal: os.write(terminal, b"q"), lambda pid, _: os.kill(pid, signal.SIGINT)],
    ids=["q", "interrupt"],
)
def test_a_screen_shows_changing_numbers_and_leaves_the_terminal_as_it_was(
    ram: Path, stop: Callable[[int, int], object]
) -> None:
    status, shown, (before, after) = on_screen(["loadavg", "--live", str(ram), "--watch", "0.1"], stop)
    assert status == 0, shown
    assert shown.index("\x1b[?1049h") < shown.index("1.00 1.25") < shown.index("3.00 1.25") < shown.index("\x1b[?1049l")
    assert "q: quit" in shown
    assert before == after


def test_top_fills_a_screen(ram: Path) -> None:
    status, shown, _ = on_screen(
        ["top", "--live", str(ram), "--watch", "0.1", "--count", "2"], lambda _pid, _terminal: None
    )
    assert status == 0, shown
    assert shown.count("PCPU") == 2
    assert "init" in shown


def test_an_error_is_said_after_the_screen(ram: Path) -> None:
    status, shown, (before, after) = on_screen(
        ["vm", "--live", str(ram), "99", "--watch", "0.1"], lambda _pid, _terminal: None
    )
    assert status == 1
    assert "no process" in shown[shown.index("\x1b[?1049l") :]
    assert before == after
