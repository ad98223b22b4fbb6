"""What every debugger can be asked by the tests, whatever it calls it: one class, which each debugger fills in.

This runs inside the debuggers (Python 3.8 or newer, nothing but the standard library). `probe_gdb.py` and
`probe_lldb.py` spell the operations by the debugger's own Python interface, never by text that is meant for people.
`neutral.py` is the side of the tests: it writes a list of steps, each the name of a method here and its arguments, and
reads one answer for each.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any

MAX_TASKS = 10_000
MAX_FRAMES = 200
TASK = "struct task_struct"
WORD = (1 << 64) - 1


class ProbeError(Exception):
    """The debugger cannot do it; the text is its own."""


class Probe:
    """One debugger, with whatever it has open.

    Addresses are unsigned numbers, threads are named by their id, which is the kernel's (see rsp/target.py), and bytes
    of strings are characters of Latin-1, so that all of it is JSON. Every method may raise ProbeError or an error of
    the debugger's; the step has then failed, and the next one is taken.
    """

    # What the debuggers spell differently

    def kvm(self, line: str) -> str:
        """Run a `kvm` command and return its output."""
        raise NotImplementedError

    def resume(self) -> str:
        """Let the target run, and return what the debugger says to that."""
        raise NotImplementedError

    def step(self) -> str:
        """Step one instruction, and return what the debugger says to that."""
        raise NotImplementedError

    def server(self) -> int:
        """Return the process id of the server."""
        raise NotImplementedError

    def state(self) -> Any:
        """Return what `kvm open` changes and `kvm close` must put back: settings, targets, files with symbols."""
        raise NotImplementedError

    def threads(self) -> list[list[Any]]:
        """Return [number, name, id] of all threads, in the debugger's order."""
        raise NotImplementedError

    def selected(self) -> int:
        """Return the id of the selected thread."""
        raise NotImplementedError

    def select(self, thread: int) -> None:
        """Select a thread."""
        raise NotImplementedError

    def frames(self, with_lines: bool) -> list[list[Any]]:
        """Return [function, pc, virtual, file, line] of the selected thread's frames, the innermost first.

        Virtual is a frame that the machine does not have: of an inlined function, or of one that has ended by a jump to
        another. Without `with_lines` the last two are None. A thread without registers has no frames.
        """
        raise NotImplementedError

    def registers(self, names: list[str]) -> list[int | None]:
        """Return registers of the selected thread, None for what is not available."""
        raise NotImplementedError

    def evaluate(self, text: str) -> Any:
        """Return the value of an expression of C: a number, or for an array of char its string."""
        raise NotImplementedError

    def fields(self, address: int, type_name: str, paths: list[str]) -> list[Any]:
        """Return members (`signal.thread_head`) of what lies at `address`: numbers, or strings for arrays of char."""
        raise NotImplementedError

    def size(self, type_name: str) -> int:
        """Return the size of a type in bytes."""
        raise NotImplementedError

    def offset(self, type_name: str, member: str) -> int:
        """Return the offset of a member in bytes."""
        raise NotImplementedError

    def address(self, symbol: str) -> int:
        """Return the address of a symbol, by the symbol table."""
        raise NotImplementedError

    def symbol_at(self, address: int) -> str:
        """Return the name of the symbol that holds `address`, or ""."""
        raise NotImplementedError

    def read(self, address: int, size: int) -> str:
        """Return memory in hexadecimal. Raises unless all of it can be read."""
        raise NotImplementedError

    def write(self, address: int, data: str) -> None:
        """Write memory, given in hexadecimal."""
        raise NotImplementedError

    def disassemble(self, address: int, count: int) -> list[list[Any]]:
        """Return [address, mnemonic] of so many instructions."""
        raise NotImplementedError

    # What is made of these

    def kill_server(self) -> None:
        """End the server as if it had crashed."""
        os.kill(self.server(), signal.SIGKILL)

    def select_first(self) -> None:
        """Select the first thread."""
        self.select(self.threads()[0][2])

    def backtrace(self) -> list[list[Any]]:
        """Return `frames` of the selected thread, with files and lines."""
        return self.frames(True)

    def stacks(self) -> dict[str, list[list[Any]]]:
        """Return `frames` of all threads by their ids, without files and lines; the selected thread stays that."""
        selected = self.selected()
        found = {}
        for _, _, thread in self.threads():
            self.select(thread)
            found[str(thread)] = self.frames(False)
        self.select(selected)
        return found

    def read_each(self, threads: list[int], address: int, size: int) -> list[str]:
        """Return for each thread what it has at `address`, or "" where that cannot be read."""
        selected = self.selected()
        found = []
        for thread in threads:
            self.select(thread)
            try:
                found.append(self.read(address, size))
            except Exception:  # noqa: BLE001 - each debugger has errors of its own
                found.append("")
        self.select(selected)
        return found

    def read_at(self, expression: str, size: int) -> str:
        """Return memory at the address that an expression has."""
        return self.read(self.evaluate(expression), size)

    def comms(self, stride: int) -> dict[str, str]:
        """Return the names of every so many tasks by their pids, each by an expression as a person would write it."""
        tasks = list(self.tasks().items())[::stride]
        expression = "((struct task_struct *) {:#x})->comm"
        return {pid: self.evaluate(expression.format(address)) for pid, (_, _, address) in tasks}

    def tasks(self) -> dict[str, list[Any]]:
        """Walk the kernel's own lists from `init_task`: return [comm, tgid, address] of all tasks by their pids.

        The list of processes is task_struct.tasks, the list of a process's threads signal_struct.thread_head with
        task_struct.thread_node (include/linux/sched.h, include/linux/sched/signal.h).
        """
        tasks, node = self.offset(TASK, "tasks"), self.offset(TASK, "thread_node")
        head = self.offset("struct signal_struct", "thread_head")
        start = self.address("init_task")
        found: dict[str, list[Any]] = {}
        leader = start
        while True:
            following, signals = self.fields(leader, TASK, ["tasks.next", "signal"])
            end = signals + head
            (link,) = self.fields(signals, "struct signal_struct", ["thread_head.next"])
            while link != end:
                task = link - node
                pid, tgid, comm, link = self.fields(task, TASK, ["pid", "tgid", "comm", "thread_node.next"])
                found[str(pid)] = [comm, tgid, task]
                if len(found) > MAX_TASKS:
                    raise ProbeError("the list of threads has no end")
            leader = following - tasks
            if leader == start:
                return found
            if len(found) > MAX_TASKS:
                raise ProbeError("the list of processes has no end")


def run_steps(probe: Probe, orders: str, answers: str) -> None:
    """Take the steps of the JSON file `orders`, and write a line of JSON for each into `answers`."""
    with open(orders, encoding="utf-8") as file:
        steps = json.load(file)
    with open(answers, "w", encoding="utf-8") as sink:
        for name, arguments in steps:
            try:
                answer = {"value": getattr(probe, name)(*arguments)}
            except Exception as error:  # noqa: BLE001 - each debugger has errors of its own
                answer = {"error": f"{error}", "sort": type(error).__name__}
            sink.write(json.dumps(answer) + "\n")
            sink.flush()
