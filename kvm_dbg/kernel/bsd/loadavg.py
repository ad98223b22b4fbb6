"""The load averages.

Sources: sys/sys/resource.h (struct loadavg: three numbers in fixed point, `fscale` is 1.0), sys/kern/kern_synch.c
(`averunnable`); an int `fscale` by itself (sys/kern/kern_clock.c, param.c) wins over the member, as in libkvm.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.base import LoadAverage
from kvm_dbg.kernel.layout import read_number

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

AVERAGES = 3


def read_load_average(kernel: Kernel) -> LoadAverage:
    """Return the load averages.

    Raises:
        SymbolNotFound, ReadError: they cannot be read.
        CorruptError: their scale is 0.
    """
    address = kernel.symbols.address("averunnable")
    order = "<" if kernel.arch.byteorder == "little" else ">"
    values = struct.unpack(f"{order}{AVERAGES}I", kernel.read(address, 4 * AVERAGES))
    word = kernel.arch.pointer_size
    place = address + -(-4 * AVERAGES // word) * word  # a long behind the three
    symbol = kernel.symbols.find("fscale")
    scale = read_number(kernel, place, word) if symbol is None else read_number(kernel, symbol.address, 4)
    if not scale:
        raise CorruptError(place if symbol is None else symbol.address, "the load averages have a scale of 0")
    one, five, fifteen = (value / scale for value in values)
    return LoadAverage(one, five, fifteen)
