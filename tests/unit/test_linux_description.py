"""Descriptions that are kept from one look to the next: believed only while every byte is what it was."""

from __future__ import annotations

import pytest

from kvm_dbg.kernel.base import Process
from kvm_dbg.kernel.linux.description import Descriptions
from kvm_dbg.kernel.linux.process import ProcessReader
from kvm_dbg.kernel.linux.task import task_layout
from tests.writers.linux_task import Tasks


def look(kernel: Tasks, known: Descriptions, addresses: list[int], boot: int = 1) -> list[Process]:
    """Describe tasks as a look at a running kernel does."""
    reader = ProcessReader(kernel)
    known.begin(boot)
    found = []
    for address in addresses:
        task = task_layout(kernel).read(kernel, address)
        process = known.find(kernel, task)
        if process is None:
            reader.forget()
            process = known.make(kernel, task, reader.process)
        found.append(process)
    known.end()
    return found


def make(kernel: Tasks, pid: int, uid: int = 0) -> tuple[int, int]:
    """Return the addresses of a process and of its credentials."""
    task = kernel.process(pid, comm=b"p%d" % pid)
    cred = kernel.place("struct cred", euid__val=uid)
    kernel.put(task, "struct task_struct", "real_cred", cred)
    return task, cred


@pytest.fixture
def kernel() -> Tasks:
    return Tasks(modern=True)


def test_what_has_not_changed_is_not_described_again(kernel: Tasks) -> None:
    addresses = [make(kernel, pid)[0] for pid in (50, 51)]
    known = Descriptions()
    first = look(kernel, known, addresses)
    second = look(kernel, known, addresses)
    assert [one is other for one, other in zip(first, second, strict=True)] == [True, True]
    assert look(kernel, known, addresses, boot=2) == first
    assert look(kernel, known, addresses[:1], boot=2)[0] == first[0]
    again = look(kernel, known, addresses, boot=2)
    assert again == first
    assert again[1] is not first[1]  # not seen by the look before


def test_any_byte_that_has_changed_is_seen(kernel: Tasks) -> None:
    task, cred = make(kernel, 50, 7)
    known = Descriptions()
    assert look(kernel, known, [task])[0].uid == 7
    kernel.put(cred, "struct cred", "euid.val", 8)  # in what the task points to
    assert look(kernel, known, [task])[0].uid == 8
    kernel.put(task, "struct task_struct", "static_prio", 125)  # in itself
    assert look(kernel, known, [task])[0].nice == 5


def test_what_cannot_be_read_or_has_threads_is_described_anew(kernel: Tasks) -> None:
    task = kernel.process(50, comm=b"one")
    kernel.put(task, "struct task_struct", "real_cred", 0xDEAD0000)
    known = Descriptions()
    first = look(kernel, known, [task])[0]
    assert "uid" in first.unread
    assert look(kernel, known, [task])[0] is not first


def test_reading_is_as_it_was_after_an_error(kernel: Tasks) -> None:
    task = task_layout(kernel).read(kernel, kernel.process(50))

    def fail(_: object) -> Process:
        raise KeyboardInterrupt

    known = Descriptions()
    known.begin(None)
    read = kernel.read
    with pytest.raises(KeyboardInterrupt):
        known.make(kernel, task, fail)
    assert kernel.read == read
