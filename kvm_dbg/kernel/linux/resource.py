"""What lies where in the physical address space: the tree that /proc/iomem shows.

Sources: kernel/resource.c (`iomem_resource`; r_show() prints `name`), include/linux/ioport.h (struct resource: `end` is
the last address), arch/x86/kernel/e820.c (the name of RAM).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.layout import Layout, observed

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MISSING = (ReadError, CorruptError, SymbolNotFound, TypeNotFound, MemberNotFound)
MEMBERS = {name: name for name in ("start", "end", "name", "child", "sibling")}
RAM = b"System RAM"  # and "System RAM (virtio_mem)", "System RAM (kmem)"
MAX_RESOURCES = 1 << 14
NAME_LIMIT = 64  # bytes


def find_memory(kernel: Kernel) -> tuple[tuple[int, int], ...] | None:
    """Return the physical [start, end) of all RAM, ascending as in the tree; None if the tree cannot be read."""
    return observed(kernel, _find_memory)


def _find_memory(kernel: Kernel) -> tuple[tuple[int, int], ...] | None:
    found: list[tuple[int, int]] = []
    try:
        layout = Layout(kernel.types, "struct resource", dict(MEMBERS), kernel.arch.byteorder)
        pending = [layout.read(kernel, kernel.symbols.address("iomem_resource"))["child"]]
        for _ in range(MAX_RESOURCES):
            if not pending:
                break
            address = pending.pop()
            if not address:
                continue
            resource = layout.read(kernel, address)
            if read_string(kernel, resource["name"], NAME_LIMIT).startswith(RAM):
                found.append((resource["start"], resource["end"] + 1))
                pending.append(resource["sibling"])
            else:
                pending += [resource["sibling"], resource["child"]]
        else:
            return None  # it loops
    except MISSING:
        return None
    return tuple(sorted(found)) or None
