"""Letters for the states of LWPs and processes.

Sources: ps(1) and bin/ps/print.c (state()): D, S, I: sleeping without and with signals, the last for more than MAXSLP
seconds; O on a processor, R runnable, T stopped, U suspended, Z zombie. Behind: < and N by nice, X traced, E exiting,
V the parent waits (vfork), K of the kernel, s leader of a session, l several LWPs, + in the foreground of its terminal.
sys/sys/lwp.h (l_stat, l_flag), sys/sys/proc.h (p_stat, p_flag, ...); sys/kern/kern_proc.c, proc_representative_lwp():
a process is in the state of its most alive LWP that is no idle LWP, of several such the last in the list.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvm_dbg.kernel.layout import Record

LSIDL, LSRUN, LSSLEEP, LSSTOP, LSZOMB, LSDEAD, LSONPROC, LSSUSPENDED = range(1, 9)
SIDL, SACTIVE, SDYING, SSTOP, SZOMB, SDEAD = range(1, 7)
LETTERS = {LSIDL: "R", LSRUN: "R", LSSTOP: "T", LSZOMB: "Z", LSDEAD: "Z", LSONPROC: "O", LSSUSPENDED: "U"}
LIVELINESS = (LSONPROC, LSRUN, LSSLEEP, LSSTOP, LSSUSPENDED)
NZERO = 20  # what p_nice has added, sys/sys/syslimits.h
MAXSLP = 20  # seconds, sys/sys/param.h

LW_IDLE, LW_SINTR, LW_SYSTEM = 0x1, 0x80, 0x200  # l_flag
PL_CONTROLT, PL_PPWAIT = 0x2, 0x10  # p_lflag
PS_WEXIT = 0x2000  # p_sflag
PSL_TRACED = 0x800  # p_slflag
PK_SYSTEM, PK_32, PK_MARKER = 0x2, 0x4_0000, 0x8000_0000  # p_flag


def lwp_letter(lwp: Record) -> str:
    """Return the letter of an LWP's state, "?" for a state that does not exist. Raises ReadError."""
    if lwp["stat"] == LSSLEEP:
        if not lwp["flag"] & LW_SINTR:
            return "D"
        return "I" if lwp["slptime"] >= MAXSLP else "S"
    return LETTERS.get(lwp["stat"], "?")


def find_representative(proc: Record, lwps: Sequence[Record]) -> Record | None:
    """Return the LWP whose state is the process's, None if there is none. Raises ReadError."""
    if len(lwps) == 1 or proc["stat"] not in (SACTIVE, SSTOP):
        return lwps[0] if lwps else None
    found: dict[int, Record] = {}
    for lwp in lwps:
        if not lwp["flag"] & LW_IDLE:
            found[lwp["stat"]] = lwp
    return next((found[state] for state in LIVELINESS if state in found), lwps[0] if lwps else None)


def proc_letter(proc: Record, lwp: Record | None) -> str:
    """Return the letter of a process's state, by its representative LWP. Raises ReadError."""
    if proc["stat"] in (SZOMB, SDEAD):
        return "Z"
    return "?" if lwp is None else lwp_letter(lwp)


def proc_flags(proc: Record, *, leader: bool, foreground: bool) -> str:
    """Return the letters behind that of the state. Raises ReadError."""
    nice = proc["nice"] - NZERO
    zombie = proc["stat"] in (SZOMB, SDEAD)
    return "".join(
        letter
        for letter, holds in (
            ("<", nice < 0),
            ("N", nice > 0),
            ("X", proc["slflag"] & PSL_TRACED),
            ("E", proc["sflag"] & PS_WEXIT and not zombie),
            ("V", proc["lflag"] & PL_PPWAIT),
            ("K", proc["flag"] & PK_SYSTEM),
            ("s", leader),
            ("l", proc["nlwps"] > 1),
            ("+", foreground),
        )
        if holds
    )
