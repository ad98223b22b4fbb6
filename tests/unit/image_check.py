"""Compare a reader with the memory that was put into its file."""

from __future__ import annotations

import random

from kvm_dbg.errors import NotInImageError
from kvm_dbg.image.base import MemoryImage


def check_same(image: MemoryImage, oracle: MemoryImage, seed: int = 0, reads: int = 150) -> None:
    """Assert that coverage, whole reads, partial reads and errors are those of `oracle`."""
    runs = list(oracle.coverage())
    assert list(image.coverage()) == runs
    top = runs[-1].end + 8192
    chance = random.Random(seed)
    places = [(0, top), (0, 1), (top, 16)]
    places += [(chance.randrange(top), chance.choice((1, 8, 100, 4096, 5000, 20000))) for _ in range(reads)]
    places += [(run.start, run.size) for run in runs]
    for paddr, size in places:
        assert image.read_partial(paddr, size) == oracle.read_partial(paddr, size), hex(paddr)
        missing = _missing(oracle, paddr, size)
        if missing is None:
            assert image.read(paddr, size) == oracle.read(paddr, size), hex(paddr)
        else:
            assert _missing(image, paddr, size) == missing, hex(paddr)
    for start, end in ((0, None), (5000, 50000), (4096, 4097)):
        assert list(image.coverage(start, end)) == list(oracle.coverage(start, end)), (start, end)
        assert list(image.for_each_chunk(start, end)) == list(oracle.for_each_chunk(start, end))


def _missing(image: MemoryImage, paddr: int, size: int) -> tuple[int, str] | None:
    """Return the first missing address and why it is missing, as `read` tells; None if it reads."""
    try:
        image.read(paddr, size)
    except NotInImageError as error:
        return error.address, error.reason
    return None
