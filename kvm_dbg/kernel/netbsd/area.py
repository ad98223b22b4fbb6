"""The parts of the kernel's memory, as the linker's script named them.

Source: sys/arch/amd64/conf/kern.ldscript (kernel_text and etext; __data_start, edata; __bss_start, end).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.kernel.base import Area

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

STARTS = {
    "kernel_text": (".text", True, False),
    "__data_start": (".data", False, True),
    "__bss_start": (".bss", False, True),
}
CODE_END = ("etext", "_etext")
ENDS = ("end", "_end")


def for_each_area(kernel: Kernel) -> Iterator[Area]:
    """Yield the kernel's parts, ascending and without gaps; constants count as text where nothing marks its end."""
    found = {name: symbol.address for name, symbol in kernel.symbols.find_many(STARTS).items()}
    end = next((symbol.address for name in ENDS if (symbol := kernel.symbols.find(name)) is not None), 0)
    parts = sorted((found[symbol], STARTS[symbol]) for symbol in found if found[symbol] < end)
    code_end = next((symbol.address for name in CODE_END if (symbol := kernel.symbols.find(name)) is not None), None)
    if code_end is not None and any(start < code_end for start, _ in parts):
        parts = sorted([*parts, (code_end, (".rodata", False, False))])
    for (start, (name, executable, writable)), stop in zip(
        parts, [*(start for start, _ in parts[1:]), end], strict=True
    ):
        if start < stop:
            yield Area(name, start, stop, executable, writable)
