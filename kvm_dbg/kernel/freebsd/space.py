"""Kernel memory of a minidump, whose page tables are a part of the file and not of memory."""

from __future__ import annotations

from kvm_dbg.arch.base import Arch, Paging, Walk
from kvm_dbg.image.base import MemoryImage, PageMap
from kvm_dbg.image.freebsd_minidump import FreebsdMinidumpImage
from kvm_dbg.image.writable import WritableImage
from kvm_dbg.kernel.space import ImageSpace


class MinidumpSpace(ImageSpace):
    """The kernel's memory, by the page map of the dump.

    Spaces of processes (`with_root`) have no page map; a minidump hardly ever has their page tables.
    """

    def __init__(self, arch: Arch, image: MemoryImage, paging: Paging, page_map: PageMap) -> None:
        super().__init__(arch, image, paging)
        self._page_map = page_map

    def _translate_page(self, vaddr: int) -> tuple[int, int]:
        return self._page_map.translate_page(self._tables.read, vaddr)

    def walk(self, vaddr: int) -> Walk:
        base, size = self._page_map.translate_page(self._image.read, vaddr)
        return Walk(vaddr, base + (vaddr & size - 1), size, (), ())


def find_minidump(image: MemoryImage) -> FreebsdMinidumpImage | None:
    """Return the minidump that an image is, under what was written over it; None if it is none."""
    inner = image.image if isinstance(image, WritableImage) else image
    return inner if isinstance(inner, FreebsdMinidumpImage) else None
