"""A Linux kernel: image, processor, symbols and types joined."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kvm_dbg.arch import find_arch
from kvm_dbg.arch.base import Arch, Paging
from kvm_dbg.debuginfo.base import TypeTable
from kvm_dbg.elf import ElfFile, open_elf
from kvm_dbg.errors import (
    FileAccessError,
    FormatError,
    KernelMismatchError,
    KernelNotFoundError,
    UnknownFormatError,
    UnsupportedError,
)
from kvm_dbg.image.base import MemoryImage
from kvm_dbg.index import Index
from kvm_dbg.kernel.base import Kernel
from kvm_dbg.kernel.linux import boot_x86_64, vmlinux
from kvm_dbg.kernel.linux.boot import Boot
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.symbols.base import SymbolTable
from kvm_dbg.symbols.elf import ElfSymbolTable
from kvm_dbg.symbols.vmcoreinfo import VmcoreInfo

MAX_BTF = 1 << 28  # bytes; a kernel's BTF has 4 to 10 MiB


class LinuxKernel(Kernel):
    """One Linux kernel in one image.

    Attributes beyond the six of `Kernel`:
        boot: how and where it was found. release: as uname -r. slide: KASLR's, in bytes. phys_base: what the kernel
        text mapping adds, None if unknown. paging, levels: its page tables. space: its address space.
        vmcoreinfo: None if the image has none. vmlinux_path: None without a kernel file. build_id: lower-case digits,
        None if unknown. quirks: a sentence each, what a careful reader wants to know. index_directory: None for none.
        memo: what free functions derive from types and symbols, kept by the function that made it (`layout.remembered`).
    """

    def __init__(
        self,
        image: MemoryImage,
        boot: Boot,
        space: ImageSpace,
        symbols: SymbolTable,
        make_types: Callable[[LinuxKernel], TypeTable],
        *,
        slide: int,
        file: vmlinux.KernelFile | None = None,
        index_directory: str | None = None,
        quirks: tuple[str, ...] = (),
    ) -> None:
        self.image = image
        self.arch: Arch = space.arch
        self.symbols = symbols
        self.boot = boot
        self.space = space
        self.release = boot.release
        self.slide = slide
        self.phys_base = boot.phys_base
        self.paging: Paging = space.paging
        self.levels = space.paging.levels
        self.vmcoreinfo: VmcoreInfo | None = boot.vmcoreinfo
        self.vmlinux_path = file.path if file is not None else None
        self.build_id = file.build_id if file is not None and file.build_id else boot.build_id
        self.index_directory = index_directory
        self.memo: dict[object, object] = {}
        self.quirks = (*boot.quirks, *quirks)
        self._make_types = make_types
        self._types: TypeTable | None = None

    @property
    def types(self) -> TypeTable:
        """Return the kernel's types, loaded the first time. Raises FormatError, UnsupportedError if there are none."""
        if self._types is None:
            self._types = self._make_types(self)
        return self._types

    @types.setter
    def types(self, table: TypeTable) -> None:
        self._types = table

    def read(self, vaddr: int, size: int) -> bytes:
        return self.space.read(vaddr, size)

    def translate(self, vaddr: int) -> int:
        return self.space.translate(vaddr)


def open_linux(
    image: MemoryImage,
    boot: Boot,
    path: str | None = None,
    *,
    index_directory: str | None = None,
    search: tuple[str, ...] = (),
    force: bool = False,
) -> LinuxKernel:
    """Return the kernel `boot` of `image`, with the kernel file `path` or one from the usual places.

    Raises:
        KernelMismatchError: the named file is of another kernel, and `force` is not set.
        KernelNotFoundError: no kernel file was found, or the page tables were not.
        FileAccessError, UnknownFormatError, FormatError: the named file cannot be used.
    """
    if path is not None:
        return _attach(image, boot, vmlinux.inspect(path), index_directory, force)
    places = tuple(vmlinux.for_each_place(boot.release, boot.build_id, search))
    for place in places:
        if not Path(place).is_file():
            continue
        try:
            return _attach(image, boot, vmlinux.inspect(place), index_directory, False)
        except (FileAccessError, UnknownFormatError, FormatError, KernelMismatchError):
            continue  # of another kernel, or of none
    raise KernelNotFoundError(
        f"no vmlinux found for {boot.release or 'the kernel in the image'}"
        + (f" (build-id {boot.build_id})" if boot.build_id else "")
        + "; name one, or install the distribution's debug package. Looked at:"
        + "".join(f"\n  {place}" for place in places)
    )


def _attach(
    image: MemoryImage, boot: Boot, file: vmlinux.KernelFile, index_directory: str | None, force: bool
) -> LinuxKernel:
    """Return the kernel with this file's symbols, after checking that it is the kernel's."""
    index = None
    if index_directory is not None and file.build_id is not None:
        index = Index(index_directory, bytes.fromhex(file.build_id))
    boot, slide = _place(image, boot, file, index)
    if boot.paging is None:
        raise KernelNotFoundError(f"the page tables of Linux {boot.release} were not found ({boot.source})")
    symbols = ElfSymbolTable(file.path, slide=slide, index=index)
    space = ImageSpace(find_arch(boot.arch), image, boot.paging)
    quirks: tuple[str, ...] = ()
    try:
        quirks = vmlinux.check(file, boot, symbols, slide, space)
    except KernelMismatchError as error:
        if not force:
            raise
        quirks = (f"used by force: {error.path} has {error.what} {error.found}, the image {error.expected}",)
    return LinuxKernel(
        image,
        boot,
        space,
        symbols,
        lambda kernel: _types_of(kernel, file, index),
        slide=slide,
        file=file,
        index_directory=index_directory,
        quirks=quirks,
    )


def _place(image: MemoryImage, boot: Boot, file: vmlinux.KernelFile, index: Index | None) -> tuple[Boot, int]:
    """Return the kernel with its page tables, and its slide; from the file's symbols where the image does not say."""
    if boot.slide is not None:
        return boot, boot.slide
    linked = ElfSymbolTable(file.path, slide=0, index=index)
    if boot.vmcoreinfo is not None:
        in_image, in_file = boot.vmcoreinfo.symbol("_stext"), linked.find("_stext")
        if in_image is not None and in_file is not None:
            return boot, in_image - in_file.address
        return boot, 0
    banner = linked.find("linux_banner")
    top = next((symbol for name in boot_x86_64.TOP_TABLES if (symbol := linked.find(name)) is not None), None)
    if banner is None or top is None:
        raise UnknownFormatError(file.path, "has no symbols linux_banner and swapper_pg_dir: not a Linux kernel file")
    located = boot_x86_64.locate(image, boot, banner.address, top.address)
    if located is None or located.slide is None:
        raise KernelMismatchError(
            file.path,
            "the place of linux_banner",
            f"one that fits the page tables ({boot.source}, release {boot.release})",
            f"{banner.address:#x}",
        )
    return located, located.slide


def _types_of(kernel: LinuxKernel, file: vmlinux.KernelFile, index: Index | None) -> TypeTable:
    """Return types: BTF of the file, else BTF in the image's memory, else DWARF of the file."""
    from kvm_dbg.debuginfo.btf import BtfTypes

    if file.has_btf:
        elf: ElfFile = open_elf(file.path)  # stays mapped: the types refer to it
        section = elf.find_section(".BTF")
        if section is not None:
            return BtfTypes(elf.section_data(section), source=f"BTF of {file.path}", index=index)
    start, stop = kernel.symbols.find("__start_BTF"), kernel.symbols.find("__stop_BTF")
    if start is not None and stop is not None and 0 < stop.address - start.address <= MAX_BTF:
        data = kernel.read(start.address, stop.address - start.address)
        return BtfTypes(data, source="BTF in the image", index=index)
    raise UnsupportedError("a kernel without BTF", f"{file.path} has no types that can be read")
