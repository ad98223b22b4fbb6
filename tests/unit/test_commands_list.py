"""Every command of the list: its answer as text, JSON and CSV, on a kernel whose every byte is known."""

from __future__ import annotations

import csv
import io
import itertools
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kvm_dbg import cli
from kvm_dbg.commands import COMMANDS, find_command
from kvm_dbg.commands.run import run_line
from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.elf import open_elf
from kvm_dbg.kernel.base import GRADES
from kvm_dbg.symbols.elf import ElfSymbolTable
from tests.unit.conftest import Little, LittleMachine
from tests.writers.system import (
    DATA,
    DATA_BYTES,
    ESCAPE,
    EXT_INIT,
    GONE,
    JOB,
    LOG,
    SHELL,
    TEXT,
    TEXT_BYTES,
    USER,
    USER_BYTES,
)

Capture = pytest.CaptureFixture[str]
ARGUMENTS = {
    "nlist": ["banner", "start"],
    "read": [hex(TEXT), "32"],
    "write": ["counter", "--u32", "7"],
    "vtop": ["banner"],
    "vm": ["1"],
    "user": ["1"],
}
"""What commands need that have no answer without arguments."""
ELSEWHERE = (
    "thread",
    "attach",
    "detach",
    "layout",
)  # which only a debugger can run; which is about a kernel file (test_layout_writer.py)
ANSWERING = [command.name for command in COMMANDS if command.name not in ELSEWHERE]
NUMBERS = itertools.count()  # of files that are new every time


def run(capsys: Capture, *words: str, status: int = 0) -> str:
    """Return what `kvm-dbg` prints; its standard error must be empty if it succeeds."""
    assert cli.main(words) == status
    captured = capsys.readouterr()
    assert bool(captured.err) == bool(status), captured.err
    return captured.out


def ask(capsys: Capture, *words: str) -> Any:
    return json.loads(run(capsys, *words, "--json"))


def words_for(name: str, image: str) -> list[str]:
    files = [] if name == "help" else [image]
    if name == "gcore":
        return [name, image, "1", f"{next(NUMBERS)}.core"]
    if name == "vmlinux":
        return [name, image, "-o", f"{next(NUMBERS)}.elf"]
    return [name, *files, *ARGUMENTS.get(name, [])]


def test_the_list_is_the_promised_one() -> None:
    promised = (
        "open close status geterr identify nlist read write vtop procs lwps bt args env files vm user gcore"
        " vmlinux layout loadavg top vmstat log sys mods selftest refresh thread attach detach help halt resume"
    )
    assert {command.name for command in COMMANDS} == set(promised.split())
    assert len(COMMANDS) == len(promised.split())


@pytest.mark.parametrize("name", ANSWERING)
def test_every_command_answers_in_text_json_and_csv(
    name: str, little: Little, machine: LittleMachine, capsys: Capture
) -> None:
    text = run(capsys, *words_for(name, little.image))
    answer = ask(capsys, *words_for(name, little.image))
    lines = run(capsys, *words_for(name, little.image), "--csv")
    table = list(csv.reader(io.StringIO(lines, newline="")))
    rows = [answer] if isinstance(answer, dict) else answer
    assert text or name == "geterr"
    assert table[0] == [column.key for column in find_command(name).columns]
    for row in rows:
        assert row.get("grade", "ok") in GRADES
        if "grade" not in table[0]:
            row.pop("grade", None)  # of the whole answer, in JSON only
    assert [list(row) for row in rows] == [table[0]] * len(rows)  # the same columns in the same order
    assert all(key == key.lower() for key in table[0])
    assert len(table) == len(rows) + 1
    for row, line in zip(rows, table[1:], strict=True):
        for value, field in zip(row.values(), line, strict=True):
            assert (value is None) == (field == "") or value in ("", [])
            assert "\x1b" not in field


@pytest.mark.parametrize("name", ANSWERING)
def test_no_text_reaches_the_terminal_raw(name: str, little: Little, machine: LittleMachine, capsys: Capture) -> None:
    for output in ([], ["--json"], ["--csv"]):
        text = run(capsys, *words_for(name, little.image), *output)
        assert all(char.isprintable() or char in "\n\r\t" for char in text)


def test_procs_as_text(little: Little, capsys: Capture) -> None:
    lines = run(capsys, "procs", little.image).splitlines()
    assert lines[0].split() == ["PID", "PPID", "UID", "STAT", "CPU", "RSS", "TIME", "TTY", "COMMAND", "ADDRESS"]
    assert lines[1].split() == ["1", "0", "0", "Ss", "0", "3072", "0:03", "-", "init", hex(TEXT + 0x100)]
    assert lines[2].split()[8] == "[kthreadd]"
    assert r"sh\x1b]0;owned\x07\u202e" in lines[3]
    assert "1-01:01:01" in lines[3]  # 90061 s
    assert lines[6].split()[:7] == ["50", "1", "-", "S", "-", "-", "-"]
    assert lines[7:] == ["note: fields whose memory is not in the image are shown as -, in 1 of these processes"]


def test_procs_as_json(little: Little, capsys: Capture) -> None:
    rows = ask(capsys, "procs", little.image)
    assert [row["pid"] for row in rows] == [1, 2, 40, 41, 42, 50]
    shell = rows[2]
    assert shell["command"] == f"sh{ESCAPE}"
    assert shell["address"] == hex(SHELL.address)
    assert (shell["uid"], shell["ruid"], shell["gid"], shell["rgid"]) == (1000, 1001, 100, 101)
    assert (shell["stat"], shell["state"], shell["threads"], shell["nice"]) == ("Ssl", "S", 2, -5)
    assert (shell["rss"], shell["vsize"], shell["tty"]) == (1024, 2048, "pts/1")
    assert shell["time"] == 90061.0
    assert rows[5]["uid"] is None
    assert rows[5]["unread"] == ["uid", "gid", "rss", "tty_device"]
    assert rows[1]["kernel"] is True


def test_procs_selects(little: Little, capsys: Capture) -> None:
    def pids(*words: str) -> list[int]:
        return [row["pid"] for row in ask(capsys, "procs", little.image, *words)]

    assert pids("--pid", "40", "--pid", "1") == [1, 40]
    assert pids("--state", "RZ") == [41, 42]
    assert pids("--uid", "1000") == [40, 42]
    assert pids("--uid", "1000", "--state", "Z") == [42]
    assert pids("--uid", "7") == []


def test_procs_by_thread(little: Little, capsys: Capture) -> None:
    rows = ask(capsys, "procs", little.image, "--threads", "--pid", "40")
    assert [(row["pid"], row["lwp"], row["command"], row["state"], row["cpu"]) for row in rows] == [
        (40, 40, "sh", "S", 1),
        (40, 45, "worker", "R", 0),
    ]
    assert [row["time"] for row in rows] == [1.5, 0.0]
    assert rows[1]["utime"] == 0.0
    assert rows[1]["stime"] is None
    assert rows[1]["unread"] == ["system_time"]
    assert rows[1]["address"] == hex(SHELL.address + 8)


def test_procs_as_a_tree(little: Little, capsys: Capture) -> None:
    rows = ask(capsys, "procs", little.image, "--tree")
    assert [(row["pid"], len(row["command"]) - len(row["command"].lstrip())) for row in rows] == [
        (1, 0),
        (40, 2),
        (41, 4),
        (42, 4),
        (50, 2),
        (2, 0),
    ]


def test_a_tree_with_a_loop_shows_everyone_once(little: Little, capsys: Capture) -> None:
    little.system.processes = (SHELL._replace(ppid=41), JOB, SHELL._replace(pid=9, ppid=9))
    assert sorted(row["pid"] for row in ask(capsys, "procs", little.image, "--tree")) == [9, 40, 41]


def test_lwps(little: Little, capsys: Capture) -> None:
    rows = ask(capsys, "lwps", little.image)
    assert [(row["pid"], row["lwp"]) for row in rows] == [(1, 1), (40, 40), (40, 45)]
    assert rows[0]["wchan"] == "do_epoll"
    assert rows[2]["run"] is True
    assert [row["lwp"] for row in ask(capsys, "lwps", little.image, "40", "1")] == [1, 40, 45]


def test_args_are_lists(little: Little, capsys: Capture) -> None:
    rows = {row["pid"]: row for row in ask(capsys, "args", little.image)}
    assert rows[1]["args"] == ["/sbin/init", "--flag=a b", ""]
    assert rows[40]["args"] == ["-sh", "\\xff\x1b[2J", "it's"]
    assert rows[2]["args"] is None
    assert rows[2]["error"] is None
    assert rows[50]["args"] is None
    assert "excluded by the dump level" in rows[50]["error"]
    text = run(capsys, "args", little.image, "1", "40")
    assert text.splitlines()[1].split(maxsplit=2)[2] == "/sbin/init '--flag=a b' ''"
    assert text.splitlines()[2].endswith(r"-sh '\xff\x1b[2J' 'it'\''s'")


def test_env(little: Little, capsys: Capture) -> None:
    rows = {row["pid"]: row["env"] for row in ask(capsys, "env", little.image)}
    assert rows[1] == ["HOME=/", "TERM=linux"]
    assert rows[40] == []
    assert rows[2] is None


def test_files(little: Little, capsys: Capture) -> None:
    rows = ask(capsys, "files", little.image, "40")
    assert [(row["fd"], row["kind"], row["path"]) for row in rows] == [
        (0, "chr", "/dev/null"),
        (3, "sock", "socket:[77]"),
        (4, "fifo", "pipe:[78]"),
        (5, "anon", None),
    ]
    assert rows[0]["flags"] == "0x2"
    assert len(ask(capsys, "files", little.image)) == 7


def test_files_have_the_columns_of_fstat(little: Little, capsys: Capture) -> None:
    directory, device, file = ask(capsys, "files", little.image, "1")
    assert (directory["fd"], directory["role"]) == (None, "wd")
    assert (directory["mode"], directory["size"]) == ("drwxr-xr-x", 512)
    assert (directory["flags"], directory["offset"], directory["rw"], directory["mount"]) == (None, None, "r", "/")
    assert (device["mode"], device["device"], device["size"], device["rw"]) == ("crw-rw-rw-", "1,3", None, "rw")
    assert (file["mode"], file["device"], file["size"], file["rw"]) == ("-rw-r--r--", None, 5000, "w")
    text = run(capsys, "files", little.image, "1")
    assert ESCAPE not in text
    assert [line.split()[1:3] for line in text.splitlines()] == [["FD", "ROLE"], ["-", "wd"], ["0", "-"], ["1", "-"]]


def test_counters(little: Little, capsys: Capture) -> None:
    rows = ask(capsys, "vmstat", little.image)
    assert [(row["name"], row["value"], row["meaning"]) for row in rows[:2]] == [
        ("nr_free_pages", 88, "pages free"),
        (f"pgfault{ESCAPE}", 1 << 63, ""),
    ]
    assert [row["why"] for row in rows] == ["", "", "its page is gone", "its page is gone"]
    assert [row["name"] for row in ask(capsys, "vmstat", little.image, "pglost*", "nr_*")] == [
        "nr_free_pages",
        "pglost",
        "pglost2",
    ]
    assert ask(capsys, "vmstat", little.image, "Nr_*") == []


def test_counters_that_are_not_known_have_one_note_for_each_reason(little: Little, capsys: Capture) -> None:
    lines = run(capsys, "vmstat", little.image).splitlines()
    assert lines[0].split() == ["VALUE", "NAME", "MEANING"]
    assert lines[1].split(maxsplit=2) == ["88", "nr_free_pages", "pages free"]
    assert [line.split()[:2] for line in lines[3:5]] == [["-", "pglost"], ["-", "pglost2"]]
    assert not any("\x1b" in line for line in lines)


def test_loadavg_is_as_in_proc(little: Little, capsys: Capture) -> None:
    assert run(capsys, "loadavg", little.image) == "0.50 1.25 12.00\n"
    assert ask(capsys, "loadavg", little.image) == {
        "load1": 0.5,
        "load5": 1.25,
        "load15": 12.0,
        "running": 1,
        "threads": 7,
        "last_pid": 50,
        "grade": "partial",  # the worse of two, see CHECKS
    }


def test_selftest_grades_commands(little: Little, capsys: Capture) -> None:
    assert ask(capsys, "selftest", little.image) == [
        {
            "command": "loadavg",
            "grade": "partial",
            "why": ["the count of tasks: 7 of 9 can be read"],
            "checked": ["ok: its range: 0.5 can be", "partial: the count of tasks: 7 of 9 can be read"],
        },
        {
            "command": "sys",
            "grade": "suspect",
            "why": [f"run queues: CPU 1 runs 0x10, which is no task{ESCAPE}"],
            "checked": ["ok: memory: all 3 end", f"suspect: run queues: CPU 1 runs 0x10, which is no task{ESCAPE}"],
        },
        {
            "command": "vtop",
            "grade": "ok",
            "why": [],
            "checked": ["ok: page tables: _stext is where it should be"],
        },
    ]
    lines = run(capsys, "selftest", little.image, "vtop", "sys", "-v").splitlines()
    assert lines[0] == "vtop: ok"
    assert lines[2] == "sys: suspect"
    assert lines[4].startswith("  suspect run queues: CPU 1 runs 0x10, which is no task\\x1b")


def test_selftest_of_what_nothing_is_known_of(little: Little, capsys: Capture) -> None:
    assert cli.main(["selftest", little.image, "nlist"]) == 1
    assert "nothing is known to compare for nlist" in capsys.readouterr().err


def test_log_is_as_dmesg_prints_it(little: Little, capsys: Capture) -> None:
    assert run(capsys, "log", little.image).splitlines() == [
        "[    0.000000] Little version 1.0",
        "[    1.500000] disk\ton fire",
        "[    1.500000] second line",
        r"[12345.678901] user says \x1b]0;owned\x07\u202e",
    ]
    assert run(capsys, "log", little.image, "--raw", "--caller", "--tail", "1") == (
        "<30>[12345.678901][    C1] user says \\x1b]0;owned\\x07\\u202e\n"
    )
    assert [row["text"] for row in ask(capsys, "log", little.image)] == [record.text for record in LOG]


def test_log_selects(little: Little, capsys: Capture) -> None:
    def numbers(*words: str) -> list[int]:
        return [row["seq"] for row in ask(capsys, "log", little.image, *words)]

    assert numbers("--tail", "2") == [1, 2]
    assert numbers("--tail", "0") == []
    assert numbers("--level", "err") == [1]
    assert numbers("--level", "5") == [0, 1]
    assert numbers("--grep", "fire|version") == [0, 1]
    assert numbers("--grep", "fire|version", "--tail", "1") == [1]


def test_csv_keeps_the_lines_of_a_record_in_its_field(little: Little, capsys: Capture) -> None:
    rows = list(csv.DictReader(io.StringIO(run(capsys, "log", little.image, "--csv"), newline="")))
    assert rows[1]["text"] == "disk\ton fire\nsecond line"
    rows = list(csv.DictReader(io.StringIO(run(capsys, "procs", little.image, "--csv"), newline="")))
    assert rows[3]["command"] == 'job, "quoted"'
    assert rows[2]["command"] == r"sh\x1b]0;owned\x07\u202e"


def test_mods(little: Little, capsys: Capture) -> None:
    rows = ask(capsys, "mods", little.image)
    assert [(row["name"], row["used"], row["users"], row["taints"]) for row in rows] == [
        ("ext9", 0, [], "OE"),
        ("core9", 1, ["ext9"], None),
    ]
    assert rows[0]["build_id"] == "abcd"
    assert [row["symbols"] for row in rows] == ["no file found"] * 2
    lines = run(capsys, "mods", little.image).splitlines()
    assert lines[0].split() == ["NAME", "ADDRESS", "SIZE", "USED", "STATE", "TAINTS", "USERS", "SYMBOLS"]


def test_nlist(little: Little, capsys: Capture) -> None:
    assert ask(capsys, "nlist", little.image, "banner", "ext_init", "_text") == [
        {"name": "banner", "address": hex(DATA), "size": 37, "kind": "R", "module": None},
        {"name": "ext_init", "address": hex(TEXT + 0x100000), "size": 16, "kind": "t", "module": "ext9"},
        {"name": "_text", "address": hex(TEXT), "size": None, "kind": "T", "module": None},
    ]


def test_read(little: Little, capsys: Capture) -> None:
    assert ask(capsys, "read", little.image, "banner+7", "0x10") == [
        {"address": hex(DATA + 7), "size": 16, "data": DATA_BYTES[7:23].hex()}
    ]
    assert ask(capsys, "read", little.image, "--pid", "1", hex(USER), "19")[0]["data"] == USER_BYTES[:19].hex()
    assert ask(capsys, "read", little.image, "--phys", "0x200010", "4")[0]["data"] == TEXT_BYTES[16:20].hex()
    assert ask(capsys, "read", little.image, f"{DATA:016x}", "1k")[0]["data"] == DATA_BYTES[:1024].hex()
    assert ask(capsys, "read", little.image, "banner", "0") == []
    assert run(capsys, "read", little.image, "banner", "20") == (
        f"{DATA:016x}  4c 69 74 74 6c 65 20 76  65 72 73 69 6f 6e 20 31  |Little version 1|\n"
        f"{DATA + 16:016x}  2e 30 20 28              {'':23}  |.0 (|\n"
    )


def test_read_into_a_file(little: Little, capsys: Capture) -> None:
    run(capsys, "read", little.image, "banner", "37", "--raw", "banner.bin")
    with open("banner.bin", "rb") as file:
        assert file.read() == DATA_BYTES[:37]


def test_vm(little: Little, capsys: Capture) -> None:
    first, lost, stack = ask(capsys, "vm", little.image, "1")
    assert (first["start"], first["end"], first["size"]) == ("0x400000", "0x402000", 0x2000)
    assert (first["perms"], first["offset"], first["dev"], first["inode"]) == ("r-xp", "0x1000", "08:01", 12)
    assert first["path"] == f"/bin/{ESCAPE}"
    assert (lost["dev"], lost["path"], lost["unread"]) == (None, None, ["path", "device"])
    assert (stack["dev"], stack["path"]) == ("00:00", "[stack]")
    lines = run(capsys, "vm", little.image, "1").splitlines()
    assert lines[0].split() == ["START", "END", "PERMS", "OFFSET", "DEV", "INODE", "PATH", "ADDRESS"]
    assert lines[-1] == "note: 3 mappings, 140 KiB, 3072 KiB resident"


def test_what_is_about_the_selected_thread_of_a_debugger(little: Little, capsys: Capture) -> None:
    assert cli.main(["vm", little.image]) == 2
    assert "no PID given; only gdb and lldb have a selected thread" in capsys.readouterr().err
    assert cli.main(["thread", little.image, "1"]) == 1
    assert "`kvm thread` in gdb or lldb" in capsys.readouterr().err
    for words in (["attach"], ["attach", "--write", "vmlinux"], ["detach"]):
        assert cli.main(words) == 1
        assert "use it in gdb or lldb" in capsys.readouterr().err
    session = Session()
    session.open(OpenRequest((little.image,)))
    threads = {thread.lid: thread for thread in session.system.for_each_thread(session.kernel)}
    session.find_selected = lambda: threads[43]  # a thread of process 40
    other = Session()
    other.open(OpenRequest((little.image,)))
    for line, named in (("bt --json", "bt 43 --json"), ("bt 1 --csv", "bt 1 --csv"), ("bt --cpus", "bt --cpus")):
        assert "".join(run_line(session, line)) == "".join(run_line(other, named))
    session.find_selected = lambda: threads[1]
    assert "".join(run_line(session, "vm --json")) == "".join(run_line(other, "vm 1 --json"))
    session.close()
    assert session.selected is None


def test_vm_of_what_has_no_memory(little: Little, capsys: Capture) -> None:
    assert ask(capsys, "vm", little.image, "2") == []
    assert "it is a kernel thread" in run(capsys, "vm", little.image, "2")
    assert "it has exited" in run(capsys, "vm", little.image, "42")
    assert cli.main(["vm", little.image, "9"]) == 1
    assert "no process with PID 9" in capsys.readouterr().err


def test_vm_shows_what_comes_before_a_broken_place(little: Little, capsys: Capture) -> None:
    little.system.broken = {"mappings"}
    assert cli.main(["vm", little.image, "1", "--json"]) == 1
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 3
    assert "the list of mappings leads nowhere" in captured.err


def test_gcore(little: Little, capsys: Capture) -> None:
    answer = ask(capsys, "gcore", little.image, "1", "init.core")
    assert (answer["threads"], answer["mappings"], answer["present"], answer["lost"]) == (1, 3, 4096, 0)
    assert answer["remarks"] == ["its name is init"]
    data = Path("init.core").read_bytes()
    assert answer["size"] == len(data)
    with open_elf("init.core") as core:
        note, memory = core.segments
        assert core.header.type == 4  # ET_CORE
        assert [one.type for one in core.for_each_note(note)] == [1]
        assert (memory.vaddr, memory.filesz, memory.memsz, memory.flags) == (USER, 4096, 4096, 5)
        assert data[memory.offset : memory.offset + 4096] == USER_BYTES


def test_gcore_refuses_a_file_that_exists(little: Little, capsys: Capture) -> None:
    Path("taken").write_bytes(b"precious")
    assert cli.main(["gcore", little.image, "1", "taken"]) == 1
    assert "File exists" in capsys.readouterr().err
    assert Path("taken").read_bytes() == b"precious"


def test_gcore_of_broken_mappings_says_so(little: Little, capsys: Capture) -> None:
    little.system.broken = {"mappings"}
    answer = ask(capsys, "gcore", little.image, "1", "init.core")
    assert "some mappings are missing: the list of mappings leads nowhere" in answer["remarks"][0]


def test_gcore_of_what_has_no_memory_leaves_no_file(little: Little, capsys: Capture) -> None:
    assert cli.main(["gcore", little.image, "2", "none.core"]) == 1
    assert "it has no user memory" in capsys.readouterr().err
    assert not Path("none.core").exists()


def test_vmlinux(little: Little, capsys: Capture) -> None:
    answer = ask(capsys, "vmlinux", little.image, "-o", "made")
    assert (answer["symbols"], answer["modules"], answer["slide"]) == (8, 2, "0x0")
    assert answer["remarks"] == ["no symbols of core9 could be read"]
    assert answer["size"] == Path("made").stat().st_size
    with open_elf("made") as file:
        assert [section.name for section in file.sections if section.addr] == [
            ".text",
            ".data",
            ".text.ext9",
            ".text.core9",
        ]
    symbols = ElfSymbolTable("made")
    assert symbols.address("ext_init") == EXT_INIT.address
    assert symbols.address("banner") == DATA
    assert symbols.address("absolute") == 0x100


def test_vmlinux_at_link_time_is_the_kernel_alone(little: Little, capsys: Capture) -> None:
    answer = ask(capsys, "vmlinux", little.image, "--link-time", "--output", "made")
    assert (answer["symbols"], answer["modules"], answer["slide"]) == (7, 0, "0x1000000")
    symbols = ElfSymbolTable("made")
    assert symbols.find("ext_init") is None
    assert symbols.address("banner") == DATA - 0x1000000
    assert symbols.address("absolute") == 0x100


def test_vmlinux_with_a_broken_list_of_modules_says_so(little: Little, capsys: Capture) -> None:
    little.system.broken = {"modules"}
    answer = ask(capsys, "vmlinux", little.image, "-o", "made")
    assert any("modules are missing: the list of modules leads nowhere" in line for line in answer["remarks"])
    assert answer["symbols"] == 8


def test_vtop_shows_every_entry(little: Little, capsys: Capture) -> None:
    answer = ask(capsys, "vtop", little.image, "banner+5")
    assert (answer["vaddr"], answer["paddr"], answer["page_size"]) == (hex(DATA + 5), "0x201005", 4096)
    assert [step.split()[0] for step in answer["steps"]] == ["PML4E", "PDPTE", "PDE", "PTE"]
    assert answer["steps"][0].split()[1] == hex(0x1000 + 511 * 8)
    assert answer["steps"][3].split()[2] == hex(0x201000 | 0x63)
    assert answer["present"] is True
    assert "(not in the image)" in run(capsys, "vtop", little.image, hex(GONE))
    assert ask(capsys, "vtop", little.image, "--pid", "1", hex(USER))["paddr"] == "0x300000"


def test_write_tells_that_the_file_stays_as_it_is(little: Little, capsys: Capture) -> None:
    with open(little.image, "rb") as file:
        before = file.read()
    answer = ask(capsys, "write", little.image, "counter", "--u32", "0x01020304")
    assert datetime.now(UTC) - datetime.fromisoformat(answer.pop("time")) < timedelta(minutes=5)
    place = {"address": hex(DATA + 64), "symbol": "counter+0x0"}
    assert answer == {**place, "size": 4, "old": "00000000", "new": "04030201"}
    assert "the image file is unchanged" in run(capsys, "write", little.image, "counter", "--text", "hi")
    with open(little.image, "rb") as file:
        assert file.read() == before


@pytest.mark.parametrize(
    ("words", "data"),
    [
        (["--u8", "-1"], "ff"),
        (["--u16", "0x8000"], "0080"),
        (["--u64", "1"], "0100000000000000"),
        (["--hex", "de ad"], "dead"),
        (["--text", "hi"], "686900"),
    ],
)
def test_write_values(words: list[str], data: str, little: Little, capsys: Capture) -> None:
    assert ask(capsys, "write", little.image, "counter", *words)["new"] == data


def test_sys(little: Little, capsys: Capture) -> None:
    answer = ask(capsys, "sys", little.image)
    assert answer["release"] == "1.0-little"
    assert answer["load"] == [0.5, 1.25, 12.0]
    assert (answer["memory"], answer["uptime"], answer["date"]) == (64 << 20, 100.0, "2023-11-14 22:15:00 UTC")
    assert (answer["panic"], answer["panic_cpu"], answer["panic_pid"]) == ("Oops: not on purpose", 1, 41)
    assert answer["panic_command"] == JOB.command
    assert answer["panic_task"] == hex(JOB.address)
    assert answer["taints"] is None
    text = run(capsys, "sys", little.image)
    assert "      memory: 64.0 MiB\n" in text
    assert "        load: 0.50, 1.25, 12.00\n" in text
    assert "taints" not in text


def test_identify(little: Little, capsys: Capture) -> None:
    answer = ask(capsys, "identify", little.image)
    assert (answer["format"], answer["release"], answer["arch"]) == ("lime", "1.0-little", "x86_64")
    assert answer["page_tables"] == "4 levels, root at physical 0x1000"
    assert (answer["slide"], answer["build_id"], answer["files"]) == ("0x1000000", "c0ffee", [little.image])


def test_identify_without_a_kernel(little: Little, capsys: Capture, tmp_path: Any) -> None:
    (tmp_path / "nothing").write_bytes((tmp_path / "vmcore").read_bytes())
    answer = ask(capsys, "identify", "nothing")
    assert answer["release"] is None
    assert any("no kernel is in it" in quirk for quirk in answer["quirks"])


@pytest.mark.parametrize("name", ["status", "open"])
def test_status(name: str, little: Little, capsys: Capture) -> None:
    answer = ask(capsys, name, little.image)
    assert (answer["open"], answer["image"], answer["release"]) == (True, [little.image], "1.0-little")
    assert (answer["written"], answer["types"], answer["quirks"]) == (0, "nothing", ["its kernel was made up"])


def test_close_and_geterr_take_images_too(little: Little, capsys: Capture) -> None:
    assert ask(capsys, "close", little.image)["open"] is False
    assert ask(capsys, "geterr", little.image) == {"error": None}
    assert ask(capsys, "status")["open"] is False
