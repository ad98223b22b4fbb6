"""What an image says of itself twice: independent structures compared, command by command.

Sources: sys/kern/kern_proc.c (`nprocs` counts all processes but zombies that are gone; p_nlwps; a child's p_pptr),
sys/arch/amd64/amd64/machdep.c (`dumpmag` is 0x8fca0101 in every dump), sys/kern/kern_synch.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.kernel.bsd.check import COMMON
from kvm_dbg.kernel.check import Finding, Subject, check_subjects
from kvm_dbg.kernel.layout import read_number
from kvm_dbg.kernel.netbsd.cpu import read_current_lwps
from kvm_dbg.kernel.netbsd.proc import find_proc, read_count, read_lwps, read_procs

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Check, Kernel

DUMPMAG = 0x8FCA0101
PROCESSES = ("procs", "lwps", "args", "env", "files", "vm", "bt")


def _check_magic(kernel: Kernel) -> Iterator[Finding]:
    found = read_number(kernel, kernel.symbols.address("dumpmag"), 4)
    if found == DUMPMAG:
        yield "ok", f"dumpmag is {DUMPMAG:#x}"
    else:
        yield "suspect", f"dumpmag is {found:#x}, not {DUMPMAG:#x}: symbols do not fit, or savecore has cleared it"


def _check_count(kernel: Kernel) -> Iterator[Finding]:
    procs, failure = read_procs(kernel)
    count = read_count(kernel)
    if failure is not None:
        raise failure
    if count == len(procs):
        yield "ok", f"nprocs and the lists say {count} processes"
    else:
        yield "suspect", f"nprocs says {count} processes, the lists have {len(procs)}"


def _check_lwps(kernel: Kernel) -> Iterator[Finding]:
    total = 0
    for proc in read_procs(kernel)[0]:
        lwps, failure = read_lwps(kernel, proc)
        if failure is not None:
            raise failure
        total += len(lwps)
        if len(lwps) != proc["nlwps"]:
            yield "suspect", f"process {proc['pid']} has {len(lwps)} LWPs and counts {proc['nlwps']}"
            return
    yield "ok", f"the processes' own counts and their lists say {total} LWPs"


def _check_parents(kernel: Kernel) -> Iterator[Finding]:
    procs, _ = read_procs(kernel)
    known = {proc.address for proc in procs}
    lost = [str(proc["pid"]) for proc in procs if proc["parent"] and proc["parent"] not in known]
    if lost:
        yield "suspect", f"the parents of {', '.join(lost[:8])} are in no list"
    else:
        yield "ok", f"the parents of {len(procs)} processes are in the lists"


def _check_current(kernel: Kernel) -> Iterator[Finding]:
    current = read_current_lwps(kernel)
    lost = [str(cpu) for cpu, lwp in current.items() if find_proc(kernel, lwp) is None]
    if lost:
        yield "suspect", f"what runs on CPU {', '.join(lost)} is in no list"
    else:
        yield "ok", f"what {len(current)} CPUs run is in the lists"


SUBJECTS: tuple[Subject, ...] = (
    Subject("symbols and the dump's magic", (*PROCESSES, "log", "loadavg", "sys", "nlist"), _check_magic),
    Subject("processes and the kernel's count of them", PROCESSES, _check_count),
    Subject("LWPs and their counts", ("procs", "lwps", "bt"), _check_lwps),
    Subject("processes and their parents", ("procs",), _check_parents),
    Subject("CPUs and LWPs", ("lwps", "bt"), _check_current),
    *COMMON,
)


def for_each_check(kernel: Kernel, command: str | None = None) -> Iterator[Check]:
    """Yield the findings for every command, or for one."""
    return check_subjects(SUBJECTS, kernel, command)
