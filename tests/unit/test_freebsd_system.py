"""FreeBSD systems of every processor, written from definitions: threads, registers, stacks, without any types."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from kvm_dbg.image import open_image
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.kernel import open_kernel, system_of
from kvm_dbg.kernel.base import Kernel, Thread
from kvm_dbg.kernel.layout import read_number
from tests.writers.freebsd_system import HZ, MACHINES, System, write_system


class Opened(NamedTuple):
    """A system, as it was written and as it is read."""

    system: System
    kernel: Kernel
    threads: list[Thread]


def opened(tmp_path: Path, system: System) -> Opened:
    dump, file = tmp_path / "vmcore.0", tmp_path / "kernel"
    dump.write_bytes(system.dump)
    file.write_bytes(system.kernel)
    kernel = open_kernel(OverlayImage(open_image(dump)), str(file))
    return Opened(system, kernel, list(system_of(kernel).for_each_thread(kernel)))


def pcs(found: Opened, thread: Thread) -> list[int]:
    return [frame.pc for frame in system_of(found.kernel).unwind(found.kernel, thread)]


@pytest.mark.parametrize("name", MACHINES)
def test_threads_registers_and_stacks(name: str, tmp_path: Path) -> None:
    found = opened(tmp_path, write_system(MACHINES[name]))
    kernel = found.kernel
    assert read_number(kernel, kernel.symbols.address("hz"), 4) == HZ
    assert [(one.lid, one.pid, one.name) for one in found.threads] == [
        (one.tid, one.pid, one.name) for one in found.system.threads
    ]
    assert [dict(one.registers) for one in found.threads] == [dict(one.registers) for one in found.system.threads]
    assert [pcs(found, one) for one in found.threads] == [one.pcs for one in found.system.threads]


@pytest.mark.parametrize("name", MACHINES)
def test_trap_frames_are_crossed_by_the_names_of_their_handlers(name: str, tmp_path: Path) -> None:
    found = opened(tmp_path, write_system(MACHINES[name], functions=True, stopped_by_pointer=True))
    assert [pcs(found, one) for one in found.threads] == [one.trapped for one in found.system.threads]
    frames = list(system_of(found.kernel).unwind(found.kernel, found.threads[1]))
    handler = MACHINES[name].handler
    assert [frame.name for frame in frames] == [
        "cpustop_handler", "trap", handler, "cpu_idle", "sched_idletd", "fork_exit",
    ]  # fmt: skip
    assert [frame.exact for frame in frames] == [False, False, False, True, False, False]
