"""A NetBSD kernel: image, processor, symbols and types joined."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kvm_dbg.arch import find_arch
from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.errors import (
    FileAccessError,
    FormatError,
    KernelMismatchError,
    KernelNotFoundError,
    UnknownFormatError,
)
from kvm_dbg.image.base import MemoryImage
from kvm_dbg.kernel.bsd.kernel import BsdKernel
from kvm_dbg.kernel.bsd.kernel_file import check, open_symbols, open_types, read_version
from kvm_dbg.kernel.netbsd.boot import NAME, Boot, find_boots, find_paging
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.symbols.elf import ElfSymbolTable

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
    """Return the kernel of `image`, with the kernel file `path`, or one from the usual places.

    Args:
        image: an opened image.
        path: a kernel, netbsd.gdb, or the name list that savecore wrote.
        candidate: which of several kernels in the image, from 1.
        index_directory: where indexes are kept, None for no index.
        search: directories to look for a kernel file in.
        force: use a file of another kernel.
        layout: a layout file, whose types are used in the place of the kernel file's.

    Raises:
        KernelMismatchError: the named file is of another kernel, and `force` is not set.
        KernelNotFoundError: no kernel, no kernel file, or no page tables; or several kernels and none chosen.
        FileAccessError, UnknownFormatError, FormatError: the named file cannot be used.
    """
    boot = _choose(find_boots(image), candidate)
    if path is not None:
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
    raise KernelNotFoundError(
        f"no kernel file found for {boot.version or NAME}: name netbsd.gdb, or the name list netbsd.N that"
        " savecore wrote beside the dump. Looked at:" + "".join(f"\n  {place}" for place in places)
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


def _attach(
    image: MemoryImage,
    boot: Boot,
    symbols: ElfSymbolTable,
    index_directory: str | None,
    layout: str | None,
    *,
    force: bool,
) -> NetbsdKernel:
    """Return the kernel with this file's symbols, after checking that it is the kernel's."""
    quirks: tuple[str, ...] = ()
    try:
        space = ImageSpace(find_arch(X86_64.name), image, find_paging(image, boot, symbols))
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
    version = boot.version or (read_version(space, symbols) or NAME).partition("\n")[0]
    build_id = symbols.build_id
    return NetbsdKernel(
        image,
        space,
        symbols,
        lambda: open_types(symbols.elf, layout, index_directory, UNTYPED),
        release=boot.release or version.partition(" ")[2].partition(" ")[0],
        version=version,
        vmlinux_path=symbols.path,
        build_id=build_id.hex() if build_id else None,
        index_directory=index_directory,
        quirks=quirks,
    )
