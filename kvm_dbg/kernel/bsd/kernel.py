"""A BSD kernel: image, processor, symbols and types joined."""

from __future__ import annotations

from collections.abc import Callable

from kvm_dbg.arch.base import Arch, Paging
from kvm_dbg.debuginfo.base import TypeTable
from kvm_dbg.image.base import MemoryImage
from kvm_dbg.kernel.base import Kernel
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.symbols.base import SymbolTable


class BsdKernel(Kernel):
    """One kernel of a BSD in one image; each system derives its own class.

    Attributes beyond the six of `Kernel`:
        release: as uname -r. version: the text of the variable `version`, its first line. slide: in bytes.
        paging, levels: its page tables. space: its address space. vmlinux_path: the kernel file. build_id: lower-case
        digits, None if unknown. quirks: a sentence each, what a careful reader wants to know. index_directory: None
        for none. memo: what free functions derive from types and symbols, by the function that made it
        (`layout.remembered`).
    """

    def __init__(
        self,
        image: MemoryImage,
        space: ImageSpace,
        symbols: SymbolTable,
        make_types: Callable[[], TypeTable],
        *,
        release: str,
        version: str,
        slide: int = 0,
        vmlinux_path: str | None = None,
        build_id: str | None = None,
        index_directory: str | None = None,
        quirks: tuple[str, ...] = (),
    ) -> None:
        self.image = image
        self.arch: Arch = space.arch
        self.symbols = symbols
        self.space = space
        self.release = release
        self.version = version
        self.slide = slide
        self.paging: Paging = space.paging
        self.levels = space.paging.levels
        self.vmlinux_path = vmlinux_path
        self.build_id = build_id
        self.index_directory = index_directory
        self.quirks = quirks
        self.memo: dict[object, object] = {}
        self._make_types = make_types
        self._types: TypeTable | None = None

    @property
    def types(self) -> TypeTable:
        """Return the kernel's types, loaded the first time. Raises KvmDbgError if there are none."""
        if self._types is None:
            self._types = self._make_types()
        return self._types

    @types.setter
    def types(self, table: TypeTable) -> None:
        self._types = table

    def read(self, vaddr: int, size: int) -> bytes:
        return self.space.read(vaddr, size)

    def translate(self, vaddr: int) -> int:
        return self.space.translate(vaddr)
