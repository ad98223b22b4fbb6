"""Processes and threads as ps(1) shows them.

Sources: sys/sys/proc.h and ucred.h; fill_kinfo_proc_only(), fill_kinfo_thread() in sys/kern/kern_proc.c (which member
is which of ps's fields); bin/ps/print.c, state() (letters). With no types but the kernel's own offsets, only PIDs,
names and CPUs are known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import CorruptError, KvmDbgError, MemberNotFound
from kvm_dbg.kernel.base import Lwp, Process
from kvm_dbg.kernel.freebsd.proc import (
    attempt,
    for_each_thread_of,
    oncpu_of,
    proc_layout,
    sorted_procs,
)
from kvm_dbg.kernel.layout import Layout, Names, Record, decode_text, read_number

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

P_CONTROLT, P_KPROC, P_PPWAIT, P_SYSTEM = 0x2, 0x4, 0x10, 0x200
P_TRACED, P_WEXIT, P_STOPPED = 0x800, 0x2000, 0xE0000
PRS_NEW, PRS_NORMAL, PRS_ZOMBIE = 0, 1, 2
TDS_INHIBITED = 1
TDI_SLEEPING, TDI_LOCK = 0x2, 0x8
TDF_SINTR = 0x8
MAX_GROUPS = 1 << 16
WMESG_LIMIT = 64  # bytes

UCRED: dict[str, Names] = {
    "uid": "cr_uid",
    "ruid": "cr_ruid",
    "svuid": "cr_svuid",
    "rgid": "cr_rgid",
    "svgid": "cr_svgid",
    "gid": ("cr_gid", None),  # a member of its own since 15, before that the first of the groups
    "ngroups": "cr_ngroups",
    "groups": "cr_groups",
}


def for_each_process(kernel: Kernel) -> Iterator[Process]:
    """Yield all processes in ascending order of PID, zombies and the kernel's own process 0 included.

    Raises:
        ReadError, CorruptError: after the last one that could be found: the kernel's list is broken.
    """
    reader = ProcessReader(kernel)
    procs, failure = sorted_procs(kernel)
    for proc in procs:
        yield reader.process(proc)
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
    """Describes processes and threads of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        try:
            self._ucred: Layout | None = Layout(kernel.types, "struct ucred", UCRED, kernel.arch.byteorder)
        except KvmDbgError:
            self._ucred = None

    def process(self, proc: Record) -> Process:
        """Return a process. Raises ReadError if even its PID is not known."""
        unread: list[str] = []
        first = attempt(unread, ("cpu",), lambda: next(for_each_thread_of(self._kernel, proc), None))
        flag = attempt(unread, ("flags",), lambda: proc["flag"]) or 0
        who = attempt(unread, ("uid", "ruid", "svuid", "gid", "rgid", "svgid"), lambda: self._credentials(proc))
        threads = attempt(unread, ("threads",), lambda: proc["numthreads"])
        ids = attempt(unread, ("pgid", "sid"), lambda: self._group(proc))
        state = attempt(unread, ("state",), lambda: state_letter(proc, first)) or "?"
        cpu = None if first is None else attempt(unread, ("cpu",), lambda: cpu_of(first))
        return Process(
            pid=proc["pid"],
            address=proc.address,
            ppid=attempt(unread, ("ppid",), lambda: self._parent(proc)),
            pgid=ids[0] if ids else None,
            sid=ids[1] if ids else None,
            uid=who.get("uid") if who else None,
            ruid=who.get("ruid") if who else None,
            svuid=who.get("svuid") if who else None,
            gid=who.get("gid") if who else None,
            rgid=who.get("rgid") if who else None,
            svgid=who.get("svgid") if who else None,
            state=state,
            flags="".join(letter for bit, letter in FLAG_LETTERS if flag & bit),
            nice=attempt(unread, ("nice",), lambda: proc["nice"]),
            priority=None if first is None else attempt(unread, ("priority",), lambda: first["priority"]),
            cpu=cpu,
            threads=threads if threads is not None and threads > 0 else 1,
            vsize=attempt(unread, ("vsize",), lambda: self._vsize(proc)),
            rss=attempt(unread, ("rss",), lambda: self._rss(proc)),
            command=attempt(unread, ("command",), lambda: proc.text("comm")) or "",
            kernel_thread=bool(flag & (P_KPROC | P_SYSTEM)),
            unread=tuple(dict.fromkeys(unread)),
        )

    def lwp(self, proc: Record, thread: Record) -> Lwp:
        """Return a thread of a process. Raises ReadError if even its id is not known."""
        unread: list[str] = []
        return Lwp(
            lid=thread["tid"],
            pid=proc["pid"],
            address=thread.address,
            state=attempt(unread, ("state",), lambda: state_letter(proc, thread)) or "?",
            cpu=attempt(unread, ("cpu",), lambda: cpu_of(thread)),
            on_cpu=attempt(unread, ("on_cpu",), lambda: oncpu_of(thread)) is not None,
            priority=attempt(unread, ("priority",), lambda: thread["priority"]),
            wait_channel=attempt(unread, ("wait_channel",), lambda: self._wait_message(thread)),
            name=attempt(unread, ("name",), lambda: thread.text("name") or proc.text("comm")) or "",
            kernel_thread=bool(proc.numbers.get("flag", 0) & (P_KPROC | P_SYSTEM)),
            unread=tuple(dict.fromkeys(unread)),
        )

    def _wait_message(self, thread: Record) -> str | None:
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

    def _credentials(self, proc: Record) -> dict[str, int]:
        if self._ucred is None:
            raise MemberNotFound("struct proc", "p_ucred")
        address = proc["ucred"]
        if not address:
            return {}
        cred = self._ucred.read(self._kernel, address)
        found = {name: cred[name] for name in ("uid", "ruid", "svuid", "rgid", "svgid")}
        count = cred["ngroups"]
        if not 0 <= count <= MAX_GROUPS:
            raise CorruptError(address, f"a process has {count} groups")
        if "gid" in cred:
            found["gid"] = cred["gid"]
        elif count:
            groups = cred["groups"] if "groups" in cred.numbers else None
            if groups is not None:
                order = "<" if self._kernel.arch.byteorder == "little" else ">"
                (found["gid"],) = struct.unpack(f"{order}I", self._kernel.read(groups, 4))
        return found

    def _group(self, proc: Record) -> tuple[int, int | None]:
        types, order = self._kernel.types, self._kernel.arch.byteorder
        address = proc["pgrp"]
        if not address:
            raise MemberNotFound("struct proc", "p_pgrp")
        group = Layout(types, "struct pgrp", {"id": "pg_id", "session": "pg_session"}, order).read(
            self._kernel, address
        )
        if not group["session"]:
            return group["id"], None
        session = Layout(types, "struct session", {"sid": "s_sid"}, order).read(self._kernel, group["session"])
        return group["id"], session["sid"]

    def _space(self, proc: Record, member: str) -> int:
        address = proc["vmspace"]
        if not address or proc.numbers.get("state") == PRS_ZOMBIE:
            return 0
        layout = Layout(self._kernel.types, "struct vmspace", {"value": member}, self._kernel.arch.byteorder)
        return layout.read(self._kernel, address)["value"]

    def _vsize(self, proc: Record) -> int:
        return self._space(proc, "vm_map.size")

    def _rss(self, proc: Record) -> int:
        return self._space(proc, "vm_pmap.pm_stats.resident_count") << self._kernel.arch.page_shift


FLAG_LETTERS = ((P_TRACED, "X"), (P_WEXIT, "E"), (P_PPWAIT, "V"), (P_SYSTEM, "L"))


def state_letter(proc: Record, thread: Record | None) -> str:
    """Return ps's letter. Raises MemberNotFound, ReadError if that is not known."""
    state = proc["state"]
    if state == PRS_ZOMBIE:
        return "Z"
    if state == PRS_NEW or thread is None:
        return "R" if state == PRS_NEW else "?"
    if thread["state"] != TDS_INHIBITED:
        return "R"
    if proc["flag"] & P_STOPPED:
        return "T"
    inhibitors = thread["inhibitors"]
    if inhibitors & TDI_SLEEPING:
        return "S" if thread["flags"] & TDF_SINTR else "D"
    return "L" if inhibitors & TDI_LOCK else "W"


def cpu_of(thread: Record) -> int | None:
    """Return the CPU that a thread runs on, else the one that it last ran on. Raises ReadError."""
    cpu = oncpu_of(thread)
    if cpu is not None:
        return cpu
    last = thread.get("lastcpu", -1)
    return last if last >= 0 else None
