"""Rules for finding callers, as an operating system's own unwinder has them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple


class UnwindRow(NamedTuple):
    """How to find the caller from one run of addresses, as the kernel's own unwinder knows it.

    kind: "call" (the stack pointer before the call is `base` + `offset`, the return address lies below it), "regs"
    (all registers were saved there, as in Linux's struct pt_regs), "trap" (as in FreeBSD's struct trapframe), "partial"
    (only what the processor pushes for an interrupt), "end" (nobody called), "undefined", "chain" (as "call", by a
    frame pointer in `base`, the caller's below the return address, which ends where the caller's is 0 or a user's).
    base: a register's name, "[register]" for the word of memory that it points to. frame_base, frame_offset: where the
    caller's frame pointer was saved: relative to "previous" (the caller's stack pointer) or to a register; "" if it was
    not. Offsets in bytes.
    """

    start: int
    end: int
    kind: str
    base: str
    offset: int
    frame_base: str = ""
    frame_offset: int = 0


class UnwindTable(NamedTuple):
    """All rules for one run of code, in columns: a kernel has half a million.

    starts: addresses, ascending; a rule reaches to the next one's start, the last to `end`. rules: each as the system
    keeps it, equal ones being equal; `decode` makes a row of it, whose addresses mean nothing. called, switches:
    [start, end) runs, ascending. Who saved all registers interrupted its caller, but where it was `called`, by system
    calls; who is in `switches` may be on another stack than its caller, besides rows with a base in memory. problem: a
    sentence on what is missing, "" if nothing is.
    """

    starts: Sequence[int]
    end: int
    rules: Sequence[Hashable]
    decode: Callable[[Any], UnwindRow]
    called: Sequence[tuple[int, int]] = ()
    switches: Sequence[tuple[int, int]] = ()
    problem: str = ""

    def rows(self) -> Iterator[UnwindRow]:
        """Yield the rules one by one, with their addresses."""
        return self.rows_of(0, len(self.starts))

    def rows_of(self, first: int, last: int) -> Iterator[UnwindRow]:
        """Yield the rules with these numbers, without `last`."""
        last = min(last, len(self.starts))
        for number in range(first, last):
            end = self.starts[number + 1] if number + 1 < len(self.starts) else self.end
            yield self.decode(self.rules[number])._replace(start=self.starts[number], end=end)
