"""How much of the machine's memory an image has, in one line."""

from __future__ import annotations

from kvm_dbg.commands.render import format_size
from kvm_dbg.image.base import MemoryImage, Presence

RANGES = 200_000  # ranges looked at before the answer is given as "at least"


def count_coverage(image: MemoryImage) -> tuple[dict[Presence, int], bool]:
    """Return (bytes of each presence, whether all ranges were counted)."""
    sizes = dict.fromkeys(Presence, 0)
    for number, run in enumerate(image.coverage()):
        if number == RANGES:
            return sizes, False
        sizes[run.presence] += run.size
    return sizes, True


def describe_coverage(image: MemoryImage) -> str:
    """Return a line such as "512.0 MiB present, 1.5 GiB excluded"."""
    sizes, counted = count_coverage(image)
    parts = [f"{format_size(size)} {presence.value}" for presence, size in sizes.items() if size]
    return ("" if counted else "at least ") + (", ".join(parts) or "nothing")
