"""Known damage to the memory of a real dump: lists that loop or lead nowhere, impossible numbers, missing members.

Each time the rest must still be shown, and what is wrong be said in one error at the end or in the row it belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvm_dbg.commands.run import run_line
from kvm_dbg.errors import KvmDbgError
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.kernel.base import Process
from tests.golden.sample import Sample, attempt, bounded

USER, UNMAPPED, NOT_CANONICAL, POISON = 0x400000, 0xFFFFC00000000000, 0x8000000000000000, 0xDEAD000000000100
NOWHERE = (0, USER, UNMAPPED, NOT_CANONICAL, POISON)


class Victim:
    """The sample, opened for one test; `processes` are its processes by PID as they were."""

    def __init__(self, sample: Sample) -> None:
        self.session = sample.open()
        self.kernel = self.session.kernel
        self.processes: dict[int, Process] = {
            process.pid: process for process in self.session.system.for_each_process(self.kernel)
        }
        pids = sorted(self.processes)
        self.first, self.middle, self.last = pids[2], pids[len(pids) // 2], pids[-3]

    def offset(self, struct: str, member: str) -> int:
        return self.kernel.types.offset_of(f"struct {struct}", member)

    def get(self, address: int, size: int = 8) -> int:
        return int.from_bytes(self.kernel.read(address, size), "little")

    def put(self, address: int, value: int, size: int = 8) -> None:
        assert isinstance(self.kernel.image, OverlayImage)
        self.kernel.image.write(self.kernel.translate(address), (value % (1 << 8 * size)).to_bytes(size, "little"))

    def place(self, pid: int, member: str) -> int:
        """Return the address of a member of a process's task_struct."""
        return self.processes[pid].address + self.offset("task_struct", member)

    def run(self, line: str) -> tuple[list[Any], str]:
        """Return the rows of a command, and its error's text, "" if it had none."""
        pieces: list[str] = []
        error = ""
        with attempt():
            try:
                pieces.extend(run_line(self.session, f"{line} --json"))
            except KvmDbgError as raised:
                error = str(raised)
        rows = json.loads("".join(pieces) or "[]")
        return rows if isinstance(rows, list) else [rows], error


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return Sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture
def victim(sample: Sample) -> Iterator[Victim]:
    with bounded():
        victim = Victim(sample)
        yield victim
        victim.session.close()


def pids(rows: list[Any]) -> set[int]:
    return {row["pid"] for row in rows}


@pytest.mark.parametrize("target", ["itself", "an earlier one", *NOWHERE])
@pytest.mark.parametrize("command", ["procs", "lwps", "files", "args"])
def test_a_list_of_tasks_that_loops_or_leads_nowhere_costs_no_process(
    victim: Victim, target: str | int, command: str
) -> None:
    before, none = victim.run(command)
    assert none == ""
    link = victim.place(victim.middle, "tasks")
    if isinstance(target, str):
        target = link if target == "itself" else victim.place(victim.first, "tasks")
    victim.put(link, target)
    rows, error = victim.run(command)
    assert pids(rows) == pids(before)
    assert "0x" in error


@pytest.mark.parametrize("target", ["itself", "another's", *NOWHERE])
def test_a_broken_list_of_threads_costs_the_threads_of_one_process(victim: Victim, target: str | int) -> None:
    many = next(pid for pid, process in victim.processes.items() if process.threads > 1)
    before = {row["lwp"] for row in victim.run("lwps")[0]}
    own = {row["lwp"] for row in victim.run("lwps")[0] if row["pid"] == many}
    node = victim.place(many, "thread_node")
    if isinstance(target, str):
        target = node if target == "itself" else victim.place(victim.first, "thread_node")
    victim.put(node, target)
    rows, error = victim.run("lwps")
    assert {row["lwp"] for row in rows} >= before - own
    assert f"process {many}" in error or "0x" in error


@pytest.mark.parametrize("target", ["another task", *NOWHERE])
@pytest.mark.parametrize(
    "member", ["mm", "signal", "cred", "real_parent", "group_leader", "thread_pid", "nsproxy", "stack", "fs", "files"]
)
def test_a_pointer_of_a_task_that_leads_nowhere_costs_no_row(victim: Victim, member: str, target: str | int) -> None:
    value = victim.processes[victim.middle].address if isinstance(target, str) else target
    victim.put(victim.place(victim.last, member), value)
    for command in ("procs", "args"):
        rows, _ = victim.run(command)
        assert pids(rows) == set(victim.processes), command
    rows, _ = victim.run("files")
    assert pids(rows) >= {1}


@pytest.mark.parametrize("target", ["itself", *NOWHERE])
def test_a_broken_list_of_modules(victim: Victim, target: str | int) -> None:
    head = victim.kernel.symbols.address("modules")
    node = victim.get(head)
    victim.put(node, node if isinstance(target, str) else target)
    rows, error = victim.run("mods")
    assert len(rows) == 1
    assert "0x" in error
    rows, error = victim.run("sys")
    assert rows[0]["release"]
    assert error == ""


@pytest.mark.parametrize("count", [(1 << 20), (1 << 24), (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
def test_an_impossible_size_of_a_file_table(victim: Victim, count: int) -> None:
    others = [row for row in victim.run("files")[0] if row["pid"] != 1]
    files = victim.get(victim.place(1, "files"))
    table = victim.get(files + victim.offset("files_struct", "fdt"))
    victim.put(table + victim.offset("fdtable", "max_fds"), count, 4)
    rows, error = victim.run("files")
    assert [row for row in rows if row["pid"] != 1] == others
    assert len(rows) < len(others) + 200
    assert "the file table of process 1 " in error


@pytest.mark.parametrize("count", [1 << 17, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
def test_an_impossible_number_of_groups(victim: Victim, count: int) -> None:
    cred = victim.get(victim.place(victim.last, "cred"))
    groups = victim.get(cred + victim.offset("cred", "group_info"))
    victim.put(groups + victim.offset("group_info", "ngroups"), count, 4)
    rows, _ = victim.run("procs")
    assert pids(rows) == set(victim.processes)


def first_file(victim: Victim) -> tuple[int, int]:
    """Return the dentry and the vfsmount of the first open file of process 1."""
    table = victim.get(victim.get(victim.place(1, "files")) + victim.offset("files_struct", "fdt"))
    file = victim.get(victim.get(table + victim.offset("fdtable", "fd")))
    path = file + victim.offset("file", "f_path")
    return victim.get(path + victim.offset("path", "dentry")), victim.get(path + victim.offset("path", "mnt"))


def loop_parents(victim: Victim) -> None:
    dentry, _ = first_file(victim)
    parent = victim.get(dentry + victim.offset("dentry", "d_parent"))
    other = victim.get(victim.get(parent + victim.offset("dentry", "d_parent")))
    victim.put(dentry + victim.offset("dentry", "d_parent"), parent)
    victim.put(parent + victim.offset("dentry", "d_parent"), dentry)
    _, mount = first_file(victim)
    victim.put(mount + victim.offset("vfsmount", "mnt_root"), other)


def stretch_name(victim: Victim) -> None:
    dentry, _ = first_file(victim)
    victim.put(dentry + victim.offset("dentry", "d_name.len"), 0x7FFFFFFF, 4)


@pytest.mark.parametrize("damage", [loop_parents, stretch_name])
def test_a_path_that_cannot_be_costs_the_path(victim: Victim, damage: Callable[[Victim], None]) -> None:
    before, _ = victim.run("files")
    damage(victim)
    rows, _ = victim.run("files")
    assert [(row["pid"], row["fd"]) for row in rows] == [(row["pid"], row["fd"]) for row in before]
    [row] = [row for row in rows if (row["pid"], row["fd"]) == (1, 0)]
    assert row["path"] is None
    assert "path" in row["unread"]


@pytest.mark.parametrize(
    ("member", "size", "values"),
    [
        ("desc_ring.count_bits", 4, (0, 1, 31, 32, 63, 64, (1 << 32) - 1)),
        ("text_data_ring.size_bits", 4, (0, 31, 32, 63, 64, (1 << 32) - 1)),
        ("desc_ring.descs", 8, NOWHERE),
        ("desc_ring.infos", 8, NOWHERE),
        ("desc_ring.head_id", 8, (0, 1 << 63, (1 << 62) - 1)),
        ("desc_ring.tail_id", 8, (0, 1 << 63, (1 << 62) - 1)),
    ],
)
def test_an_impossible_log(victim: Victim, member: str, size: int, values: tuple[int, ...]) -> None:
    ring = victim.get(victim.kernel.symbols.address("prb"))
    place = ring + victim.offset("printk_ringbuffer", member)
    for value in values:
        victim.put(place, value, size)
        rows, error = victim.run("log")
        assert "0x" in error or any(row["unread"] for row in rows), f"{member} = {value:#x}"


@pytest.mark.parametrize("member", ["arg_start", "arg_end", "env_end", "pgd"])
@pytest.mark.parametrize("value", [0, 1, USER, 1 << 46, (1 << 64) - 1])
def test_arguments_at_impossible_places_cost_the_arguments_of_one_process(
    victim: Victim, member: str, value: int
) -> None:
    before = [row for row in victim.run("args")[0] if row["pid"] != 1]
    victim.put(victim.get(victim.place(1, "mm")) + victim.offset("mm_struct", member), value)
    for command in ("args", "env"):
        rows, _ = victim.run(command)
        assert pids(rows) == set(victim.processes)
    assert [row for row in victim.run("args")[0] if row["pid"] != 1] == before


def test_a_log_that_is_nearly_endless_and_cannot_be_read(victim: Victim) -> None:
    ring = victim.get(victim.kernel.symbols.address("prb"))
    tail = victim.get(ring + victim.offset("printk_ringbuffer", "desc_ring.tail_id"))
    for member, value, size in (("count_bits", 31, 4), ("descs", UNMAPPED, 8), ("head_id", tail + (1 << 30), 8)):
        victim.put(ring + victim.offset("printk_ringbuffer", f"desc_ring.{member}"), value, size)
    rows, error = victim.run("log")
    assert "0x" in error
    assert rows
    assert {row["seq"] for row in rows} == {None}
