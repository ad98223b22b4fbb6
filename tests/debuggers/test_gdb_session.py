"""The gdb adapter with the stand-in kernel: opening, closing, failing, ending; nothing here needs a real dump."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debuggers.child import Dialogue, Result
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


def test_json_is_all_that_a_script_sees(stand_in: Gdb, tmp_path: Path) -> None:
    result = run(stand_in, f"kvm open {tmp_path}/image", "kvm procs --json")
    assert [process["pid"] for process in json.loads(result.stdout)] == [1, 2, 40]
    assert result.returncode == 0


def test_output_keeps_its_order(stand_in: Gdb, tmp_path: Path) -> None:
    result = run(stand_in, f"kvm open {tmp_path}/image", "echo one\\n", "kvm loadavg", "echo two\\n", "kvm loadavg")
    assert result.stdout == "one\n0.50 1.25 2.00\ntwo\n0.50 1.25 2.00\n"


def test_threads_registers_and_memory(stand_in: Gdb, tmp_path: Path) -> None:
    result = run(
        stand_in,
        f"kvm open {tmp_path}/image",
        "python print([(t.ptid[1], t.name) for t in sorted(gdb.selected_inferior().threads(), key=lambda t: t.num)])",
        "p/x $rip",
        "p $rbp",
        "x/s 0x400000",
        "thread 2",
        "x/s 0x400000",
        "p/x $rbp",
        "output/x *(unsigned char *) 0xffffffff82000001",
    )
    lines = result.stdout.splitlines()
    threads = [(41, 'sh"<ell>'), (1, "init"), (2, "kthreadd"), (10_000_000, "swapper/0"), (10_000_001, "swapper/1")]
    assert lines[0] == str(threads)
    assert lines[1] == f"$1 = {TEXT + 0x100:#x}"
    assert lines[2] == "$2 = <unavailable>"
    assert "shell's page" in lines[3]
    assert "init's page" in lines[6]
    assert lines[7] == "$3 = 0x1234"
    assert lines[8] == "0x7"


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


def test_close_undoes_everything(stand_in: Gdb, tmp_path: Path) -> None:
    settings = ("debuginfod enabled", "remotetimeout", "print inferior-events", "suppress-cli-notifications")
    show = f"python print([str(gdb.parameter(name)) for name in {settings!r}])"
    result = run(
        stand_in, show, f"kvm open {tmp_path}/image", "kvm close", show, "info threads", "info files", "kvm close"
    )
    lines = result.stdout.splitlines()
    assert lines[0] == lines[1]
    assert lines[2:] == ["No threads."]
    assert result.returncode == 1  # the second close had nothing to close


def test_a_second_open_replaces_the_first_and_a_failed_one_does_not(stand_in: Gdb, tmp_path: Path) -> None:
    result = run(
        stand_in,
        f"kvm open {tmp_path}/image",
        f"kvm open {tmp_path}/refused",
        "kvm status --json",
        "p/x $rip",
        f"kvm open {tmp_path}/second",
        "kvm status --json",
        "p/x $rip",
    )
    lines = result.stdout.splitlines()
    assert json.loads(lines[0])["image"] == [f"{tmp_path}/image"]
    assert json.loads(lines[2])["image"] == [f"{tmp_path}/second"]
    assert lines[1].endswith(f"{TEXT + 0x100:#x}")
    assert lines[3].endswith(f"{TEXT + 0x100:#x}")
    assert f"{tmp_path}/refused: refused, as its name says" in result.stderr
    assert result.returncode == 1


def test_the_last_error_can_be_asked_for(stand_in: Gdb, tmp_path: Path) -> None:
    result = run(stand_in, f"kvm open {tmp_path}/refused", "kvm geterr")
    assert result.stdout == f"{tmp_path}/refused: refused, as its name says\n"


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


def test_a_killed_server_is_one_clear_error(stand_in: Gdb, tmp_path: Path) -> None:
    kill = "python import os; os.kill(gdb.kvm_dbg_session.server.ready['pid'], 9)"
    result = run(
        stand_in, f"kvm open {tmp_path}/image", kill, "kvm procs", "p 1", f"kvm open {tmp_path}/second", "kvm loadavg"
    )
    assert "the server was killed by SIGKILL" in result.stderr
    assert result.stdout == "$1 = 1\n0.50 1.25 2.00\n"


def test_a_killed_server_seen_by_gdb_first(stand_in: Gdb, tmp_path: Path) -> None:
    kill = "python import os; os.kill(gdb.kvm_dbg_session.server.ready['pid'], 9)"
    result = run(
        stand_in,
        f"kvm open {tmp_path}/image",
        kill,
        "x/x 0xffffffff82000000",
        "p 1",
        f"kvm open {tmp_path}/second",
        "x/xb 0xffffffff82000001",
    )
    assert "$1 = 1" in result.stdout
    assert result.stdout.splitlines()[-1] == "0xffffffff82000001 <_text+1>:\t0x07"


@pytest.mark.parametrize(
    ("python", "text"),
    [
        ("/nonexistent/python", "KVM_DBG_PYTHON: /nonexistent/python"),
        ("/bin/false", "the server has ended with status 1"),
    ],
)
def test_a_wrong_interpreter_is_named(stand_in: Gdb, tmp_path: Path, python: str, text: str) -> None:
    stand_in.env["KVM_DBG_PYTHON"] = python
    result = run(stand_in, f"kvm open {tmp_path}/image", "p 1")
    assert text in result.stderr
    assert result.stdout == "$1 = 1\n"
    assert result.returncode == 1


def test_no_image_and_no_such_option(stand_in: Gdb, tmp_path: Path) -> None:
    result = run(stand_in, "kvm open", f"kvm open {tmp_path}/image --bogus", "kvm open 'unbalanced")
    assert "no image given" in result.stderr
    assert "unrecognized arguments: --bogus" in result.stderr


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


def test_the_adapter_can_be_sourced_again(stand_in: Gdb, tmp_path: Path) -> None:
    result = run(stand_in, f"kvm open {tmp_path}/image", SOURCE, "kvm loadavg")
    assert result.stdout == "0.50 1.25 2.00\n"


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


def test_a_path_with_spaces(stand_in: Gdb, tmp_path: Path) -> None:
    (tmp_path / "an image").touch()
    result = run(stand_in, f'kvm open "{tmp_path}/an image"', "kvm status --json")
    assert json.loads(result.stdout)["image"] == [f"{tmp_path}/an image"]


def test_mi(stand_in: Gdb, tmp_path: Path) -> None:
    mi = stand_in.mi()
    mi.console(SOURCE)
    mi.console(f"kvm open {tmp_path}/image")
    assert mi.console("kvm loadavg").console == "0.50 1.25 2.00\n"
    threads = mi.command("-thread-info").results["threads"]
    assert {thread["name"] for thread in threads} == {"init", "kthreadd", 'sh"<ell>', "swapper/0", "swapper/1"}


def wait_for(dialogue: Dialogue, text: bytes) -> str:
    """Return the first line that has `text`."""
    deadline = time.monotonic() + 30
    while text not in (line := dialogue.read_line(deadline)):
        pass
    return line.decode()


def interrupt_log(gdb: Gdb, tmp_path: Path) -> tuple[str, float]:
    """Run an endless command, interrupt gdb, and return what it said afterwards and how long it took."""
    mi = gdb.mi()
    mi.console(SOURCE)
    mi.console(f"kvm open {tmp_path}/image")
    dialogue = mi.dialogue
    dialogue.send(b'-interpreter-exec console "kvm log"\n')
    wait_for(dialogue, b"and so on")
    started = time.monotonic()
    os.kill(dialogue.process.pid, signal.SIGINT)
    said = wait_for(dialogue, b"^error")
    return said + mi.console("kvm loadavg").console, time.monotonic() - started


def test_ctrl_c_stops_a_command_and_nothing_else(stand_in: Gdb, tmp_path: Path) -> None:
    said, seconds = interrupt_log(stand_in, tmp_path)
    assert said.endswith("0.50 1.25 2.00\n")
    assert seconds < 5


def test_a_killed_gdb_leaves_no_server(stand_in: Gdb, tmp_path: Path) -> None:
    mi = stand_in.mi()
    mi.console(SOURCE)
    mi.console(f"kvm open {tmp_path}/image")
    assert len(children_of_tests(tmp_path)) >= 1
    mi.dialogue.send(b'-interpreter-exec console "kvm log"\n')
    wait_for(mi.dialogue, b"and so on")
    os.kill(mi.dialogue.process.pid, signal.SIGKILL)
    # the fixture looks for what is left
