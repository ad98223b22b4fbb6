"""What only gdb's adapter does, on the demo's real dump, against what the guest itself said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.debuggers.child import Result
from tests.debuggers.conftest import SOURCE, Demo
from tests.debuggers.demo_truth import PROCESSES, TRUTH, kernel_symbols, user_registers
from tests.debuggers.driver import Gdb


def run(gdb: Gdb, demo: Demo, *commands: str, options: str = "") -> Result:
    result = gdb.run([SOURCE, f"kvm open {demo.vmlinux} {demo.vmcore} {options}", *commands])
    assert "Traceback" not in result.stdout + result.stderr
    return result


def evaluate(gdb: Gdb, demo: Demo, expression: str, *commands: str) -> Any:
    """Return the value of a Python expression inside gdb, after `commands`."""
    result = run(gdb, demo, *commands, f"python import json; print('value:' + json.dumps({expression}))")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.rpartition("value:")[2])


def test_registers_of_the_user_frame(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    registers = user_registers()
    names = sorted(registers)
    values = evaluate(
        real,
        demo,
        f"[int(gdb.selected_frame().read_register(name)) % 2**64 for name in {names!r}]",
        f"kvm mods --load {demo.modules}",
        "frame function entry_SYSCALL_64",
        "up",
    )
    assert dict(zip(names, values, strict=True)) == registers


def test_per_cpu_symbols_are_offsets_into_the_cpus_areas(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    """Follow them: `current_task` of CPU n is a task that this CPU runs, by the kernel's own list of offsets."""
    values = evaluate(
        real,
        demo,
        "[[int(gdb.parse_and_eval('&runqueues')) % 2**64,"
        " int(gdb.parse_and_eval('$kvm_nlist(\"runqueues\")')) % 2**64],"
        " [gdb.parse_and_eval('((struct rq *) ((char *) &runqueues + __per_cpu_offset[%d]))->cpu' % cpu).__int__()"
        " for cpu in (0, 1)]]",
    )
    assert values[0][0] == values[0][1] < 1 << 20
    assert values[1] == [0, 1]


def test_typed_expressions(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    version = (TRUTH / "version").read_text().strip()
    values = evaluate(
        real,
        demo,
        "[gdb.parse_and_eval(text).string() for text in"
        " ('init_task.comm', '$kvm_proc(1)->comm', '(char *) linux_banner')]",
    )
    assert values == ["swapper/0", "init", version + "\n"]


def test_user_memory_is_that_of_each_process(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    code = """
found = {}
for thread in gdb.selected_inferior().threads():
    thread.switch()
    task = gdb.parse_and_eval("$kvm_proc(%d)" % thread.ptid[1])
    if thread.ptid[1] < 4194304 and task["mm"]:
        found[thread.ptid[1]] = gdb.parse_and_eval("(char *) %d" % int(task["mm"]["arg_start"])).string("latin-1")
"""
    (tmp_path / "arguments.py").write_text(code)
    values = evaluate(real, demo, "found", f"source {tmp_path}/arguments.py")
    compared = {
        pid: values[pid]
        for pid, process in PROCESSES.items()
        if pid in values and process["status"]["Name"] == process["status"]["Name"] and process.get("cmdline")
    }
    assert len(compared) >= 10
    assert compared == {pid: first_argument(PROCESSES[pid]["cmdline"]) for pid in compared}


def test_no_way_of_reading_shows_another_process(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    """Python's Inferior.read_memory is the thread's, or fails: gdb 18 does not say whose memory it wants."""
    code = """
read, right = [], []
order = [thread for thread in gdb.selected_inferior().threads() if 0 < thread.ptid[1] < 4194304]
for thread in order + order[::-1] + order:
    thread.switch()
    task = gdb.parse_and_eval("$kvm_proc(%d)" % thread.ptid[1])
    if task["mm"]:
        start = int(task["mm"]["arg_start"])
        if len(right) % 2:
            gdb.execute("x/4xb %d" % start, False, True)
        try:
            read.append(bytes(gdb.selected_inferior().read_memory(start, 8)).hex())
        except gdb.MemoryError:
            read.append("")
        right.append(bytes(gdb.parse_and_eval("*(unsigned char (*)[8]) %d" % start).bytes).hex()
                     if hasattr(gdb.Value, "bytes") else
                     "".join("%02x" % gdb.parse_and_eval("*(unsigned char *) %d" % (start + at)) for at in range(8)))
"""
    (tmp_path / "arguments.py").write_text(code)
    read, right = evaluate(real, demo, "[read, right]", f"source {tmp_path}/arguments.py")
    assert len(set(right)) >= 10
    wrong = [(one, other) for one, other in zip(read, right, strict=True) if one not in ("", other)]
    assert wrong == []


def first_argument(cmdline: Any) -> str:
    return str(cmdline[0]) if isinstance(cmdline, list) else str(cmdline).partition("\0")[0]


def test_the_index_cache_is_used_and_the_settings_come_back(real: Gdb, demo: Demo) -> None:
    names = ("index-cache enabled", "index-cache directory", "debuginfod enabled", "remotetimeout", "non-stop")
    show = f"python print([str(gdb.parameter(name)) for name in {names!r}])"
    result = run(real, demo, show, "kvm close", show, "info files", "info sharedlibrary", "p init_task")
    during, after = result.stdout.splitlines()[:2]
    plain = real.run([show]).stdout.splitlines()[0]
    assert after == plain
    assert during.startswith(plain.partition(", 'off'")[0][:20])
    assert "No symbol table is loaded" in result.stderr
    indexes = list(Path(real.env["XDG_CACHE_HOME"], "kvm-dbg", "gdb-index").glob("*/*.gdb-index"))
    assert indexes


def test_a_kernel_file_that_gdb_has_already_is_placed_right(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    symbols = kernel_symbols()
    expression = "[int(gdb.parse_and_eval('&' + name)) % 2**64 for name in ('linux_banner', 'init_task')]"
    result = real.run(
        [
            SOURCE,
            f"file {demo.vmlinux}",
            f"kvm open {demo.vmcore} --search {demo.vmlinux.parent} --vmlinux {demo.vmlinux}",
            f"python import json; print(json.dumps({expression}))",
            "kvm close",
            f"python print(json.dumps({expression}))",
        ]
    )
    placed, link_time = (json.loads(line) for line in result.stdout.splitlines() if line.startswith("["))
    assert placed == [symbols["linux_banner"], symbols["init_task"]]
    assert placed[0] - link_time[0] == placed[1] - link_time[1] != 0


def test_a_thread_is_selected_by_pid_and_bt_is_about_it(real: Gdb, demo: Demo) -> None:
    steps = [
        "kvm bt --json",
        "kvm thread 1",
        "kvm bt --json",
        "kvm bt 2 --json",
        "inferior",
        "add-inferior",
        "inferior 2",
    ]
    result = run(real, demo, *steps, "kvm bt --json", options="--no-symbols")
    answers = [json.loads(text) for text in re.findall(r"^\[\n.*?^\]$", result.stdout, re.MULTILINE | re.DOTALL)]
    assert [answer[0]["pid"] for answer in answers] == [42, 1, 2, 42]  # the second inferior has no thread
    assert re.search(r"^\[Switching to thread \S+ \(Thread 1\)\]\n#0 ", result.stdout, re.MULTILINE)
