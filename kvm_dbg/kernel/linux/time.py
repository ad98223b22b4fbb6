"""The kernel's clocks when the image was taken, as of the last timer tick that updated them.

Sources: include/linux/timekeeper_internal.h, kernel/time/timekeeping.c. The timekeeper is a member of the unnamed
struct `tk_core` behind a sequence counter; that struct is named `struct tk_data` since v6.13, and `tk_core` became
`timekeeper_data[0]` in v6.17 (TIMEKEEPER_CORE is 0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.errors import SymbolNotFound
from kvm_dbg.kernel.layout import Layout, Record, observed

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

NSEC_PER_SEC = 1_000_000_000

MEMBERS = {
    "xtime_sec": "xtime_sec",
    "xtime_nsec": "tkr_mono.xtime_nsec",
    "shift": "tkr_mono.shift",
    "offs_real": "offs_real",
    "offs_boot": "offs_boot",
}


class Clock(NamedTuple):
    """Nanoseconds: since the epoch, since boot (sleep included), and the moment of boot since the epoch."""

    realtime: int
    boottime: int
    boot: int


def read_clock(kernel: Kernel) -> Clock:
    """Return the clocks. Raises SymbolNotFound, ReadError."""
    return observed(kernel, _read_clock)


def _read_clock(kernel: Kernel) -> Clock:
    keeper = _read_timekeeper(kernel)
    nanoseconds = keeper["xtime_nsec"] >> (keeper["shift"] % 64)
    realtime = keeper["xtime_sec"] * NSEC_PER_SEC + nanoseconds
    boot = _signed(keeper["offs_real"]) - _signed(keeper["offs_boot"])
    return Clock(realtime, realtime - boot, boot)


def _read_timekeeper(kernel: Kernel) -> Record:
    types, symbols = kernel.types, kernel.symbols
    layout = Layout(types, "struct timekeeper", MEMBERS, kernel.arch.byteorder)
    for name in ("timekeeper_data", "tk_core"):
        symbol = symbols.find(name)
        if symbol is None:
            continue
        if types.find_type("struct tk_data") is not None:
            return layout.read(kernel, symbol.address + types.offset_of("struct tk_data", "timekeeper"))
        counter = next((n for n in ("seqcount_raw_spinlock_t", "seqcount_t") if types.find_type(n) is not None), None)
        size = types.size_of(counter) if counter is not None else 4
        return layout.read(kernel, symbol.address + (size + 7) // 8 * 8)
    shadow = symbols.find("shadow_timekeeper")
    if shadow is None:
        raise SymbolNotFound("tk_core", "none of the symbols timekeeper_data, tk_core and shadow_timekeeper is known")
    return layout.read(kernel, shadow.address)


def _signed(value: int) -> int:
    """Return a ktime_t, which old types may give as unsigned."""
    return value - (1 << 64) if value >> 63 and value > 0 else value
