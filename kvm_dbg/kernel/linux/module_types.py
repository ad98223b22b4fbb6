"""Types of loadable modules: BTF that goes on from the kernel's.

Sources: include/linux/module.h (btf_data and btf_data_size with CONFIG_DEBUG_INFO_BTF_MODULES, since 5.11, commit
36e68442d1af). Such BTF belongs to one build of the kernel: its ids and strings go on where the kernel's end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.btf import BtfTypes
from kvm_dbg.errors import CorruptError, KvmDbgError, MemberNotFound, ReadError, TypeNotFound
from kvm_dbg.kernel.linux.layout import Layout, remembered
from kvm_dbg.kernel.linux.module import for_each_module_record

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MAX_SIZE = 1 << 26  # bytes


def for_each_module_types(kernel: Kernel, types: BtfTypes) -> Iterator[tuple[str, BtfTypes]]:
    """Yield (name, types) of the modules that have BTF; those whose BTF cannot be read are passed over."""
    try:
        layout = remembered(kernel, _make_layout)
        for module in for_each_module_record(kernel):
            try:
                found = layout.read(kernel, module.address)
                if not found["data"] or not 0 < found["size"] <= MAX_SIZE:
                    continue
                name = module.text("name")
                data = kernel.read(found["data"], found["size"])
                own = BtfTypes(data, source=f"BTF of {name}", base=types)
                _ = own.data.offsets
            except KvmDbgError:
                continue
            yield name, own
    except (MemberNotFound, TypeNotFound, ReadError, CorruptError):
        return


def _make_layout(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct module", {"data": "btf_data", "size": "btf_data_size"}, kernel.arch.byteorder)
