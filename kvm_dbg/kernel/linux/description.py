"""Descriptions of processes, kept from one look at a running kernel to the next with all that they were read from.

Of a thousand processes nearly all sleep: not a byte of what `ps` shows of them changes. Reading those bytes again and
comparing them is several times faster than making a description of them, and comes to the same: a description is made
of nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.errors import ReadError
from kvm_dbg.kernel.base import Process
from kvm_dbg.kernel.layout import Record, remembered

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

Reads = list[tuple[int, int, bytes]]


class _Kept(NamedTuple):
    """A process, the bytes of its task, and (vaddr, size, bytes) of all else that was read for it."""

    task: bytes
    reads: Reads
    process: Process


class Descriptions:
    """What is known of the processes of one kernel, by the addresses of their tasks."""

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}
        self._seen: dict[int, _Kept] = {}
        self._boot: int | None = None

    def begin(self, boot: int | None) -> None:
        """Begin a look; `boot` is when the machine started, which all start times are told by."""
        if boot != self._boot:
            self._kept = {}
        self._boot = boot
        self._seen = {}

    def end(self) -> None:
        """End a look at all processes: those that it did not come upon are forgotten."""
        self._kept, self._seen = self._seen, {}

    def find(self, kernel: Kernel, task: Record) -> Process | None:
        """Return the process as it was described before, if every byte that it was made of is what it was."""
        kept = self._kept.get(task.address)
        if kept is None or kept.task != task.data or task.errors:
            return None
        read = kernel.read
        try:
            for vaddr, size, data in kept.reads:
                if read(vaddr, size) != data:
                    return None
        except ReadError:
            return None
        self._seen[task.address] = kept
        return kept.process

    def make(self, kernel: Kernel, task: Record, describe: Callable[[Record], Process]) -> Process:
        """Return `describe(task)`, and keep it with what was read. Raises what `describe` raises.

        A process of several threads is not kept: its times are of tasks that were read before.
        """
        reads: Reads = []
        read = kernel.read

        def log(vaddr: int, size: int) -> bytes:
            data = read(vaddr, size)
            reads.append((vaddr, size, data))
            return data

        kernel.__dict__["read"] = log
        try:
            process = describe(task)
        finally:
            kernel.__dict__["read"] = read
        if process.threads == 1 and not process.unread and not task.errors:
            self._seen[task.address] = _Kept(task.data, reads, process)
        return process


def find_descriptions(kernel: Kernel) -> Descriptions:
    """Return the descriptions of a kernel; they outlast a refresh."""
    return remembered(kernel, _make_descriptions)


def _make_descriptions(_kernel: Kernel) -> Descriptions:
    return Descriptions()
