"""The symbol table of a made file: kallsyms' names and letters as ELF has symbols.

A kernel has 200,000 symbols: what is done for each is done in columns.

Facts: the System V gABI, chapter 4 (`Elf64_Sym`; local symbols come first), nm(1) for the letters. kallsyms has no
sizes: a symbol reaches to the next address that has one, or to the end of its section. Of several symbols at one
address only the first in the table, the one that the kernel shows (kernel/kallsyms.c, get_symbol_pos), has a size:
debuggers prefer it to those without.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, chain, compress, islice, repeat
from operator import and_, gt, le
from typing import NamedTuple

from kvm_dbg.elf import SHT_STRTAB, SHT_SYMTAB
from kvm_dbg.kernel.base import Area
from kvm_dbg.kernel_file.elf_writer import Section
from kvm_dbg.symbols.base import SymbolColumns

STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_NOTYPE, STT_OBJECT, STT_FUNC = 0, 1, 2
SHN_ABS = 0xFFF1
FUNCTIONS, OBJECTS, WEAK, ABSOLUTE = "TtWw", "DdBbRrVvGgSs", "WwVv", "Aa"
FIRST_GLOBAL = STB_GLOBAL << 4
SYMBOL = struct.Struct("<IBBHQQ")
WORD = (1 << 64) - 1


class PlacedSymbols(NamedTuple):
    """The sections `.symtab` and `.strtab`, and how many symbols lie in no section and so were left out."""

    sections: tuple[Section, ...]
    homeless: int


def _info_of(letter: str) -> int:
    """Return st_info for nm's letter."""
    binding = STB_WEAK if letter in WEAK else STB_GLOBAL if "A" <= letter <= "Z" else STB_LOCAL
    kind = STT_FUNC if letter in FUNCTIONS else STT_OBJECT if letter in OBJECTS else STT_NOTYPE
    return binding << 4 | kind


INFOS = bytes(_info_of(chr(byte)) for byte in range(256))
OBJECT_INFOS = bytes(byte & 0xF0 | STT_OBJECT for byte in range(256))
IS_ABSOLUTE = bytes(chr(byte) in ABSOLUTE for byte in range(256))


def join(tables: Sequence[SymbolColumns]) -> SymbolColumns:
    """Return all symbols of the tables, ascending by address."""
    names = list(chain.from_iterable(table.names for table in tables))
    addresses = list(chain.from_iterable(table.addresses for table in tables))
    sizes = list(chain.from_iterable(table.sizes for table in tables))
    letters = b"".join(table.letters for table in tables)
    if not all(map(le, addresses, islice(addresses, 1, None))):
        order = sorted(range(len(addresses)), key=addresses.__getitem__)
        names = list(map(names.__getitem__, order))
        addresses = list(map(addresses.__getitem__, order))
        sizes = list(map(sizes.__getitem__, order))
        letters = bytes(map(letters.__getitem__, order))
    return SymbolColumns(names, addresses, sizes, letters)


def make_symbols(symbols: SymbolColumns, areas: Sequence[Area], slide: int) -> PlacedSymbols:
    """Return the symbol table.

    Args:
        symbols: all.
        areas: the file's sections of memory, ascending, the first one having the number 1.
        slide: what is subtracted from every address that is not absolute nor of a fixed area.
    """
    names, addresses, sizes, letters = symbols
    count = len(names)
    if not count:
        return PlacedSymbols((), 0)
    numbers = _section_numbers(addresses, letters.translate(IS_ABSOLUTE), areas)
    infos = _infos(addresses, letters, areas)
    edges = sorted({*addresses, *(area.start for area in areas), *(area.end for area in areas)})
    following = dict(zip(edges, [*edges[1:], edges[-1]], strict=True))
    starts = {area.start for area in areas}
    following.update((area.end, area.end) for area in areas if area.end not in starts)
    # An address that is looked up a second time reaches nowhere.
    reaches = [following.pop(address, address) - address for address in addresses]
    reaches = [
        size or reach if number != SHN_ABS else 0 for size, reach, number in zip(sizes, reaches, numbers, strict=True)
    ]
    if slide:
        fixed = {SHN_ABS, *(number for number, area in enumerate(areas, 1) if area.fixed)}
        addresses = [
            address if number in fixed else address - slide & WORD
            for address, number in zip(addresses, numbers, strict=True)
        ]
    places = accumulate(map(len, names), lambda place, size: place + size + 1, initial=1)
    rows = list(map(SYMBOL.pack, places, infos, repeat(0), numbers, addresses, reaches))
    kept = list(map(bool, numbers))
    is_global = list(map(FIRST_GLOBAL.__le__, infos))
    local = list(compress(rows, map(gt, kept, is_global)))
    table = [bytes(SYMBOL.size), *local, *compress(rows, map(and_, kept, is_global))]
    symtab = Section(
        ".symtab", SHT_SYMTAB, b"".join(table), link=".strtab", info=len(local) + 1, align=8, entry_size=SYMBOL.size
    )
    strtab = Section(".strtab", SHT_STRTAB, b"\0" + b"\0".join(names) + b"\0")
    return PlacedSymbols((symtab, strtab), count - len(table) + 1)


def _infos(addresses: Sequence[int], letters: bytes, areas: Sequence[Area]) -> bytes:
    """Return st_info of each symbol; data that its linker made executable has the letters of code."""
    infos = bytearray(letters.translate(INFOS))
    for area in areas:
        if not area.executable:
            first, last = bisect_left(addresses, area.start), bisect_left(addresses, area.end)
            infos[first:last] = infos[first:last].translate(OBJECT_INFOS)
    return bytes(infos)


def _section_numbers(addresses: Sequence[int], absolute: bytes, areas: Sequence[Area]) -> list[int]:
    """Return the number of the section that each symbol lies in, 0 for none; an end mark belongs to what it ends.

    Absolute symbols are numbers, no places; kallsyms takes per-CPU variables for such where they are linked at 0.

    Args:
        addresses: ascending.
        absolute: a byte for each, 1 if it is such a symbol.
        areas: the sections from number 1 on.
    """
    numbers = [SHN_ABS if is_number else 0 for is_number in absolute]
    for number, area in enumerate(areas, 1):
        first, last = bisect_left(addresses, area.start), bisect_right(addresses, area.end)
        numbers[first:last] = [
            SHN_ABS if is_number and not area.fixed else number for is_number in absolute[first:last]
        ]
    return numbers
