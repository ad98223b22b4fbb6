"""PIDs: struct pid, the numbers that it stands for, and the allocator that knows them all.

Sources: include/linux/pid.h (struct pid, struct upid; `numbers` is a flexible array since v6.5, commit b69f0aeb0689),
kernel/pid.c (init_pid_ns.idr since v4.15, commit 95846ecf9dac), include/linux/idr.h (idr_base since v4.16, commit
6ce711f27500), include/linux/xarray.h and, before v4.20 (commit f8d5d0cc145c), include/linux/radix-tree.h: an entry
whose two lowest bits are 2 (radix tree: 1) points to a node of 64 slots, each `shift` bits of the index wide.
task_struct.pid_links and signal_struct.pids since v4.19 (commit 2c4704756cab), before that task_struct.pids.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.base import ArrayType, StructType, size_of
from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError
from kvm_dbg.kernel.layout import Record, read_number, read_pointer
from kvm_dbg.kernel.linux.list import LIMIT

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

SLOTS = 64  # XA_CHUNK_SIZE, RADIX_TREE_MAP_SIZE; CONFIG_BASE_SMALL has 16: taken from the type
MAX_SHIFT = 60


class PidReader:
    """Reads the numbers of struct pid as the initial namespace sees them, each once."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        types = kernel.types
        self._number = types.offset_of("struct pid", "numbers") + types.offset_of("struct upid", "nr")
        self._known: dict[int, int] = {0: 0}
        pgid, sid = types.find_enumerator("PIDTYPE_PGID"), types.find_enumerator("PIDTYPE_SID")
        # enum pid_type {PID, TGID, PGID, SID}; TGID since v4.19, commit 6883f81aac6f
        by_signal = types.has_member("struct signal_struct", "pids")
        self.pgid_index = pgid if pgid is not None else 2 if by_signal else 1
        self.sid_index = sid if sid is not None else 3 if by_signal else 2
        self.link_size = 0 if by_signal else types.size_of("struct pid_link")
        self.link_pid = 0 if by_signal else types.offset_of("struct pid_link", "pid")

    def forget(self) -> None:
        """Forget what was read: memory changes."""
        self._known = {0: 0}

    def number(self, address: int) -> int:
        """Return the PID that the struct pid at `address` stands for; 0 for NULL. Raises ReadError."""
        found = self._known.get(address)
        if found is None:
            found = self._known[address] = read_number(self._kernel, address + self._number, 4, signed=True)
        return found

    def group_and_session(self, task: Record, signal: Record) -> tuple[int, int]:
        """Return (process group, session) of a task with its signal_struct. Raises ReadError."""
        if not self.link_size:
            pids = signal.bytes("pids")
            order = "<" if signal.layout.byteorder == "little" else ">"
            addresses = struct.unpack_from(f"{order}{len(pids) // 8}Q", pids)
            return self.number(addresses[self.pgid_index]), self.number(addresses[self.sid_index])
        leader = task["group_leader"] + task.layout.offsets["pids"]
        pgid = read_pointer(self._kernel, leader + self.pgid_index * self.link_size + self.link_pid)
        sid = read_pointer(self._kernel, leader + self.sid_index * self.link_size + self.link_pid)
        return self.number(pgid), self.number(sid)


def for_each_numbered_task(kernel: Kernel) -> Iterator[Record]:
    """Yield every task that has a PID in the initial namespace, in ascending order; threads too.

    Raises:
        ReadError, CorruptError: the allocator's tree is broken; parts that can be read have been yielded.
    """
    from kvm_dbg.kernel.linux.task import check_task, task_layout

    types = kernel.types
    layout = task_layout(kernel)
    pid_size = types.offset_of("struct pid", "tasks")
    if types.has_member("struct task_struct", "pid_links"):
        link = types.offset_of("struct task_struct", "pid_links")
    else:
        link = types.offset_of("struct task_struct", "pids") + types.offset_of("struct pid_link", "node")
    failure: ReadError | CorruptError | None = None
    walk = for_each_idr_entry(kernel, kernel.symbols.address("init_pid_ns"), "struct pid_namespace", "idr")
    for _, address in walk:
        try:
            node = read_pointer(kernel, address + pid_size)  # tasks[PIDTYPE_PID].first
            if not node:
                continue
            task = layout.read(kernel, node - link)
            check_task(task, address + pid_size)
        except (ReadError, CorruptError) as error:
            failure = failure or error
        else:
            yield task
    if failure is not None:
        raise failure


def read_last_pid(kernel: Kernel) -> int:
    """Return the PID that was given out last, as the last field of /proc/loadavg shows. Raises ReadError."""
    offset = kernel.types.offset_of("struct pid_namespace", "idr.idr_next")
    return read_number(kernel, kernel.symbols.address("init_pid_ns") + offset, 4) - 1


def for_each_idr_entry(kernel: Kernel, holder: int, struct_name: str, member: str) -> Iterator[tuple[int, int]]:
    """Yield (id, pointer) of the struct idr that is `member` of the struct at `holder`, ascending by id.

    What cannot be read is passed over, and its error raised at the end.

    Raises:
        ReadError, CorruptError: some part of the tree is broken.
    """
    types = kernel.types
    idr = types.struct("struct idr")
    start = holder + types.offset_of(struct_name, member)
    base_member = idr.find_member("idr_base")
    base = read_number(kernel, start + base_member.offset, 4) if base_member is not None else 0
    head = idr.find_member("idr_rt.xa_head") or idr.find_member("idr_rt.rnode")
    if head is None:
        raise MemberNotFound("struct idr", "idr_rt.xa_head or idr_rt.rnode")
    is_xarray = types.find_type("struct xa_node") is not None
    node = types.struct("struct xa_node" if is_xarray else "struct radix_tree_node")
    tree = _Tree(kernel, node, 2 if is_xarray else 1)
    yield from tree.walk(read_pointer(kernel, start + head.offset), base, MAX_SHIFT + 1)
    if tree.failure is not None:
        raise tree.failure


class _Tree:
    """A radix tree being walked; `failure` is the first thing that was wrong."""

    def __init__(self, kernel: Kernel, node: StructType, internal: int) -> None:
        self._kernel = kernel
        self._internal = internal
        self._shift = node.member("shift").offset
        slots = node.member("slots")
        self._slots = slots.offset
        array = slots.type.stripped()
        self._count = array.count if isinstance(array, ArrayType) else SLOTS
        self._width = size_of(array) // self._count if isinstance(array, ArrayType) else 8
        self._nodes = 0
        self.failure: ReadError | CorruptError | None = None

    def walk(self, entry: int, index: int, limit: int) -> Iterator[tuple[int, int]]:
        """Yield (index, pointer) below `entry`, whose node must have a shift below `limit` (so that loops end)."""
        if not entry:
            return
        if entry & 3 != self._internal:
            if not entry & 3:
                yield index, entry
            return
        if entry < 4096:  # xarray: retry, zero and sibling entries
            return
        address = entry & ~3
        self._nodes += 1
        try:
            if self._nodes > LIMIT:
                raise CorruptError(address, "the radix tree has too many nodes")
            shift = read_number(self._kernel, address + self._shift, 1)
            if shift >= limit:
                raise CorruptError(address, f"the radix tree loops: a node of shift {shift} below one of {limit}")
            data = self._kernel.read(address + self._slots, self._count * self._width)
        except (ReadError, CorruptError) as error:
            self.failure = self.failure or error
            return
        order = "<" if self._kernel.arch.byteorder == "little" else ">"
        for slot, child in enumerate(struct.unpack(f"{order}{self._count}Q", data)):
            yield from self.walk(child, index + (slot << shift), shift)
