"""Every debugger on the demo's dump, a panic that goes through two modules, against what its guest said of itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvm_dbg.image import open_image
from tests.debuggers.case import plain
from tests.debuggers.conftest import Demo
from tests.debuggers.debugger import ROOT, Found
from tests.debuggers.demo_truth import PROCESSES, TRUTH, call_trace, kernel_symbols, user_registers
from tests.debuggers.neutral import Answers, Frame, Step, Subject, kvm, kvm_open, step
from tests.debuggers.plugin import CACHE

SIZE = 0x2_0000


def machine(frames: list[Frame]) -> list[Frame]:
    """Return the frames in the kernel, as the machine has them."""
    return [frame for frame in frames if frame.in_kernel and not frame.virtual]


SYMBOLS = kernel_symbols()
NAMES = ("linux_banner", "init_task", "shelf_give_back", "take_back")


@pytest.fixture(scope="session")
def answers(
    debugger: Found, demo: Demo, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Answers:
    """Open the demo in a debugger, once in a run, and ask everything; then close it, and open it twice."""
    steps: dict[str, Step] = {
        "untouched": step("state"),
        "open": kvm_open(demo.vmlinux, demo.vmcore),
        "no modules": kvm(f"mods --load {demo.modules.parent / 'nothing'}"),
        "modules": kvm(f"mods --load {demo.modules}"),
        "backtrace": step("backtrace"),
        "stacks": step("stacks"),
        "threads": step("threads"),
        **{name: step("address", name) for name in NAMES},
        "place": kvm(f"vtop {SYMBOLS['_text']:#x} --json"),
        "memory": step("read", SYMBOLS["_text"], SIZE),
        "loadavg": kvm("loadavg"),
        "procs": kvm("procs --json"),
        "wrong file": kvm_open(demo.vmlinux, "/nonexistent"),
        "still": kvm("loadavg"),
        "during": step("state"),
        "close": kvm("close"),
        "closed": step("state"),
        "nothing": kvm("loadavg"),
        "first": kvm_open(demo.vmlinux, demo.vmcore),
        "once": step("state"),
        "second": kvm_open(demo.vmlinux, demo.vmcore),
        "twice": step("state"),
        "swapper": step("evaluate", "init_task.comm"),
        "kill": step("kill_server"),
        "gone": kvm("loadavg"),
        "third": kvm_open(demo.vmlinux, demo.vmcore),
        "again": step("evaluate", "init_task.comm"),
        "bare": kvm_open(demo.vmcore, "--no-symbols"),
        "no symbols": kvm("procs --json"),
        "end": kvm("close"),
        "ended": step("state"),
    }
    with Subject(debugger, tmp_path_factory.mktemp("asked"), pytestconfig.stash[CACHE]) as subject:
        return subject.ask(steps)


def test_the_truth_is_what_these_tests_take_it_for() -> None:
    assert call_trace()[:2] == ["take_back", "shelf_give_back"]
    assert call_trace()[-1] == "entry_SYSCALL_64_after_hwframe"
    assert len(user_registers()) == 17


def test_the_backtrace_of_the_panic_is_the_kernels_own(answers: Answers) -> None:
    functions = [frame.function or "" for frame in machine(answers.frames("backtrace"))]
    assert list(map(plain, functions)) == list(map(plain, call_trace()))


def test_backtraces_have_source_lines_in_modules_too(answers: Answers) -> None:
    first, *rest = answers.frames("backtrace")
    assert (first.function, Path(first.file or "").name, first.line) == ("take_back", "shelf.c", 73)
    write = next(frame for frame in rest if frame.function == "vfs_write")
    assert str(write.file).endswith("fs/read_write.c")


def test_backtraces_of_all_tasks_end_where_they_entered(answers: Answers) -> None:
    stacks = answers.stacks("stacks")
    assert len(stacks) >= 40
    panicking, *others = stacks
    for tid in [panicking, *others]:
        state = PROCESSES.get(str(tid), {}).get("status", {}).get("State", "")
        frames = machine(stacks[tid])
        if not stacks[tid]:
            assert state.startswith("Z"), f"thread {tid} has no registers"
            continue
        if not frames:
            continue  # it was in user space
        names = [frame.function or "" for frame in frames]
        assert all(names), f"thread {tid} has a frame without a name: {names}"
        ends = ("ret_from_fork", "secondary_startup_64", "entry_SYSCALL_64", "asm_")
        assert names[-1].startswith(ends), f"thread {tid} ends in {names[-1]}"
        if state.startswith("S") and tid != panicking:
            assert names[0] == "__schedule", f"thread {tid} sleeps in {names[0]}"


def test_threads_have_the_names_of_the_tasks(answers: Answers) -> None:
    names = {str(thread.id): thread.name for thread in answers.threads("threads")}
    # A kernel worker's name in /proc has what it works on behind it, and the dump is from a moment later.
    compared = {pid: f"{process['status']['Name']}/{pid}" for pid, process in PROCESSES.items() if pid in names}
    compared = {pid: name for pid, name in compared.items() if not name.startswith("kworker")}
    assert len(compared) >= 30
    assert {pid: names[pid] for pid in compared} == compared


def test_symbols_of_kernel_and_modules_lie_where_the_kernel_put_them(answers: Answers) -> None:
    assert {name: answers[name] for name in NAMES} == {name: SYMBOLS[name] for name in NAMES}
    assert re.search(r"symbols of (\d+) of \1 modules loaded", answers["modules"])


def test_modules_without_files_are_an_error(answers: Answers) -> None:
    assert answers.error("no modules")


def test_memory_is_the_images(answers: Answers, demo: Demo) -> None:
    paddr = int(json.loads(answers["place"])["paddr"], 16)
    with open_image([str(demo.vmcore)]) as image:
        assert bytes.fromhex(answers["memory"]) == image.read(paddr, SIZE)


def test_load_average_and_processes(answers: Answers) -> None:
    load = (TRUTH / "loadavg").read_text().split()[:3]
    assert answers["loadavg"].split() == answers["still"].split() == load
    pids = {str(process["pid"]) for process in json.loads(answers["procs"])}
    assert len(set(PROCESSES) & pids) >= len(PROCESSES) - 5  # the programs that wrote the truth are gone
    assert json.loads(answers["no symbols"]) == json.loads(answers["procs"])


def test_an_open_that_fails_leaves_what_was_open(answers: Answers) -> None:
    assert "/nonexistent" in answers.error("wrong file")
    assert answers["still"] == answers["loadavg"]


def test_close_puts_everything_back(answers: Answers) -> None:
    assert answers["untouched"] == answers["closed"] == answers["ended"]
    assert answers["during"] != answers["untouched"]
    assert "no kernel image is open: use `kvm open" in answers.error("nothing")


def test_what_is_open_is_replaced_by_the_next(answers: Answers) -> None:
    assert answers["once"] == answers["twice"] != answers["untouched"]
    assert answers["swapper"] == "swapper/0"


def test_a_killed_server_is_told_and_can_be_replaced(answers: Answers) -> None:
    assert "was killed by SIGKILL; the image is closed, use `kvm open` again" in answers.error("gone")
    assert answers["again"] == "swapper/0"


@pytest.mark.parametrize("commands", [("kvm loadavg",), ("kvm procs --json", "kvm loadavg"), ("kvm log --tail 3",)])
def test_standard_output_of_a_batch_run_is_the_commands_alone(
    subject: Subject, demo: Demo, commands: tuple[str, ...]
) -> None:
    result = subject.batch([f"kvm open {demo.vmcore} --no-symbols", *commands])
    plain = "".join(cli(command.removeprefix("kvm "), demo) for command in commands)
    assert (result.returncode, result.stdout) == (0, plain)
    assert "Traceback" not in result.stderr


def cli(line: str, demo: Demo) -> str:
    """Return what the command prints without a debugger."""
    name, *rest = line.split()
    words = [sys.executable, "-m", "kvm_dbg.cli", name, str(demo.vmcore), *rest]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_a_command_that_fails_makes_a_batch_run_fail(subject: Subject, demo: Demo) -> None:
    result = subject.batch([f"kvm open {demo.vmcore} --no-symbols", "kvm procs --nonsense"])
    assert (result.returncode, result.stdout) == (1, "")
    assert "unrecognized arguments: --nonsense" in result.stderr


def test_what_cannot_be_opened_is_one_clear_error(subject: Subject, demo: Demo, tmp_path: Path) -> None:
    empty, cut = tmp_path / "empty", tmp_path / "cut"
    empty.touch()
    cut.write_bytes(demo.vmcore.read_bytes()[:100])
    wrong: dict[str, tuple[Step, str]] = {
        "absent": (kvm_open(demo.vmlinux, "/nonexistent"), "/nonexistent"),
        "empty": (kvm_open(demo.vmlinux, empty), str(empty)),
        "cut": (kvm_open(demo.vmlinux, cut), "offset 0x"),
        "directory": (kvm_open(demo.vmlinux, tmp_path), "directory"),
        "device": (kvm_open(demo.vmlinux, "/dev/zero"), "device"),
        "program": (kvm_open("--vmlinux", "/bin/true", demo.vmcore), "/bin/true"),
        "alone": (kvm_open(demo.vmlinux), "no image given"),
        "option": (kvm_open(demo.vmcore, "--bogus"), "unrecognized arguments: --bogus"),
    }
    answers = subject.ask({**{name: one for name, (one, _) in wrong.items()}, "state": step("state")})
    for name, (_, text) in wrong.items():
        assert text in answers.error(name)
    assert "Traceback" not in answers.result.stdout + answers.result.stderr


def test_what_needs_an_image_says_so(subject: Subject) -> None:
    steps = {line: kvm(line) for line in ("status", "status --json", "help open", "geterr", "procs", "close")}
    answers = subject.ask(steps)
    assert (answers["status"], answers["status --json"]) == ("no kernel image is open\n", '{"open": false}\n')
    assert "--no-symbols" in answers["help open"]
    assert answers["geterr"] == ""
    for line in ("procs", "close"):
        assert "no kernel image is open: use `kvm open [VMLINUX] IMAGE...` first" in answers.error(line)


def test_the_adapter_can_be_loaded_again(subject: Subject, demo: Demo) -> None:
    again = subject.spelling.adapter.replace("script import", "script import -r")
    result = subject.batch([f"kvm open {demo.vmcore} --no-symbols", again, "kvm loadavg"])
    assert (result.returncode, result.stdout.split()) == (0, (TRUTH / "loadavg").read_text().split()[:3])
