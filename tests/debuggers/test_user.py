"""`kvm user` in each gdb and lldb: processes of the lab's dumps, against what the guest said of them and their sources.

The guest's caller has two threads that sleep in libcallee.so: main() or second() calls a(), a() calls b(), and b()
calls pause() or sleep(). Its files lie beside the dump, as they do in the guest.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.debuggers.child import Result
from tests.debuggers.conftest import IMPORT, SOURCE, Demo
from tests.debuggers.driver import Gdb, Lldb
from tests.lab import Dump, ProcessTruth, find

SOURCES = Path(__file__).parents[1] / "lab" / "guest"
SUPPRESS = "settings set interpreter.stop-command-source-on-error false"
GOING_ON = "script lldb.debugger.HandleCommand('{}')"  # a failure of the command does not end the run
KERNEL_ADDRESS = 0xFFFFFFFF_81000000


class Lab(NamedTuple):
    """A dump of the guest with its programs."""

    dump: Dump
    programs: Path

    def process(self, name: bytes) -> ProcessTruth:
        [found] = [process for process in self.dump.truth.processes.values() if process.comm == name]
        return found

    def files(self, kind: str = "elf") -> str:
        return f"{self.dump.vmlinux} {self.dump.files[kind].paths[0]}"

    def registers(self, pid: int, tid: int) -> tuple[int, int]:
        """Return (rsp, rip), the last two words of /proc/PID/task/TID/syscall."""
        words = self.dump.truth.text(f"proc/{pid}/task/{tid}/syscall").split()
        return int(words[-2], 0), int(words[-1], 0)


@pytest.fixture(scope="module")
def lab() -> Lab:
    dump = find("deb12-4level")
    if dump is None:
        pytest.skip("the lab has no dump deb12-4level: python -m tests.lab build deb12-4level")
    return Lab(dump, dump.programs)


def line_of(source: str, text: str) -> int:
    """Return the number of the only line of a program's source that has the text."""
    [number] = [
        number for number, line in enumerate((SOURCES / source).read_text().splitlines(), 1) if text in line.strip()
    ]
    return number


def expected_frames() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the frames of the caller's own functions in both threads: (function, file:line), innermost first."""
    a = ("a", f"caller.c:{line_of('caller.c', 'int result = b(')}")
    first = [
        ("b", f"callee.c:{line_of('callee.c', 'pause();')}"),
        a,
        ("main", f"caller.c:{line_of('caller.c', 'return a(1,')}"),
    ]
    second = [
        ("b", f"callee.c:{line_of('callee.c', 'sleep(1000000);')}"),
        a,
        ("second", f"caller.c:{line_of('caller.c', 'a(2, argument);')}"),
    ]
    return first, second


def run_gdb(gdb: Gdb, files: str, *commands: str) -> Result:
    result = gdb.run([SOURCE, f"kvm open {files} --no-symbols", *commands])
    assert "Traceback" not in result.stdout + result.stderr
    return result


def run_lldb(lldb: Lldb, files: str, *commands: str) -> Result:
    result = lldb.run([SUPPRESS, IMPORT, f"kvm open {files} --no-symbols", *commands])
    assert "Traceback" not in result.stdout + result.stderr
    return result


def gdb_frames(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^#\d+ .*?\b(\w+) \(.*\) at (\S+:\d+)$", text, re.MULTILINE)


def lldb_frames(text: str) -> list[tuple[str, str]]:
    return re.findall(r"frame #\d+: 0x[0-9a-f]+ [^`]*`(\w+)(?:\(.*\))? at (\S+\.c:\d+)", text)


def own(frames: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the frames that are of the caller and its library."""
    return [frame for frame in frames if frame[1].startswith(("caller.c", "callee.c"))]


def split(text: str, mark: str) -> list[str]:
    return text.split(f"{mark}\n")


def test_gdb_shows_source_lines_of_both_threads(real: Gdb, lab: Lab) -> None:
    caller = lab.process(b"caller")
    threads = [lwp.tid for lwp in caller.lwps]
    steps = []
    for number in (1, 2):
        steps += ["echo ---\\n", f"thread {number}", 'printf "%#lx %#lx\\n", $rsp, $rip', "bt"]
    result = run_gdb(real, lab.files(), f"kvm user {caller.pid} --sysroot {lab.programs}", *steps)
    assert result.returncode == 0, result.stderr
    table, *parts = split(result.stdout, "---")
    assert f"kvm: inferior 2 is process {caller.pid} (caller); `inferior 1` is the kernel" in result.stderr
    for name in ("/zoo/caller", "/zoo/lib/libcallee.so", "/lib/x86_64-linux-gnu/libc.so.6"):
        assert f"{name}: {lab.programs}{name}" in table
    for tid, part, frames in zip(threads, parts, expected_frames(), strict=True):
        rsp, rip = lab.registers(caller.pid, tid)
        assert f"{rsp:#x} {rip:#x}\n" in part
        assert own(gdb_frames(part)) == frames


def test_gdb_reads_that_process_only(real: Gdb, lab: Lab) -> None:
    caller = lab.process(b"caller")
    argument = caller.arguments.partition(b"\0")[0].decode()
    variables = "python print('callees', gdb.parse_and_eval('callees'))"
    place = "python f = gdb.newest_frame()\nwhile f.name() != 'a': f = f.older()\nprint(f.read_var('place'))"
    start = int(lab.dump.truth.text(f"proc/{caller.pid}/stat").rpartition(") ")[2].split()[45])  # arg_start
    result = run_gdb(
        real,
        lab.files(),
        f"kvm user {caller.pid} --sysroot {lab.programs}",
        variables,
        place,
        f"x/s {start}",
        f"python print(bytes(gdb.selected_inferior().read_memory({start}, {len(argument)})))",
        f"x/gx {KERNEL_ADDRESS:#x}",
        "info auxv",
        "stepi",
    )
    assert "callees 4713" in result.stdout  # 4711, and each of two threads has called b() once
    assert "x = 3, y = -4, name = 0x" in result.stdout
    assert f'"{argument}"' in result.stdout
    assert f"{argument.encode()!r}" in result.stdout
    assert f"Cannot access memory at address {KERNEL_ADDRESS:#x}" in result.stderr
    assert re.search(r'AT_EXECFN .*"/zoo/caller"', result.stdout)
    assert "it is a dump" in result.stderr


def test_gdb_keeps_the_kernel_and_several_processes(real: Gdb, lab: Lab) -> None:
    caller, ia32 = lab.process(b"caller"), lab.process(b"ia32")
    count = "python print('inferiors', [(one.num, bool(one.pid)) for one in gdb.inferiors()])"
    banner = "python print('kernel', bytes(gdb.selected_inferior().read_memory($kvm_nlist(\"linux_banner\"), 13)))"
    banner = 'x/s $kvm_nlist("linux_banner")'
    result = run_gdb(
        real,
        lab.files(),
        "show sysroot",
        f"set sysroot {lab.programs}",
        f"kvm user {caller.pid}",
        f"kvm user {ia32.pid}",
        "bt",
        count,
        "inferior 1",
        banner,
        "inferior 2",
        "bt 2",
        f"kvm user --close {caller.pid}",
        count,
        "kvm user --close",
        "kvm user --close",
        f"kvm user {caller.pid} --json",
        "kvm close",
        count,
        "p 1",
    )
    assert re.search(rf"#0 .* system_call \(number=29\) at ia32.c:{line_of('ia32.c', '__asm__')}", result.stdout)
    assert re.search(r"#1 .* _start \(\) at ia32.c:", result.stdout)
    first, second, last = re.findall(r"^inferiors (.*)$", result.stdout, re.MULTILINE)
    assert first == "[(1, True), (2, True), (3, True)]"
    assert second == "[(1, True), (3, True)]"
    assert last == "[(1, False)]"
    assert '"Linux version ' in result.stdout
    assert re.search(r"^#1 .* b \(", result.stdout, re.MULTILINE)
    assert "no process is open" in result.stderr
    assert result.stdout.endswith("$1 = 1\n")
    assert "error" not in result.stderr.lower()


@pytest.mark.parametrize("kind", ["elf", "zlib-d31"])
def test_gdb_says_what_the_dump_lacks(real: Gdb, lab: Lab, kind: str) -> None:
    caller = lab.process(b"caller")
    rsp, rip = lab.registers(caller.pid, caller.pid)
    result = run_gdb(
        real,
        lab.files(kind),
        f"kvm user {caller.pid} --search {lab.programs}",
        'printf "%#lx %#lx\\n", $rsp, $rip',
        "bt",
        f"x/gx {rsp:#x}",
    )
    assert f"{rsp:#x} {rip:#x}\n" in result.stdout
    assert re.search(r"^#0 .* (__libc_)?pause \(\)", result.stdout, re.MULTILINE)
    filtered = kind != "elf"
    assert (f"stack pages present: 0 of 1 (not in the image: {rsp & -4096:#x}-" in result.stdout) == filtered
    assert ("where a backtrace needs a page of the stack" in result.stdout) == filtered
    assert (f"Cannot access memory at address {rsp:#x}" in result.stderr) == filtered
    assert ("nothing else can be compared" in result.stdout) == filtered
    assert bool(own(gdb_frames(result.stdout))) != filtered


def test_gdb_has_the_libraries_without_the_executable(real: Gdb, lab: Lab, tmp_path: Path) -> None:
    caller = lab.process(b"caller")
    shutil.copytree(lab.programs / "lib", tmp_path / "lib")
    result = run_gdb(real, lab.files(), f"kvm user {caller.pid} --sysroot {tmp_path}", "bt 1", "info auxv")
    assert "/zoo/caller: not found, build-id " in result.stdout
    assert re.search(r"^#0 .* (__libc_)?pause \(\)", result.stdout, re.MULTILINE)
    assert re.search(r'AT_EXECFN .*"/zoo/caller"', result.stdout)


def test_gdb_survives_the_server(real: Gdb, lab: Lab) -> None:
    pid = lab.process(b"caller").pid
    kill = "python import os; os.kill(gdb.kvm_dbg_session.server.ready['pid'], 9)"
    count = "python print('inferiors', [(one.num, bool(one.pid)) for one in gdb.inferiors()])"
    again = f"kvm open {lab.files()} --no-symbols"
    commands = [f"kvm user {pid}", kill, "kvm loadavg", count, again, f"kvm user {pid}", again, count]
    result = run_gdb(real, lab.files(), *commands)
    assert "was killed by SIGKILL; the image is closed, use `kvm open` again" in result.stderr
    assert re.findall(r"^inferiors (.*)$", result.stdout, re.MULTILINE) == ["[(1, False)]", "[(1, True)]"]


def test_gdb_refuses_files_of_another_build(real: Gdb, lab: Lab, tmp_path: Path) -> None:
    caller = lab.process(b"caller")
    (tmp_path / "zoo").mkdir()
    shutil.copy(lab.programs / "zoo" / "toiler", tmp_path / "zoo" / "caller")
    result = run_gdb(real, lab.files(), f"kvm user {caller.pid} --sysroot {tmp_path}", "info files", "bt 1")
    assert f"{tmp_path}/zoo/caller is another build: " in result.stdout
    assert "/zoo/caller: not found, build-id " in result.stdout
    assert "without /zoo/caller, /zoo/lib/libcallee.so frames there have no names" in result.stdout
    assert f"`{tmp_path}" not in result.stdout  # of `info files`


@pytest.mark.parametrize(
    ("pid", "text"), [("2", "it is a kernel thread"), ("4000000", "no process with PID"), ("", "the PID of a process")]
)
def test_gdb_opens_nothing_where_there_is_nothing(real: Gdb, demo: Demo, pid: str, text: str) -> None:
    count = "python print('inferiors', len(gdb.inferiors()))"
    result = run_gdb(real, f"{demo.vmlinux} {demo.vmcore}", f"kvm user {pid}", count)
    assert text in result.stderr
    assert result.stdout.endswith("inferiors 1\n")
    assert result.returncode == 1


def test_lldb_shows_source_lines_of_both_threads(real_lldb: Lldb, lab: Lab) -> None:
    caller = lab.process(b"caller")
    result = run_lldb(
        real_lldb,
        lab.files(),
        f"kvm user {caller.pid} --sysroot {lab.programs}",
        "bt all",
        "thread select 1",
        "register read rsp rip --format hex",
        "frame select 2",  # a(), above pause() and b()
        "frame variable place",
        "image list",
        GOING_ON.format(f"memory read {KERNEL_ADDRESS:#x}"),
    )
    first, second = re.split(r"^\s*thread #2", result.stdout, flags=re.MULTILINE)
    expected = expected_frames()
    assert own(lldb_frames(first)) == expected[0]
    assert own(lldb_frames(second))[:3] == expected[1]  # then comes what `frame select` says
    rsp, rip = lab.registers(caller.pid, caller.pid)
    assert f"rsp = 0x{rsp:016x}" in second
    assert f"rip = 0x{rip:016x}" in second
    assert "x = 3, y = -4, name = " in second
    for name in ("zoo/caller", "zoo/lib/libcallee.so", "lib/x86_64-linux-gnu/libc.so.6"):
        assert f"{lab.programs}/{name}" in second
    assert "memory read failed" in result.stderr


def test_lldb_keeps_the_kernel_and_several_processes(real_lldb: Lldb, lab: Lab) -> None:
    caller, ia32 = lab.process(b"caller"), lab.process(b"ia32")
    result = run_lldb(
        real_lldb,
        lab.files(),
        f"kvm user {caller.pid} --sysroot {lab.programs}",
        f"kvm user {ia32.pid} --sysroot {lab.programs}",
        "bt",
        "target list",
        f"kvm user --close {ia32.pid}",
        "target select 0",
        "kvm loadavg",
        GOING_ON.format("kvm user 2"),
        "script print('left', lldb.debugger.GetNumTargets())",
        "kvm user --close",
        GOING_ON.format("kvm user --close"),
        "script print('left', lldb.debugger.GetNumTargets())",
        f"kvm user {caller.pid}",
        "kvm close",
        "script print('left', lldb.debugger.GetNumTargets())",
    )
    assert re.search(rf"frame #0: .*system_call\(number=29\) at ia32.c:{line_of('ia32.c', '__asm__')}", result.stdout)
    assert re.search(rf"\* target #2: .*/zoo/ia32 \( arch=i386-.*pid={ia32.pid}", result.stdout)
    assert re.search(rf"  target #1: .*/zoo/caller \( arch=x86_64-.*pid={caller.pid}", result.stdout)
    assert re.findall(r"^left (\d)$", result.stdout, re.MULTILINE) == ["2", "1", "0"]
    assert f"kvm: target 1 is process {caller.pid} (caller); `target select 0` goes back to the kernel" in result.stderr
    assert "it is a kernel thread" in result.stderr
    assert "no process is open" in result.stderr


def test_lldb_says_what_the_dump_lacks(real_lldb: Lldb, lab: Lab, tmp_path: Path) -> None:
    caller = lab.process(b"caller")
    (tmp_path / "zoo").mkdir()
    shutil.copy(lab.programs / "zoo" / "toiler", tmp_path / "zoo" / "caller")
    rsp, rip = lab.registers(caller.pid, caller.pid)
    result = run_lldb(
        real_lldb,
        lab.files("zlib-d31"),
        f"kvm user {caller.pid} --sysroot {tmp_path}",
        "bt",
        GOING_ON.format(f"memory read {rsp:#x}"),
    )
    assert f"{tmp_path}/zoo/caller is another build: its segments are not those that are mapped" in result.stdout
    assert "/zoo/caller: not found" in result.stdout
    assert f"stack pages present: 0 of 1 (not in the image: {rsp & -4096:#x}-" in result.stdout
    assert f"frame #0: 0x{rip:016x}" in result.stdout
    assert "memory read failed" in result.stderr
