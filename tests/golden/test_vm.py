"""Mappings equal the guest's own /proc/PID/maps, of every process of every scenario."""

from __future__ import annotations

import pytest

from kvm_dbg.errors import KvmDbgError
from kvm_dbg.kernel import system_of
from kvm_dbg.kernel.base import Kernel, MemoryMapping
from tests.golden.subject import MOVERS, Subject, find_subject


@pytest.fixture
def subject(either: Subject) -> Subject:
    """Everything here is asked of the image alone as well."""
    return either


PATH_COLUMN = 73  # fs/proc/task_mmu.c pads what comes before the name


def as_proc_shows(mapping: MemoryMapping) -> str:
    device = f"{mapping.major:02x}:{mapping.minor:02x}"
    place = (
        f"{mapping.start:08x}-{mapping.end:08x} {mapping.permissions} {mapping.offset:08x} {device} {mapping.inode} "
    )
    return place.ljust(PATH_COLUMN) + (mapping.path or "")


def maps(kernel: Kernel, pid: int) -> list[str]:
    return [as_proc_shows(mapping).rstrip() for mapping in system_of(kernel).for_each_mapping(kernel, pid)]


def test_mappings_equal_proc(subject: Subject) -> None:
    compared = lines = 0
    alive = {process.pid for process in system_of(subject.kernel).for_each_process(subject.kernel)}
    for process in subject.truth.processes.values():
        name = f"proc/{process.pid}/maps"
        if name in subject.dump.moved or process.pid not in alive or (subject.crashed and process.comm in MOVERS):
            continue  # it came, went or changed while or after the guest was asked
        truth = [line.rstrip() for line in subject.truth.contents.get(name, b"").decode().splitlines()]
        assert maps(subject.kernel, process.pid) == truth, process
        compared += 1
        lines += len(truth)
    assert compared > 100
    assert lines >= 680


@pytest.mark.parametrize("kind", ["zlib-d31", "flattened-elf-d31"])
def test_mappings_survive_makedumpfile(kind: str) -> None:
    """Mappings of files whose kernel memory is all there: the filter leaves out only pages of users."""
    subject = find_subject("deb12-4level")
    kernel = subject.open(kind)
    for process in subject.settled():
        truth = [line.rstrip() for line in subject.truth.text(f"proc/{process.pid}/maps").splitlines()]
        assert maps(kernel, process.pid) == truth


def test_a_truncated_image_loses_mappings_with_an_error() -> None:
    subject = find_subject("deb12-4level")
    kernel = subject.open("cut-elf")
    system = system_of(kernel)
    whole = lost = 0
    for process in subject.settled():
        truth = subject.truth.text(f"proc/{process.pid}/maps").splitlines()
        found: list[MemoryMapping] = []
        try:
            for mapping in system.for_each_mapping(kernel, process.pid):
                found.append(mapping)
        except KvmDbgError:
            lost += 1
        else:
            assert len(found) == len(truth)
            whole += 1
        starts = [line.partition("-")[0] for line in truth]
        assert [f"{mapping.start:08x}" for mapping in found] == [
            start for start in starts if int(start, 16) in {mapping.start for mapping in found}
        ]
    assert whole + lost > 50
