"""Runs in the live guest: asks kvm_dbg about its memory, and holds the answers against /proc at the same time.

    compare.py DEVICE
    compare.py --truth

/proc is read before and after. What is the same both times must be what kvm_dbg says; how much that is, is counted.
Prints JSON: {"checked": {WHAT: NUMBER}, "wrong": [TEXT, ...]}. With --truth it is what /proc says, for whoever asks
kvm_dbg from outside in between.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

sys.path.insert(0, "/kvm")
import kvm_dbg

TICK = os.sysconf("SC_CLK_TCK")
MOVED = 3  # processes
RETRIES = 5
NOBODY: frozenset[str] = frozenset()


def read(path: str) -> bytes | None:
    """Return the bytes of a file of /proc, None if it is gone."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def numbers(directory: str) -> list[int]:
    """Return the names that are numbers."""
    try:
        return [int(name) for name in os.listdir(directory) if name.isdecimal()]
    except OSError:
        return []


def read_stat(path: str) -> tuple[str, list[bytes]] | None:
    """Return (comm, fields from the third on) of a stat file, None if it is gone."""
    data = read(path)
    if data is None:
        return None
    head, _, rest = data.rpartition(b")")
    return head.partition(b"(")[2].decode(), rest.split()


def read_truth() -> dict[str, Any]:
    """Return what /proc says of processes (by PID as text), load, modules and the log, as JSON can have it."""
    found: dict[str, Any] = {}
    for pid in numbers("/proc"):
        stat, status = read_stat(f"/proc/{pid}/stat"), read(f"/proc/{pid}/status")
        if stat is None or status is None:
            continue
        lines = dict(line.split(b":", 1) for line in status.splitlines() if b":" in line)
        threads = {str(tid): read_stat(f"/proc/{pid}/task/{tid}/stat") for tid in numbers(f"/proc/{pid}/task")}
        found[str(pid)] = {
            "command": stat[0],
            "state": stat[1][0].decode(),
            "numbers": [int(stat[1][n - 3]) for n in (4, 5, 6, 18, 19, 20, 23, 39)],
            "times": [int(stat[1][n - 3]) for n in (14, 15)],
            "ids": [int(word) for name in (b"Uid", b"Gid") for word in lines[name].split()[:3]],
            "kernel": bool(int(stat[1][6]) & 0x200000),
            "args": strings(read(f"/proc/{pid}/cmdline")),
            "env": strings(read(f"/proc/{pid}/environ")),
            "threads": {tid: [one[0], one[1][0].decode()] for tid, one in threads.items() if one is not None},
        }
    return {
        "processes": found,
        "load": read_load(),
        "modules": [line.decode().split()[:6] for line in (read("/proc/modules") or b"").splitlines()],
        "log": read_log(),
    }


def read_load() -> list[str]:
    """Return the three load averages of /proc."""
    return [word.decode() for word in (read("/proc/loadavg") or b"").split()[:3]]


def read_log() -> list[tuple[int, int, int, str]]:
    """Return (sequence number, level, microseconds, first line) of what /dev/kmsg has."""
    found: list[tuple[int, int, int, str]] = []
    kmsg = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    while True:
        try:
            head, _, text = os.read(kmsg, 8192).partition(b";")
        except BlockingIOError:
            os.close(kmsg)
            return found
        priority, sequence, microseconds = (int(word) for word in head.split(b",")[:3])
        found.append((sequence, priority & 7, microseconds, text.split(b"\n")[0].decode()))


def strings(data: bytes | None) -> list[str] | None:
    """Return the strings that NULs end, each byte a character."""
    if data is None:
        return None
    text = data.decode("latin-1")
    return text.split("\0")[:-1] if text.endswith("\0") or not text else text.split("\0")


def latin(words: list[bytes] | None) -> list[str] | None:
    """Return kvm_dbg's strings as `strings` has those of /proc."""
    return None if words is None else [word.decode("latin-1") for word in words]


def escaped(text: str) -> str:
    """Return text as /dev/kmsg prints it (kernel/printk/printk.c: msg_add_ext_text())."""
    return "".join(f"\\x{byte:02x}" if byte < 32 or byte >= 127 or byte == 92 else chr(byte) for byte in text.encode())


class Answers:
    """What kvm_dbg says, all of it read at once."""

    def __init__(self, kvm: Any) -> None:
        self.processes = {process.pid: process for process in kvm.processes()}
        self.lwps: dict[int, dict[str, list[str]]] = {}
        for lwp in kvm.lwps():
            self.lwps.setdefault(lwp.pid, {})[str(lwp.lid)] = [lwp.name, lwp.state]
        self.args = {pid: latin(kvm.arguments(process)) for pid, process in self.processes.items()}
        self.env = {pid: latin(kvm.environment(process)) for pid, process in self.processes.items()}
        self.modules = {module.name: module for module in kvm.modules()}
        self.log = {record.sequence: record for record in kvm.log()}
        load = kvm.load_average()
        self.load = [f"{one:.2f}" for one in (load.one, load.five, load.fifteen)]


class Comparison:
    """What was found wrong, and how much was looked at.

    moved: processes that were seen on another CPU. One can run there for a moment and be back for /proc's second look.
    """

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.moved: list[str] = []
        self.checked: dict[str, int] = {}

    def check(self, what: str, ours: object, theirs: object, where: object = "") -> None:
        """Hold one answer against the truth."""
        self.checked[what] = self.checked.get(what, 0) + 1
        if ours != theirs:
            self.wrong.append(f"{what} {where}: ours {ours!r}, of /proc {theirs!r}")

    def hold(
        self,
        ours: Answers,
        before: dict[str, Any],
        after: dict[str, Any],
        but: int = 0,
        passing: frozenset[str] = NOBODY,
    ) -> None:
        """Hold all answers against what /proc said before and after.

        Args:
            ours: of kvm_dbg.
            before: as from `read_truth`.
            after: the same, later.
            but: a process that was busy with it, and is not what it was before.
            passing: the names of processes that may come and go in between.
        """
        first, last = ({int(pid): one for pid, one in truth["processes"].items()} for truth in (before, after))
        for pid in ours.processes:
            if pid not in first and pid not in last and ours.processes[pid].command not in passing:
                self.wrong.append(f"process {pid} ({ours.processes[pid].command}) is a phantom")
        for pid, truth in first.items():
            if pid in last:
                self.checked["processes"] = self.checked.get("processes", 0) + 1
                self._process(ours, pid, truth, last[pid] == truth and pid != but)
        if len(self.moved) > MOVED:
            self.wrong += self.moved
        for name, size, users, _, state, address in after["modules"]:
            module = ours.modules.get(name)
            mine = module and [module.size, module.reference_count, module.state, module.address]
            self.check("mods", mine, [int(size), int(users), state.lower(), int(address, 16)], name)
        for sequence, level, microseconds, text in before["log"]:
            record = ours.log.get(sequence)
            seconds = record.seconds if record is not None and record.seconds is not None else 0.0
            said = record and [record.level, int(seconds * 1000000 + 0.0005), escaped(record.text)]
            self.check("log", said, [level, microseconds, text], sequence)

    def _process(self, ours: Answers, pid: int, truth: dict[str, Any], steady: bool) -> None:
        process = ours.processes.get(pid)
        if process is None:
            self.wrong.append(f"process {pid} ({truth['command']}) is missing")
            return
        if process.unread:
            self.wrong.append(f"process {pid}: unread: {process.unread}")
        if not steady:
            return
        if truth["command"].startswith("kworker/"):  # its name tells what it last did, and so does its state
            self.check("workers", process.command[:8], "kworker/", pid)
            return
        self.check("identity", (process.command, process.state), (truth["command"], truth["state"]), pid)
        fields = [process.ppid, process.pgid, process.sid, process.priority, process.nice, process.threads]
        *numbers, cpu = truth["numbers"]
        self.check("fields", [*fields, process.vsize], numbers, pid)
        if process.cpu != cpu:
            self.moved.append(f"process {pid}: ours ran on CPU {process.cpu}, that of /proc on {cpu}")
        ids = [process.ruid, process.uid, process.svuid, process.rgid, process.gid, process.svgid]
        self.check("ids", ids, truth["ids"], pid)
        times = [int((seconds or 0) * TICK) for seconds in (process.user_time, process.system_time)]
        self.check("times", times, truth["times"], pid)
        self.check("threads", ours.lwps.get(pid), truth["threads"], pid)
        if truth["kernel"] or truth["state"] == "Z":
            self.check("no strings", (ours.args[pid], ours.env[pid]), (None, None), pid)
        else:
            self.check("args", ours.args[pid], truth["args"], pid)
            self.check("env", ours.env[pid], truth["env"], pid)


def main(device: str) -> None:
    """Compare everything, or say what /proc says."""
    if device == "--truth":
        sys.stdout.write(json.dumps(read_truth()))
        return
    comparison = Comparison()
    with kvm_dbg.open(device) as kvm:
        before = read_truth()
        ours = Answers(kvm)
        comparison.hold(ours, before, read_truth(), os.getpid())
        for _ in range(RETRIES):
            first = read_load()
            load = kvm.load_average()
            if read_load() == first:
                break
        comparison.check("loadavg", [f"{one:.2f}" for one in (load.one, load.five, load.fifteen)], first)
    sys.stdout.write(json.dumps({"checked": comparison.checked, "wrong": comparison.wrong}))


if __name__ == "__main__":
    main(sys.argv[1])
