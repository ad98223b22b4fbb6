"""A FreeBSD kernel: how it is opened, and what is read of its file where the image lacks it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kvm_dbg.arch import find_arch
from kvm_dbg.arch.base import Arch
from kvm_dbg.errors import (
    FileAccessError,
    FormatError,
    KernelMismatchError,
    KernelNotFoundError,
    KvmDbgError,
    UnknownFormatError,
)
from kvm_dbg.kernel.bsd.kernel import BsdKernel
from kvm_dbg.kernel.bsd.kernel_file import check, find_types, open_symbols, read_version
from kvm_dbg.kernel.freebsd.boot import Boot, find_boot
from kvm_dbg.kernel.freebsd.machine import Machine, find_machine
from kvm_dbg.kernel.freebsd.offset import OffsetTypes, check_offsets
from kvm_dbg.kernel.freebsd.space import find_minidump
from kvm_dbg.kernel.packed import SUFFIXES, unpack_kernel_file
from kvm_dbg.symbols.elf import ElfSymbolTable

if TYPE_CHECKING:
    from kvm_dbg.debuginfo.base import TypeTable
    from kvm_dbg.image.base import MemoryImage
    from kvm_dbg.kernel import Identity, KernelOptions

SYSTEM = "FreeBSD"
NAMES = ("kernel.full", "kernel.debug", "kernel")  # the first has everything, the second all but the code's bytes
PLACES = ("/usr/lib/debug/boot/kernel", "/boot/kernel")  # kernel.debug is in the first, kernel in the second
BESIDE = ("", "kernel", "boot/kernel", "usr/lib/debug/boot/kernel")  # below a directory that the user names
RELEASE = re.compile(r"FreeBSD (\d+\.\d+-\S+)")
BANNER = re.compile(rb"FreeBSD (\d+\.\d+-[^\s\0]+)[^\n\0]{0,200}")  # sys/conf/newvers.sh, in the log of the boot
PPC64_LINKED = ("begin", "kernbase")  # where powerpc64's kernels are linked: sys/conf/ldscript.powerpc64
PPC64_LINKED_AT = 0x100100  # the same of a file without those names: PPC64_KERNBASE, lib/libkvm/kvm_powerpc64.h


class FreeBSDKernel(BsdKernel):
    """One FreeBSD kernel in one image.

    Attributes beyond those of `BsdKernel`:
        machine: what FreeBSD does on this processor. linked: the symbols of its file. layout: the path of a layout
        file, None if none was named.
    """

    def __init__(
        self,
        image: MemoryImage,
        boot: Boot,
        symbols: ElfSymbolTable,
        machine: Machine,
        options: KernelOptions,
        quirks: tuple[str, ...],
    ) -> None:
        version = (read_version(boot.space, symbols) or "").partition("\n")[0]
        found = RELEASE.match(version)
        super().__init__(
            image,
            boot.space,
            symbols,
            self._find_types,
            release=found[1] if found is not None else "",
            version=version,
            slide=symbols.slide,
            vmlinux_path=symbols.path,
            build_id=symbols.build_id.hex() if symbols.build_id else None,
            index_directory=options.index_directory,
            quirks=(*boot.quirks, *quirks),
        )
        self.machine = machine
        self.linked = symbols
        self.layout = options.layout

    def read_file(self, vaddr: int, size: int) -> bytes | None:
        """Return the bytes that the kernel file has for a run-time address, None where it has none."""
        data = self.linked.read_linked(vaddr - self.slide, size)
        return data if data is not None and len(data) == size else None

    def _find_types(self) -> TypeTable:
        """Return types: those of a layout file that is named, else the kernel file's, else the kernel's own offsets.

        Raises:
            TypeNotFound: there are none at all.
            FormatError, FileAccessError, KernelMismatchError, UnsupportedError: those that there are cannot be used.
        """
        found = find_types(self.linked.elf, self.layout, self.index_directory)
        if found is not None:
            return found
        return OffsetTypes(self)


def open_freebsd(image: MemoryImage, path: str | None, options: KernelOptions) -> FreeBSDKernel:
    """Return the kernel of `image`, with the kernel file `path` or one from the usual places.

    Raises:
        KernelMismatchError: the named file is of another kernel, and `options.force` is not set.
        KernelNotFoundError: no kernel file was found that fits.
        FileAccessError, UnknownFormatError, FormatError: the named file cannot be used.
        UnsupportedError: nothing is known of FreeBSD on its processor.
    """
    if path is not None:
        return _attach(image, path, options, force=options.force)
    places = tuple(for_each_place(image, options.search))
    for place in places:
        if not Path(place).is_file():
            continue
        try:
            file = unpack_kernel_file(place, options.index_directory)
        except KvmDbgError:
            continue  # it cannot be decompressed, or nowhere
        try:
            return _attach(image, file, options, force=False)
        except (FileAccessError, UnknownFormatError, FormatError, KernelMismatchError):
            continue  # of another kernel, or of none
    raise KernelNotFoundError(
        "no FreeBSD kernel file was found that fits; name it: its symbols are nowhere else (kernel, or better"
        " kernel.debug or kernel.full). Looked at, and for the same with .gz, .xz and .zst:"
        + "".join(f"\n  {place}" for place in places if not place.endswith(SUFFIXES[1:]))
    )


def for_each_place(image: MemoryImage, search: tuple[str, ...]) -> Iterator[str]:
    """Yield the paths where the kernel file may be: the user's directories, beside the image, the system's own."""
    names = tuple(name + suffix for suffix in SUFFIXES for name in NAMES)
    for directory in search:
        yield from (str(Path(directory) / below / name) for below in BESIDE for name in names)
    for path in image.paths[:1]:
        yield from (str(Path(path).parent / name) for name in names)
    yield from (str(Path(directory) / name) for directory in PLACES for name in NAMES)


def _attach(image: MemoryImage, path: str, options: KernelOptions, *, force: bool) -> FreeBSDKernel:
    """Return the kernel with this file's symbols, after checking that it is the kernel's."""
    linked = open_symbols(path, options.index_directory)
    try:
        name = linked.elf.machine
        if name is None:
            raise UnknownFormatError(path, f"a file for processor {linked.elf.header.machine}, which is not known")
        if image.info.machine not in (None, name):
            raise KernelMismatchError(path, "the architecture", str(image.info.machine), name)
        machine = find_machine(name)
        symbols = linked.slid(_slide(image, name, linked))
        boot = find_boot(image, _find_arch(image, name, linked.elf.header.byteorder), machine, symbols)
        if boot is None:
            roots = " or ".join(root.symbol for root in machine.roots) or "hashed page tables"
            raise KernelMismatchError(path, "the way to the page tables", "nowhere to be found", roots)
        quirks: tuple[str, ...] = ()
        try:
            check_kernel(boot, symbols)
        except KernelMismatchError as error:
            if not force:
                raise
            quirks = (f"used by force: {error.what} is {error.found} in {path} and {error.expected} in the image",)
        return FreeBSDKernel(image, boot, symbols, machine, options, quirks)
    except KvmDbgError:
        linked.close()
        raise


def check_kernel(boot: Boot, symbols: ElfSymbolTable) -> None:
    """Make sure that a kernel file is of the kernel whose page tables were found.

    The witnesses are its build-id and its version; of a file that has neither, the offsets that it tells debuggers.

    Raises:
        KernelMismatchError: it is not.
        UnknownFormatError: it is no file of a FreeBSD kernel.
    """
    if "version" in symbols:
        check(symbols, boot.space, SYSTEM)
    else:
        check_offsets(boot.space, symbols)


def _slide(image: MemoryImage, machine: str, linked: ElfSymbolTable) -> int:
    """Return how far the kernel was moved from its link addresses, in bytes; only powerpc64's is.

    It relocates itself into the direct map, and the dump has the address of its first byte there: the variable
    __startkernel, which is `begin` relocated (sys/powerpc/aim/locore64.S).
    """
    minidump = find_minidump(image)
    if machine != "ppc64" or minidump is None:
        return 0
    found = (linked.find(name) for name in PPC64_LINKED)
    first = next((symbol.address for symbol in found if symbol is not None), PPC64_LINKED_AT)
    return minidump.header.fields["startkernel"] - first


def _find_arch(image: MemoryImage, name: str, byteorder: str) -> Arch:
    """Return the processor, with the page size that a minidump says. Raises UnsupportedError."""
    minidump = find_minidump(image)
    return find_arch(name, byteorder=byteorder, page_shift=minidump.header.page_shift if minidump is not None else None)


def identify_freebsd(image: MemoryImage) -> list[Identity]:
    """Return what an image tells of its FreeBSD kernel without a kernel file.

    Raises:
        KernelNotFoundError: nothing in it is of FreeBSD.
    """
    from kvm_dbg.kernel import Identity

    minidump = find_minidump(image)
    if minidump is None:
        raise KernelNotFoundError("whether a FreeBSD kernel is in it cannot be told without its kernel file")
    banner = next((found for found in BANNER.finditer(minidump.read_message_buffer())), None)
    version = banner[0].decode("utf-8", "replace") if banner is not None else None
    release = banner[1].decode("utf-8", "replace") if banner is not None else None
    arch = minidump.info.machine or "?"
    text = f"FreeBSD {release or '(release unknown)'} on {arch}"
    return [Identity(SYSTEM, arch, release, version, None, None, None, False, text)]
