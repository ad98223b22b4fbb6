"""Where the knowledge about an opened kernel comes from: its file, or its own memory.

Sources: a Linux kernel has its symbols in memory with CONFIG_KALLSYMS (data too with CONFIG_KALLSYMS_ALL), its types
with CONFIG_DEBUG_INFO_BTF, and rules for its unwinder with CONFIG_UNWINDER_ORC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.errors import KvmDbgError
from kvm_dbg.kernel.base import Sources

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel


def find_sources(kernel: Kernel) -> Sources:
    """Return where symbols, types and unwind rules come from, and what is missing."""
    from kvm_dbg.kernel.linux.orc import find_table

    missing = []
    path = getattr(kernel, "vmlinux_path", None)
    symbols = str(path) if path is not None else getattr(kernel, "symbols_from", "kallsyms in the image")
    if path is None:
        missing.append("no vmlinux: no source lines and no local variables")
        if kernel.symbols.find("init_task") is None:  # data: only with CONFIG_KALLSYMS_ALL, or derived
            missing.append("kallsyms has functions only: what begins at a variable is not found")
    types: str | None = None
    try:
        types = kernel.types.source
    except KvmDbgError as error:
        missing.append(f"no types, so only `nlist`, `read`, `vtop` and `write` answer: {error}")
    unwind: str | None = None
    if types is not None:
        why = "the kernel has none (CONFIG_UNWINDER_ORC is off)"
        try:
            unwind = "ORC in the image" if find_table(kernel) is not None else None
        except KvmDbgError as error:
            why = str(error)
        if unwind is None:
            missing.append(f"no ORC tables, so backtraces follow frame pointers or guess: {why}")
    return Sources(symbols, types, unwind, tuple(missing))
