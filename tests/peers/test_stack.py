"""Every frame of every task has the address and the stack pointer that drgn finds by DWARF."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest

from kvm_dbg.kernel.base import Frame
from tests.golden.subject import find_subject
from tests.lab import SCENARIOS as LAB
from tests.peers.test_drgn import SCENARIOS, Peer, drgn, find_peer

OTHER_NAMES = {
    # DWARF has one name for all of an assembly function, the kernel a symbol for each of its parts
    "entry_SYSCALL_64_after_hwframe": "entry_SYSCALL_64",
    "secondary_startup_64_no_verify": "secondary_startup_64",
    "common_startup_64": "secondary_startup_64",
    "end_repeat_nmi": "asm_exc_nmi",
}
PARTS = (".cold", ".part.0", ".isra.0", ".constprop.0")  # the compiler's, with a symbol of their own


INTERRUPTED = ("deb12-irq", "bpo13-irq", "deb12-nmi", "deb13-nmi", "bpo13-nmi")
CAUGHT = [(scenario.name, catch) for scenario in LAB if scenario.vmcoreinfo for catch in scenario.catches]


@pytest.fixture(params=(*SCENARIOS, *INTERRUPTED), scope="module")
def peer(request: pytest.FixtureRequest) -> Peer:
    return find_peer(find_subject(request.param))


@pytest.fixture(params=CAUGHT, ids="-".join, scope="module")
def caught(request: pytest.FixtureRequest) -> Iterator[Peer]:
    scenario, name = request.param
    peer = Peer(find_subject(scenario), name)
    yield peer
    peer.kernel.image.close()


def theirs(peer: Peer, task: int) -> list[tuple[int, int, str]]:
    """Return address, stack pointer and name of drgn's frames; of functions inlined into one, the outermost counts."""
    trace: Any = peer.program.stack_trace(drgn.Object(peer.program, "struct task_struct *", value=task))
    frames = [(frame.pc, frame.sp, frame.name) for frame in trace]
    return [list(same)[-1] for _, same in groupby(frames, key=lambda frame: frame[:2])]


def name_in_dwarf(frame: Frame) -> str | None:
    name = frame.name
    for part in PARTS:
        name = name.removesuffix(part) if name is not None else None
    return OTHER_NAMES.get(name or "", name)


def test_stacks(peer: Peer) -> None:
    check_stacks(peer)


def test_stacks_of_a_guest_that_was_caught_at_work(caught: Peer) -> None:
    check_stacks(caught)


def check_stacks(peer: Peer) -> None:
    checked = 0
    for thread in peer.system.for_each_thread(peer.kernel):
        ours = list(peer.system.unwind(peer.kernel, thread))
        if not ours:
            continue  # exited; drgn follows what other tasks have left in that memory by now
        frames = theirs(peer, thread.address)
        if ours[-1].stack == "USER":
            frames = frames[: len(ours)]  # drgn goes on in user memory
        assert [(frame.pc, frame.sp) for frame in ours] == [frame[:2] for frame in frames], thread
        kernel = [frame for frame in ours if frame.stack != "USER"]
        assert [name_in_dwarf(frame) for frame in kernel] == [name for _, _, name in frames[: len(kernel)]]
        checked += 1
    assert checked > 140
