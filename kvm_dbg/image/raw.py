"""Raw RAM: physical memory as it is, without any header (QEMU's pmemsave, a memory-backend-file, LiME's "padded").

Nothing in such a file says what it is. Without being told, a file is taken for RAM only if its size is that of whole
pages, at least MIN_SIZE, and it does not start with text; the image says so in its quirks.
"""

from __future__ import annotations

from kvm_dbg.errors import CommandError
from kvm_dbg.image.base import ImageInfo, Presence
from kvm_dbg.image.extent import Extent, ExtentImage, arrange
from kvm_dbg.image.source import Source

NAME = "raw"
MIN_SIZE = 1 << 20
PAGE_SIZE = 4096
_TEXT = frozenset(range(0x20, 0x7F)) | frozenset(b"\t\n\r\f\v")


def probe(source: Source) -> bool:
    """Tell whether the file could be raw RAM; see the module for what is asked of it."""
    if source.size < MIN_SIZE or source.size % PAGE_SIZE:
        return False
    head = source.read(0, 512)
    return not _TEXT.issuperset(head)


class RawImage(ExtentImage):
    """Raw RAM.

    Args:
        source: the file; closed with the image.
        base: physical address of its first byte.
        hole: (start, end) of physical addresses that the file leaves out: the byte at `start - base` is at physical
            address `end`. On x86 it is the room for devices below 4 GiB.
        assumed: nobody said that it is raw RAM.

    Raises:
        CommandError: base or hole are impossible.
    """

    def __init__(self, source: Source, base: int = 0, hole: tuple[int, int] | None = None, *, assumed: bool) -> None:
        self._base = base
        self._assumed = assumed
        self._hole: tuple[int, int] | None = None
        if base < 0 or base + source.size > 1 << 64:
            raise CommandError(f"{source.path}: {source.size} bytes from base {base:#x} are not below 2^64")
        super().__init__(source, [Extent(base, base + source.size, Presence.PRESENT, -base)])
        if hole is not None:
            self.set_hole(hole)

    @property
    def hole(self) -> tuple[int, int] | None:
        """Return the hole, None if there is none."""
        return self._hole

    def set_hole(self, hole: tuple[int, int] | None) -> None:
        """Set or remove the hole, for whoever learns it from the memory itself (the kernel's memory map).

        What was read before from addresses at or above its start was not what the machine had there.

        Raises:
            CommandError: the hole is empty, starts below the base, or ends above 2^64.
        """
        base, size = self._base, self._source.size
        if hole is None:
            self._arrange([Extent(base, base + size, Presence.PRESENT, -base)])
        else:
            start, end = hole
            if not base <= start < end or base + size + end - start > 1 << 64:
                raise CommandError(f"{self.paths[0]}: a hole from {start:#x} to {end:#x} cannot be (base {base:#x})")
            below = Extent(base, min(start, base + size), Presence.PRESENT, -base)
            above = Extent(end, base + size + end - start, Presence.PRESENT, start - end - base)
            self._arrange(arrange([below, above]))
        self._hole = hole

    @property
    def info(self) -> ImageInfo:
        quirks = []
        if self._assumed:
            quirks.append("taken as raw RAM: nothing in the file says what it is")
        if self._hole is None and self._base == 0 and self._source.size > 3 << 30:
            quirks.append("an x86 machine's RAM above about 3 GiB is at 4 GiB and up: no hole was given")
        if not self._source.ended:
            quirks.append("the file is truncated: memory at its end is missing")
        details = [("base", f"{self._base:#x}"), *self._source.describe()]
        if self._hole is not None:
            details.append(("hole", f"{self._hole[0]:#x}-{self._hole[1]:#x}"))
        return ImageInfo(NAME, complete=self._source.ended, quirks=tuple(quirks), details=tuple(details))
