"""Every frame's source lines and inlined functions are those that drgn finds, modules' included.

Names of files differ in how much of the path they have: drgn leaves out the directory of the build, to which the
compiler's names are relative, and we what stands before the root of the sources.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import pytest

from kvm_dbg.commands.module_file import find_module_file
from kvm_dbg.kernel.base import Frame, Module, SourcePlace
from tests.golden.subject import find_subject
from tests.peers.test_drgn import SCENARIOS, Peer, drgn


@pytest.fixture(params=SCENARIOS, scope="module")
def peer(request: pytest.FixtureRequest) -> Peer:
    return Peer(find_subject(request.param))  # an own one: it gets the modules' debug information as well


class Finder:
    """Finds the files of modules as the commands do, and gives drgn the same."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._session: Any = SimpleNamespace(kernel=peer.kernel, system=peer.system, request=None, index_directory=None)
        self.found: dict[str, str] = {}

    def find(self, module: Module) -> str | None:
        path = find_module_file(self._session, module)
        if path is not None:
            self.found[module.name] = path
            self._peer.program.load_debug_info([path])
        return path


def theirs(peer: Peer, task: int) -> list[tuple[int, list[Any]]]:
    """Return drgn's frames of a task: the address, and the frames that are one for us, inlined ones first."""
    trace: Any = peer.program.stack_trace(drgn.Object(peer.program, "struct task_struct *", value=task))
    return [(key[0], list(same)) for key, same in groupby(trace, key=lambda frame: (frame.pc, frame.sp))]


def check(frame: Frame, places: list[SourcePlace], same: list[Any]) -> Iterator[str]:
    """Yield what differs."""
    if [place.inlined for place in places] != [bool(one.is_inline) for one in same]:
        yield f"{frame}: {places} and {same}"
        return
    for place, one in zip(places, same, strict=True):
        try:
            name, line, column = one.source()
        except LookupError:
            if place.line:
                yield f"{frame}: {place}, and drgn knows none"
            continue
        path = place.path or ""
        if (place.line, place.column) != (line, column) or not (path == name or path.endswith(f"/{name}")):
            yield f"{frame}: {place} and {name}:{line}:{column}"
        if place.function is not None and place.function != one.name:
            yield f"{frame}: {place} and {one.name}"


def test_source_lines(peer: Peer) -> None:
    finder = Finder(peer)
    source = peer.system.open_source_reader(peer.kernel, finder.find)
    assert source is not None
    stacks = [list(peer.system.unwind(peer.kernel, thread)) for thread in peer.system.for_each_thread(peer.kernel)]
    for frames in stacks:
        for frame in frames:
            source.places(frame)  # so that drgn has the same files from the start
    checked = inlined = 0
    modules: set[str] = set()
    wrong: list[str] = []
    threads = peer.system.for_each_thread(peer.kernel)
    for thread, frames in zip(threads, stacks, strict=True):
        if not frames:
            continue
        for frame, (pc, same) in zip(frames, theirs(peer, thread.address), strict=False):
            if frame.stack == "USER":
                break
            assert frame.pc == pc
            places = list(source.places(frame))
            wrong += check(frame, places, same)
            checked += len(places)
            inlined += sum(place.inlined for place in places)
            if frame.module is not None and places:
                modules.add(frame.module)
    assert wrong == []
    assert checked > 700
    assert inlined > 50
    assert modules == set(finder.found)
