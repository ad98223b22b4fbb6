"""Debuggers on FreeBSD systems of other processors, written from definitions: threads, registers, stacks, variables.

Their kernel files have symbols and nothing else, those of functions or not, and the dumps have no code: what a debugger
shows of a stack comes from frame pointers.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.debuggers.debugger import Missing, by_name, clean_environment, find
from tests.debuggers.neutral import SPELLINGS
from tests.writers.freebsd_machines import HZ, MACHINES, System, Thread, write_system

SECONDS = 120
FUNCTION_SIZE = 0x1000  # bytes, at most
FIRST_THREAD = "python [one.switch() for one in gdb.selected_inferior().threads() if one.num == 1]"
PROCESSORS = ("arm64", "arm64-13", "riscv64", "i386", "powerpc64", "powerpc64le")
# Debian's gdb 13.1 knows x86 only
CASES = [(name, machine, "") for name in ("gdb-18.1", "lldb-19.1", "lldb-23.1") for machine in PROCESSORS]
CASES.append(("gdb-13.1", "i386", ""))
CASES += [
    (name, machine, "functions")
    for name in ("lldb-19.1", "lldb-23.1")
    for machine in ("amd64", "arm64", "riscv64", "i386", "powerpc64le")
]
CASES += [(name, machine, "functions") for name, machine in (("gdb-13.1", "amd64"), ("gdb-18.1", "arm64"))]
FRAME = {"gdb": r"^#\d+\s+0x([0-9a-f]+) in ", "lldb": r"frame #\d+: 0x([0-9a-f]+)"}
THREAD = {"gdb": r'^Thread \d+ \(Thread \d+ "(.*?)" \(pid', "lldb": r"^. thread #\d+, name = '(.*?)'"}


def ask(name: str, system: System, directory: Path, registers: list[str]) -> str:
    """Return what a debugger says of all stacks, of the first thread's registers and of `hz`."""
    found = find(by_name(name))
    if isinstance(found, Missing):
        pytest.skip(found.reason)
    (directory / "kernel").write_bytes(system.kernel)
    (directory / "vmcore.0").write_bytes(system.dump)
    kind = found.debugger.kind
    lines = [SPELLINGS[kind].adapter, f"kvm open {directory / 'kernel'} {directory / 'vmcore.0'}"]
    if kind == "gdb":
        lines += ["thread apply all -ascending bt", FIRST_THREAD]
        lines += [f'printf "{register} = %#lx\\n", ${register}' for register in registers]
        lines += ['printf "hz = %d\\n", *(int *) &hz']
    else:
        lines += ["thread backtrace all"]
        lines += [f"register read --format hex {register}" for register in registers]
        lines += [f"memory read --size 4 --format d --count 1 {system.symbols['hz']:#x}"]
    spelling = SPELLINGS[kind]
    done = subprocess.run(
        [
            found.program,
            *spelling.program,
            *spelling.batch,
            *(word for line in lines for word in (spelling.option, line)),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=clean_environment(directory) | {"KVM_DBG_PYTHON": sys.executable},
        check=False,
    )
    return done.stdout + done.stderr


def stacks_of(kind: str, text: str) -> list[tuple[str, list[int]]]:
    """Return each thread's name and program counters."""
    found: list[tuple[str, list[int]]] = []
    for line in text.splitlines():
        thread = re.search(THREAD[kind], line)
        if thread is not None:
            found.append((thread[1], []))
            continue
        frame = re.search(FRAME[kind], line)
        if frame is not None and found:
            found[-1][1].append(int(frame[1], 16))
    return found


def expected_stack(name: str, machine: str, system: System, thread: Thread, *, functions: bool) -> list[int]:
    """Return what a debugger can show.

    lldb lacks a Power stack's last frame, and lldb 23.1 knows frames only where there are rules, which are by function.
    Trap frames are crossed on amd64, by the names of their handlers, for which gdb shows words and no address.
    """
    if machine == "amd64" and functions:
        handler = range(system.functions["Xtimerint"], system.functions["Xtimerint"] + FUNCTION_SIZE)
        return [pc for pc in thread.trapped if name.startswith("lldb") or pc not in handler]
    if name.startswith("lldb") and machine.startswith("powerpc"):
        return thread.pcs[:1] if name == "lldb-23.1" and not functions else thread.pcs[:-1]
    return thread.pcs


@pytest.mark.parametrize(("name", "machine", "functions"), CASES)
def test_threads_stacks_and_registers(name: str, machine: str, functions: str, tmp_path: Path) -> None:
    system = write_system(MACHINES[machine], functions=bool(functions))
    first = dict(system.threads[0].registers)
    text = ask(name, system, tmp_path, list(first))
    kind = name.partition("-")[0]
    stacks = stacks_of(kind, text)
    assert [thread for thread, _ in stacks] == [thread.name for thread in system.threads], text
    expected = [expected_stack(name, machine, system, one, functions=bool(functions)) for one in system.threads]
    assert [pcs for _, pcs in stacks] == expected, text
    seen = {word: int(value, 16) for word, value in re.findall(r"^\s*(\w+) = (0x[0-9a-f]+)", text, re.MULTILINE)}
    mask = (1 << MACHINES[machine].bits) - 1
    # gdb's printf widens a signed register of 32 bits to 64
    assert {register: seen.get(register, -1) & mask for register in first} == first, text
    assert re.search(rf"^(hz = |0x[0-9a-f]+: ){HZ}$", text, re.MULTILINE), text
