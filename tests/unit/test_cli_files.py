"""Files that are no dumps, cannot be read, or end too early: one clear error, status 1, no traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_cli import ROOT, SECONDS, child_environment
from tests.writers.elfcore import Load, write_elfcore
from tests.writers.kdump import write_kdump
from tests.writers.lime import write_lime

NOBODY = 65534
# A rehearsal imports everything before the privileges go: Python may lie where nobody may read.
AS_NOBODY = f"""
import contextlib, io, os, sys
from kvm_dbg.cli import main
with contextlib.redirect_stderr(io.StringIO()):
    main([*sys.argv[1:-1], sys.argv[-1] + "-missing"])
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
    os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
sys.exit(main())
"""


def fail(*words: str, program: tuple[str, ...] = ("-m", "kvm_dbg.cli"), **environment: str) -> str:
    """Run `kvm-dbg` in a process of its own, which must fail cleanly; return its complaint."""
    done = subprocess.run(
        [sys.executable, *program, *words],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env=child_environment(**environment),
        cwd=ROOT,
    )
    assert done.stdout == ""
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("kvm-dbg: ")
    return done.stderr


@pytest.mark.parametrize("command", ["procs", "identify", "open", "status"])
def test_a_file_that_is_missing(command: str, tmp_path: Path) -> None:
    assert fail(command, f"{tmp_path}/vmcore") == f"kvm-dbg: {tmp_path}/vmcore: No such file or directory\n"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "the file is empty"),
        (b"#!/bin/sh\necho hello\n" * 100, "text"),
        (b"\x1f\x8b\x08\0" + bytes(100), "gzip"),
        (bytes(8192), "is no memory image that is known"),
    ],
)
def test_a_file_that_is_no_dump(data: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(data)
    complaint = fail("procs", str(path))
    assert str(path) in complaint
    assert text in complaint


def test_a_directory(tmp_path: Path) -> None:
    assert "is a directory" in fail("procs", str(tmp_path))


def test_a_device() -> None:
    assert "/dev/zero: is a device" in fail("procs", "/dev/zero")


def test_a_pipe_without_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "pipe: is a" in fail("procs", str(tmp_path / "pipe"))


def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(write_lime([(0, bytes(4096))]))
    path.chmod(0)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o111)
    complaint = fail("procs", str(path), program=("-c", AS_NOBODY), XDG_CACHE_HOME="", XDG_CONFIG_HOME="", HOME="")
    assert complaint == f"kvm-dbg: {path}: Permission denied\n"


def test_no_permission_for_a_monitor(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    path.chmod(0o600)
    words = ("procs", "--qmp", str(path))
    complaint = fail(*words, program=("-c", AS_NOBODY), XDG_CACHE_HOME="", XDG_CONFIG_HOME="", HOME="")
    listener.close()
    text = "Permission denied: the socket takes the user that QEMU runs as, or root: use sudo"
    assert complaint == f"kvm-dbg: {path}: {text}\n"


ELF = write_elfcore([Load(0x1000, bytes(range(256)) * 64)])
KDUMP = write_kdump({1: bytes(range(256)) * 16})


@pytest.mark.parametrize(
    ("data", "sizes"), [(ELF, (20, 63, 64, 100)), (KDUMP, (8, 100, 4096, 5000))], ids=["elf", "kdump"]
)
def test_a_truncated_header(data: bytes, sizes: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    for size in sizes:
        path.write_bytes(data[:size])
        assert str(path) in fail("procs", str(path), "--no-index")


@pytest.mark.parametrize(
    ("data", "text"), [(b"", "vmlinux"), (b"no ELF file", "vmlinux"), (b"\x7fELF\x02\x01\x01" + bytes(57), "vmlinux")]
)
def test_a_named_kernel_file_that_cannot_be_used(data: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "vmcore").write_bytes(ELF)
    (tmp_path / "vmlinux").write_bytes(data)
    fail("procs", "--vmlinux", str(tmp_path / "vmlinux"), str(tmp_path / "vmcore"))
    (tmp_path / "vmlinux").unlink()
    fail("procs", "--vmlinux", str(tmp_path / "vmlinux"), str(tmp_path / "vmcore"))


def test_an_index_that_cannot_be_kept_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a directory should be")
    (tmp_path / "vmcore").write_bytes(ELF)
    done = subprocess.run(
        [sys.executable, "-m", "kvm_dbg.cli", "identify", str(tmp_path / "vmcore")],
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(XDG_CACHE_HOME=str(tmp_path / "cache")),
        cwd=ROOT,
    )
    assert done.returncode == 0
    assert "format: elf" in done.stdout
    assert done.stderr.startswith(f"kvm-dbg: warning: no index is kept, which takes longer: {tmp_path}/cache")
    assert done.stderr.count("\n") == 1


def test_standard_output_that_is_closed() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "kvm_dbg.cli", "--version"],
        stderr=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
        check=False,
        env=child_environment(),
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert done.stderr == "kvm-dbg: the output could not be written: standard output is closed\n"
