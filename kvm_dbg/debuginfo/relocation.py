"""Debug information of files that were never linked (modules), as it would be with their sections in their places.

Facts: the System V ABI gABI chapter 4 (Elf64_Rela, Elf64_Sym) and the processors' supplements: the types of relocations
that stand for an address, or an offset into another section of debug information.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from kvm_dbg.elf import ET_REL, SHF_ALLOC, SHF_COMPRESSED, SHT_RELA, ElfFile, Section
from kvm_dbg.errors import FormatError, UnsupportedError

# e_machine -> type -> bytes that are replaced, 0 for none: R_X86_64_NONE, _64, _32; R_AARCH64_NONE, _ABS64, _ABS32
SIZES: Final[dict[int, dict[int, int]]] = {62: {0: 0, 1: 8, 10: 4}, 183: {0: 0, 257: 8, 258: 4}}
NOWHERE: Final = 1 << 62  # where sections are put that are not in memory any more, far from each other and all else
NOWHERE_SHIFT: Final = 40
MAX_RELOCATIONS = 1 << 24


def relocated(elf: ElfFile, sections: Mapping[str, int]) -> ElfFile:
    """Return the file with its debug information relocated, itself if it needs none.

    Args:
        elf: the file.
        sections: the addresses of its loaded sections, by name.

    Raises:
        FormatError: its relocations or symbols are damaged.
        UnsupportedError: an unknown type of relocation, or compressed sections.
    """
    if elf.header.type != ET_REL:
        return elf
    sizes = SIZES.get(elf.header.machine)
    if sizes is None or elf.header.word_bits != 64:
        raise UnsupportedError(f"relocations of machine {elf.header.machine}", elf.path)
    data = bytearray(elf.data)
    values: list[int] = []
    link = -1
    for table in elf.sections:
        if table.type != SHT_RELA or not 0 < table.info < len(elf.sections):
            continue
        target = elf.sections[table.info]
        if not target.name.startswith(".debug_"):
            continue
        if target.flags & SHF_COMPRESSED:
            raise UnsupportedError(f"relocations of the compressed section {target.name}", elf.path)
        if table.link != link:
            link = table.link
            values = _symbol_values(elf, link, sections)
        _apply(elf, data, table, target, values, sizes)
    return ElfFile(bytes(data), elf.path)


def _symbol_values(elf: ElfFile, number: int, sections: Mapping[str, int]) -> list[int]:
    """Return the address of each symbol, or its offset in a section that is never loaded."""
    if not 0 < number < len(elf.sections):
        raise FormatError(elf.path, elf.header.shoff, "sh_link", f"there is no section {number}")
    bases = [
        sections.get(section.name, NOWHERE + (section.number << NOWHERE_SHIFT)) if section.flags & SHF_ALLOC else 0
        for section in elf.sections
    ]
    rows = struct.Struct(elf.header.order + "IBBHQQ")
    view = elf.section_data(elf.sections[number])
    whole = view[: len(view) // rows.size * rows.size]
    return [
        value + (bases[section] if section < len(bases) else 0)
        for _, _, _, section, value, _ in rows.iter_unpack(whole)
    ]


def _apply(
    elf: ElfFile, data: bytearray, table: Section, target: Section, values: list[int], sizes: Mapping[int, int]
) -> None:
    rows = struct.Struct(elf.header.order + "QQq")
    view = elf.section_data(table)
    if len(view) // rows.size > MAX_RELOCATIONS:
        raise FormatError(elf.path, table.offset, table.name, f"more than {MAX_RELOCATIONS} relocations")
    put = {size: struct.Struct(elf.header.order + code).pack_into for size, code in ((4, "I"), (8, "Q"))}
    masks = {4: (1 << 32) - 1, 8: (1 << 64) - 1}
    for place, info, addend in rows.iter_unpack(view[: len(view) // rows.size * rows.size]):
        size = sizes.get(info & 0xFFFFFFFF)
        symbol = info >> 32
        if size is None:
            raise UnsupportedError(f"relocation type {info & 0xFFFFFFFF} in {table.name}", elf.path)
        if not size:
            continue
        if place + size > target.size or symbol >= len(values):
            raise FormatError(elf.path, table.offset, table.name, f"a relocation of byte {place} by symbol {symbol}")
        put[size](data, target.offset + place, values[symbol] + addend & masks[size])
