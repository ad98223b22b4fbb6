"""A Linux kernel: image, processor, symbols and types joined."""

from __future__ import annotations

import os
from collections.abc import Callable

from kvm_dbg.arch import find_arch
from kvm_dbg.arch.base import Arch, Paging
from kvm_dbg.debuginfo.base import TypeTable
from kvm_dbg.elf import SHT_NOBITS
from kvm_dbg.errors import (
    CommandError,
    CorruptError,
    FileAccessError,
    FormatError,
    KernelMismatchError,
    KernelNotFoundError,
    ReadError,
    UnknownFormatError,
    UnsupportedError,
)
from kvm_dbg.image.base import MemoryImage
from kvm_dbg.image.live import NAME as THIS_MACHINE
from kvm_dbg.index import Index
from kvm_dbg.kernel.base import Kernel
from kvm_dbg.kernel.linux import boot_x86_64, vmlinux
from kvm_dbg.kernel.linux.boot import Boot, verify
from kvm_dbg.kernel.linux.discovery import BLOCK, choose
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.symbols.base import SymbolTable
from kvm_dbg.symbols.elf import ElfSymbolTable
from kvm_dbg.symbols.vmcoreinfo import VmcoreInfo

FIRST_DATA = "init_task"  # kallsyms has it only with CONFIG_KALLSYMS_ALL
TYPES = "/sys/kernel/btf/vmlinux"  # kernel/bpf/sysfs_btf.c, since v5.4, commit 341dfcf8d78e
MAX_BTF = 1 << 28  # bytes; a kernel's BTF has 4 to 10 MiB


class LinuxKernel(Kernel):
    """One Linux kernel in one image.

    Attributes beyond the six of `Kernel`:
        boot: how and where it was found. release: as uname -r. slide: KASLR's, in bytes. phys_base: what the kernel
        text mapping adds, None if unknown. paging, levels: its page tables. space: its address space.
        vmcoreinfo: None if the image has none. vmlinux_path: None without a kernel file; `symbols_from` says then where
        they are from. build_id: lower-case digits, None if unknown. quirks: a sentence each, what a careful reader
        wants to know. index_directory: None for none.
        memo: what free functions derive from types and symbols, by the function that made it (`layout.remembered`).
        observed: what they read from memory, which a refresh forgets (`layout.observed`).
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
        vmlinux_path: str | None = None,
        build_id: str | None = None,
        index_directory: str | None = None,
        quirks: tuple[str, ...] = (),
        symbols_from: str = "kallsyms in the image",
    ) -> None:
        self.symbols_from = symbols_from
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
        self.vmlinux_path = vmlinux_path
        self.build_id = build_id or boot.build_id
        self.index_directory = index_directory
        self.memo: dict[object, object] = {}
        self.observed: dict[object, object] = {}
        self._changes: dict[str, int] = {}
        if image.live:
            from kvm_dbg.kernel.linux.live import LIVE_LINUX

            self.room = LIVE_LINUX
        self.quirks = (*boot.quirks, *quirks)
        self._make_types = make_types
        self._types: TypeTable | None = None
        self.__dict__["read"] = space.read  # one call less than the method below, for reads by the hundred thousand

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

    def refresh(self) -> None:
        self.space.invalidate()
        self.observed.clear()
        self._changes.clear()
        if self.vmcoreinfo is None or not self.boot.verified:
            return
        _, problem = verify(self.space, self.vmcoreinfo)
        if problem:
            name = self.image.paths[0] if self.image.paths else "the image"
            raise CommandError(f"{name}: the kernel is not the one that was opened any more ({problem}): open it again")

    def note_change(self, text: str) -> None:
        self._changes[text] = self._changes.get(text, 0) + 1

    @property
    def changes(self) -> tuple[str, ...]:
        return tuple(text if count == 1 else f"{text} ({count} times)" for text, count in self._changes.items())


def open_linux(
    image: MemoryImage,
    boots: list[Boot],
    path: str | None = None,
    *,
    candidate: int | None = None,
    index_directory: str | None = None,
    search: tuple[str, ...] = (),
    force: bool = False,
) -> LinuxKernel:
    """Return a kernel of `image`, with the kernel file `path` or one from the usual places.

    boots: the kernels found in the image. candidate: which of them, from 1; None for the only one that can be.

    Raises:
        KernelMismatchError: the named file is of another kernel, and `force` is not set.
        KernelNotFoundError: no kernel file was found, or the page tables were not, or several kernels are possible.
        FileAccessError, UnknownFormatError, FormatError: the named file cannot be used.
    """
    if candidate is None and len(boots) > 1 and all(boot.banner_paddrs for boot in boots):
        boots = _boots_that_fit(image, boots, path, index_directory, search)
    boot = choose(boots, candidate)
    if path is not None:
        return _attach(image, boot, vmlinux.open_symbols(path, index_directory), index_directory, force)
    kernel, places = _search(image, boot, index_directory, search)
    if kernel is not None:
        return kernel
    kernel, why = _from_memory(image, boot, index_directory)
    if kernel is not None:
        return kernel
    raise KernelNotFoundError(
        f"no vmlinux found for {boot.release or 'the kernel in the image'}"
        + (f" (build-id {boot.build_id})" if boot.build_id else "")
        + f", and its own symbols cannot be used ({why}); name a vmlinux, or install the distribution's debug package."
        + " Looked at:"
        + "".join(f"\n  {place}" for place in places)
    )


def _search(
    image: MemoryImage, boot: Boot, index_directory: str | None, search: tuple[str, ...]
) -> tuple[LinuxKernel | None, tuple[str, ...]]:
    """Return the kernel with a file from the usual places, None if there is none, and the places."""
    places = tuple(vmlinux.for_each_place(boot.release, boot.build_id, search))
    for place in places:
        if not os.path.isfile(place):
            continue
        try:
            return _attach(image, boot, vmlinux.open_symbols(place, index_directory), index_directory, False), places
        except (FileAccessError, UnknownFormatError, FormatError, KernelMismatchError):
            continue  # of another kernel, or of none
    return None, places


def _from_memory(image: MemoryImage, boot: Boot, index_directory: str | None) -> tuple[LinuxKernel | None, str]:
    """Return the kernel with the symbols and types of its own memory, or None and why not."""
    from kvm_dbg.symbols.kallsyms_search import search_places
    from kvm_dbg.symbols.kallsyms_table import find_known, find_places, read_kallsyms
    from kvm_dbg.symbols.proc_kallsyms import PATH as PROC_KALLSYMS
    from kvm_dbg.symbols.proc_kallsyms import read_proc_kallsyms

    if boot.paging is None or boot.vmcoreinfo is None:
        return None, "there is no VMCOREINFO that says where they are"
    space = ImageSpace(find_arch(boot.arch), image, boot.paging)
    symbols: SymbolTable | None = None
    symbols_from = "kallsyms in the image"
    problem = "kallsyms was not found in its memory"
    quirks: tuple[str, ...] = ("no vmlinux: symbols are those of the kernel's own kallsyms",)
    try:
        places = find_places(boot.vmcoreinfo)
        if places is None:
            places = search_places(space, boot_x86_64.for_each_kernel_block(space, BLOCK, 0))
        if places is not None:
            index = _index(index_directory, boot.build_id)
            symbols = read_kallsyms(space, places, find_known(boot.vmcoreinfo), index=index)
    except (ReadError, CorruptError, FormatError) as error:
        problem = str(error)
    if symbols is None and image.info.format == THIS_MACHINE:
        try:
            symbols, symbols_from = read_proc_kallsyms(), PROC_KALLSYMS
            quirks = (f"no vmlinux: symbols are those of {PROC_KALLSYMS}, for {problem}",)
        except FileAccessError as error:
            problem += f"; {error}"
    if symbols is None:
        return None, problem
    if symbols.find(FIRST_DATA) is None:
        from kvm_dbg.kernel.linux.derive import derive_data_symbols
        from kvm_dbg.symbols.kallsyms import ListedSymbols

        derived, more = derive_data_symbols(
            space, symbols, boot.vmcoreinfo, lambda: boot_x86_64.for_each_kernel_block(space, BLOCK, 0)
        )
        symbols = ListedSymbols([*symbols.for_each(), *derived])
        quirks += more
    kernel = LinuxKernel(
        image,
        boot,
        space,
        symbols,
        _types_in_memory,
        slide=boot.slide or 0,
        index_directory=index_directory,
        quirks=quirks,
        symbols_from=symbols_from,
    )
    return kernel, ""


def _boots_that_fit(
    image: MemoryImage, boots: list[Boot], path: str | None, index_directory: str | None, search: tuple[str, ...]
) -> list[Boot]:
    """Return those of several kernels, known by their banner only, that a kernel file leads to; else all."""
    found: list[Boot] = []
    for boot in boots:
        try:
            if path is None:
                kernel, _ = _search(image, boot, index_directory, search)
            else:
                symbols = vmlinux.open_symbols(path, index_directory)
                kernel = _attach(image, boot, symbols, index_directory, False)
        except (KernelMismatchError, KernelNotFoundError):
            continue
        if kernel is not None:
            found.append(kernel.boot)
    return found or boots


def _attach(
    image: MemoryImage, boot: Boot, linked: ElfSymbolTable, index_directory: str | None, force: bool
) -> LinuxKernel:
    """Return the kernel with this file's symbols, after checking that it is the kernel's."""
    boot, slide = _place(image, boot, linked)
    if boot.paging is None:
        raise KernelNotFoundError(f"the page tables of Linux {boot.release} were not found ({boot.source})")
    symbols = linked.slid(slide)
    space = ImageSpace(find_arch(boot.arch), image, boot.paging)
    quirks: tuple[str, ...] = ()
    try:
        quirks = vmlinux.check(symbols, boot, space)
    except KernelMismatchError as error:
        if not force:
            linked.close()
            raise
        quirks = (f"used by force: {error.what} is {error.found} in {error.path} and {error.expected} in the image",)
    quirks += _set_hole(image, space, symbols)
    build_id = linked.build_id
    return LinuxKernel(
        image,
        boot,
        space,
        symbols,
        lambda kernel: _types_of(kernel, symbols),
        slide=slide,
        vmlinux_path=linked.path,
        build_id=build_id.hex() if build_id else None,
        index_directory=index_directory,
        quirks=quirks,
    )


def _place(image: MemoryImage, boot: Boot, linked: ElfSymbolTable) -> tuple[Boot, int]:
    """Return the kernel with its page tables, and its slide; from the file's symbols where the image does not say."""
    if boot.slide is not None:
        return boot, boot.slide
    if boot.vmcoreinfo is not None:
        in_image, in_file = boot.vmcoreinfo.symbol("_stext"), linked.find("_stext")
        return boot, in_image - in_file.address if in_image is not None and in_file is not None else 0
    banner = linked.find("linux_banner")
    top = next((symbol for name in boot_x86_64.TOP_TABLES if (symbol := linked.find(name)) is not None), None)
    if banner is None or top is None:
        raise UnknownFormatError(linked.path, "has no symbols linux_banner and init_top_pgt: not a Linux kernel file")
    located = boot_x86_64.locate(image, boot, banner.address, top.address)
    if located is None or located.slide is None:
        place = f"none that fits any page tables ({boot.source})"
        raise KernelMismatchError(linked.path, "the place of linux_banner", place, f"{banner.address:#x}")
    return located, located.slide


def _set_hole(image: MemoryImage, space: ImageSpace, symbols: SymbolTable) -> tuple[str, ...]:
    """Give raw RAM the hole that the kernel's memory map tells of, and say so."""
    if image.info.format != "raw":
        return ()
    from kvm_dbg.kernel.linux.hole import raw_image_of, read_hole

    raw = raw_image_of(image)
    found = read_hole(raw, space, symbols) if raw is not None else None
    if raw is None or found is None:
        return ()
    raw.set_hole(found)
    space.invalidate()
    return (f"raw RAM with a hole from {found[0]:#x} to {found[1]:#x}, as the kernel's memory map has it",)


def _index(index_directory: str | None, build_id: str | None) -> Index | None:
    """Return the place of a kernel's indexes, None for none."""
    if index_directory is None or build_id is None:
        return None
    return Index(index_directory, bytes.fromhex(build_id))


def _types_of(kernel: LinuxKernel, symbols: ElfSymbolTable) -> TypeTable:
    """Return types: BTF of the file, else BTF in the image's memory, else DWARF of the file."""
    index = _index(kernel.index_directory, kernel.build_id)
    section = symbols.elf.find_section(".BTF")
    if section is not None and section.type != SHT_NOBITS:
        from kvm_dbg.debuginfo.btf import BtfTypes

        return BtfTypes(symbols.elf.section_data(section), source=f"BTF of {symbols.path}", index=index)
    if _btf_range(kernel) is not None:
        return _types_in_memory(kernel)
    from kvm_dbg.debuginfo.dwarf import DwarfTypes

    return DwarfTypes(symbols.elf, index=index)


def _btf_range(kernel: LinuxKernel) -> tuple[int, int] | None:
    """Return (address, size) of the BTF in the kernel's memory, None if it has none."""
    start, stop = kernel.symbols.find("__start_BTF"), kernel.symbols.find("__stop_BTF")
    if start is None or stop is None or not 0 < stop.address - start.address <= MAX_BTF:
        return None
    return start.address, stop.address - start.address


def _types_in_memory(kernel: LinuxKernel) -> TypeTable:
    """Return types from the BTF in the kernel's memory.

    Raises:
        UnsupportedError: the kernel has none.
        ReadError: it is not in the image.
    """
    from kvm_dbg.debuginfo.btf import BtfTypes

    found = _btf_range(kernel)
    index = _index(kernel.index_directory, kernel.build_id)
    if found is None:
        data = _told_types(kernel)
        if data is not None:
            return BtfTypes(data, source=TYPES, index=index)
        raise UnsupportedError("a kernel without BTF and without vmlinux", "name the vmlinux that has its types")
    try:
        return BtfTypes(kernel.read(*found), source="BTF in the image", index=index)
    except ReadError:
        data = _told_types(kernel)
        if data is None:
            raise
        return BtfTypes(data, source=TYPES, index=index)


def _told_types(kernel: LinuxKernel) -> bytes | None:
    """Return the BTF that the kernel of this machine tells; None of another, and if it tells none."""
    if kernel.image.info.format != THIS_MACHINE:
        return None
    try:
        with open(TYPES, "rb") as file:
            return file.read(MAX_BTF)
    except OSError:
        return None
