"""The gdb adapter on the demo's real dump, against what the guest itself said: its console, /proc and symbols."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.debuggers.child import Result
from tests.debuggers.conftest import SOURCE, Demo
from tests.debuggers.debugger import ROOT
from tests.debuggers.driver import Gdb

TRUTH = ROOT / "sample" / "truth"

FRAMES = """
import gdb, json

def frames():
    found = []
    frame = gdb.newest_frame()
    while frame is not None and len(found) < 100:
        kind = "inline" if frame.type() == gdb.INLINE_FRAME else "frame"
        found.append([frame.name(), frame.pc(), kind, str(frame.unwind_stop_reason())])
        frame = frame.older()
    return found

def all_threads():
    found = {}
    for thread in sorted(gdb.selected_inferior().threads(), key=lambda thread: thread.num):
        thread.switch()
        known = str(gdb.parse_and_eval("$pc")) != "<unavailable>"
        found[thread.ptid[1]] = [thread.name, frames() if known else []]
    return found
"""


def run(gdb: Gdb, demo: Demo, *commands: str, options: str = "") -> Result:
    result = gdb.run([SOURCE, f"kvm open {demo.vmlinux} {demo.vmcore} {options}", *commands])
    assert "Traceback" not in result.stdout + result.stderr
    return result


def evaluate(gdb: Gdb, demo: Demo, folder: Path, expression: str, *commands: str) -> Any:
    """Return the value of a Python expression inside gdb, after `commands`."""
    script = folder / "frames.py"
    script.write_text(FRAMES)
    result = run(gdb, demo, *commands, f"source {script}", f"python print('value:' + json.dumps({expression}))")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.rpartition("value:")[2])


def kernel_symbols() -> dict[str, int]:
    """Return the run-time addresses that the guest's /proc/kallsyms had of a few names."""
    lines = (TRUTH / "kallsyms-of-modules").read_text().splitlines()
    return {words[2]: int(words[0], 16) for words in map(str.split, lines)}


def call_trace() -> list[str]:
    """Return the functions of the kernel's own call trace, the innermost first, without its guesses."""
    console = (TRUTH / "console").read_text()
    trace = console[console.index("RIP: 0010:") : console.index("</TASK>")]
    return [
        match[1]
        for line in trace.splitlines()
        if (match := re.search(r"(?:RIP: 0010:|\]  )([a-zA-Z_]\w*)\+0x", line)) and "? " not in line
    ]


def user_registers() -> dict[str, int]:
    """Return the registers that the panicking task had in user space, as the kernel printed them."""
    console = (TRUTH / "console").read_text()
    text = console[console.index("RIP: 0033:") : console.index("</TASK>")]
    found = {
        re.sub("r0", "r", name.lower()): int(value, 16)
        for name, value in re.findall(r"\b(R[A-Z0-9]{2}): ([0-9a-f]{16})\b", text)
    }
    found["rip"] = int(re.findall(r"RIP: 0033:0x([0-9a-f]+)", text)[0], 16)
    found["rsp"] = int(re.findall(r"RSP: 002b:([0-9a-f]+)", text)[0], 16)
    return found


def test_the_truth_is_what_these_tests_take_it_for() -> None:
    assert call_trace()[:2] == ["take_back", "shelf_give_back"]
    assert call_trace()[-1] == "entry_SYSCALL_64_after_hwframe"
    assert len(user_registers()) == 17


def test_backtrace_of_the_panic_is_the_kernels_own(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    frames = evaluate(real, demo, tmp_path, "frames()", f"kvm mods --load {demo.modules}")
    kernel = [name for name, pc, kind, _ in frames if kind == "frame" and pc >> 63]
    expected = [name.removesuffix("_after_hwframe") for name in call_trace()]  # a label inside entry_SYSCALL_64
    assert kernel == expected
    assert frames[-1][:2] == [None, user_registers()["rip"]]


def test_registers_of_the_user_frame(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    registers = user_registers()
    names = sorted(registers)
    values = evaluate(
        real,
        demo,
        tmp_path,
        f"[int(gdb.selected_frame().read_register(name)) % 2**64 for name in {names!r}]",
        f"kvm mods --load {demo.modules}",
        "frame function entry_SYSCALL_64",
        "up",
    )
    assert dict(zip(names, values, strict=True)) == registers


def test_backtraces_of_all_tasks_end_where_they_entered(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    threads = evaluate(real, demo, tmp_path, "all_threads()", f"kvm mods --load {demo.modules}")
    processes = json.loads((TRUTH / "processes.json").read_text())
    panicking = int(next(iter(threads)))
    assert len(threads) >= 40
    for tid, (name, frames) in threads.items():
        state = processes.get(tid, {}).get("status", {}).get("State", "")
        if not frames:
            assert state.startswith("Z"), f"thread {tid} ({name}) has no registers"
            continue
        kernel = [frame[0] for frame in frames if frame[1] >> 63]
        assert None not in kernel, f"thread {tid} ({name}) has a frame without a name: {kernel}"
        last = frames[-1]
        if last[1] >> 63:
            ends = ("ret_from_fork", "secondary_startup_64", "secondary_startup_64_no_verify")
            assert last[0] in ends, f"thread {tid} ({name}) ends in {last[0]}"
        elif kernel:
            assert kernel[-1].startswith(("entry_SYSCALL_64", "asm_")), f"thread {tid} ({name}) entered by {kernel[-1]}"
        if state.startswith("S") and int(tid) != panicking:
            assert kernel[0] in ("context_switch", "__schedule"), f"thread {tid} ({name}) sleeps in {kernel[0]}"


def test_symbols_lie_where_the_kernel_ran(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    symbols = kernel_symbols()
    names = ["_text", "linux_banner", "init_task"]
    values = evaluate(real, demo, tmp_path, f"[int(gdb.parse_and_eval('&' + name)) % 2**64 for name in {names!r}]")
    assert values == [symbols[name] for name in names]


def test_per_cpu_symbols_are_offsets_into_the_cpus_areas(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    """Follow them: `current_task` of CPU n is a task that this CPU runs, by the kernel's own list of offsets."""
    values = evaluate(
        real,
        demo,
        tmp_path,
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
        tmp_path,
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
    values = evaluate(real, demo, tmp_path, "found", f"source {tmp_path}/arguments.py")
    processes = json.loads((TRUTH / "processes.json").read_text())
    compared = {
        pid: values[pid]
        for pid, process in processes.items()
        if pid in values and process["status"]["Name"] == process["status"]["Name"] and process.get("cmdline")
    }
    assert len(compared) >= 10
    assert compared == {pid: first_argument(processes[pid]["cmdline"]) for pid in compared}


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
    read, right = evaluate(real, demo, tmp_path, "[read, right]", f"source {tmp_path}/arguments.py")
    assert len(set(right)) >= 10
    wrong = [(one, other) for one, other in zip(read, right, strict=True) if one not in ("", other)]
    assert wrong == []


def first_argument(cmdline: Any) -> str:
    return str(cmdline[0]) if isinstance(cmdline, list) else str(cmdline).partition("\0")[0]


def test_load_average_and_processes(real: Gdb, demo: Demo) -> None:
    result = run(real, demo, "kvm loadavg", "kvm procs --json", options="--no-symbols")
    first, _, rest = result.stdout.partition("\n")
    assert first.split() == (TRUTH / "loadavg").read_text().split()[:3]
    processes = json.loads((TRUTH / "processes.json").read_text())
    pids = {str(process["pid"]) for process in json.loads(rest)}
    assert len(set(processes) & pids) >= len(processes) - 5  # the programs that wrote the truth are gone


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
    script = tmp_path / "frames.py"
    script.write_text(FRAMES)
    result = real.run(
        [
            SOURCE,
            f"file {demo.vmlinux}",
            f"kvm open {demo.vmcore} --search {demo.vmlinux.parent} --vmlinux {demo.vmlinux}",
            f"source {script}",
            f"python print(json.dumps({expression}))",
            "kvm close",
            f"python print(json.dumps({expression}))",
        ]
    )
    placed, link_time = (json.loads(line) for line in result.stdout.splitlines() if line.startswith("["))
    assert placed == [symbols["linux_banner"], symbols["init_task"]]
    assert placed[0] - link_time[0] == placed[1] - link_time[1] != 0


def test_module_symbols_lie_where_the_kernel_put_them(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    symbols = kernel_symbols()
    names = [name for name in ("shelf_give_back", "take_back", "carry_out") if name in symbols]
    assert names
    values = evaluate(
        real,
        demo,
        tmp_path,
        f"[int(gdb.parse_and_eval('&' + name)) % 2**64 for name in {names!r}]",
        f"kvm mods --load {demo.modules}",
    )
    assert values == [symbols[name] for name in names]


def test_modules_without_files_are_named(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    result = run(real, demo, f"kvm mods --load {tmp_path}", options="--no-symbols")
    assert "no file was found of: " in result.stderr
    assert result.returncode == 1


def test_memory_through_gdb_is_the_images(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    from kvm_dbg.image import open_image

    where = kernel_symbols()["_text"]
    result = run(
        real,
        demo,
        f"dump binary memory {tmp_path}/memory {where:#x} {where + 0x180000:#x}",
        f"kvm vtop {where:#x} --json",
        options="--no-symbols",
    )
    paddr = int(json.loads(result.stdout)["paddr"], 16)
    with open_image([str(demo.vmcore)]) as image:
        assert (tmp_path / "memory").read_bytes() == image.read(paddr, 0x180000)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("{vmlinux} /nonexistent", "/nonexistent"),
        ("{vmlinux} {tmp}", "directory"),
        ("{vmlinux} {tmp}/empty", "{tmp}/empty"),
        ("--vmlinux /bin/true {vmcore}", "/bin/true"),
        ("{vmlinux}", "no image given"),
    ],
)
def test_what_cannot_be_opened_is_one_clear_error(real: Gdb, demo: Demo, tmp_path: Path, words: str, text: str) -> None:
    (tmp_path / "empty").touch()
    values = {"vmlinux": demo.vmlinux, "vmcore": demo.vmcore, "tmp": tmp_path}
    result = real.run([SOURCE, "kvm open " + words.format(**values), "p 1"])
    assert text.format(**values) in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == "$1 = 1\n"
    assert result.returncode == 1


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
