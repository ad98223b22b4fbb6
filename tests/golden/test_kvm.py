"""kvm(3) on real dumps: what the manual promises, with the guest's own word as the truth."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvm_dbg.kvm import (
    KERN_FILE_BYFILE,
    KERN_FILE_BYPID,
    KERN_PROC_GID,
    KERN_PROC_PGRP,
    KERN_PROC_PID,
    KERN_PROC_RGID,
    KERN_PROC_RUID,
    KERN_PROC_SESSION,
    KERN_PROC_TTY,
    KERN_PROC_TTY_NODEV,
    KERN_PROC_TTY_REVOKE,
    KERN_PROC_UID,
    O_RDWR,
    KinfoProc2,
    Kvm,
    Nlist,
    constant,
    kvm_close,
    kvm_getargv,
    kvm_getenvv,
    kvm_geterr,
    kvm_getfiles,
    kvm_getkernelname,
    kvm_getloadavg,
    kvm_getlwps,
    kvm_getproc2,
    kvm_getprocs,
    kvm_nlist,
    kvm_openfiles,
    kvm_read,
    kvm_write,
)
from tests.golden.subject import NAMES, Subject, find_subject
from tests.lab import ProcessTruth


@pytest.fixture(scope="module", params=NAMES)
def subject(request: pytest.FixtureRequest) -> Subject:
    return find_subject(request.param)


@pytest.fixture(scope="module")
def kd(subject: Subject) -> Iterator[Kvm]:
    """One descriptor for all tests of a scenario, opened for writing."""
    errors: list[str] = []
    paths = [str(path) for path in subject.dump.files[subject.kind].paths]
    opened = kvm_openfiles(str(subject.dump.vmlinux), paths, None, O_RDWR, errors)
    assert opened is not None, errors
    yield opened
    assert kvm_close(opened) == 0


def processes(kd: Kvm, op: int = 0, argument: int = 0) -> dict[int, KinfoProc2]:
    found = kvm_getproc2(kd, op, argument)
    assert found is not None, kvm_geterr(kd)
    return {process.p_pid: process for process in found}


def device(tty: int) -> int:
    """Return a terminal of /proc/PID/stat as a dev_t, NODEV for none."""
    return tty or constant.NODEV


def identity(process: KinfoProc2) -> tuple[object, ...]:
    return (
        process.p_ppid,
        process.p__pgid,
        process.p_sid,
        process.p_tdev,
        process.p_tpgid if process.p_tdev != constant.NODEV else -1,
        process.p_ruid,
        process.p_uid,
        process.p_svuid,
        process.p_rgid,
        process.p_gid,
        process.p_svgid,
        process.p_nice,
        process.p_nlwps,
    )


def true_identity(truth: ProcessTruth) -> tuple[object, ...]:
    return (
        truth.ppid,
        truth.pgrp,
        truth.session,
        device(truth.tty),
        truth.foreground,
        *truth.uids[:3],
        *truth.gids[:3],
        truth.nice,
        truth.threads,
    )


def test_processes_are_those_of_the_guest(subject: Subject, kd: Kvm) -> None:
    found = processes(kd)
    settled = list(subject.settled())
    assert len(settled) > 40
    assert {truth.pid: identity(found[truth.pid]) for truth in settled} == {
        truth.pid: true_identity(truth) for truth in settled
    }
    states = {"R": (2, 7), "S": (3,), "D": (3,), "T": (4,), "t": (4,), "Z": (5,)}  # LSRUN LSONPROC LSSLEEP ...
    assert [truth.pid for truth in settled if found[truth.pid].p_stat not in states[truth.state]] == []
    assert [truth.pid for truth in settled if found[truth.pid].p_vm_vsize != truth.size >> 12] == []


@pytest.mark.parametrize(
    ("op", "fact"),
    [
        (KERN_PROC_PID, lambda truth: truth.pid),
        (KERN_PROC_PGRP, lambda truth: truth.pgrp),
        (KERN_PROC_SESSION, lambda truth: truth.session),
        (KERN_PROC_TTY, lambda truth: device(truth.tty)),
        (KERN_PROC_UID, lambda truth: truth.uids[1]),
        (KERN_PROC_RUID, lambda truth: truth.uids[0]),
        (KERN_PROC_GID, lambda truth: truth.gids[1]),
        (KERN_PROC_RGID, lambda truth: truth.gids[0]),
    ],
    ids=["pid", "pgrp", "session", "tty", "uid", "ruid", "gid", "rgid"],
)
def test_filters_keep_what_the_guest_says(op: int, fact: object, subject: Subject, kd: Kvm) -> None:
    assert callable(fact)
    settled = list(subject.settled())
    values = {fact(truth) for truth in settled}
    assert len(values) > 2
    for value in values:
        kept = set(processes(kd, op, value))
        for truth in settled:
            assert (truth.pid in kept) == (fact(truth) == value), (truth.pid, value)


def test_terminals(subject: Subject, kd: Kvm) -> None:
    assert 2 in processes(kd, KERN_PROC_TTY, KERN_PROC_TTY_NODEV)  # kthreadd
    assert processes(kd, KERN_PROC_TTY, KERN_PROC_TTY_REVOKE) == {}


def test_arguments_and_environments(subject: Subject, kd: Kvm) -> None:
    compared = 0
    everyone = kvm_getprocs(kd)
    assert everyone is not None
    records = {record.kp_proc.p_pid: record for record in everyone}
    for truth in subject.settled():
        record = records[truth.pid]
        if truth.state == "Z":
            assert kvm_getargv(kd, record) is None
            continue
        arguments = kvm_getargv(kd, record)
        if arguments is None:  # swapped out, or left out by the dump level: the error says which
            assert subject.kind == "zlib-d31"
            continue
        assert b"".join(string + b"\0" for string in arguments).rstrip(b"\0") == truth.arguments.rstrip(b"\0"), (
            truth.pid
        )
        environment = kvm_getenvv(kd, record)
        assert environment is not None
        assert b"".join(string + b"\0" for string in environment).rstrip(b"\0") == truth.environment.rstrip(b"\0")
        if len(truth.arguments) > 8:
            cut = kvm_getargv(kd, record, 8)
            assert cut is not None
            assert b"\0".join(cut) == truth.arguments[:7]
        compared += 1
    assert compared > 30 or subject.kind == "zlib-d31"


def test_threads(subject: Subject, kd: Kvm) -> None:
    many = [truth for truth in subject.settled() if truth.threads > 3]
    assert many
    for truth in many:
        lwps = kvm_getlwps(kd, truth.pid)
        assert lwps is not None
        assert [lwp.l_lid for lwp in lwps] == [thread.tid for thread in truth.lwps]
        assert lwps == kvm_getlwps(kd, -1, processes(kd, KERN_PROC_PID, truth.pid)[truth.pid].p_paddr)


def test_load_average(subject: Subject, kd: Kvm) -> None:
    load: list[float] = []
    assert kvm_getloadavg(kd, load, 3) == 3
    if not subject.crashed:
        assert tuple(f"{value:.2f}" for value in load) == subject.truth.loadavg


def test_names(subject: Subject, kd: Kvm) -> None:
    symbols = subject.truth.symbols
    names = [Nlist(name) for name in ("init_task", "linux_banner", "_stext", "no_such_symbol_anywhere", "schedule")]
    assert kvm_nlist(kd, names) == 1
    assert [entry.n_value for entry in names] == [symbols.get(entry.n_name or "", 0) for entry in names]
    assert names[1].n_type == constant.N_DATA | constant.N_EXT
    assert names[4].n_type == constant.N_TEXT | constant.N_EXT


def test_reading_and_writing(subject: Subject, kd: Kvm) -> None:
    banner = kd.kernel.symbols.address("linux_banner")
    buffer = bytearray(14)
    assert kvm_read(kd, banner, buffer) == 14
    assert buffer == b"Linux version "
    before = [path.stat() for path in subject.dump.files[subject.kind].paths]
    assert kvm_write(kd, banner, b"Minix") == 5
    assert kvm_read(kd, banner, buffer) == 14
    assert buffer == b"Minix version "
    assert kvm_write(kd, banner, b"Linux") == 5
    after = [path.stat() for path in subject.dump.files[subject.kind].paths]
    assert [(stat.st_mtime_ns, stat.st_size) for stat in before] == [(stat.st_mtime_ns, stat.st_size) for stat in after]
    assert kvm_read(kd, 0, buffer) == -1
    assert "not mapped" in kvm_geterr(kd)
    assert kvm_getkernelname(kd) == str(subject.dump.vmlinux)


def test_files(subject: Subject, kd: Kvm) -> None:
    truth = next(truth for truth in subject.settled() if truth.comm == b"files")
    files = kvm_getfiles(kd, KERN_FILE_BYPID, truth.pid)
    assert files is not None, kvm_geterr(kd)
    assert [file.ki_fd for file in files] == sorted(truth.files)
    by_number = {file.ki_fd: file for file in files}
    kinds = {b"pipe:": constant.DTYPE_PIPE, b"socket:": constant.DTYPE_SOCKET, b"anon_inode:": constant.DTYPE_MISC}
    for number, target in truth.files.items():
        kind = next((kind for prefix, kind in kinds.items() if target.startswith(prefix)), constant.DTYPE_VNODE)
        assert by_number[number].ki_ftype == kind, target
    everything = kvm_getfiles(kd, KERN_FILE_BYFILE)
    assert everything is not None
    addresses = [file.ki_fileaddr for file in everything]
    assert len(addresses) == len(set(addresses)) > 40
    assert {file.ki_fileaddr for file in files} <= set(addresses)
