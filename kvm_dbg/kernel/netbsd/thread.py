"""LWPs as a debugger's threads.

An LWP's id is unique within its process only, and a debugger wants numbers that are unique: LWP 1 of a process has the
process's PID for its number, LWP n of it PID + (n - 1) * 100000 (PIDs are below 100000, sys/sys/proc.h), and LWP n of
process 0, the kernel, n * 100000.

Since 10.0 ids come from the table of PIDs (sys/kern/kern_proc.c, proc_alloc_lwpid()): they are unique, and the first
LWP of a process has its PID. There an LWP's number is its id, and that of LWP 0, the kernel's first, 100000.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.errors import KvmDbgError
from kvm_dbg.kernel.base import Thread
from kvm_dbg.kernel.layout import Record, read_pointer
from kvm_dbg.kernel.netbsd.cpu import read_cpus, read_current_lwps
from kvm_dbg.kernel.netbsd.proc import read_lwps, read_procs
from kvm_dbg.kernel.netbsd.process import ProcessReader
from kvm_dbg.kernel.netbsd.register import (
    MISSING,
    STACK_LIMIT,
    names_of,
    pcb_layout,
    read_cpu_registers,
    read_dumping,
    read_saved,
)
from kvm_dbg.kernel.netbsd.state import LSIDL, LW_IDLE, SDEAD, SZOMB

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

STRIDE = 100_000
UNIQUE = "proc_alloc_lwpid"  # the function that makes ids unique


def thread_number(pid: int, lid: int, *, unique: bool = False) -> int:
    """Return the number that a debugger has for an LWP; unique: whether ids are so in the whole system."""
    if unique:
        return lid or STRIDE
    return lid * STRIDE if pid == 0 else (lid - 1) * STRIDE + pid


def for_each_thread(kernel: Kernel) -> Iterator[Thread]:
    """Yield all LWPs: the one that dumped first, then those on CPUs, then the rest by PID and id.

    Raises:
        ReadError, CorruptError: after the last one that could be found: one of the kernel's lists is broken.
    """
    reader = ThreadReader(kernel)
    procs, failure = read_procs(kernel)
    threads: list[Thread] = []
    for proc in procs:
        lwps, broken = read_lwps(kernel, proc)
        failure = failure or broken
        threads += [reader.thread(proc, lwp) for lwp in sorted(lwps, key=lambda lwp: lwp["lid"])]
    yield from sorted(threads, key=lambda thread: (thread.address != reader.dumper, not thread.on_cpu))
    if failure is not None:
        raise failure


def find_dumper(kernel: Kernel) -> tuple[int, dict[str, int]] | None:
    """Return the address of the LWP that wrote the dump, and its registers; None if that cannot be told."""
    registers = read_dumping(kernel)
    if registers is None:
        return None
    try:
        for address in read_current_lwps(kernel).values():
            pcb = read_pointer(kernel, address + kernel.types.offset_of("struct lwp", "l_addr"))
            if abs(registers[names_of(kernel).sp] - pcb) < STACK_LIMIT:
                return address, registers
    except MISSING:
        pass  # then it is not known
    return None


class ThreadReader:
    """Describes the LWPs of one kernel as threads.

    Attributes:
        dumper: the address of the LWP that wrote the dump, None if unknown.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._names = ProcessReader(kernel)
        self._unique = UNIQUE in kernel.symbols
        self._registers = read_cpu_registers(kernel)
        found = find_dumper(kernel)
        self.dumper: int | None = None if found is None else found[0]
        self._dumping: dict[str, int] = {} if found is None else found[1]
        try:
            self._running = {address: cpu for cpu, address in read_current_lwps(kernel).items()}
        except MISSING:
            self._running = {}

    def thread(self, proc: Record, lwp: Record) -> Thread:
        """Return an LWP. Raises ReadError."""
        cpu = self._running.get(lwp.address)
        on_cpu = cpu is not None
        if lwp.address == self.dumper and not self._registers:
            registers, why = dict(self._dumping), "switchframe at dumppcb"
        elif cpu is not None and cpu in self._registers:
            found, source = self._registers[cpu]
            registers, why = dict(found), f"{source}, CPU {cpu}"
        elif on_cpu:
            registers, why = {}, f"runs on CPU {cpu}, whose registers were not recorded"
        else:
            registers, why = self._saved(proc, lwp)
        if cpu is None:
            try:
                cpu = read_cpus(self._kernel).get(lwp["cpu"])
            except MISSING:
                cpu = None
        try:
            name = self._names.name(proc, lwp)
        except KvmDbgError:
            name = proc.text("comm")
        pid, lid = proc["pid"], lwp["lid"]
        return Thread(
            lid, pid, name, lwp.address, cpu, on_cpu, registers, why, thread_number(pid, lid, unique=self._unique)
        )

    def _saved(self, proc: Record, lwp: Record) -> tuple[dict[str, int], str]:
        """Return the registers that an LWP left on its stack, and where they are from."""
        if proc["stat"] in (SZOMB, SDEAD):
            return {}, "it has exited"
        if lwp["stat"] == LSIDL and not lwp["flag"] & LW_IDLE:
            return {}, "it has nothing to do, as software interrupts between their runs: nothing of it is saved"
        try:
            pcb = lwp["addr"]
            sp = pcb_layout(self._kernel).read(self._kernel, pcb)["sp"] & (1 << 8 * self._kernel.arch.pointer_size) - 1
            if abs(sp - pcb) >= STACK_LIMIT:
                return {}, f"its saved stack pointer {sp:#x} is outside of its stack at {pcb:#x}"
            return read_saved(self._kernel, pcb), f"switchframe at pcb_{names_of(self._kernel).sp}"
        except MISSING as error:
            return {}, f"its saved registers cannot be read: {error}"
