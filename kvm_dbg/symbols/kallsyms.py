"""The symbol table that every loaded module carries in memory.

Facts: include/linux/module.h (`struct mod_kallsyms`: symtab, num_symtab, strtab, typetab) and kernel/module/kallsyms.c
(kernel/module.c before 5.19). `symtab` is an array of the architecture's `Elf_Sym` with run-time values, `strtab` its
strings. nm's letter of a symbol lies in
- `typetab`, a byte for each symbol, since 5.2 (1c7651f43777);
- the low byte of `st_size` in 5.0 and 5.1 (5439c985c5a8): sizes are lost;
- `st_info` before: binding and type are lost.
The copy that stays after a module's start is made without `st_size` changed, and with symbol 0 empty.
"""

from __future__ import annotations

import string
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping

from kvm_dbg.symbols.base import Symbol, SymbolTable

LETTERS = frozenset(string.ascii_letters.encode() + b"?")
MAX_SYMBOLS = 1 << 20
MAX_NAME = 512  # bytes, KSYM_NAME_LEN
SHN_UNDEF = 0


def parse_module_symbols(
    module: str,
    symtab: bytes,
    strtab: bytes,
    typetab: bytes | None,
    *,
    word_bits: int = 64,
    byteorder: str = "little",
    letter_in: str = "typetab",
) -> tuple[Symbol, ...]:
    """Return the symbols of a module, in the order of the table.

    Symbols without a name, undefined ones, and those whose name is not in `strtab` are left out. Where a table is
    shorter than it should be, because its memory is not in the image, what is there counts.

    Args:
        module: the module's name.
        symtab: num_symtab entries of Elf32_Sym or Elf64_Sym.
        strtab: the strings; it is enough to give what lies behind the address up to the largest name.
        typetab: a letter for each symbol, where there is a typetab.
        word_bits: 32 or 64, the kernel's.
        byteorder: "little" or "big", the kernel's.
        letter_in: where the letters are: "typetab", "st_size" or "st_info".
    """
    order = "<" if byteorder == "little" else ">"
    parser = struct.Struct(order + ("IBBHQQ" if word_bits == 64 else "IIIBBH"))
    count = min(len(symtab) // parser.size, MAX_SYMBOLS)
    found = []
    for number, fields in enumerate(parser.iter_unpack(symtab[: count * parser.size])):
        if word_bits == 64:
            name_at, info, _, section, value, size = fields
        else:
            name_at, value, size, info, _, section = fields
        if not name_at or name_at >= len(strtab):
            continue
        end = strtab.find(b"\0", name_at, name_at + MAX_NAME)
        name = strtab[name_at:end] if end >= 0 else b""
        if letter_in == "typetab":
            letter = typetab[number] if typetab is not None and number < len(typetab) else 0
            undefined = section == SHN_UNDEF or letter == ord("U")
        elif letter_in == "st_size":
            letter, size = size & 0xFF, 0
            undefined = letter == ord("U")
        else:
            letter = info
            undefined = letter == ord("U")
        if not name or undefined:
            continue
        kind = chr(letter) if letter in LETTERS else "?"
        found.append(Symbol(name.decode("utf-8", "replace"), value, size, kind, module))
    return tuple(found)


class ListedSymbols(SymbolTable):
    """Symbols from a list: a module's, or those that a test or VMCOREINFO gives."""

    def __init__(self, symbols: Iterable[Symbol]) -> None:
        self._symbols = sorted(symbols, key=lambda symbol: symbol.address)
        self._by_name: dict[str, list[Symbol]] = {}
        for symbol in self._symbols:
            self._by_name.setdefault(symbol.name, []).append(symbol)
        # absolute symbols are numbers, no places
        self._places = [symbol for symbol in self._symbols if symbol.kind not in "aA"]
        self._addresses = [symbol.address for symbol in self._places]

    def find(self, name: str) -> Symbol | None:
        found = self._by_name.get(name)
        return next((s for s in found if s.kind.isupper()), found[0]) if found else None

    def find_all(self, name: str) -> tuple[Symbol, ...]:
        return tuple(self._by_name.get(name, ()))

    def find_at(self, address: int) -> Symbol | None:
        place = bisect_right(self._addresses, address)
        best: Symbol | None = None
        for symbol in reversed(self._places[max(0, place - 16) : place]):
            if best is not None and symbol.address != best.address:
                break
            covers = address < symbol.address + symbol.size if symbol.size else best is None
            if covers and (
                best is None or (symbol.size > 0, symbol.kind.isupper()) > (best.size > 0, best.kind.isupper())
            ):
                best = symbol
        return best

    def for_each(self) -> Iterator[Symbol]:
        return iter(self._symbols)

    def __len__(self) -> int:
        return len(self._symbols)


def _rank(symbol: Symbol) -> tuple[bool, bool]:
    """Return how well a symbol names its address: sized ones, then global ones."""
    return symbol.size > 0, symbol.kind.isupper()


class JoinedSymbols(SymbolTable):
    """The kernel's own symbols, and its modules'.

    Args:
        kernel: the kernel's table; its names win.
        modules: a table for each module.
        ranges: the memory of each module, as (start, end, name) of run-time addresses; only there its symbols are
            looked for by address.
    """

    def __init__(
        self, kernel: SymbolTable, modules: Mapping[str, SymbolTable], ranges: Iterable[tuple[int, int, str]]
    ) -> None:
        self.kernel = kernel
        self.modules = modules
        self._ranges = sorted(ranges)
        self._starts = [start for start, _, _ in self._ranges]

    def find(self, name: str) -> Symbol | None:
        found = self.kernel.find(name)
        tables = iter(self.modules.values())
        while found is None:
            table = next(tables, None)
            if table is None:
                return None
            found = table.find(name)
        return found

    def find_type(self, name: str) -> int | None:
        return self.kernel.find_type(name)

    def find_many(self, names: Iterable[str]) -> dict[str, Symbol]:
        wanted = list(names)
        found = self.kernel.find_many(wanted)
        for name in wanted:
            if name not in found:
                for table in self.modules.values():
                    symbol = table.find(name)
                    if symbol is not None:
                        found[name] = symbol
                        break
        return found

    def find_all(self, name: str) -> tuple[Symbol, ...]:
        found = list(self.kernel.find_all(name))
        for table in self.modules.values():
            found += table.find_all(name)
        return tuple(sorted(found, key=lambda symbol: symbol.address))

    def find_at(self, address: int) -> Symbol | None:
        place = bisect_right(self._starts, address) - 1
        if place >= 0:
            _, end, name = self._ranges[place]
            if address < end and name in self.modules:
                return self.modules[name].find_at(address)
        return self.kernel.find_at(address)

    def for_each(self) -> Iterator[Symbol]:
        from heapq import merge

        tables = [self.kernel, *self.modules.values()]
        return merge(*(table.for_each() for table in tables), key=lambda symbol: symbol.address)

    def __len__(self) -> int:
        return len(self.kernel) + sum(map(len, self.modules.values()))
