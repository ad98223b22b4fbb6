"""What the tests of the adapters open: the stand-in kernel of `tests.writers`, and the demo's real dump."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.debuggers.asked import Asked, ask
from tests.debuggers.case import CASES, Case, find_case
from tests.debuggers.debugger import DEBUGGERS, ROOT, Found, find
from tests.debuggers.driver import Gdb, Lldb
from tests.debuggers.neutral import Subject
from tests.debuggers.plugin import CACHE
from tests.sample import unpack_sample

ADAPTER = ROOT / "gdb" / "kvm_dbg_gdb.py"
SOURCE = f"source {ADAPTER}"
IMPORT = f"command script import {ROOT / 'lldb' / 'kvm_dbg_lldb.py'}"


class Demo(NamedTuple):
    """The demo's files, unpacked."""

    vmlinux: Path
    vmcore: Path
    modules: Path


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Return the demo's dump and kernel file."""
    folder = tmp_path_factory.mktemp("demo")
    unpack_sample(folder)
    return Demo(folder / "vmlinux", folder / "vmcore", folder / "modules")


@pytest.fixture(params=DEBUGGERS, ids=lambda debugger: debugger.name, scope="session")
def debugger(request: pytest.FixtureRequest) -> Found:
    """Return one debugger after the other."""
    found = find(request.param)
    if not isinstance(found, Found):
        pytest.skip(found.reason)
    return found


@pytest.fixture(params=CASES, scope="session")
def case(request: pytest.FixtureRequest) -> Case:
    """Return one dump of the lab after the other."""
    return find_case(request.param)


@pytest.fixture(scope="session")
def asked(debugger: Found, case: Case, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """Return what a debugger says of a dump, which it opens once in a run."""
    with Subject(debugger, tmp_path_factory.mktemp("asked"), pytestconfig.stash[CACHE]) as subject:
        return ask(subject, case)


@pytest.fixture
def subject(debugger: Found, tmp_path: Path, pytestconfig: pytest.Config) -> Iterator[Subject]:
    """Return a debugger, whichever, whose adapter starts this package."""
    with Subject(debugger, tmp_path, pytestconfig.stash[CACHE]) as found:
        yield found


@pytest.fixture
def real(gdb: Gdb) -> Gdb:
    """Return a gdb whose adapter starts this package."""
    gdb.env["KVM_DBG_PYTHON"] = sys.executable
    return gdb


@pytest.fixture
def real_lldb(lldb: Lldb) -> Lldb:
    """Return an lldb whose adapter starts this package."""
    lldb.env["KVM_DBG_PYTHON"] = sys.executable
    return lldb


@pytest.fixture
def stand_in(gdb: Gdb, tmp_path: Path) -> Gdb:
    """Return a gdb whose adapter starts a server that has the stand-in kernel in every image.

    Everything that the server and the adapter leave in the directory for temporary files is seen in `tmp_path/tmp`.
    """
    use_stand_in(gdb, tmp_path)
    return gdb


def use_stand_in(gdb: Gdb | Lldb | Subject, folder: Path) -> None:
    """Let the adapter in `gdb` start the stand-in in the place of the package."""
    program = folder / "python-with-the-stand-in"
    program.write_text(f'#!/bin/sh\nshift 2\ncd {ROOT} && exec {sys.executable} -m tests.writers.stand_in "$@"\n')
    program.chmod(0o755)
    temporary = folder / "tmp"
    temporary.mkdir()
    gdb.env["KVM_DBG_PYTHON"] = str(program)
    gdb.env["TMPDIR"] = str(temporary)
    for name in ("image", "second", "refused"):
        (folder / name).touch()


def children_of_tests(folder: Path) -> list[str]:
    """Return the command lines of processes that serve something below `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if "serve --control" in command and str(folder) in command:
                found.append(command)
    return found
