"""The texts of kvm_geterr(3), by operating system: on NetBSD's dumps those of its own libkvm, as far as it has one.

Source: NetBSD lib/libkvm/kvm_x86_64.c (translation), kvm.c (headers, writes), kvm_proc.c and kvm_getloadavg.c (symbols,
which they look up with an underscore in front).
"""

from __future__ import annotations

from typing import Final

from kvm_dbg.errors import KvmDbgError, NotInImageError, NotMappedError, SymbolNotFound

NETBSD: Final = "NetBSD"
NO_HEADER: Final = "no valid dump header"
BAD_NAMELIST: Final = "bad namelist"
NO_WRITE: Final = "kvm_write not implemented for dead kernels"

LEVELS: Final = {"PML4E": "level 4 PDE", "PDPTE": "level 3 PDE", "PDE": "level 2 PDE", "PTE": "PTE"}
"""The processor manual's name of a page-table entry -> libkvm's in "invalid translation"."""

READS: Final = {"PML4E": "PT level 4 entry", "PDPTE": "PT level 3 entry", "PDE": "PT level 2 entry", "PTE": "PTE"}
"""The same in "could not read"."""


def read_only(system: str | None) -> str:
    """Return what is said of a write into an image that was not opened for it."""
    return NO_WRITE if system == NETBSD else "the image was not opened for writing"


def explain(error: KvmDbgError, system: str | None) -> str:
    """Return what kvm_geterr says of an error on an image of the operating system `system`."""
    if system != NETBSD:
        return str(error)
    if isinstance(error, SymbolNotFound):
        return f"_{error.name}: no such symbol"
    if isinstance(error, NotMappedError):
        return f"invalid translation (invalid {LEVELS.get(error.level or '', 'address')})"
    if isinstance(error, NotInImageError):
        entry = READS.get(error.role.removeprefix("the ").split(" ")[0])
        return f"could not read {entry}: {error}" if entry else f"kvm_read: {error}"
    return str(error)
