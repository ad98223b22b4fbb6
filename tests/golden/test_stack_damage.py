"""Stacks of a real dump that were overwritten or are missing: what is certain is true, and all else says so.

The truth is the unwinding of the same stacks when they are whole, which tests/golden/test_stack.py compares with the
guest's own word. Bytes are overwritten by what a stray write leaves; other tasks' return addresses would be nothing
that anybody could tell from true ones.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest

from kvm_dbg.image import open_image
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.kernel import open_kernel, system_of
from kvm_dbg.kernel.base import Frame, Kernel, Thread
from tests.golden.subject import find_subject

SCENARIOS = ("deb11-4level", "bpo13-4level")
SEED = 20261125
THREADS = 60
PLACES = 6  # where the damage of one stack begins
THREAD_SIZE = 1 << 14
USER_REGISTERS = 168  # bytes: struct pt_regs
PAGE = 4096


class Victim:
    """A kernel whose stacks can be overwritten, with the frames of its tasks when they are whole."""

    def __init__(self, name: str) -> None:
        subject = find_subject(name)
        self.image = OverlayImage(open_image(subject.dump.caught["nmi"].path))
        self.kernel: Kernel = open_kernel(self.image, str(subject.dump.vmlinux))
        self.system = system_of(self.kernel)
        threads = [thread for thread in self.system.for_each_thread(self.kernel) if thread.registers and thread.pid]
        self.threads = sorted(threads, key=lambda thread: not thread.on_cpu)[:THREADS]
        self.truth = {thread.address: self.unwind(thread) for thread in self.threads}

    def unwind(self, thread: Thread) -> list[Frame]:
        return list(self.system.unwind(self.kernel, thread))

    def task_stack(self, thread: Thread) -> tuple[int, int]:
        """Return where the task's own stack is in use, [from, to), without the registers that user space had.

        Nobody can tell whether these are true.
        """
        truth = self.truth[thread.address]
        lowest = min(frame.sp for frame in truth if frame.stack == "TASK")
        end = lowest // THREAD_SIZE * THREAD_SIZE + THREAD_SIZE
        return lowest, end - USER_REGISTERS * (truth[-1].stack == "USER")

    def write(self, vaddr: int, data: bytes) -> bytes:
        """Write to virtual memory, and return what was there."""
        before = b""
        while data:
            size = min(len(data), PAGE - vaddr % PAGE)
            paddr = self.kernel.translate(vaddr)
            before += self.image.read(paddr, size)
            self.image.write(paddr, data[:size])
            vaddr, data = vaddr + size, data[size:]
        return before


@pytest.fixture(params=SCENARIOS, scope="module")
def victim(request: pytest.FixtureRequest) -> Iterator[Victim]:
    found = Victim(request.param)
    yield found
    found.image.close()


def garbage(kind: str, size: int, chance: random.Random, kernel: Kernel) -> bytes:
    """Return what a stray write may leave: a multiple of eight bytes."""
    if kind == "random":
        return chance.randbytes(size)
    if kind == "text":
        return (b"this was a buffer of somebody else\n" * size)[:size]
    if kind == "data":  # pointers into the kernel's data, as a list has them
        start = kernel.symbols.address("init_task")
        return b"".join(struct.pack("<Q", start + 8 * chance.randrange(1000)) for _ in range(size // 8))
    if kind == "functions":  # addresses of code that nothing returns to
        start = kernel.symbols.address("schedule")
        return struct.pack("<Q", start) * (size // 8)
    return bytes([int(kind, 16)]) * size


@pytest.mark.parametrize("kind", ["00", "ff", "text", "random", "data", "functions"])
def test_overwritten_stacks(victim: Victim, kind: str) -> None:
    chance = random.Random(SEED)
    marked = 0
    for thread in victim.threads:
        truth = victim.truth[thread.address]
        low, high = victim.task_stack(thread)
        for _ in range(PLACES):
            start = chance.randrange(low, high, 8)
            size = min(chance.choice((8, 64, 512, high - start)), high - start)
            before = victim.write(start, garbage(kind, size, chance, victim.kernel))
            frames = victim.unwind(thread)
            victim.write(start, before)
            marks = [index for index, frame in enumerate(frames) if frame.why]
            certain = frames[: marks[0] + 1] if marks else frames
            same = [(frame.pc, frame.sp, frame.how, frame.stack) for frame in truth[: len(certain)]]
            assert [(frame.pc, frame.sp, frame.how, frame.stack) for frame in certain] == same, (thread, hex(start))
            assert {frame.how for frame in frames[len(certain) :]} <= {"scan"}
            assert marks or len(frames) == len(truth)
            marked += bool(marks)
        assert victim.unwind(thread) == truth
    assert marked > len(victim.threads)
