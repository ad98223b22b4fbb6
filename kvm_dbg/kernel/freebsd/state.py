"""Letters for the states of threads and processes.

Sources: ps(1) and bin/ps/print.c, state(): D, S, I: sleeping without and with signals, the last for 20 seconds and
more; R runnable or running, T stopped, L waits for a lock, W for an interrupt, Z zombie. Behind: W swapped out, < and
N by nice and scheduling class, X traced, E exiting, V the parent waits (vfork), L a part of the kernel or locked in
memory, C in capability mode, s leader of a session, + in the foreground of its terminal, J jailed.
sys/kern/kern_proc.c, fill_kinfo_thread(): the order in which a thread's conditions count; a process is shown as its
first thread.
"""

from __future__ import annotations

from typing import NamedTuple

from kvm_dbg.kernel.layout import Record

PRS_NEW, PRS_NORMAL, PRS_ZOMBIE = 0, 1, 2  # p_state
TDS_CAN_RUN, TDS_RUNQ, TDS_RUNNING = 2, 3, 4  # td_state
TDI_SLEEPING, TDI_LOCK = 0x2, 0x8  # td_inhibitors
TDF_SINTR = 0x8  # td_flags
P_CONTROLT, P_KPROC, P_PPWAIT, P_SYSTEM = 0x2, 0x4, 0x10, 0x200  # p_flag
P_TRACED, P_WEXIT, P_STOPPED, P_JAILED, P_INMEM = 0x800, 0x2000, 0xE0000, 0x1000000, 0x10000000
CRED_FLAG_CAPMODE = 0x1  # cr_flags
PRI_REALTIME, PRI_IDLE = 2, 4  # td_pri_class, sys/sys/priority.h
MAXSLP = 20  # seconds, sys/sys/param.h


class Clock(NamedTuple):
    """What the kernel counts time by: ticks since boot, and how many make a second; None where that is not known."""

    ticks: int | None
    hz: int | None

    def since(self, tick: int) -> int:
        """Return whole seconds since a tick, 0 if that cannot be told."""
        if self.ticks is None or not self.hz or not tick:
            return 0
        return (self.ticks - tick & 0xFFFFFFFF) // self.hz  # an int that may have wrapped


def state_letter(proc: Record, thread: Record | None, clock: Clock) -> str:
    """Return ps's letter. Raises MemberNotFound, ReadError if that is not known."""
    state = proc["state"]
    if state != PRS_NORMAL:
        return {PRS_NEW: "R", PRS_ZOMBIE: "Z"}.get(state, "?")
    if thread is None:
        return "?"
    if thread["state"] in (TDS_CAN_RUN, TDS_RUNQ, TDS_RUNNING):
        return "R"
    if proc["flag"] & P_STOPPED:
        return "T"
    inhibitors = thread["inhibitors"]
    if inhibitors & TDI_SLEEPING:
        if not thread["flags"] & TDF_SINTR:
            return "D"
        return "I" if clock.since(thread.numbers.get("slptick", 0)) >= MAXSLP else "S"
    return "L" if inhibitors & TDI_LOCK else "W"


def process_flags(
    proc: Record, thread: Record | None, *, swaps: bool, capabilities: bool, leader: bool, foreground: bool
) -> str:
    """Return the letters behind that of the state.

    swaps: this kernel swaps processes out (none does since 15). Raises MemberNotFound, ReadError.
    """
    flag, nice = proc["flag"], proc.numbers.get("nice", 0)
    scheduling = thread.numbers.get("pri_class", 0) if thread is not None else 0
    high = nice < 0 or scheduling == PRI_REALTIME
    return "".join(
        letter
        for letter, holds in (
            ("W", swaps and not flag & P_INMEM),
            ("<", high),
            ("N", not high and (nice > 0 or scheduling == PRI_IDLE)),
            ("X", flag & P_TRACED),
            ("E", flag & P_WEXIT and proc["state"] != PRS_ZOMBIE),
            ("V", flag & P_PPWAIT),
            ("L", flag & P_SYSTEM or proc.numbers.get("lock", 0)),
            ("C", capabilities),
            ("s", leader),
            ("+", flag & P_CONTROLT and foreground),
            ("J", flag & P_JAILED),
        )
        if holds
    )
