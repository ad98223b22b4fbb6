"""The hole below 4 GiB in raw RAM of an x86 machine, where the user did not name it.

A machine with more than about 3 GiB has the rest of its RAM at 4 GiB and up, below that is room for devices; a file
of raw RAM may simply join the two. Where the kernel itself lies above the hole its page tables are only found with
the right one, so that trying is proving. Where it lies below, its memory map tells (`memory_map`).
"""

from __future__ import annotations

from collections.abc import Iterator

from kvm_dbg.image.base import MemoryImage
from kvm_dbg.image.raw import RawImage
from kvm_dbg.image.writable import WritableImage
from kvm_dbg.kernel.linux.memory_map import read_ram
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.symbols.base import SymbolTable

TOP = 1 << 32  # where RAM goes on
# QEMU's machines (hw/i386/pc_piix.c, pc_q35.c: max_ram_below_4g), then whatever else firmware may choose
USUAL_STARTS = (0xC000_0000, 0x8000_0000, 0xE000_0000, 0xB000_0000)
STEP = 64 << 20
LOWEST_START = 1 << 30


def raw_image_of(image: MemoryImage) -> RawImage | None:
    """Return the raw image that `image` is or covers, if nobody gave it a hole or a base."""
    while isinstance(image, WritableImage):
        image = image.image
    if not isinstance(image, RawImage) or image.hole is not None:
        return None
    first = next(image.coverage(), None)
    return image if first is not None and first.start == 0 and first.size > LOWEST_START else None


def for_each_hole(raw: RawImage) -> Iterator[tuple[int, int]]:
    """Yield the holes that `raw` may have, likely ones first."""
    size = sum(run.size for run in raw.coverage())
    others = (start for start in range(LOWEST_START, TOP, STEP) if start not in USUAL_STARTS)
    for start in (*USUAL_STARTS, *others):
        if start < size:
            yield start, TOP


def read_hole(raw: RawImage, space: ImageSpace, symbols: SymbolTable) -> tuple[int, int] | None:
    """Return the hole that the kernel's memory map tells of, None if there is none or it cannot be read.

    The file's size less the RAM at 4 GiB and up is what lies below.
    """
    ram = read_ram(space, symbols)
    top = max((end for _, end in ram), default=0)
    size = sum(run.size for run in raw.coverage())
    if top <= TOP or size >= top:
        return None  # all below, or the file has the hole inside
    start = size - (top - TOP)
    lowest = max((end for _, end in ram if end <= TOP), default=0)
    return (start, TOP) if lowest <= start < TOP else None
