"""gdb on real dumps without any kernel file: symbols and unwind rules are made from the image.

What is expected is the guest's own word: /proc/PID/task/TID/stack, /proc/kallsyms, and the call trace on its console;
where it has none, `kvm bt`, which the golden tests and those of peers compare with others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.rsp.target import IDLE_BASE
from tests.call_trace import trace_of
from tests.debuggers.conftest import SOURCE, Demo
from tests.debuggers.demo_truth import call_trace
from tests.debuggers.driver import Gdb
from tests.golden.subject import Subject, find_subject

SCENARIOS = ("deb11-4level", "deb12-panic", "deb13-nmi", "bpo13-irq", "bpo13-4level")  # each kernel
FRAMES = """
import gdb, json

def frames():
    found = []
    frame = gdb.newest_frame()
    while frame is not None and len(found) < 100:
        if frame.type() != gdb.TAILCALL_FRAME:  # gdb knows from DWARF who is no longer on the stack
            found.append([frame.name(), frame.pc(), frame.unwind_stop_reason() == gdb.FRAME_UNWIND_OUTERMOST])
        frame = frame.older()
    return found

def all_threads():
    found = {}
    for thread in gdb.selected_inferior().threads():
        thread.switch()
        known = str(gdb.parse_and_eval("$pc")) != "<unavailable>"
        found[thread.ptid[1]] = frames() if known else []
    return found
"""
MADE = "symbols and unwind rules are made from the image"


@pytest.fixture(params=SCENARIOS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return find_subject(request.param)


def evaluate(gdb: Gdb, files: str, folder: Path, expression: str, *commands: str) -> Any:
    """Return the value of a Python expression inside gdb, after `commands`."""
    script = folder / "frames.py"
    script.write_text(FRAMES)
    value = f"python print('value:' + json.dumps({expression}))"
    result = gdb.run([SOURCE, f"kvm open {files}", *commands, f"source {script}", value])
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return json.loads(result.stdout.rpartition("value:")[2])


def image_of(subject: Subject) -> str:
    return " ".join(map(str, subject.dump.files[subject.kind].paths))


def stacks_of(subject: Subject) -> Iterator[tuple[int, list[tuple[int, str | None]]]]:
    """Yield gdb's number of each task, and its stack as `kvm bt` has it, without guesses."""
    session = Session()
    session.open(OpenRequest(tuple(map(str, subject.dump.files[subject.kind].paths))))
    for thread in session.system.for_each_thread(session.kernel):
        tid = thread.lid or IDLE_BASE + (thread.cpu or 0)
        frames = session.system.unwind(session.kernel, thread)
        yield tid, [(frame.pc, frame.name) for frame in frames if frame.how != "scan"]
    session.close()


def plain(name: str | None) -> str | None:
    """Return a name without what gdb makes of it for Ada's sake: a.part.0 is a.part, a.cold is a[cold]."""
    return name and re.sub(r"\.\d+$", "", name).replace("[cold]", ".cold")


def test_backtraces_of_all_tasks_are_those_of_bt(real: Gdb, subject: Subject, tmp_path: Path) -> None:
    threads = evaluate(real, image_of(subject), tmp_path, "all_threads()")
    expected = dict(stacks_of(subject))
    assert len(threads) == len(expected) > 100
    for tid, stack in expected.items():
        found = [(pc, plain(name)) for name, pc, _ in threads[str(tid)]]
        assert found == [(pc, plain(name)) for pc, name in stack], tid
        if found:
            assert threads[str(tid)][-1][2], "gdb was told that nobody called the last frame"


def test_the_panic_is_what_the_guest_printed(real: Gdb, tmp_path: Path) -> None:
    subject = find_subject("deb12-panic")
    trace = trace_of(subject.dump.console.read_text(errors="replace").splitlines())
    assert len(trace.frames) > 5
    frames = evaluate(real, image_of(subject), tmp_path, "frames()")
    names = [plain(name) for name, _, _ in frames]
    # dump_stack and what it called had returned when the dump was taken
    expected = [plain(frame.place[0]) for frame in trace.frames]
    first = expected.index("panic")
    assert names[names.index("panic") : -1] == expected[first:]
    assert frames[-1][:2] == [None, list(trace.interrupted.values())[-1]["rip"]]


def test_symbols_are_those_of_the_guest(real: Gdb, subject: Subject) -> None:
    lines = [line.split() for line in subject.truth.text("proc/kallsyms").splitlines()]
    wanted = ("schedule", "init_task", "linux_banner", "vfs_read")
    addresses = {words[2]: words[0] for words in lines if words[2] in wanted and len(words) == 3}
    of_modules = [words for words in lines if len(words) == 4 and words[1] == "t" and words[3] == "[xfs]"][:1]
    assert len(addresses) == len(wanted)
    assert of_modules
    addresses |= {words[2]: words[0] for words in of_modules}
    commands = [f"info symbol 0x{address}" for address in addresses.values()]
    result = real.run([SOURCE, f"kvm open {image_of(subject)}", *commands, "p/x (long) &schedule"])
    assert MADE in result.stderr
    found = [line.partition(" in section ")[0] for line in result.stdout.splitlines()]
    assert found[:-1] == list(addresses)
    assert int(found[-1].rpartition(" ")[2], 16) == int(addresses["schedule"], 16)


def test_text_is_that_of_the_image(real: Gdb, subject: Subject) -> None:
    session = Session()
    session.open(OpenRequest(tuple(map(str, subject.dump.files[subject.kind].paths))))
    address = session.find_symbol("schedule").address
    expected = session.kernel.read(address, 8)
    session.close()
    commands = ["x/8xb schedule", "x/2i schedule", "disassemble schedule"]
    result = real.run([SOURCE, f"kvm open {image_of(subject)}", *commands])
    memory, *rest = result.stdout.splitlines()
    assert bytes(int(word, 16) for word in memory.split(":")[1].split()) == expected
    start = rest.index("Dump of assembler code for function schedule:")
    assert rest[-1] == "End of assembler dump."
    assert len(rest) - start > 10
    # without the offset, `x/i` and `disassemble` show the same instructions at the same places
    assert [line.split("\t", 1)[1] for line in rest[:start]] == [
        line.split("\t", 1)[1] for line in rest[start + 1 : start + 3]
    ]


def test_modules_without_files_beside_a_vmlinux(real: Gdb, demo: Demo, tmp_path: Path) -> None:
    """The panic is in a module: without symbols and rules of it, gdb guesses and loses the rest of the stack."""
    frames = evaluate(real, f"{demo.vmlinux} {demo.vmcore}", tmp_path, "frames()")
    functions = [name for name, _ in groupby(frames, key=lambda frame: frame[1])]
    assert len(functions) == len(call_trace()) + 1  # inlined functions apart, and the user's code
    names = [name for name, _, _ in frames]
    expected = [name.removesuffix("_after_hwframe") for name in call_trace()]  # a label inside entry_SYSCALL_64
    assert [name for name in names if name in expected] == expected
    assert names[:2] == ["take_back", "shelf_give_back"]


@pytest.mark.parametrize("scenario", ["deb12-irq", "bpo13-irq", "deb13-nmi"])
def test_interrupted_stacks_beside_a_vmlinux(real: Gdb, tmp_path: Path, scenario: str) -> None:
    """Interrupts and NMIs are on other stacks than what they interrupt, which may be at its first instruction."""
    subject = find_subject(scenario)
    frames = evaluate(real, f"{subject.dump.vmlinux} {image_of(subject)}", tmp_path, "frames()")
    stack = next(stack for _, stack in stacks_of(subject))
    assert [pc for pc, _ in groupby(frames, key=lambda frame: frame[1])] == [pc for pc, _ in stack]
    assert frames[-1][2]


def test_files_of_modules_replace_what_was_made_of_them(real: Gdb, demo: Demo) -> None:
    asked = ["info symbol shelf_give_back", "info line shelf_give_back"]
    load = f"kvm mods --load {demo.modules}"
    result = real.run([SOURCE, f"kvm open {demo.vmlinux} {demo.vmcore}", *asked, load, *asked, "bt -3"])
    assert MADE not in result.stderr
    before, after = result.stdout.split("symbols of 4 of 4 modules loaded\n")
    assert re.match(r"shelf_give_back in section \.text\.shelf of \S+/modules-1\.debug\nNo line number", before)
    assert after.startswith(f"shelf_give_back in section .text of {demo.modules}/shelf.ko\nLine ")
    assert " in entry_SYSCALL_64 ()" in after


def test_what_cannot_be_made_again_is_said(real: Gdb, demo: Demo) -> None:
    remove = "python import os, shutil; shutil.rmtree(os.path.dirname(gdb.kvm_dbg_session.server.files[0]))"
    load = f"kvm mods --load {demo.modules}"
    result = real.run([SOURCE, f"kvm open {demo.vmlinux} {demo.vmcore}", remove, load, "kvm nlist init_task"])
    assert result.returncode == 0, result.stderr
    assert "symbols of 4 of 4 modules loaded\n" in result.stdout
    assert "cannot write there: No such file or directory" in result.stderr
    assert "init_task" in result.stdout


def test_a_made_kernel_file_is_kept_by_build_id(real: Gdb, tmp_path: Path) -> None:
    subject = find_subject("deb12-4level")
    real.env["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    commands = [SOURCE, f"kvm open {image_of(subject)}", "info symbol schedule"]
    first = real.run(commands)
    (kept,) = (tmp_path / "cache" / "kvm-dbg" / "index").glob("*/made-*.elf")
    assert f"schedule in section .text of {kept}" in first.stdout
    time = kept.stat().st_mtime_ns
    assert real.run(commands).stdout == first.stdout
    assert kept.stat().st_mtime_ns == time
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])  # whoever wrote it was killed, on a system without rename
    assert real.run(commands).stdout == first.stdout
    assert kept.read_bytes() == whole


def test_without_a_cache_the_file_ends_with_the_server(real: Gdb, tmp_path: Path) -> None:
    subject = find_subject("deb12-4level")
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    real.env |= {"XDG_CACHE_HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path / "tmp")}
    result = real.run([SOURCE, f"kvm open {image_of(subject)}", "info symbol schedule"])
    assert "schedule in section .text of " in result.stdout
    assert list((tmp_path / "tmp").iterdir()) == []
