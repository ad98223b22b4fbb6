"""What only gdb's adapter does, with the stand-in kernel: nothing here needs a real dump."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debuggers.child import Result
from tests.debuggers.conftest import SOURCE, children_of_tests
from tests.debuggers.driver import Gdb
from tests.writers.stand_in import TASKS, TEXT


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Every test leaves no process and no file behind."""
    yield
    deadline = time.monotonic() + 5
    while (children_of_tests(tmp_path) or left_files(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children_of_tests(tmp_path) == []
    assert left_files(tmp_path) == []


def left_files(folder: Path) -> list[str]:
    temporary = folder / "tmp"
    return sorted(os.listdir(temporary)) if temporary.is_dir() else []


def no_traceback(result: Result) -> Result:
    assert "Traceback" not in result.stdout + result.stderr
    assert "Python Exception" not in result.stderr
    return result


def run(gdb: Gdb, *commands: str) -> Result:
    return no_traceback(gdb.run([SOURCE, *commands]))


def test_output_keeps_its_order(stand_in: Gdb, tmp_path: Path) -> None:
    result = run(stand_in, f"kvm open {tmp_path}/image", "echo one\\n", "kvm loadavg", "echo two\\n", "kvm loadavg")
    assert result.stdout == "one\n0.50 1.25 2.00\ntwo\n0.50 1.25 2.00\n"


def test_user_memory_is_that_of_the_selected_thread(stand_in: Gdb, tmp_path: Path) -> None:
    result = run(stand_in, f"kvm open {tmp_path}/image", "p $rbp", "x/s 0x400000", "thread 2", "x/s 0x400000")
    assert result.stdout.startswith("$1 = <unavailable>\n0x400000:\t\"shell's page")
    assert "0x400000:\t\"init's page" in result.stdout


def test_functions_for_expressions(stand_in: Gdb, tmp_path: Path) -> None:
    result = run(
        stand_in,
        f"kvm open {tmp_path}/image",
        'p/x $kvm_nlist("init_task")',
        "p/x $kvm_proc(1)",
        'p $kvm_nlist("nothing")',
        "p $kvm_proc(77)",
        "p $kvm_proc()",
    )
    assert result.stdout == f"$1 = {TASKS['swapper/0']:#x}\n$2 = {TASKS['init']:#x}\n"
    for text in ("no symbol 'nothing'", "no process or thread 77", "$kvm_proc takes one argument"):
        assert text in result.stderr


def test_a_failed_command_fails_the_batch_even_if_it_is_not_the_last(stand_in: Gdb, tmp_path: Path) -> None:
    commands = (f"kvm open {tmp_path}/image", "kvm bogus", "p 1")
    result = run(stand_in, *commands)
    assert (result.returncode, result.stdout) == (1, "$1 = 1\n")
    assert "no command 'bogus'" in result.stderr
    result = run(stand_in, "set kvm batch-exit off", *commands)
    assert (result.returncode, result.stdout) == (0, "$1 = 1\n")


def test_an_exit_status_of_the_user_stays(stand_in: Gdb) -> None:
    assert run(stand_in, "kvm procs", "quit 7").returncode == 7


def test_without_an_image_every_command_says_what_to_do(stand_in: Gdb) -> None:
    result = run(stand_in, "kvm procs", "kvm close", 'p $kvm_nlist("a")', "kvm status", "kvm geterr", "kvm help", "kvm")
    assert result.stderr.count("no kernel image is open: use `kvm open [VMLINUX] IMAGE...` first") == 3
    assert "no kernel image is open\n" in result.stdout
    assert result.stdout.count("start with `kvm open [VMLINUX] IMAGE...`") == 2


def test_a_dump_does_not_run_and_is_never_written_to(stand_in: Gdb, tmp_path: Path) -> None:
    result = run(
        stand_in,
        f"kvm open {tmp_path}/image",
        "break *0xffffffff82000100",
        "continue",
        "stepi",
        "set var *(char *) 0xffffffff82000000 = 0x41",
        "p *(char *) 0xffffffff82000000",
        "set var $rax = 1",
        "x/x 0xffffffff12000000",
    )
    assert result.stderr.count("this kernel is not running (it is a dump)") == 2
    assert "$1 = 65 'A'" in result.stdout
    assert "Could not write register" in result.stderr
    assert "Cannot access memory at address 0xffffffff12000000" in result.stderr


def test_monitor_reaches_the_same_commands(stand_in: Gdb, tmp_path: Path) -> None:
    result = run(stand_in, f"kvm open {tmp_path}/image", "monitor loadavg", "monitor kvm loadavg")
    assert result.stderr.count("0.50 1.25 2.00") == 2


def test_functions_for_expressions_without_their_server(stand_in: Gdb, tmp_path: Path) -> None:
    kill = "python import os; os.kill(gdb.kvm_dbg_session.server.ready['pid'], 9)"
    result = run(stand_in, f"kvm open {tmp_path}/image", kill, 'p $kvm_nlist("init_task")', "p 1")
    assert "the server was killed by SIGKILL" in result.stderr
    assert result.stdout == "$1 = 1\n"


def test_a_process_that_is_debugged_is_not_disturbed(stand_in: Gdb, tmp_path: Path) -> None:
    result = run(stand_in, "file /bin/true", "starti", f"kvm open {tmp_path}/image", "info inferiors")
    assert "inferior 1 already debugs something" in result.stderr
    assert "process " in result.stdout


def test_another_inferior_can_be_used(stand_in: Gdb, tmp_path: Path) -> None:
    result = run(
        stand_in,
        "add-inferior",
        "inferior 2",
        f"kvm open {tmp_path}/image",
        "kvm loadavg",
        "inferior 1",
        "kvm close",
        "python print(gdb.selected_inferior().num, [i.pid for i in gdb.inferiors()])",
    )
    assert result.stdout.splitlines()[-1] == "1 [0, 0]"


def test_a_kvm_prefix_of_the_debugger_is_respected(stand_in: Gdb, tmp_path: Path) -> None:
    script = tmp_path / "bsd.gdb"
    script.write_text(
        "define-prefix kvm\ndefine kvm pcb\necho own pcb\\n\nend\ndefine kvm loadavg\necho own load\\n\nend\n"
    )
    result = no_traceback(
        stand_in.run([f"source {script}", SOURCE, f"kvm open {tmp_path}/image", "kvm pcb", "kvm loadavg", "kvm procs"])
    )
    assert result.stdout.startswith("own pcb\nown load\nPID ")
    assert "has a `kvm loadavg` of its own" in result.stderr


def test_completion(stand_in: Gdb, tmp_path: Path) -> None:
    result = run(
        stand_in, f"kvm open {tmp_path}/image", "complete kvm loa", "complete kvm procs --js", "complete kvm args 4"
    )
    assert result.stdout.splitlines() == ["kvm loadavg", "kvm procs --json", "kvm args 40"]


def test_a_thread_is_selected_by_pid(stand_in: Gdb, tmp_path: Path) -> None:
    number = "python print('selected', gdb.selected_thread().num, gdb.selected_thread().ptid[1])"
    steps = [f"kvm open {tmp_path}/image", number]
    for words in ("1", "41", "40", "10000001"):  # 40 is the process of thread 41
        steps += [f"kvm thread {words}", number]
    result = run(stand_in, *steps, "complete kvm thread 4")
    selected = re.findall(r"^selected (\d+) (\d+)$", result.stdout, re.MULTILINE)
    assert selected == [("1", "41"), ("2", "1"), ("1", "41"), ("1", "41"), ("5", "10000001")]
    assert re.search(r"^\[Switching to thread 2 .*\]\n#0 ", result.stdout, re.MULTILINE)
    assert result.stdout.splitlines()[-1] == "kvm thread 40"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("77", "no process or thread 77"),
        ("", "usage: kvm thread PID"),
        ("init", "usage: kvm thread PID"),
        ("0", "PID 0 is the idle task of every CPU: select one of 10000000, 10000001"),
    ],
)
def test_a_thread_that_cannot_be_selected(stand_in: Gdb, tmp_path: Path, words: str, text: str) -> None:
    result = run(stand_in, f"kvm open {tmp_path}/image", f"kvm thread {words}")
    assert text in result.stderr
    assert result.returncode == 1


def test_an_image_served_at_a_socket_is_connected_to_later(stand_in: Gdb, tmp_path: Path) -> None:
    place = tmp_path / "socket"
    steps = [f"kvm open --socket {place} {tmp_path}/image", "python print(len(gdb.selected_inferior().threads()))"]
    connected = [f"target remote {place}", "p/x $rip", "kvm loadavg", "kvm close"]
    result = run(stand_in, *steps, *connected)
    assert result.stdout.splitlines()[0] == "0"
    assert f"$1 = {TEXT + 0x100:#x}\n0.50 1.25 2.00\n" in result.stdout
    assert result.returncode == 0, result.stderr
    assert not place.exists()
    place.touch()
    result = run(stand_in, *steps)
    assert f"{place}: a socket is to be made here; remove what is there" in result.stderr
    assert result.returncode == 1


def test_help(stand_in: Gdb, tmp_path: Path) -> None:
    result = run(stand_in, f"kvm open {tmp_path}/image", "help kvm procs", "help kvm open", "help kvm")
    assert "List" in result.stdout
    assert "--no-symbols" in result.stdout
    assert "kvm procs -- " in result.stdout


def test_mi(stand_in: Gdb, tmp_path: Path) -> None:
    mi = stand_in.mi()
    mi.console(SOURCE)
    mi.console(f"kvm open {tmp_path}/image")
    assert mi.console("kvm loadavg").console == "0.50 1.25 2.00\n"
    threads = mi.command("-thread-info").results["threads"]
    assert {thread["name"] for thread in threads} == {
        "init/1",
        "kthreadd/2",
        'sh"<ell>/41',
        "swapper/0/0",
        "swapper/1/0",
    }

    # the fixture looks for what is left
