"""The overlay: random writes against a bytearray."""

from __future__ import annotations

import random

import pytest

from kvm_dbg.errors import NotInImageError
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
