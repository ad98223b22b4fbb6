"""Open files equal the guest's own /proc/PID/fd and fdinfo."""

from __future__ import annotations

import pytest

from kvm_dbg.kernel import system_of
from kvm_dbg.kernel.base import OpenFile
from kvm_dbg.kernel.layout import decode_text
from tests.golden.subject import Subject


@pytest.fixture
def subject(either: Subject) -> Subject:
    """Everything here is asked of the image alone as well."""
    return either


def test_files_equal_proc(subject: Subject) -> None:
    system, kernel = system_of(subject.kernel), subject.kernel
    ours: dict[int, dict[int, OpenFile]] = {}
    for file in system.for_each_file(kernel):
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
            assert (file.offset, file.flags) == (int(fields["pos"]), int(fields["flags"], 8)), file
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
