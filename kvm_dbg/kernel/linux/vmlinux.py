"""The kernel file: where to look for it, and whether it is the one in the image.

Places are those of Debian (linux-image-*-dbg), Fedora and RHEL (kernel-debuginfo), SUSE and a kernel's own
`make modules_install`; /usr/lib/debug/.build-id is gdb's convention. The build-id is the proof: VMCOREINFO has it since
5.9, but some stable kernels export garbage, so that before a file is refused the note in the kernel's own memory
(between `__start_notes` and `__stop_notes`) is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from kvm_dbg.elf import ET_REL, NT_GNU_BUILD_ID, for_each_note
from kvm_dbg.errors import FormatError, KernelMismatchError, ReadError, UnknownFormatError
from kvm_dbg.index import Index
from kvm_dbg.kernel.linux.boot import Boot
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.symbols.base import SymbolTable
from kvm_dbg.symbols.elf import ElfSymbolTable, open_kernel_file

MAX_NOTES_SIZE = 1 << 16  # bytes; a kernel's .notes has a few hundred


def for_each_place(release: str | None, build_id: str | None, search: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the paths where the kernel file may be, the user's directories first."""
    for directory in search:
        if build_id:
            file = f".build-id/{build_id[:2]}/{build_id[2:]}.debug"
            yield os.path.join(directory, file)
            yield os.path.join(directory, "usr/lib/debug", file)
        if release:
            for name in (
                f"vmlinux-{release}",
                f"boot/vmlinux-{release}",
                f"usr/lib/debug/boot/vmlinux-{release}",
                f"lib/modules/{release}/vmlinux",
                f"usr/lib/debug/lib/modules/{release}/vmlinux",
                f"lib/modules/{release}/build/vmlinux",
            ):
                yield os.path.join(directory, name)
        yield os.path.join(directory, "vmlinux")
    if build_id:
        yield f"/usr/lib/debug/.build-id/{build_id[:2]}/{build_id[2:]}.debug"
    if release:
        yield f"/usr/lib/debug/boot/vmlinux-{release}"
        yield f"/usr/lib/debug/lib/modules/{release}/vmlinux"
        yield f"/usr/lib/debug/boot/vmlinux-{release}.debug"
        yield f"/usr/lib/debug/lib/modules/{release}/vmlinux.debug"
        yield f"/lib/modules/{release}/build/vmlinux"
        yield f"/lib/modules/{release}/vmlinux"
        yield f"/boot/vmlinux-{release}"


def open_symbols(path: str, index_directory: str | None) -> ElfSymbolTable:
    """Return the symbols of the kernel file `path`, as linked.

    Raises:
        FileAccessError: missing, a directory, no permission.
        UnknownFormatError: no ELF file, or one that cannot be a kernel's.
        FormatError: a damaged ELF file, or one without symbols.
    """
    elf = open_kernel_file(path)
    if elf.header.type == ET_REL:
        elf.close()
        raise UnknownFormatError(path, "an ELF object or module, not a kernel file")
    try:
        build_id = elf.find_build_id()
        index = Index(index_directory, build_id) if index_directory is not None and build_id else None
        return ElfSymbolTable(elf, index=index)
    except FormatError:
        elf.close()
        raise


def read_memory_build_id(space: ImageSpace, symbols: SymbolTable) -> str | None:
    """Return the build-id in the kernel's own memory, None if it cannot be read.

    The linker script puts the notes of vmlinux between `__start_notes` and `__stop_notes`
    (include/asm-generic/vmlinux.lds.h).
    """
    start, stop = symbols.find("__start_notes"), symbols.find("__stop_notes")
    if start is None or stop is None or not 0 < stop.address - start.address <= MAX_NOTES_SIZE:
        return None
    try:
        data = space.read(start.address, stop.address - start.address)
        for note in for_each_note(data, "<" if space.arch.byteorder == "little" else ">", 0, len(data), "memory"):
            if note.name == "GNU" and note.type == NT_GNU_BUILD_ID:
                return note.desc.hex()
    except (ReadError, FormatError):
        pass  # memory that says nothing
    return None


def check(symbols: ElfSymbolTable, boot: Boot, space: ImageSpace) -> tuple[str, ...]:
    """Make sure that a kernel file is of the kernel `boot`; return quirks worth telling.

    symbols: the file's, moved by its slide. space: the kernel's.

    Raises:
        KernelMismatchError: it is not, naming both sides.
        UnknownFormatError: it is no Linux kernel's file.
    """
    machine = symbols.elf.machine
    if machine is not None and machine != boot.arch:
        raise KernelMismatchError(symbols.path, "the architecture", boot.arch, machine)
    stext = symbols.find("_stext")
    if stext is None:
        raise UnknownFormatError(symbols.path, "has no symbol _stext: not a Linux kernel file")
    quirks = _check_build_id(symbols, boot, space)
    if quirks is None:
        quirks = ()
        _check_banner(symbols, boot)
    in_image = boot.vmcoreinfo.symbol("_stext") if boot.vmcoreinfo is not None else None
    if in_image is not None and stext.address != in_image:
        found = f"{stext.address - symbols.slide:#x} + slide {symbols.slide:#x}"
        raise KernelMismatchError(symbols.path, "the address of _stext", f"{in_image:#x}", found)
    return quirks


def _check_build_id(symbols: ElfSymbolTable, boot: Boot, space: ImageSpace) -> tuple[str, ...] | None:
    """Return quirks if the build-ids agree, None if they cannot be compared. Raises KernelMismatchError."""
    found = symbols.build_id.hex() if symbols.build_id else None
    if found is None:
        return None
    if boot.build_id == found:
        return ()
    in_memory = read_memory_build_id(space, symbols)
    if in_memory == found:
        if boot.build_id is not None:
            return (f"VMCOREINFO's BUILD-ID {boot.build_id} is wrong: the kernel's notes in memory say {in_memory}",)
        return ()
    expected = boot.build_id or in_memory
    if expected is None:
        return None
    raise KernelMismatchError(symbols.path, "the build-id", expected, found)


def _check_banner(symbols: ElfSymbolTable, boot: Boot) -> None:
    """Compare release and version. Raises KernelMismatchError."""
    text = symbols.linux_banner()
    banner = text.decode("utf-8", "replace").rstrip("\n") if text is not None else ""
    if not banner.startswith("Linux version "):
        return  # nothing to compare with
    release = banner.split(" ", 3)[2]
    if boot.release is not None and release != boot.release:
        raise KernelMismatchError(symbols.path, "the release", boot.release, release)
    if boot.version is not None and not banner.endswith(boot.version):
        raise KernelMismatchError(symbols.path, "the version", boot.version, banner.rpartition(") ")[2])
