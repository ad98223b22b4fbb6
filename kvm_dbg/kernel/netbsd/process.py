"""Processes and LWPs as ps(1) shows them.

Sources: sys/sys/proc.h, lwp.h, kauth_impl.h (struct kauth_cred), sys/sys/resourcevar.h (struct pstats),
sys/uvm/uvm_extern.h (struct vmspace), sys/kern/kern_proc.c, fill_kproc2() and fill_lwp(): which member comes from
where; there p_vm_msize, which ps shows as VSZ, is the map without the part of the stack that is only reserved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.base import Lwp, Process
from kvm_dbg.kernel.layout import Layout, Names, Record, decode_text, read_number, read_pointer
from kvm_dbg.kernel.netbsd.cpu import read_cpus, read_current_lwps
from kvm_dbg.kernel.netbsd.kinfo import KinfoReader, read_message, signed32
from kvm_dbg.kernel.netbsd.proc import proc_layout, read_lwps, read_procs
from kvm_dbg.kernel.netbsd.state import (
    LW_SYSTEM,
    NZERO,
    PK_SYSTEM,
    PL_CONTROLT,
    SDEAD,
    SZOMB,
    find_representative,
    lwp_letter,
    proc_flags,
    proc_letter,
)
from kvm_dbg.kernel.netbsd.time import bintime, share_time
from kvm_dbg.kernel.netbsd.tty import Terminal, TerminalReader

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

Result = TypeVar("Result")

MISSING = (ReadError, CorruptError, SymbolNotFound, TypeNotFound, MemberNotFound)  # what costs a field, not the line
CRED: dict[str, Names] = {
    "ruid": "cr_uid", "uid": "cr_euid", "svuid": "cr_svuid", "rgid": "cr_gid", "gid": "cr_egid", "svgid": "cr_svgid",
    "ngroups": "cr_ngroups", "groups": "cr_groups",
}  # fmt: skip
IDS = tuple(CRED)[:6]
GROUP: dict[str, Names] = {"id": "pg_id", "jobc": "pg_jobc", "session": "pg_session"}
SESSION: dict[str, Names] = {
    "sid": ("s_sid", None), "leader": "s_leader", "tty": "s_ttyp", "ttyvp": "s_ttyvp", "login": "s_login",
}  # fmt: skip
SPACE: dict[str, Names] = {
    "pmap": "vm_map.pmap", "size": "vm_map.size", "tsize": "vm_tsize", "dsize": "vm_dsize", "ssize": "vm_ssize",
    "issize": ("vm_issize", None),
}  # fmt: skip
STATS: dict[str, Names] = {"start": "p_start"}
NAME_SIZE = 64
MAX_GROUPS = 1024


def for_each_process(kernel: Kernel) -> Iterator[Process]:
    """Yield all processes in ascending order of PID, zombies and the kernel's own process 0 included.

    Raises:
        ReadError, CorruptError: after the last one that could be found: one of the kernel's lists is broken.
    """
    reader = ProcessReader(kernel)
    procs, failure = read_procs(kernel)
    for proc in procs:
        yield reader.process(proc)
    if failure is not None:
        raise failure


def for_each_lwp(kernel: Kernel, pid: int | None = None) -> Iterator[Lwp]:
    """Yield the LWPs of one process or of all, ascending by PID, then by LWP id.

    Raises:
        ReadError, CorruptError: after the last one that could be found: one of the kernel's lists is broken.
    """
    reader = ProcessReader(kernel)
    procs, failure = read_procs(kernel)
    for proc in procs:
        if pid is not None and proc["pid"] != pid:
            continue
        lwps, broken = read_lwps(kernel, proc)
        failure = failure or broken
        for lwp in sorted(lwps, key=lambda lwp: lwp["lid"]):
            yield reader.lwp(proc, lwp)
    if failure is not None:
        raise failure


class ProcessReader:
    """Describes the processes of one kernel; what several of them share is read once."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._cred = self._layout("struct kauth_cred", CRED)
        self._group = self._layout("struct pgrp", GROUP)
        self._session = self._layout("struct session", SESSION)
        self._space = self._layout("struct vmspace", SPACE)
        self._stats = self._layout("struct pstats", STATS)
        self._resident = kernel.types.offset_of("struct pmap", "pm_stats")  # begins with resident_count, uvm_pmap.h
        self._terminals = TerminalReader(kernel)
        self._page_size = 1 << kernel.arch.page_shift
        self._kinfo = KinfoReader(kernel)
        self._current: frozenset[int] | None = None

    def _layout(self, name: str, members: Mapping[str, Names]) -> Layout:
        return Layout(self._kernel.types, name, members, self._kernel.arch.byteorder)

    def process(self, proc: Record) -> Process:
        """Return a process. Raises ReadError."""
        unread: list[str] = []
        dead = proc["stat"] in (SZOMB, SDEAD)
        lwps, broken = read_lwps(self._kernel, proc)
        if broken is not None:
            unread += ["state", "user_time", "system_time"]
        lwp = attempt(unread, ("state",), lambda: find_representative(proc, lwps))
        who = attempt(unread, (*IDS, "groups"), lambda: self._credentials(proc["cred"]))
        group = attempt(unread, ("pgid",), lambda: self._group.read(self._kernel, proc["pgrp"]))
        session = attempt(
            unread,
            ("sid", "tty"),
            lambda: None if group is None else self._session.read(self._kernel, group["session"]),
        )
        terminal = attempt(unread, ("tty", "tty_device", "tty_pgid"), lambda: self._terminal(proc, session))
        pgid = group["id"] if group is not None else None
        space = (
            None if dead else attempt(unread, ("rss", "vsize"), lambda: self._space.read(self._kernel, proc["vmspace"]))
        )
        times = (
            attempt(unread, ("user_time", "system_time"), lambda: share_time(proc, lwps)) if broken is None else None
        )
        leader = session is not None and session["leader"] == proc.address
        foreground = terminal is not None and terminal.pgid is not None and terminal.pgid == pgid
        return Process(
            pid=proc["pid"],
            address=proc.address,
            ppid=attempt(unread, ("ppid",), lambda: self._parent(proc)),
            pgid=pgid,
            sid=attempt(unread, ("sid",), lambda: None if session is None else self._session_id(session)),
            **({name: who[name] for name in IDS} if who is not None else {}),
            groups=attempt(unread, ("groups",), lambda: () if who is None else _groups(who)) or (),
            state=attempt(unread, ("state",), lambda: proc_letter(proc, lwp)) or "?",
            flags=attempt(unread, ("flags",), lambda: proc_flags(proc, leader=leader, foreground=foreground)) or "",
            nice=proc["nice"] - NZERO,
            priority=attempt(unread, ("priority",), lambda: None if lwp is None else signed32(lwp["priority"])),
            cpu=attempt(
                unread, ("cpu",), lambda: None if lwp is None or dead else read_cpus(self._kernel).get(lwp["cpu"])
            ),
            threads=proc["nlwps"],
            rss=0 if dead else attempt(unread, ("rss",), lambda: self._resident_size(space)),
            vsize=0 if dead else attempt(unread, ("vsize",), lambda: self._size(proc, space)),
            user_time=None if times is None else times.user,
            system_time=None if times is None else times.system,
            start_time=None if dead else attempt(unread, ("start_time",), lambda: self._start(proc)),
            tty=None if terminal is None else terminal.name,
            tty_device=None if terminal is None else terminal.device,
            tty_pgid=None if terminal is None else terminal.pgid,
            command=proc.text("comm"),
            kernel_thread=bool(proc["flag"] & PK_SYSTEM),
            unread=tuple(dict.fromkeys(unread)),
            run_time=None if times is None else times.total,
            kinfo=self._kinfo.read(proc, lwp, group, session, space),
        )

    def lwp(self, proc: Record, lwp: Record) -> Lwp:
        """Return an LWP of a process. Raises ReadError."""
        unread: list[str] = []
        time = attempt(unread, ("run_time",), lambda: bintime(lwp.bytes("rtime")))
        return Lwp(
            lid=lwp["lid"],
            pid=proc["pid"],
            address=lwp.address,
            state=attempt(unread, ("state",), lambda: lwp_letter(lwp)) or "?",
            cpu=attempt(unread, ("cpu",), lambda: read_cpus(self._kernel).get(lwp["cpu"])),
            on_cpu=lwp.address in self._running(),
            priority=signed32(lwp["priority"]),
            run_time=time,
            wait_channel=attempt(unread, ("wait_channel",), lambda: read_message(self._kernel, lwp)),
            name=attempt(unread, ("name",), lambda: self.name(proc, lwp)) or "",
            kernel_thread=bool(lwp["flag"] & LW_SYSTEM),
            unread=tuple(unread),
            kinfo=self._kinfo.read_lwp(lwp),
        )

    def name(self, proc: Record, lwp: Record) -> str:
        """Return the name of an LWP, of its process if it has none of its own. Raises ReadError."""
        own = decode_text(read_string(self._kernel, lwp["name"], NAME_SIZE)) if lwp["name"] else ""
        return own or proc.text("comm")

    def _running(self) -> frozenset[int]:
        """Return the addresses of the LWPs that CPUs run, by the CPUs' word."""
        if self._current is None:
            try:
                self._current = frozenset(read_current_lwps(self._kernel).values())
            except MISSING:
                self._current = frozenset()
        return self._current

    def _credentials(self, address: int) -> Record:
        who = self._cred.read(self._kernel, address)
        for name in IDS:
            who[name]  # all of them, or none
        return who

    def _terminal(self, proc: Record, session: Record | None) -> Terminal | None:
        if session is None or not proc["lflag"] & PL_CONTROLT or not session["tty"]:
            return None
        return self._terminals.read(session["tty"])

    def _parent(self, proc: Record) -> int:
        if not proc["parent"]:
            return 0
        return self._pid_of(proc["parent"])

    def _session_id(self, session: Record) -> int | None:
        if "sid" in session:
            return signed32(session["sid"])
        return self._pid_of(session["leader"]) if session["leader"] else None

    def _pid_of(self, address: int) -> int:
        return read_number(self._kernel, address + proc_layout(self._kernel).offsets["pid"], 4, signed=True)

    def _resident_size(self, space: Record | None) -> int | None:
        if space is None:
            return None
        return read_pointer(self._kernel, space["pmap"] + self._resident) * self._page_size  # a long

    def _size(self, proc: Record, space: Record | None) -> int | None:
        """Return what ps shows as VSZ, in bytes."""
        if space is None or proc["flag"] & PK_SYSTEM:
            return None if space is None else 0
        reserved = space.get("issize") - space["ssize"] if "issize" in space else 0
        return space["size"] - reserved * self._page_size

    def _start(self, proc: Record) -> float:
        stats = self._stats.read(self._kernel, proc["stats"])
        return timeval(stats.bytes("start"))


def attempt(unread: list[str], names: tuple[str, ...], read: Callable[[], Result]) -> Result | None:
    """Return what `read` returns; if the image lacks it, note the fields `names` as unread and return None."""
    try:
        return read()
    except MISSING:
        unread += names
        return None


def timeval(data: bytes) -> float:
    """Return a struct timeval in seconds."""
    return int.from_bytes(data[:8], "little", signed=True) + int.from_bytes(data[8:12], "little", signed=True) / 1e6


def _groups(who: Record) -> tuple[int, ...]:
    data = who.bytes("groups")
    count = min(who["ngroups"], len(data) // 4, MAX_GROUPS)
    return tuple(int.from_bytes(data[4 * number : 4 * number + 4], "little") for number in range(count))
