"""The kernel's queues, walked with a limit and an eye on loops.

Source: sys/sys/queue.h, the same in NetBSD and FreeBSD: a LIST, SLIST, SIMPLEQ, STAILQ or TAILQ has in its head the
pointer to its first element, and in each element an entry that begins with the pointer to the next element (le_next,
sle_next, sqe_next, stqe_next, tqe_next); NULL ends it. Pointers lead to elements, not to the entries in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.layout import read_pointer

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

LIMIT = 1 << 20  # elements: no queue that is walked here is longer


def for_each_entry(kernel: Kernel, head: int, offset: int, what: str, limit: int = LIMIT) -> Iterator[int]:
    """Yield the addresses of a queue's elements.

    Args:
        kernel: whose queue it is.
        head: the address of the queue's head.
        offset: where elements have their entry, in bytes.
        what: what the queue holds, for the errors' text.
        limit: how many elements it may have.

    Raises:
        ReadError: the queue leads to memory that cannot be read; elements before have been yielded.
        CorruptError: it loops, or is longer than `limit`.
    """
    seen: set[int] = set()
    place, element = head, read_pointer(kernel, head)
    while element:
        if element in seen:
            raise CorruptError(place, f"the list of {what} loops back to {element:#x}")
        if len(seen) >= limit:
            raise CorruptError(place, f"the list of {what} has more than {limit} entries")
        seen.add(element)
        yield element
        place = element + offset
        element = read_pointer(kernel, place)
