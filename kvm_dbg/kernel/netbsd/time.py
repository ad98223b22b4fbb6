"""Times: what a bintime is, how a process's CPU time is shared out, and the clock.

Sources: sys/sys/time.h (struct bintime: seconds, and a fraction in 2^-64 s), sys/kern/kern_resource.c, calcru(): a
process's time is that of its LWPs and of those that are gone; it is shared out by the ticks that the statistics clock
found it in user and system mode and in interrupts, halved where there were none. sys/kern/kern_tc.c (`time_second`,
`time_uptime`; `time__second` and `time__uptime` since 10.0, where processors load 64 bits at once: sys/sys/timevar.h).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.kernel.layout import Record, read_number

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MAX_SECONDS = 1 << 40
SECOND = ("time__second", "time_second")
UPTIME = ("time__uptime", "time_uptime")


class CpuTime(NamedTuple):
    """A process's CPU time in seconds: all of it, and its shares."""

    total: float
    user: float
    system: float
    interrupt: float


def bintime(data: bytes) -> float:
    """Return a struct bintime in seconds; one that no clock ever showed, as of a clock that ran backwards, is 0."""
    seconds = int.from_bytes(data[:8], "little", signed=True)
    return seconds + int.from_bytes(data[8:16], "little") / 2**64 if 0 <= seconds < MAX_SECONDS else 0.0


def share_time(proc: Record, lwps: Sequence[Record]) -> CpuTime:
    """Return a process's CPU time, without what LWPs on CPUs used since they were switched to. Raises ReadError."""
    total = bintime(proc.bytes("rtime")) + sum(bintime(lwp.bytes("rtime")) for lwp in lwps)
    ticks = proc["uticks"], proc["sticks"], proc["iticks"]
    whole = sum(ticks)
    if not whole:
        return CpuTime(total, total / 2, total / 2, 0.0)
    user, system, interrupt = (total * part / whole for part in ticks)
    return CpuTime(total, user, system, interrupt)


def read_clock(kernel: Kernel) -> float:
    """Return the time in seconds since the epoch. Raises SymbolNotFound, ReadError."""
    return _read_seconds(kernel, SECOND)


def read_uptime(kernel: Kernel) -> float:
    """Return the time since boot in seconds. Raises SymbolNotFound, ReadError."""
    return _read_seconds(kernel, UPTIME)


def _read_seconds(kernel: Kernel, names: tuple[str, str]) -> float:
    """Return a time_t, a variable by the newest of its names that the kernel has."""
    symbol = kernel.symbols.find(names[0])
    address = kernel.symbols.address(names[1]) if symbol is None else symbol.address
    return float(read_number(kernel, address, 8, signed=True))
