"""The types of a kernel file: from the layout file that the user names, else from what it has itself.

That is BTF, DWARF in it or in its debug file, or CTF. Who names a layout file wants it, say since the file's own
debug information is of another build; that it was preferred is a part of the source that `status` shows. BTF comes
first since only Linux has it, complete and fast to read. DWARF says more than CTF, in which a bit-field is never an
enum, and large enums lose what does not fit.
"""

from __future__ import annotations

import os

from kvm_dbg.debuginfo.base import TypeTable
from kvm_dbg.elf import SHT_NOBITS, ElfFile, Section, open_elf
from kvm_dbg.errors import FormatError, KernelMismatchError
from kvm_dbg.index import Index

OWN = (".BTF", ".debug_info", ".SUNW_ctf")  # sections with types


def open_kernel_types(
    elf: ElfFile, *, layout: str | os.PathLike[str] | None = None, index: Index | None = None
) -> TypeTable | None:
    """Return the types of a kernel file, None if it has none and no layout file is named.

    Args:
        elf: the file; it must stay open.
        layout: the layout file to use, whatever the kernel file has.
        index: where what is found in BTF and DWARF is kept.

    Raises:
        FileAccessError: the layout file cannot be read.
        FormatError: damaged debug information, or a layout file that cannot be right.
        KernelMismatchError: the layout file is of another build.
        UnsupportedError: debug information of a version that is not known.
    """
    if layout is not None:
        return _types_from_layout(elf, layout)
    found = _types_in(elf, index)
    if found is None:
        found = _types_beside(elf, index)
    if found is None:
        from kvm_dbg.debuginfo.ctf import open_ctf

        found = open_ctf(elf)
    return found


def _find(elf: ElfFile, name: str) -> Section | None:
    section = elf.find_section(name)
    return section if section is not None and section.type != SHT_NOBITS and section.size else None


def _types_in(elf: ElfFile, index: Index | None) -> TypeTable | None:
    section = _find(elf, ".BTF")
    if section is not None:
        from kvm_dbg.debuginfo.btf import BtfTypes

        return BtfTypes(elf.section_data(section), source=f"BTF of {elf.path}", index=index)
    if _find(elf, ".debug_info") is not None:
        from kvm_dbg.debuginfo.dwarf import DwarfTypes

        return DwarfTypes(elf, index=index)
    return None


def _types_beside(elf: ElfFile, index: Index | None) -> TypeTable | None:
    """Return the types of the debug file that a stripped file names, None if it names none, or that is not there."""
    from kvm_dbg.debuginfo.debug_link import find_debug_file, read_debug_link

    link = read_debug_link(elf)
    path = find_debug_file(link, os.path.dirname(elf.path))[0] if link is not None else None
    return _types_in(open_elf(path), index) if path is not None else None


def _types_from_layout(elf: ElfFile, layout: str | os.PathLike[str]) -> TypeTable:
    from kvm_dbg.debuginfo.layout import open_layout

    types = open_layout(layout, pointer_size=elf.header.word_bits // 8)
    facts, build_id = types.file.facts, elf.find_build_id()
    said = facts.get("build_id")
    if said and build_id is not None and said.lower() != build_id.hex():
        raise KernelMismatchError(types.file.path, "the build-id", build_id.hex(), said)
    for field, mine, theirs in (
        ("pointer_size", types.pointer_size, elf.header.word_bits // 8),
        ("byte_order", facts.get("byte_order", elf.header.byteorder), elf.header.byteorder),
    ):
        if mine != theirs:
            raise FormatError(types.file.path, 0, f"$layout.{field}", f"{mine}, but the kernel file has {theirs}")
    if any(_find(elf, name) is not None for name in OWN):
        types.source += f", which was named: the types of {elf.path} are not used"
    return types
