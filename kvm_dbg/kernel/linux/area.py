"""The parts of the kernel's memory, as the linker's script named them, and of its modules'.

Sources: include/asm-generic/vmlinux.lds.h and arch/x86/kernel/vmlinux.lds.S for the symbols around sections. Between
those lie smaller sections that no symbols tell of. On x86-64, per-CPU data was linked at address 0 until 6.15 (commit
9d7de2aa8b41).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

from kvm_dbg.kernel.base import Area, Kernel, Module
from kvm_dbg.kernel.linux.module import for_each_module

PARTS = (
    (".text", "_text", "_etext", True, False),
    (".rodata", "__start_rodata", "__end_rodata", False, False),
    (".data", "_sdata", "_edata", False, True),
    (".init.text", "_sinittext", "_einittext", True, False),
    (".init.data", "_einittext", "__init_end", False, True),
    (".bss", "__bss_start", "__bss_stop", False, True),
    (".init.scratch", "__init_scratch_begin", "__init_scratch_end", False, True),
)
PER_CPU = (".data..percpu", "__per_cpu_start", "__per_cpu_end")
GAP = ".rest"
CODE = (".text", ".init.text", ".exit.text", ".noinstr.text", ".ref.text", ".static_call.text")
MAX_AREAS = 1 << 15


def for_each_area(kernel: Kernel) -> Iterator[Area]:
    """Yield per-CPU data where it has a place of its own, then the kernel's parts from _text to _end without gaps."""
    names = {name for part in PARTS for name in part[1:3]} | {"_end", *PER_CPU[1:]}
    found = {name: symbol.address for name, symbol in kernel.symbols.find_many(names).items()}
    at, end = found.get("_text"), found.get("_end")
    if at is None or end is None or at >= end:
        return
    name, first, last = PER_CPU
    if found.get(first) == 0 and 0 < found.get(last, 0) <= at:
        yield Area(name, 0, found[last], writable=True, fixed=True)
    parts = sorted(
        (found[first], found[last], name, executable, writable)
        for name, first, last, executable, writable in PARTS
        if first in found and last in found
    )
    gaps = 0
    for start, stop, name, executable, writable in parts:
        if start < at or start >= stop:
            continue  # out of order, or empty
        if at < start:
            gaps += 1
            yield Area(f"{GAP}{gaps}", at, start, writable=True)
        yield Area(name, start, stop, executable, writable)
        at = stop
    if at < end:
        yield Area(f"{GAP}{gaps + 1}", at, end, writable=True)


def for_each_module_area(kernel: Kernel) -> Iterator[Area]:
    """Yield the parts of all modules, ascending for each module.

    Raises:
        ReadError, CorruptError: the list of modules is broken; what comes before has been yielded.
    """
    yield from islice(chain.from_iterable(map(_areas_of, for_each_module(kernel))), MAX_AREAS)


def _areas_of(module: Module) -> Iterator[Area]:
    """Yield a module's code and other memory, ascending, cut where one ends and the other begins."""
    places = sorted((address, name in CODE) for name, address in module.sections.items())
    for number, (base, size) in enumerate(module.ranges):
        end = min(base + size, 1 << 64)
        cuts: list[tuple[int, bool]] = [(base, number == 0)]  # a module's first area begins with its text
        for address, executable in places:
            if base <= address < end and executable != cuts[-1][1]:
                if address == cuts[-1][0]:
                    cuts.pop()
                cuts.append((address, executable))
        for (start, executable), (stop, _) in zip(cuts, [*cuts[1:], (end, False)], strict=True):
            kind = ".text" if executable else ".data"
            yield Area(f"{kind}.{module.name}", start, stop, executable, not executable, module.name)
