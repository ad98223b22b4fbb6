"""The message buffer.

Source: sys/sys/msgbuf.h (struct kern_msgbuf: five longs, the same ever since; the text is a ring behind them, msg_bufx
where the next character goes, msg_bufs its size; MSG_MAGIC), sys/kern/subr_log.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.bsd.msgbuf import for_each_record, unroll
from kvm_dbg.kernel.layout import read_pointer

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel, LogRecord

HEADER = struct.Struct("<4q")  # msg_magic, msg_bufx, msg_bufr, msg_bufs
MSG_MAGIC = 0x063061
MAX_SIZE = 1 << 26  # bytes


def read_text(kernel: Kernel) -> bytes:
    """Return the log's text, oldest first.

    Raises:
        SymbolNotFound, ReadError: it cannot be read.
        CorruptError: its header is impossible.
    """
    address = read_pointer(kernel, kernel.symbols.address("msgbufp"))
    magic, write, _, size = HEADER.unpack(kernel.read(address, HEADER.size))
    if magic != MSG_MAGIC:
        raise CorruptError(address, f"the message buffer has the magic {magic:#x}, not {MSG_MAGIC:#x}")
    if not 0 < size <= MAX_SIZE or not 0 <= write <= size:
        raise CorruptError(address, f"the message buffer has {size} bytes, and {write} is the next")
    return unroll(kernel.read(address + HEADER.size, size), write)


def for_each_log_record(kernel: Kernel) -> Iterator[LogRecord]:
    """Yield the lines of the log, oldest first. Raises as `read_text`."""
    return for_each_record(read_text(kernel))
