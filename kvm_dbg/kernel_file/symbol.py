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
from itertools import accumulate, repeat
from typing import NamedTuple

from kvm_dbg.elf import SHT_STRTAB, SHT_SYMTAB
from kvm_dbg.kernel.base import Area
from kvm_dbg.kernel_file.elf_writer import Section
from kvm_dbg.symbols.base import Symbol

STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_NOTYPE, STT_OBJECT, STT_FUNC = 0, 1, 2
SHN_ABS = 0xFFF1
TYPES = {"T": STT_FUNC, "W": STT_FUNC, "D": STT_OBJECT, "B": STT_OBJECT, "R": STT_OBJECT, "V": STT_OBJECT}
TYPES |= {"G": STT_OBJECT, "S": STT_OBJECT}
WEAK = "wWvV"
FIRST_GLOBAL = STB_GLOBAL << 4
SYMBOL = struct.Struct("<IBBHQQ")
WORD = (1 << 64) - 1


class PlacedSymbols(NamedTuple):
    """The sections `.symtab` and `.strtab`, and how many symbols lie in no section and so were left out."""

    sections: tuple[Section, ...]
    homeless: int


def info_of(letter: str) -> int:
    """Return st_info for nm's letter."""
    if letter in WEAK:
        binding = STB_WEAK
    else:
        binding = STB_GLOBAL if letter.isupper() else STB_LOCAL
    return binding << 4 | TYPES.get(letter.upper(), STT_NOTYPE)


def make_symbols(symbols: Sequence[Symbol], areas: Sequence[Area], slide: int) -> PlacedSymbols:
    """Return the symbol table.

    Args:
        symbols: ascending by address.
        areas: the file's sections of memory, ascending, the first one having the number 1.
        slide: what is subtracted from every address that is not absolute nor of a fixed area.
    """
    if not symbols:
        return PlacedSymbols((), 0)
    names, addresses, sizes, letters, _ = zip(*symbols, strict=True)
    numbers = _section_numbers(addresses, letters, areas)
    infos = list(map({letter: info_of(letter) for letter in set(letters)}.__getitem__, letters))
    edges = sorted({*addresses, *(area.start for area in areas), *(area.end for area in areas)})
    following = dict(zip(edges, [*edges[1:], edges[-1]], strict=True))
    # An address that is looked up a second time reaches nowhere.
    reaches = [following.pop(address, address) - address for address in addresses]
    own = [
        size or reach if number != SHN_ABS else 0 for size, reach, number in zip(sizes, reaches, numbers, strict=True)
    ]
    fixed = {SHN_ABS, *(number for number, area in enumerate(areas, 1) if area.fixed)}
    values = [
        address if number in fixed else address - slide & WORD
        for address, number in zip(addresses, numbers, strict=True)
    ]

    order = [index for index, info in enumerate(infos) if info < FIRST_GLOBAL and numbers[index]]
    first_global = len(order) + 1
    order += [index for index, info in enumerate(infos) if info >= FIRST_GLOBAL and numbers[index]]
    encoded = [name.encode("utf-8", "replace") for name in names]
    places = list(accumulate(map(len, encoded), lambda place, size: place + size + 1, initial=1))
    table = [bytes(SYMBOL.size)]
    table += map(
        SYMBOL.pack,
        map(places.__getitem__, order),
        map(infos.__getitem__, order),
        repeat(0),
        map(numbers.__getitem__, order),
        map(values.__getitem__, order),
        map(own.__getitem__, order),
    )
    symtab = Section(
        ".symtab", SHT_SYMTAB, b"".join(table), link=".strtab", info=first_global, align=8, entry_size=SYMBOL.size
    )
    strtab = Section(".strtab", SHT_STRTAB, b"\0" + b"\0".join(encoded) + b"\0")
    return PlacedSymbols((symtab, strtab), len(symbols) - len(order))


def _section_numbers(addresses: Sequence[int], letters: Sequence[str], areas: Sequence[Area]) -> list[int]:
    """Return the number of the section that each symbol lies in, 0 for none; an end mark belongs to what it ends.

    Absolute symbols are numbers, no places; kallsyms takes per-CPU variables for such where they are linked at 0.
    """
    absolute = [letter in "aA" for letter in letters]
    numbers = [SHN_ABS if number else 0 for number in absolute]
    for number, area in enumerate(areas, 1):
        first, last = bisect_left(addresses, area.start), bisect_right(addresses, area.end)
        numbers[first:last] = [
            SHN_ABS if is_number and not area.fixed else number for is_number in absolute[first:last]
        ]
    return numbers
