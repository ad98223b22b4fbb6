"""Unwind rules for debuggers: frame pointers, wherever a kernel file has no rules of its own.

On amd64 a function that traps and interrupts lead through has the registers of what it interrupted at its stack
pointer (`Machine.trap_handlers`). Where an interrupt or a trap has come on a stack of its own, a caller's frame can be
below, which debuggers take for the end of a stack that is damaged. So the places where that is so in this image are
marked.

Facts: amd64's kernel and its modules lie in the uppermost 2 GiB of the address space, from `kernbase` on
(sys/amd64/include/vmparam.h, KERNBASE), and are compiled with frame pointers (sys/conf/kern.pre.mk). Elsewhere they are
anywhere in the kernel's half, which is above the user's, or on i386 since 12 from KERNBASE on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, cast

from kvm_dbg.arch.i386 import I386Arch
from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.errors import KvmDbgError
from kvm_dbg.kernel.freebsd.saved import saved_layout
from kvm_dbg.kernel.freebsd.thread import for_each_thread
from kvm_dbg.kernel.freebsd.unwind import is_trap_handler, unwind
from kvm_dbg.kernel.unwind_rule import UnwindRow, UnwindTable

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel
    from kvm_dbg.kernel.freebsd.kernel import FreeBSDKernel

TRAP = UnwindRow(0, 0, "trap", "rsp", 0)
SYSTEM_CALLS = ("fast_syscall_common", "fork_trampoline")  # of the handlers, those that interrupt nobody
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
    traps, called = _find_handlers(cast("FreeBSDKernel", kernel)) if kernel.arch.name == X86_64.name else ([], [])
    place, last = base, END & (1 << 8 * kernel.arch.pointer_size) - 1
    for start, end in [*covered, (last, last)]:
        start = min(start, last)
        if place < start:
            inside = [mark for mark in marks if place < mark - 1 and mark + 1 < start]
            switches = [(mark - 1, mark + 1) for mark in inside]
            handlers = {low: high for low, high in traps if place <= low and high <= start}
            edges = sorted({place, *chain.from_iterable(switches), *handlers, *handlers.values()} - {start})
            ends = dict.fromkeys(handlers.values(), row) | dict.fromkeys(handlers, TRAP)
            rules: list[UnwindRow] = []
            for edge in edges:
                rules.append(ends.get(edge, rules[-1] if rules else row))
            yield UnwindTable(edges, start, rules, _itself, called, switches)
        place = max(place, end)


def _find_start(kernel: Kernel) -> int | None:
    """Return the first address that can be code of the kernel, None if that is not known."""
    if kernel.arch.name == "x86_64":
        base = kernel.symbols.find("kernbase")
        return None if base is None else base.address
    return kernel.arch.user_end if isinstance(kernel.arch, I386Arch) else 1 << 63


def _find_handlers(kernel: FreeBSDKernel) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the [start, end) of functions with a struct trapframe at their stack pointer, and of those for calls.

    The latter interrupt nobody: they have system calls.
    """
    traps: list[tuple[int, int]] = []
    called: list[tuple[int, int]] = []
    if saved_layout(kernel).trapframe != kernel.machine.trapframe:
        return traps, called  # of a layout that debuggers are told nothing of
    symbols = sorted((one for one in kernel.symbols.for_each() if one.kind in "tT"), key=attrgetter("address"))
    for symbol, after in pairwise(symbols):
        if is_trap_handler(kernel.machine, symbol.name):
            run = symbol.address, min(symbol.address + symbol.size, after.address) if symbol.size else after.address
            if run[0] < run[1]:
                (called if symbol.name in SYSTEM_CALLS else traps).append(run)
    return sorted({*traps, *called}), called


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
