"""Make memory to put into dumps: pages of several kinds, excluded ones, holes; the same for the same seed."""

from __future__ import annotations

import random
from typing import NamedTuple

from kvm_dbg.image.base import BytesImage

PAGE = 4096


class Memory(NamedTuple):
    """Dumped pages by page frame number, and page frame numbers that were excluded."""

    pages: dict[int, bytes]
    excluded: set[int]

    def image(self, block: int = PAGE) -> BytesImage:
        """Return the same memory as an image in memory, to compare with."""
        segments = {pfn * block: page for pfn, page in self.pages.items()}
        return BytesImage(segments, excluded=tuple((pfn * block, block) for pfn in sorted(self.excluded)))


def make_memory(seed: int, top: int = 40, block: int = PAGE) -> Memory:
    """Return memory of `top` page frames, in runs of dumped, excluded and absent pages."""
    chance = random.Random(seed)
    pages: dict[int, bytes] = {}
    excluded: set[int] = set()
    pfn = 0
    while pfn < top:
        kind = chance.choice(("dumped", "dumped", "excluded", "hole")) if 0 < pfn < top - 4 else "dumped"
        for number in range(pfn, min(pfn + chance.randint(1, 6), top)):
            if kind == "dumped":
                pages[number] = make_page(chance, number, block)
            elif kind == "excluded":
                excluded.add(number)
            pfn = number + 1
    return Memory(pages, excluded)


def make_page(chance: random.Random, number: int, block: int = PAGE) -> bytes:
    """Return a page: zeros, text, or noise that no compressor makes smaller."""
    kind = chance.randrange(4)
    if kind == 0:
        return bytes(block)
    if kind == 1:
        return chance.randbytes(block)
    return (b"page %08d " % number * (block // 14 + 1))[:block]
