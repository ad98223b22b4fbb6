"""The load averages, and what /proc/loadavg shows beside them.

Sources: fs/proc/loadavg.c, include/linux/sched/loadavg.h: `avenrun[3]` is fixed point with 11 bits after the point;
FIXED_1/200 is added to round, and two digits are cut off from the rest.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from kvm_dbg.errors import MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.base import LoadAverage
from kvm_dbg.kernel.layout import read_number
from kvm_dbg.kernel.linux.cpu import read_running
from kvm_dbg.kernel.linux.pid import read_last_pid

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvm_dbg.kernel.base import Kernel

FSHIFT = 11
FIXED_1 = 1 << FSHIFT


def read_load_average(kernel: Kernel) -> LoadAverage:
    """Return the load averages, rounded to hundredths as /proc/loadavg rounds them.

    Raises:
        SymbolNotFound, ReadError: avenrun cannot be read; the other fields are None where they cannot be.
    """
    word = kernel.arch.pointer_size
    order = "<" if kernel.arch.byteorder == "little" else ">"
    data = kernel.read(kernel.symbols.address("avenrun"), 3 * word)
    averages = struct.unpack(f"{order}3{'Q' if word == 8 else 'I'}", data)
    one, five, fifteen = (hundredths(average) / 100 for average in averages)
    running = _or_none(kernel, read_running)
    threads = _or_none(kernel, read_thread_count)
    return LoadAverage(one, five, fifteen, running, threads, _or_none(kernel, read_last_pid))


def read_thread_count(kernel: Kernel) -> int:
    """Return the number of tasks, idle ones not counted. Raises SymbolNotFound, ReadError."""
    return read_number(kernel, kernel.symbols.address("nr_threads"), 4)


def hundredths(average: int) -> int:
    """Return a fixed-point load average in hundredths: LOAD_INT and LOAD_FRAC of the rounded value."""
    rounded = average + FIXED_1 // 200
    return (rounded >> FSHIFT) * 100 + ((rounded & (FIXED_1 - 1)) * 100 >> FSHIFT)


def _or_none(kernel: Kernel, read: Callable[[Kernel], int]) -> int | None:
    try:
        return read(kernel)
    except (ReadError, SymbolNotFound, TypeNotFound, MemberNotFound):
        return None
