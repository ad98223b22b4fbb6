"""Processes as the command `user` opens them, in every scenario: registers, vectors and files as the guest had them."""

from __future__ import annotations

import pytest

from kvm_dbg.commands.session import Session
from kvm_dbg.commands.user_process import UserProcess, open_process
from kvm_dbg.errors import CommandError
from kvm_dbg.kernel.base import Kernel
from tests.golden.subject import Subject
from tests.lab import ProcessTruth

ANIMALS = (b"caller", b"ia32", b"threads", b"stopped", b"poller")
WORD = {b"ia32": 4}  # bytes, of programs that are not of 64 bits


class Opened(Session):
    """A session with a kernel that is open already."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self._kernel = kernel


def animals(subject: Subject) -> list[ProcessTruth]:
    return [truth for truth in subject.settled() if truth.comm in ANIMALS]


def open_animal(subject: Subject, truth: ProcessTruth, kernel: Kernel | None = None) -> UserProcess:
    return open_process(Opened(kernel or subject.kernel), truth.pid, [str(subject.dump.programs)])


def test_threads_and_vectors_are_the_guests(subject: Subject) -> None:
    assert len(animals(subject)) == len(ANIMALS)
    for truth in animals(subject):
        user = open_animal(subject, truth)
        assert user.word_size == WORD.get(truth.comm, 8)
        assert [thread.lid for thread in user.threads] == [lwp.tid for lwp in truth.lwps]
        for thread in user.threads:
            words = subject.truth.text(f"proc/{truth.pid}/task/{thread.lid}/syscall").split()
            assert [thread.registers["rsp"], thread.registers["rip"]] == [int(word, 0) for word in words[-2:]]
        auxv = subject.truth.read(f"proc/{truth.pid}/auxv")
        assert user.auxv
        assert auxv.startswith(user.auxv)
        assert not any(auxv[len(user.auxv) :])


def test_files_are_where_the_guest_had_them(subject: Subject) -> None:
    [truth] = [truth for truth in animals(subject) if truth.comm == b"caller"]
    user = open_animal(subject, truth)
    maps = [line.split() for line in subject.truth.text(f"proc/{truth.pid}/maps").splitlines()]
    starts = {row[5]: int(row[0].partition("-")[0], 16) for row in reversed(maps) if len(row) > 5 and row[5][0] == "/"}
    assert {file.name: file.bias for file in user.files} == starts  # all are linked at 0
    assert {file.path for file in user.files} == {f"{subject.dump.programs}{name}" for name in starts}
    assert user.executable is not None
    assert user.executable.name == "/zoo/caller"


@pytest.mark.parametrize("name", ["dead", "headless", "kthreadd"])
def test_what_has_no_memory_is_not_opened(subject: Subject, name: str) -> None:
    pid = next(truth.pid for truth in subject.truth.processes.values() if truth.comm == name.encode())
    with pytest.raises(CommandError, match="has no user address space"):
        open_process(Opened(subject.kernel), pid)
