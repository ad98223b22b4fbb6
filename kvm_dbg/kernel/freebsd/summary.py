"""What a person wants to know first of a FreeBSD kernel, and its log.

Sources: sys/kern/vers.c and newvers.sh (`version`, `osrelease`), sys/kern/kern_shutdown.c (`panicstr`, `dumptid`), sys/
kern/kern_tc.c (`time_uptime`, `time_second`), sys/kern/subr_smp.c (`mp_ncpus`), sys/kern/kern_jail.c (`prison0`: the
host's own name is that of the first prison since 8), sys/vm/vm_init.c (`physmem` in pages), sys/sys/msgbuf.h and
sys/kern/subr_msgbuf.c (a ring, positions are sequence numbers modulo its size).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import CorruptError, SymbolNotFound
from kvm_dbg.kernel.base import LogRecord, SystemSummary
from kvm_dbg.kernel.bsd.loadavg import read_load_average
from kvm_dbg.kernel.bsd.msgbuf import for_each_record, unroll
from kvm_dbg.kernel.freebsd.proc import MISSING, for_each_proc, for_each_thread_of, oncpu_of
from kvm_dbg.kernel.freebsd.process import ProcessReader
from kvm_dbg.kernel.layout import Layout, Names, Record, decode_text, read_number, read_pointer

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

Result = TypeVar("Result")

TEXT_LIMIT = 4096  # bytes
NAME_LIMIT = 256  # bytes; MAXHOSTNAMELEN
MSG_MAGIC = 0x063062
MAX_LOG = 1 << 28  # bytes

MSGBUF: dict[str, Names] = {"ptr": "msg_ptr", "magic": "msg_magic", "size": "msg_size", "wseq": "msg_wseq"}


def read_summary(kernel: Kernel) -> SystemSummary:
    """Return what `sys` shows; fields that the image lacks are None or empty."""
    panic = _or_none(lambda: _read_panic(kernel))
    who = _or_none(lambda: find_crashed(kernel))
    crashed = who[1].numbers.get("tid") if who is not None else _or_none(lambda: _int(kernel, "dumptid"))
    return SystemSummary(
        system="FreeBSD",
        release=getattr(kernel, "release", ""),
        version=getattr(kernel, "version", ""),
        machine=_or_none(lambda: _text(kernel, "machine")) or kernel.arch.name,
        nodename=_or_none(lambda: _read_hostname(kernel)) or "",
        cpus=_or_none(lambda: _int(kernel, "mp_ncpus")),
        date=_or_none(lambda: float(_word(kernel, "time_second"))),
        uptime=_or_none(lambda: float(_word(kernel, "time_uptime"))),
        load_average=_or_none(lambda: read_load_average(kernel)),
        tasks=_or_none(lambda: sum(1 for proc in for_each_proc(kernel) for _ in for_each_thread_of(kernel, proc))),
        memory=_or_none(lambda: _word(kernel, "physmem") << kernel.arch.page_shift),
        page_size=1 << kernel.arch.page_shift,
        slide=getattr(kernel, "slide", None),
        panic_message=panic,
        panic_cpu=None if who is None else _or_none(lambda: oncpu_of(who[1])),
        panic_task=None if who is None else _or_none(lambda: ProcessReader(kernel).process(who[0])),
        panic_lid=crashed or None,
    )


def find_crashed(kernel: Kernel) -> tuple[Record, Record] | None:
    """Return the process and the thread that took the dump, None if none did.

    Raises:
        SymbolNotFound, ReadError, CorruptError: it cannot be told.
    """
    wanted = _int(kernel, "dumptid")
    for proc in for_each_proc(kernel) if wanted > 0 else ():
        for thread in for_each_thread_of(kernel, proc):
            if thread.numbers.get("tid") == wanted:
                return proc, thread
    return None


def for_each_log_record(kernel: Kernel) -> Iterator[LogRecord]:
    """Yield the lines of the message buffer, oldest first.

    Raises:
        SymbolNotFound, ReadError: it cannot be read.
        CorruptError: it is none.
    """
    address = read_pointer(kernel, kernel.symbols.address("msgbufp"))
    head = Layout(kernel.types, "struct msgbuf", MSGBUF, kernel.arch.byteorder).read(kernel, address)
    size = head["size"]
    if head["magic"] != MSG_MAGIC or not 0 < size <= MAX_LOG:
        raise CorruptError(address, f"no message buffer: its magic is {head['magic']:#x}, its size {size}")
    yield from for_each_record(unroll(kernel.read(head["ptr"], size), head["wseq"] % size))


def _read_panic(kernel: Kernel) -> str | None:
    address = read_pointer(kernel, kernel.symbols.address("panicstr"))
    return decode_text(read_string(kernel, address, TEXT_LIMIT)) if address else None


def _read_hostname(kernel: Kernel) -> str:
    jail = kernel.symbols.find("prison0")
    if jail is None:
        return _text(kernel, "hostname")
    return _text(kernel, "prison0", kernel.types.offset_of("struct prison", "pr_hostname"))


def _text(kernel: Kernel, name: str, offset: int = 0) -> str:
    return decode_text(read_string(kernel, kernel.symbols.address(name) + offset, NAME_LIMIT))


def _int(kernel: Kernel, name: str) -> int:
    return read_number(kernel, kernel.symbols.address(name), 4, signed=True)


def _word(kernel: Kernel, name: str) -> int:
    symbol = kernel.symbols.find(name)
    if symbol is None:
        raise SymbolNotFound(name)
    return read_number(kernel, symbol.address, symbol.size if symbol.size in (4, 8) else 8, signed=True)


def _or_none(read: Callable[[], Result]) -> Result | None:
    try:
        return read()
    except MISSING:
        return None
