"""Unwind rules for debuggers: frame pointers, wherever a kernel file has no rules of its own.

Where an interrupt or a trap has come on a stack of its own, a caller's frame can be below, which debuggers take for the
end of a stack that is damaged. So the places where that is so in this image are marked.

Facts: amd64's kernel and its modules lie in the uppermost 2 GiB of the address space, from `kernbase` on
(sys/amd64/include/vmparam.h, KERNBASE), and are compiled with frame pointers (sys/conf/kern.pre.mk). Elsewhere they are
anywhere in the kernel's half, which is above the user's, or on i386 since 12 from KERNBASE on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from kvm_dbg.arch.i386 import I386Arch
from kvm_dbg.errors import KvmDbgError
from kvm_dbg.kernel.freebsd.thread import for_each_thread
from kvm_dbg.kernel.freebsd.unwind import unwind
from kvm_dbg.kernel.unwind_rule import UnwindRow, UnwindTable

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

END = (1 << 64) - (1 << 20)  # nothing is mapped in the last MiB
CHAINS = {  # by processor
    "x86_64": UnwindRow(0, 0, "chain", "rbp", 16),
    "i386": UnwindRow(0, 0, "chain", "ebp", 8),
    "aarch64": UnwindRow(0, 0, "chain", "x29", 16),
    "riscv64": UnwindRow(0, 0, "chain", "fp", 0),
    "ppc64": UnwindRow(0, 0, "chain", "[r1]", 0),
}


def for_each_unwind_gap(kernel: Kernel, covered: Sequence[tuple[int, int]]) -> Iterator[UnwindTable]:
    """Yield the rule for each run of code that is not `covered`: [start, end), ascending."""
    row = CHAINS.get(kernel.arch.name)
    base = _find_start(kernel)
    if row is None or base is None:
        return
    marks = _find_switches(kernel)
    place, last = base, END & (1 << 8 * kernel.arch.pointer_size) - 1
    for start, end in [*covered, (last, last)]:
        start = min(start, last)
        if place < start:
            inside = [mark for mark in marks if place < mark - 1 and mark + 1 < start]
            edges = sorted({place, *(edge for mark in inside for edge in (mark - 1, mark + 1))})
            switches = [(mark - 1, mark + 1) for mark in inside]
            yield UnwindTable(edges, start, [row] * len(edges), _itself, (), switches)
        place = max(place, end)


def _find_start(kernel: Kernel) -> int | None:
    """Return the first address that can be code of the kernel, None if that is not known."""
    if kernel.arch.name == "x86_64":
        base = kernel.symbols.find("kernbase")
        return None if base is None else base.address
    return kernel.arch.user_end if isinstance(kernel.arch, I386Arch) else 1 << 63


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
