"""The loaded modules.

Sources: sys/sys/module.h (struct module, struct modinfo: `module_list` is a TAILQ through mod_chain),
sys/kern/kern_module.c: those built into the kernel are listed with the others, and have no memory of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.kernel.base import Module
from kvm_dbg.kernel.bsd.queue import for_each_entry
from kvm_dbg.kernel.layout import Layout, Names, decode_text, read_pointer

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MODULE: dict[str, Names] = {
    "chain": "mod_chain", "info": "mod_info", "refcnt": "mod_refcnt", "source": "mod_source", "kobj": "mod_kobj",
}  # fmt: skip
KOBJ: dict[str, Names] = {
    "text": "ko_text_address",
    "size": "ko_text_size",
    "data": "ko_data_address",
    "data_size": "ko_data_size",
}
MAX_MODULES = 1 << 14
NAME_SIZE = 256


def for_each_module(kernel: Kernel) -> Iterator[Module]:
    """Yield the modules in the order of the kernel's list.

    Raises:
        SymbolNotFound, TypeNotFound, MemberNotFound: this kernel's modules are not known.
        ReadError, CorruptError: the list is broken; those before have been yielded.
    """
    layout = Layout(kernel.types, "struct module", MODULE, kernel.arch.byteorder)
    info_name = kernel.types.offset_of("struct modinfo", "mi_name")
    objects = Layout(kernel.types, "struct kobj", KOBJ, kernel.arch.byteorder)
    head = kernel.symbols.address("module_list")
    for address in for_each_entry(kernel, head, layout.offsets["chain"], "modules", MAX_MODULES):
        module = layout.read(kernel, address)
        place = read_pointer(kernel, module["info"] + info_name)
        name = decode_text(read_string(kernel, place, NAME_SIZE))
        ranges: tuple[tuple[int, int], ...] = ()
        if module["kobj"]:
            memory = objects.read(kernel, module["kobj"])
            ranges = ((memory["text"], memory["size"]), (memory["data"], memory["data_size"]))
        yield Module(
            name=name,
            address=ranges[0][0] if ranges else 0,
            size=sum(size for _, size in ranges),
            reference_count=module["refcnt"],
            struct_address=address,
            ranges=tuple(one for one in ranges if one[1]),
        )
