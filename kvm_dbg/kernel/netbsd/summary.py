"""What a person wants to know first of a NetBSD kernel.

Sources: sys/kern/subr_prf.c (`panicstr`, the format of what was said; later `panicstart` and `panicend` as well: where
the text itself is in the message buffer), sys/kern/init_sysctl.c (`hostname`), sys/arch/amd64/amd64/machdep.c (
`physmem` in pages, an int that became a psize_t; `dumpmag`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import KvmDbgError, SymbolNotFound
from kvm_dbg.kernel.base import SystemSummary
from kvm_dbg.kernel.bsd.loadavg import read_load_average
from kvm_dbg.kernel.layout import decode_text, read_number, read_pointer
from kvm_dbg.kernel.netbsd.boot import NAME
from kvm_dbg.kernel.netbsd.cpu import read_cpus, read_current_lwps
from kvm_dbg.kernel.netbsd.log import read_ring
from kvm_dbg.kernel.netbsd.proc import find_proc, lwp_layout, read_lwps, read_procs
from kvm_dbg.kernel.netbsd.process import ProcessReader
from kvm_dbg.kernel.netbsd.thread import find_dumper
from kvm_dbg.kernel.netbsd.time import read_clock, read_uptime

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel, Process

Result = TypeVar("Result")

TEXT_LIMIT = 256  # bytes; MAXHOSTNAMELEN
PANIC_LIMIT = 4096  # bytes
INT, LONG = 4, 8  # bytes


def read_summary(kernel: Kernel) -> SystemSummary:
    """Return what `sys` shows; fields that the image lacks are None or empty."""
    panic = _or_none(kernel, read_panic)
    who = _or_none(kernel, _read_dumper) if panic is not None else None
    cpus = _or_none(kernel, read_cpus)
    return SystemSummary(
        system=_or_none(kernel, lambda kernel: _text(kernel, "ostype")) or NAME,
        release=getattr(kernel, "release", ""),
        version=getattr(kernel, "version", ""),
        machine=_or_none(kernel, lambda kernel: _text(kernel, "machine")) or "",
        nodename=_or_none(kernel, lambda kernel: _text(kernel, "hostname")) or "",
        cpus=len(cpus) if cpus is not None else _or_none(kernel, _read_ncpu),
        date=_or_none(kernel, read_clock),
        uptime=_or_none(kernel, read_uptime),
        load_average=_or_none(kernel, read_load_average),
        tasks=_or_none(kernel, _count_lwps),
        memory=_or_none(kernel, _read_memory),
        page_size=1 << kernel.arch.page_shift,
        slide=getattr(kernel, "slide", None),
        panic_message=panic,
        panic_cpu=None if who is None else who[2],
        panic_task=None if who is None else who[0],
        panic_lid=None if who is None else who[1],
    )


def read_panic(kernel: Kernel) -> str | None:
    """Return what the kernel said when it panicked, None if it did not. Raises SymbolNotFound, ReadError."""
    message = read_pointer(kernel, kernel.symbols.address("panicstr"))
    if not message:
        return None
    start, end = _read_variable(kernel, "panicstart"), _read_variable(kernel, "panicend")
    if start is not None and end is not None and start != end and min(start, end) >= 0:
        ring = read_ring(kernel)
        length = (end - start) % ring.size  # it may go on at the ring's start
        if max(start, end) <= ring.size and length <= PANIC_LIMIT:
            text = kernel.read(ring.address, ring.size)
            return decode_text((text + text)[start : start + length].replace(b"\0", b"")).strip()
    return decode_text(read_string(kernel, message, PANIC_LIMIT)).strip()


def _read_dumper(kernel: Kernel) -> tuple[Process, int, int | None] | None:
    """Return the process that dumped, its LWP's id, and its CPU."""
    found = find_dumper(kernel)
    proc = None if found is None else find_proc(kernel, found[0])
    if found is None or proc is None:
        return None
    cpu = next((cpu for cpu, lwp in read_current_lwps(kernel).items() if lwp == found[0]), None)
    return ProcessReader(kernel).process(proc), lwp_layout(kernel).read(kernel, found[0])["lid"], cpu


def _text(kernel: Kernel, name: str) -> str:
    return decode_text(read_string(kernel, kernel.symbols.address(name), TEXT_LIMIT))


def _read_ncpu(kernel: Kernel) -> int:
    return read_number(kernel, kernel.symbols.address("ncpu"), 4)


def _count_lwps(kernel: Kernel) -> int | None:
    procs, failure = read_procs(kernel)
    return sum(len(read_lwps(kernel, proc)[0]) for proc in procs) if failure is None else None


def _read_memory(kernel: Kernel) -> int:
    pages = _read_variable(kernel, "physmem")
    if pages is None:
        raise SymbolNotFound("physmem")
    return pages << kernel.arch.page_shift


def _read_variable(kernel: Kernel, name: str) -> int | None:
    """Return an int or long, as large as its symbol says; None if there is none. Raises ReadError."""
    symbol = kernel.symbols.find(name)
    if symbol is None:
        return None
    return read_number(kernel, symbol.address, LONG if symbol.size == LONG else INT, signed=True)


def _or_none(kernel: Kernel, read: Callable[[Kernel], Result]) -> Result | None:
    try:
        return read(kernel)
    except KvmDbgError:  # no types are a reason, too
        return None
