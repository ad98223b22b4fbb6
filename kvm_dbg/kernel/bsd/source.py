"""Where the knowledge about an opened kernel comes from: its file, a layout file, or its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.errors import KvmDbgError
from kvm_dbg.kernel.base import Sources
from kvm_dbg.symbols.ksyms import SOURCE

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel


def find_sources(kernel: Kernel) -> Sources:
    """Return where symbols, types and unwind rules come from, and what is missing."""
    missing = []
    path = getattr(kernel, "vmlinux_path", None)
    types: str | None = None
    try:
        types = kernel.types.source
    except KvmDbgError as error:
        missing.append(str(error))
    if types is None or not types.startswith("DWARF"):
        missing.append("no debug information: no source lines and no local variables")
    return Sources(SOURCE if path is None else str(path), types, "frame pointers", tuple(missing))
