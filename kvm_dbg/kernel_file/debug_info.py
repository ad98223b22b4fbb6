"""The debug information of a made file: what a kernel in an image knows of its types, functions and variables.

Sources: the kernel's own BTF, and that of its modules (struct module's btf_data and btf_data_size since 5.11, commit
36e68442d1af), which goes on from the kernel's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.btf import BtfTypes
from kvm_dbg.errors import KvmDbgError
from kvm_dbg.kernel_file.dwarf import make_dwarf

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Area, Kernel, OperatingSystem
    from kvm_dbg.symbols.base import Symbol


def make_debug_sections(
    kernel: Kernel,
    system: OperatingSystem,
    areas: list[Area],
    slide: int,
    *,
    modules: bool,
    parameter_names: bool,
    problems: list[str],
) -> dict[str, bytes]:
    """Return the sections of debug information by name; none, and a sentence more in `problems`, where it is not known.

    Args:
        kernel: of which.
        system: its operating system.
        areas: of the kernel's memory; what lies in a `fixed` one is not slid.
        slide: what is subtracted from the kernel's own addresses.
        modules: with the modules' types.
        parameter_names: see `make_dwarf`.
        problems: added to.
    """
    try:
        types = kernel.types
        if not isinstance(types, BtfTypes):
            return {}  # DWARF, of a vmlinux that has all this and more
        split = dict(system.for_each_module_types(kernel, types)) if modules else {}
        symbols = _for_each_symbol(kernel, system, areas, slide, modules=modules)
        made = make_dwarf(types, symbols, modules=split, parameter_names=parameter_names)
    except KvmDbgError as error:
        problems.append(f"no debug information is made: {error}")
        return {}
    if made.left_out:
        problems.append(f"{made.left_out} types make no sense and are left out")
    return made.sections


def _for_each_symbol(
    kernel: Kernel, system: OperatingSystem, areas: list[Area], slide: int, *, modules: bool
) -> Iterator[Symbol]:
    fixed = [(area.start, area.end) for area in areas if area.fixed]
    table = system.all_symbols(kernel) if modules else kernel.symbols
    for symbol in table.for_each():
        if not slide or symbol.module is not None or any(start <= symbol.address < end for start, end in fixed):
            yield symbol
        elif symbol.address >= slide:
            yield symbol._replace(address=symbol.address - slide)
