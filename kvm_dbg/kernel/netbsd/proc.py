"""Processes and their threads (LWPs) as structures: where they are listed, and what is read of each.

Sources: sys/sys/proc.h (struct proc: `allproc` and `zombproc` are LISTs through p_list, a process's LWPs one through
l_sibling from p_lwps), sys/sys/lwp.h, sys/kern/kern_proc.c (a new process is put first; whoever walks the list without
holding it puts a dummy with PK_MARKER into it, PROCLIST_FOREACH).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError, KvmDbgError, ReadError, SymbolNotFound
from kvm_dbg.kernel.bsd.queue import for_each_entry
from kvm_dbg.kernel.layout import Layout, Names, Record, read_number, remembered
from kvm_dbg.kernel.netbsd.state import PK_MARKER

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

LISTS = ("allproc", "zombproc")
MAX_PROCESSES = 1 << 17  # PID_MAX is 30000, sys/proc.h
MAX_LWPS = 1 << 20

PROC: dict[str, Names] = {
    "list": "p_list",
    "pid": "p_pid",
    "parent": "p_pptr",
    "ppid": ("p_ppid", None),
    "flag": "p_flag",
    "sflag": "p_sflag",
    "slflag": "p_slflag",
    "lflag": "p_lflag",
    "stflag": "p_stflag",
    "stat": "p_stat",
    "comm": "p_comm",
    "cred": "p_cred",
    "fd": "p_fd",
    "cwdi": "p_cwdi",
    "stats": "p_stats",
    "limit": "p_limit",
    "vmspace": "p_vmspace",
    "sigacts": "p_sigacts",
    "pgrp": "p_pgrp",
    "lwps": "p_lwps",
    "nlwps": "p_nlwps",
    "nrlwps": "p_nrlwps",
    "nice": "p_nice",
    "exitsig": "p_exitsig",
    "estcpu": ("p_estcpu", None),
    "pctcpu": "p_pctcpu",
    "rtime": "p_rtime",
    "uticks": "p_uticks",
    "sticks": "p_sticks",
    "iticks": "p_iticks",
    "traceflag": "p_traceflag",
    "tracep": "p_tracep",
    "xstat": ("p_xexit", "p_xstat", None),
    "acflag": "p_acflag",
    "psstrp": ("p_psstrp", None),
    "sigpend": "p_sigpend.sp_set",
    "sigignore": "p_sigctx.ps_sigignore",
    "sigcatch": "p_sigctx.ps_sigcatch",
    "sig_lwp": ("p_sigctx.ps_lwp", None),
}
LWP: dict[str, Names] = {
    "sibling": "l_sibling",
    "proc": "l_proc",
    "lid": "l_lid",
    "stat": "l_stat",
    "flag": "l_flag",
    "pflag": "l_pflag",
    "prflag": ("l_prflag", None),
    "cpu": "l_cpu",
    "addr": "l_addr",
    "name": "l_name",
    "wchan": "l_wchan",
    "wmesg": "l_wmesg",
    "priority": "l_priority",
    "slptime": "l_slptime",
    "swtime": "l_swtime",
    "rtime": "l_rtime",
    "cpticks": ("l_cpticks", None),
    "pctcpu": "l_pctcpu",
    "cred": ("l_cred", None),
    "sigmask": ("l_sigmask", None),
}


def proc_layout(kernel: Kernel) -> Layout:
    """Return the members of struct proc that are read. Raises TypeNotFound, MemberNotFound, and what types raise."""
    return remembered(kernel, _make_proc)


def _make_proc(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct proc", PROC, kernel.arch.byteorder)


def lwp_layout(kernel: Kernel) -> Layout:
    """Return the members of struct lwp that are read."""
    return remembered(kernel, _make_lwp)


def _make_lwp(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct lwp", LWP, kernel.arch.byteorder)


def read_listed(kernel: Kernel) -> tuple[list[Record], KvmDbgError | None]:
    """Return all processes in the order of the kernel's lists, the newest first and zombies last, and what went wrong.

    Raises:
        SymbolNotFound, TypeNotFound, MemberNotFound: the lists are not known.
    """
    layout = proc_layout(kernel)
    places = [kernel.symbols.address(name) for name in LISTS]
    found: list[Record] = []
    failure: KvmDbgError | None = None
    seen: set[int] = set()
    for name, place in zip(LISTS, places, strict=True):
        try:
            for address in for_each_entry(kernel, place, layout.offsets["list"], name, MAX_PROCESSES):
                if address in seen:
                    raise CorruptError(address, f"the lists {' and '.join(LISTS)} share a process")
                seen.add(address)
                proc = layout.read(kernel, address)
                if proc["flag"] & PK_MARKER:
                    continue
                if not 0 <= proc["pid"] < MAX_PROCESSES:
                    raise CorruptError(proc.at("pid"), f"a process in the list {name} has the PID {proc['pid']}")
                found.append(proc)
        except (ReadError, CorruptError) as error:
            failure = failure or error
    return found, failure


def read_procs(kernel: Kernel) -> tuple[list[Record], KvmDbgError | None]:
    """Return all processes in ascending order of PID, and what went wrong. Raises as `read_listed`."""
    found, failure = read_listed(kernel)
    return sorted(found, key=lambda proc: proc["pid"]), failure


def read_lwps(kernel: Kernel, proc: Record) -> tuple[list[Record], KvmDbgError | None]:
    """Return the LWPs of a process in the order of its list, the newest first, and what went wrong."""
    layout = lwp_layout(kernel)
    found: list[Record] = []
    try:
        what = f"LWPs of process {proc['pid']}"
        for address in for_each_entry(kernel, proc.at("lwps"), layout.offsets["sibling"], what, MAX_LWPS):
            lwp = layout.read(kernel, address)
            if lwp["proc"] != proc.address:
                raise CorruptError(lwp.at("proc"), f"one of the {what} belongs to {lwp['proc']:#x}")
            found.append(lwp)
    except (ReadError, CorruptError) as error:
        return found, error
    return found, None


def find_proc(kernel: Kernel, address: int) -> Record | None:
    """Return the process that is at `address`, or whose LWP is there; None if there is neither.

    Raises:
        SymbolNotFound, TypeNotFound, MemberNotFound: the lists are not known.
    """
    owners = remembered(kernel, _read_owners)
    place = owners.get(address)
    return None if place is None else proc_layout(kernel).read(kernel, place)


def _read_owners(kernel: Kernel) -> dict[int, int]:
    """Return address of a process or LWP -> address of the process."""
    owners: dict[int, int] = {}
    for proc in read_listed(kernel)[0]:
        owners[proc.address] = proc.address
        owners.update((lwp.address, proc.address) for lwp in read_lwps(kernel, proc)[0])
    return owners


def read_count(kernel: Kernel) -> int:
    """Return the kernel's own count of processes. Raises SymbolNotFound, ReadError."""
    symbol = kernel.symbols.find("nprocs")
    if symbol is None:
        raise SymbolNotFound("nprocs")
    return read_number(kernel, symbol.address, 4, signed=True)
