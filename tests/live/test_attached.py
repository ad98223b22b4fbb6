"""A guest that runs beside a debugger on QEMU's stub: every command by the debugger's own connection, in each of them.

One guest for all. It writes its own word down, is stopped by the debugger, asked, let run, and stopped again.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.debuggers.child import Result, run
from tests.debuggers.debugger import DEBUGGERS, ROOT, Found, clean_environment, find, of_kind
from tests.live.machine import LiveGuest

WORDS: tuple[str, ...] = ()
MARK = "=====8<====="
TRIES = 3
PACKETS = {"gdb": "maintenance packet {}", "lldb": "process plugin packet send {}"}
MODE = {"gdb": 'received: "{}"', "lldb": "response: {}"}
COMMANDS = ("procs --json", "lwps --json", "args --json", "env --json", "loadavg --json", "log --json", "mods --json")
RESTLESS = ("kworker/", "ksoftirqd", "rcu_", "agent.sh", "migration", "sh")  # which start of a name: some end
TRUTH = r"""
for d in /proc/[0-9]*; do
    [ -e $d/cmdline ] || continue
    echo "P ${d#/proc/} $(cat $d/comm 2>/dev/null)"
    echo "A ${d#/proc/} $(base64 -w0 <$d/cmdline 2>/dev/null)"
    echo "E ${d#/proc/} $(base64 -w0 <$d/environ 2>/dev/null)"
    for t in $d/task/*; do echo "T ${d#/proc/} ${t##*/}"; done
done
while read -r name size users rest; do echo "M $name $size"; done </proc/modules
dmesg | sed 's/^/L /'
"""


class Truth(NamedTuple):
    """What the guest's /proc said: by PID name, arguments, environment and threads; modules' sizes; the log."""

    names: dict[int, str]
    args: dict[int, bytes]
    env: dict[int, bytes]
    threads: dict[int, set[int]]
    modules: dict[str, int]
    log: list[str]


@pytest.fixture(scope="module")
def socket(guest: LiveGuest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Unix socket of the guest's stub."""
    path = tmp_path_factory.mktemp("stub") / "gdb"
    address = {"type": "unix", "data": {"path": str(path)}}
    backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
    guest.execute("chardev-add", id="stub", backend=backend)
    guest.execute("human-monitor-command", **{"command-line": "gdbserver chardev:stub"})
    return path


@pytest.fixture(scope="module")
def truth(guest: LiveGuest) -> Truth:
    """Let the guest say what it runs, and a loop count jiffies from now on."""
    import base64

    guest.check("(while :; do :; done) >/dev/null & echo $! >/tmp/busy; sleep 1")
    found = Truth({}, {}, {}, {}, {}, [])
    for line in guest.check(TRUTH).splitlines():
        kind, _, rest = line.partition(" ")
        first, _, rest = rest.partition(" ")
        if kind == "P":
            found.names[int(first)] = rest
        elif kind in "AE":
            (found.args if kind == "A" else found.env)[int(first)] = base64.b64decode(rest)
        elif kind == "T":
            found.threads.setdefault(int(first), set()).add(int(rest))
        elif kind == "M":
            found.modules[first] = int(rest)
        elif kind == "L":
            found.log.append(re.sub(r"^(<\d+>)?\[[ \d.]+\] ", "", line[2:]))
    return found


class Session(NamedTuple):
    """One debugger's run: what each of its commands printed, in order."""

    result: Result
    answers: list[str]


class Debugger:
    """One of the debuggers, on the guest's stub."""

    def __init__(self, found: Found, guest: LiveGuest, socket: Path, home: Path) -> None:
        self.kind = found.debugger.kind
        self._found, self._guest, self._socket = found, guest, socket
        home.mkdir(exist_ok=True)
        self._environment = clean_environment(home, home.parent / "cache")
        self._environment["KVM_DBG_PYTHON"] = sys.executable

    def run(self, *commands: str) -> Session:
        """Stop the guest, attach, run commands, and let it go on; what each prints is kept apart."""
        self._guest.execute("stop")  # lldb takes the news of a stop for the answer to its first packet
        if self.kind == "gdb":
            first = [f"source {ROOT / 'gdb' / 'kvm_dbg_gdb.py'}", f"target remote {self._socket}"]
            last, echo = "detach", f"echo {MARK}\\n"
            program = [self._found.program, "-nx", "-batch"]
            option = "-ex"
        else:
            first = [f"command script import {ROOT / 'lldb' / 'kvm_dbg_lldb.py'}"]
            first.append(f"process connect -p gdb-remote unix-connect://{self._socket}")
            last, echo = "process detach", f"script print('{MARK}', flush=True)"
            program = [self._found.program, "--no-lldbinit", "-Q", "-b"]
            option = "-o"
        words = [word for line in first for word in (option, line)]
        for command in commands:
            words += [option, echo, option, command]
        words += [option, echo, option, last]
        try:
            for _ in range(TRIES):
                result = run([*program, *words], env=self._environment, timeout=240)
                if not self._is_lost(result, len(commands)):
                    break
        finally:
            self._guest.execute("cont")
        # lldb repeats each command behind its prompt
        text = re.sub(r"^\(lldb\) .*\n", "", result.stdout, flags=re.MULTILINE)
        answers = text.split(f"{MARK}\n")[1:-1]
        assert len(answers) == len(commands), result.stdout + result.stderr
        return Session(result, answers)

    def _is_lost(self, result: Result, count: int) -> bool:
        """Return whether lldb did not get so far as to run all commands.

        Such news all the same, of the debugger before this one; or it took the stop of one CPU, where the other one was
        at the breakpoint, for a signal, which ends its batch mode.
        """
        if self.kind != "lldb":
            return False
        ended = "stop reason = signal" in result.stdout and result.stdout.count(f"{MARK}\n") <= count
        return ended or "handshake packet" in result.stderr

    def tried(self, command: str) -> str:
        """Return a command that may fail: else lldb would end, and take the machine with it."""
        return command if self.kind == "gdb" else f"script lldb.debugger.HandleCommand({command!r})"

    def packet(self, payload: str) -> str:
        """Return the command that sends a packet."""
        return PACKETS[self.kind].format(payload)

    @property
    def normal(self) -> str:
        """Return what shows that addresses are virtual."""
        return MODE[self.kind].format(0)


@pytest.fixture(params=DEBUGGERS, ids=lambda debugger: debugger.name, scope="module")
def debugger(
    request: pytest.FixtureRequest, guest: LiveGuest, socket: Path, tmp_path_factory: pytest.TempPathFactory
) -> Debugger:
    """Return one debugger after the other."""
    found = find(request.param)
    if not isinstance(found, Found):
        pytest.skip(found.reason)
    return Debugger(found, guest, socket, tmp_path_factory.getbasetemp() / request.param.name)


def strings(data: bytes) -> list[str]:
    return [word.decode(errors="replace") for word in data.split(b"\0")[:-1]]


def loads(guest: LiveGuest) -> list[float]:
    """Return what the guest's /proc/loadavg says, a tick of which takes five seconds."""
    return [float(word) for word in guest.check("cat /proc/loadavg").split()[:3]]


def test_every_command_says_what_the_guest_says(debugger: Debugger, guest: LiveGuest, truth: Truth) -> None:
    before = loads(guest)
    session = debugger.run(
        f"kvm attach --no-symbols {guest.kernel.vmlinux}",
        *(f"kvm {command}" for command in COMMANDS),
        debugger.packet("qqemu.PhyMemMode"),
    )
    after = loads(guest)
    assert f"Linux {guest.kernel.release}, x86_64" in session.result.stderr
    procs, lwps, args, env, load, log, mods = (json.loads(answer) for answer in session.answers[1:8])
    steady = {pid: name for pid, name in truth.names.items() if not name.startswith(RESTLESS)}
    named: dict[int, Any] = {row["pid"]: row for row in procs}
    assert {pid: str(named[pid]["command"]).strip("[]") for pid in steady if pid in named} == steady
    assert len(steady) > 30
    threads: dict[int, set[int]] = {}
    for row in lwps:
        threads.setdefault(row["pid"], set()).add(row["lwp"])
    assert {pid: threads[pid] for pid in steady} == {pid: truth.threads[pid] for pid in steady}
    for rows, key, told in ((args, "args", truth.args), (env, "env", truth.env)):
        ours = {row["pid"]: row[key] for row in rows}
        users = {pid: strings(data) for pid, data in told.items() if data and pid in steady}
        assert {pid: ours[pid] for pid in users} == users
        assert len(users) >= 6
    assert [round(load[name], 2) for name in ("load1", "load5", "load15")] in (before, after)
    assert {row["name"]: row["size"] for row in mods} == truth.modules
    texts = [line for row in log for line in row["text"].split("\n")]
    assert texts[: len(truth.log)] == truth.log
    assert len(truth.log) > 100
    assert debugger.normal in session.answers[8]


def test_the_next_command_sees_what_has_changed(debugger: Debugger, guest: LiveGuest) -> None:
    """The debugger lets the guest run to its own breakpoint, by the symbols that `kvm attach` has placed."""
    point = {
        "gdb": ("hbreak update_process_times", "ignore $bpnum 20", "continue", "delete", "backtrace 3"),
        "lldb": (
            "breakpoint set -H -n update_process_times",
            "breakpoint modify -i 20",
            "continue",
            "breakpoint delete -f",
            "thread backtrace -c 3",
        ),
    }[debugger.kind]
    session = debugger.run(
        f"kvm attach {guest.kernel.vmlinux}",
        "print jiffies",
        "kvm read jiffies 8 --json",
        *point,
        "print jiffies",
        "kvm read jiffies 8 --json",
        "kvm bt --json",
        debugger.packet("qqemu.PhyMemMode"),
        "kvm detach",
    )
    first, second = (int(session.answers[index].split()[-1], 0) for index in (1, 8))
    ours = [jiffies_of(json.loads(session.answers[index])) for index in (2, 9)]
    assert ours == [first, second]
    assert second > first
    assert "update_process_times" in session.answers[7]
    frames = json.loads(session.answers[10])
    assert frames[0]["function"] == "update_process_times"
    assert debugger.normal in session.answers[11]


def test_what_is_written_the_guest_sees(debugger: Debugger, guest: LiveGuest) -> None:
    """A sysctl changes, and is taken back; without --write it is refused."""
    before = guest.check("cat /proc/sys/kernel/panic").strip()
    session = debugger.run(
        f"kvm attach --write --no-symbols {guest.kernel.vmlinux}",
        "kvm write panic_timeout 77 --json",
        "kvm write --log --json",
        debugger.packet("qqemu.PhyMemMode"),
        "kvm detach",
    )
    (row,) = json.loads(session.answers[2])
    assert (row["symbol"], row["new"]) == ("panic_timeout+0x0", "4d000000")
    assert debugger.normal in session.answers[3]
    assert guest.check("cat /proc/sys/kernel/panic").strip() == "77"
    session = debugger.run(
        f"kvm attach --write --no-symbols {guest.kernel.vmlinux}",
        f"kvm write panic_timeout {before}",
        "kvm write panic_timeout 78",
        "kvm write --undo",
    )
    assert guest.check("cat /proc/sys/kernel/panic").strip() == before
    session = debugger.run(
        f"kvm attach --no-symbols {guest.kernel.vmlinux}", debugger.tried("kvm write panic_timeout 79")
    )
    assert "`attach --write` lets it be written to" in session.result.stderr + session.result.stdout
    assert guest.check("cat /proc/sys/kernel/panic").strip() == before


def jiffies_of(rows: Any) -> int:
    """Return the number that `kvm read` of 8 bytes shows."""
    (row,) = rows if isinstance(rows, list) else [rows]
    return int.from_bytes(bytes.fromhex(row["data"]), "little")


def test_without_any_kernel_file(debugger: Debugger, guest: LiveGuest, truth: Truth) -> None:
    """And what is refused then."""
    session = debugger.run(
        "kvm attach --no-symbols",
        "kvm procs --json",
        "kvm status --json",
        *map(debugger.tried, ("kvm read --phys 0xfee00000 16", "kvm user 1", "kvm thread 2", "kvm open /dev/null")),
        *(("continue &", "kvm loadavg") if debugger.kind == "gdb" else ()),
    )
    ours = {row["pid"] for row in json.loads(session.answers[1])}
    assert {pid for pid, name in truth.names.items() if not name.startswith(RESTLESS)} <= ours
    status = json.loads(session.answers[2])
    assert (status["format"], status["kernel"], status["release"]) == ("attached", None, guest.kernel.release)
    assert status["types"] == "BTF in the image"
    text = session.result.stderr + session.result.stdout
    assert "16 of 16 bytes are not in the image or not mapped, the first at 0xfee00000" in text
    assert "`kvm gcore PID` writes a core file" in text
    assert "no CPU runs 2 now" in text
    assert "already debugs something" in text
    assert ("the machine runs: interrupt it first" in text) is (debugger.kind == "gdb")


@pytest.mark.parametrize("debugger", of_kind("gdb"), ids=lambda debugger: debugger.name, indirect=True)
def test_ctrl_c_leaves_all_as_it_was(debugger: Debugger, guest: LiveGuest) -> None:
    """A signal comes in the middle of commands that would go on for minutes; the one after them answers."""
    session = debugger.run(
        f"kvm attach --no-symbols {guest.kernel.vmlinux}",
        "python import os, signal, threading",
        "python threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()",
        "python [gdb.execute('kvm lwps', to_string=True) for _ in range(1000)]",
        debugger.packet("qqemu.PhyMemMode"),
        "kvm status --json",
        "kvm loadavg --json",
    )
    assert debugger.normal in session.answers[4]
    assert json.loads(session.answers[5])["release"] == guest.kernel.release
    assert json.loads(session.answers[6])["load1"] >= 0
