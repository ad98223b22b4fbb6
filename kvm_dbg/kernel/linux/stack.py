"""Unwinding a sleeping task's kernel stack by the ORC tables in memory, as far as a wait channel needs it.

Sources: arch/x86/include/asm/orc_types.h, arch/x86/kernel/unwind_orc.c. `__start_orc_unwind_ip` is a sorted array of
int32, each relative to its own place; at the same index of `__start_orc_unwind` is the entry for the code from there
on: int16 sp_offset and bp_offset, then sp_reg and bp_reg in four bits each, then the entry's type. What numbers stand
for the stack pointer and for a call has changed (types in v6.4, commit fb799447ae29; registers in v7.1, commit
1735858caa4b), so they are learnt from the kernel itself: at its first instruction a C function has its return address
at sp, and is of type call. bp_reg is 0 where bp is as the caller left it, else it says what bp_offset is relative to:
bp, or the caller's stack pointer.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.linux.layout import read_number, read_pointer

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

ENTRY = struct.Struct("<hhBB")
BP = 4  # number of the frame pointer, the same in all versions
TYPE_MASK = 7  # the bits above hold a signal frame's mark, or one that is not used
EXAMPLE = "schedule"  # any C function will do


class Frame(NamedTuple):
    """A place in the unwinding: the next instruction, the stack pointer, the frame pointer."""

    ip: int
    sp: int
    bp: int


class OrcTable:
    """The kernel's ORC table, read where it is needed.

    Raises:
        SymbolNotFound: the kernel has no such table (CONFIG_UNWINDER_ORC).
        ReadError, CorruptError: it cannot be used.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        symbols = kernel.symbols
        self._ips = symbols.address("__start_orc_unwind_ip")
        self._entries = symbols.address("__start_orc_unwind")
        self._count = (symbols.address("__stop_orc_unwind_ip") - self._ips) // 4
        self._known: dict[int, tuple[int, int, int, int]] = {}
        _, _, registers, kind = self._find(symbols.address(EXAMPLE))
        self._sp = registers & 15
        self._call = kind & TYPE_MASK
        if not self._sp or self._sp == BP:
            raise CorruptError(self._entries, "the ORC table does not describe the first instruction of a function")

    def _find(self, ip: int) -> tuple[int, int, int, int]:
        """Return the entry for the code at `ip`. Raises ReadError."""
        found = self._known.get(ip)
        if found is None:
            low, high = 0, self._count
            while high - low > 1:
                middle = (low + high) // 2
                place = self._ips + 4 * middle
                if place + read_number(self._kernel, place, 4, signed=True) <= ip:
                    low = middle
                else:
                    high = middle
            found = ENTRY.unpack(self._kernel.read(self._entries + ENTRY.size * low, ENTRY.size))
            self._known[ip] = found
        return found

    def caller(self, frame: Frame) -> Frame | None:
        """Return the frame that called this one; None where plain rules do not lead there. Raises ReadError."""
        sp_offset, bp_offset, registers, kind = self._find(frame.ip - 1)
        base = {self._sp: frame.sp, BP: frame.bp}.get(registers & 15)
        if base is None or kind & TYPE_MASK != self._call:
            return None
        sp = base + sp_offset
        saved = registers >> 4
        bp = frame.bp
        if saved:
            bp = read_pointer(self._kernel, (frame.bp if saved == BP else sp) + bp_offset)
        return Frame(read_pointer(self._kernel, sp - 8), sp, bp)
