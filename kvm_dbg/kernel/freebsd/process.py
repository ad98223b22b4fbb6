"""Processes and threads as ps(1) shows them.

Sources: sys/sys/proc.h and ucred.h; fill_kinfo_proc_only(), fill_kinfo_thread() in sys/kern/kern_proc.c (which member
is which of ps's fields). With no types but the kernel's own offsets, only PIDs, names and CPUs are known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import CorruptError, KvmDbgError, MemberNotFound
from kvm_dbg.kernel.base import Lwp, Process
from kvm_dbg.kernel.freebsd.proc import (
    attempt,
    for_each_thread_of,
    last_cpu_of,
    oncpu_of,
    proc_layout,
    sorted_procs,
)
from kvm_dbg.kernel.freebsd.state import (
    CRED_FLAG_CAPMODE,
    P_CONTROLT,
    P_INMEM,
    P_KPROC,
    PRS_ZOMBIE,
    TDI_LOCK,
    process_flags,
    state_letter,
)
from kvm_dbg.kernel.freebsd.time import process_time, read_clock, read_start_time, thread_time
from kvm_dbg.kernel.freebsd.tty import Terminal, read_terminal
from kvm_dbg.kernel.layout import Layout, Names, Record, decode_text, read_number

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MAX_GROUPS = 1 << 16
WMESG_LIMIT = 64  # bytes

IDS = ("uid", "ruid", "svuid", "gid", "rgid", "svgid")
UCRED: dict[str, Names] = {
    "uid": "cr_uid",
    "ruid": "cr_ruid",
    "svuid": "cr_svuid",
    "rgid": "cr_rgid",
    "svgid": "cr_svgid",
    "gid": ("cr_gid", None),  # a member of its own since 15, before that the first of the groups
    "ngroups": "cr_ngroups",
    "groups": "cr_groups",
    "flags": ("cr_flags", None),
}
GROUP: dict[str, Names] = {"id": "pg_id", "session": "pg_session"}
SESSION: dict[str, Names] = {"sid": "s_sid", "leader": "s_leader", "tty": "s_ttyp", "login": "s_login"}
SPACE: dict[str, Names] = {"size": "vm_map.size", "resident": "vm_pmap.pm_stats.resident_count"}


def for_each_process(kernel: Kernel) -> Iterator[Process]:
    """Yield all processes in ascending order of PID, zombies and the kernel's own process 0 included.

    Raises:
        ReadError, CorruptError: after the last one that could be found: the kernel's list is broken.
    """
    reader = ProcessReader(kernel)
    procs, failure = sorted_procs(kernel)
    reader.swaps = any(not proc.numbers.get("pid", 1) and proc.numbers.get("flag", 0) & P_INMEM for proc in procs)
    for proc in procs:
        try:
            process = reader.process(proc)
        except KvmDbgError as error:
            failure = failure or error
        else:
            yield process
    if failure is not None:
        raise failure


def for_each_lwp(kernel: Kernel, pid: int | None = None) -> Iterator[Lwp]:
    """Yield the threads of one process or of all, ascending by PID, then in the order of the kernel's list.

    Raises:
        ReadError, CorruptError: after the last one that could be found: one of the kernel's lists is broken.
    """
    reader = ProcessReader(kernel)
    procs, failure = sorted_procs(kernel)
    for proc in procs:
        if pid is not None and proc.numbers.get("pid") != pid:
            continue
        try:
            for thread in for_each_thread_of(kernel, proc):
                yield reader.lwp(proc, thread)
        except KvmDbgError as error:
            failure = failure or error
    if failure is not None:
        raise failure


class ProcessReader:
    """Describes processes and threads of one kernel.

    Attributes:
        swaps: whether this kernel swaps processes out: its own process, which never is, is marked as not swapped out.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.swaps = False
        self._ucred = self._layout("struct ucred", UCRED)
        self._group = self._layout("struct pgrp", GROUP)
        self._session = self._layout("struct session", SESSION)
        self._space = self._layout("struct vmspace", SPACE)

    def _layout(self, name: str, members: Mapping[str, Names]) -> Layout | None:
        """Return the members of a struct, None if this kernel tells nothing of it."""
        try:
            return Layout(self._kernel.types, name, members, self._kernel.arch.byteorder)
        except KvmDbgError:
            return None

    def _follow(self, layout: Layout | None, owner: Record, name: str) -> Record | None:
        """Return the struct that a pointer leads to, None for a null pointer. Raises ReadError, MemberNotFound."""
        if layout is None:
            raise MemberNotFound(owner.layout.name, name)
        address = owner[name]
        return layout.read(self._kernel, address) if address else None

    def process(self, proc: Record) -> Process:
        """Return a process. Raises ReadError if even its PID is not known."""
        kernel = self._kernel
        unread: list[str] = []
        pid = proc["pid"]
        first = attempt(unread, ("state", "cpu"), lambda: next(for_each_thread_of(kernel, proc), None))
        who = attempt(unread, (*IDS, "groups"), lambda: self._follow(self._ucred, proc, "ucred"))
        ids = attempt(unread, (*IDS, "groups"), lambda: self._credentials(who)) or {}
        group = attempt(unread, ("pgid", "sid", "tty"), lambda: self._follow(self._group, proc, "pgrp"))
        session = attempt(
            unread,
            ("sid", "tty"),
            lambda: None if group is None else self._follow(self._session, group, "session"),
        )
        pgid = attempt(unread, ("pgid",), lambda: None if group is None else group["id"])
        terminal = attempt(unread, ("tty", "tty_device", "tty_pgid"), lambda: self._terminal(proc, session))
        leader = session is not None and session.numbers.get("leader") == proc.address
        zombie = proc.numbers.get("state") == PRS_ZOMBIE
        space = (
            None if zombie else attempt(unread, ("rss", "vsize"), lambda: self._follow(self._space, proc, "vmspace"))
        )
        gone = zombie or proc.numbers.get("vmspace") == 0
        times = attempt(
            unread,
            ("user_time", "system_time", "run_time"),
            lambda: process_time(kernel, proc, for_each_thread_of(kernel, proc)),
        )
        threads = attempt(unread, ("threads",), lambda: proc["numthreads"])
        return Process(
            pid=pid,
            address=proc.address,
            ppid=attempt(unread, ("ppid",), lambda: self._parent(proc)),
            pgid=pgid,
            sid=attempt(unread, ("sid",), lambda: None if session is None else session["sid"]),
            **{name: ids.get(name) for name in IDS},
            groups=ids.get("groups", ()),
            state=attempt(unread, ("state",), lambda: state_letter(proc, first, read_clock(kernel))) or "?",
            flags=attempt(
                unread,
                ("flags",),
                lambda: process_flags(
                    proc,
                    first,
                    swaps=self.swaps,
                    capabilities=bool(who is not None and who.get("flags") & CRED_FLAG_CAPMODE),
                    leader=leader,
                    foreground=terminal is not None and pgid is not None and terminal.pgid == pgid,
                ),
            )
            or "",
            nice=attempt(unread, ("nice",), lambda: proc["nice"]),
            priority=None if first is None else attempt(unread, ("priority",), lambda: first["priority"]),
            cpu=None if first is None else attempt(unread, ("cpu",), lambda: cpu_of(first)),
            threads=threads if threads is not None and threads > 0 else 1,
            vsize=0 if gone else attempt(unread, ("vsize",), lambda: None if space is None else space["size"]),
            rss=0 if gone else attempt(unread, ("rss",), lambda: self._resident(space)),
            user_time=None if times is None else times.user,
            system_time=None if times is None else times.system,
            run_time=None if times is None else times.total,
            start_time=attempt(unread, ("start_time",), lambda: read_start_time(kernel, proc)),
            tty=None if terminal is None else terminal.name,
            tty_device=None if terminal is None else terminal.device,
            tty_pgid=None if terminal is None else terminal.pgid,
            command=attempt(unread, ("command",), lambda: proc.text("comm")) or "",
            kernel_thread=bool(proc.numbers.get("flag", 0) & P_KPROC),
            unread=tuple(dict.fromkeys(unread)),
            kinfo=self._kinfo(proc, first, group, session),
        )

    def lwp(self, proc: Record, thread: Record) -> Lwp:
        """Return a thread of a process. Raises ReadError if even its id is not known."""
        unread: list[str] = []
        clock = read_clock(self._kernel)
        times = attempt(unread, ("user_time", "system_time", "run_time"), lambda: thread_time(self._kernel, thread))
        return Lwp(
            lid=thread["tid"],
            pid=proc["pid"],
            address=thread.address,
            state=attempt(unread, ("state",), lambda: state_letter(proc, thread, clock)) or "?",
            cpu=attempt(unread, ("cpu",), lambda: cpu_of(thread)),
            on_cpu=attempt(unread, ("on_cpu",), lambda: oncpu_of(thread)) is not None,
            priority=attempt(unread, ("priority",), lambda: thread["priority"]),
            user_time=None if times is None else times.user,
            system_time=None if times is None else times.system,
            run_time=None if times is None else times.total,
            wait_channel=attempt(unread, ("wait_channel",), lambda: self._wait_message(thread)),
            name=attempt(unread, ("name",), lambda: thread.text("name") or proc.text("comm")) or "",
            kernel_thread=bool(proc.numbers.get("flag", 0) & P_KPROC),
            unread=tuple(dict.fromkeys(unread)),
        )

    def _wait_message(self, thread: Record) -> str | None:
        """Return what a thread waits for, a lock with a star before its name as in ps. Raises ReadError."""
        if thread["inhibitors"] & TDI_LOCK and thread["lockname"]:
            return "*" + decode_text(read_string(self._kernel, thread["lockname"], WMESG_LIMIT))
        address = thread["wmesg"]
        return decode_text(read_string(self._kernel, address, WMESG_LIMIT)) if address else None

    def _parent(self, proc: Record) -> int:
        """Return the parent's PID: p_oppid, where that is kept (always since 13, while traced before)."""
        own = proc.get("oppid")
        parent = proc["pptr"]
        if own or not parent:
            return own
        place = parent + proc_layout(self._kernel).offsets["pid"]
        return read_number(self._kernel, place, 4, signed=True)

    def _credentials(self, cred: Record | None) -> dict[str, Any]:
        """Return the ids, and the supplementary groups. Raises ReadError, CorruptError."""
        if cred is None:
            return {}
        found: dict[str, Any] = {name: cred[name] for name in IDS if name != "gid"}
        count = cred["ngroups"]
        if not 0 <= count <= MAX_GROUPS:
            raise CorruptError(cred.address, f"a process has {count} groups")
        if "groups" in cred.numbers:
            data = self._kernel.read(cred["groups"], 4 * count) if count else b""
        else:
            data = cred.bytes("groups")[: 4 * count]  # an array before 8
        order = "<" if self._kernel.arch.byteorder == "little" else ">"
        groups = struct.unpack(f"{order}{len(data) // 4}I", data)
        if "gid" in cred:
            return found | {"gid": cred["gid"], "groups": groups}
        return found | {"gid": groups[0] if groups else None, "groups": groups[1:]}

    def _terminal(self, proc: Record, session: Record | None) -> Terminal | None:
        if session is None or not proc["flag"] & P_CONTROLT or not session["tty"]:
            return None
        return read_terminal(self._kernel, session["tty"])

    def _resident(self, space: Record | None) -> int | None:
        return None if space is None else space["resident"] << self._kernel.arch.page_shift

    def _kinfo(
        self, proc: Record, first: Record | None, group: Record | None, session: Record | None
    ) -> dict[str, Any]:
        """Return what only kvm(3) asks for, by the members of struct kinfo_proc2; what cannot be read is left out."""
        found: dict[str, Any] = {}
        for name in ("fd", "stats", "vmspace"):
            found[f"p_{name}"] = proc.numbers.get(name)
        found["p_sess"] = None if group is None else group.numbers.get("session")
        found["p_login"] = None if session is None else attempt([], (), lambda: session.text("login"))
        found["p_wmesg"] = None if first is None else attempt([], (), lambda: self._wait_message(first))
        return {name: value for name, value in found.items() if value is not None}


def cpu_of(thread: Record) -> int | None:
    """Return the CPU that a thread runs on, else the one that it last ran on. Raises ReadError."""
    cpu = oncpu_of(thread)
    if cpu is not None:
        return cpu
    return last_cpu_of(thread)
