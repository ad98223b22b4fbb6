"""Every line of what NetBSD's own tools and libkvm said of the real dump: which test compares it, or why none can.

ACCOUNT is that list, as data; a line that it does not know, a rule without lines and a test that is not there are
failures. What no other test compares is compared here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from kvm_dbg.kernel import system_of
from kvm_dbg.kernel.base import Process
from kvm_dbg.kernel.bsd.queue import for_each_entry
from kvm_dbg.kernel.layout import read_number
from kvm_dbg.kvm import (
    Kvm,
    kvm_close,
    kvm_getargv,
    kvm_getenvv,
    kvm_geterr,
    kvm_getfiles,
    kvm_getloadavg,
    kvm_getlwps,
    kvm_getproc2,
    kvm_getprocs,
)
from kvm_dbg.kvm import constant as names
from kvm_dbg.kvm.fill import fill_proc2
from tests.golden.netbsd import Dump
from tests.golden.test_netbsd import OF_LIVING, PAGE, PROC2, number

NOT_SHOWN = "a setting of the running system or of its C library that neither libkvm nor a command shows"
LATER = "of the running system 3 s before the dump: it went on"
OF_RUNNING = "libkvm asks the running system, which is another boot"


class Rule(NamedTuple):
    """Lines of one file that match a pattern: compared by a test ("file::function"), or not true of the dump."""

    file: str
    pattern: str
    test: str = ""
    why: str = ""


ACCOUNT = (
    Rule("err1.txt", "OPEN ", "test_netbsd_kvm.py::test_a_missing_core"),
    Rule("err3.txt", ".*GETPROC2 ", "test_netbsd_truth.py::test_without_symbols_processes_are_not_found"),
    Rule("err3.txt", "", "test_netbsd_kvm.py::test_a_kernel_file_without_symbols"),
    Rule("fstat-dead.txt", "USER ", why="the heading"),
    Rule("fstat-dead.txt", "", "test_netbsd_tools.py::test_files_are_those_of_fstat"),
    Rule("vmstat-dead.txt", r" *\d+ (total faults taken|traps|CPU context switches|software interrupts)$",
         "test_netbsd_tools.py::test_what_vmstat_has_of_one_cpu_is_that_cpus"),
    Rule("vmstat-dead.txt", r" {10}", "test_netbsd_tools.py::test_shares_are_those_of_vmstat"),
    Rule("vmstat-dead.txt", r" *\d+ ", "test_netbsd_tools.py::test_counters_are_those_of_vmstat"),
    Rule("vmstat-dead.txt", "$", why="an empty line"),
    Rule("dmesg-dead.txt", "", "test_netbsd.py::test_the_log_is_that_of_dmesg"),
    Rule("ps-dead.txt", "PID ", why="the heading"),
    Rule("ps-dead.txt", "  0 ", why="libkvm's last record is stale: all zeros; compared with ps-live.txt"),
    Rule("ps-dead.txt", "", "test_netbsd.py::test_ps_shows_the_same"),
    Rule("ps-live.txt", "PID ", why="the heading"),
    Rule("ps-live.txt", r" *91 ", why="ps itself, which had gone"),
    Rule("ps-live.txt", "", "test_netbsd_truth.py::test_ps_of_the_running_system_shows_the_same"),
    Rule("libkvm-dead.txt", "(OPEN|NLIST|SYM|READ|WRITE) ", "test_netbsd_kvm.py::test_names_and_reads"),
    Rule("libkvm-dead.txt", "LOADAVG ", "test_netbsd_truth.py::test_load_averages_of_every_number"),
    Rule("libkvm-dead.txt", "OP[12] (SESSION|GID|RGID|BAD) ",
         why="a filter that libkvm ignores; compared with libkvm-live.txt, see docs/libkvm-differences.md"),
    Rule("libkvm-dead.txt", "OP2 (PID|PGRP) arg=0 ", why="a stale record in place of process 0; OP1 has it right"),
    Rule("libkvm-dead.txt", "OP[12] TTY_NODEV ", why="libkvm compares the number only; the running system finds two"),
    Rule("libkvm-dead.txt", "OP[12] ", "test_netbsd_truth.py::test_filters_find_what_libkvm_finds"),
    Rule("libkvm-dead.txt", "PROC1 ", "test_netbsd_truth.py::test_kinfo_proc_is_that_of_libkvm"),
    Rule("libkvm-dead.txt", "PROC2 p_pid=0 ", why="a stale record"),
    Rule("libkvm-dead.txt", "PROC2 ", "test_netbsd.py::test_processes_are_those_of_libkvm"),
    Rule("libkvm-dead.txt", "LWPS pid=0 ", why="libkvm fails on an LWP that was never on a queue; there are 27"),
    Rule("libkvm-dead.txt", "LWPS ", "test_netbsd_truth.py::test_lwps_are_as_many"),
    Rule("libkvm-dead.txt", "LWP ", "test_netbsd.py::test_lwps_are_those_of_libkvm"),
    Rule("libkvm-dead.txt", "(ARGV|ENVV)2 ", why=OF_RUNNING),
    Rule("libkvm-dead.txt", "ARGVERR ",
         why="libkvm takes a place in memory for one in the file; here it is said what the dump lacks"),
    Rule("libkvm-dead.txt", "(ARGV8?|ENVV) ", "test_netbsd_truth.py::test_arguments_are_not_in_a_sparse_dump"),
    Rule("libkvm-dead.txt", "GETFILES ", "test_netbsd_truth.py::test_open_files_are_those_of_libkvm"),
    Rule("libkvm-dead.txt", "CLOSE ", "test_netbsd_truth.py::test_closing"),
    Rule("libkvm-live.txt", "OPEN ", why="the running system"),
    Rule("libkvm-live.txt", "READ ", why=LATER + "; of the dump libkvm-dead.txt has the same"),
    Rule("libkvm-live.txt", "(NLIST|SYM) ", "test_netbsd_truth.py::test_symbols_are_those_of_the_running_system"),
    Rule("libkvm-live.txt", "LOADAVG ", "test_netbsd_truth.py::test_load_averages_of_every_number"),
    Rule("libkvm-live.txt", "OP2(ERR)? BAD ", "test_netbsd_truth.py::test_an_unknown_filter_is_an_error"),
    Rule("libkvm-live.txt", "OP2 ", "test_netbsd_truth.py::test_filters_find_what_the_running_system_found"),
    Rule("libkvm-live.txt", "(PROC2 p_pid=|LWPS? pid=)91 ", why="what asked, which had gone"),
    Rule("libkvm-live.txt", "PROC2 ", "test_netbsd.py::test_what_libkvm_has_wrong_is_that_of_the_running_system"),
    Rule("libkvm-live.txt", "LWPS pid=(21|22) ", why="the running system has no LWPs of zombies, the dump does"),
    Rule("libkvm-live.txt", "LWPS ", "test_netbsd_truth.py::test_lwps_are_as_many"),
    Rule("libkvm-live.txt", "LWP ", "test_netbsd.py::test_lwps_names_are_those_of_the_running_system"),
    Rule("libkvm-live.txt", "(ARGV|ENVV)2 ", why="a sparse dump has no memory of processes"),
    Rule("libkvm-live.txt", "CLOSE ", "test_netbsd_truth.py::test_closing"),
    Rule("swap-live.txt", "Device ", why="the heading"),
    Rule("swap-live.txt", "/dev/wd0b ", "test_netbsd_truth.py::test_swap_is_that_of_swapctl"),
    Rule("sysctl-live.txt", r"kern\.(ostype|osrelease|version) =|\troot@vm",
         "test_netbsd.py::test_the_system_is_that_of_sysctl"),
    Rule("sysctl-live.txt", "$", why="an empty line"),
    Rule("sysctl-live.txt", "VARIABLE", "test_netbsd_truth.py::test_variables_are_those_of_sysctl"),
    Rule("sysctl-live.txt",
         r"kern\.(cp_time|tkstat|hardclock_ticks|urandom|arandom|boothowto|uidinfo)|vm\.bufmem |hw\.ncpuonline",
         why=LATER + ", or it is another each time; by `reboot -d`, one CPU was stopped"),
    Rule("sysctl-live.txt", "", why=NOT_SHOWN),
)  # fmt: skip
VARIABLES = {  # sysctl's name -> the kernel's variable, and its bytes; sys/kern/init_sysctl.c and where each is kept
    "kern.maxvnodes": ("desiredvnodes", 4), "kern.maxproc": ("maxproc", 4), "kern.maxfiles": ("maxfiles", 4),
    "kern.securelevel": ("securelevel", 4), "kern.hostid": ("hostid", 8), "kern.fscale": ("fscale", 4),
    "kern.ccpu": ("ccpu", 4), "kern.rtc_offset": ("rtc_offset", 4), "kern.maxptys": ("maxptys", 4),
    "kern.forkfsleep": ("forkfsleep", 4), "kern.dump_on_panic": ("dumponpanic", 4), "kern.sbmax": ("sb_max", 8),
    "kern.logsigexit": ("kern_logsigexit", 4), "kern.pipe.maxbigpipes": ("maxbigpipes", 4),
    "kern.pipe.nbigpipes": ("nbigpipe", 4), "kern.somaxkva": ("somaxkva", 4), "kern.maxlwp": ("maxlwp", 4),
    "kern.root_partition": ("rootdev", 8), "kern.tty.qsize": ("tty_qsize", 4),
    "kern.mqueue.mq_open_max": ("mq_open_max", 4), "kern.module.autoload": ("module_autoload_on", 1),
    "kern.timecounter.timestepwarnings": ("timestepwarnings", 4), "vm.maxslp": ("maxslp", 4),
    "vm.user_va0_disable": ("user_va0_disable", 4), "vm.bufmem_lowater": ("bufmem_lowater", 8),
    "vm.bufmem_hiwater": ("bufmem_hiwater", 8), "vfs.generic.usermount": ("dovfsusermount", 4),
    "vfs.generic.magiclinks": ("vfs_magiclinks", 4), "vfs.sync.delay": ("syncdelay", 8),
    "vfs.sync.filedelay": ("filedelay", 8), "vfs.sync.dirdelay": ("dirdelay", 8),
    "vfs.sync.metadelay": ("metadelay", 8), "hw.ncpu": ("ncpu", 4),
}  # fmt: skip
OF_SUMMARY = (
    "hw.physmem",
    "hw.physmem64",
    "hw.pagesize",
    "hw.machine_arch",
    "kern.boottime",
    "kern.hostname",
    "vm.loadavg",
)
CLOCK = re.compile(r"kern\.clockrate: tick = (\d+), tickadj = (\d+), hz = (\d+), ")
OPS = {
    "ALL": names.KERN_PROC_ALL, "PID": names.KERN_PROC_PID, "PGRP": names.KERN_PROC_PGRP,
    "SESSION": names.KERN_PROC_SESSION, "TTY": names.KERN_PROC_TTY, "TTY_NODEV": names.KERN_PROC_TTY,
    "TTY_REVOKE": names.KERN_PROC_TTY, "UID": names.KERN_PROC_UID, "RUID": names.KERN_PROC_RUID,
    "GID": names.KERN_PROC_GID, "RGID": names.KERN_PROC_RGID,
}  # fmt: skip
UNFILLED = "libkvm does not fill it in on a dead kernel"
BETTER = "libkvm does not, or wrongly, on a dead kernel; compared with libkvm-live.txt"
FURTHER_FIELDS = ("p_usrpri", "p_eflag", "p_nice", "p_nrlwps", "p_vm_msize", "p_uvalid", "p_ustart_sec")
FIELDS = {  # of a process on a PROC2 line -> why that value is not true of the dump
    **dict.fromkeys(("p_forw", "p_back", "p_ru", "p_cpticks", "p_schedflags", "p_holdcnt", "p_sigmask"), UNFILLED),
    **dict.fromkeys(("p_ename", "p_cpuid", "p_uctime_sec", "p_uctime_usec", "p_vm_rssize"), UNFILLED),
    **dict.fromkeys(("p_rtime_sec", "p_rtime_usec", "p_uutime_sec", "p_uutime_usec"), UNFILLED),
    **dict.fromkeys(("p_ustime_sec", "p_ustime_usec"), UNFILLED),
    **dict.fromkeys(("p_ppid", "p_login", "p_flag", "p_realflag"), BETTER),
    "p_tpgid": "without a terminal, that of the process before; with one, compared with libkvm-live.txt",
    "p_tsess": "without a terminal, that of the process before; with one, compared here",
    "p_wmesg": "where nothing is waited for, the message of the process before; else compared by test_netbsd.py",
}
FIELDS |= {
    f"p_uru_{name}": UNFILLED
    for name in (
        *("maxrss", "ixrss", "idrss", "isrss", "minflt", "majflt", "nswap", "inblock", "oublock", "msgsnd", "msgrcv"),
        *("nsignals", "nvcsw", "nivcsw"),
    )
}
ELSEWHERE = {*PROC2, *OF_LIVING, "p_pid", "p_comm", "p_groups"}  # by test_netbsd.py


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dump]:
    found = Dump(tmp_path_factory.mktemp("netbsd"))
    yield found
    found.kernel.image.close()


@pytest.fixture(scope="module")
def kd(dump: Dump) -> Kvm:
    return Kvm(dump.kernel)


@pytest.fixture(scope="module")
def processes(dump: Dump) -> dict[int, Process]:
    return {process.pid: process for process in system_of(dump.kernel).for_each_process(dump.kernel)}


def lines_of(dump: Dump, name: str) -> list[str]:
    return (dump.truth / name).read_text("latin-1").splitlines()


def is_variable(line: str) -> bool:
    """Return whether a line of sysctl-live.txt is compared with a variable or with what `sys` shows."""
    name = re.split(r" = |: ", line)[0]
    return name in VARIABLES or name in OF_SUMMARY or CLOCK.match(line) is not None


def find_rule(name: str, line: str) -> Rule | None:
    for rule in ACCOUNT:
        if rule.file == name and (is_variable(line) if rule.pattern == "VARIABLE" else re.match(rule.pattern, line)):
            return rule
    return None


def test_every_line_is_accounted_for(dump: Dump) -> None:
    used = set()
    for path in sorted(dump.truth.iterdir()):
        for line in lines_of(dump, path.name):
            rule = find_rule(path.name, line)
            assert rule is not None, (path.name, line)
            assert bool(rule.test) != bool(rule.why)
            used.add(rule)
    assert [rule for rule in ACCOUNT if rule not in used and rule.test] == []
    for rule in ACCOUNT:
        if rule.test:
            file, _, function = rule.test.partition("::")
            assert f"\ndef {function}(" in Path(__file__).with_name(file).read_text(), rule


def test_load_averages_of_every_number(dump: Dump, kd: Kvm) -> None:
    """The running system, asked for 4 or 5, says it has given as many; the manual promises three at most."""
    for name in ("libkvm-dead.txt", "libkvm-live.txt"):
        found = [line.split() for line in lines_of(dump, name) if line.startswith("LOADAVG ")]
        assert len(found) == 6
        for _, wanted, returned, *averages in found:
            loads: list[float] = []
            count = kvm_getloadavg(kd, loads, int(wanted.removeprefix("nelem=")))
            assert count == min(int(returned.removeprefix("ret=")), 3)
            assert loads[:count] == [float(word) for word in averages[:count]]


def pids(line: str) -> tuple[str, int, list[int]]:
    """Return the filter of a line, its argument and the PIDs that it found."""
    word, argument, found = re.findall(r"^OP\d (\w+) arg=(-?\d+) ret=ok cnt=\d+ pids=(\S*)", line)[0]
    return word, int(argument), [int(pid) for pid in found.split(",") if pid]


def test_filters_find_what_libkvm_finds(dump: Dump, kd: Kvm) -> None:
    compared = 0
    for line in lines_of(dump, "libkvm-dead.txt"):
        rule = find_rule("libkvm-dead.txt", line)
        if rule is None or not rule.test.endswith("::test_filters_find_what_libkvm_finds"):
            continue
        word, argument, expected = pids(line)
        if line.startswith("OP1"):
            records = kvm_getprocs(kd, OPS[word], argument)
            found = None if records is None else [record.kp_proc.p_pid for record in records]
        else:
            both = kvm_getproc2(kd, OPS[word], argument)
            found = None if both is None else [record.p_pid for record in both]
            expected = sorted(set(expected) | ({0} if word in ("UID", "RUID") and argument == 0 else set()))  # stale
        assert found is not None, line
        assert sorted(found) == sorted(expected), line
        compared += 1
    assert compared == 26


def test_filters_find_what_the_running_system_found(dump: Dump, kd: Kvm) -> None:
    """But for what asked (91), in whose place is reboot (99)."""
    compared = 0
    for line in lines_of(dump, "libkvm-live.txt"):
        if line.startswith("OP2 ") and " BAD " not in line:
            word, argument, expected = pids(line)
            records = kvm_getproc2(kd, OPS[word], argument)
            assert records is not None
            assert sorted(record.p_pid for record in records) == sorted(99 if pid == 91 else pid for pid in expected), (
                line
            )
            compared += 1
    assert compared == 19


def test_an_unknown_filter_is_an_error(kd: Kvm) -> None:
    assert kvm_getproc2(kd, 999, 0) is None
    assert kvm_geterr(kd)


def test_kinfo_proc_is_that_of_libkvm(dump: Dump, kd: Kvm) -> None:
    """p_flag is what the running system says (see below); the rest of what is left out is stale, as told."""
    records = kvm_getprocs(kd)
    assert records is not None
    by_pid = {record.kp_proc.p_pid: record for record in records}
    lines = dump.lines("libkvm-dead.txt", "PROC1")
    assert len(lines) == len(by_pid) == 22
    for line in lines:
        proc, extra = by_pid[int(line["pid"])].kp_proc, by_pid[int(line["pid"])].kp_eproc
        found = {
            "stat": proc.p_stat, "nlwps": proc.p_nlwps, "paddr": extra.e_paddr, "sess": extra.e_sess,
            "pgid": extra.e_pgid, "sid": extra.e_sid, "jobc": extra.e_jobc, "tdev": extra.e_tdev,
            "ruid": extra.e_pcred.p_ruid, "svuid": extra.e_pcred.p_svuid, "rgid": extra.e_pcred.p_rgid,
            "svgid": extra.e_pcred.p_svgid, "ucr_uid": extra.e_ucred.cr_uid, "ucr_gid": extra.e_ucred.cr_gid,
            "ngroups": extra.e_ucred.cr_ngroups, "eflag": extra.e_flag,
        }  # fmt: skip
        assert found == {name: number(line[name]) for name in found}, line["pid"]
        assert proc.p_comm == line["comm"].strip('"')
        if extra.e_tdev != names.NODEV:  # else it is that of the process before
            assert extra.e_tpgid == int(line["tpgid"])
        if extra.e_wmesg:  # else it is that of the process before
            assert extra.e_wmesg == line["wmesg"].strip('"') or proc.p_nlwps != 1


FROM_LIVE = ("p_flag", "p_realflag", "p_nice", "p_vm_msize")
"""What libkvm leaves as it is in struct proc, or does not fill in, on a dead kernel; of processes that slept on."""


def test_every_field_of_a_process_is_compared_or_has_its_reason(dump: Dump, processes: dict[int, Process]) -> None:
    lines = [line for line in dump.lines("libkvm-dead.txt", "PROC2") if line["p_pid"] != "0"]
    assert set(lines[0]) == ELSEWHERE | set(FURTHER_FIELDS) | set(FIELDS)
    compared = 0
    for line in lines:
        process = processes[int(line["p_pid"])]
        if process.state != "Z" and process.threads == 1:  # of several LWPs libkvm takes another one
            record = fill_proc2(process, PAGE)
            assert [getattr(record, name) for name in FURTHER_FIELDS] == [number(line[name]) for name in FURTHER_FIELDS]
            assert record.p_tsess == (0 if record.p_tdev == names.NODEV else number(line["p_tsess"]))
            compared += 1
    assert compared == 18


def test_flags_are_those_of_the_running_system(dump: Dump, processes: dict[int, Process]) -> None:
    """Init had woken up."""
    compared = 0
    for line in dump.lines("libkvm-live.txt", "PROC2"):
        pid = int(line["p_pid"])
        if pid in processes and pid != 1 and processes[pid].state != "Z":
            record = fill_proc2(processes[pid], PAGE)
            assert [getattr(record, name) for name in FROM_LIVE] == [number(line[name]) for name in FROM_LIVE], pid
            compared += 1
    assert compared == 18


def test_lwps_are_as_many(dump: Dump, kd: Kvm, processes: dict[int, Process]) -> None:
    for name in ("libkvm-dead.txt", "libkvm-live.txt"):
        compared = 0
        for line in dump.lines(name, "LWPS"):
            pid = int(line["pid"])
            if line["ret"] == "ok" and pid in processes:
                lwps = kvm_getlwps(kd, pid, processes[pid].address)
                assert lwps is not None
                assert len(lwps) == int(line["cnt"]), pid
                compared += 1
        assert compared >= 19


def test_arguments_are_not_in_a_sparse_dump(dump: Dump, kd: Kvm) -> None:
    records = kvm_getprocs(kd)
    assert records is not None
    for record in records:
        for line in (f"ARGV pid={record.kp_proc.p_pid} NULL", f"ENVV pid={record.kp_proc.p_pid} NULL"):
            assert line in lines_of(dump, "libkvm-dead.txt")
        assert kvm_getargv(kd, record) is None
        assert kvm_getargv(kd, record, 8) is None
        assert kvm_getenvv(kd, record) is None


def test_open_files_are_those_of_libkvm(dump: Dump, kd: Kvm) -> None:
    """It returns the whole list of files, also those that nobody has (f_count is 0) and the kernel keeps for later."""
    (count,) = re.findall(r"GETFILES ok cnt=(\d+)", "\n".join(lines_of(dump, "libkvm-dead.txt")))
    kernel, types = dump.kernel, dump.kernel.types
    entry, used = types.offset_of("struct file", "f_list"), types.offset_of("struct file", "f_count")
    every = list(for_each_entry(kernel, kernel.symbols.address("filehead"), entry, "files"))
    assert len(every) == int(count)
    files = kvm_getfiles(kd)
    assert files is not None
    assert sorted(file.ki_fileaddr for file in files) == sorted(
        place for place in every if read_number(kernel, place + used, 4)
    )
    assert len(files) == 19


def test_symbols_are_those_of_the_running_system(dump: Dump) -> None:
    dead = [line for line in lines_of(dump, "libkvm-dead.txt") if line.startswith("SYM ")]
    assert [line for line in lines_of(dump, "libkvm-live.txt") if line.startswith("SYM ")] == dead
    assert "NLIST ret=2" in lines_of(dump, "libkvm-live.txt")


def test_closing(dump: Dump) -> None:
    assert "CLOSE 0" in lines_of(dump, "libkvm-dead.txt")
    assert kvm_close(Kvm(dump.open())) == 0


def test_without_symbols_processes_are_not_found(dump: Dump, tmp_path: Path) -> None:
    from kvm_dbg.kvm import kvm_openfiles

    (expected,) = re.findall(r'GETPROC2 NULL err="(.*)"', "\n".join(lines_of(dump, "err3.txt")))
    text = tmp_path / "fstab"
    text.write_text("/dev/wd0a / ffs rw 1 1\n")
    kd = kvm_openfiles(str(text), str(dump.core))
    assert kd is not None
    assert kvm_getproc2(kd) is None
    assert kvm_geterr(kd) == expected


def test_ps_of_the_running_system_shows_the_same(dump: Dump, processes: dict[int, Process]) -> None:
    """Who and whose; states, priorities, memory and what is waited for went on (a sleep of 3 s, and `reboot`)."""
    compared = 0
    for line in lines_of(dump, "ps-live.txt")[1:]:
        words = line.split()
        process = processes.get(int(words[0]))
        if process is None:
            continue
        compared += 1
        ids = (process.ppid, process.pgid, process.uid, process.ruid, process.svuid, process.gid, process.rgid)
        assert [*ids, process.svgid] == [int(word) for word in (*words[1:3], *words[5:11])], line
        session = process.kinfo.get("p_sess")
        assert f"{session & 0xFFFFFF:x}" == words[3] if session else words[3] == "0", line
        assert process.kinfo.get("p_jobc") == int(words[4])
        device = process.tty_device
        assert ("4095/1048575" if device is None else f"{device >> 8}/{device & 0xFF}") == words[11]
        if device is not None:
            assert process.tty_pgid == int(words[12])
        assert process.threads == int(words[15])
        assert process.nice == int(words[16])
        assert (process.vsize or 0) >> 10 == int(words[18]), line
        assert process.command in words[20]
    assert compared == 21


def test_swap_is_that_of_swapctl(dump: Dump) -> None:
    """All swap was free: 409600 blocks of 512 bytes, of which uvm keeps a page for the disk's label."""
    counters = {counter.name: counter.value for counter in system_of(dump.kernel).for_each_counter(dump.kernel)}
    (blocks, used) = re.findall(r"^/dev/wd0b +(\d+) +(\d+) ", (dump.truth / "swap-live.txt").read_text(), re.M)[0]
    assert counters["nswapdev"] == 1
    assert counters["swpginuse"] == int(used)
    assert counters["swpages"] == int(blocks) * 512 // PAGE - 1


def test_variables_are_those_of_sysctl(dump: Dump) -> None:
    """What the running system kept in variables is in the dump, and `sys` shows the rest."""
    lines = lines_of(dump, "sysctl-live.txt")
    settings = dict(re.split(r" = |: ", line, maxsplit=1) for line in lines if re.match(r"[\w.]+( = |: )", line))
    kernel = dump.kernel
    for name, (variable, size) in VARIABLES.items():
        data = kernel.read(kernel.symbols.address(variable), size)
        assert int.from_bytes(data, "little", signed=True) == int(settings[name]), name
    summary = system_of(kernel).read_summary(kernel)
    assert summary.memory == int(settings["hw.physmem"]) == int(settings["hw.physmem64"])
    assert summary.page_size == int(settings["hw.pagesize"])
    assert kernel.arch.name == settings["hw.machine_arch"]
    assert summary.nodename == settings["kern.hostname"]
    load = summary.load_average
    assert load is not None
    assert settings["vm.loadavg"] == f"{load.one:.2f} {load.five:.2f} {load.fifteen:.2f}"
    booted = datetime.strptime(settings["kern.boottime"], "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC)
    assert read_number(kernel, kernel.symbols.address("boottime"), 8) == booted.timestamp()
    clock = CLOCK.match(next(line for line in lines if CLOCK.match(line)))
    assert clock is not None
    for variable, expected in zip(("tick", "tickadj", "hz"), clock.groups(), strict=True):
        assert int.from_bytes(kernel.read(kernel.symbols.address(variable), 4), "little") == int(expected)
