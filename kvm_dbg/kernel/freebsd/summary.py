"""What a person wants to know first of a FreeBSD kernel, its log, and its modules.

Sources: sys/kern/vers.c and newvers.sh (`version`, `osrelease`), sys/kern/kern_shutdown.c (`panicstr`), sys/kern/
kern_tc.c (`time_uptime`, `time_second`), sys/kern/subr_smp.c (`mp_ncpus`), sys/sys/msgbuf.h and sys/kern/subr_msgbuf.c
(a ring, positions are sequence numbers modulo its size), sys/sys/linker.h and sys/kern/kern_linker.c (`linker_files`,
a TAILQ; the first is the kernel).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import CorruptError, SymbolNotFound
from kvm_dbg.kernel.base import LogRecord, Module, SystemSummary
from kvm_dbg.kernel.bsd.loadavg import read_load_average
from kvm_dbg.kernel.bsd.msgbuf import for_each_record, unroll
from kvm_dbg.kernel.bsd.queue import for_each_entry
from kvm_dbg.kernel.freebsd.proc import MISSING, for_each_proc, for_each_thread_of
from kvm_dbg.kernel.layout import Layout, Names, decode_text, read_number, read_pointer

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

Result = TypeVar("Result")

TEXT_LIMIT = 4096  # bytes
MSG_MAGIC = 0x063062
MAX_LOG = 1 << 28  # bytes
MAX_FILES = 1 << 12

MSGBUF: dict[str, Names] = {"ptr": "msg_ptr", "magic": "msg_magic", "size": "msg_size", "wseq": "msg_wseq"}
FILE: dict[str, Names] = {
    "link": "link",
    "filename": "filename",
    "address": "address",
    "size": "size",
    "refs": ("refs", None),
}


def read_summary(kernel: Kernel) -> SystemSummary:
    """Return what `sys` shows; fields that the image lacks are None or empty."""
    panic = _or_none(lambda: _read_panic(kernel))
    crashed = _or_none(lambda: _int(kernel, "dumptid"))
    return SystemSummary(
        system="FreeBSD",
        release=getattr(kernel, "release", ""),
        version=getattr(kernel, "version", ""),
        machine=kernel.arch.name,
        nodename="",
        cpus=_or_none(lambda: _int(kernel, "mp_ncpus")),
        date=_or_none(lambda: float(_word(kernel, "time_second"))),
        uptime=_or_none(lambda: float(_word(kernel, "time_uptime"))),
        load_average=_or_none(lambda: read_load_average(kernel)),
        tasks=_or_none(lambda: sum(1 for proc in for_each_proc(kernel) for _ in for_each_thread_of(kernel, proc))),
        page_size=1 << kernel.arch.page_shift,
        slide=getattr(kernel, "slide", None),
        panic_message=panic,
        panic_lid=crashed or None,
    )


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


def for_each_module(kernel: Kernel) -> Iterator[Module]:
    """Yield the loaded files but the kernel itself, in the order of the kernel's list.

    Raises:
        SymbolNotFound, TypeNotFound, ReadError, CorruptError: the list cannot be read, or not to its end.
    """
    layout = Layout(kernel.types, "struct linker_file", FILE, kernel.arch.byteorder)
    head = kernel.symbols.address("linker_files")
    for number, address in enumerate(for_each_entry(kernel, head, layout.offsets["link"], "loaded files", MAX_FILES)):
        if not number:
            continue
        file = layout.read(kernel, address)
        name = decode_text(read_string(kernel, file["filename"], TEXT_LIMIT))
        start, size = file["address"], file["size"]
        yield Module(
            name=name.removesuffix(".ko"),
            address=start,
            size=size,
            reference_count=file.get("refs"),
            struct_address=address,
            ranges=((start, size),) if size else (),
        )


def _read_panic(kernel: Kernel) -> str | None:
    address = read_pointer(kernel, kernel.symbols.address("panicstr"))
    return decode_text(read_string(kernel, address, TEXT_LIMIT)) if address else None


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
