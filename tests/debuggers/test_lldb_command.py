"""The kvm commands as lldb's own: their list, help and completion, before an image is open and after; threads."""

from __future__ import annotations

import json
import re
from pathlib import Path

from kvm_dbg.commands import COMMANDS
from tests.debuggers.conftest import IMPORT, Demo
from tests.debuggers.demo_truth import TRUTH
from tests.debuggers.driver import Lldb
from tests.debuggers.test_lldb_dump import evaluate, lldb_run

NAMES = [command.name for command in COMMANDS]


def own_completion(lldb: Lldb) -> bool:
    """Return whether this lldb lets a command complete its own words: 20 and newer do (docs/index.md)."""
    return int(lldb.version.partition(".")[0]) >= 20


def quietly(*commands: str) -> list[str]:
    """Return the commands so that a failing one does not end the run."""
    return [f"script lldb.debugger.HandleCommand({command!r})" for command in commands]


def test_every_command_exists_before_an_image_is_open(real_lldb: Lldb) -> None:
    needy = [command.name for command in COMMANDS if command.needs_kernel]
    result = real_lldb.run([IMPORT, *quietly(*(f"kvm {name} 1" for name in needy), "kvm close")])
    message = "error: no kernel image is open: use `kvm open [VMLINUX] IMAGE...` first"
    assert result.stderr.splitlines() == [message] * (len(needy) + 1)
    assert result.stdout == ""


def test_kvm_alone_lists_them_all(real_lldb: Lldb) -> None:
    result = real_lldb.run([IMPORT, "kvm", "kvm help"])
    alone, _, listed = result.stdout.partition("COMMAND ")
    assert sorted(re.findall(r"^ {6}(\w+) +-- ", alone, re.MULTILINE)) == sorted(NAMES)
    assert [line.split()[0] for line in listed.splitlines()[1:-1]] == NAMES
    assert result.stdout.rstrip().endswith("note: nothing is open: start with `kvm open [VMLINUX] IMAGE...`")
    assert (result.returncode, result.stderr) == (0, "")


def test_options_and_pids_complete(real_lldb: Lldb, demo: Demo, tmp_path: Path) -> None:
    lines = ("kvm procs --js", "kvm thread 4", "kvm bt --all 4", "kvm nlist init_tas", "kvm help lo")
    steps = [f"=sorted(functions.completions({line!r}))" for line in lines]
    options, pids, more, symbols, helped = evaluate(real_lldb, demo, tmp_path, *steps)
    running = json.loads((TRUTH / "processes.json").read_text())
    expected = sorted(pid for pid in running if pid.startswith("4"))
    assert set(expected) <= set(pids)
    assert set(expected) <= set(more)
    assert all(pid.startswith("4") for pid in pids)
    assert ("init_task" if own_completion(real_lldb) else "init_task_pid") in symbols  # a variable, a function
    assert options == (["--json"] if own_completion(real_lldb) else [])
    assert helped == (["loadavg", "log"] if own_completion(real_lldb) else [])


def test_options_of_open_complete(real_lldb: Lldb, demo: Demo, tmp_path: Path) -> None:
    line = "kvm open --no-s"
    (found,) = evaluate(real_lldb, demo, tmp_path, f"=functions.completions({line!r})", options="--no-symbols")
    assert found == (["--no-symbols"] if own_completion(real_lldb) else [])


def test_words_reach_the_server_as_they_were_written(real_lldb: Lldb, demo: Demo) -> None:
    result = lldb_run(real_lldb, demo, "kvm log --grep 'Modules linked in: +shelf_proc' --json", options="--no-symbols")
    (line,) = re.findall(r"Modules linked in:.*", (TRUTH / "console").read_text())
    assert [record["text"] for record in json.loads(result.stdout)] == [line.rstrip()]


def test_a_quote_that_does_not_end(real_lldb: Lldb, demo: Demo) -> None:
    result = real_lldb.run([IMPORT, f'kvm open --no-symbols "{demo.vmcore}'])
    if own_completion(real_lldb):  # where lldb splits the words, a quote ends with the line
        assert f"kvm: {demo.vmcore}: Linux 6.1" in result.stderr
    else:
        assert "No closing quotation" in result.stderr
        assert result.returncode == 1


def test_a_thread_is_selected_by_pid(real_lldb: Lldb, demo: Demo, tmp_path: Path) -> None:
    selected = "=functions.process().GetSelectedThread().GetThreadID()"
    first, second, back = evaluate(
        real_lldb, demo, tmp_path, selected, "kvm thread 2", selected, "kvm thread 42", selected, options="--no-symbols"
    )
    assert (first, second, back) == (42, 2, 42)
    result = lldb_run(real_lldb, demo, "kvm thread 2", *quietly("kvm thread 99999", "kvm thread", "kvm thread init"))
    assert re.match(r"\* thread #\d+, name = 'kthreadd/2'\n +frame #0: 0x[0-9a-f]+ vmlinux`", result.stdout)
    errors = ["error: no process or thread 99999", *["error: usage: kvm thread PID"] * 2]
    assert [line for line in result.stderr.splitlines() if line.startswith("error")] == errors


def test_bt_and_vm_are_about_the_selected_thread(real_lldb: Lldb, demo: Demo) -> None:
    steps = ["kvm bt --json", "kvm thread 1", "kvm bt --json", "kvm vm --json", "kvm bt 2 --json"]
    maps = json.loads((TRUTH / "processes.json").read_text())["1"]["maps"]
    result = lldb_run(real_lldb, demo, *steps, options="--no-symbols")
    answers = [json.loads(text) for text in re.findall(r"^\[\n.*?^\]$", result.stdout, re.MULTILINE | re.DOTALL)]
    assert [answer[0].get("pid") for answer in answers] == [42, 1, None, 2]
    assert [f"{int(row['start'], 16):08x}" for row in answers[2]] == [line.split("-")[0] for line in maps]
