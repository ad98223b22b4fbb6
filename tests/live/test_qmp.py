"""From outside by QEMU's monitor: a guest whose RAM is in no file, its registers, and how it is halted and runs on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvm_dbg.commands.run import run_line
from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.errors import CommandError, FileAccessError
from kvm_dbg.image import open_image
from kvm_dbg.kernel.base import Thread
from tests.debuggers.debugger import DEBUGGERS, Debugger, Missing, clean_environment, find
from tests.live.hold import check, hold
from tests.live.machine import LiveGuest

WORDS: tuple[str, ...] = ()
SHARED = False
TICKS = 3  # jiffies that pass while a guest runs for a moment, at least
VALUE = 0x1122334455667788  # of r12 in guest/spin.c


@pytest.fixture(scope="module")
def session(guest: LiveGuest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The guest's memory within QEMU's, opened with its kernel file."""
    session = Session(None, str(tmp_path_factory.mktemp("index")))
    session.open(OpenRequest((), str(guest.kernel.vmlinux), qmp=str(guest.qmp)))
    yield session
    session.close()


def ask(session: Session, line: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads("".join(run_line(session, f"{line} --json")))
    return found


def test_the_memory_of_qemu_says_what_proc_says(guest: LiveGuest) -> None:
    check(hold(guest, str(guest.qmp)))


def test_a_snapshot_says_what_proc_says(guest: LiveGuest) -> None:
    """Over TCP nobody knows which process is QEMU: it dumps the guest's memory, and the guest runs on."""
    check(hold(guest, guest.find_tcp()))
    assert guest.is_running()


def test_how_it_is_read_is_said(guest: LiveGuest, session: Session) -> None:
    [row] = [json.loads("".join(run_line(session, "status --json")))]
    assert (row["format"], row["running"]) == ("qmp", True)
    assert row["image"] == [str(guest.qmp)]
    assert any("is in no file (memory-backend-file,share=on)" in quirk for quirk in row["quirks"])
    with open_image((), qmp=guest.find_tcp()) as image:
        assert "a snapshot: what the guest does afterwards shows after `refresh` only" in image.info.quirks[0]


def test_a_snapshot_is_taken_anew(guest: LiveGuest) -> None:
    session = Session()
    session.open(OpenRequest((), str(guest.kernel.vmlinux), qmp=guest.find_tcp()))
    first = ask(session, "read jiffies 8")
    guest.check("sleep 0.2")
    assert ask(session, "read jiffies 8") == first
    ask(session, "refresh")
    assert ask(session, "read jiffies 8") != first
    session.close()


def test_what_is_written_the_guest_sees(guest: LiveGuest) -> None:
    before = guest.check("cat /proc/sys/kernel/panic").strip()
    writer = Session()
    writer.open(OpenRequest((), str(guest.kernel.vmlinux), qmp=str(guest.qmp), write=True))
    list(run_line(writer, "write panic_timeout 77"))
    assert guest.check("cat /proc/sys/kernel/panic").strip() == "77"
    list(run_line(writer, "write --undo"))
    assert guest.check("cat /proc/sys/kernel/panic").strip() == before
    writer.close()


def test_a_snapshot_is_not_written_to(guest: LiveGuest) -> None:
    with pytest.raises(CommandError, match="the guest's memory cannot be written to"):
        Session().open(OpenRequest((), str(guest.kernel.vmlinux), qmp=guest.find_tcp(), write=True))
    assert guest.is_running()


def test_no_room_for_a_snapshot(guest: LiveGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before anything is written, and the guest never stood still."""
    monkeypatch.setattr("kvm_dbg.image.qmp_dump.ROOM", 1 << 60)
    with pytest.raises(FileAccessError, match="MiB free, and a snapshot of the guest takes"):
        open_image((), qmp=guest.find_tcp())
    assert guest.is_running()


@pytest.mark.parametrize("running", [True, False])
def test_an_interrupted_snapshot_leaves_the_guest_as_it_was(guest: LiveGuest, running: bool) -> None:
    said: list[str] = []

    def interrupt(text: str) -> None:
        said.append(text)
        raise KeyboardInterrupt

    guest.execute("cont" if running else "stop")
    try:
        with pytest.raises(KeyboardInterrupt):
            open_image((), qmp=guest.find_tcp(), progress=interrupt)
        assert guest.is_running() is running
    finally:
        guest.execute("cont")
    assert len(said) == 1


@pytest.fixture
def busy(guest: LiveGuest) -> Iterator[int]:
    """The address of the instruction that a program of the guest keeps a CPU busy with (guest/spin.c)."""
    second = "import os; os.sched_setaffinity(0, {1}); os.execv('/live/spin', ['spin'])"  # not the first thread of all
    guest.check(
        f'python3 -c "{second}" >/tmp/spin & echo $! >/tmp/spin.pid; until grep -q 0x /tmp/spin; do sleep 0.1; done'
    )
    yield int(guest.check("cat /tmp/spin"), 16)
    guest.execute("cont")
    guest.check("kill $(cat /tmp/spin.pid)")


def read_jiffies(session: Session) -> int:
    session.refresh()
    return int.from_bytes(session.kernel.read(session.find_symbol("jiffies").address, 8), "little")


def test_halt_and_resume_are_seen_by_the_guest(guest: LiveGuest, session: Session, busy: int) -> None:
    assert json.loads("".join(run_line(session, "halt --json")))["running"] is False
    assert not guest.is_running()
    first = read_jiffies(session)
    time.sleep(0.3)
    assert read_jiffies(session) == first
    assert json.loads("".join(run_line(session, "sys --json")))["running"] is False
    assert json.loads("".join(run_line(session, "resume --json")))["running"] is True
    assert guest.is_running()
    guest.check("sleep 0.2")
    assert read_jiffies(session) > first + TICKS


def test_the_program_halts_and_resumes(guest: LiveGuest) -> None:
    for command, running in (("halt", False), ("status", False), ("resume", True)):
        words = [command, "--qmp", str(guest.qmp), str(guest.kernel.vmlinux), "--json"]
        result = subprocess.run([sys.executable, "-m", "kvm_dbg.cli", *words], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["running"] is running
        assert guest.is_running() is running


def find_spin(guest: LiveGuest, session: Session, *, halted: bool) -> Thread:
    """Return the thread that spins, of a look when the CPU was not just interrupted."""
    for _ in range(20):
        if halted:
            guest.execute("stop")
        session.refresh()
        [thread] = [one for one in session.system.for_each_thread(session.kernel) if one.name == "spin"]
        if thread.registers.get("r12") == VALUE:
            return thread
        guest.execute("cont")
        time.sleep(0.05)
    raise AssertionError(f"the CPU was in the kernel every time: {thread}")


def test_the_registers_of_a_cpu_that_spins(guest: LiveGuest, session: Session, busy: int) -> None:
    thread = find_spin(guest, session, halted=False)
    assert thread.on_cpu
    assert thread.registers["rip"] == busy
    assert thread.why.startswith("QEMU's CPU state of a moment, of a CPU that ran on")
    assert guest.is_running()
    thread = find_spin(guest, session, halted=True)
    assert thread.registers["rip"] == busy
    assert thread.why.startswith("QEMU's CPU state, CPU")
    assert not guest.is_running()


INTERRUPT = {
    "gdb": "python import threading as t, os, signal; t.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()",
    "lldb": "script import threading as t; d = lldb.debugger; "
    "t.Timer(1, lambda: d.GetSelectedTarget().GetProcess().SendAsyncInterrupt()).start()",
}
LINES = {
    "gdb": [
        "continue", "print/x $r12", "print/x $rip", "kvm status", "break *($rip + 2)", "continue", "delete", "stepi",
    ],
    "lldb": ["process continue", "register read r12 rip", "kvm status", "stepi"],
}  # fmt: skip


def stays(guest: LiveGuest, *, running: bool) -> bool:
    """Return whether the guest is left so; the server of a debugger that has ended needs a moment."""
    for _ in range(50):
        if guest.is_running() is running:
            return True
        time.sleep(0.1)
    return False


def run_debugger(debugger: Debugger, guest: LiveGuest, lines: list[str], home: Path) -> str:
    """Run a debugger on the guest and return what it said."""
    found = find(debugger)
    if isinstance(found, Missing):
        pytest.skip(found.reason)
    opening = f"kvm open --no-symbols --qmp {guest.qmp} {guest.kernel.vmlinux}"
    if debugger.kind == "gdb":
        words = [word for line in ["source gdb/kvm_dbg_gdb.py", opening, *lines] for word in ("-ex", line)]
        command = [found.program, "-nx", "-batch", *words]
    else:
        words = [word for line in [opening, *lines] for word in ("-o", line)]
        command = [found.program, "--no-lldbinit", "-b", "-O", "command script import lldb/kvm_dbg_lldb.py", *words]
    environment = {**clean_environment(home), "KVM_DBG_PYTHON": sys.executable}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    return result.stdout + result.stderr


@pytest.mark.parametrize("debugger", DEBUGGERS, ids=lambda debugger: debugger.name)
def test_a_debugger_continues_and_interrupts(
    guest: LiveGuest, session: Session, busy: int, tmp_path: Path, debugger: Debugger
) -> None:
    first = read_jiffies(session)
    text = run_debugger(debugger, guest, [INTERRUPT[debugger.kind], *LINES[debugger.kind]], tmp_path)
    assert "SIGINT" in text, text
    assert re.search(r"(?:Thread \d+ \"|name = ')spin/", text), text
    values = re.findall(r"^(?:\$\d+|\s+r(?:12|ip)) = 0x([0-9a-f]+)", text, re.MULTILINE)
    assert len(values) >= 2, text
    r12, rip = (int(word, 16) for word in values[:2])
    assert (r12, rip) == (VALUE, busy) or rip >> 63, text  # a timer may have interrupted it
    assert "running: no" in text
    assert "not stepped; for that connect the debugger to QEMU's gdbstub, and use `kvm attach` beside it" in text
    assert ("the machine stops at no breakpoint" in text) is (debugger.kind == "gdb")
    assert stays(guest, running=True)
    assert read_jiffies(session) > first + TICKS


def test_a_halted_guest_is_left_halted(guest: LiveGuest, busy: int, tmp_path: Path) -> None:
    guest.execute("stop")
    text = run_debugger(DEBUGGERS[0], guest, ["kvm status", "kvm resume", "kvm status"], tmp_path)
    assert text.count("running: no") == 1
    assert text.count("running: yes") == 2
    assert stays(guest, running=False)


def test_lldb_reads_while_the_guest_runs(guest: LiveGuest, busy: int, tmp_path: Path) -> None:
    """In lldb's asynchronous mode commands go on while the process does."""
    lines = [
        "script import time; lldb.debugger.SetAsync(True)", "process continue", "script time.sleep(0.5)",
        "kvm read jiffies 8", "script time.sleep(0.5)", "process status", "kvm read jiffies 8", "kvm halt",
        "script time.sleep(2)", "process status",
    ]  # fmt: skip
    debugger = next(one for one in DEBUGGERS if one.kind == "lldb")
    text = run_debugger(debugger, guest, lines, tmp_path)
    values = re.findall(r"^[0-9a-f]{16}  ((?:[0-9a-f]{2} ){8})", text, re.MULTILINE)
    assert len(set(values)) == 2, text
    assert "is running" in text
    assert "stop reason = signal SIGINT" in text
    assert stays(guest, running=True)


def test_a_guest_that_is_gone(guest: LiveGuest, session: Session) -> None:
    """Last of all: QEMU is killed. What is read from it then fails by name, in the middle as well."""
    processes = session.system.for_each_process(session.kernel)
    next(processes)
    guest.kill()
    with pytest.raises(FileAccessError, match="QEMU is gone, and the guest's memory with it"):
        list(processes)
    with pytest.raises(FileAccessError, match="QEMU has ended"):
        ask(session, "procs")
