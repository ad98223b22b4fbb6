"""What a CPU means: page tables, registers, word size.

`ARCHES` is the registry: a new processor is a module of this package and one more entry.
"""

from __future__ import annotations

from kvm_dbg.arch.base import Arch
from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.errors import UnsupportedError

ARCHES: tuple[Arch, ...] = (X86_64,)


def find_arch(name: str) -> Arch:
    """Return the architecture called `name` ("x86_64").

    Raises:
        UnsupportedError: no such architecture is built.
    """
    for arch in ARCHES:
        if arch.name == name:
            return arch
    raise UnsupportedError(f"architecture {name}", "known are " + ", ".join(arch.name for arch in ARCHES))
