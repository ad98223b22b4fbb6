"""The mappings of processes.

Sources: sys/uvm/uvm_map.h (struct vm_map: `header` is a ring of struct vm_map_entry through next; etype's bits),
sys/uvm/uvm_prot.h (protections), pmap(1) for the names of stack and data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.base import MemoryMapping
from kvm_dbg.kernel.layout import Layout, Names, Record, read_pointer
from kvm_dbg.kernel.netbsd.proc import read_procs
from kvm_dbg.kernel.netbsd.state import PK_SYSTEM, SDEAD, SZOMB

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

ENTRY: dict[str, Names] = {
    "next": "next", "start": "start", "end": "end", "object": "object", "offset": "offset", "etype": "etype",
    "protection": "protection",
}  # fmt: skip
SPACE: dict[str, Names] = {
    "count": "vm_map.nentries", "header": "vm_map.header", "stack": "vm_maxsaddr", "stack_end": "vm_minsaddr",
}  # fmt: skip
UVM_ET_OBJ, UVM_ET_COPYONWRITE = 0x1, 0x4
MAX_ENTRIES = 1 << 20
LETTERS = "rwx"  # VM_PROT_READ 1, WRITE 2, EXECUTE 4


def for_each_mapping(kernel: Kernel, pid: int) -> Iterator[MemoryMapping]:
    """Yield the mappings of a process, ascending; none for the kernel and zombies.

    Raises:
        ReadError, CorruptError: the list is broken; those before have been yielded.
    """
    procs, _ = read_procs(kernel)
    for proc in procs:
        if proc["pid"] == pid and not proc["flag"] & PK_SYSTEM and proc["stat"] not in (SZOMB, SDEAD):
            yield from _mappings(kernel, proc)


def _mappings(kernel: Kernel, proc: Record) -> Iterator[MemoryMapping]:
    layout = Layout(kernel.types, "struct vm_map_entry", ENTRY, kernel.arch.byteorder)
    space = Layout(kernel.types, "struct vmspace", SPACE, kernel.arch.byteorder).read(kernel, proc["vmspace"])
    head = space.at("header")
    place, end, seen = read_pointer(kernel, head + layout.offsets["next"]), 0, 0
    while place != head:
        seen += 1
        if seen > min(space["count"], MAX_ENTRIES):
            raise CorruptError(place, f"process {proc['pid']} has more mappings than the {space['count']} it counts")
        entry = layout.read(kernel, place)
        if not end <= entry["start"] < entry["end"]:
            raise CorruptError(place, f"a mapping of process {proc['pid']} does not follow the one before it")
        end = entry["end"]
        kind = entry["etype"]
        behind = int.from_bytes(entry.bytes("object"), "little") if kind & UVM_ET_OBJ else 0
        letters = "".join(letter if entry["protection"] >> bit & 1 else "-" for bit, letter in enumerate(LETTERS))
        private = kind & UVM_ET_COPYONWRITE or not behind
        stack = space["stack"] <= entry["start"] and end <= space["stack_end"]
        yield MemoryMapping(
            start=entry["start"],
            end=end,
            permissions=letters + ("p" if private else "s"),
            offset=entry["offset"],
            major=None,
            minor=None,
            inode=None,
            path="[stack]" if stack else f"[object {behind:#x}]" if behind else None,
            is_file=False,
            address=place,
        )
        place = entry["next"]
