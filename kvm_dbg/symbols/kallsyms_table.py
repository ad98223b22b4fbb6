"""The kernel's own symbol table in its memory (kallsyms): names and addresses without any kernel file.

Facts: scripts/kallsyms.c and kernel/kallsyms.c of Linux.
- Names are compressed: each is a length (one byte, or with bit 7 set two, seven bits then eight more) and that many
  bytes, each the number of a token; the first character of an expanded name is nm's letter. `kallsyms_token_index` has
  256 u16 offsets into `kallsyms_token_table`, whose tokens end with NUL.
- `kallsyms_num_syms` is a u32, `kallsyms_offsets` has an s32 for each symbol. What it is relative to changed: with
  absolute per-CPU symbols (x86-64 until 6.15, commit 01157ddc58dc2) values from 0 up are absolute and negative ones
  mean relative_base - 1 - value; without, relative_base + (u32) value; since 7.0 (a081b5789255d) the address of the
  entry plus its value, and there is no relative_base. None of it is asked by version: the rule is the one by which
  symbols come out where VMCOREINFO says they are.
- VMCOREINFO has the tables' addresses since 6.0 (commits f09bddbd86619, 5fd8fea935a10).
- The tables lie in this order in every version: names, markers, token_table, token_index.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Literal, NamedTuple, Protocol
from zlib import crc32

from kvm_dbg.errors import CorruptError
from kvm_dbg.index import Index
from kvm_dbg.symbols.base import Symbol, SymbolColumns, SymbolTable
from kvm_dbg.symbols.vmcoreinfo import VmcoreInfo

INDEX_LAYOUT = b"kallsyms 1 "  # raise it when what is kept changes
INDEX_TABLE = "kallsyms"
MAX_SYMBOLS = 1 << 22
MAX_NAMES_SIZE = 1 << 26  # bytes
MAX_TOKENS_SIZE = 1 << 14  # bytes
WORD = (1 << 64) - 1
NEWLINES = b"\n"
NEWLINE = NEWLINES[0]
LOWER = ord("a")
FEW = 16  # look-ups by search; from then on a table of all names is cheaper

Order = Literal["little", "big"]
Rule = Callable[[int, int, int], int]  # (value, relative_base, address of the entry) -> address of the symbol


class Memory(Protocol):
    """Reads by virtual address."""

    def read(self, vaddr: int, size: int) -> bytes:
        """Return `size` bytes at `vaddr`; raises ReadError."""


class Places(NamedTuple):
    """Where the tables are; `relative_base` is an address of the number, None where there is none."""

    names: int
    num_syms: int
    token_table: int
    token_index: int
    offsets: int
    relative_base: int | None


def find_places(info: VmcoreInfo) -> Places | None:
    """Return where VMCOREINFO says that the tables are, None if it does not."""
    needed = [info.symbol(f"kallsyms_{name}") for name in Places._fields[:5]]
    if any(address is None for address in needed):
        return None
    names, num_syms, token_table, token_index, offsets = (address or 0 for address in needed)
    return Places(names, num_syms, token_table, token_index, offsets, info.symbol("kallsyms_relative_base"))


def find_known(info: VmcoreInfo) -> dict[str, int]:
    """Return the run-time addresses of the symbols that VMCOREINFO gives, as `read_kallsyms` wants them."""
    found = {name: info.symbol(name) for name in ("_stext", "init_uts_ns", "init_top_pgt")}
    return {name: address for name, address in found.items() if address is not None}


class Offsets(NamedTuple):
    """`kallsyms_offsets` and what they are relative to: `base` is relative_base's value, `table` their own address."""

    values: array[int]
    base: int
    table: int
    rule: Rule

    def address(self, number: int) -> int:
        """Return the run-time address of a symbol."""
        return self.rule(self.values[number], self.base, self.table + 4 * number)

    def addresses(self) -> list[int]:
        """Return all run-time addresses."""
        rule, base, table = self.rule, self.base, self.table
        return [rule(value, base, table + 4 * number) for number, value in enumerate(self.values)]


class KallsymsTable(SymbolTable):
    """Symbols with run-time addresses; kallsyms has no sizes, so a symbol reaches to the next one.

    joined: the names, nm's letter before each, in the table's order, joined by newlines.
    """

    def __init__(self, joined: bytes, offsets: Offsets) -> None:
        self._joined = joined
        self._offsets = offsets
        self._searches = 0
        self._numbers: dict[bytes, int] | None = None
        self._order: list[int] | None = None
        self._sorted: list[int] = []

    @cached_property
    def _names(self) -> list[bytes]:
        return self._joined.split(b"\n")

    def _all_numbers(self, name: bytes) -> list[int]:
        """Return the numbers of all symbols called `name`, by a search through the text."""
        joined = self._joined
        found = []
        number = counted = 0
        at = joined.find(name)
        while at >= 0:
            end = at + len(name)
            line = at - 1  # where nm's letter is
            if line >= 0 and joined[end : end + 1] in (b"\n", b"") and (line == 0 or joined[line - 1] == NEWLINE):
                number += joined.count(b"\n", counted, at)
                counted = at
                found.append(number)
            at = joined.find(name, end)
        return found

    def _number(self, name: str) -> int | None:
        """Return the number of the symbol called `name`: a global one wins, then the first."""
        wanted = name.encode("utf-8", "replace")
        if not wanted or b"\n" in wanted:
            return None
        if self._numbers is None and self._searches < FEW:
            self._searches += 1
            found = self._all_numbers(wanted)
            if not found:
                return None
            return next((number for number in found if self._names[number][0] < LOWER), found[0])
        if self._numbers is None:
            self._numbers = self._index_names()
        return self._numbers.get(wanted)

    def _index_names(self) -> dict[bytes, int]:
        names = self._names
        numbers = {names[number][1:]: number for number in range(len(names) - 1, -1, -1)}
        if len(numbers) < len(names):
            numbers.update({names[n][1:]: n for n in range(len(names) - 1, -1, -1) if names[n][0] < LOWER})
        return numbers

    def _by_address(self) -> list[int]:
        if self._order is None:
            addresses = self._offsets.addresses()
            self._order = sorted(range(len(addresses)), key=addresses.__getitem__)
            self._sorted = [addresses[number] for number in self._order]
        return self._order

    def _symbol(self, number: int) -> Symbol:
        text = self._names[number].decode("utf-8", "replace")
        return Symbol(text[1:], self._offsets.address(number), 0, text[0])

    def find(self, name: str) -> Symbol | None:
        number = self._number(name)
        return None if number is None else self._symbol(number)

    def find_many(self, names: Iterable[str]) -> dict[str, Symbol]:
        wanted = list(names)
        if len(wanted) > FEW:
            self._searches = FEW
        return super().find_many(wanted)

    def find_all(self, name: str) -> tuple[Symbol, ...]:
        wanted = name.encode("utf-8", "replace")
        if not wanted or b"\n" in wanted:
            return ()
        found = [self._symbol(number) for number in self._all_numbers(wanted)]
        return tuple(sorted(found, key=lambda symbol: symbol.address))

    def find_at(self, address: int) -> Symbol | None:
        order = self._by_address()
        place = bisect_right(self._sorted, address)
        if place == 0 or place == len(order):
            return None  # above the last symbol, _end, nothing of the kernel is
        found = self._sorted[place - 1]
        best: Symbol | None = None
        for at in range(place - 1, max(-1, place - 65), -1):
            if self._sorted[at] != found:
                break
            symbol = self._symbol(order[at])
            if symbol.kind not in "aA" and (best is None or symbol.kind.isupper() or not best.kind.isupper()):
                best = symbol
        return best._replace(size=self._sorted[place] - found) if best is not None else None

    def for_each(self) -> Iterator[Symbol]:
        return map(self._symbol, self._by_address())

    def columns(self) -> SymbolColumns:
        names = list(map(self._names.__getitem__, self._by_address()))
        letters = bytes([name[0] for name in names])
        return SymbolColumns([name[1:] for name in names], list(self._sorted), [0] * len(names), letters)

    def __len__(self) -> int:
        return len(self._offsets.values)


def read_kallsyms(
    memory: Memory, places: Places, known: dict[str, int], *, byteorder: str = "little", index: Index | None = None
) -> KallsymsTable:
    """Return the symbols in the kernel's memory.

    known: run-time addresses of some symbols (VMCOREINFO's), by which the meaning of the offsets is found.

    Raises:
        ReadError: a table is not in the image.
        CorruptError: the tables contradict themselves, or no rule leads to the known symbols.
    """
    order: Order = "big" if byteorder == "big" else "little"
    count = int.from_bytes(memory.read(places.num_syms, 4), order)
    if not 0 < count <= MAX_SYMBOLS:
        raise CorruptError(places.num_syms, f"kallsyms_num_syms is {count}: between 1 and {MAX_SYMBOLS} is possible")
    tokens_size = places.token_index - places.token_table
    names_size = places.token_table - places.names
    if not 0 < tokens_size <= MAX_TOKENS_SIZE or not 0 < names_size <= MAX_NAMES_SIZE:
        raise CorruptError(places.names, "kallsyms' tables of names and tokens are not where they can be")
    table = memory.read(places.token_table, tokens_size)
    offsets = _numbers("i", memory.read(places.offsets, 4 * count), order)
    identity = INDEX_LAYOUT + f"{count} {crc32(table)} {names_size}".encode()
    parts = index.find(INDEX_TABLE, identity) if index is not None else None
    joined = bytes(parts["names"]) if parts is not None and "names" in parts else b""
    if joined.count(b"\n") != count - 1 or not joined:
        token_index = _numbers("H", memory.read(places.token_index, 512), order)
        joined = _expand(memory.read(places.names, names_size), count, _tokens(table, token_index), places.names)
        if index is not None:
            index.store(INDEX_TABLE, identity, {"names": joined})
    if joined.count(b"\n") != count - 1:
        raise CorruptError(places.names, f"kallsyms has {joined.count(NEWLINES) + 1} names for {count} symbols")
    base = int.from_bytes(memory.read(places.relative_base, 8), order) if places.relative_base is not None else None
    for rule in (_absolute_per_cpu, _relative, _place_relative):
        if base is None and rule is not _place_relative:
            continue
        found = KallsymsTable(joined, Offsets(offsets, base or 0, places.offsets, rule))
        agreed = {name: symbol.address for name, symbol in found.find_many(known).items()}
        # without CONFIG_KALLSYMS_ALL there are functions only
        if agreed and agreed == {name: known[name] for name in agreed} and (agreed == known or "_stext" in agreed):
            found._searches = 0
            return found
    raise CorruptError(places.offsets, "kallsyms' offsets do not lead to the known symbols " + ", ".join(known))


def _numbers(code: str, data: bytes, order: str) -> array[int]:
    found = array(code, data)
    if sys.byteorder != order:
        found.byteswap()
    return found


def _tokens(table: bytes, token_index: array[int]) -> list[bytes]:
    """Return the 256 tokens."""
    return [table[start : end if (end := table.find(b"\0", start)) >= 0 else len(table)] for start in token_index]


def _expand(data: bytes, count: int, tokens: list[bytes], address: int) -> bytes:
    """Return all names, each behind its letter, joined by newlines. Raises CorruptError."""
    found: list[bytes] = []
    at = 0
    token = tokens.__getitem__
    try:
        for _ in range(count):
            size = data[at]
            at += 1
            if size & 0x80:
                size = size & 0x7F | data[at] << 7
                at += 1
            name = b"".join(map(token, data[at : at + size]))
            if len(name) < 2:
                raise CorruptError(address + at, f"name {len(found)} of kallsyms has no letter or no name")
            found.append(name)
            at += size
    except IndexError:
        raise CorruptError(address + at, f"kallsyms' names end after {len(found)} of {count}") from None
    return b"\n".join(found)


def _absolute_per_cpu(value: int, base: int, _: int) -> int:
    return value if value >= 0 else base - 1 - value & WORD


def _relative(value: int, base: int, _: int) -> int:
    return base + (value & 0xFFFFFFFF) & WORD


def _place_relative(value: int, _: int, place: int) -> int:
    return place + value & WORD
