"""The kernel file: where to look for it, what it must be, and whether it is the one in the image.

Places are those of Debian (linux-image-*-dbg), Fedora and RHEL (kernel-debuginfo), SUSE and a kernel's own
`make modules_install`; /usr/lib/debug/.build-id is gdb's convention. The build-id is the proof: VMCOREINFO has it since
5.9, but some stable kernels export garbage, so that before a file is refused the note in the
kernel's own memory (between `__start_notes` and `__stop_notes`) is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kvm_dbg.elf import ET_CORE, ET_REL, NT_GNU_BUILD_ID, SHT_NOBITS, SHT_SYMTAB, ElfFile, for_each_note, open_elf
from kvm_dbg.errors import FormatError, KernelMismatchError, ReadError, UnknownFormatError
from kvm_dbg.kernel.linux.boot import Boot
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.symbols.base import SymbolTable

MAX_NOTES_SIZE = 1 << 16  # bytes; a kernel's .notes has a few hundred
BZIMAGE_MAGIC_OFFSET = 0x202  # Documentation/arch/x86/boot.rst: "HdrS"
BANNER_LIMIT = 512  # bytes


class KernelFile(NamedTuple):
    """A kernel file that passed `inspect`: `build_id` in lower-case digits, None if it has none."""

    path: str
    machine: str | None
    build_id: str | None
    has_btf: bool
    has_dwarf: bool


def for_each_place(release: str | None, build_id: str | None, search: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the paths where the kernel file may be, the user's directories first."""
    for directory in search:
        base = Path(directory)
        if build_id:
            yield str(base / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug")
        if release:
            for name in (
                f"vmlinux-{release}",
                f"boot/vmlinux-{release}",
                f"usr/lib/debug/boot/vmlinux-{release}",
                f"lib/modules/{release}/vmlinux",
                f"usr/lib/debug/lib/modules/{release}/vmlinux",
                f"lib/modules/{release}/build/vmlinux",
            ):
                yield str(base / name)
        yield str(base / "vmlinux")
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


def inspect(path: str) -> KernelFile:
    """Return what the file `path` is.

    Raises:
        FileAccessError: missing, a directory, no permission.
        UnknownFormatError: no ELF file, or not one that can be a kernel with symbols.
        FormatError: a damaged ELF file.
    """
    try:
        elf = open_elf(path)
    except UnknownFormatError:
        if _is_bzimage(path):
            raise UnknownFormatError(
                path,
                "a compressed boot image (bzImage), not a kernel file with symbols: give the vmlinux of the same build"
                " (of the distribution's debug package)",
            ) from None
        raise
    with elf:
        kind = elf.header.type
        if kind == ET_CORE:
            raise UnknownFormatError(path, "an ELF core dump, not a kernel file: give it as the image")
        if kind == ET_REL:
            raise UnknownFormatError(path, "an ELF object or module, not a kernel file")
        if not any(section.type == SHT_SYMTAB for section in elf.sections):
            raise UnknownFormatError(
                path, "has no symbol table (it was stripped): give the vmlinux of the distribution's debug package"
            )
        build_id = elf.find_build_id()
        btf = elf.find_section(".BTF")
        dwarf = elf.find_section(".debug_info") or elf.find_section(".zdebug_info")
        return KernelFile(
            path,
            elf.machine,
            build_id.hex() if build_id else None,
            btf is not None and btf.type != SHT_NOBITS,
            dwarf is not None and dwarf.type != SHT_NOBITS,
        )


def _is_bzimage(path: str) -> bool:
    """Return whether the file starts like x86's boot protocol."""
    try:
        with Path(path).open("rb") as file:
            return file.read(BZIMAGE_MAGIC_OFFSET + 4)[BZIMAGE_MAGIC_OFFSET:] == b"HdrS"
    except OSError:
        return False


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


def read_file_banner(elf: ElfFile, address: int) -> str | None:
    """Return the string at a link-time address of the kernel file; None if no section holds it."""
    for section in elf.sections:
        if section.type != SHT_NOBITS and section.addr and section.addr <= address < section.addr + section.size:
            offset = address - section.addr
            data = bytes(elf.section_data(section)[offset : offset + BANNER_LIMIT])
            return data.partition(b"\0")[0].decode("utf-8", "replace").rstrip("\n")
    return None


def check(
    file: KernelFile, boot: Boot, symbols: SymbolTable, slide: int, space: ImageSpace | None
) -> tuple[str, ...]:
    """Make sure that the file is of the kernel `boot`; return quirks worth telling.

    symbols: the file's, moved by `slide`. space: None if there are no page tables.

    Raises:
        KernelMismatchError: it is not, naming both sides.
        UnknownFormatError: it is no Linux kernel's file.
    """
    if file.machine is not None and file.machine != boot.arch:
        raise KernelMismatchError(file.path, "the architecture", boot.arch, file.machine)
    stext = symbols.find("_stext")
    if stext is None:
        raise UnknownFormatError(file.path, "has no symbol _stext: not a Linux kernel file")
    quirks = _check_build_id(file, boot, symbols, space)
    if quirks is None:
        quirks = ()
        _check_banner(file, boot, symbols, slide)
    in_image = boot.vmcoreinfo.symbol("_stext") if boot.vmcoreinfo is not None else None
    if in_image is not None and stext.address != in_image:
        found = f"{stext.address - slide:#x} + slide {slide:#x}"
        raise KernelMismatchError(file.path, "the address of _stext", f"{in_image:#x}", found)
    return quirks


def _check_build_id(
    file: KernelFile, boot: Boot, symbols: SymbolTable, space: ImageSpace | None
) -> tuple[str, ...] | None:
    """Return quirks if the build-ids agree, None if they cannot be compared. Raises KernelMismatchError."""
    if file.build_id is None:
        return None
    if boot.build_id == file.build_id:
        return ()
    in_memory = read_memory_build_id(space, symbols) if space is not None else None
    if in_memory == file.build_id:
        if boot.build_id is not None:
            return (f"VMCOREINFO's BUILD-ID {boot.build_id} is wrong: the kernel's notes in memory say {in_memory}",)
        return ()
    expected = boot.build_id or in_memory
    if expected is None:
        return None
    raise KernelMismatchError(file.path, "the build-id", expected, file.build_id)


def _check_banner(file: KernelFile, boot: Boot, symbols: SymbolTable, slide: int) -> None:
    """Compare release and version. Raises KernelMismatchError."""
    symbol = symbols.find("linux_banner")
    if symbol is None:
        return  # nothing to compare with
    with open_elf(file.path) as elf:
        banner = read_file_banner(elf, symbol.address - slide)
    if banner is None or not banner.startswith("Linux version "):
        return
    release = banner.split(" ", 3)[2]
    if boot.release is not None and release != boot.release:
        raise KernelMismatchError(file.path, "the release", boot.release, release)
    if boot.version is not None and not banner.endswith(boot.version):
        raise KernelMismatchError(file.path, "the version", boot.version, banner.rpartition(") ")[2])
