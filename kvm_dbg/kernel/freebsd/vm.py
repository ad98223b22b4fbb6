"""The mappings of processes.

Sources: sys/vm/vm_map.h and vm_map.c. A map's entries are a search tree; until 12 they were a ring, too, through `next`
from the map's `header`. Since 13 the tree is threaded: where there is no child, `left` and `right` lead to the entry
before and behind, the header at both ends. sys/vm/vm_object.h (a chain of shadows, the last of which is the file's),
sys/kern/kern_proc.c, kern_proc_vmmap_out().
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.errors import CorruptError, KvmDbgError, ReadError
from kvm_dbg.kernel.base import MemoryMapping
from kvm_dbg.kernel.freebsd.offset import require_types
from kvm_dbg.kernel.freebsd.path import Node, VnodeReader, find_path
from kvm_dbg.kernel.freebsd.proc import MISSING, sorted_procs
from kvm_dbg.kernel.freebsd.user import has_memory
from kvm_dbg.kernel.layout import Layout, Names, Record

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

ENTRY: dict[str, Names] = {
    "next": ("next", None),
    "left": "left",
    "right": "right",
    "start": "start",
    "end": "end",
    "object": "object",
    "offset": "offset",
    "flags": "eflags",
    "protection": "protection",
    "inheritance": "inheritance",
}
MAP: dict[str, Names] = {"header": "vm_map.header", "root": "vm_map.root", "count": "vm_map.nentries"}
OBJECT: dict[str, Names] = {
    "backing": "backing_object",
    "backing_offset": "backing_object_offset",
    "handle": "handle",
    "type": "type",
}
MAP_ENTRY_IS_SUB_MAP, MAP_ENTRY_GROWS_DOWN, MAP_ENTRY_GUARD = 0x2, 0x1000, 0x10000
VM_INHERIT_SHARE = 0
OBJT_VNODE = 2  # enum obj_type, sys/vm/vm.h
LETTERS = "rwx"  # VM_PROT_READ 1, WRITE 2, EXECUTE 4
MAX_ENTRIES = 1 << 20
MAX_SHADOWS = 1 << 10


class Backing(NamedTuple):
    """The object at the end of a chain of shadows: its vnode's address, 0 if it has none, and bytes into it."""

    vnode: int
    offset: int


def for_each_mapping(kernel: Kernel, pid: int) -> Iterator[MemoryMapping]:
    """Yield the mappings of a process, ascending; none for processes of the kernel and for zombies.

    Raises:
        ReadError, CorruptError: the map is broken; those that could be found have been yielded.
    """
    reader = MapReader(kernel)
    for proc in sorted_procs(kernel)[0]:
        if proc.numbers.get("pid") == pid and has_memory(proc):
            yield from reader.mappings(proc)


class MapReader:
    """Reads the maps of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        require_types(kernel, "mappings")
        types, order = kernel.types, kernel.arch.byteorder
        self._kernel = kernel
        self._entry = Layout(types, "struct vm_map_entry", ENTRY, order)
        self._map = Layout(types, "struct vmspace", MAP, order)
        self._object = Layout(types, "struct vm_object", OBJECT, order)
        self._vnodes = VnodeReader(kernel)
        found = types.find_enumerator("OBJT_VNODE")
        self._of_vnode = OBJT_VNODE if found is None else found  # layout files have no enumerators

    def mappings(self, proc: Record) -> Iterator[MemoryMapping]:
        """Yield the mappings of a process. Raises ReadError, CorruptError after those that could be found."""
        space = self._map.read(self._kernel, proc["vmspace"])
        entries = self._ring(space) if "next" in self._entry.offsets else self._tree(space)
        end = 0
        for entry in entries:
            if not end <= entry["start"] < entry["end"]:
                raise CorruptError(entry.address, f"a mapping of process {proc['pid']} does not follow the one before")
            end = entry["end"]
            yield self._mapping(entry)

    def _ring(self, space: Record) -> Iterator[Record]:
        """Yield the entries of a map that has them in a ring. Raises ReadError, CorruptError."""
        head = space.at("header")
        place = self._entry.read(self._kernel, head)["next"]
        for _ in range(min(space["count"], MAX_ENTRIES)):
            if place == head:
                return
            entry = self._entry.read(self._kernel, place)
            yield entry
            place = entry["next"]
        if place != head:
            raise CorruptError(place, f"a map has more mappings than the {space['count']} that it counts")

    def _tree(self, space: Record) -> Iterator[Record]:
        """Yield the entries of a threaded tree in their order.

        Raises:
            ReadError, CorruptError: after the others: some cannot be read, or the tree is none.
        """
        head = space.at("header")
        failure: KvmDbgError | None = None
        seen: set[int] = set()
        limit = min(space["count"], MAX_ENTRIES)
        # What is to do, the last first: (address, the entry before, the entry behind), or an entry to yield.
        pending: list[Record | tuple[int, int, int]] = [(space["root"], head, head)]
        while pending:
            one = pending.pop()
            if isinstance(one, Record):
                yield one
                continue
            place, before, behind = one
            if place in (0, before, behind):
                continue
            if place in seen or len(seen) >= limit:
                what = f"leads back to {place:#x}" if place in seen else f"has more entries than the {limit} it counts"
                failure = failure or CorruptError(place, f"the tree of mappings {what}")
                continue
            seen.add(place)
            try:
                entry = self._entry.read(self._kernel, place)
                left, right = entry["left"], entry["right"]
                entry["start"], entry["end"]
            except ReadError as error:
                failure = failure or error
                continue
            pending += [(right, place, behind), entry, (left, before, place)]
        if failure is not None:
            raise failure

    def _mapping(self, entry: Record) -> MemoryMapping:
        unread: list[str] = []
        path: str | None = None
        node, backing = Node(), Backing(0, 0)
        try:
            flags = entry["flags"]
            letters = "".join(letter if entry["protection"] >> bit & 1 else "-" for bit, letter in enumerate(LETTERS))
            letters += "s" if entry["inheritance"] == VM_INHERIT_SHARE else "p"
            if not flags & (MAP_ENTRY_IS_SUB_MAP | MAP_ENTRY_GUARD):
                backing = self._backing(entry)
        except MISSING:
            return MemoryMapping(
                entry["start"], entry["end"], "----", 0, None, None, None, None, False, entry.address,
                ("permissions", "offset", "inode", "path"),
            )  # fmt: skip
        if backing.vnode:
            try:
                vnode = self._vnodes.read(backing.vnode)
                path, lost = find_path(self._vnodes, vnode)
                unread += ["path"] if lost else []
                node = self._vnodes.node(vnode)
            except MISSING:
                unread += ["path", "inode"]
        elif flags & MAP_ENTRY_GUARD:
            path = "[guard]"
        elif flags & MAP_ENTRY_GROWS_DOWN:
            path = "[stack]"
        return MemoryMapping(
            start=entry["start"],
            end=entry["end"],
            permissions=letters,
            offset=backing.offset,
            major=None,
            minor=None,
            inode=node.inode,
            path=path,
            is_file=bool(backing.vnode),
            address=entry.address,
            unread=tuple(dict.fromkeys(unread)),
        )

    def _backing(self, entry: Record) -> Backing:
        """Return what is behind a mapping. Raises ReadError, CorruptError."""
        order = self._kernel.arch.byteorder
        place = int.from_bytes(entry.bytes("object"), "little" if order == "little" else "big")
        offset = entry["offset"]
        for _ in range(MAX_SHADOWS):
            if not place:
                return Backing(0, offset)
            found = self._object.read(self._kernel, place)
            if not found["backing"]:
                is_file = found["type"] == self._of_vnode
                return Backing(found["handle"] if is_file else 0, offset)
            offset += found["backing_offset"]
            place = found["backing"]
        raise CorruptError(entry.address, f"a mapping has more than {MAX_SHADOWS} objects behind each other")
