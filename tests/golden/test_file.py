"""Open files equal the guest's own /proc/PID/fd and fdinfo, directories its /proc/PID/cwd and root."""

from __future__ import annotations

import os
import re
import stat
from pathlib import PurePosixPath

import pytest

from kvm_dbg.kernel import system_of
from kvm_dbg.kernel.layout import decode_text
from kvm_dbg.kernel.usage import OpenFile
from tests.golden.subject import Subject

ACCESS = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "rw"}
O_PATH = 0o10000000  # include/uapi/asm-generic/fcntl.h
DEVICES = {  # Documentation/admin-guide/devices.txt
    "/dev/null": (1, 3), "/dev/console": (5, 1), "/dev/ptmx": (5, 2), "/dev/pts/ptmx": (5, 2), "/dev/ttyS1": (4, 65),
}  # fmt: skip


@pytest.fixture
def subject(either: Subject) -> Subject:
    """Everything here is asked of the image alone as well."""
    return either


def test_files_equal_proc(subject: Subject) -> None:
    system, kernel = system_of(subject.kernel), subject.kernel
    ours: dict[int, dict[int, OpenFile]] = {}
    for file in system.for_each_file(kernel):
        if file.fd is not None:
            ours.setdefault(file.pid, {})[file.fd] = file
    checked = 0
    for truth in subject.settled():
        files = ours.get(truth.pid, {})
        assert {fd: file.path for fd, file in files.items()} == {
            fd: decode_text(target) for fd, target in sorted(truth.files.items())
        }
        for fd, file in files.items():
            information = subject.truth.text(f"proc/{truth.pid}/fdinfo/{fd}")
            fields = dict(line.split(":\t", 1) for line in information.splitlines() if ":\t" in line)
            assert not file.unread
            assert file.flags is not None
            assert (file.offset, file.flags) == (int(fields["pos"]), int(fields["flags"], 8)), file
            assert file.access == ("" if file.flags & O_PATH else ACCESS[file.flags & os.O_ACCMODE])
            if "ino" in fields:  # since 5.14
                assert file.inode == int(fields["ino"])
            checked += 1
    assert checked > 150


def test_kinds_of_files(subject: Subject) -> None:
    system, kernel = system_of(subject.kernel), subject.kernel
    animal = next(process for process in system.for_each_process(kernel) if process.command == "files")
    kinds = {file.path: file.kind for file in system.for_each_file(kernel, animal.pid)}
    assert kinds["/dev/null"] == "chr"
    assert kinds["/tmp"] == "dir"
    assert kinds["/tmp/regular file"] == "reg"
    assert kinds["anon_inode:[eventfd]"] == "anon"
    assert {kind for path, kind in kinds.items() if path is not None and path.startswith("pipe:")} == {"fifo"}
    assert {kind for path, kind in kinds.items() if path is not None and path.startswith("socket:")} == {"sock"}


def test_directories_equal_proc(subject: Subject) -> None:
    """Kernel threads have them, too; who has exited has none, as in /proc."""
    found: dict[tuple[int, str], str | None] = {}
    for file in system_of(subject.kernel).for_each_file(subject.kernel):
        if file.role:
            assert (file.kind, file.access, file.fd, file.unread) == ("dir", "r", None, ())
            assert file.inode is not None
            assert stat.S_ISDIR(file.mode or 0)
            found[file.pid, file.role] = file.path
    checked = 0
    for truth in subject.truth.processes.values():
        if f"proc/{truth.pid}/stat" in subject.dump.moved and not truth.kernel_thread:
            continue
        for role, name in (("wd", "cwd"), ("root", "root")):
            link = subject.truth.contents.get(f"proc/{truth.pid}/{name}")
            assert found.get((truth.pid, role)) == (None if link is None else decode_text(link)), (truth, role)
            checked += link is not None
    assert checked > 150


def test_devices_mounts_and_sizes(subject: Subject) -> None:
    """Devices have their numbers; who is mounted where says the guest's /proc/mounts.

    Kernel threads are not asked: theirs is a mount of the kernel's own since 7.0.
    """
    asked = {truth.pid for truth in subject.truth.processes.values() if not truth.kernel_thread}
    points = [line.split()[1] for line in subject.truth.text("proc/mounts").splitlines()]
    seen, mounted = set(), 0
    for file in system_of(subject.kernel).for_each_file(subject.kernel):
        path = file.path or ""
        assert (file.device is not None) == (file.kind in ("chr", "blk"))
        assert (file.size is None) == (file.kind in ("chr", "blk"))
        if path in DEVICES:
            assert file.device == DEVICES[path]
            seen.add(path)
        slave = re.fullmatch(r"/dev/pts/(\d+)", path)
        if slave:
            assert file.device == (136, int(slave[1]))
        if not path.startswith("/") or " (deleted)" in path or file.pid not in asked:
            continue
        if not path.startswith("/dev/"):  # what was opened before /dev was mounted lies below it
            above = [str(place) for place in (PurePosixPath(path), *PurePosixPath(path).parents)]
            assert file.mount == next(place for place in above if place in points), path
            mounted += 1
    assert seen >= {"/dev/null", "/dev/console"}
    assert mounted > 100


def test_files_of_no_file_system_are_mounted_nowhere(subject: Subject) -> None:
    mounts = {
        file.mount
        for file in system_of(subject.kernel).for_each_file(subject.kernel)
        if (file.path or "").startswith(("pipe:", "socket:", "anon_inode:", "/memfd:"))
    }
    assert mounts == {None}
