"""Types of loadable modules: BTF that goes on from the kernel's.

The section .BTF of a module's file is freed when the module has been initialized, and struct module's pointer to it is
cleared; the kernel keeps a copy of its own, in a list of all modules that have one.

Sources: kernel/bpf/btf.c (btf_modules, struct btf_module, struct btf, btf_parse_module; since 5.11, commit
36e68442d1af), kernel/module/main.c (do_init_module). Ids and strings go on where the kernel's end; those of a module
that was built apart from its kernel are changed to that when it is loaded (btf_relocate, since 6.11).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.debuginfo.btf import BtfTypes
from kvm_dbg.errors import KvmDbgError, MemberNotFound, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.layout import Layout, remembered
from kvm_dbg.kernel.linux.list import for_each_node
from kvm_dbg.kernel.linux.module import MAX_MODULES, for_each_module_record

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MAX_SIZE = 1 << 26  # bytes


class _Layouts(NamedTuple):
    """Where what is needed of a module's types is."""

    entry: Layout
    btf: Layout


def for_each_module_types(kernel: Kernel, types: BtfTypes) -> Iterator[tuple[str, BtfTypes]]:
    """Yield (name, types) of the modules that have BTF; those whose BTF cannot be read are passed over.

    Raises:
        ReadError, CorruptError: a list is broken; what comes before has been yielded.
    """
    try:
        entry, btf = remembered(kernel, _make_layouts)
        head = kernel.symbols.address("btf_modules")
    except (MemberNotFound, TypeNotFound, SymbolNotFound):
        return
    names = {module.address: module.text("name") for module in for_each_module_record(kernel)}
    for node in for_each_node(kernel, head, "modules' types", MAX_MODULES):
        try:
            found = entry.read(kernel, node - entry.offsets["list"])
            name = names[found["module"]]
            kept = btf.read(kernel, found["btf"])
            if not 0 < kept["size"] <= MAX_SIZE:
                continue
            own = BtfTypes(kernel.read(kept["data"], kept["size"]), source=f"BTF of {name}", base=types)
            _ = own.data.offsets
        except (KvmDbgError, KeyError):
            continue
        yield name, own


def _make_layouts(kernel: Kernel) -> _Layouts:
    types, order = kernel.types, kernel.arch.byteorder
    return _Layouts(
        Layout(types, "struct btf_module", {"list": "list", "module": "module", "btf": "btf"}, order),
        Layout(types, "struct btf", {"data": "data", "size": "data_size"}, order),
    )
