"""The kernel's log.

Sources: kernel/printk/printk.c, Documentation/ABI/testing/dev-kmsg. Two kinds of buffer are known: the lock-free ring
(symbol `prb`, since v5.10, commit 896fbe20b4e2; see printk_ring.py) and, before it, records of any length one after
another (see printk_record.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.errors import SymbolNotFound
from kvm_dbg.kernel.linux.printk_record import for_each_old_record
from kvm_dbg.kernel.linux.printk_ring import for_each_ring_record

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel, LogRecord


def for_each_log_record(kernel: Kernel) -> Iterator[LogRecord]:
    """Yield the kernel's log, oldest first.

    Raises:
        SymbolNotFound: the kernel has no log of a known kind.
        ReadError, CorruptError: the buffer cannot be followed; what comes before has been yielded.
    """
    if kernel.symbols.find("prb") is not None:
        yield from for_each_ring_record(kernel)
    elif kernel.symbols.find("log_first_idx") is not None:
        yield from for_each_old_record(kernel)
    else:
        raise SymbolNotFound("prb", "the kernel's log was not found: neither the symbol prb nor log_first_idx is known")
