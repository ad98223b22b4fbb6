"""The lldb adapter on the demo's real dump, against what the guest itself said: its console, /proc and symbols."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.debuggers.child import Dialogue, Result, run
from tests.debuggers.conftest import IMPORT, Demo, children_of_tests
from tests.debuggers.debugger import ROOT
from tests.debuggers.driver import Lldb
from tests.debuggers.test_gdb_dump import TRUTH, call_trace, kernel_symbols
from tests.debuggers.test_gdb_session import wait_for
from tests.lab import find as find_dump

FUNCTIONS = """
import json, lldb

def process():
    return lldb.debugger.GetSelectedTarget().GetProcess()

def frames(thread):
    return [[frame.GetFunctionName(), frame.GetPC(), frame.IsInlined()] for frame in thread.frames]

def expression(text):
    return lldb.debugger.GetSelectedTarget().EvaluateExpression(text)

def read(address, size):
    error = lldb.SBError()
    data = process().ReadMemory(address, size, error)
    return data.hex() if error.Success() else "error: " + error.GetCString()

def address(name):
    target = lldb.debugger.GetSelectedTarget()
    found = [context.symbol.addr for context in target.FindSymbols(name)]
    return [place.GetLoadAddress(target) for place in found if place.IsValid() and place.GetSection().IsValid()][0]

def setting(name):
    return lldb.SBDebugger.GetInternalVariableValue(name, lldb.debugger.GetInstanceName()).GetStringAtIndex(0)

def completions(line):
    found = lldb.SBStringList()
    lldb.debugger.GetCommandInterpreter().HandleCompletion(line, len(line), 0, -1, found)
    return [found.GetStringAtIndex(at) for at in range(1, found.GetSize())]

def say(value):
    print("value:" + json.dumps(value))
"""


def lldb_run(lldb: Lldb, demo: Demo, *commands: str, options: str = "") -> Result:
    result = lldb.run([IMPORT, f"kvm open {demo.vmlinux} {demo.vmcore} {options}", *commands])
    assert "Traceback" not in result.stdout + result.stderr
    return result


def evaluate(lldb: Lldb, demo: Demo, folder: Path, *steps: str, options: str = "") -> list[Any]:
    """Run the steps inside lldb; return the values of those that start with `=`, which are expressions of Python."""
    (folder / "functions.py").write_text(FUNCTIONS)
    commands = [f"script functions.say({step[1:]})" if step.startswith("=") else step for step in steps]
    result = lldb_run(lldb, demo, f"command script import {folder}/functions.py", *commands, options=options)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in re.findall(r"^value:(.*)$", result.stdout, re.MULTILINE)]


def test_backtrace_of_the_panic_is_the_kernels_own(real_lldb: Lldb, demo: Demo, tmp_path: Path) -> None:
    step = "=functions.frames(functions.process().GetSelectedThread())"
    (frames,) = evaluate(real_lldb, demo, tmp_path, f"kvm mods --load {demo.modules}", step)
    kernel = [name for name, pc, inlined in frames if pc >> 63 and not inlined]
    assert kernel == call_trace()


def test_backtraces_have_source_lines(real_lldb: Lldb, demo: Demo) -> None:
    result = lldb_run(real_lldb, demo, f"kvm mods --load {demo.modules}", "bt")
    assert re.search(r"frame #0: .*shelf\.ko`take_back\(book=0x[0-9a-f]+\) at shelf\.c:73", result.stdout)
    assert re.search(r"vmlinux`vfs_write\(.*\) at read_write\.c:", result.stdout)


def test_backtraces_of_all_tasks_end_where_they_entered(real_lldb: Lldb, demo: Demo, tmp_path: Path) -> None:
    step = "={thread.id: [thread.name, functions.frames(thread)] for thread in functions.process()}"
    (threads,) = evaluate(real_lldb, demo, tmp_path, f"kvm mods --load {demo.modules}", step)
    processes = json.loads((TRUTH / "processes.json").read_text())
    assert len(threads) >= 40
    unnamed = []
    for tid, (name, frames) in threads.items():
        state = processes.get(tid, {}).get("status", {}).get("State", "")
        kernel = [frame[0] for frame in frames if frame[1] >> 63]
        if state.startswith("Z"):
            continue  # a zombie has no registers
        unnamed += [(tid, name, kernel)] if None in kernel else []
        if not kernel:
            continue
        ends = ("ret_from_fork", "secondary_startup_64", "entry_SYSCALL_64", "asm_")
        assert str(kernel[-1]).startswith(ends), f"thread {tid} ({name}) ends in {kernel[-1]}"
    assert not unnamed


def test_threads_have_the_names_of_the_tasks(real_lldb: Lldb, demo: Demo, tmp_path: Path) -> None:
    names, reasons = evaluate(
        real_lldb,
        demo,
        tmp_path,
        "={thread.id: thread.name for thread in functions.process()}",
        "=[thread.id for thread in functions.process() if thread.GetStopReason() == lldb.eStopReasonSignal]",
        options="--no-symbols",
    )
    processes = json.loads((TRUTH / "processes.json").read_text())
    # A kernel worker's name in /proc has what it works on behind it, and the dump is from a moment later.
    compared = {pid: process["status"]["Name"] for pid, process in processes.items() if pid in names}
    compared = {pid: name for pid, name in compared.items() if not name.startswith("kworker")}
    assert len(compared) >= 30
    assert {pid: names[pid] for pid in compared} == compared
    assert reasons == [int(next(iter(names)))]  # only the panicking one is shown whenever a stop is


def test_symbols_lie_where_the_kernel_ran(real_lldb: Lldb, demo: Demo, tmp_path: Path) -> None:
    symbols = kernel_symbols()
    names = ["linux_banner", "init_task", "shelf_give_back", "take_back"]
    (values,) = evaluate(
        real_lldb,
        demo,
        tmp_path,
        f"kvm mods --load {demo.modules}",
        f"=[functions.address(name) for name in {names!r}]",
    )
    assert values == [symbols[name] for name in names]


def test_typed_expressions_read_the_dump(real_lldb: Lldb, demo: Demo) -> None:
    result = lldb_run(real_lldb, demo, "p init_task.comm", "expression -- init_task.pid")
    assert '"swapper/0"' in result.stdout  # the kernel file itself has "swapper"
    assert re.search(r"\(pid_t\) (\$\d+ = )?0$", result.stdout, re.MULTILINE)


def test_kernel_memory_is_the_images_and_user_memory_is_refused(real_lldb: Lldb, demo: Demo, tmp_path: Path) -> None:
    from kvm_dbg.image import open_image

    where = kernel_symbols()["_text"]
    memory, user = evaluate(
        real_lldb,
        demo,
        tmp_path,
        f"=functions.read({where:#x}, 0x20000)",
        "thread select 2",
        "=functions.read(functions.process().GetSelectedThread().GetFrameAtIndex(0).GetPC(), 16)",
        options="--no-symbols",
    )
    slide = where - 0xFFFFFFFF81000000
    assert slide == 0xEA00000
    translated = lldb_run(real_lldb, demo, f"kvm vtop {where:#x} --json", options="--no-symbols")
    paddr = int(json.loads(translated.stdout)["paddr"], 16)
    with open_image([str(demo.vmcore)]) as image:
        assert bytes.fromhex(memory) == image.read(paddr, 0x20000)
    assert user.startswith("error: ")


def test_commands_say_what_they_say_without_a_debugger(real_lldb: Lldb, demo: Demo) -> None:
    for command in ("procs --json", "loadavg", "lwps --csv", "log --tail 3"):
        words = [sys.executable, "-m", "kvm_dbg.cli", *command.split(), str(demo.vmlinux), str(demo.vmcore)]
        plain = run(words, env=real_lldb.env, cwd=os.fspath(ROOT))
        assert plain.returncode == 0
        assert lldb_run(real_lldb, demo, f"kvm {command}", options="--no-symbols").stdout == plain.stdout


def test_writes_are_seen_at_once(real_lldb: Lldb, demo: Demo) -> None:
    result = lldb_run(real_lldb, demo, "p panic_on_oops", "kvm write panic_on_oops --u32 77", "p panic_on_oops")
    assert re.findall(r"^\(int\) (\d+)$", result.stdout, re.MULTILINE) == ["1", "77"]


def test_close_puts_everything_back_and_open_works_again(real_lldb: Lldb, demo: Demo, tmp_path: Path) -> None:
    names = ("target.process.disable-memory-cache", "symbols.enable-lldb-index-cache", "symbols.lldb-index-cache-path")
    settings = f"=[functions.setting(name) for name in {names!r}]"
    before, during, after, targets, again = evaluate(
        real_lldb,
        demo,
        tmp_path,
        "kvm close",
        settings,
        f"kvm open {demo.vmlinux} {demo.vmcore}",
        settings,
        "kvm close",
        settings,
        "=lldb.debugger.GetNumTargets()",
        f"kvm open {demo.vmlinux} {demo.vmcore}",
        f"kvm open {demo.vmlinux} {demo.vmcore}",
        "=[lldb.debugger.GetNumTargets(), functions.expression('init_task.comm').GetSummary()]",
    )
    plain = real_lldb.run(["settings show " + name for name in names]).stdout.splitlines()
    assert before == after == [line.partition(" = ")[2] for line in plain]
    assert during[:2] == ["true", "true"]
    assert (targets, again) == (0, [1, '"swapper/0"'])
    assert children_of_tests(demo.vmcore.parent) == []


def test_a_failed_command_ends_a_batch_run(real_lldb: Lldb, demo: Demo) -> None:
    result = lldb_run(real_lldb, demo, "kvm procs --nonsense", "kvm loadavg", options="--no-symbols")
    assert "unrecognized arguments: --nonsense" in result.stderr
    assert (result.returncode, result.stdout) == (1, "")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("{vmlinux} /nonexistent", "/nonexistent"),
        ("{vmlinux} {tmp}/empty", "{tmp}/empty"),
        ("--vmlinux /bin/true {vmcore}", "/bin/true"),
        ("", "no image given"),
    ],
)
def test_what_cannot_be_opened_is_one_clear_error(
    real_lldb: Lldb, demo: Demo, tmp_path: Path, words: str, text: str
) -> None:
    (tmp_path / "empty").touch()
    values = {"vmlinux": demo.vmlinux, "vmcore": demo.vmcore, "tmp": tmp_path}
    result = real_lldb.run([IMPORT, "kvm open " + words.format(**values), "p 1"])
    assert text.format(**values) in result.stderr
    assert "Traceback" not in result.stderr
    assert (result.returncode, result.stdout) == (1, "")


def test_what_needs_an_image_says_so(real_lldb: Lldb) -> None:
    result = real_lldb.run([IMPORT, "kvm status", "kvm status --json", "kvm help open", "kvm close"])
    assert result.stdout.startswith('no kernel image is open\n{"open": false}\n')
    assert "--no-symbols" in result.stdout
    assert "no kernel image is open: use `kvm open" in result.stderr
    assert result.returncode == 1


def test_help_and_completion(real_lldb: Lldb, demo: Demo, tmp_path: Path) -> None:
    files = f"=functions.completions('kvm open {tmp_path}/functi')"
    names, path = evaluate(real_lldb, demo, tmp_path, "=functions.completions('kvm lo')", files, options="--no-symbols")
    assert names == ["loadavg", "log"]
    assert path == [f"{tmp_path}/functions.py"]
    result = lldb_run(real_lldb, demo, "help kvm procs", "help kvm", "kvm help procs", options="--no-symbols")
    assert "kvm procs --tree" in result.stdout or "Examples:" in result.stdout
    assert re.search(r"^ +procs +-- List", result.stdout, re.MULTILINE)
    assert "usage: kvm procs" in result.stdout


def test_the_adapter_can_be_imported_again(real_lldb: Lldb, demo: Demo) -> None:
    result = lldb_run(real_lldb, demo, IMPORT.replace("import", "import -r"), "kvm loadavg", options="--no-symbols")
    assert result.stdout.split() == (TRUTH / "loadavg").read_text().split()[:3]


def test_the_dump_is_no_loaders_business(real_lldb: Lldb, demo: Demo, tmp_path: Path) -> None:
    (images,) = evaluate(
        real_lldb, demo, tmp_path, "=[module.file.basename for module in lldb.debugger.GetSelectedTarget().modules]"
    )
    assert images == ["vmlinux"]


def test_functions_in_several_pieces_take_no_time(real_lldb: Lldb) -> None:
    """The lab's panic goes through `__handle_sysrq.cold`, for which lldb 19 once disassembled most of the kernel."""
    dump = find_dump("deb12-panic")
    assert dump is not None, "the lab has no deb12-panic: python -m tests.lab build"
    result = real_lldb.run([IMPORT, f"kvm open {dump.vmlinux} {dump.files['elf'].paths[0]}", "bt"], timeout=60)
    functions = re.findall(r"frame #\d+: 0x[0-9a-f]+ [^`]*`(\w+)", result.stdout)
    expected = ["panic", "sysrq_handle_crash", "__handle_sysrq", "write_sysrq_trigger", "proc_reg_write", "vfs_write"]
    assert list(dict.fromkeys(name for name in functions if name in expected)) == expected  # once also for inlined ones
    assert functions[-1] == "entry_SYSCALL_64_after_hwframe"
    assert re.search(r"`__handle_sysrq.* at sysrq\.c:603", result.stdout)


def test_a_server_that_was_killed_is_told_and_can_be_replaced(real_lldb: Lldb, demo: Demo) -> None:
    kill = "script import os; os.kill(lldb.kvm_dbg_sessions[lldb.debugger.GetID()].server.ready['pid'], 9)"
    result = lldb_run(real_lldb, demo, kill, "kvm loadavg", "p 1", options="--no-symbols")
    assert "was killed by SIGKILL; the image is closed, use `kvm open` again" in result.stderr
    assert result.returncode == 1
    going_on = "script lldb.debugger.HandleCommand('kvm loadavg')"
    again = f"kvm open {demo.vmcore} --no-symbols"
    result = lldb_run(real_lldb, demo, kill, going_on, again, "kvm loadavg", options="--no-symbols")
    assert " ".join((TRUTH / "loadavg").read_text().split()[:3]) in result.stdout.splitlines()


def test_an_interrupt_ends_the_command_and_nothing_else(real_lldb: Lldb, demo: Demo) -> None:
    command = [real_lldb.program, "--no-lldbinit", "-o", IMPORT, "-o", f"kvm open {demo.vmcore} --no-symbols"]
    with Dialogue(command, env=real_lldb.env) as dialogue:
        dialogue.send(b"script print('re' + 'ady')\nkvm read 0xffffffff80000000 0x40000000\n")
        wait_for(dialogue, b"ready")
        time.sleep(1.5)
        dialogue.process.send_signal(signal.SIGINT)
        dialogue.send(b"kvm loadavg\n")
        assert wait_for(dialogue, b"0.65 0.17 0.06")
        deadline = time.monotonic() + 30
        while "error: interrupted" not in dialogue.stderr_text():  # another pipe: it may come later
            assert time.monotonic() < deadline, dialogue.stderr_text()
            time.sleep(0.05)
        dialogue.send(b"kvm close\nquit\n")
        assert dialogue.wait(30) == 0


def test_kvm_dbg_lldb(real_lldb: Lldb, demo: Demo) -> None:
    files = [str(demo.vmlinux), str(demo.vmcore)]
    own = ["--no-lldbinit", "-Q", "-b", "-o", "kvm loadavg", "-o", "p init_task.comm", "-o", "kvm nonsense"]
    command = [sys.executable, "-m", "kvm_dbg.cli", "lldb", "--lldb", real_lldb.program, *files, "--", *own]
    result = run(command, env=real_lldb.env | {"PYTHONPATH": str(ROOT)}, cwd=os.fspath(ROOT))
    assert result.stdout.startswith("0.65 0.17 0.06\n")
    assert '"swapper/0"' in result.stdout
    assert result.returncode == 1
