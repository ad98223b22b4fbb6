"""What a CPU means: page tables, registers, word size.

`ARCHES` is the registry: a new processor is a module of this package and one more entry. A processor that pages in
several ways, or has memory of either byte order, has an entry for each.
"""

from __future__ import annotations

from kvm_dbg.arch.aarch64 import AARCH64, AARCH64_16K
from kvm_dbg.arch.base import Arch
from kvm_dbg.arch.i386 import I386, I386_PAE
from kvm_dbg.arch.ppc64 import PPC64, PPC64LE
from kvm_dbg.arch.riscv64 import RISCV64
from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.errors import UnsupportedError

ARCHES: tuple[Arch, ...] = (X86_64, AARCH64, AARCH64_16K, RISCV64, I386, I386_PAE, PPC64, PPC64LE)


def find_arch(name: str, *, byteorder: str | None = None, page_shift: int | None = None) -> Arch:
    """Return the architecture called `name` ("x86_64"), the first of those of that byte order and page size.

    Raises:
        UnsupportedError: no such architecture is built.
    """
    for arch in ARCHES:
        if arch.name == name and byteorder in (None, arch.byteorder) and page_shift in (None, arch.page_shift):
            return arch
    details = "" if byteorder is None else f", {byteorder}-endian"
    details += "" if page_shift is None else f", pages of {1 << page_shift} bytes"
    known = ", ".join(dict.fromkeys(arch.name for arch in ARCHES))
    raise UnsupportedError(f"architecture {name}{details}", f"known are {known}")
