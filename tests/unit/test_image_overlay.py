"""The overlay: random writes against a bytearray."""

from __future__ import annotations

import random

import pytest

from kvm_dbg.errors import CommandError, NotInImageError
from kvm_dbg.image.base import BytesImage, Presence, Range
from kvm_dbg.image.overlay import OverlayImage


@pytest.mark.parametrize("seed", range(20))
def test_random_writes(seed: int) -> None:
    chance = random.Random(seed)
    plain = bytearray(chance.randbytes(20000))
    clean = bytes(plain)
    below = BytesImage({0x1000: clean})
    image = OverlayImage(below)
    touched = set()
    for _ in range(120):
        at, size = chance.randrange(19000), chance.choice((1, 8, 100, 1000))
        data = chance.randbytes(size)
        image.write(0x1000 + at, data)
        plain[at : at + size] = data
        touched |= set(range(at, at + size))
        at, size = chance.randrange(20000), chance.randrange(1, 3000)
        size = min(size, 20000 - at)
        assert image.read(0x1000 + at, size) == plain[at : at + size]
    assert image.read(0x1000, 20000) == plain
    assert image.written == len(touched)
    assert below.read(0x1000, 20000) == clean
    assert list(image.coverage()) == [Range(0x1000, 20000, Presence.PRESENT)]
    assert b"".join(data for _, data in image.for_each_chunk()) == plain


@pytest.mark.parametrize("seed", range(20))
def test_changes_are_taken_back_one_by_one(seed: int) -> None:
    chance = random.Random(seed)
    below = BytesImage({0x1000: chance.randbytes(3000), 0x2000: chance.randbytes(3000)}, excluded=((0x1BB8, 0x448),))
    image = OverlayImage(below)
    states = []
    for _ in range(60):
        states.append((image.read_partial(0x1000, 0x1BB8), list(image.coverage())))
        pieces = []
        for _ in range(chance.randrange(1, 4)):
            pieces.append((0x1000 + chance.randrange(0x1B00), chance.randbytes(chance.choice((1, 8, 100)))))
        old = [image.read_partial(paddr, len(data)) for paddr, data in pieces]
        change = image.change(0xFFFF0000, pieces)
        assert (change.vaddr, change.size) == (0xFFFF0000, sum(len(data) for _, data in pieces))
        assert [part.new for part in change.parts] == [data for _, data in pieces]
        assert change.parts[0].old == old[0]
    while states:
        image.undo()
        assert (image.read_partial(0x1000, 0x1BB8), list(image.coverage())) == states.pop()
    assert image.written == 0
    with pytest.raises(CommandError, match="nothing was written"):
        image.undo()


def test_a_change_is_made_as_a_whole_or_not_at_all() -> None:
    image = OverlayImage(BytesImage({0: b"a" * 100}))
    with pytest.raises(NotInImageError):
        image.change(0, [(0, b"b"), (200, b"b")])
    assert image.read(0, 100) == b"a" * 100
    assert not image.changes


def test_the_oldest_changes_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvm_dbg.image.writable.MAX_CHANGES", 3)
    image = OverlayImage(BytesImage({0: bytes(100)}))
    for number in range(5):
        image.change(number, [(number, b"x")])
    assert [change.vaddr for change in image.changes] == [2, 3, 4]


def test_excluded_memory_becomes_present() -> None:
    image = OverlayImage(BytesImage({0: b"a" * 100}, excluded=((100, 100),)))
    image.write(90, b"b" * 20)
    image.write(150, b"c")
    image.write(110, b"")
    assert image.read(80, 30) == b"a" * 10 + b"b" * 20
    assert list(image.coverage()) == [
        Range(0, 110, Presence.PRESENT),
        Range(110, 40, Presence.EXCLUDED),
        Range(150, 1, Presence.PRESENT),
        Range(151, 49, Presence.EXCLUDED),
    ]
    with pytest.raises(NotInImageError) as error:
        image.read(100, 30)
    assert (error.value.address, error.value.reason) == (110, "excluded")


def test_writes_outside_memory_are_refused() -> None:
    image = OverlayImage(BytesImage({0: b"a" * 100}))
    with pytest.raises(NotInImageError, match="not memory"):
        image.write(98, b"xyz")
    assert image.read(0, 100) == b"a" * 100
    assert image.written == 0
