"""What the golden tests look at: each scenario of the lab, opened once, beside what its guest said of itself."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvm_dbg.image import open_image
from kvm_dbg.kernel import open_kernel
from kvm_dbg.kernel.base import Kernel
from tests.lab import SCENARIOS, Dump, ProcessTruth, find

PRIMARY = ("elf", "lzo-d0", "vmcore", "zlib-d31")  # the first of these that a scenario has is compared in full
MOVERS = frozenset((b"busy", b"crasher", b"toiler"))  # the first runs all the time, the others are made to
TRANSIENT = frozenset((b"ps", b"dmesg", b"uname", b"cat", b"sh"))

NAMES = tuple(scenario.name for scenario in SCENARIOS)
WITHOUT = "-without-vmlinux"
HIDDEN = tuple(name + WITHOUT for name in NAMES)
"""The same, opened with nothing but the image: symbols, types and unwind rules are those in memory."""


class Subject:
    """One scenario: its dump, and the kernel in the dump's primary file.

    hidden: whether its kernel file is not used.
    """

    def __init__(self, dump: Dump, *, hidden: bool = False) -> None:
        self.dump = dump
        self.hidden = hidden
        self.kind = next(kind for kind in PRIMARY if kind in dump.files)
        self.truth = dump.truth
        self.crashed = dump.truth_after is None

    @functools.cached_property
    def kernel(self) -> Kernel:
        """The kernel in the primary file."""
        return self.open(self.kind)

    def open(self, kind: str) -> Kernel:
        """Return the kernel in one of the scenario's files."""
        paths = self.dump.files[kind].paths
        image = open_image(paths[0]) if len(paths) == 1 else open_image(list(paths))
        vmlinux = None if self.hidden else str(self.dump.vmlinux)
        kernel = open_kernel(image, vmlinux, index_directory=_index_directory())
        assert getattr(kernel, "vmlinux_path", None) == vmlinux  # None: not even one that this machine happens to have
        return kernel

    def open_caught(self, name: str) -> Kernel:
        """Return the kernel in the dump that was taken at a catch."""
        image = open_image(self.dump.caught[name].path)
        return open_kernel(image, str(self.dump.vmlinux), index_directory=_index_directory())

    def settled(self) -> Iterator[ProcessTruth]:
        """Yield the processes that did nothing between their word and the dump: the zoo, without those that ran."""
        for process in self.truth.processes.values():
            if process.pid == 1 or process.kernel_thread or process.comm in MOVERS:
                continue
            if f"proc/{process.pid}/stat" not in self.dump.moved:
                yield process


def find_subject(name: str) -> Subject:
    """Return a scenario, each opened once in a run. Skips where the lab has not built it."""
    subject = _find(name)
    if subject is None:
        name = name.removesuffix(WITHOUT)
        pytest.skip(f"the lab has no dump {name}: python -m tests.lab build {name}")
    return subject


@functools.cache
def _find(name: str) -> Subject | None:
    dump = find(name.removesuffix(WITHOUT))
    return None if dump is None else Subject(dump, hidden=name.endswith(WITHOUT))


@functools.cache
def _index_directory() -> str:
    directory = Path(tempfile.gettempdir()) / "kvm-dbg-golden-index"
    directory.mkdir(exist_ok=True)
    return str(directory)
