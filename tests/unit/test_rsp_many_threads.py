"""A kernel of ten thousand tasks: the debugger's list of threads costs a few reads for each, and is complete."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kvm_dbg.kernel.linux.thread import for_each_thread
from kvm_dbg.rsp.session import DebuggerSession
from kvm_dbg.rsp.target import Target
from tests.writers.linux_task import CPUS, Tasks

COUNT = 10_000
READS = 4  # of memory for each task: the task, its stack's place, the frame on it, the list that it is on


class Crowd(Tasks):
    """Ten thousand sleeping tasks, linked once they are all there."""

    def __init__(self) -> None:
        self.full = False
        super().__init__()
        frame: dict[str, Any] = dict.fromkeys(("r15", "r14", "r13", "r12", "bx", "bp", "ret_addr"), "u64")
        self.struct("struct inactive_task_frame", **frame)
        stack = self.allocate(16384, page=True)
        self.full = True
        for pid in range(1, COUNT + 1):
            place: dict[str, int] = {"stack": stack, "thread.sp": stack + 16000}
            self.process(pid, comm=b"proc", **place)
        self.put(stack + 16000, "struct inactive_task_frame", "ret_addr", 0xFFFF_FFFF_8123_4567)
        self.full = False
        self.relink()

    def relink(self) -> None:
        if not self.full:
            super().relink()


def test_ten_thousand_threads() -> None:
    kernel = Crowd()
    kernel.reads = 0
    target = Target(kernel, SimpleNamespace(for_each_thread=for_each_thread))
    threads = target.threads
    assert target.problem == ""
    assert set(range(1, COUNT + 1)) <= set(threads)
    assert len(threads) <= COUNT + CPUS
    assert threads[5000].registers["rip"] == 0xFFFF_FFFF_8123_4567
    assert kernel.reads < READS * COUNT + 1000
    before = kernel.reads
    text = DebuggerSession(target, lambda _: iter(())).threads_xml().decode()
    assert text.count("<thread id=") == len(threads)
    assert f'<thread id="{COUNT:x}" ' in text
    assert kernel.reads == before  # asking again costs nothing
