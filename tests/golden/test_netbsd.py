"""A real crash dump of NetBSD/amd64, compared with what its own tools and the genuine libkvm said of it.

The files with "-dead" are their answers on this very dump, those with "-live" on the running system some 3 s before.
Where the genuine libkvm is wrong on a dead kernel (each case says why), the live answers are the truth.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvm_dbg.errors import CorruptError, KernelMismatchError, ReadError, UnsupportedError
from kvm_dbg.kernel import identify_kernels, system_of
from kvm_dbg.kernel.base import Process
from kvm_dbg.kernel.netbsd.thread import STRIDE
from kvm_dbg.kernel.write import write_memory
from kvm_dbg.kvm.constant import (
    KERN_PROC_GID,
    KERN_PROC_PID,
    KERN_PROC_RGID,
    KERN_PROC_RUID,
    KERN_PROC_SESSION,
)
from kvm_dbg.kvm.descriptor import Kvm
from kvm_dbg.kvm.fill import fill_lwp, fill_proc2
from kvm_dbg.rsp.target import Target
from tests.golden.netbsd import Dump

PAGE = 4096
# A user's processes that slept in the system call that they are named after, sys/kern/*.c
SLEEPERS = {19: "pipe_read", 12: "sel_do_scan", 11: "nanosleep1", 2: "do_sys_wait", 9: "sigsuspend1"}
ZEROED = ("main", "ktextstart")  # the shared dump has no text of the kernel


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dump]:
    found = Dump(tmp_path_factory.mktemp("netbsd"))
    yield found
    found.kernel.image.close()


@pytest.fixture(scope="module")
def processes(dump: Dump) -> dict[int, Process]:
    return {process.pid: process for process in system_of(dump.kernel).for_each_process(dump.kernel)}


def number(text: str) -> int:
    """Return a field's number; signal sets are four words of 32 bits."""
    if text.count(":") == 3:
        return sum(int(word, 16) << 32 * place for place, word in enumerate(text.split(":")))
    return int(text, 0)


PROC2 = (
    "p_paddr", "p_addr", "p_fd", "p_cwdi", "p_stats", "p_limit", "p_vmspace", "p_sigacts", "p_sess", "p_exitsig",
    "p_sid", "p__pgid", "p_uid", "p_ruid", "p_svuid", "p_gid", "p_rgid", "p_svgid", "p_ngroups", "p_jobc", "p_tdev",
    "p_estcpu", "p_pctcpu", "p_swtime", "p_slptime", "p_uticks", "p_sticks", "p_iticks", "p_tracep", "p_traceflag",
    "p_siglist", "p_sigignore", "p_sigcatch", "p_stat", "p_xstat", "p_acflag", "p_nlwps", "p_realstat",
)  # fmt: skip
OF_LIVING = (
    "p_priority", "p_vm_tsize", "p_vm_dsize", "p_vm_ssize", "p_vm_vsize", "p_ustart_sec", "p_ustart_usec", "p_wchan",
)  # fmt: skip
# Of several LWPs the genuine libkvm takes these from the first in its list, the kernel, as we do, from the most alive.
OF_ONE_LWP = {"p_addr", "p_wchan", "p_slptime", "p_swtime", "p_priority", "p_stat"}


def test_processes_are_those_of_libkvm(dump: Dump, processes: dict[int, Process]) -> None:
    expected = {int(line["p_pid"]): line for line in dump.lines("libkvm-dead.txt", "PROC2")}
    assert sorted(processes) == sorted(expected)
    wrong = []
    for pid, line in expected.items():
        if pid == 0:
            continue  # libkvm leaves its last record stale
        record = fill_proc2(processes[pid], PAGE)
        dead = processes[pid].state == "Z"
        names = set(PROC2) | (set() if dead else set(OF_LIVING))
        if record.p_nlwps != 1:
            names -= OF_ONE_LWP
        for name in sorted(names):
            found, want = getattr(record, name), number(line[name])
            if name == "p_sess" and found is None:
                found = 0
            if found != want:
                wrong.append((pid, name, found, want))
        assert record.p_comm == line["p_comm"].strip('"')
        assert [str(group) for group in record.p_groups or ()] == [word for word in line["p_groups"].split(",") if word]
        if record.p_wchan:  # else libkvm shows what the last one before waited for
            assert record.p_wmesg == line["p_wmesg"].strip('"')
    assert wrong == []


def test_what_libkvm_has_wrong_is_that_of_the_running_system(dump: Dump, processes: dict[int, Process]) -> None:
    """Parents (libkvm: 0), logins (its stack), sessions' foreground groups (of the process before), pid 0 (stale)."""
    compared = 0
    for line in dump.lines("libkvm-live.txt", "PROC2"):
        pid = int(line["p_pid"])
        if pid not in processes:
            continue  # what asked
        compared += 1
        record = fill_proc2(processes[pid], PAGE)
        assert record.p_ppid == int(line["p_ppid"]), pid
        assert record.p_comm == line["p_comm"].strip('"')
        assert record.p_login == (
            "root" if pid == 1 else line["p_login"].strip('"')
        )  # init logs in before it goes down
        if record.p_tdev != 0xFFFFFFFF:
            assert record.p_tpgid == int(line["p_tpgid"]), pid
        assert (record.p_sid, record.p__pgid) == (int(line["p_sid"]), int(line["p__pgid"]))
        assert record.p_vm_tsize is None or record.p_vm_tsize == int(line["p_vm_tsize"])
        if processes[pid].state != "Z":
            assert record.p_uticks is not None
            assert record.p_uticks >= int(line["p_uticks"])
            assert record.p_ustart_usec == int(line["p_ustart_usec"])
    assert compared == len(processes) - 1  # all but reboot


def test_filters_keep_what_the_running_system_says(dump: Dump) -> None:
    """The genuine libkvm returns everything for sessions and groups on a dead kernel, and nothing true for PID 0."""
    kvm = Kvm(dump.kernel)
    expected = {int(line["p_pid"]): line for line in dump.lines("libkvm-live.txt", "PROC2")}
    for op, name, arguments in (
        (KERN_PROC_SESSION, "p_sid", (1, 2, 17)),
        (KERN_PROC_GID, "p_gid", (0, 1001)),
        (KERN_PROC_RGID, "p_rgid", (0, 1001, 1002)),
        (KERN_PROC_RUID, "p_ruid", (0, 1001, 1002)),
        (KERN_PROC_PID, "p_pid", (0, 13)),
    ):
        for argument in arguments:
            found = {process.pid for process in kvm.processes(op, argument)} - {99}  # reboot came later
            assert found == {
                pid for pid, line in expected.items() if int(line[name]) == argument and line["p_comm"] != '"kvmtool"'
            }


def test_lwps_are_those_of_libkvm(dump: Dump) -> None:
    lwps = {(lwp.pid, lwp.lid): lwp for lwp in system_of(dump.kernel).for_each_lwp(dump.kernel)}
    lines = dump.lines("libkvm-dead.txt", "LWP")
    assert len(lines) > 20
    for line in lines:
        lwp = lwps[int(line["pid"]), int(line["l_lid"])]
        record = fill_lwp(lwp)
        for name in ("l_laddr", "l_addr", "l_priority", "l_stat", "l_wchan", "l_swtime", "l_slptime"):
            assert getattr(record, name) == number(line[name]), (line["pid"], name)
        if lwp.wait_channel is not None:
            assert lwp.wait_channel[:8] == line["l_wmesg"].strip('"')


def test_lwps_names_are_those_of_the_running_system(dump: Dump) -> None:
    """The genuine libkvm fills in neither names nor owners on a dead kernel."""
    lwps = {(lwp.pid, lwp.lid): lwp for lwp in system_of(dump.kernel).for_each_lwp(dump.kernel)}
    compared = 0
    for line in dump.lines("libkvm-live.txt", "LWP"):
        lwp = lwps.get((int(line["l_pid"]), int(line["l_lid"])))
        if lwp is not None and line["l_name"] != '""':
            compared += 1
            assert lwp.name == line["l_name"].strip('"')
            assert lwp.address == number(line["l_laddr"])
    assert compared >= 30


def test_ps_shows_the_same(dump: Dump, processes: dict[int, Process]) -> None:
    """All columns that ps fills rightly; it lacks L_SINTR on a dead kernel, and calls every sleep D."""
    lines = (dump.truth / "ps-dead.txt").read_text().splitlines()[1:]
    assert len(lines) == len(processes)
    for line in lines:
        pid, _, pgid, _, jobc, uid, ruid, gid, rgid, tdev, stat, _, nlwp, nice, pri, vsz = line.split()[:16]
        if pid == "0":
            continue  # stale
        process = processes[int(pid)]
        assert (process.pgid, process.uid, process.ruid) == (int(pgid), int(uid), int(ruid))
        assert (process.gid, process.rgid, process.nice) == (int(gid), int(rgid), int(nice))
        assert (process.threads, process.priority, process.kinfo["p_jobc"]) == (int(nlwp), int(pri), int(jobc))
        assert (process.vsize or 0) >> 10 == int(vsz), pid
        device = process.tty_device
        assert ("4095/1048575" if device is None else f"{device >> 8}/{device & 0xFF}") == tdev
        assert process.state == {"D": "S"}.get(stat[0], stat[0])
        assert process.flags.rstrip("+") == stat[1:]
        command, message = line.split()[16:18]
        assert process.command == command
        assert process.threads > 1 or process.kinfo["p_wmesg"] == ("" if message == "-" else message)


def test_arguments_of_a_sparse_dump_are_not_there(dump: Dump, processes: dict[int, Process]) -> None:
    """And never those of the running system, which kvm_getargv2 of the genuine libkvm returns."""
    system = system_of(dump.kernel)
    for process in processes.values():
        if process.pid == 0 or process.state == "Z":
            assert system.read_arguments(dump.kernel, process) is None
            continue
        with pytest.raises(ReadError, match="was excluded"):
            system.read_arguments(dump.kernel, process)
        with pytest.raises(ReadError, match="was excluded"):
            system.read_environment(dump.kernel, process)


def test_load_averages_are_those_of_libkvm(dump: Dump) -> None:
    found = re.findall(
        r"^LOADAVG nelem=3 ret=3 (\S+) (\S+) (\S+)", (dump.truth / "libkvm-dead.txt").read_text("latin-1"), re.M
    )
    load = system_of(dump.kernel).read_load_average(dump.kernel)
    assert [(load.one, load.five, load.fifteen)] == [tuple(map(float, words)) for words in found]


def test_symbols_and_memory_are_those_of_libkvm(dump: Dump) -> None:
    text = (dump.truth / "libkvm-dead.txt").read_text("latin-1")
    symbols = re.findall(r"^SYM _(\w+) value=(0x[1-9a-f][0-9a-f]*) ", text, re.M)
    assert len(symbols) == 28
    for name, value in symbols:
        assert dump.kernel.symbols.address(name) == int(value, 16)
    reads = re.findall(r"^READ _?(\w+) addr=(\w+) n=(\d+) ret=(\d+) hex=(\w+)$", text, re.M)
    assert len(reads) > 25
    for name, address, _, size, data in reads:
        expected = bytes.fromhex(data)
        if name not in ZEROED:
            assert len(dump.kernel.read(int(address, 16), int(size))) == int(size)
            assert dump.kernel.read(int(address, 16), len(expected)) == expected, name
    refused = re.findall(r"^READ (?:null|user|noncanon|top) addr=(\w+) n=\d+ ret=-1", text, re.M)
    assert len(refused) == 4
    for address in refused:
        with pytest.raises(ReadError):
            dump.kernel.read(int(address, 16), 8)


def test_the_log_is_that_of_dmesg(dump: Dump) -> None:
    records = system_of(dump.kernel).for_each_log_record(dump.kernel)
    text = "".join(f"{record.text}\n" for record in records)
    expected = (dump.truth / "dmesg-dead.txt").read_text()
    assert text.strip("\n") == expected.strip("\n")


def test_the_system_is_that_of_sysctl(dump: Dump) -> None:
    text = (dump.truth / "sysctl-live.txt").read_text()
    summary = system_of(dump.kernel).read_summary(dump.kernel)
    assert f"kern.ostype = {summary.system}\n" in text
    assert f"kern.osrelease = {summary.release}\n" in text
    assert f"kern.version = {summary.version}\n" in text
    assert summary.cpus == 2
    assert summary.memory == 0x7F7F * PAGE  # physmem, as libkvm reads it
    assert summary.panic_message is None  # it was `reboot -d`
    (identity,) = identify_kernels(dump.kernel.image)
    assert (identity.version, identity.verified) == (summary.version, True)


def test_stacks_end_where_lwps_were_made_or_came_from(dump: Dump) -> None:
    system = system_of(dump.kernel)
    asleep: dict[int, list[str | None]] = {}
    for thread in system.for_each_thread(dump.kernel):
        frames = list(system.unwind(dump.kernel, thread))
        if not frames:
            assert thread.why
            continue
        last = frames[-1]
        assert last.stack == "USER" or last.name in ("lwp_trampoline", "longmode_hi"), (thread.label, last)
        assert not any(frame.why for frame in frames)
        asleep[thread.tid or 0] = [frame.name for frame in frames]
    for pid, name in SLEEPERS.items():
        assert name in asleep[pid]
    assert asleep[99][:3] == ["cpu_reboot", "sys_reboot", "syscall"]
    assert next(iter(asleep)) == 99, "the LWP that dumped comes first"


def test_threads_have_numbers_of_their_own(dump: Dump) -> None:
    target = Target(dump.kernel, system_of(dump.kernel))
    counts = [int(line["p_nlwps"]) for line in dump.lines("libkvm-live.txt", "PROC2")]
    assert len(target.threads) == sum(counts)  # reboot, in the place of what asked
    assert [target.threads[13 + number * STRIDE].name for number in range(5)] == ["zoo", "wk0", "wk1", "wk2", "wk3"]
    assert target.threads[2 * STRIDE].label == "0.2"
    assert target.find_tid(13) == 13


def test_mappings_add_up_to_their_map(dump: Dump, processes: dict[int, Process]) -> None:
    system = system_of(dump.kernel)
    for process in processes.values():
        size = sum(one.end - one.start for one in system.for_each_mapping(dump.kernel, process.pid))
        assert size == (process.kinfo.get("p_vm_vsize", 0) * PAGE if process.pid and process.state != "Z" else 0)


def test_the_image_agrees_with_itself(dump: Dump) -> None:
    checks = list(system_of(dump.kernel).for_each_check(dump.kernel))
    assert {check.command for check in checks} >= {"procs", "lwps", "log", "loadavg", "sys", "bt"}
    assert [check for check in checks if check.grade != "ok"] == []


def test_a_list_that_loops_is_told_after_what_was_found(dump: Dump) -> None:
    kernel = dump.open()
    space = system_of(kernel).kernel_space(kernel)
    third = [process.address for process in system_of(kernel).for_each_process(kernel)][-3]
    write_memory(kernel, space, third, struct.pack("<Q", third))  # p_list.le_next is the first member
    found: list[int] = []
    with pytest.raises(CorruptError, match="loops"):
        found.extend(process.pid for process in system_of(kernel).for_each_process(kernel))
    assert [check.grade for check in system_of(kernel).for_each_check(kernel, "procs")].count("suspect") >= 1


def test_a_name_list_of_another_kernel_is_refused(dump: Dump, tmp_path: Path) -> None:
    data = bytearray(dump.names.read_bytes())
    address = struct.pack("<Q", dump.kernel.symbols.address("version"))
    assert data.count(address) >= 1
    other = tmp_path / "netbsd.1"
    other.write_bytes(bytes(data).replace(address, struct.pack("<Q", dump.kernel.symbols.address("ostype") + 8)))
    with pytest.raises(KernelMismatchError, match="version"):
        dump.open(vmlinux=str(other))
    forced = dump.open(vmlinux=str(other), force=True)
    assert any("used by force" in quirk for quirk in getattr(forced, "quirks", ()))


def test_the_name_list_is_found_beside_the_dump(dump: Dump) -> None:
    assert getattr(dump.open(vmlinux=None), "vmlinux_path", None) == str(dump.names)


def test_without_types_it_is_said_what_helps(dump: Dump) -> None:
    kernel = dump.open(layout=None)
    system = system_of(kernel)
    with pytest.raises(UnsupportedError, match="--layout FILE"):
        list(system.for_each_process(kernel))
    assert system.read_load_average(kernel).one == 0.52099609375
    assert len(list(system.for_each_log_record(kernel))) > 50
    assert system.read_summary(kernel).release == "6.99.16"
