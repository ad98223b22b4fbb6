"""The message buffer.

Source: sys/sys/msgbuf.h (struct kern_msgbuf: four longs, the same ever since; the text is a ring behind them, msg_bufx
where the next character goes, msg_bufs its size; MSG_MAGIC), sys/kern/subr_log.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.bsd.msgbuf import for_each_record, unroll
from kvm_dbg.kernel.layout import read_number, read_pointer

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel, LogRecord

MEMBERS = 4  # longs: msg_magic, msg_bufx, msg_bufr, msg_bufs; msg_bufl came in front of the text with them
MEMBERS = 4  # longs in front of the text: msg_magic, msg_bufx, msg_bufr, msg_bufs
MSG_MAGIC = 0x063061
MAX_SIZE = 1 << 26  # bytes


class Ring(NamedTuple):
    """The message buffer: where its text begins, the number of its bytes, and which of them is written next."""

    address: int
    size: int
    write: int


def read_ring(kernel: Kernel) -> Ring:
    """Return where the message buffer is.

    Raises:
        SymbolNotFound, ReadError: it cannot be read.
        CorruptError: its header is impossible.
    """
    address, word = read_pointer(kernel, kernel.symbols.address("msgbufp")), kernel.arch.pointer_size
    magic, write, _, size = (read_number(kernel, address + place * word, word, signed=True) for place in range(MEMBERS))
    if magic != MSG_MAGIC:
        raise CorruptError(address, f"the message buffer has the magic {magic:#x}, not {MSG_MAGIC:#x}")
    if not 0 < size <= MAX_SIZE or not 0 <= write <= size:
        raise CorruptError(address, f"the message buffer has {size} bytes, and {write} is the next")
    return Ring(address + MEMBERS * word, size, write)


def read_text(kernel: Kernel) -> bytes:
    """Return the log's text, oldest first. Raises as `read_ring`."""
    ring = read_ring(kernel)
    return unroll(kernel.read(ring.address, ring.size), ring.write)


def for_each_log_record(kernel: Kernel) -> Iterator[LogRecord]:
    """Yield the lines of the log, oldest first. Raises as `read_text`."""
    return for_each_record(read_text(kernel))
