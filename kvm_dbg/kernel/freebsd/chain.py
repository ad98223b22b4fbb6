"""Unwind rules for debuggers: frame pointers, wherever a kernel file has no rules of its own.

Facts: amd64's kernel and its modules lie in the uppermost 2 GiB of the address space, from `kernbase` on
(sys/amd64/include/vmparam.h, KERNBASE), and are compiled with frame pointers (sys/conf/kern.pre.mk).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvm_dbg.kernel.base import UnwindRow, UnwindTable

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

END = (1 << 64) - (1 << 20)  # nothing is mapped in the last MiB
CHAINS = {"x86_64": UnwindRow(0, 0, "chain", "rbp", 16)}  # by processor


def for_each_unwind_gap(kernel: Kernel, covered: Sequence[tuple[int, int]]) -> Iterator[UnwindTable]:
    """Yield the rule for each run of code that is not `covered`: [start, end), ascending."""
    row = CHAINS.get(kernel.arch.name)
    base = kernel.symbols.find("kernbase")
    if row is None or base is None:
        return
    place = base.address
    for start, end in [*covered, (END, END)]:
        if place < start:
            yield UnwindTable([place], min(start, END), [row], _itself)
        place = max(place, end)


def _itself(row: UnwindRow) -> UnwindRow:
    return row
