"""A finished dump as tests see it: its files, the kernel's files, and the guest's own words about itself."""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

_PF_KTHREAD = 0x00200000
"""include/linux/sched.h."""


@dataclass(frozen=True)
class DumpFile:
    """One dump of the guest, in one format."""

    kind: str
    """Its name within the scenario, such as "elf", "lzo-d31"; see README.md for the list."""
    paths: tuple[Path, ...]
    """One file, or the parts of a split dump in order."""
    form: str
    """elf, kdump, flattened-elf, flattened-kdump or raw."""
    level: int | None = None
    """makedumpfile's dump level; None where nothing was filtered by it."""
    damage: str = ""
    """What is wrong with the file on purpose, such as "cut at 60 percent"; empty for a whole one."""


@dataclass(frozen=True)
class CaughtFile:
    """QEMU's ELF dump of the guest at a catch (scenario.Catch); taken later than everything else."""

    path: Path
    function: str
    """CPU 0 is at its first instruction."""
    registers: dict[str, int]
    """Of CPU 0: what QEMU's stub for gdb said."""


@dataclass(frozen=True)
class ThreadTruth:
    """One /proc/PID/task/TID."""

    tid: int
    comm: bytes
    state: str
    wchan: bytes
    stack: bytes
    """/proc/PID/task/TID/stack: one `[<0>] function+0xoffset/0xsize` a line, innermost first."""


@dataclass(frozen=True)
class ProcessTruth:
    """One /proc/PID, parsed as proc(5) describes stat and status."""

    pid: int
    comm: bytes
    state: str
    ppid: int
    pgrp: int
    session: int
    tty: int
    """Device number as in stat: major << 8 | minor for those that a guest has; 0 without a terminal."""
    foreground: int
    """The terminal's foreground process group; -1 without a terminal."""
    flags: int
    utime: int
    """Clock ticks of 1/100 s."""
    stime: int
    priority: int
    nice: int
    threads: int
    start: int
    """Clock ticks of 1/100 s since boot."""
    size: int
    """Virtual size in bytes."""
    rss: int
    """Pages of 4096 bytes, as stat has it."""
    cpu: int
    uids: tuple[int, int, int, int]
    """Real, effective, saved, file system."""
    gids: tuple[int, int, int, int]
    groups: tuple[int, ...]
    kernel_thread: bool
    arguments: bytes
    """/proc/PID/cmdline as it is, NUL bytes and all."""
    environment: bytes
    """/proc/PID/environ as it is."""
    files: dict[int, bytes]
    """Descriptor to link target."""
    lwps: tuple[ThreadTruth, ...]


class Truth:
    """What the guest said about itself at one moment: a tar archive of its files, by path without the leading slash."""

    def __init__(self, path: Path) -> None:
        """Take the archive at `path`; it is read when first asked."""
        self.path = path

    @cached_property
    def contents(self) -> dict[str, bytes]:
        """All of it: name to bytes."""
        with tarfile.open(self.path) as archive:
            return {member.name: file.read() for member in archive if (file := archive.extractfile(member))}

    def read(self, name: str) -> bytes:
        """Return the file `name`, such as "proc/loadavg" or "dmesg"; raises KeyError where the guest had none."""
        return self.contents[name]

    def text(self, name: str) -> str:
        """Return the file `name` as text."""
        return self.read(name).decode()

    @cached_property
    def pids(self) -> tuple[int, ...]:
        """The process IDs, ascending."""
        matches = (re.fullmatch(r"proc/(\d+)/stat", name) for name in self.contents)
        return tuple(sorted(int(match[1]) for match in matches if match))

    @cached_property
    def processes(self) -> dict[int, ProcessTruth]:
        """Every process by its ID."""
        threads: dict[int, list[int]] = {}
        files: dict[int, dict[int, bytes]] = {}
        for name, data in self.contents.items():
            parts = name.split("/")
            if len(parts) == 5 and parts[2] == "task" and parts[4] == "stat":
                threads.setdefault(int(parts[1]), []).append(int(parts[3]))
            elif len(parts) == 4 and parts[0] == "proc" and parts[2] == "fd":
                files.setdefault(int(parts[1]), {})[int(parts[3])] = data
        return {pid: self._parse(pid, sorted(threads.get(pid, ())), files.get(pid, {})) for pid in self.pids}

    @cached_property
    def loadavg(self) -> tuple[str, str, str]:
        """The three load averages as /proc/loadavg prints them."""
        one, five, fifteen = self.text("proc/loadavg").split()[:3]
        return one, five, fifteen

    @cached_property
    def uptime(self) -> float:
        """Seconds since boot."""
        return float(self.text("proc/uptime").split()[0])

    @cached_property
    def symbols(self) -> dict[str, int]:
        """The kernel's own symbols in /proc/kallsyms; of a name that occurs twice, the first address."""
        table: dict[str, int] = {}
        for line in self.text("proc/kallsyms").splitlines():
            fields = line.split()
            if len(fields) == 3:
                table.setdefault(fields[2], int(fields[0], 16))
        return table

    @cached_property
    def records(self) -> tuple[bytes, ...]:
        """The records of /dev/kmsg, as dev-kmsg of the kernel's ABI documentation describes them."""
        return tuple(self.read("kmsg").split(b"\0")[:-1])

    def _parse(self, pid: int, tids: list[int], files: dict[int, bytes]) -> ProcessTruth:
        home = f"proc/{pid}"
        comm, fields = _split_stat(self.read(f"{home}/stat"))
        number = [int(field) for field in fields[1:]]
        status = self._parse_status(home)
        return ProcessTruth(
            pid=pid,
            comm=comm,
            state=fields[0].decode(),
            ppid=number[0],
            pgrp=number[1],
            session=number[2],
            tty=number[3],
            foreground=number[4],
            flags=number[5],
            utime=number[10],
            stime=number[11],
            priority=number[14],
            nice=number[15],
            threads=number[16],
            start=number[18],
            size=number[19],
            rss=number[20],
            cpu=number[35],
            uids=_four(status[b"Uid"]),
            gids=_four(status[b"Gid"]),
            groups=tuple(int(group) for group in status[b"Groups"].split()),
            kernel_thread=bool(number[5] & _PF_KTHREAD),
            arguments=self.contents.get(f"{home}/cmdline", b""),
            environment=self.contents.get(f"{home}/environ", b""),
            files=files,
            lwps=tuple(self._parse_thread(f"{home}/task/{tid}", tid) for tid in tids),
        )

    def _parse_status(self, home: str) -> dict[bytes, bytes]:
        table = {}
        for line in self.read(f"{home}/status").split(b"\n"):
            name, colon, value = line.partition(b":\t")
            if colon:
                table[name] = value
        return table

    def _parse_thread(self, home: str, tid: int) -> ThreadTruth:
        comm, fields = _split_stat(self.read(f"{home}/stat"))
        wchan, stack = (self.contents.get(f"{home}/{name}", b"") for name in ("wchan", "stack"))
        return ThreadTruth(tid, comm, fields[0].decode(), wchan, stack)


def _split_stat(line: bytes) -> tuple[bytes, list[bytes]]:
    """Return a stat line's command, which may contain anything, and the fields from the state on."""
    head, _, tail = line.rpartition(b") ")
    return head.partition(b" (")[2], tail.split()


def _four(value: bytes) -> tuple[int, int, int, int]:
    a, b, c, d = (int(field) for field in value.split())
    return a, b, c, d


class Dump:
    """A scenario's result."""

    def __init__(self, path: Path) -> None:
        """Take the finished directory at `path`."""
        self.path = path
        self.manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
        root = path / self.manifest["kernel_root"]
        self.name: str = self.manifest["name"]
        self.release: str = self.manifest["release"]
        self.levels: int = self.manifest["levels"]
        """Levels of the guest's page tables: 4 or 5."""
        self.memory: int = self.manifest["memory"]
        """Bytes of RAM."""
        self.slide: int = self.manifest["slide"]
        """How far the kernel's text runs from where it was linked, in bytes."""
        self.phys_base: int = self.manifest["phys_base"]
        self.vmlinux = (root / self.manifest["vmlinux"]).resolve()
        """With debug information."""
        self.modules = (root / self.manifest["modules"]).resolve()
        """A tree of .ko files as installed (compressed for some kernels)."""
        self.debug = (root / self.manifest["debug"]).resolve()
        """The root of debug files: lib/modules/RELEASE/... for the modules that are loaded."""
        self.files: dict[str, DumpFile] = {
            entry["kind"]: DumpFile(
                kind=entry["kind"],
                paths=tuple(path / name for name in entry["names"]),
                form=entry["form"],
                level=entry["level"],
                damage=entry["damage"],
            )
            for entry in self.manifest["files"]
        }
        self.caught: dict[str, CaughtFile] = {
            entry["name"]: CaughtFile(path / f"caught-{entry['name']}", entry["function"], entry["registers"])
            for entry in self.manifest["caught"]
        }
        """By the name of the catch."""
        self.programs: Path = path / self.manifest["programs"]
        """Programs with symbols and the libraries that they use, in the places that they have in the guest."""
        self.truth = Truth(path / "truth.tar")
        """Taken right before the dump."""
        after = path / "truth-after.tar"
        self.truth_after = Truth(after) if after.exists() else None
        """Taken right after it (processes, log and load only), where the guest lived on."""
        self.console = path / "console.log"
        """All that the guest printed on its console."""

    def __repr__(self) -> str:
        """Name the scenario."""
        return f"Dump({self.name!r})"

    @cached_property
    def moved(self) -> frozenset[str]:
        """Names of truth files that were different, new or gone after the dump: what a test must not insist on."""
        if self.truth_after is None:
            return frozenset()
        before, after = self.truth.contents, self.truth_after.contents
        live = {name for name in before if name.split("/")[1:2] and (name.split("/")[1].isdigit() or name in after)}
        return frozenset(name for name in live | set(after) if before.get(name) != after.get(name))
