"""The promises of kvm(3), one by one, on a kernel whose every byte is known."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest

import kvm_dbg
from kvm_dbg.errors import CommandError, CorruptError, NotMappedError
from kvm_dbg.kvm import (
    KERN_FILE_BYFILE,
    KERN_FILE_BYPID,
    KERN_PROC_ALL,
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
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
    Kvm,
    Nlist,
    constant,
    kvm_close,
    kvm_getargv,
    kvm_getargv2,
    kvm_getenvv,
    kvm_getenvv2,
    kvm_geterr,
    kvm_getfiles,
    kvm_getkernelname,
    kvm_getloadavg,
    kvm_getlwps,
    kvm_getproc2,
    kvm_getprocs,
    kvm_nlist,
    kvm_open,
    kvm_openfiles,
    kvm_read,
    kvm_write,
)
from tests.unit.conftest import Little
from tests.writers.system import BIG_ID, DATA, DATA_BYTES, GONE, SHELL, TEXT, TEXT_BYTES, TTY, USER, USER_BYTES


@pytest.fixture
def kd(little: Little) -> Iterator[Kvm]:
    opened = kvm_openfiles(None, little.image)
    assert opened is not None
    yield opened
    assert kvm_close(opened) == 0


@pytest.fixture(autouse=True)
def _nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capfd.readouterr() == ("", "")


# kvm_open(3)


@pytest.mark.parametrize("flags", [O_RDONLY, O_WRONLY, O_RDWR])
def test_open(flags: int, little: Little) -> None:
    kd = kvm_open("kernel", little.image, None, flags, "prog")
    assert kd is not None
    assert kvm_getkernelname(kd) == "kernel"
    assert kvm_geterr(kd) == ""
    assert kvm_close(kd) == 0
    assert kvm_close(kd) == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((None, "missing"), r"missing: .*No such file"),
        ((None, "vmcore", "swap"), "swap: swap files are not read"),
        ((None, "vmcore", None, 3), "bad flags arg"),
        ((None, "vm\0core"), "null"),
        ((None, ["vmcore", "missing"]), r"missing: .*No such file"),
    ],
)
def test_open_returns_none_and_says_why(words: tuple[Any, ...], text: str, little: Little) -> None:
    execfile, corefile = words[:2]
    swapfile = words[2] if len(words) > 2 else None
    flags = words[3] if len(words) > 3 else O_RDONLY
    errors: list[str] = []
    assert kvm_openfiles(execfile, corefile, swapfile, flags, errors) is None
    assert len(errors) == 1
    assert re.search(text, errors[0])
    named: list[str] = []
    assert kvm_open(execfile, corefile, swapfile, flags, "prog", named) is None
    assert named == [f"prog: {errors[0]}"]
    assert kvm_open(execfile, corefile, swapfile, flags, "prog") is None


def test_options_are_those_of_kvm_dbg_open(little: Little) -> None:
    kd = kvm_openfiles(None, little.image, index_directory="index", search=["kernels"])
    assert kd is not None
    assert little.entry.opened[-1]["index_directory"] == "index"
    assert little.entry.opened[-1]["search"] == ("kernels",)
    kd.close()


def test_each_descriptor_has_its_own_error(little: Little) -> None:
    one, two = kvm_openfiles(None, little.image), kvm_openfiles(None, little.image)
    assert one is not None
    assert two is not None
    assert kvm_read(one, 0x1000, bytearray(8)) == -1
    assert kvm_geterr(one) != ""
    assert kvm_geterr(two) == ""
    text = kvm_geterr(one)
    assert kvm_read(one, DATA, bytearray(8)) == 8
    assert kvm_geterr(one) == text  # success does not clear it
    one.close()
    two.close()


def test_a_closed_descriptor_answers_with_errors(little: Little) -> None:
    kd = kvm_openfiles(None, little.image)
    assert kd is not None
    kvm_close(kd)
    assert kvm_read(kd, DATA, bytearray(8)) == -1
    assert kvm_nlist(kd, [Nlist("banner")]) == -1
    assert kvm_getprocs(kd) is None
    assert kvm_getloadavg(kd, [], 3) == -1
    assert kvm_geterr(kd) == "this image has been closed"


# kvm_read(3)


def test_read(kd: Kvm) -> None:
    buffer = bytearray(b"\xee" * 64)
    assert kvm_read(kd, DATA, buffer, 16) == 16
    assert buffer == DATA_BYTES[:16] + b"\xee" * 48
    assert kvm_read(kd, DATA - 8, buffer) == 64
    assert buffer == TEXT_BYTES[-8:] + DATA_BYTES[:56]
    assert kvm_read(kd, 0x1000, buffer, 0) == 0
    view = memoryview(bytearray(4))
    assert kvm_read(kd, TEXT, view) == 4
    assert bytes(view) == TEXT_BYTES[:4]


def test_a_read_is_short_where_bytes_are_missing(kd: Kvm) -> None:
    buffer = bytearray(b"\xee" * 32)
    assert kvm_read(kd, GONE - 10, buffer) == 10
    assert buffer == DATA_BYTES[-10:] + b"\xee" * 22
    assert "0x400000" in kvm_geterr(kd)


@pytest.mark.parametrize("address", [GONE, 0x1000, 0x8000000000000000, 1 << 64, -1])
def test_a_read_of_nothing_is_minus_one(address: int, kd: Kvm) -> None:
    buffer = bytearray(b"\xee" * 32)
    assert kvm_read(kd, address, buffer) == -1
    assert buffer == b"\xee" * 32
    assert kvm_geterr(kd) != ""


@pytest.mark.parametrize("size", [-1, 33])
def test_a_read_does_not_overflow_its_buffer(size: int, kd: Kvm) -> None:
    assert kvm_read(kd, DATA, bytearray(32), size) == -1
    assert "do not fit" in kvm_geterr(kd)


@pytest.mark.parametrize("flags", [O_RDWR, O_WRONLY])
def test_write_changes_the_private_copy(flags: int, little: Little) -> None:
    with open(little.image, "rb") as file:
        before = file.read()
    kd = kvm_openfiles(None, little.image, None, flags)
    assert kd is not None
    assert kvm_write(kd, DATA - 2, b"abcdef", 4) == 4
    buffer = bytearray(8)
    assert kvm_read(kd, DATA - 4, buffer) == 8
    assert buffer == TEXT_BYTES[-4:-2] + b"abcd" + DATA_BYTES[2:4]
    assert kvm_write(kd, DATA, b"", 0) == 0
    assert kvm_write(kd, DATA, b"abc", 4) == -1
    assert kvm_write(kd, 0x1000, b"abc") == -1
    assert "not mapped" in kvm_geterr(kd)
    assert kvm_close(kd) == 0
    with open(little.image, "rb") as file:
        assert file.read() == before


def test_write_needs_an_image_opened_for_it(kd: Kvm) -> None:
    assert kvm_write(kd, DATA, b"abc") == -1
    assert kvm_geterr(kd) == "the image was not opened for writing"


# kvm_nlist(3)


def test_nlist_returns_the_number_not_found(kd: Kvm) -> None:
    names = [Nlist("banner"), Nlist("nowhere", 5, 5, 5, 5), Nlist("_start"), Nlist("gone")]
    assert kvm_nlist(kd, names) == 2
    assert names == [
        Nlist("banner", DATA, constant.N_DATA | constant.N_EXT),
        Nlist("nowhere"),
        Nlist("_start", TEXT, constant.N_TEXT),
        Nlist("gone"),
    ]


def test_nlist_prefers_the_name_as_it_stands(kd: Kvm) -> None:
    names = [Nlist("_text"), Nlist("text"), Nlist("__text")]
    assert kvm_nlist(kd, names) == 0
    assert [entry.n_value for entry in names] == [TEXT, TEXT + 8, TEXT]


@pytest.mark.parametrize("end", [None, ""])
def test_nlist_ends_at_an_empty_name(end: str | None, kd: Kvm) -> None:
    names = [Nlist("banner"), Nlist(end), Nlist("nowhere", 7)]
    assert kvm_nlist(kd, names) == 0
    assert names[2].n_value == 7
    assert kvm_nlist(kd, []) == 0


def test_nlist_fills_a_name_that_is_listed_twice(kd: Kvm) -> None:
    names = [Nlist("banner"), Nlist("banner")]
    assert kvm_nlist(kd, names) == 0
    assert [entry.n_value for entry in names] == [DATA, DATA]


def test_nlist_types(kd: Kvm) -> None:
    names = [Nlist(name) for name in ("_text", "start", "counter", "absolute", "odd", "ext_init")]
    assert kvm_nlist(kd, names) == 0
    assert [entry.n_type for entry in names] == [4 | 1, 4, 6, 2 | 1, 0, 4]


# kvm_getprocs(3)


@pytest.mark.parametrize(
    ("op", "argument", "pids"),
    [
        (KERN_PROC_ALL, 0, [1, 2, 40, 41, 42, 50]),
        (KERN_PROC_ALL, 77, [1, 2, 40, 41, 42, 50]),
        (KERN_PROC_PID, 40, [40]),
        (KERN_PROC_PID, 77, []),
        (KERN_PROC_PGRP, 40, [40, 42]),
        (KERN_PROC_SESSION, 40, [40, 41, 42]),
        (KERN_PROC_TTY, TTY, [40, 41]),
        (KERN_PROC_TTY, TTY + 1, []),
        (KERN_PROC_TTY, KERN_PROC_TTY_NODEV, [1, 2, 42]),  # 50's terminal cannot be told
        (KERN_PROC_TTY, -1, [1, 2, 42]),
        (KERN_PROC_TTY, KERN_PROC_TTY_REVOKE, []),
        (KERN_PROC_UID, 1000, [40, 42]),
        (KERN_PROC_UID, 0, [1, 2]),
        (KERN_PROC_UID, BIG_ID, [41]),
        (KERN_PROC_UID, BIG_ID - (1 << 32), [41]),  # as an int of C
        (KERN_PROC_RUID, 1001, [40, 41, 42]),
        (KERN_PROC_GID, 100, [40, 41, 42]),
        (KERN_PROC_RGID, 101, [40, 42]),
        (KERN_PROC_RGID, BIG_ID, [41]),
    ],
)
def test_every_filter_works(op: int, argument: int, pids: list[int], kd: Kvm) -> None:
    for _ in range(2):  # the second time from memory
        first = kvm_getprocs(kd, op, argument)
        assert first is not None
        assert [record.kp_proc.p_pid for record in first] == pids
        second = kvm_getproc2(kd, op, argument)
        assert second is not None
        assert [record.p_pid for record in second] == pids


@pytest.mark.parametrize("op", [-1, 9, 100])
def test_an_unknown_filter_is_an_error(op: int, kd: Kvm) -> None:
    assert kvm_getprocs(kd, op, 0) is None
    assert "no process filter" in kvm_geterr(kd)
    assert kvm_getproc2(kd, op, 0) is None


def test_a_broken_list_is_an_error(little: Little, kd: Kvm) -> None:
    little.system.broken = {"processes"}
    assert kvm_getprocs(kd) is None
    assert "leads nowhere" in kvm_geterr(kd)


def one(kd: Kvm, pid: int) -> Any:
    found = kvm_getproc2(kd, KERN_PROC_PID, pid)
    assert found is not None
    return found[0]


def test_fields_of_a_process(kd: Kvm) -> None:
    p = one(kd, 40)
    assert (p.p_paddr, p.p_ppid, p.p_sid, p.p__pgid, p.p_tpgid) == (SHELL.address, 1, 40, 40, 41)
    assert (p.p_uid, p.p_ruid, p.p_svuid, p.p_gid, p.p_rgid, p.p_svgid) == (1000, 1001, 1002, 100, 101, 102)
    assert (p.p_groups, p.p_ngroups) == ((100, 27), 2)
    assert (p.p_tdev, p.p_flag, p.p_eflag) == (TTY, 0x2, 3)  # P_CONTROLT; EPROC_CTTY, EPROC_SLEADER
    assert (p.p_stat, p.p_realstat, p.p_nlwps, p.p_cpuid) == (3, 2, 2, 1)  # LSSLEEP, SACTIVE
    assert (p.p_priority, p.p_nice, p.p_comm) == (15, -5, SHELL.command)
    assert (p.p_vm_rssize, p.p_vm_vsize) == (256, 512)  # pages of 4096 bytes
    assert (p.p_uvalid, p.p_ustart_sec, p.p_ustart_usec) == (1, 1700000001, 0)
    p = one(kd, 1)
    assert (p.p_rtime_sec, p.p_rtime_usec) == (3, 750000)
    assert (p.p_uutime_sec, p.p_uutime_usec, p.p_ustime_sec, p.p_ustime_usec) == (1, 250000, 2, 500000)
    assert (p.p_ustart_sec, p.p_ustart_usec) == (1700000000, 250000)


@pytest.mark.parametrize(
    ("pid", "stat", "realstat", "flag", "valid"),
    [(1, 3, 2, 0, 1), (2, 3, 2, 0x200, 0), (41, 2, 2, 0x2, 0), (42, 5, 5, 0, 0)],
)
def test_states(pid: int, stat: int, realstat: int, flag: int, valid: int, kd: Kvm) -> None:
    p = one(kd, pid)
    assert (p.p_stat, p.p_realstat, p.p_flag, p.p_uvalid) == (stat, realstat, flag, valid)


def test_what_the_image_lacks_is_none(kd: Kvm) -> None:
    p = one(kd, 50)
    assert (p.p_uid, p.p_gid, p.p_vm_rssize, p.p_tdev) == (None, None, None, None)
    assert one(kd, 2).p_tdev == KERN_PROC_TTY_NODEV


def test_kinfo_proc_has_the_same_facts(kd: Kvm) -> None:
    found = kvm_getprocs(kd, KERN_PROC_PID, 40)
    assert found is not None
    [record] = found
    p, e = record.kp_proc, record.kp_eproc
    assert (p.p_pid, p.p_stat, p.p_flag, p.p_nice, p.p_comm, p.p_nlwps) == (40, 2, 0x2, -5, SHELL.command, 2)
    assert (e.e_paddr, e.e_ppid, e.e_pgid, e.e_sid, e.e_tdev, e.e_tpgid, e.e_flag) == (
        SHELL.address, 1, 40, 40, TTY, 41, 3,
    )  # fmt: skip
    assert dataclasses.astuple(e.e_pcred) == (1001, 1002, 101, 102)
    assert dataclasses.astuple(e.e_ucred) == (1000, 100, 2, (100, 27))


def test_records_are_frozen_and_have_the_fields_of_the_header(kd: Kvm) -> None:
    p = one(kd, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.p_pid = 2
    names = [field.name for field in dataclasses.fields(p)]
    assert len(names) == 94  # counted in the header
    assert names[:3] == ["p_forw", "p_back", "p_paddr"]
    assert names[-3:] == ["p_ename", "p_vm_vsize", "p_vm_msize"]


# kvm_getlwps


def test_lwps_by_pid_or_by_address(kd: Kvm) -> None:
    by_pid = kvm_getlwps(kd, 40)
    assert by_pid is not None
    assert by_pid == kvm_getlwps(kd, -1, SHELL.address)
    assert [(lwp.l_lid, lwp.l_pid, lwp.l_stat, lwp.l_cpuid, lwp.l_name) for lwp in by_pid] == [
        (40, 40, 3, 1, "sh"),
        (45, 40, 7, 0, "worker"),  # LSONPROC
    ]
    assert (by_pid[0].l_rtime_sec, by_pid[0].l_rtime_usec) == (1, 500000)
    assert by_pid[1].l_laddr == SHELL.address + 8
    first = kvm_getlwps(kd, 1)
    assert first is not None
    assert first[0].l_wmesg == "do_epoll"


@pytest.mark.parametrize(("pid", "address"), [(77, 0), (-1, 5)])
def test_lwps_of_nobody(pid: int, address: int, kd: Kvm) -> None:
    assert kvm_getlwps(kd, pid, address) is None
    assert "no process" in kvm_geterr(kd)


# kvm_getargv(3)


def record(kd: Kvm, pid: int) -> Any:
    found = kvm_getprocs(kd, KERN_PROC_PID, pid)
    assert found is not None
    return found[0]


@pytest.mark.parametrize(
    ("nchr", "strings"),
    [
        (0, [b"/sbin/init", b"--flag=a b", b""]),
        (1000, [b"/sbin/init", b"--flag=a b", b""]),
        (23, [b"/sbin/init", b"--flag=a b", b""]),
        (22, [b"/sbin/init", b"--flag=a b"]),
        (21, [b"/sbin/init", b"--flag=a "]),
        (12, [b"/sbin/init", b""]),
        (11, [b"/sbin/init"]),
        (5, [b"/sbi"]),
        (1, [b""]),
    ],
)
def test_argv_is_at_most_nchr_bytes_with_its_nuls(nchr: int, strings: list[bytes], kd: Kvm) -> None:
    assert kvm_getargv(kd, record(kd, 1), nchr) == strings
    assert kvm_getargv2(kd, one(kd, 1), nchr) == strings


def test_environment(kd: Kvm) -> None:
    assert kvm_getenvv(kd, record(kd, 1)) == [b"HOME=/", b"TERM=linux"]
    assert kvm_getenvv2(kd, one(kd, 1), 7) == [b"HOME=/"]
    assert kvm_getenvv2(kd, one(kd, 40)) == []


@pytest.mark.parametrize("pid", [2, 42])
def test_kernel_threads_and_zombies_have_no_argv(pid: int, kd: Kvm) -> None:
    assert kvm_getargv(kd, record(kd, pid)) is None
    assert kvm_getenvv2(kd, one(kd, pid)) is None
    assert kvm_geterr(kd) == f"process {pid} has none: it is a kernel thread or has exited"


def test_argv_that_is_not_in_the_image(kd: Kvm) -> None:
    assert kvm_getargv(kd, record(kd, 50)) is None
    assert "excluded by the dump level" in kvm_geterr(kd)


# kvm_getloadavg(3), kvm_getfiles(3)


@pytest.mark.parametrize(
    ("nelem", "values"), [(3, [0.5, 1.25, 12.004]), (1, [0.5]), (5, [0.5, 1.25, 12.004]), (0, []), (-1, [])]
)
def test_load_average(nelem: int, values: list[float], kd: Kvm) -> None:
    load: list[float] = []
    assert kvm_getloadavg(kd, load, nelem) == len(values)
    assert load == values


def test_load_average_fills_a_list_from_its_start(kd: Kvm) -> None:
    load = [9.0, 9.0, 9.0]
    assert kvm_getloadavg(kd, load, 2) == 2
    assert load == [0.5, 1.25, 9.0]


def test_load_average_that_cannot_be_read(little: Little, kd: Kvm) -> None:
    little.system.broken = {"load"}
    assert kvm_getloadavg(kd, [], 3) == -1
    assert "leads nowhere" in kvm_geterr(kd)


def test_files_once_each(kd: Kvm) -> None:
    files = kvm_getfiles(kd, KERN_FILE_BYFILE)
    assert files is not None
    assert [file.ki_fileaddr - TEXT for file in files] == [0x700, 0x708, 0x710, 0x718, 0x720]
    assert {(file.ki_pid, file.ki_fd) for file in files} == {(None, None)}
    assert [(file.ki_ftype, file.ki_vtype) for file in files] == [(1, 4), (1, 1), (2, 0), (3, 0), (5, 0)]


def test_files_by_descriptor(kd: Kvm) -> None:
    files = kvm_getfiles(kd, KERN_FILE_BYPID, 40)
    assert files is not None
    assert [(file.ki_pid, file.ki_fd, file.ki_path) for file in files] == [
        (40, 0, "/dev/null"),
        (40, 3, "socket:[77]"),
        (40, 4, "pipe:[78]"),
        (40, 5, None),
    ]
    assert (files[0].ki_flag, files[0].ki_fileid) == (2, 4)
    everything = kvm_getfiles(kd, KERN_FILE_BYPID, -1)
    assert everything is not None
    assert len(everything) == 6
    assert kvm_getfiles(kd, KERN_FILE_BYPID, 77) == []
    assert kvm_getfiles(kd, 3) is None
    assert "no file filter 3" in kvm_geterr(kd)


# The face that raises


def test_the_pythonic_face(little: Little) -> None:
    with kvm_dbg.open(little.image, writable=True) as kvm:
        assert [process.pid for process in kvm.processes()] == [1, 2, 40, 41, 42, 50]
        assert kvm.process(40).uid == 1000
        assert kvm.arguments(kvm.process(1)) == [b"/sbin/init", b"--flag=a b", b""]
        assert kvm.read(DATA, 6) == b"Little"
        assert kvm.read(USER, 11, pid=1) == USER_BYTES[:11]
        assert kvm.nlist(["banner", "nowhere"])["banner"].address == DATA
        assert kvm.load_average().one == 0.5
        assert len(list(kvm.log())) == 3
        assert [module.name for module in kvm.modules()] == ["ext9", "core9"]
        assert kvm.summary().release == "1.0-little"
        kvm.write(DATA, b"Big")
        assert kvm.read(DATA, 6) == b"Bigtle"
        with pytest.raises(NotMappedError):
            kvm.read(0x1000, 4)
        with pytest.raises(CommandError, match="no process with PID 77"):
            kvm.process(77)
    with pytest.raises(CommandError, match="closed"):
        list(kvm.processes())


def test_the_pythonic_face_yields_what_it_finds_before_it_raises(little: Little) -> None:
    little.system.broken = {"processes"}
    found = []
    with kvm_dbg.open(little.image) as kvm:
        processes = kvm.processes()
        found += [next(processes).pid for _ in range(6)]
        with pytest.raises(CorruptError):
            next(processes)
    assert found == [1, 2, 40, 41, 42, 50]
