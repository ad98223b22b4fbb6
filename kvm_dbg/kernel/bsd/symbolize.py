"""Names for addresses of a BSD's kernel and its modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.kernel.bsd.kernel import BsdKernel

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel
    from kvm_dbg.symbols.base import Symbol, SymbolTable

FAR = 1 << 20  # bytes: a symbol without a size names nothing further away


def _find_table(kernel: Kernel) -> SymbolTable:
    """Return the symbols of a kernel, those of its modules included where the system keeps them."""
    if not isinstance(kernel, BsdKernel):
        return kernel.symbols
    from kvm_dbg.kernel import system_of

    return system_of(kernel).all_symbols(kernel)


def find_symbol(kernel: Kernel, address: int) -> Symbol | None:
    """Return the symbol that `address` lies in, None if there is none near."""
    symbol = _find_table(kernel).find_at(address)
    return None if symbol is None or (not symbol.size and address - symbol.address > FAR) else symbol


def symbolize(kernel: Kernel, address: int) -> str | None:
    """Return "name+0x12" or "name+0x12 [module]", None if nothing is near."""
    symbol = find_symbol(kernel, address)
    if symbol is None:
        return None
    distance = address - symbol.address
    place = f"+{distance:#x}" if distance else ""
    return symbol.name + place + (f" [{symbol.module}]" if symbol.module else "")
