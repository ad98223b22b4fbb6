"""What kvm(3) alone asks for of processes: the members of struct kinfo_proc2 that no command shows.

Sources: sys/kern/kern_proc.c, fill_kproc2(): which member comes from where; the maps of flags there (sysctl_flagmap and
the like) pass bits of several words on as one, each at its own place (sys/sys/proc.h, lwp.h, sysctl.h).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import MemberNotFound, ReadError
from kvm_dbg.kernel.layout import Record, decode_text, read_pointer
from kvm_dbg.kernel.netbsd.state import PL_CONTROLT, SDEAD, SZOMB

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MESSAGE_SIZE = 64  # bytes; KI_WMESGLEN, sys/sys/sysctl.h, cuts at 8
OF_PROC = (
    "fd", "cwdi", "stats", "limit", "vmspace", "sigacts", "tracep", "exitsig", "estcpu", "pctcpu", "uticks", "sticks",
    "iticks", "traceflag", "acflag", "xstat", "nice", "nrlwps",
)  # fmt: skip
OF_LWP = ("addr", "wchan", "swtime", "slptime")
OF_LWP_ALONE = ("stat", "cpticks", "pctcpu")
FLAGS = {  # member -> the bits that p_flag has of it
    "flag": 0xE4101,  # ADVLOCK, SUGID, EXEC, NOCLDWAIT, 32, CLDSIGIGN
    "sflag": 0x3802008,  # NOCLDSTOP, WEXIT, STOPFORK, STOPEXEC, STOPEXIT
    "slflag": 0x4410800,  # TRACED, FSTRACE, CHTRACED, SYSCALL
    "lflag": 0x12,  # CONTROLT, PPWAIT
    "stflag": 0x20,  # PROFIL
}
P_INMEM = 0x4  # always: nothing is swapped out as a whole
LWP_FLAGS = 0x280  # SINTR, SYSTEM
SIGNALS = (("siglist", "sigpend"), ("sigignore", "sigignore"), ("sigcatch", "sigcatch"))


def read_message(kernel: Kernel, lwp: Record) -> str | None:
    """Return what an LWP waits for, by the word that the kernel has for it; None if it waits for nothing."""
    if not lwp["wchan"] or not lwp["wmesg"]:
        return None
    return decode_text(read_string(kernel, lwp["wmesg"], MESSAGE_SIZE))


def signed32(value: int) -> int:
    """Return a number of 32 bits with its sign, whatever the type that it was read as."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


class KinfoReader:
    """Reads what only kvm(3) asks for."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def read(
        self, proc: Record, lwp: Record | None, group: Record | None, session: Record | None, space: Record | None
    ) -> dict[str, Any]:
        """Return members of struct kinfo_proc2 by name; those that cannot be read are left out."""
        reads: dict[str, Callable[[], Any]] = {f"p_{name}": partial(proc.__getitem__, name) for name in OF_PROC}
        reads["p_realstat"] = partial(proc.__getitem__, "stat")
        reads["p_flag"] = partial(_flags, proc, lwp)
        reads["p_realflag"] = partial(_flags, proc, None)
        for name, member in SIGNALS:
            reads[f"p_{name}"] = partial(_number, proc, member)
        if group is not None:
            reads["p_sess"] = partial(group.__getitem__, "session")
            reads["p_jobc"] = partial(_signed, group, "jobc")
        if session is not None:
            reads["p_login"] = partial(session.text, "login")
            reads["p_tsess"] = partial(self._session_of_terminal, proc, session)
        if space is not None:
            for name in ("tsize", "dsize", "ssize"):
                reads[f"p_vm_{name}"] = partial(space.__getitem__, name)
            reads["p_vm_vsize"] = partial(_pages, space, self._kernel.arch.page_shift)
            reads["p_vm_msize"] = partial(_used_pages, space, self._kernel.arch.page_shift)
        if lwp is not None:
            reads |= {f"p_{name}": partial(lwp.__getitem__, name) for name in OF_LWP}
            reads["p_wmesg"] = partial(_message, self._kernel, lwp)
            if proc["stat"] not in (SZOMB, SDEAD):
                reads["p_stat"] = partial(lwp.__getitem__, "stat")
        return _attempt(reads)

    def _session_of_terminal(self, proc: Record, session: Record) -> int:
        """Return the address of the session that the controlling terminal belongs to, 0 without one."""
        if not proc["lflag"] & PL_CONTROLT or not session["tty"]:
            return 0
        return read_pointer(self._kernel, session["tty"] + self._kernel.types.offset_of("struct tty", "t_session"))

    def read_lwp(self, lwp: Record) -> dict[str, Any]:
        """Return members of struct kinfo_lwp by name; those that cannot be read are left out."""
        return _attempt({f"l_{name}": partial(lwp.__getitem__, name) for name in (*OF_LWP, *OF_LWP_ALONE)})


def _attempt(reads: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, read in reads.items():
        try:
            found[name] = read()
        except (ReadError, MemberNotFound):
            continue  # this one stays unknown
    return found


def _number(record: Record, member: str) -> int:
    return int.from_bytes(record.bytes(member), "little")


def _signed(record: Record, member: str) -> int:
    return signed32(record[member])


def _pages(space: Record, shift: int) -> int:
    return space["size"] >> shift


def _used_pages(space: Record, shift: int) -> int:
    """Return the map's pages without the part of the stack that is only reserved."""
    return _pages(space, shift) - space["issize"] + space["ssize"]


def _flags(proc: Record, lwp: Record | None) -> int:
    bits = sum(proc[name] & mask for name, mask in FLAGS.items()) | P_INMEM
    return bits | (0 if lwp is None else lwp["flag"] & LWP_FLAGS)


def _message(kernel: Kernel, lwp: Record) -> str:
    return read_message(kernel, lwp) or ""
