"""Rules for debuggers to unwind the kernel's code by its frame pointers, where nothing better is known.

Source: sys/arch/amd64/conf/Makefile.amd64: the kernel is compiled with frame pointers, but for where stacks begin
(see `unwind`), for which the rule is that nobody called.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.kernel.netbsd.area import for_each_area
from kvm_dbg.kernel.netbsd.unwind import ENTRIES, STARTS
from kvm_dbg.kernel.unwind_rule import UnwindRow, UnwindTable

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

WORD = 8
CALL = UnwindRow(0, 0, "call", "rbp", 2 * WORD, "previous", -2 * WORD)
END = UnwindRow(0, 0, "end", "", 0)


def for_each_unwind_table(kernel: Kernel) -> Iterator[UnwindTable]:
    """Yield the rules of a kernel without a file: for all of its text."""
    if getattr(kernel, "vmlinux_path", None) is None:
        yield from for_each_unwind_gap(kernel, ())


def for_each_unwind_gap(kernel: Kernel, covered: Sequence[tuple[int, int]]) -> Iterator[UnwindTable]:
    """Yield rules for the runs of the kernel's text that are not `covered`."""
    text = next((area for area in for_each_area(kernel) if area.executable), None)
    if text is None or kernel.arch.name != X86_64.name:
        return
    rows = _rows(kernel, text.start, text.end)
    place = text.start
    for start, end in (*covered, (text.end, text.end)):
        if place < start <= text.end:
            yield _table(rows, place, start)
        place = max(place, end)


def _rows(kernel: Kernel, start: int, end: int) -> list[tuple[int, UnwindRow]]:
    """Return (address, rule), ascending: a rule reaches to the next one's address."""
    rows = [(start, CALL)]
    for symbol in kernel.symbols.for_each():
        if start <= symbol.address < end and symbol.kind in "tT":
            row = END if symbol.name.startswith((*ENTRIES, *STARTS)) else CALL
            if row is not rows[-1][1]:
                rows.append((symbol.address, row))
    return rows


def _table(rows: list[tuple[int, UnwindRow]], start: int, end: int) -> UnwindTable:
    first = bisect_right(rows, start, key=lambda row: row[0]) - 1
    inside = [(max(address, start), row) for address, row in rows[first:] if address < end]
    return UnwindTable([address for address, _ in inside], end, [row for _, row in inside], lambda row: row)
