"""The kernel's linked lists, walked with a limit and an eye on loops.

Source: include/linux/types.h and list.h: `struct list_head {next, prev}` is a ring through its head,
`struct hlist_head {first}` a chain of `struct hlist_node {next, pprev}` that ends with NULL.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.layout import read_pointer

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

LIMIT = 1 << 22  # no list that is walked here is longer: PID_MAX_LIMIT, include/linux/threads.h


class ListGuard:
    """Watches one walk: refuses NULL, a node seen before and too many nodes.

    Args:
        head: the list's head, which ends the walk.
        what: what the list holds, for the error's text.
    """

    __slots__ = ("_seen", "head", "limit", "what")

    def __init__(self, head: int, what: str, limit: int = LIMIT) -> None:
        self.head = head
        self.what = what
        self.limit = limit
        self._seen: set[int] = set()

    def check(self, node: int, previous: int) -> None:
        """Accept `node`, to which `previous` points. Raises CorruptError."""
        if not node:
            raise CorruptError(previous, f"the list of {self.what} leads to a NULL pointer")
        if node in self._seen:
            raise CorruptError(previous, f"the list of {self.what} loops back to {node:#x}")
        if len(self._seen) >= self.limit:
            raise CorruptError(previous, f"the list of {self.what} has more than {self.limit} entries")
        self._seen.add(node)


def for_each_node(kernel: Kernel, head: int, what: str, limit: int = LIMIT) -> Iterator[int]:
    """Yield the addresses of the list_heads in the ring at `head`, without it.

    Raises:
        ReadError: the list leads to memory that cannot be read.
        CorruptError: it loops, leads to NULL or is longer than `limit`.
    """
    guard = ListGuard(head, what, limit)
    previous, node = head, read_pointer(kernel, head)
    while node != head:
        guard.check(node, previous)
        following = read_pointer(kernel, node)
        yield node
        previous, node = node, following
