"""Made FreeBSD systems, and how commands are run on them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kvm_dbg import cli
from kvm_dbg.image import open_image
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.kernel import open_kernel
from kvm_dbg.kernel.base import Kernel
from tests.writers.freebsd_system import FreebsdSystem

Row = dict[str, Any]
VARIANTS = ((10, "dwarf"), (12, "ctf"), (13, "dwarf"), (14, "ctf"), (14, "dwarf"), (15, "dwarf"))


class Answer(NamedTuple):
    """What a command said: its status, its standard output and error output."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[Row]:
        """Return the objects of JSON."""
        found: list[Row] = json.loads(self.out)
        return found

    @property
    def row(self) -> Row:
        """Return the only object."""
        found: Row = json.loads(self.out)
        return found


class Made:
    """One made system, its dump, and its minidump."""

    def __init__(self, system: FreebsdSystem) -> None:
        self.system = system
        self.kernel = str(system.kernel)
        self.dump = str(system.write())
        self.mini = str(system.write("minidump", minidump=True))

    def run(self, command: str, *words: str, dump: str | None = None, text: bool = False) -> Answer:
        """Run a command on the dump, or on another one, and return what it says."""
        out, err = io.StringIO(), io.StringIO()
        options = ["--no-index", *([] if text else ["--json"])]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main([command, self.kernel, dump or self.dump, *words, *options])
        return Answer(status, out.getvalue(), err.getvalue())

    def damaged(self, patch: Mapping[int, bytes] | None = None, *, without: tuple[int, ...] = ()) -> str:
        """Write a dump with other bytes at some addresses, or without the pages of some, and return its path."""
        return str(self.system.write("damaged", patch=patch, without=without))

    def pointer(self, target: str, place: str, member: str = "") -> dict[int, bytes]:
        """Return the change that lets a pointer of a variable lead to another variable."""
        return {self.system.address(place, member): self.system.address(target).to_bytes(8, "little")}

    def number(self, value: int, place: str, member: str = "") -> dict[int, bytes]:
        """Return the change that gives an int of a variable another value."""
        return {self.system.address(place, member): (value & 0xFFFFFFFF).to_bytes(4, "little")}


@contextlib.contextmanager
def opened(made: Made, dump: str | None = None) -> Iterator[Kernel]:
    """Open a dump for as long as the block runs."""
    with OverlayImage(open_image((dump or made.dump,))) as image:
        yield open_kernel(image, made.kernel)


def make(folder: Path, release: int, types: str) -> Made:
    """Make a system in a folder of its own. The test is skipped where there is no compiler."""
    return Made(FreebsdSystem(folder, release, types))
