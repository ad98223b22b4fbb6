"""The image of a machine that is attached to: what is asked for, and what is not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvm_dbg.errors import CommandError, NotInImageError
from kvm_dbg.image.attached import MAX_FETCH, PAGE, AttachedImage
from kvm_dbg.image.base import ImageInfo, Note, Presence
from kvm_dbg.image.overlay import OverlayImage

RAM = {number: bytes([number]) * PAGE for number in (0, 1, 2, 5, 9)}
INFO = ImageInfo("attached")


class Machine:
    """Pages by number, and what was asked."""

    def __init__(self) -> None:
        self.pages = dict(RAM)
        self.asked: list[tuple[int, int]] = []
        self.looks = 0

    def fetch(self, runs: Sequence[tuple[int, int]]) -> list[bytes | None]:
        self.asked += runs
        found = []
        for start, size in runs:
            pages = [self.pages.get(number) for number in range(start // PAGE, (start + size) // PAGE)]
            found.append(None if None in pages else b"".join(page for page in pages if page is not None))
        return found

    def store(self, paddr: int, data: bytes) -> None:
        page = bytearray(self.pages[paddr // PAGE])
        page[paddr % PAGE : paddr % PAGE + len(data)] = data
        self.pages[paddr // PAGE] = bytes(page)

    def notes(self) -> tuple[Note, ...]:
        self.looks += 1
        return (Note("QEMU", 0, bytes([self.looks])),)

    def image(self, *, writable: bool = False) -> AttachedImage:
        return AttachedImage("stub", self.fetch, self.store if writable else None, INFO, self.notes)


def test_reads_are_of_whole_pages_and_kept_until_they_are_forgotten() -> None:
    machine = Machine()
    image = machine.image()
    assert image.live
    assert image.read(PAGE - 2, 4) == b"\0\0\1\1"
    assert image.read(10, 20) == bytes(20)
    assert machine.asked == [(0, 2 * PAGE)]
    machine.pages[0] = b"x" * PAGE
    assert image.read(0, 1) == b"\0"
    image.refresh()
    assert image.read(0, 1) == b"x"


def test_a_page_that_cannot_be_read_costs_itself_only() -> None:
    machine = Machine()
    image = machine.image()
    found = image.read_partial(PAGE, 3 * PAGE)
    assert found.data == RAM[1] + RAM[2] + bytes(PAGE)
    assert [tuple(run) for run in found.missing] == [(3 * PAGE, PAGE, Presence.HOLE)]
    with pytest.raises(NotInImageError, match=r"stub: physical address 0x3000 \(4096 bytes\) is not memory") as caught:
        image.read(PAGE, 3 * PAGE)
    assert caught.value.address == 3 * PAGE
    before = len(machine.asked)
    assert image.read(2 * PAGE, 5) == RAM[2][:5]
    assert image.read_partial(3 * PAGE, 1).missing
    assert len(machine.asked) == before


def test_nothing_but_ram_is_asked_for_once_it_is_known() -> None:
    machine = Machine()
    image = machine.image()
    assert list(image.coverage()) == []
    assert list(image.for_each_chunk()) == []
    image.set_ram([(0, 0x1800), (0x1C00, 0x3000), (4 * PAGE, 6 * PAGE)])
    assert [tuple(run)[:2] for run in image.coverage()] == [(0, 3 * PAGE), (4 * PAGE, 2 * PAGE)]
    assert [tuple(run)[:2] for run in image.coverage(PAGE, 5 * PAGE)] == [(PAGE, 2 * PAGE), (4 * PAGE, PAGE)]
    assert [run.presence for run in image.read_partial(4 * PAGE, 1).missing] == [Presence.REFUSED]
    with pytest.raises(NotInImageError, match="is not memory that the image describes"):
        image.read(9 * PAGE, 1)
    with pytest.raises(NotInImageError):
        image.read(3 * PAGE, 1)
    assert all(start < 6 * PAGE and start != 3 * PAGE for start, _ in machine.asked)


def test_no_question_is_larger_than_the_limit() -> None:
    machine = Machine()
    machine.pages = {number: bytes(PAGE) for number in range(3 * MAX_FETCH // PAGE)}
    assert machine.image().read(PAGE // 2, 2 * MAX_FETCH) == bytes(2 * MAX_FETCH)
    assert max(size for _, size in machine.asked) <= MAX_FETCH
    assert sum(size for _, size in machine.asked) == 2 * MAX_FETCH + PAGE


def test_notes_are_as_new_as_the_memory() -> None:
    machine = Machine()
    image = OverlayImage(machine.image())
    assert machine.looks == 0
    assert [note.desc for note in image.notes + image.notes] == [b"\1", b"\1"]
    image.refresh()
    assert image.notes[0].desc == b"\2"


def test_writing_takes_a_permission_and_memory() -> None:
    machine = Machine()
    with pytest.raises(CommandError, match="`kvm attach --write` allows"):
        machine.image().put(0, b"new")
    image = machine.image(writable=True)
    assert image.read(PAGE - 1, 2) == b"\0\1"
    image.put(PAGE - 2, b"ab")
    assert machine.pages[0].endswith(b"\0ab")
    assert image.read(PAGE - 2, 3) == b"ab\1"
    with pytest.raises(NotInImageError):
        image.put(3 * PAGE - 1, b"no")
    assert machine.pages[2] == RAM[2]
