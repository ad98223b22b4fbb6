"""Whether the kernel crashed, on which CPU, and what it said.

Sources: kernel/panic.c (`panic_cpu` is -1 until a CPU panics, v4.5; "Kernel panic - not syncing: ..."),
arch/x86/kernel/reboot.c (`crashing_cpu`); the first lines of an Oops: arch/x86/kernel/dumpstack.c, traps.c, mm/fault.c,
lib/bug.c. An Oops that ends in a panic says "Fatal exception" there: its own first line tells more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError, ReadError, SymbolNotFound
from kvm_dbg.kernel.layout import read_number
from kvm_dbg.kernel.linux.cpu import read_per_cpu_offsets
from kvm_dbg.kernel.linux.printk import for_each_log_record

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

PANIC = "Kernel panic - not syncing"
FATAL = ": Fatal exception"
NEAR = 8  # records between the first line of an Oops and the one with its number
OOPS = (
    "BUG: ",
    "kernel BUG at ",
    "Unable to handle kernel ",
    "general protection fault",
    "Oops: ",
    "divide error: ",
    "invalid opcode: ",
    "stack segment: ",
    "double fault: ",
)


def read_panic_cpu(kernel: Kernel) -> int | None:
    """Return the CPU that crashed, None if none did or the image does not tell."""
    for name in ("panic_cpu", "crashing_cpu"):
        symbol = kernel.symbols.find(name)
        if symbol is None:
            continue
        try:
            cpu = read_number(kernel, symbol.address, 4, signed=True)
            if cpu >= 0 and cpu in read_per_cpu_offsets(kernel):
                return cpu
        except (ReadError, CorruptError):
            continue
    return None


def read_panic_message(kernel: Kernel) -> str | None:
    """Return what the kernel said when it crashed: the last panic in its log, else the last Oops; None if neither."""
    panic: str | None = None
    oops: str | None = None
    oops_sequence = -NEAR
    try:
        for record in for_each_log_record(kernel):
            line = record.text.partition("\n")[0]
            if line.startswith(PANIC):
                panic = line
            elif line.startswith(OOPS) and not (line.startswith("Oops: ") and record.sequence < oops_sequence + NEAR):
                oops, oops_sequence = line, record.sequence
    except (ReadError, CorruptError, SymbolNotFound):
        pass  # what was read before still counts
    if panic is not None and oops is not None and FATAL in panic:
        return f"{oops}; {panic}"
    return panic or oops
