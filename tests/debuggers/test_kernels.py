"""Every debugger on the lab's kernels, against what the guests said of themselves.

Each dump is opened once in each debugger, which is asked everything; the tests look at the answers.
"""

from __future__ import annotations

import pytest

from tests.debuggers.asked import COMMANDS, INSTRUCTIONS, STRIDE, SYMBOLS, Asked, absent_page
from tests.debuggers.case import CASES, IDLE_BASE, differences, find_case


def test_it_opens(asked: Asked) -> None:
    said = asked.answers["open"] + asked.answers.result.stdout + asked.answers.result.stderr
    assert f"Linux {asked.case.dump.release}, x86_64, slide {asked.case.dump.slide:#x}" in said


def test_threads_are_the_guests_tasks(asked: Asked) -> None:
    threads = asked.answers.threads("threads")
    listed = {thread.id: thread.name or "" for thread in threads}
    assert len(listed) == len(threads)
    assert [thread.number for thread in threads] == list(range(1, len(threads) + 1))
    assert {tid: listed.get(tid) for tid in asked.case.names} == {
        tid: f"{shown(name)}/{tid}" for tid, name in asked.case.names.items()
    }
    for tid in set(listed) - set(asked.case.lwps):  # what came between the truth and the dump, and idle tasks
        assert listed[tid].startswith("kworker/") or listed[tid] == f"swapper/{tid - IDLE_BASE}/0"


def shown(name: bytes) -> str:
    """Return a name as a terminal may see it: control characters and what is no UTF-8 replaced."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else "?" for character in text)


def test_idle_tasks_are_one_for_each_cpu(asked: Asked) -> None:
    first, _, last = asked.case.truth.text("sys/devices/system/cpu/online").strip().partition("-")
    idle = {thread.id for thread in asked.answers.threads("threads") if thread.id >= IDLE_BASE}
    assert idle == {IDLE_BASE + cpu for cpu in range(int(first), int(last or first) + 1)}


def test_the_first_thread_is_selected_and_the_one_that_panicked(asked: Asked) -> None:
    first = asked.answers.threads("threads")[0]
    assert asked.answers["selected"] == first.id
    panic = asked.case.dump.manifest["panic"]
    if panic is not None:
        assert (first.id, first.name) == (panic["pid"], f"{panic['comm']}/{panic['pid']}")


def test_the_kernels_own_list_of_tasks_can_be_walked(asked: Asked) -> None:
    tasks = asked.answers["tasks"]
    names = {int(pid): comm.encode("latin-1") for pid, (comm, _, _) in tasks.items() if pid != "0"}
    assert {tid: names.get(tid) for tid in asked.case.names} == {
        tid: name[:15] for tid, name in asked.case.names.items()
    }
    groups = {lwp.tid: pid for pid, process in asked.case.truth.processes.items() for lwp in process.lwps}
    assert all(groups[int(pid)] == tgid for pid, (_, tgid, _) in tasks.items() if int(pid) in groups)


def test_names_of_tasks_by_expressions(asked: Asked) -> None:
    comms = asked.answers["comms"]
    assert comms == {pid: asked.answers["tasks"][pid][0] for pid in comms}
    assert len(comms) >= len(asked.case.names) // STRIDE


def test_data_are_the_dumps_and_not_the_kernel_files(asked: Asked) -> None:
    assert asked.answers["swapper"] == "swapper/0"  # in the file it is "swapper"
    assert bytes.fromhex(asked.answers["banner"]) == asked.case.truth.read("proc/version")


def test_symbols_lie_where_the_guest_had_them(asked: Asked) -> None:
    names = [name for name in SYMBOLS if name in asked.case.symbols]
    assert len(names) >= 6
    assert {name: asked.answers[f"symbol {name}"] for name in names} == {
        name: asked.case.symbols[name][0] for name in names
    }
    assert asked.answers["holder"] == "panic"


def test_types_are_those_of_the_kernel_file(asked: Asked) -> None:
    for name, known in asked.case.types.items():
        assert asked.answers[f"size {name}"] == known.size, name
        for member, offset in known.offsets.items():
            assert asked.answers[f"offset {name}.{member}"] == offset, (name, member)


def test_code_is_disassembled_as_by_objdump(asked: Asked) -> None:
    """But for what the kernel patches: the call of __fentry__ at the head becomes a no-op of the same length."""
    ours, theirs = asked.answers["code"], asked.case.code("panic", INSTRUCTIONS)
    assert [address for address, _ in ours] == [address for address, _ in theirs]
    assert len(theirs) == INSTRUCTIONS
    for (_, mnemonic), (_, known) in zip(ours, theirs, strict=True):
        assert known == "call" or mnemonic in (known, known + "q")  # lldb says the size, pushq


def test_stacks_of_sleeping_threads_equal_proc(asked: Asked) -> None:
    wrong = {}
    for tid, places in asked.case.stacks.items():
        frames = [frame for frame in asked.stack(tid) if not asked.case.in_scheduler(frame.pc)]
        if difference := differences(asked.case, frames, places):
            wrong[tid] = difference
    assert len(asked.case.stacks) > 100
    assert not wrong, "\n".join(f"{tid}: {text}" for tid, text in wrong.items())


def test_the_backtrace_of_the_panic_is_the_guests_call_trace(asked: Asked) -> None:
    if not asked.case.crashed:
        return
    frames = asked.stack(asked.answers["selected"])
    inner = [frame.function for frame in frames].index("sysrq_handle_crash")
    assert differences(asked.case, frames[inner:], asked.case.call_trace) == ""
    assert frames[inner - 1].function == "panic"


def test_stacks_of_sleeping_threads_end_where_they_called_from(asked: Asked) -> None:
    stacks = asked.answers.stacks("stacks")
    places = asked.case.user_places
    assert len(places) > 60
    assert {tid: stacks[tid][-1].pc for tid in places} == places


def test_the_panics_stack_ends_where_it_called_from(asked: Asked) -> None:
    if asked.case.crashed:
        assert asked.answers.stacks("stacks")[asked.answers["selected"]][-1].pc == asked.case.user_address


def test_backtraces_have_source_lines(asked: Asked) -> None:
    """A process sleeps in a system call; the files are where Linux has them."""
    frames = {frame.function: frame for frame in asked.answers.frames("backtrace") if frame.in_kernel}
    for function, files in (
        ("schedule", ("kernel/sched/core.c",)),
        ("do_syscall_64", ("arch/x86/entry/common.c", "arch/x86/entry/syscall_64.c")),
    ):
        frame = frames[function]
        assert str(frame.file).endswith(files)
        assert frame.line


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_say_what_they_say_without_a_debugger(asked: Asked, line: str) -> None:
    assert asked.answers[f"kvm {line}"] == asked.case.cli(line)


def test_a_command_that_fails_is_an_error(asked: Asked) -> None:
    assert "unrecognized arguments: --nonsense" in asked.answers.error("wrong")


def test_what_is_not_there_is_an_error_and_never_zeros(asked: Asked) -> None:
    names = ["hole", "null"]
    if "zlib-d31" in CASES[asked.case.dump.name]:
        assert absent_page(asked.case) is not None
        names.append("missing")
    for name in names:
        assert "memory" in asked.answers.error(name)


def test_writes_are_seen_by_everybody(asked: Asked) -> None:
    assert asked.answers["unwritten"] == 0
    assert (asked.answers["written"], asked.answers["rewritten"]) == (77, 78)
    assert '"data": "4d000000"' in asked.answers["kvm read"]


def test_a_dump_does_not_run(asked: Asked) -> None:
    for name in ("resume", "step"):
        assert "this kernel is not running (it is a dump)" in asked.answers[name]
    assert asked.answers["after"] == "swapper/0"


def test_every_kernel_and_both_depths_of_page_tables_are_among_the_cases() -> None:
    cases = [find_case(name) for name in CASES]
    assert {case.dump.levels for case in cases} == {4, 5}
    assert len({case.dump.release for case in cases}) == 4
    assert {case.dump.slide == 0 for case in cases} == {True, False}
