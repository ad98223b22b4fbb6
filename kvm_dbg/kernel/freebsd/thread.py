"""Threads as a debugger's: who they are, and their registers.

The thread that crashed the system has its registers in `dumppcb` (its id is `dumptid`), a thread that a CPU ran when it
was stopped in `stoppcbs`, an array with an element for each CPU, all others where they were switched away: in the
struct pcb that td_pcb leads to (sys/kern/kern_shutdown.c, dumpsys(); sys/*/*/mp_machdep.c, cpustop_handler()).
`stoppcbs` is a pointer to the array since 14. Names are like those of FreeBSD's own debuggers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from kvm_dbg.errors import CorruptError, KvmDbgError, ReadError
from kvm_dbg.kernel.base import Thread
from kvm_dbg.kernel.freebsd.proc import MISSING, for_each_proc, for_each_thread_of, oncpu_of
from kvm_dbg.kernel.freebsd.saved import decode_registers, read_variable, saved_layout
from kvm_dbg.kernel.layout import Record, read_pointer

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel
    from kvm_dbg.kernel.freebsd.kernel import FreeBSDKernel

MAX_CPUS = 1 << 12
PCB_LIMIT = 1 << 16  # bytes; struct pcb has 320 on amd64, some hundreds elsewhere


def for_each_thread(kernel: Kernel) -> Iterator[Thread]:
    """Yield all threads: the one that crashed the system first, the others in the order of the kernel's lists.

    Raises:
        ReadError, CorruptError: after the last one that could be found: one of the kernel's lists is broken.
    """
    reader = ThreadReader(cast("FreeBSDKernel", kernel))
    rest: list[Thread] = []
    failure: KvmDbgError | None = None
    seen = False
    try:
        for proc in for_each_proc(kernel):
            try:
                for one in for_each_thread_of(kernel, proc):
                    thread = reader.thread(proc, one)
                    if seen:
                        yield thread
                        continue
                    rest.append(thread)
                    if thread.lid == reader.crashed:
                        seen = True
                        yield rest.pop()
                        yield from rest
            except (ReadError, CorruptError) as error:
                failure = failure or error
    except (ReadError, CorruptError) as error:
        failure = failure or error
    if not seen:
        yield from rest
    if failure is not None:
        raise failure


class ThreadReader:
    """Describes the threads of one kernel.

    Attributes:
        crashed: the id of the thread that took the dump, None if there is none.
    """

    def __init__(self, kernel: FreeBSDKernel) -> None:
        self._kernel = kernel
        self.crashed = read_variable(kernel, "dumptid") or None
        self._pcb = saved_layout(kernel).pcb
        self._pcb_size = self._find_pcb_size()

    def _find_pcb_size(self) -> int | None:
        """Return sizeof(struct pcb), None if nothing tells it, or what tells it cannot be right."""
        size = read_variable(self._kernel, "pcb_size")
        if not size:
            try:
                size = self._kernel.types.size_of("struct pcb")
            except KvmDbgError:
                return None
        least = max(self._pcb.values()) + self._kernel.arch.pointer_size
        return size if least <= size <= PCB_LIMIT else None

    def thread(self, proc: Record, thread: Record) -> Thread:
        """Return a thread of a process. Raises ReadError if even its id is not known."""
        lid, pid = thread["tid"], proc["pid"]
        comm, name = proc.text("comm"), thread.text("name")
        title = f"(pid {pid}) {comm}" + (f"/{name}" if name and name != comm else "")
        cpu = oncpu_of(thread)
        if lid == self.crashed:
            title += " (crashed)"
            place, why = self._symbol("dumppcb"), "dumppcb"
        elif cpu is not None:
            title += f" (on CPU {cpu})"
            place, why = self._stopped(cpu), f"stoppcbs, CPU {cpu}"
        else:
            place, why = thread["pcb"], "struct pcb"
        registers, why = self._read(place, why)
        on_cpu = cpu is not None
        if cpu is None:
            last = thread.numbers.get("lastcpu", -1)
            cpu = last if last >= 0 else None
        return Thread(lid, pid, title, thread.address, cpu, on_cpu, registers, why, plain=False)

    def _symbol(self, name: str) -> int | None:
        symbol = self._kernel.symbols.find(name)
        return None if symbol is None else symbol.address

    def _stopped(self, cpu: int) -> int | None:
        """Return where the registers of a stopped CPU are, None if that is not known. Raises ReadError."""
        symbol = self._kernel.symbols.find("stoppcbs")
        if symbol is None or self._pcb_size is None or cpu >= MAX_CPUS:
            return None
        base = symbol.address
        if symbol.size == self._kernel.arch.pointer_size:
            try:
                base = read_pointer(self._kernel, base)
            except ReadError:
                return None
        elif symbol.size and (cpu + 1) * self._pcb_size > symbol.size:
            return None
        return base + cpu * self._pcb_size if base else None

    def _read(self, place: int | None, why: str) -> tuple[dict[str, int], str]:
        """Return the registers of the struct pcb at `place`, and where they are from or why there are none."""
        if not place:
            return {}, f"its registers are not known: {why} is not there"
        kernel = self._kernel
        size = kernel.arch.pointer_size
        try:
            data = kernel.read(place, max(self._pcb.values()) + size)
        except MISSING as error:
            return {}, f"its registers ({why}) cannot be read: {error}"
        registers = decode_registers(kernel, self._pcb, data)
        if not any(registers.values()):
            return {}, f"its registers ({why}) were never saved: all are 0"
        return registers, why
