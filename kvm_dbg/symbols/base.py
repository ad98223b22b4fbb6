"""What a symbol table is: names to addresses, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kvm_dbg.errors import SymbolNotFound


class Symbol(NamedTuple):
    """One symbol at its run-time address.

    size: bytes, 0 if unknown. kind: nm(1)'s letter (T t D d B b R r A V W ...; upper case is global).
    module: the loadable module that it is from, None for the kernel itself.
    """

    name: str
    address: int
    size: int = 0
    kind: str = "?"
    module: str | None = None


class SymbolColumns(NamedTuple):
    """Many symbols, ascending by address: for who wants all of them at once. `letters` is nm's, a byte for each."""

    names: list[bytes]
    addresses: list[int]
    sizes: list[int]
    letters: bytes


class SymbolTable(ABC):
    """Names to addresses and back. Addresses are run-time addresses: slides are already applied."""

    @abstractmethod
    def find(self, name: str) -> Symbol | None:
        """Return the symbol called `name`; a global one wins over local ones, else the first in the table."""

    def find_many(self, names: Iterable[str]) -> dict[str, Symbol]:
        """Return the found ones of `names`; tables override it where one pass over all is faster."""
        return {name: symbol for name in names if (symbol := self.find(name)) is not None}

    def find_type(self, name: str) -> int | None:  # noqa: ARG002 - for tables that have types
        """Return the ELF type (STT_*) of the symbol that `find` finds; None where the table does not say."""
        return None

    @abstractmethod
    def find_all(self, name: str) -> tuple[Symbol, ...]:
        """Return every symbol called `name`, in ascending order of address."""

    @abstractmethod
    def find_at(self, address: int) -> Symbol | None:
        """Return the symbol that `address` lies in: the nearest at or below it, within its size if that is known."""

    @abstractmethod
    def for_each(self) -> Iterator[Symbol]:
        """Yield all symbols in ascending order of address."""

    def columns(self) -> SymbolColumns:
        """Return all symbols in ascending order of address; tables override it where they have columns."""
        symbols = list(self.for_each())
        return SymbolColumns(
            [symbol.name.encode("utf-8", "replace") for symbol in symbols],
            [symbol.address for symbol in symbols],
            [symbol.size for symbol in symbols],
            "".join([symbol.kind for symbol in symbols]).encode("latin-1", "replace"),
        )

    def __len__(self) -> int:
        return sum(1 for _ in self.for_each())

    def address(self, name: str) -> int:
        """Return the run-time address of `name`.

        Raises:
            SymbolNotFound: no such symbol.
        """
        symbol = self.find(name)
        if symbol is None:
            raise SymbolNotFound(name)
        return symbol.address

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) is not None
