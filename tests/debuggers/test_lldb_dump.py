"""What only lldb's adapter does, on the demo's real dump."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from tests.debuggers.child import Result, run
from tests.debuggers.conftest import IMPORT, Demo
from tests.debuggers.debugger import ROOT
from tests.debuggers.driver import Lldb
from tests.lab import find as find_dump

FUNCTIONS = """
import json, lldb

def process():
    return lldb.debugger.GetSelectedTarget().GetProcess()

def read(address, size):
    error = lldb.SBError()
    data = process().ReadMemory(address, size, error)
    return data.hex() if error.Success() else "error: " + error.GetCString()

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


def test_user_memory_is_refused(real_lldb: Lldb, demo: Demo, tmp_path: Path) -> None:
    """Lldb does not say whose memory it asks for."""
    place = "functions.process().GetSelectedThread().GetFrameAtIndex(0).GetPC()"
    steps = "thread select 2", f"=[{place}, functions.read({place}, 16)]"
    ((address, user),) = evaluate(real_lldb, demo, tmp_path, *steps, options="--no-symbols")
    assert not address >> 63
    assert user.startswith("error: ")


def test_only_the_panicking_thread_has_a_reason_to_stop(real_lldb: Lldb, demo: Demo, tmp_path: Path) -> None:
    """It is shown whenever a stop is."""
    code = "[thread.GetIndexID() for thread in functions.process() if thread.GetStopReason() == lldb.eStopReasonSignal]"
    (reasons,) = evaluate(real_lldb, demo, tmp_path, f"={code}", options="--no-symbols")
    assert reasons == [1]


def test_a_failed_command_ends_a_batch_run(real_lldb: Lldb, demo: Demo) -> None:
    result = lldb_run(real_lldb, demo, "kvm procs --nonsense", "kvm loadavg", options="--no-symbols")
    assert (result.returncode, result.stdout) == (1, "")


def test_help_and_completion(real_lldb: Lldb, demo: Demo, tmp_path: Path) -> None:
    files = f"=functions.completions('kvm open {tmp_path}/functi')"
    names, path = evaluate(real_lldb, demo, tmp_path, "=functions.completions('kvm lo')", files, options="--no-symbols")
    assert names == ["loadavg", "log"]
    assert path == [f"{tmp_path}/functions.py"]
    result = lldb_run(real_lldb, demo, "help kvm procs", "help kvm", "kvm help procs", options="--no-symbols")
    assert "kvm procs --tree" in result.stdout or "Examples:" in result.stdout
    assert re.search(r"^ +procs +-- List", result.stdout, re.MULTILINE)
    assert "usage: kvm procs" in result.stdout


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


def test_kvm_dbg_lldb(real_lldb: Lldb, demo: Demo) -> None:
    files = [str(demo.vmlinux), str(demo.vmcore)]
    own = ["--no-lldbinit", "-Q", "-b", "-o", "kvm loadavg", "-o", "p init_task.comm", "-o", "kvm nonsense"]
    command = [sys.executable, "-m", "kvm_dbg.cli", "lldb", "--lldb", real_lldb.program, *files, "--", *own]
    result = run(command, env=real_lldb.env | {"PYTHONPATH": str(ROOT)}, cwd=os.fspath(ROOT))
    assert result.stdout.startswith("0.65 0.17 0.06\n")
    assert '"swapper/0"' in result.stdout
    assert result.returncode == 1
