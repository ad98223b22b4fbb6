"""A NetBSD kernel: image, processor, symbols and types joined."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from kvm_dbg.arch.base import Arch
from kvm_dbg.debuginfo.relocation import relocated
from kvm_dbg.elf import ET_REL, SHF_ALLOC, SHT_NOBITS, ElfFile
from kvm_dbg.errors import (
    FileAccessError,
    FormatError,
    KernelMismatchError,
    KernelNotFoundError,
    ReadError,
    UnknownFormatError,
)
from kvm_dbg.image.base import MemoryImage
from kvm_dbg.kernel.bsd.kernel import BsdKernel
from kvm_dbg.kernel.bsd.kernel_file import check, open_symbols, open_types, read_version
from kvm_dbg.kernel.netbsd.boot import NAME, Boot, find_boots, find_space, for_each_block
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.symbols.elf import ElfSymbolTable, open_kernel_file
from kvm_dbg.symbols.ksyms import Shape, search_ksyms

UNTYPED = ("identify", "status", "loadavg", "log", "sys", "nlist", "read", "vtop", "write")  # commands
DUMP = re.compile(r"netbsd\.(\d+)\.core(\.\w+)?")  # savecore(8) puts the name list netbsd.N beside netbsd.N.core


class NetbsdKernel(BsdKernel):
    """One NetBSD kernel in one image."""


def open_netbsd(
    image: MemoryImage,
    path: str | None = None,
    *,
    candidate: int | None = None,
    index_directory: str | None = None,
    search: tuple[str, ...] = (),
    force: bool = False,
    layout: str | None = None,
) -> NetbsdKernel:
    """Return the kernel of `image`, with the kernel file `path`, or one from the usual places, or without any.

    Args:
        image: an opened image.
        path: a kernel, netbsd.gdb, or the name list that savecore wrote. Of a kernel of GENERIC_KASLR, which has no
            addresses, only the types are used.
        candidate: which of several kernels in the image, from 1.
        index_directory: where indexes are kept, None for no index.
        search: directories to look for a kernel file in.
        force: use a file of another kernel.
        layout: a layout file, whose types are used in the place of the kernel file's.

    Raises:
        KernelMismatchError: the named file is of another kernel, and `force` is not set.
        KernelNotFoundError: no kernel, neither a kernel file nor symbols in the image, or no page tables; or several
            kernels and none chosen.
        FileAccessError, UnknownFormatError, FormatError: the named file cannot be used.
    """
    boot = _choose(find_boots(image), candidate)
    if path is not None:
        relocatable = _open_relocatable(path, boot, force=force)
        if relocatable is not None:
            return _attach_own(image, boot, index_directory, layout, [], relocatable)
        return _attach(image, boot, open_symbols(path, index_directory), index_directory, layout, force=force)
    places = list(dict.fromkeys(_for_each_place(image, search)))
    for place in places:
        if not Path(place).is_file():
            continue
        try:
            symbols = open_symbols(place, index_directory)
            return _attach(image, boot, symbols, index_directory, layout, force=False)
        except (FileAccessError, UnknownFormatError, FormatError, KernelMismatchError):
            continue  # of another kernel, or of none
    return _attach_own(image, boot, index_directory, layout, places)


def _open_relocatable(path: str, boot: Boot, *, force: bool) -> ElfFile | None:
    """Return a kernel file that only gets its addresses when it is loaded (GENERIC_KASLR), None if it has them.

    Raises:
        KernelMismatchError: it lacks the version of the kernel in the image.
        FileAccessError, UnknownFormatError, FormatError: it cannot be used.
    """
    elf = open_kernel_file(path)
    if elf.header.type != ET_REL:
        elf.close()
        return None
    if not force and boot.version is not None and not _holds(elf, boot.version.encode()):
        elf.close()
        raise KernelMismatchError(path, "the version", "another one", repr(boot.version))
    return elf


def _holds(elf: ElfFile, text: bytes) -> bool:
    """Return whether a section that is loaded has these bytes."""
    loaded = (one for one in elf.sections if one.flags & SHF_ALLOC and one.type != SHT_NOBITS)
    return any(text in bytes(elf.section_data(section)) for section in loaded)


def _shape(arch: Arch) -> Shape:
    return Shape(arch.pointer_size, arch.elf_machine, "<" if arch.byteorder == "little" else ">")


def _attach_own(
    image: MemoryImage,
    boot: Boot,
    index_directory: str | None,
    layout: str | None,
    places: list[str],
    typed: ElfFile | None = None,
) -> NetbsdKernel:
    """Return the kernel with the symbols of its own memory, and types of a file without addresses, if there is one.

    Raises:
        KernelNotFoundError: they are not there.
    """
    space, why = boot.space(image), "its page tables are not known"
    if space is not None:
        try:
            found = search_ksyms(space, partial(for_each_block, space), _shape(space.arch))
        except ReadError as error:
            found, why = None, f"the symbol tables are there, but not all of them: {error}"
        else:
            why = "no symbol tables were found in it"
        if found is not None:
            symbols, missing = found
            try:
                return _attach(image, boot, symbols, index_directory, layout, force=False, own=missing, typed=typed)
            except (KernelMismatchError, UnknownFormatError) as error:
                why = str(error)
    raise KernelNotFoundError(
        f"no kernel file found for {boot.version or NAME}, and none of the symbols that the kernel keeps in memory"
        f" ({why}): name netbsd.gdb, or the name list netbsd.N that savecore wrote beside the dump."
        + (" Looked at:" if places else "")
        + "".join(f"\n  {place}" for place in places),
        (f"1: {boot.describe()}",),
    )


def _choose(boots: list[Boot], candidate: int | None) -> Boot:
    """Return the chosen kernel (`candidate` counts from 1), or the only one. Raises KernelNotFoundError."""
    lines = tuple(f"{number}: {boot.describe()}" for number, boot in enumerate(boots, 1))
    listed = "".join(f"\n  {line}" for line in lines)
    if candidate is not None:
        if 1 <= candidate <= len(boots):
            return boots[candidate - 1]
        raise KernelNotFoundError(f"there is no kernel {candidate} in the image; it holds{listed}", lines)
    if len(boots) == 1:
        return boots[0]
    raise KernelNotFoundError(f"several kernels are in the image; choose one with --kernel N{listed}", lines)


def _for_each_place(image: MemoryImage, search: tuple[str, ...]) -> Iterator[str]:
    """Yield the paths where the kernel file may be: the user's directories first, then beside the dump."""
    dumps = [Path(path) for path in image.paths]
    for directory in (*map(Path, search), *(dump.parent for dump in dumps)):
        yield str(directory / "netbsd.gdb")
        for dump in dumps:
            match = DUMP.fullmatch(dump.name)
            if match is not None:
                yield str(directory / f"netbsd.{match[1]}")
        yield str(directory / "netbsd")


def _space(image: MemoryImage, boot: Boot, symbols: ElfSymbolTable) -> ImageSpace:
    """Return the kernel's address space. Raises KernelNotFoundError, KernelMismatchError: of another processor."""
    space = find_space(image, boot, symbols)
    if symbols.elf.machine != space.arch.name:
        raise KernelMismatchError(symbols.path, "the processor", space.arch.name, symbols.elf.machine or "unknown")
    return space


def _attach(
    image: MemoryImage,
    boot: Boot,
    symbols: ElfSymbolTable,
    index_directory: str | None,
    layout: str | None,
    *,
    force: bool,
    own: str | None = None,
    typed: ElfFile | None = None,
) -> NetbsdKernel:
    """Return the kernel with these symbols, after checking that they are the kernel's.

    own: None for a file's symbols; for those of the kernel's memory a sentence on what they lack. typed: a file without
    addresses that has the types, where the symbols' file has not.
    """
    quirks: tuple[str, ...] = ()
    try:
        space = _space(image, boot, symbols)
        try:
            check(symbols, space, NAME)
        except KernelMismatchError as error:
            if not force:
                raise
            quirks = (
                f"used by force: {error.what} is {error.found} in {error.path} and {error.expected} in the image",
            )
    except (KernelMismatchError, KernelNotFoundError, UnknownFormatError):
        symbols.close()
        raise
    if own is not None:
        what = "no kernel file" if typed is None else f"{typed.path} has no addresses of a running kernel"
        quirks = (f"{what}: symbols are those that the kernel keeps in memory (ksyms)", *filter(None, (own,)))
    version = boot.version or (read_version(space, symbols) or NAME).partition("\n")[0]
    build_id = symbols.build_id
    return NetbsdKernel(
        image,
        space,
        symbols,
        lambda: open_types(
            relocated(typed, {}) if typed is not None else symbols.elf, layout, index_directory, UNTYPED
        ),
        release=boot.release or version.partition(" ")[2].partition(" ")[0],
        version=version,
        vmlinux_path=symbols.path if own is None else None,
        build_id=build_id.hex() if build_id else None,
        index_directory=index_directory,
        quirks=quirks,
    )
