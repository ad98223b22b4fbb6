"""The same questions about tasks, files, modules and the log to drgn, on the lab's dumps that it opens.

drgn needs VMCOREINFO in the file, so the scenarios without it are ours alone, and no flattened file or raw one.
Differences that are tolerated, each with its reason:
- log: of a record whose text wraps around the ring's end drgn returns other bytes: it adds the size of the id in front
  of the text before it looks for the wrap, and takes a block that ends exactly at the ring's end for a wrapped one.
  Such records are compared with the guest's own word in tests/golden.
- arguments: drgn reads arg_start to arg_end as they are; the kernel, and we, know titles that a process wrote over its
  arguments and beyond. Processes with a title are compared with the guest's own word in tests/golden.
- resident memory: before v6.2 each task holds back what it counted lately (task_struct.rss_stat); drgn adds it, /proc
  does not, nor do we. Since v6.2 each CPU holds some back; drgn leaves out the CPUs that a panic has stopped.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

from kvm_dbg.errors import ReadError
from kvm_dbg.kernel import system_of
from kvm_dbg.kernel.layout import decode_text
from kvm_dbg.kernel.linux.cpu import read_per_cpu_offsets
from tests.golden.subject import Subject, find_subject

drgn = pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")

SCENARIOS = (
    "deb11-4level", "deb11-kdump", "deb11-panic", "deb12-4level", "deb12-kdump", "deb12-panic",
    "deb13-4level", "deb13-kdump", "deb13-panic", "bpo13-4level", "bpo13-panic",
)  # fmt: skip
TITLED = ("title", "longtitle")


class Peer:
    """One scenario, opened by both: its primary file, or what was dumped at the catch `caught`."""

    def __init__(self, subject: Subject, caught: str = "") -> None:
        self.subject = subject
        self.kernel = subject.open_caught(caught) if caught else subject.kernel
        self.system = system_of(self.kernel)
        self.program: Any = drgn.Program()
        path = subject.dump.caught[caught].path if caught else subject.dump.files[subject.kind].paths[0]
        self.program.set_core_dump(str(path))
        self.program.load_debug_info([str(subject.dump.vmlinux)])

    @functools.cached_property
    def tasks(self) -> dict[int, Any]:
        """Thread id -> task_struct, as drgn finds them."""
        from drgn.helpers.linux.pid import for_each_task

        return {task.pid.value_(): task for task in for_each_task(self.program)}


@functools.cache
def find_peer(subject: Subject) -> Peer:
    return Peer(subject)


@pytest.fixture(params=SCENARIOS, scope="module")
def peer(request: pytest.FixtureRequest) -> Peer:
    return find_peer(find_subject(request.param))


def test_tasks(peer: Peer) -> None:
    from drgn.helpers.linux.sched import task_state_to_char

    ours = {lwp.lid: lwp for lwp in peer.system.for_each_lwp(peer.kernel)}
    assert set(ours) == set(peer.tasks)
    for tid, task in peer.tasks.items():
        lwp = ours[tid]
        assert (lwp.address, lwp.pid) == (task.value_(), task.tgid.value_())
        assert lwp.state == task_state_to_char(task)
        comm = decode_text(task.comm.string_())
        assert lwp.name == comm or (lwp.kernel_thread and lwp.name.startswith(comm))


def held_back(peer: Peer, task: Any) -> int:
    """Return the pages that drgn counts and we do not, less those that we count and drgn does not."""
    from drgn.helpers.linux.cpumask import for_each_online_cpu
    from drgn.helpers.linux.percpu import per_cpu_ptr

    if not task.mm:
        return 0
    if not hasattr(task, "rss_stat"):
        names = ("MM_FILEPAGES", "MM_ANONPAGES", "MM_SHMEMPAGES")
        counters = [task.mm.rss_stat[peer.program.constant(name)].counters for name in names]
        stopped = set(read_per_cpu_offsets(peer.kernel)) - set(for_each_online_cpu(peer.program))
        return -sum(int(per_cpu_ptr(counter, cpu)[0].value_()) for counter in counters for cpu in stopped)
    tasks = [other for other in peer.tasks.values() if other.tgid.value_() == task.tgid.value_()]
    kinds = [peer.program.constant(name).value_() for name in ("MM_FILEPAGES", "MM_ANONPAGES", "MM_SHMEMPAGES")]
    return sum(int(other.rss_stat.count[kind].value_()) for other in tasks for kind in kinds)


def test_memory_of_processes(peer: Peer) -> None:
    from drgn.helpers.linux.mm import task_rss, task_vsize

    checked = 0
    for process in peer.system.for_each_process(peer.kernel):
        task = peer.tasks[process.pid]
        assert (process.vsize or 0) == task_vsize(task)
        assert process.rss is not None
        assert process.rss // 4096 + held_back(peer, task) == task_rss(task).total
        checked += 1
    assert checked > 100


def test_arguments_and_environments(peer: Peer) -> None:
    from drgn.helpers.linux.mm import cmdline, environ

    checked = 0
    for process in peer.system.for_each_process(peer.kernel):
        task = peer.tasks[process.pid]
        try:
            ours = peer.system.read_arguments(peer.kernel, process)
            environment = peer.system.read_environment(peer.kernel, process)
        except ReadError:
            with pytest.raises(drgn.FaultError):
                (cmdline(task), environ(task))
            continue
        theirs = cmdline(task)
        if process.command not in TITLED:
            assert ours == theirs
            assert environment == environ(task)
            checked += 1
    assert checked > 60


def test_files(peer: Peer) -> None:
    from drgn.helpers.linux.fs import for_each_file

    ours: dict[int, dict[int, int]] = {}
    for file in peer.system.for_each_file(peer.kernel):
        if file.fd is not None:
            ours.setdefault(file.pid, {})[file.fd] = file.address
    for process in peer.system.for_each_process(peer.kernel):
        task = peer.tasks[process.pid]
        theirs = {fd: file.value_() for fd, file in for_each_file(task)} if task.files else {}
        assert ours.get(process.pid, {}) == theirs


def test_load_average(peer: Peer) -> None:
    from drgn.helpers.linux.sched import loadavg

    load = peer.system.read_load_average(peer.kernel)
    for ours, theirs in zip((load.one, load.five, load.fifteen), loadavg(peer.program), strict=True):
        assert abs(ours - theirs) <= 0.01  # drgn does not round as /proc/loadavg does


def test_log(peer: Peer) -> None:
    from drgn.helpers.linux.printk import get_printk_records

    ours = list(peer.system.for_each_log_record(peer.kernel))
    theirs = get_printk_records(peer.program)
    assert [record.sequence for record in ours] == [record.seq for record in theirs]
    differing = 0
    for mine, record in zip(ours, theirs, strict=True):
        assert (mine.facility, mine.level) == (record.facility, record.level)
        assert mine.seconds == record.timestamp / 1e9
        differing += mine.text != decode_text(record.text)
    assert differing <= 1 + len(ours) // 1000  # wrapped ones: one for each time around


def test_modules(peer: Peer) -> None:
    from drgn.helpers.linux.module import for_each_module, module_address_regions

    ours = {m.name: (m.struct_address, set(m.ranges)) for m in peer.system.for_each_module(peer.kernel)}
    theirs = {
        decode_text(module.name.string_()): (
            module.value_(),
            {region for region in module_address_regions(module) if region[1]},
        )
        for module in for_each_module(peer.program)
    }
    assert ours == theirs
    assert len(ours) > 5


def test_registers_of_sleeping_tasks(peer: Peer) -> None:
    checked = 0
    for thread in peer.system.for_each_thread(peer.kernel):
        if thread.on_cpu or thread.lid == 0 or "rip" not in thread.registers:
            continue
        frame = peer.program.stack_trace(peer.tasks[thread.lid])[0]
        theirs = frame.registers()
        assert thread.registers.items() <= theirs.items()
        checked += 1
    assert checked > 100


def test_the_task_that_panicked(peer: Peer) -> None:
    summary = peer.system.read_summary(peer.kernel)
    if not peer.subject.crashed:
        assert summary.panic_task is None
        return
    crashed = peer.program.crashed_thread()
    assert summary.panic_lid == crashed.tid
    first = next(peer.system.for_each_thread(peer.kernel))
    frame = crashed.stack_trace()[0]
    assert (first.registers["rip"], first.registers["rsp"]) == (frame.pc, frame.sp)
