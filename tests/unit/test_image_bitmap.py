"""Bitmaps: ranks and runs against counting bit by bit."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from kvm_dbg.image.bitmap import GROUP, UNIT, Bitmap, for_each_run
from kvm_dbg.image.source import FileSource


def make(seed: int) -> bytes:
    chance = random.Random(seed)
    out = b""
    while len(out) < 20000:
        size = chance.choice((1, 64, 4096, 6000))
        out += chance.choice((bytes(size), b"\xff" * size, chance.randbytes(size)))
    return out


@pytest.mark.parametrize("seed", range(5))
def test_rank(tmp_path: Path, seed: int) -> None:
    data = make(seed)
    (tmp_path / "bits").write_bytes(b"head" + data)
    source = FileSource(tmp_path / "bits")
    bitmap = Bitmap(source, 4, len(data) + 4096)
    value = int.from_bytes(data, "little")
    chance = random.Random(seed)
    for pfn in [chance.randrange(len(data) * 8 + 5000) for _ in range(300)] + [0, UNIT, len(data) * 8]:
        assert bitmap.rank(pfn) == (value & (1 << pfn) - 1).bit_count()
        bits, before = bitmap.group(pfn // GROUP)
        assert bits == value >> pfn // GROUP * GROUP & (1 << GROUP) - 1
        assert before == bitmap.rank(pfn // GROUP * GROUP)
    assert bitmap.readable == len(data) * 8
    source.close()


@pytest.mark.parametrize("seed", range(20))
def test_runs(seed: int) -> None:
    chance = random.Random(seed)
    value = int.from_bytes(make(seed)[:4096], "little")
    for _ in range(5):
        low, high = sorted((chance.randrange(UNIT), chance.randrange(UNIT + 1)))
        found = list(for_each_run(value, low, high))
        bits = {bit for bit in range(low, high) if value >> bit & 1}
        assert {bit for first, last in found for bit in range(first, last)} == bits
        assert all(one[1] < two[0] for one, two in pairwise(found))
