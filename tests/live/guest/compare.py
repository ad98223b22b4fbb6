"""Runs in the live guest: asks kvm_dbg about its memory, and holds the answers against /proc at the same time.

    compare.py DEVICE

/proc is read before and after. What is the same both times must be what kvm_dbg says; how much that is, is counted.
Prints JSON: {"checked": {WHAT: NUMBER}, "wrong": [TEXT, ...]}.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

sys.path.insert(0, "/kvm")
import kvm_dbg

TICK = os.sysconf("SC_CLK_TCK")
RETRIES = 5


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


def read_truth() -> dict[int, dict[str, Any]]:
    """Return PID -> what /proc says of it."""
    found: dict[int, dict[str, Any]] = {}
    for pid in numbers("/proc"):
        stat, status = read_stat(f"/proc/{pid}/stat"), read(f"/proc/{pid}/status")
        if stat is None or status is None:
            continue
        lines = dict(line.split(b":", 1) for line in status.splitlines() if b":" in line)
        threads = {tid: read_stat(f"/proc/{pid}/task/{tid}/stat") for tid in numbers(f"/proc/{pid}/task")}
        found[pid] = {
            "command": stat[0],
            "state": stat[1][0].decode(),
            "numbers": [int(stat[1][n - 3]) for n in (4, 5, 6, 18, 19, 20, 23, 39)],
            "times": [int(stat[1][n - 3]) for n in (14, 15)],
            "ids": [int(word) for name in (b"Uid", b"Gid") for word in lines[name].split()[:3]],
            "kernel": bool(int(stat[1][6]) & 0x200000),
            "args": read(f"/proc/{pid}/cmdline"),
            "env": read(f"/proc/{pid}/environ"),
            "threads": {tid: (one[0], one[1][0].decode()) for tid, one in threads.items() if one is not None},
        }
    return found


def strings(data: bytes) -> list[bytes]:
    """Return the strings that NULs end."""
    return data.split(b"\0")[:-1] if data.endswith(b"\0") or not data else data.split(b"\0")


def escaped(text: str) -> str:
    """Return text as /dev/kmsg prints it (kernel/printk/printk.c: msg_add_ext_text())."""
    return "".join(f"\\x{byte:02x}" if byte < 32 or byte >= 127 or byte == 92 else chr(byte) for byte in text.encode())


def main(device: str) -> None:
    """Compare everything."""
    wrong: list[str] = []
    checked: dict[str, int] = {}

    def check(what: str, ours: object, theirs: object, where: object = "") -> None:
        checked[what] = checked.get(what, 0) + 1
        if ours != theirs:
            wrong.append(f"{what} {where}: ours {ours!r}, of /proc {theirs!r}")

    with kvm_dbg.open(device) as kvm:
        before = read_truth()
        ours = {process.pid: process for process in kvm.processes()}
        lwps: dict[int, dict[int, tuple[str, str]]] = {}
        for lwp in kvm.lwps():
            lwps.setdefault(lwp.pid, {})[lwp.lid] = (lwp.name, lwp.state)
        args = {pid: kvm.arguments(process) for pid, process in ours.items()}
        env = {pid: kvm.environment(process) for pid, process in ours.items()}
        after = read_truth()
        for pid in ours:
            if pid not in before and pid not in after:
                wrong.append(f"process {pid} ({ours[pid].command}) is a phantom")
        for pid, truth in before.items():
            if pid not in after:
                continue
            checked["processes"] = checked.get("processes", 0) + 1
            process = ours.get(pid)
            if process is None:
                wrong.append(f"process {pid} ({truth['command']}) is missing")
                continue
            if process.unread:
                wrong.append(f"process {pid}: unread: {process.unread}")
            if after[pid] != truth or pid == os.getpid():
                continue
            if truth["command"].startswith("kworker/"):  # its name tells what it last did, and so does its state
                check("workers", process.command[:8], "kworker/", pid)
                continue
            check("identity", (process.command, process.state), (truth["command"], truth["state"]), pid)
            fields = [process.ppid, process.pgid, process.sid, process.priority, process.nice, process.threads]
            check("fields", [*fields, process.vsize, process.cpu], truth["numbers"], pid)
            ids = [process.ruid, process.uid, process.svuid, process.rgid, process.gid, process.svgid]
            check("ids", ids, truth["ids"], pid)
            check(
                "times",
                [int((seconds or 0) * TICK) for seconds in (process.user_time, process.system_time)],
                truth["times"],
                pid,
            )
            check("threads", lwps.get(pid), truth["threads"], pid)
            if truth["kernel"] or truth["state"] == "Z":
                check("no strings", (args[pid], env[pid]), (None, None), pid)
            else:
                check("args", args[pid], strings(truth["args"]), pid)
                check("env", env[pid], strings(truth["env"]), pid)
        for _ in range(RETRIES):
            first = (read("/proc/loadavg") or b"").split()[:3]
            load = kvm.load_average()
            if (read("/proc/loadavg") or b"").split()[:3] == first:
                break
        check("loadavg", [f"{one:.2f}" for one in (load.one, load.five, load.fifteen)], [w.decode() for w in first])
        for line in (read("/proc/modules") or b"").splitlines():
            name, size, users, _, state, address = line.decode().split()[:6]
            module = next((module for module in kvm.modules() if module.name == name), None)
            mine = module and [module.size, module.reference_count, module.state, module.address]
            check("mods", mine, [int(size), int(users), state.lower(), int(address, 16)], name)
        logged = {record.sequence: record for record in kvm.log()}
        kmsg = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        while True:
            try:
                head, _, text = os.read(kmsg, 8192).partition(b";")
            except BlockingIOError:
                break
            priority, sequence, microseconds = (int(word) for word in head.split(b",")[:3])
            record = logged.get(sequence)
            seconds = record.seconds if record is not None and record.seconds is not None else 0.0
            said = record and [record.level, int(seconds * 1000000 + 0.0005), escaped(record.text)]
            check("log", said, [priority & 7, microseconds, text.split(b"\n")[0].decode()], sequence)
    sys.stdout.write(json.dumps({"checked": checked, "wrong": wrong}))


main(sys.argv[1])
