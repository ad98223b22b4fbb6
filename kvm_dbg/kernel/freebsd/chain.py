"""Unwind rules for debuggers: frame pointers, wherever a kernel file has no rules of its own.

Where an interrupt or a trap has come on a stack of its own, a caller's frame can be below, which debuggers take for the
end of a stack that is damaged. So the places where that is so in this image are marked.

Facts: amd64's kernel and its modules lie in the uppermost 2 GiB of the address space, from `kernbase` on
(sys/amd64/include/vmparam.h, KERNBASE), and are compiled with frame pointers (sys/conf/kern.pre.mk).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from kvm_dbg.errors import KvmDbgError
from kvm_dbg.kernel.freebsd.thread import for_each_thread
from kvm_dbg.kernel.freebsd.unwind import unwind
from kvm_dbg.kernel.unwind_rule import UnwindRow, UnwindTable

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
    marks = _find_switches(kernel)
    place = base.address
    for start, end in [*covered, (END, END)]:
        start = min(start, END)
        if place < start:
            inside = [mark for mark in marks if place < mark - 1 and mark + 1 < start]
            edges = sorted({place, *(edge for mark in inside for edge in (mark - 1, mark + 1))})
            switches = [(mark - 1, mark + 1) for mark in inside]
            yield UnwindTable(edges, start, [row] * len(edges), _itself, (), switches)
        place = max(place, end)


def _find_switches(kernel: Kernel) -> list[int]:
    """Return the return addresses, ascending, of frames whose callers are below them on another stack."""
    found: set[int] = set()
    try:
        for thread in for_each_thread(kernel):
            if thread.on_cpu:
                frames = list(unwind(kernel, thread))
                found |= {frame.pc for frame, caller in pairwise(frames) if caller.sp < frame.sp}
    except KvmDbgError:
        pass  # a broken list costs the marks of those behind the break
    return sorted(found)


def _itself(row: UnwindRow) -> UnwindRow:
    return row
