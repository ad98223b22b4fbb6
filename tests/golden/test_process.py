"""Processes and threads equal the guest's own /proc."""

from __future__ import annotations

import math

import pytest

from kvm_dbg.errors import NotInImageError
from kvm_dbg.kernel import system_of
from kvm_dbg.kernel.base import Process
from kvm_dbg.kernel.layout import decode_text
from kvm_dbg.kernel.linux.argument import split_strings
from tests.golden.subject import TRANSIENT, Subject
from tests.lab import ProcessTruth


@pytest.fixture
def subject(either: Subject) -> Subject:
    """Everything here is asked of the image alone as well."""
    return either


TICK = 100  # clock ticks in a second, as /proc has them


def processes(subject: Subject) -> dict[int, Process]:
    return {process.pid: process for process in system_of(subject.kernel).for_each_process(subject.kernel)}


def test_all_processes_are_there_and_no_others(subject: Subject) -> None:
    ours = processes(subject)
    truth = subject.truth.processes
    assert list(ours) == sorted(ours)
    lost = {pid for pid in truth if pid not in ours and truth[pid].comm not in TRANSIENT}
    new = {pid for pid in ours if pid not in truth}
    assert all(truth[pid].comm.startswith(b"kworker/") for pid in lost), [truth[pid] for pid in lost]
    assert all(ours[pid].command.startswith("kworker/") for pid in new), [ours[pid] for pid in new]
    assert len(ours) > 100


def test_processes_equal_proc(subject: Subject) -> None:
    ours = processes(subject)
    checked = 0
    for truth in subject.settled():
        process = ours[truth.pid]
        assert not process.unread
        assert identity(process) == identity_of(truth)
        assert process.vsize == truth.size
        assert process.user_time is not None
        assert process.system_time is not None
        assert (math.floor(process.user_time * TICK), math.floor(process.system_time * TICK)) == (
            truth.utime,
            truth.stime,
        ), truth
        checked += 1
    assert checked > 40


def identity(process: Process) -> tuple[object, ...]:
    return (
        process.pid,
        process.command,
        process.state,
        process.ppid,
        process.pgid,
        process.sid,
        process.tty_device or 0,
        -1 if process.tty is None else process.tty_pgid,
        process.priority,
        process.nice,
        process.threads,
        process.cpu,
        (process.ruid, process.uid, process.svuid),
        (process.rgid, process.gid, process.svgid),
        process.groups,
        process.kernel_thread,
    )


def identity_of(truth: ProcessTruth) -> tuple[object, ...]:
    return (
        truth.pid,
        decode_text(truth.comm),
        truth.state,
        truth.ppid,
        truth.pgrp,
        truth.session,
        truth.tty,
        truth.foreground,
        truth.priority,
        truth.nice,
        truth.threads,
        truth.cpu,
        truth.uids[:3],
        truth.gids[:3],
        truth.groups,
        truth.kernel_thread,
    )


def test_start_times_equal_proc(subject: Subject) -> None:
    ours = processes(subject)
    summary = system_of(subject.kernel).read_summary(subject.kernel)
    assert summary.date is not None
    assert summary.uptime is not None
    boot = summary.date - summary.uptime
    for truth in subject.truth.processes.values():
        if truth.pid in ours and not decode_text(truth.comm).startswith("kworker/"):
            start = ours[truth.pid].start_time
            assert start is not None
            assert -0.001 <= (start - boot) * TICK - truth.start < 1.001, truth


def test_resident_memory_equals_proc(subject: Subject) -> None:
    """Since v6.2 /proc shows a total that lags behind by up to a batch of max(32, 2 * CPUs) pages per CPU and kind."""
    ours = processes(subject)
    exact = not has_per_cpu_counters(subject)
    cpus = subject.dump.manifest.get("cpus", 4)
    lag = 0 if exact else 3 * cpus * max(32, 2 * cpus)
    for truth in subject.settled():
        rss = ours[truth.pid].rss
        assert rss is not None
        assert abs(rss // 4096 - truth.rss) <= lag, truth


def has_per_cpu_counters(subject: Subject) -> bool:
    return subject.kernel.types.find_type("struct mm_rss_stat") is None


def test_kernel_threads_equal_proc(subject: Subject) -> None:
    ours = processes(subject)
    checked = 0
    for truth in subject.truth.processes.values():
        if not truth.kernel_thread or truth.comm.startswith(b"kworker/"):
            continue
        process = ours[truth.pid]
        assert (process.command, process.ppid, process.kernel_thread) == (decode_text(truth.comm), truth.ppid, True)
        assert (process.nice, process.priority, process.uid) == (truth.nice, truth.priority, truth.uids[1])
        assert process.state in "SIRDP"
        assert (process.rss, process.vsize, process.tty) == (0, 0, None)
        checked += 1
    assert checked > 20


def test_arguments_and_environments_equal_proc(subject: Subject) -> None:
    system, kernel = system_of(subject.kernel), subject.kernel
    ours = processes(subject)
    checked = 0
    excluded = 0
    for truth in subject.truth.processes.values():
        if truth.pid not in ours or (truth.kernel_thread and truth.comm.startswith(b"kworker/")):
            continue
        process = ours[truth.pid]
        try:
            arguments = system.read_arguments(kernel, process)
            environment = system.read_environment(kernel, process)
        except NotInImageError:
            assert subject.dump.files[subject.kind].level, "only makedumpfile leaves out pages of processes"
            excluded += 1
            continue
        if truth.kernel_thread or truth.state == "Z":
            assert (arguments, environment) == (None, None) or truth.threads > 1
        else:
            assert arguments == split_strings(truth.arguments)
            assert environment == split_strings(truth.environment)
        checked += 1
    assert checked > 60
    assert not excluded or subject.dump.files[subject.kind].level


def test_threads_equal_proc(subject: Subject) -> None:
    system, kernel = system_of(subject.kernel), subject.kernel
    ours = {lwp.lid: lwp for lwp in system.for_each_lwp(kernel)}
    checked = 0
    for truth in subject.settled():
        for thread in truth.lwps:
            lwp = ours[thread.tid]
            assert (lwp.pid, lwp.name, lwp.state) == (truth.pid, decode_text(thread.comm), thread.state)
            assert not lwp.unread
            checked += 1
        assert [lwp.lid for lwp in system.for_each_lwp(kernel, truth.pid)] == [thread.tid for thread in truth.lwps]
    assert checked > 80


def test_busy_process_runs_on_its_cpu(subject: Subject) -> None:
    system, kernel = system_of(subject.kernel), subject.kernel
    busy = [lwp for lwp in system.for_each_lwp(kernel) if lwp.name == "busy"]
    assert [(lwp.state, lwp.cpu) for lwp in busy] == [("R", 0)]


def test_wait_channels_equal_proc(subject: Subject) -> None:
    """Kernels before v5.16 cannot unwind here and say "0" of every task; running and exited ones wait nowhere."""
    system, kernel = system_of(subject.kernel), subject.kernel
    ours = {lwp.lid: lwp for lwp in system.for_each_lwp(kernel)}
    names = set()
    for truth in subject.settled():
        for thread in truth.lwps:
            if thread.wchan != b"0":
                assert ours[thread.tid].wait_channel == thread.wchan.decode(), truth
            elif thread.state in "RZ":
                assert ours[thread.tid].wait_channel is None
            names.add(ours[thread.tid].wait_channel)
    assert {"do_signal_stop", "do_epoll_wait", "kernel_clone"} <= names or "ep_poll" in names
