"""The kernel file of a BSD: its symbols, its types, and whether it is the one in the image.

Sources: sys/conf/newvers.sh of NetBSD and FreeBSD (the variable `version`: "NetBSD 9.3 (GENERIC) #0: DATE", then who
built it, and where; "FreeBSD 14.1-RELEASE ..."). A kernel's build-id is a note that is loaded like other constants.
"""

from __future__ import annotations

from kvm_dbg.debuginfo.base import TypeTable
from kvm_dbg.debuginfo.kernel_types import open_kernel_types
from kvm_dbg.elf import ET_REL, NT_GNU_BUILD_ID, SHT_NOTE, ElfFile, for_each_note
from kvm_dbg.errors import FormatError, KernelMismatchError, ReadError, UnknownFormatError, UnsupportedError
from kvm_dbg.index import Index
from kvm_dbg.kernel.layout import decode_text
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.symbols.elf import ElfSymbolTable, open_kernel_file

VERSION = "version"
VERSION_LIMIT = 1024  # bytes
NOTES_LIMIT = 1 << 16  # bytes
SHF_ALLOC = 2


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
        return ElfSymbolTable(elf, index=_index(elf, index_directory))
    except FormatError:
        elf.close()
        raise


def open_types(elf: ElfFile, layout: str | None, index_directory: str | None, untyped: tuple[str, ...]) -> TypeTable:
    """Return the types of the layout file if one is named, else those of the kernel file or its debug file.

    untyped: the commands that answer without any.

    Raises:
        UnsupportedError: there are none.
        FileAccessError, FormatError, KernelMismatchError: the layout file cannot be used.
    """
    found = find_types(elf, layout, index_directory)
    if found is not None:
        return found
    raise UnsupportedError(
        f"{elf.path} without types",
        "name the kernel file that has debug information, or a layout file made from it: --layout FILE"
        f" (`kvm-dbg layout` makes one); until then only {', '.join(untyped)} answer",
    )


def find_types(elf: ElfFile, layout: str | None, index_directory: str | None) -> TypeTable | None:
    """Return what `open_types` does, None if there are none. Raises as it does, but for the first."""
    return open_kernel_types(elf, layout=layout, index=_index(elf, index_directory))


def _index(elf: ElfFile, directory: str | None) -> Index | None:
    build_id = elf.find_build_id()
    return Index(directory, build_id) if directory is not None and build_id else None


def read_version(space: ImageSpace, symbols: ElfSymbolTable) -> str | None:
    """Return the text of `version` in the image, None if it is not there."""
    symbol = symbols.find(VERSION)
    if symbol is None:
        return None
    part = space.read_partial(symbol.address, VERSION_LIMIT)
    size = min((run.start - symbol.address for run in part.missing), default=VERSION_LIMIT)
    text, end, _ = part.data[:size].partition(b"\0")
    return decode_text(text) if end else None


def check(symbols: ElfSymbolTable, space: ImageSpace, system: str) -> None:
    """Make sure that a kernel file, moved by its slide, is of the kernel in the image.

    Raises:
        KernelMismatchError: it is not, naming both sides.
        UnknownFormatError: it is no file of a kernel of `system`.
    """
    symbol = symbols.find(VERSION)
    if symbol is None:
        raise UnknownFormatError(symbols.path, f"has no symbol {VERSION}: not a {system} kernel file")
    _check_build_id(symbols, space)
    found = read_version(space, symbols)
    if found is None or not found.startswith(system):
        where = f"the text at {VERSION}, {symbol.address:#x},"
        raise KernelMismatchError(symbols.path, where, repr((found or "")[:40]), f"{system}'s version")
    data = symbols.read_linked(symbol.address - symbols.slide, VERSION_LIMIT)
    linked = decode_text(data.partition(b"\0")[0]) if data else ""
    if linked and linked != found:
        raise KernelMismatchError(symbols.path, "the version", repr(found), repr(linked))


def _check_build_id(symbols: ElfSymbolTable, space: ImageSpace) -> None:
    """Compare the build-id with that in the image, where both have one. Raises KernelMismatchError."""
    own = symbols.build_id
    for section in symbols.elf.sections if own is not None else ():
        if section.type != SHT_NOTE or not section.flags & SHF_ALLOC or not 0 < section.size <= NOTES_LIMIT:
            continue
        try:
            data = space.read(section.addr + symbols.slide, section.size)
            order = "<" if space.arch.byteorder == "little" else ">"
            notes = list(for_each_note(data, order, 0, len(data), "memory"))
        except (ReadError, FormatError):
            continue  # memory that says nothing
        for note in notes:
            if note.name == "GNU" and note.type == NT_GNU_BUILD_ID and note.desc != own:
                raise KernelMismatchError(symbols.path, "the build-id", note.desc.hex(), own.hex() if own else "")
