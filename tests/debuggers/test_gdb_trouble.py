"""Servers that are killed or stopped and gdbs that go away, on the demo's real dump: one error, nothing left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.debuggers.conftest import ADAPTER, SOURCE, Demo
from tests.debuggers.driver import Gdb
from tests.debuggers.mi import MiClient, MiError

GONE_SECONDS = 2.0  # that a server may outlive its gdb
LONG_COMMAND = "kvm read 0xffffffff80000000 0x40000000"
READY_PID = "python print(gdb.kvm_dbg_session.server.ready['pid'])"


@pytest.fixture(autouse=True)
def _no_file_is_left(real: Gdb, tmp_path: Path) -> Iterator[None]:
    """Nothing stays in the directory for temporary files, even of a server that was killed."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    real.env["TMPDIR"] = str(temporary)
    yield
    for dialogue in real._dialogues:
        with suppress(OSError):
            dialogue.send(b"-gdb-exit\n")
    deadline = time.monotonic() + 5
    while os.listdir(temporary) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert os.listdir(temporary) == []


def start(gdb: Gdb, demo: Demo) -> tuple[MiClient, int]:
    """Return a gdb that has the demo's dump open, and the process of its server."""
    mi = gdb.mi()
    mi.console(SOURCE)
    return mi, reopen(mi, demo)


def reopen(mi: MiClient, demo: Demo) -> int:
    mi.console(f"kvm open {demo.vmlinux} {demo.vmcore}")
    return int(mi.console(READY_PID).console)


def fails(mi: MiClient, line: str) -> str:
    with pytest.raises(MiError) as caught:
        mi.console(line)
    return str(caught.value)


def still_usable(mi: MiClient, demo: Demo) -> None:
    """Check that gdb computes, and opens the dump again."""
    assert mi.console("p 6*7").console.endswith("= 42\n")
    reopen(mi, demo)
    assert mi.console("kvm loadavg").console.count(" ") == 2
    assert "init_task" in mi.console("info symbol &init_task").console


def alive(pid: int) -> bool:
    """Return whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for_end(pid: int, seconds: float) -> float:
    started = time.monotonic()
    while alive(pid) and time.monotonic() - started < seconds:
        time.sleep(0.02)
    assert not alive(pid), f"the server is still there after {seconds:g} s"
    return time.monotonic() - started


@contextmanager
def later(*actions: tuple[float, Callable[[], object]]) -> Iterator[None]:
    """Do each action so many seconds from now, while something else goes on."""
    timers = [threading.Timer(seconds, action) for seconds, action in actions]
    for timer in timers:
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.join()


@pytest.mark.parametrize("line", ["kvm procs", "kvm mods --load", 'p $kvm_nlist("init_task")'])
def test_a_server_killed_while_idle(real: Gdb, demo: Demo, line: str) -> None:
    mi, server = start(real, demo)
    os.kill(server, signal.SIGKILL)
    assert "was killed by SIGKILL" in fails(mi, line)
    assert "no kernel image is open" in fails(mi, "kvm procs")
    still_usable(mi, demo)


def test_a_server_killed_while_a_command_runs(real: Gdb, demo: Demo) -> None:
    mi, server = start(real, demo)
    with later((0.3, lambda: os.kill(server, signal.SIGKILL))):
        assert "was killed by SIGKILL" in fails(mi, LONG_COMMAND)
    still_usable(mi, demo)


def test_a_server_killed_before_gdb_reads_memory(real: Gdb, demo: Demo) -> None:
    mi, server = start(real, demo)
    os.kill(server, signal.SIGKILL)
    fails(mi, "x/2gx &init_task")
    assert "was killed by SIGKILL" in fails(mi, "kvm procs")
    still_usable(mi, demo)


def test_a_server_that_hangs_is_given_up_by_two_interrupts(real: Gdb, demo: Demo) -> None:
    """The first asks the server to stop what it does, the second ends it."""
    mi, server = start(real, demo)
    gdb = mi.dialogue.process.pid
    os.kill(server, signal.SIGSTOP)
    started = time.monotonic()
    interrupt = (0.5, lambda: os.kill(gdb, signal.SIGINT)), (1.5, lambda: os.kill(gdb, signal.SIGINT))
    with later(*interrupt):
        fails(mi, "kvm procs")
    assert time.monotonic() - started < 15
    assert not alive(server)
    fails(mi, "kvm procs")
    still_usable(mi, demo)


def test_a_server_that_hangs_is_ended_by_close(real: Gdb, demo: Demo) -> None:
    mi, server = start(real, demo)
    os.kill(server, signal.SIGSTOP)
    mi.console("kvm close")
    assert not alive(server)
    still_usable(mi, demo)


def test_interrupts_end_a_long_command_at_once(real: Gdb, demo: Demo) -> None:
    mi, server = start(real, demo)
    gdb = mi.dialogue.process.pid
    for _ in range(3):
        started = time.monotonic()
        with later((0.3, lambda: os.kill(gdb, signal.SIGINT))):
            fails(mi, LONG_COMMAND)
        assert time.monotonic() - started < 3
        assert mi.console("kvm loadavg").console.count(" ") == 2
    assert alive(server), "an interrupt ends the command, not the server"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("line", ["", LONG_COMMAND])
def test_a_gdb_that_is_ended_takes_its_server_along(real: Gdb, demo: Demo, number: signal.Signals, line: str) -> None:
    mi, server = start(real, demo)
    if line:
        mi.dialogue.send(f'-interpreter-exec console "{line}"\n'.encode())
        time.sleep(0.3)
    os.kill(mi.dialogue.process.pid, number)
    wait_for_end(server, GONE_SECONDS)


def test_a_gdb_that_leaves_by_itself(real: Gdb, demo: Demo) -> None:
    mi, server = start(real, demo)
    assert mi.quit() == 0
    wait_for_end(server, GONE_SECONDS)


def test_a_second_open_that_fails_and_closing_twice(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    mi, server = start(real, demo)
    broken = tmp_path / "broken"
    broken.write_bytes(demo.vmcore.read_bytes()[:100])
    for path, text in (
        (broken, "offset 0x"),
        ("/dev/zero", "device"),
        (tmp_path, "directory"),
        ("/nowhere", "No such"),
    ):
        assert text in fails(mi, f"kvm open {demo.vmlinux} {path}")
    assert alive(server), "what was open stays open"
    assert mi.console("kvm loadavg").console.count(" ") == 2
    mi.console("kvm close")
    wait_for_end(server, GONE_SECONDS)
    assert "no kernel image is open" in fails(mi, "kvm close")
    still_usable(mi, demo)


def test_a_current_directory_that_is_gone(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    result = real.run(
        [
            f"cd {gone}",
            f"python import os; os.rmdir({str(gone)!r})",
            f"source {ADAPTER}",
            f"kvm open {demo.vmlinux} {demo.vmcore}",
            "kvm loadavg",
            "kvm mods --load modules",
            "p 6*7",
        ]
    )
    assert "Python Exception" not in result.stderr
    assert "No such file or directory" in result.stderr
    assert result.stdout.endswith("$1 = 42\n")
    assert result.returncode == 1
