"""What kvm(3) alone asks for of processes: the members of struct kinfo_proc2 that no command shows.

Source: sys/kern/kern_proc.c, fill_kproc2(): which member comes from where.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import MemberNotFound, ReadError
from kvm_dbg.kernel.layout import Record, decode_text
from kvm_dbg.kernel.netbsd.state import SDEAD, SZOMB

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MESSAGE_SIZE = 64  # bytes; KI_WMESGLEN, sys/sys/sysctl.h, cuts at 8
OF_PROC = (
    "fd", "cwdi", "stats", "limit", "vmspace", "sigacts", "tracep", "exitsig", "estcpu", "pctcpu", "uticks", "sticks",
    "iticks", "traceflag", "acflag", "xstat",
)  # fmt: skip
OF_LWP = ("addr", "wchan", "swtime", "slptime")
OF_LWP_ALONE = ("stat", "cpticks", "pctcpu")
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
        for name, member in SIGNALS:
            reads[f"p_{name}"] = partial(_number, proc, member)
        if group is not None:
            reads["p_sess"] = partial(group.__getitem__, "session")
            reads["p_jobc"] = partial(_signed, group, "jobc")
        if session is not None:
            reads["p_login"] = partial(session.text, "login")
        if space is not None:
            for name in ("tsize", "dsize", "ssize"):
                reads[f"p_vm_{name}"] = partial(space.__getitem__, name)
            reads["p_vm_vsize"] = partial(_pages, space, self._kernel.arch.page_shift)
        if lwp is not None:
            reads |= {f"p_{name}": partial(lwp.__getitem__, name) for name in OF_LWP}
            reads["p_wmesg"] = partial(_message, self._kernel, lwp)
            if proc["stat"] not in (SZOMB, SDEAD):
                reads["p_stat"] = partial(lwp.__getitem__, "stat")
        return _attempt(reads)

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


def _message(kernel: Kernel, lwp: Record) -> str:
    return read_message(kernel, lwp) or ""
