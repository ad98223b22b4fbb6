"""Every debugger with the stand-in kernel: interrupts, servers that are killed or hang, debuggers that go away.

Nothing here waits for a time to pass, but for what must happen. The endless command is `kvm log` of the stand-in, which
leaves a file when it has begun.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.debuggers.conftest import children_of_tests, use_stand_in
from tests.debuggers.neutral import Subject, Talk, kvm_open, step
from tests.writers.stand_in import BUSY, TEXT

DEADLINE = 120.0  # seconds, on a machine that has much else to do; met in a fraction of one
POLL = 0.02
LOAD = "0.50 1.25 2.00"


@pytest.fixture(autouse=True)
def _stand_in(subject: Subject, tmp_path: Path) -> Iterator[None]:
    """The adapter starts the stand-in, and every test leaves neither a process nor a file behind."""
    use_stand_in(subject, tmp_path)
    yield
    for talk in subject.talks:
        if alive(talk.pid):
            talk.begin("kvm close")
            talk.begin("quit")
    wait_until(lambda: not children_of_tests(tmp_path), "a server is left")
    wait_until(lambda: not left_files(tmp_path), "a file is left")


def wait_until(happened: Callable[[], object], why: str) -> None:
    """Wait for something that must happen."""
    deadline = time.monotonic() + DEADLINE
    while not happened():
        assert time.monotonic() < deadline, why
        time.sleep(POLL)


def left_files(folder: Path) -> list[str]:
    """Return what lies in the directory for temporary files."""
    return sorted(os.listdir(folder / "tmp"))


def alive(pid: int) -> bool:
    """Return whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def unread(pid: int) -> int:
    """Return how many bytes wait in the pipe that is a process's standard input."""
    descriptor = os.open(f"/proc/{pid}/fd/0", os.O_RDONLY | os.O_NONBLOCK)
    try:
        (size,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4))
        return int(size)
    finally:
        os.close(descriptor)


def start(subject: Subject, folder: Path) -> tuple[Talk, int]:
    """Return a debugger that has the stand-in open, and the process of its server."""
    talk = subject.talk()
    talk.do(f"kvm open {folder}/image")
    return talk, talk.server()


def begin_endless(talk: Talk, folder: Path) -> None:
    """Start a command that does not end by itself, and wait until it has begun."""
    busy = folder / f"image{BUSY}"
    busy.unlink(missing_ok=True)
    talk.begin("kvm log")
    wait_until(busy.exists, "the command has not begun")


def still_usable(talk: Talk, folder: Path) -> None:
    """Check that the debugger computes, and opens another image."""
    assert "42" in talk.do("p 6*7")
    talk.do(f"kvm open {folder}/second")
    assert LOAD in talk.do("kvm loadavg")


def test_an_interrupt_ends_the_command_and_nothing_else(subject: Subject, tmp_path: Path) -> None:
    talk, server = start(subject, tmp_path)
    for _ in range(3):
        begin_endless(talk, tmp_path)
        os.kill(talk.pid, signal.SIGINT)
        talk.finish()
        assert LOAD in talk.do("kvm loadavg")
    assert talk.server() == server
    assert alive(server)


@pytest.mark.parametrize("line", ["kvm procs", "kvm mods --load"])
def test_a_server_killed_while_idle(subject: Subject, tmp_path: Path, line: str) -> None:
    talk, server = start(subject, tmp_path)
    os.kill(server, signal.SIGKILL)
    assert "was killed by SIGKILL; the image is closed, use `kvm open` again" in talk.do(line)
    assert "no kernel image is open" in talk.do("kvm procs")
    still_usable(talk, tmp_path)


def test_a_server_killed_while_a_command_runs(subject: Subject, tmp_path: Path) -> None:
    talk, server = start(subject, tmp_path)
    begin_endless(talk, tmp_path)
    os.kill(server, signal.SIGKILL)
    assert "was killed by SIGKILL" in talk.finish()
    still_usable(talk, tmp_path)


def test_a_server_killed_before_the_debugger_reads_memory(subject: Subject, tmp_path: Path) -> None:
    talk, server = start(subject, tmp_path)
    os.kill(server, signal.SIGKILL)
    talk.do(f"x/2gx {TEXT:#x}")
    assert "was killed by SIGKILL" in talk.do("kvm procs")
    still_usable(talk, tmp_path)


def test_a_server_that_hangs_is_ended_by_close(subject: Subject, tmp_path: Path) -> None:
    talk, server = start(subject, tmp_path)
    os.kill(server, signal.SIGSTOP)
    talk.do("kvm close")
    assert not alive(server)
    still_usable(talk, tmp_path)


def test_a_server_that_hangs_is_given_up_by_two_interrupts(subject: Subject, tmp_path: Path) -> None:
    """The first asks the server to stop what it does, the second ends it."""
    talk, server = start(subject, tmp_path)
    begin_endless(talk, tmp_path)
    os.kill(server, signal.SIGSTOP)
    os.kill(talk.pid, signal.SIGINT)
    wait_until(lambda: unread(server), "the server was not asked to stop")
    os.kill(talk.pid, signal.SIGINT)
    wait_until(lambda: not alive(server), "the server was not given up")
    talk.finish()
    talk.do("kvm procs")
    still_usable(talk, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("busy", [False, True])
def test_a_debugger_that_is_ended_takes_its_server_along(
    subject: Subject, tmp_path: Path, number: signal.Signals, busy: bool
) -> None:
    talk, server = start(subject, tmp_path)
    if busy:
        begin_endless(talk, tmp_path)
    os.kill(talk.pid, number)
    wait_until(lambda: not alive(server), "the server is still there")


def test_a_debugger_that_leaves_by_itself(subject: Subject, tmp_path: Path) -> None:
    talk, server = start(subject, tmp_path)
    assert talk.leave() == 0
    wait_until(lambda: not alive(server), "the server is still there")


def test_a_second_open_that_fails_and_closing_twice(subject: Subject, tmp_path: Path) -> None:
    talk, server = start(subject, tmp_path)
    assert "refused, as its name says" in talk.do(f"kvm open {tmp_path}/refused")
    assert "refused, as its name says" in talk.do("kvm geterr")
    assert talk.server() == server
    assert LOAD in talk.do("kvm loadavg")
    talk.do("kvm close")
    assert not alive(server)
    assert "no kernel image is open" in talk.do("kvm close")
    still_usable(talk, tmp_path)


def test_a_current_directory_that_is_gone(subject: Subject, tmp_path: Path) -> None:
    talk = subject.talk()
    gone = tmp_path / "gone"
    gone.mkdir()
    talk.do(f"{subject.spelling.python} import os; os.chdir({str(gone)!r})")
    gone.rmdir()
    talk.do(f"kvm open {tmp_path}/image")
    assert LOAD in talk.do("kvm loadavg")
    assert "No such file or directory" in talk.do("kvm mods --load modules")
    assert "42" in talk.do("p 6*7")


@pytest.mark.parametrize(
    ("python", "text"),
    [
        ("/nonexistent/python", "KVM_DBG_PYTHON: /nonexistent/python"),
        ("/bin/false", "the server has ended with status 1"),
    ],
)
def test_a_wrong_interpreter_is_named(subject: Subject, tmp_path: Path, python: str, text: str) -> None:
    subject.env["KVM_DBG_PYTHON"] = python
    talk = subject.talk()
    assert text in talk.do(f"kvm open {tmp_path}/image")
    assert "42" in talk.do("p 6*7")


def test_a_path_with_spaces(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "an image").touch()
    talk = subject.talk()
    talk.do(f'kvm open "{tmp_path}/an image"')
    assert f"{tmp_path}/an image" in talk.do("kvm status --json")


def test_threads_registers_and_memory(subject: Subject, tmp_path: Path) -> None:
    answers = subject.ask(
        {
            "open": kvm_open(tmp_path / "image"),
            "threads": step("threads"),
            "shell": step("registers", ["rip", "rsp", "rbp"]),
            "select": step("select", 1),
            "init": step("registers", ["rip", "rsp", "rbp"]),
            "byte": step("read", TEXT + 1, 1),
            "hole": step("read", 0xFFFFFFFF12000000, 4),
            "write": step("write", TEXT, "41"),
            "written": step("read", TEXT, 2),
            "resume": step("resume"),
        }
    )
    assert [(thread.id, thread.name) for thread in answers.threads("threads")] == [
        (41, 'sh"<ell>/41'),
        (1, "init/1"),
        (2, "kthreadd/2"),
        (10_000_000, "swapper/0/0"),
        (10_000_001, "swapper/1/0"),
    ]
    assert answers["shell"] == [TEXT + 0x100, TEXT + 0x5000, None]
    assert answers["init"] == [TEXT + 0x200, TEXT + 0x6000, 0x1234]
    assert (answers["byte"], answers["written"]) == ("07", "4107")  # byte n of the stand-in is 7 * n
    assert "memory" in answers.error("hole")
    assert "this kernel is not running (it is a dump)" in answers["resume"]
