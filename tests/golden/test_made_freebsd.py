"""FreeBSD's commands on made systems of its releases 10 to 15: expected is what the initialisers say.

They are in tests/writers/freebsd/kernel.c; letters and columns are those of ps(1), fstat(1) and kldstat(8).
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

from kvm_dbg import cli
from kvm_dbg.kernel import system_of
from kvm_dbg.kvm import (
    KERN_PROC_GID,
    KERN_PROC_PGRP,
    KERN_PROC_PID,
    KERN_PROC_RGID,
    KERN_PROC_RUID,
    KERN_PROC_SESSION,
    KERN_PROC_TTY,
    KERN_PROC_UID,
    Kvm,
)
from kvm_dbg.kvm.fill import fill_lwp, fill_proc2
from tests.golden.made_freebsd import VARIANTS, Made, make, opened

PAGE = 4096
USER_TOP = 0x7FFFFFFFF000
NAMES = [f"{release}-{types}" for release, types in VARIANTS]
DEVICE = 0x71  # of pts/0


@pytest.fixture(scope="module", params=VARIANTS, ids=NAMES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"), *request.param)


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("newest"), 15, "dwarf")


def test_processes(made: Made) -> None:
    rows = made.run("procs").rows
    assert [(row["pid"], row["ppid"], row["stat"], row["uid"], row["command"], row["tty"]) for row in rows] == [
        (0, 0, "DL", 0, "[kernel]", None),
        (1, 0, "SLs", 0, "init", None),  # P_SYSTEM, but no process of the kernel
        (12, 0, "WL", 0, "[intr]", None),
        (700, 1, "Is", 0, "sh", "pts/0"),  # sleeps for 21 s; its group is not in the foreground
        (701, 700, "RNX+", 0, "make", "pts/0"),
        (702, 701, "T<VCJ", 65534, "stopped", None),
        (703, 701, "Z", 0, "gone", None),
        (704, 700, "R+", 0, "crashme", "pts/0"),
        (705, 700, "DE", 0, "dd", "pts/0"),
    ]
    by_pid = {row["pid"]: row for row in rows}
    assert [row["unread"] for row in rows] == [[]] * len(rows)
    assert [by_pid[pid]["rss"] for pid in (0, 1, 700, 703)] == [0, 8, 345 * 4, 0]
    assert by_pid[700]["vsize"] == 0x600000 >> 10
    assert [(by_pid[pid]["pgid"], by_pid[pid]["sid"]) for pid in (0, 1, 700, 701)] == [
        (0, 0),
        (1, 1),
        (700, 700),
        (701, 700),
    ]
    user = by_pid[701]
    assert (user["ruid"], user["gid"], user["rgid"], user["nice"], user["threads"]) == (1001, 20, 1002, 5, 2)
    assert (user["cpu"], by_pid[704]["cpu"], by_pid[705]["cpu"]) == (1, 0, 1)
    assert by_pid[702]["nice"] == -3
    assert [row["pid"] for row in rows if row["kernel"]] == [0, 12]


def test_times(made: Made) -> None:
    """3 s, and 0.5 s that a thread has not handed in: 30 ticks in user mode, 8 in system mode, 2 in interrupts."""
    rows = {row["pid"]: row for row in made.run("procs").rows}
    assert (rows[701]["time"], rows[701]["utime"], rows[701]["stime"]) == (3.5, 3.5 * 30 / 40, 3.5 * 8 / 40)
    assert rows[700]["time"] == 0
    assert rows[700]["start"] == 1_700_000_000.5 + 100.25
    assert rows[701]["start"] == 1_700_000_000.5 + 200
    assert rows[1]["start"] is None
    lwps = {row["lwp"]: row for row in made.run("lwps").rows}
    assert (lwps[100201]["time"], lwps[100202]["time"]) == (1.5, 0.25)


def test_times_by_the_time_counter(newest: Made) -> None:
    """While the time counter ticks for CPUs too, its frequency counts: 3 GHz."""
    dump = newest.damaged(newest.pointer("tc_cpu_ticks", "cpu_ticks"))
    rows = {row["pid"]: row for row in newest.run("procs", dump=dump).rows}
    assert rows[701]["time"] == pytest.approx(3.5 / 3)


def test_swapped_out_processes(tmp_path: Path) -> None:
    """Without P_INMEM a process is swapped out, where there is such a thing."""
    made = make(tmp_path, 14, "ctf")
    dump = made.damaged(made.number(0, "p_dd", "proc.p_flag"))
    assert made.run("procs", "--pid", "705", dump=dump).rows[0]["stat"] == "DW"


@pytest.mark.parametrize(("release", "none"), [(10, b"\xff"), (12, b"\xff\xff\xff\xff")])
def test_a_thread_that_never_ran(release: int, none: bytes, tmp_path: Path) -> None:
    """NOCPU is 255 in an unsigned char, and -1 in an int."""
    made = make(tmp_path, release, "dwarf")
    dump = made.damaged({made.system.address("td_dd", "thread.td_lastcpu"): none})
    assert made.run("procs", "--pid", "705", dump=dump).rows[0]["cpu"] is None


def test_threads(made: Made) -> None:
    rows = made.run("lwps").rows
    assert [(row["pid"], row["lwp"], row["state"], row["wchan"], row["name"], row["run"]) for row in rows] == [
        (0, 100000, "D", "swapin", "swapper", False),
        (0, 100007, "L", "*Giant", "softirq_0", False),
        (1, 100002, "S", "wait", "init", False),
        (12, 100010, "W", None, "irq1: atkbd0", False),
        (700, 100100, "I", "ttyin", "sh", False),
        (701, 100201, "R", None, "make", True),
        (701, 100202, "R", None, "worker", False),
        (702, 100203, "T", None, "stopped", False),
        (703, 100204, "Z", None, "gone", False),
        (704, 100300, "R", None, "crashme", True),
        (705, 100301, "D", "biord", "dd", False),
    ]
    assert [row["pri"] for row in rows][:4] == [84, 24, 112, 16]
    assert [row["lwp"] for row in made.run("lwps", "701").rows] == [100201, 100202]


def test_arguments(made: Made) -> None:
    answer = made.run("args")
    rows = {row["pid"]: row for row in answer.rows}
    assert rows[1]["args"] == ["/sbin/init"]
    assert rows[700]["args"] == ["sh", "-i"]
    assert rows[701]["args"] == ["make", "-j", "all the \\xff"]  # the kernel keeps no copy: from the process's memory
    assert [rows[pid]["args"] for pid in (0, 12, 703)] == [None] * 3
    assert [rows[pid]["error"] for pid in (0, 12, 703)] == [None] * 3
    assert "has arguments of 2147483647 bytes" in rows[705]["error"]
    assert "is not mapped" in rows[702]["error"]


def test_environments(made: Made) -> None:
    rows = {row["pid"]: row for row in made.run("env").rows}
    assert rows[701]["env"] == ["HOME=/usr/home", "EMPTY="]
    assert [rows[pid]["error"] for pid in (0, 12, 703)] == [None] * 3
    assert "physical address 0x37f8" in rows[700]["error"]  # its top table is not in the dump
    text = made.run("env", text=True)
    assert "701 make    HOME=/usr/home EMPTY=" in text.out
    assert "700 sh      -" in text.out


def test_minidumps_have_no_memory_of_processes(made: Made) -> None:
    rows = {row["pid"]: row for row in made.run("env", dump=made.mini).rows}
    for pid in (1, 700, 701, 702, 704, 705):
        assert rows[pid]["env"] is None
        assert "minidumps have no memory of processes" in rows[pid]["error"]
    same = {row["pid"]: row["args"] for row in made.run("args", dump=made.mini).rows}
    assert (same[1], same[700], same[701]) == (["/sbin/init"], ["sh", "-i"], None)


@pytest.mark.parametrize("command", ["procs", "lwps", "files", "mods", "log", "loadavg"])
def test_minidumps_have_the_rest(made: Made, command: str) -> None:
    assert made.run(command, dump=made.mini).out == made.run(command).out != ""


def test_memory_of_processes_is_read(made: Made) -> None:
    place = hex(USER_TOP - PAGE + 64)  # behind the vectors
    assert "make" in made.run("read", place, "16", "--pid", "701", text=True).out
    lost = made.run("read", place, "16", "--pid", "700", text=True)
    assert lost.status == 1
    assert "16 of 16 bytes are not in the image" in lost.err
    assert "no user address space" in made.run("read", place, "16", "--pid", "12", text=True).err
    with opened(made) as kernel:
        kvm = Kvm(kernel)
        assert kvm.read(USER_TOP - PAGE + 64, 5, pid=701) == b"make\0"


def test_open_files(made: Made) -> None:
    answer = made.run("files", "700")
    root, directory, *others = answer.rows
    assert [(row["fd"], row["role"], row["path"]) for row in (root, directory)] == [
        (None, "root", "/"),
        (None, "wd", "/usr/home"),
    ]
    assert (directory["mode"], directory["inode"]) == ("drwxr-xr-x", 3)
    assert (directory["mount"], directory["rw"]) == ("/usr", "r")
    rows = {row["fd"]: row for row in others}
    shown = {fd: (row["kind"], row["path"], row["flags"], row["offset"], row["inode"]) for fd, row in rows.items()}
    data = {name: hex(made.system.address(name)) for name in ("a_socket", "a_pipe")}
    pts = ("chr", "/dev/pts/0", "0x2", 5, DEVICE)
    assert shown == {
        0: pts,
        1: pts,
        2: pts,
        3: ("reg", "/usr/home/notes", "0xa", 42, 777),  # O_RDWR | O_APPEND; ".." is not its name
        4: ("dir", "/usr/home", "0x0", 0, 3),
        5: ("sock", f"socket:[{data['a_socket']}]", "0x6", None, None),
        6: ("fifo", f"pipe:[{data['a_pipe']}]", "0x0", None, None),
        7: ("anon", f"kqueue:[{data['a_pipe']}]", "0x2", None, None),
        9: ("reg", None, "0x0", 0, 777),  # the name cache has forgotten it
        10: ("?", None, "0x2", None, None),  # of a type that does not exist
        11: ("dir", "/usr/home", "0x0", 1, 3),
    }
    assert [row["unread"] for row in answer.rows] == [[]] * len(answer.rows)
    assert [rows[fd]["rw"] for fd in (0, 3, 4, 5, 6)] == ["rw", "rw", "r", "rw", "r"]
    assert [rows[fd]["mount"] for fd in (0, 3, 5)] == ["/dev", "/usr", None]
    assert [rows[fd]["device"] for fd in (0, 3, 5)] == [f"{DEVICE >> 8 & 0xFF},{DEVICE & 0xFFFF00FF}", None, None]
    assert {row["pid"] for row in made.run("files").rows} == {700, 701}
    with opened(made) as kernel:
        files = {file.fd: file for file in system_of(kernel).for_each_file(kernel, 700)}
    assert [files[fd].mode for fd in (0, 3, 4)] == [0o20620, 0o100640, 0o40755]
    assert (files[3].size, files[4].size, files[5].mode) == (99, 512, None)


def test_mappings(made: Made) -> None:
    rows = made.run("vm", "700").rows
    assert [(row["start"], row["end"], row["perms"], row["offset"], row["inode"], row["path"]) for row in rows] == [
        ("0x400000", "0x410000", "r-xp", "0x0", 4242, "/bin/sh"),
        ("0x610000", "0x612000", "rw-p", "0x11000", 4242, "/bin/sh"),  # through a shadow that begins at 0x10000
        ("0x800000", "0x801000", "rw-s", "0x0", None, None),
        ("0x7fffdffff000", "0x7fffffffd000", "---p", "0x0", None, "[guard]"),
        ("0x7fffffffd000", hex(USER_TOP), "rw-p", "0x0", None, "[stack]"),
    ]
    assert made.run("vm", "0").rows == []
    assert "has no memory of its own" in made.run("vm", "0", text=True).out
    assert made.run("vm", "701").rows == []


def test_modules(made: Made) -> None:
    toy, plain = made.run("mods").rows
    text = made.system.address("toy_text")
    assert (toy["name"], toy["address"], toy["size"], toy["used"], toy["users"]) == (
        "toy",
        hex(text),
        8192,
        2,
        ["plain"],
    )
    assert toy["symbols"] == str(made.system.module)
    assert (plain["name"], plain["used"], plain["symbols"]) == ("plain", 1, "no file found")
    with opened(made) as kernel:
        module = next(iter(system_of(kernel).for_each_module(kernel)))
        assert module.sections == {".text": text, ".data": text + PAGE}
        assert system_of(kernel).symbolize(kernel, text + 0x18) == "toy_ioctl+0x8 [toy]"
    (found,) = made.run("nlist", "toy_count").rows
    assert found["address"] == hex(text + PAGE + 8)


def test_a_file_that_is_not_the_module_in_the_image(newest: Made) -> None:
    strange = newest.system.address("toy_symbols") + 24 + 8  # st_value of the first one
    dump = newest.damaged({strange: (newest.system.address("toy_text") + 0x30).to_bytes(8, "little")})
    assert "toy_ioctl would be at" in newest.run("mods", dump=dump).rows[0]["symbols"]


def test_the_system(made: Made) -> None:
    row = made.run("sys").row
    release = f"{made.system.release}.1-RELEASE"
    assert (row["system"], row["release"], row["nodename"], row["machine"]) == (
        "FreeBSD",
        release,
        "made.example.org",
        "amd64",
    )
    assert row["version"].startswith(f"FreeBSD {release} (GENERIC) #0")
    assert (row["cpus"], row["memory"], row["uptime"], row["page_size"]) == (2, 0x3F000 << 12, 3600, PAGE)
    assert (row["date"], row["load"], row["tasks"]) == ("2023-11-14 23:13:20 UTC", [0.5, 0.25, 2.0], 11)
    assert (row["panic"], row["panic_cpu"], row["panic_pid"]) == ("page fault in toy", 0, 100300)
    assert (row["panic_command"], row["panic_task"]) == ("crashme", hex(made.system.address("p_crash")))


def test_log_and_load(made: Made) -> None:
    rows = made.run("log").rows
    assert [row["text"] for row in rows] == ["early line", "Starting devd.", "panic: page fault in toy"]
    assert made.run("loadavg", text=True).out.split() == ["0.50", "0.25", "2.00"]


CRASHED = [
    "kern_reboot", "panic", "trap", "calltrap", "toy_ioctl", "sys_ioctl", "fast_syscall_common", None,
]  # fmt: skip
STOPPED = ["cpustop_handler", "Xcpustop", "vm_fault", "calltrap", None]
SLEEPING = ["sched_switch", "mi_switch", "sleepq_wait", "fork_exit"]


def test_stacks_cross_trap_frames_and_end_at_user_space(made: Made) -> None:
    with opened(made) as kernel:
        system = system_of(kernel)
        threads = {thread.lid: thread for thread in system.for_each_thread(kernel)}
        stacks = {lid: list(system.unwind(kernel, threads[lid])) for lid in (100300, 100201, 100100)}
    assert [frame.name for frame in stacks[100300]] == CRASHED
    assert [frame.name for frame in stacks[100201]] == STOPPED
    assert [frame.name for frame in stacks[100100]][:4] == SLEEPING
    assert [frame.why for frames in stacks.values() for frame in frames] == [""] * sum(map(len, stacks.values()))
    for lid, pc, sp in ((100300, 0x401234, 0x7FFFFFFFE8F0), (100201, 0x405678, 0x7FFFFFFFE7F0)):
        assert (stacks[lid][-1].stack, stacks[lid][-1].pc, stacks[lid][-1].sp) == ("USER", pc, sp)
    assert [frame.stack for frame in stacks[100300]] == ["TASK"] * 7 + ["USER"]
    fault = stacks[100300][4]
    assert (fault.exact, fault.offset, fault.module) == (True, 0x1C, "toy")
    assert next(iter(threads)) == 100300


@pytest.mark.parametrize(
    ("op", "argument", "pids"),
    [
        (KERN_PROC_PID, 701, [701]),
        (KERN_PROC_PGRP, 701, [701, 702, 703, 704]),
        (KERN_PROC_SESSION, 700, [700, 701, 702, 703, 704, 705]),
        (KERN_PROC_TTY, DEVICE, [700, 701, 704, 705]),
        (KERN_PROC_UID, 65534, [702]),
        (KERN_PROC_RUID, 1001, [700, 701, 703]),
        (KERN_PROC_GID, 20, [700, 701, 703]),
        (KERN_PROC_RGID, 1002, [700, 701, 703]),
    ],
)
def test_filters_of_kvm(newest: Made, op: int, argument: int, pids: list[int]) -> None:
    with opened(newest) as kernel:
        assert [process.pid for process in Kvm(kernel).processes(op, argument)] == pids


def test_records_of_kvm(made: Made) -> None:
    with opened(made) as kernel:
        kvm = Kvm(kernel)
        shell = fill_proc2(kvm.process(700), PAGE)
        assert (shell.p_login, shell.p_wmesg, shell.p_tpgid, shell.p_tdev) == ("alice", "ttyin", 701, DEVICE)
        assert (shell.p_groups, shell.p_svuid, shell.p_svgid) == ((68, 44), 0, 21)
        locked = fill_lwp(next(lwp for lwp in kvm.lwps(0) if lwp.lid == 100007))
        assert (locked.l_wmesg, locked.l_stat) == ("*Giant", 3)


def test_the_image_agrees_with_itself(made: Made) -> None:
    for dump in (made.dump, made.mini):
        rows = made.run("selftest", dump=dump).rows
        assert {row["command"] for row in rows} >= {
            "procs",
            "lwps",
            "files",
            "vm",
            "mods",
            "bt",
            "log",
            "loadavg",
            "sys",
        }
        assert [(row["command"], row["grade"]) for row in rows if row["grade"] != "ok"] == []


def test_a_layout_file_that_is_named_wins(newest: Made, tmp_path: Path) -> None:
    """Over the kernel file's own types, and with everything that the commands need in it."""
    layout = str(tmp_path / "layout.json")
    assert newest.run("status").row["types"].startswith("DWARF of")
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(["layout", newest.kernel, "-o", layout]) == 0
    said = newest.run("status", "--layout", layout).row["types"]
    assert said == f"layout file {layout}, which was named: the types of {newest.kernel} are not used"
    for command, *words in (["procs"], ["lwps"], ["args"], ["env"], ["files"], ["vm", "700"], ["mods"], ["sys"]):
        assert newest.run(command, *words, "--layout", layout).out == newest.run(command, *words).out, command
    document = json.loads(Path(layout).read_text())
    document["proc"]["members"]["p_comm"]["offset"] += 1
    Path(layout).write_text(json.dumps(document))
    names = [row["command"] for row in newest.run("procs", "--layout", layout).rows]
    assert names[3:5] == ["h", "ake"]
