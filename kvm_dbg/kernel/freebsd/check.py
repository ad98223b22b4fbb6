"""What an image says of itself twice: independent structures compared, command by command.

Sources: sys/kern/kern_proc.c (`nprocs` counts all processes, zombies included; `pidhashtbl` leads to each of them,
and so did `zombproc` to zombies before 13; p_numthreads; proc_off_* and thread_off_*), sys/kern/kern_linker.c (the
first file is the kernel; each has a number of its own), sys/kern/kern_synch.c, sys/sys/msgbuf.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.kernel.bsd.check import COMMON
from kvm_dbg.kernel.check import Finding, Subject, check_subjects
from kvm_dbg.kernel.freebsd.module import for_each_linker_file
from kvm_dbg.kernel.freebsd.offset import MEMBERS, PREFIXES, REQUIRED
from kvm_dbg.kernel.freebsd.proc import MAX_PROCESSES, for_each_proc, for_each_thread_of, oncpu_of, read_hashed
from kvm_dbg.kernel.freebsd.state import PRS_ZOMBIE
from kvm_dbg.kernel.freebsd.summary import find_crashed
from kvm_dbg.kernel.layout import read_number

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Check, Kernel

SHOWN = 8  # of those that are amiss
PROCESSES = ("procs", "lwps", "args", "env", "files", "vm", "bt")


def _check_offsets(kernel: Kernel) -> Iterator[Finding]:
    compared = 0
    for struct, members in MEMBERS.items():
        for member in members:
            symbol = kernel.symbols.find(PREFIXES[struct] + member)
            if symbol is None:
                continue
            said, known = read_number(kernel, symbol.address, 4, signed=True), kernel.types.offset_of(struct, member)
            compared += 1
            if said != known:
                yield "suspect", f"{symbol.name} is {said}, and the types have {struct}.{member} at {known}"
                return
    if compared >= len(REQUIRED):
        yield "ok", f"{compared} offsets that the kernel tells are those of the types"
    else:
        yield "partial", f"the kernel tells {compared} offsets only"


def _check_count(kernel: Kernel) -> Iterator[Finding]:
    found = sum(1 for _ in for_each_proc(kernel))
    count = read_number(kernel, kernel.symbols.address("nprocs"), 4, signed=True)
    if count == found:
        yield "ok", f"nprocs and allproc say {count} processes"
    else:
        yield "suspect", f"nprocs says {count} processes, allproc has {found}"


def _check_hash(kernel: Kernel) -> Iterator[Finding]:
    states = {proc.address: proc.numbers.get("state") for proc in for_each_proc(kernel)}
    old = "zombproc" in kernel.symbols  # zombies may or may not be in a chain then
    zombies = {address for address, state in states.items() if old and state == PRS_ZOMBIE}
    listed = states.keys() - zombies
    hashed, failure = read_hashed(kernel)
    if failure is not None:
        raise failure
    amiss = len(listed ^ (set(hashed) - zombies))
    if amiss:
        yield "suspect", f"{amiss} processes are in one of allproc and pidhashtbl only"
    else:
        yield "ok", f"allproc and pidhashtbl have the same {len(listed)} processes"


def _check_threads(kernel: Kernel) -> Iterator[Finding]:
    total = 0
    for proc in for_each_proc(kernel):
        found = 0
        for thread in for_each_thread_of(kernel, proc):
            if thread["proc"] != proc.address:
                yield "suspect", f"thread {thread['tid']} of process {proc['pid']} belongs to {thread['proc']:#x}"
                return
            found += 1
        if found != proc["numthreads"]:
            yield "suspect", f"process {proc['pid']} has {found} threads and counts {proc['numthreads']}"
            return
        total += found
    yield "ok", f"the processes' own counts and their lists say {total} threads"


def _check_parents(kernel: Kernel) -> Iterator[Finding]:
    procs = list(for_each_proc(kernel))
    known = {proc.address for proc in procs}
    lost = [str(proc["pid"]) for proc in procs if proc["pptr"] and proc["pptr"] not in known]
    odd = [str(proc["pid"]) for proc in procs if not 0 <= proc["pid"] < MAX_PROCESSES]
    if lost or odd:
        why = f"the parents of {', '.join(lost[:SHOWN])} are in no list" if lost else f"PIDs {', '.join(odd[:SHOWN])}"
        yield "suspect", why
    else:
        yield "ok", f"the parents of {len(procs)} processes are in the lists"


def _check_cpus(kernel: Kernel) -> Iterator[Finding]:
    count = read_number(kernel, kernel.symbols.address("mp_ncpus"), 4, signed=True)
    running: dict[int, int] = {}
    for proc in for_each_proc(kernel):
        for thread in for_each_thread_of(kernel, proc):
            cpu = oncpu_of(thread)
            if cpu is not None:
                running[cpu] = running.get(cpu, 0) + 1
    amiss = [str(cpu) for cpu, threads in running.items() if threads > 1]
    if amiss:
        yield "suspect", f"CPU {', '.join(sorted(amiss)[:SHOWN])} runs several threads"
    elif len(running) > count:
        yield "suspect", f"{len(running)} CPUs run threads, mp_ncpus is {count}"
    else:
        yield "ok", f"{len(running)} of {count} CPUs run a thread each"


def _check_crash(kernel: Kernel) -> Iterator[Finding]:
    found = find_crashed(kernel)
    if found is not None:
        yield "ok", f"the thread that took the dump is in the lists: {found[1]['tid']} of process {found[0]['pid']}"
    elif read_number(kernel, kernel.symbols.address("dumptid"), 4, signed=True):
        yield "suspect", "the thread that took the dump is in no list"
    else:
        yield "partial", "no thread took a dump"


def _check_files(kernel: Kernel) -> Iterator[Finding]:
    files = list(for_each_linker_file(kernel))
    base = kernel.symbols.find("kernbase")
    lost = sum(1 for file in files[1:] if base is not None and file["address"] < base.address)
    if lost:
        yield "suspect", f"{lost} of {len(files)} loaded files are below the kernel"
    elif files:
        yield "ok", f"{len(files)} loaded files, at addresses of the kernel"
    else:
        yield "suspect", "not even the kernel is in the list of loaded files"


SUBJECTS: tuple[Subject, ...] = (
    Subject("the kernel's own offsets and the types", PROCESSES, _check_offsets),
    Subject("processes and the kernel's count of them", PROCESSES, _check_count),
    Subject("processes and the table of PIDs", PROCESSES, _check_hash),
    Subject("threads and their counts", ("procs", "lwps", "bt"), _check_threads),
    Subject("processes and their parents", ("procs",), _check_parents),
    Subject("CPUs and threads", ("lwps", "bt"), _check_cpus),
    Subject("the thread that took the dump", ("bt", "sys"), _check_crash),
    Subject("loaded files", ("mods",), _check_files),
    *COMMON,
)


def for_each_check(kernel: Kernel, command: str | None = None) -> Iterator[Check]:
    """Yield the findings for every command, or for one."""
    return check_subjects(SUBJECTS, kernel, command)
