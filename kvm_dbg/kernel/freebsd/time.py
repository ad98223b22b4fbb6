"""Times: what CPU ticks are worth, how a process's CPU time is shared out, and when the system was booted.

Sources: sys/kern/kern_tc.c: cpu_tickrate() is the frequency of the time counter while `cpu_ticks` is tc_cpu_ticks(),
else `cpu_tick_frequency`; th_boottime of `timehands` (since 11.1, before that `boottimebin`).
sys/kern/kern_resource.c: rufetch() adds to a process's p_rux what its threads used since they were last added up,
calcru1() shares the whole out by the statistics clock's ticks in user and system mode and in interrupts, as system
time where there were none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.errors import CorruptError, MemberNotFound
from kvm_dbg.kernel.freebsd.proc import MISSING
from kvm_dbg.kernel.freebsd.state import Clock
from kvm_dbg.kernel.layout import Layout, Record, read_number, read_pointer, remembered

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MAX_SECONDS = 1 << 40
TICKER = "tc_cpu_ticks"  # what `cpu_ticks` is while the time counter does


class CpuTime(NamedTuple):
    """CPU time in seconds: all of it, and its shares, interrupts being in neither."""

    total: float
    user: float
    system: float


def read_tick_rate(kernel: Kernel) -> int:
    """Return how many CPU ticks make a second. Raises SymbolNotFound, ReadError, CorruptError if that is not known."""
    return remembered(kernel, _read_tick_rate)


def _read_tick_rate(kernel: Kernel) -> int:
    counter = kernel.symbols.find(TICKER)
    ticker = kernel.symbols.find("cpu_ticks")
    if counter is not None and ticker is not None and read_pointer(kernel, ticker.address) == counter.address:
        hands = read_pointer(kernel, kernel.symbols.address("timehands"))
        place = read_pointer(kernel, hands + kernel.types.offset_of("struct timehands", "th_counter"))
        place += kernel.types.offset_of("struct timecounter", "tc_frequency")
    else:
        place = kernel.symbols.address("cpu_tick_frequency")
    rate = read_number(kernel, place, 8)
    if not rate:
        raise CorruptError(place, "a second has 0 CPU ticks")
    return rate


def read_clock(kernel: Kernel) -> Clock:
    """Return what the kernel counts sleeping time by."""
    return remembered(kernel, _read_clock)


def _read_clock(kernel: Kernel) -> Clock:
    found: list[int | None] = []
    for name in ("ticks", "hz"):
        symbol = kernel.symbols.find(name)
        try:
            found.append(None if symbol is None else read_number(kernel, symbol.address, 4))
        except MISSING:
            found.append(None)
    return Clock(found[0], found[1])


def process_time(kernel: Kernel, proc: Record, threads: Iterable[Record]) -> CpuTime:
    """Return a process's CPU time, without what running threads used since they were switched to.

    Raises:
        MemberNotFound, SymbolNotFound, ReadError, CorruptError: it is not known.
    """
    runtime = proc["rux_runtime"]
    ticks = [proc["rux_uticks"], proc["rux_sticks"], proc["rux_iticks"]]
    for thread in threads:
        runtime += thread["incruntime"]
        ticks = [sum(pair) for pair in zip(ticks, _own_ticks(thread), strict=True)]
    return _shared(runtime / read_tick_rate(kernel), ticks)


def thread_time(kernel: Kernel, thread: Record) -> CpuTime:
    """Return a thread's CPU time. Raises as `process_time`."""
    former = [thread["rux_uticks"], thread["rux_sticks"], thread["rux_iticks"]]
    ticks = [sum(pair) for pair in zip(former, _own_ticks(thread), strict=True)]
    return _shared((thread["rux_runtime"] + thread["incruntime"]) / read_tick_rate(kernel), ticks)


def _own_ticks(thread: Record) -> list[int]:
    return [thread["uticks"], thread["sticks"], thread["iticks"]]


def _shared(total: float, ticks: list[int]) -> CpuTime:
    whole = sum(ticks)
    if not whole:
        return CpuTime(total, 0.0, total)
    return CpuTime(total, total * ticks[0] / whole, total * ticks[1] / whole)


def read_boot_time(kernel: Kernel) -> float:
    """Return when the system was booted, in seconds since the epoch. Raises SymbolNotFound, ReadError, CorruptError."""
    return remembered(kernel, _read_boot_time)


def _read_boot_time(kernel: Kernel) -> float:
    old = kernel.symbols.find("boottimebin")
    if old is not None:
        place = old.address
    else:
        place = read_pointer(kernel, kernel.symbols.address("timehands"))
        place += kernel.types.offset_of("struct timehands", "th_boottime")
    seconds, fraction = (read_number(kernel, at, 8) for at in (place, place + 8))
    if not 0 < seconds < MAX_SECONDS:
        raise CorruptError(place, f"the system was booted {seconds} seconds after 1970")
    return seconds + fraction / 2**64


def read_start_time(kernel: Kernel, proc: Record) -> float | None:
    """Return when a process was started, in seconds since the epoch; None for what never was: p_start is 0.

    p_start is counted from the start of the system. Raises MemberNotFound, SymbolNotFound, ReadError, CorruptError.
    """
    if not proc["stats"]:
        raise MemberNotFound("struct proc", "p_stats")
    layout = Layout(kernel.types, "struct pstats", {"start": "p_start"}, kernel.arch.byteorder)
    data = layout.read(kernel, proc["stats"]).bytes("start")
    half = len(data) // 2  # a struct timeval: seconds, then microseconds
    seconds, micro = _signed(kernel, data[:half]), _signed(kernel, data[half:])
    return read_boot_time(kernel) + seconds + micro / 1e6


def _signed(kernel: Kernel, data: bytes) -> int:
    return int.from_bytes(data, "little" if kernel.arch.byteorder == "little" else "big", signed=True)
