"""Processes and threads as the kernel lists them: struct proc and struct thread.

Source: sys/sys/proc.h. All but what OffsetTypes knows may be missing. `allproc` is a LIST, the youngest process first;
zombies were on a list of their own, `zombproc`, until 13. The threads of a process are a TAILQ, the oldest first.
td_oncpu was an unsigned char before 11 (NOCPU_OLD).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from kvm_dbg.errors import (
    CorruptError,
    FormatError,
    KvmDbgError,
    MemberNotFound,
    ReadError,
    SymbolNotFound,
    TypeNotFound,
)
from kvm_dbg.kernel.bsd.queue import for_each_entry
from kvm_dbg.kernel.layout import Layout, Names, Record, read_number, read_pointer, remembered

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

Result = TypeVar("Result")

MISSING = (ReadError, CorruptError, FormatError, SymbolNotFound, TypeNotFound, MemberNotFound)
"""What costs a field, not the line."""

MAX_PROCESSES = 1 << 18  # PID_MAX is 99999
MAX_THREADS = 1 << 20  # of one process
NOCPU_OLD = 255

PROC: dict[str, Names] = {
    "pid": "p_pid",
    "comm": "p_comm",
    "list": "p_list",
    "hash": ("p_hash", None),
    "threads": "p_threads",
    "state": ("p_state", None),
    "flag": ("p_flag", None),
    "lock": ("p_lock", None),
    "pptr": ("p_pptr", None),
    "oppid": ("p_oppid", None),
    "ucred": ("p_ucred", None),
    "vmspace": ("p_vmspace", None),
    "sysent": ("p_sysent", None),
    "args": ("p_args", None),
    "nice": ("p_nice", None),
    "numthreads": ("p_numthreads", None),
    "pgrp": ("p_pgrp", None),
    "stats": ("p_stats", None),
    "fd": ("p_fd", None),
    "pd": ("p_pd", None),
    "rux_runtime": ("p_rux.rux_runtime", None),
    "rux_uticks": ("p_rux.rux_uticks", None),
    "rux_sticks": ("p_rux.rux_sticks", None),
    "rux_iticks": ("p_rux.rux_iticks", None),
}
THREAD: dict[str, Names] = {
    "tid": "td_tid",
    "name": "td_name",
    "oncpu": "td_oncpu",
    "pcb": "td_pcb",
    "plist": "td_plist",
    "proc": ("td_proc", None),
    "lastcpu": ("td_lastcpu", None),
    "state": ("td_state", None),
    "inhibitors": ("td_inhibitors", None),
    "flags": ("td_flags", None),
    "priority": ("td_priority", None),
    "pri_class": ("td_pri_class", None),
    "wmesg": ("td_wmesg", None),
    "lockname": ("td_lockname", None),
    "slptick": ("td_slptick", None),
    "kstack": ("td_kstack", None),
    "kstack_pages": ("td_kstack_pages", None),
    "incruntime": ("td_incruntime", None),
    "uticks": ("td_uticks", None),
    "sticks": ("td_sticks", None),
    "iticks": ("td_iticks", None),
    "rux_runtime": ("td_rux.rux_runtime", None),
    "rux_uticks": ("td_rux.rux_uticks", None),
    "rux_sticks": ("td_rux.rux_sticks", None),
    "rux_iticks": ("td_rux.rux_iticks", None),
}


def proc_layout(kernel: Kernel) -> Layout:
    """Return the members of struct proc that processes are described from."""
    return remembered(kernel, _make_proc)


def _make_proc(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct proc", PROC, kernel.arch.byteorder)


def thread_layout(kernel: Kernel) -> Layout:
    """Return the members of struct thread that threads are described from."""
    return remembered(kernel, _make_thread)


def _make_thread(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct thread", THREAD, kernel.arch.byteorder)


def for_each_proc(kernel: Kernel) -> Iterator[Record]:
    """Yield all processes in the order of the kernel's list, then the zombies of old kernels.

    Raises:
        SymbolNotFound: the kernel has no list.
        ReadError, CorruptError: the list is broken; what comes before has been yielded.
    """
    layout = proc_layout(kernel)
    heads = [kernel.symbols.address("allproc")]
    zombies = kernel.symbols.find("zombproc")
    if zombies is not None:
        heads.append(zombies.address)
    for head in heads:
        for address in for_each_entry(kernel, head, layout.offsets["list"], "processes", MAX_PROCESSES):
            yield layout.read(kernel, address)


def for_each_thread_of(kernel: Kernel, proc: Record) -> Iterator[Record]:
    """Yield the threads of a process in the order of its list.

    Raises:
        ReadError, CorruptError: the list is broken; what comes before has been yielded.
    """
    layout = thread_layout(kernel)
    head = proc.at("threads")
    what = f"threads of process {proc.numbers.get('pid', '?')}"
    for address in for_each_entry(kernel, head, layout.offsets["plist"], what, MAX_THREADS):
        yield layout.read(kernel, address)


def sorted_procs(kernel: Kernel) -> tuple[list[Record], KvmDbgError | None]:
    """Return the processes by PID, and what ended the list early, if anything did. Raises SymbolNotFound.

    Where the list is broken, those that only the table of PIDs leads to are found there.
    """
    found: dict[int, Record] = {}
    failure: KvmDbgError | None = None
    try:
        for proc in for_each_proc(kernel):
            found[proc.address] = proc  # one by one: those before an error count
    except (ReadError, CorruptError) as error:
        failure = error
        for address in read_hashed(kernel)[0]:
            if address not in found:
                with suppress(ReadError):
                    found[address] = proc_layout(kernel).read(kernel, address)
    return sorted(found.values(), key=lambda proc: proc.numbers.get("pid", 0)), failure


def read_hashed(kernel: Kernel) -> tuple[list[int], KvmDbgError | None]:
    """Return the addresses of the processes in the table of PIDs (`pidhashtbl`, `pidhash`), and what went wrong."""
    found: dict[int, None] = {}
    failure: KvmDbgError | None = None
    try:
        word = kernel.arch.pointer_size
        offset = proc_layout(kernel).offsets.get("hash")
        table = read_pointer(kernel, kernel.symbols.address("pidhashtbl"))
        place = kernel.symbols.address("pidhash")
        mask = read_number(kernel, place, word)
        if mask >= MAX_PROCESSES:
            raise CorruptError(place, f"the table of PIDs has {mask + 1} chains")
    except MISSING as error:
        return [], error
    if offset is None:
        return [], MemberNotFound("struct proc", "p_hash")
    for number in range(mask + 1):
        try:
            for address in for_each_entry(kernel, table + number * word, offset, "PIDs", MAX_PROCESSES):
                found[address] = None
        except (ReadError, CorruptError) as error:
            failure = failure or error
    return list(found), failure


def find_proc(kernel: Kernel, address: int) -> Record:
    """Return the process that the struct proc or struct thread at `address` is of. Raises ReadError, MemberNotFound."""
    for proc in for_each_proc(kernel):
        if proc.address == address:
            return proc
    return proc_layout(kernel).read(kernel, thread_layout(kernel).read(kernel, address)["proc"])


def oncpu_of(thread: Record) -> int | None:
    """Return the CPU that a thread runs on, None if it does not. Raises ReadError."""
    return _cpu(thread, "oncpu")


def last_cpu_of(thread: Record) -> int | None:
    """Return the CPU that a thread last ran on, None if it never ran or that is not told. Raises ReadError."""
    return _cpu(thread, "lastcpu") if "lastcpu" in thread else None


def _cpu(thread: Record, own: str) -> int | None:
    cpu = thread[own]
    if thread.layout.sizes[own] == 1:
        return None if cpu == NOCPU_OLD else cpu
    return None if cpu < 0 else cpu


def attempt(unread: list[str], names: tuple[str, ...], read: Callable[[], Result]) -> Result | None:
    """Return what `read` returns; if bytes are missing, note the fields `names` as unread and return None.

    A member that this kernel lacks, or whose offset nobody tells, is not unread: there is just no answer.
    """
    try:
        return read()
    except (MemberNotFound, TypeNotFound, SymbolNotFound):
        return None
    except (ReadError, CorruptError, FormatError):
        unread += names
        return None
