"""FreeBSD's dumps against the facts that stand beside them: threads, their names, registers and backtraces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kvm_dbg.errors import KernelMismatchError, KernelNotFoundError
from kvm_dbg.image import open_image
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.kernel import identify_kernels, open_kernel, system_of
from kvm_dbg.kernel.base import Kernel, Thread
from kvm_dbg.kernel.layout import read_number
from tests.shared import shared_data, unpack

DUMPS = ("vmcore-amd64-full", "vmcore-amd64-minidump")


class Case(NamedTuple):
    """An opened dump, and what is known of it."""

    kernel: Kernel
    threads: list[Thread]
    expected: dict[str, Any]
    path: Path


@pytest.fixture(scope="module")
def kernel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(shared_data("freebsd") / "kernel-amd64.xz", tmp_path_factory.mktemp("freebsd-kernel"))


@pytest.fixture(scope="module", params=DUMPS)
def case(request: pytest.FixtureRequest, kernel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = shared_data("freebsd")
    target = unpack(folder / f"{request.param}.bz2", tmp_path_factory.mktemp("freebsd"))
    expected = json.loads((folder / "expected.json").read_text())[request.param]
    with OverlayImage(open_image((str(target),))) as image:
        kernel = open_kernel(image, str(kernel_file))
        yield Case(kernel, list(system_of(kernel).for_each_thread(kernel)), expected, target)
    target.unlink()


def test_variables_are_read(case: Case) -> None:
    assert read_number(case.kernel, case.kernel.symbols.address("hz"), 4, signed=True) == case.expected["hz"]


def test_all_threads_are_found(case: Case) -> None:
    assert len(case.threads) == case.expected["threads"]
    assert len({thread.lid for thread in case.threads}) == case.expected["threads"]


def test_threads_have_their_names(case: Case) -> None:
    expected = case.expected["thread"]
    assert {number: case.threads[int(number)].name for number in expected} == {
        number: thread["name"] for number, thread in expected.items()
    }


def test_threads_have_their_registers_and_no_others(case: Case) -> None:
    for number, thread in case.expected["thread"].items():
        found = case.threads[int(number)].registers
        assert {name: f"{value:#018x}" for name, value in found.items()} == thread["registers"]


def test_backtraces(case: Case) -> None:
    system = system_of(case.kernel)
    for number, thread in case.expected["thread"].items():
        frames = list(system.unwind(case.kernel, case.threads[int(number)]))
        assert [f"{frame.pc:#x}" for frame in frames] == thread["pc"]
        assert frames[-1].why == ""


def test_processes_without_types(case: Case) -> None:
    processes = {process.pid: process for process in system_of(case.kernel).for_each_process(case.kernel)}
    for thread in case.expected["thread"].values():
        pid = int(thread["name"].split()[1].rstrip(")"))
        comm = thread["name"].split(") ", 1)[1].split("/")[0].split(" (")[0]
        assert processes[pid].command == comm
        assert processes[pid].uid is None


def test_a_dump_without_kernel_file_says_what_it_wants(case: Case) -> None:
    with open_image((str(case.path),)) as image:
        if case.path.name.endswith("minidump"):
            (identity,) = identify_kernels(image)
            assert (identity.system, identity.arch) == ("FreeBSD", "x86_64")
            with pytest.raises(KernelNotFoundError, match="name it"):
                open_kernel(image)
        else:
            with pytest.raises(KernelNotFoundError):
                open_kernel(image)


def test_a_kernel_file_of_another_build_is_refused(case: Case, kernel_file: Path, tmp_path: Path) -> None:
    data = bytearray(kernel_file.read_bytes())
    for name in ("KPML4phys", "proc_off_p_pid"):
        symbol = case.kernel.symbols.find(name)
        assert symbol is not None
        at = data.rfind(symbol.address.to_bytes(8, "little"))
        data[at : at + 8] = (symbol.address + 0x2004).to_bytes(8, "little")
    other = tmp_path / "kernel"
    other.write_bytes(data)
    with open_image((str(case.path),)) as image, pytest.raises(KernelMismatchError):
        open_kernel(image, str(other))
