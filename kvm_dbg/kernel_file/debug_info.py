"""The debug information of a made file: what a kernel in an image knows of its types, functions and variables.

Sources: the kernel's own BTF, and that of its modules, which goes on from the kernel's. Types are at no address: those
of modules may be in a file that serves other images of the build, as long as these have the same modules. Functions and
variables of modules are only in a file with run-time addresses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.btf import BtfTypes
from kvm_dbg.errors import KvmDbgError
from kvm_dbg.kernel_file.dwarf import make_dwarf

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Area, Kernel, OperatingSystem
    from kvm_dbg.symbols.base import Symbol


DIGEST_SIZE = 8  # bytes


def read_module_types(kernel: Kernel, system: OperatingSystem, problems: list[str]) -> dict[str, BtfTypes]:
    """Return the types of modules by name, in that order; a broken list of them is one more sentence in `problems`."""
    found: dict[str, BtfTypes] = {}
    try:
        if isinstance(kernel.types, BtfTypes):
            for name, types in system.for_each_module_types(kernel, kernel.types):
                found[name] = types
    except KvmDbgError as error:
        problems.append(f"types of modules are missing: {error}")
    return dict(sorted(found.items()))


def digest_of(module_types: Mapping[str, BtfTypes]) -> str:
    """Return what tells these modules' types from others, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for name, types in module_types.items():
        for data in (name.encode("utf-8", "replace"), types.data.words, types.data.strings):
            view = memoryview(data).cast("B")
            digest.update(len(view).to_bytes(8, "little"))
            digest.update(view)
    return digest.hexdigest()


def make_debug_sections(
    kernel: Kernel,
    system: OperatingSystem,
    areas: list[Area],
    slide: int,
    *,
    modules: bool,
    module_types: Mapping[str, BtfTypes],
    parameter_names: bool,
    problems: list[str],
) -> dict[str, bytes]:
    """Return the sections of debug information by name; none, and a sentence more in `problems`, where it is not known.

    Args:
        kernel: of which.
        system: its operating system.
        areas: of the kernel's memory; what lies in a `fixed` one is not slid.
        slide: what is subtracted from the kernel's own addresses.
        modules: with the modules' functions and variables.
        module_types: of modules, by name.
        parameter_names: see `make_dwarf`.
        problems: added to.
    """
    try:
        types = kernel.types
        if not isinstance(types, BtfTypes):
            return {}  # DWARF, of a vmlinux that has all this and more
        symbols = _for_each_symbol(kernel, system, areas, slide, modules=modules)
        made = make_dwarf(types, symbols, modules=module_types, parameter_names=parameter_names)
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
