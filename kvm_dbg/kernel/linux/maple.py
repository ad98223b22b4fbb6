"""Maple trees: ranges of addresses and what each leads to.

Sources: include/linux/maple_tree.h and lib/maple_tree.c (v6.1 on). A node is 256 bytes, aligned to its size; the low
byte of a pointer to one holds its type in bits 3 to 6: 1 a leaf, 2 a node, 3 a node that knows the gaps below
(allocation trees, as a process's mappings are). Slot i of a node covers the indexes from pivot[i - 1] + 1 to pivot[i];
the last slot in use ends where the node ends. Which one that is, says `meta.end`, or, where a node is (nearly) full,
its last pivot. The root may be an entry instead of a node, without the tag 2 in its lowest bits: it then covers index 0
only. In leaves, an entry with that tag is the tree's own (0x406 stands for a reserved range).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.debuginfo.base import ArrayType
from kvm_dbg.errors import CorruptError, KvmDbgError, MemberNotFound, ReadError

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

LEAF, RANGE, ALLOCATION = 1, 2, 3  # enum maple_type: maple_leaf_64, maple_range_64, maple_arange_64
NODE_MASK = 0xFF
INTERNAL = 2  # of an entry's two lowest bits
FIRST_NODE = 4096  # xa_is_node(): internal entries up to here are no pointers
MAX_HEIGHT = 31  # MAPLE_HEIGHT_MAX
MAX_NODES = 1 << 20  # of one tree; a process has 65530 mappings by default (vm.max_map_count), a node holds up to 16


class _Shape(NamedTuple):
    """Where one type of node has what: offsets in bytes, counts."""

    size: int
    pivot: int
    pivots: int
    slot: int
    slots: int
    end: int


class MapleTree:
    """Walks maple trees of one kernel.

    Raises:
        TypeNotFound, MemberNotFound: the kernel has none (before v6.1).
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.root_offset = kernel.types.offset_of("struct maple_tree", "ma_root")
        plain, gaps = _shape(kernel, "struct maple_range_64"), _shape(kernel, "struct maple_arange_64")
        self._shapes = {LEAF: plain, RANGE: plain, ALLOCATION: gaps}
        self._order = "<" if kernel.arch.byteorder == "little" else ">"

    def for_each_entry(self, tree: int) -> Iterator[tuple[int, int, int]]:
        """Yield (first index, last index, entry) of all entries of the tree at `tree`, in ascending order.

        A broken node costs what is below it.

        Raises:
            ReadError, CorruptError: after the last entry that could be found: a part of the tree is broken.
        """
        root = self._word(self._kernel.read(tree + self.root_offset, 8), 0)
        if not root:
            return
        if not _is_node(root):
            if root & 3 != INTERNAL:
                yield 0, 0, root
            return
        failure: KvmDbgError | None = None
        seen: set[int] = set()
        pending = [(0, (1 << 64) - 1, root, tree, 1)]
        while pending:
            first, last, pointer, where, depth = pending.pop()
            try:
                if pointer & ~NODE_MASK in seen:
                    raise CorruptError(where, f"a maple tree loops back to its node {pointer & ~NODE_MASK:#x}")
                if depth > MAX_HEIGHT or len(seen) >= MAX_NODES:
                    raise CorruptError(where, f"a maple tree has more than {MAX_HEIGHT} levels or {MAX_NODES} nodes")
                seen.add(pointer & ~NODE_MASK)
                slots = list(self._slots(pointer, first, last, where))
            except (ReadError, CorruptError) as error:
                failure = failure or error
                continue
            if pointer >> 3 & 15 == LEAF:
                yield from ((low, high, entry) for low, high, entry, _ in slots if entry and entry & 3 != INTERNAL)
                continue
            for low, high, entry, place in reversed(slots):
                if entry:
                    pending.append((low, high, entry, place, depth + 1))
        if failure is not None:
            raise failure

    def _slots(self, pointer: int, first: int, last: int, where: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (first index, last index, content, address) of the slots in use of a node. Raises ReadError."""
        shape = self._shapes.get(pointer >> 3 & 15)
        if shape is None or pointer <= FIRST_NODE:
            raise CorruptError(where, f"a maple tree leads to {pointer:#x}, which is no node")
        node = pointer & ~NODE_MASK
        data = self._kernel.read(node, shape.size)
        pivots = struct.unpack_from(f"{self._order}{shape.pivots}Q", data, shape.pivot)
        end = self._find_end(pointer, shape, data, pivots, last)
        if end >= shape.slots:
            raise CorruptError(node, f"a node of a maple tree claims {end + 1} slots")
        low = first
        for index in range(end + 1):
            high = last if index == end else pivots[index]
            if not low <= high <= last:
                raise CorruptError(node, f"slot {index} of a node of a maple tree ends at {high:#x}, out of its place")
            place = shape.slot + 8 * index
            yield low, high, self._word(data, place), node + place
            low = high + 1
            if low > last:
                return

    def _find_end(self, pointer: int, shape: _Shape, data: bytes, pivots: tuple[int, ...], last: int) -> int:
        """Return the index of the last slot in use, by the rules of ma_data_end()."""
        if pointer >> 3 & 15 == ALLOCATION or not pivots[-1]:
            return data[shape.end]
        return shape.pivots - 1 if pivots[-1] == last else shape.pivots

    def _word(self, data: bytes, offset: int) -> int:
        found: int = struct.unpack_from(f"{self._order}Q", data, offset)[0]
        return found


def _is_node(entry: int) -> bool:
    return entry & 3 == INTERNAL and entry > FIRST_NODE


def _shape(kernel: Kernel, name: str) -> _Shape:
    """Return where a type of node has what. Raises TypeNotFound, MemberNotFound."""
    found = kernel.types.struct(name)
    pivot, slot = found.member("pivot"), found.member("slot")
    pivots, slots = pivot.type.stripped(), slot.type.stripped()
    if not isinstance(pivots, ArrayType) or not isinstance(slots, ArrayType):
        raise MemberNotFound(name, "pivot and slot as arrays")
    return _Shape(found.size, pivot.offset, pivots.count, slot.offset, slots.count, found.member("meta.end").offset)
