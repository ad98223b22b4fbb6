"""Debug information made from the image's BTF: .debug_info, .debug_abbrev and .debug_str.

One compile unit for the kernel and one for each module; a module's refers to the kernel's by DW_FORM_ref_addr, as its
BTF is split from the kernel's. Each has the types, then the functions, then the variables. A function has its
addresses and its parameters, which have no location: nobody knows their values. A name that several symbols or several
prototypes share has no entry, since nothing tells which is which; debuggers then fall back on the symbol table.

Facts: DWARF version 5, sections 7.5 (units), 3.3 (subroutines), 4.1 (variables); Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

from kvm_dbg.debuginfo.btf import BtfTypes
from kvm_dbg.debuginfo.btf_data import FUNC, VAR
from kvm_dbg.errors import UnsupportedError
from kvm_dbg.kernel_file.declaration import DECLARATIONS
from kvm_dbg.kernel_file.dwarf_abbrev import REF4, REF_ADDR, Entry, abbreviations, packers
from kvm_dbg.kernel_file.dwarf_check import CheckedBtf
from kvm_dbg.kernel_file.dwarf_type import END, TypeEntries
from kvm_dbg.kernel_file.dwarf_variable import DeclaredTypes
from kvm_dbg.symbols.base import Symbol

VERSION, COMPILE_UNIT, LANGUAGE_C11, OPERATION_ADDR = 5, 1, 0x1D, 0x03  # DW_UT_compile, DW_LANG_C11, DW_OP_addr
HEADER_SIZE = 12  # bytes of a unit's header in 32-bit DWARF
MAX_LENGTH = 0xFFFFFFEF  # of a unit in 32-bit DWARF
PRODUCER = b"kvm_dbg, from BTF"
MAX_SIZE = 1 << 24  # bytes of a function or an array; what would be larger was the last symbol before a gap
FUNCTIONS: Final = (
    (Entry.FUNCTION_LOCAL, Entry.FUNCTION_LOCAL_VOID),
    (Entry.FUNCTION, Entry.FUNCTION_VOID),
)  # local, global; each with and without a result
VARIABLES: Final = (Entry.VARIABLE_LOCAL, Entry.VARIABLE)
# what BTF's strings may have: a byte that no name has could be a command to somebody's terminal
PRINTABLE: Final = bytes(byte if byte == 0 or 0x20 <= byte < 0x7F else 0x3F for byte in range(256))


class MadeDwarf(NamedTuple):
    """Sections by name; how many functions and variables are in them; how much of the BTF made no sense."""

    sections: dict[str, bytes]
    functions: int
    variables: int
    left_out: int


def make_dwarf(
    types: BtfTypes,
    symbols: Iterable[Symbol],
    *,
    modules: Mapping[str, BtfTypes] | None = None,
    name: str = "vmlinux",
    parameter_names: bool = False,
) -> MadeDwarf:
    """Make debug information.

    Args:
        types: the kernel's.
        symbols: of the kernel and of modules, at the addresses that the sections shall have. One without a size, as in
            kallsyms, reaches to the next address that has a symbol.
        modules: split BTF of modules by name; its base is `types`.
        name: what the kernel's unit is called.
        parameter_names: functions' parameters shall have their names; then they are shown with every frame. Without
            names gdb does not show them in a backtrace, while lldb shows each as (null).

    Raises:
        FormatError, UnsupportedError: the BTF cannot be read, or is too large for 32-bit DWARF. Single types that
            make no sense do not raise: see dwarf_check.
    """
    by_module: dict[str | None, list[Symbol]] = {}
    for symbol in symbols:
        by_module.setdefault(symbol.module, []).append(symbol)
    strings = bytearray()
    abbrev = abbreviations(REF4)
    kernel = _Unit(types, by_module.get(None, []), strings)
    parts = kernel.write(name, 0, 0, parameter_names)
    units = [kernel]
    for module, split in (modules or {}).items():
        unit = _Unit(split, by_module.get(module, []), strings, kernel)
        parts += unit.write(module, units[-1].end, len(abbrev), parameter_names)
        units.append(unit)
    return MadeDwarf(
        {
            ".debug_info": b"".join(parts),
            ".debug_abbrev": abbrev + abbreviations(REF_ADDR),
            ".debug_str": bytes(strings.translate(PRINTABLE)),
        },
        sum(unit.functions for unit in units),
        sum(unit.variables for unit in units),
        sum(unit.checked.left_out for unit in units),
    )


class _Unit:
    """One compile unit: the kernel's, or a module's.

    Args:
        types: its BTF.
        symbols: its symbols.
        strings: the bytes of .debug_str; grows.
        kernel: the kernel's unit, for a module's.

    Attributes:
        end: where the next unit will be. functions, variables: how many there are. All are known after `write`.
    """

    def __init__(self, types: BtfTypes, symbols: list[Symbol], strings: bytearray, kernel: _Unit | None = None) -> None:
        self.types = types
        self.kernel = kernel
        self.strings = strings
        self.symbols = _by_name(symbols)
        self._next = dict(pairwise(sorted({symbol.address for symbol in symbols})))
        self.checked: CheckedBtf = CheckedBtf(
            types.data, strings, types.pointer_size, kernel.checked if kernel else None
        )
        self.pack = packers(types.data.byteorder, types.pointer_size)
        self.end = self.functions = self.variables = 0

    def write(self, name: str, start: int, abbreviations_at: int, parameter_names: bool) -> list[bytes]:
        """Return the unit, in pieces.

        Args:
            name: what it is called.
            start: its place in .debug_info.
            abbreviations_at: its abbreviations' place in .debug_abbrev.
            parameter_names: functions' parameters have names.

        Raises:
            UnsupportedError: it is too large.
        """
        functions = self._find_functions()
        labels = (self._string(PRODUCER), LANGUAGE_C11, self._string(name.encode("utf-8", "replace")))
        if functions:
            low = min(symbol.address for symbol, _ in functions)
            high = max(symbol.address + self._size(symbol) for symbol, _ in functions)
            head = self.pack[Entry.UNIT_TEXT].pack(Entry.UNIT_TEXT, *labels, low, high - low)
        else:
            head = self.pack[Entry.UNIT].pack(Entry.UNIT, *labels)
        kernel, data = self.kernel, self.types.data
        self.entries: TypeEntries = TypeEntries(
            self.checked,
            self.strings,
            self.pack,
            start=start + HEADER_SIZE + len(head),
            parameter_names=parameter_names,
            signs_known=bool(data.tables()["facts"][0]) or (kernel is not None and kernel.entries.signs_known),
            base=kernel.entries if kernel is not None else None,
        )
        parts = [head, *self.entries.write()]
        parts += self._write_functions(functions)
        known = self._write_variables(parts)
        if kernel is None:
            parts += self._write_declared(known, start + HEADER_SIZE + sum(map(len, parts)))
        parts.append(END)
        length = sum(map(len, parts)) + HEADER_SIZE
        self.end = start + length
        if self.end > MAX_LENGTH:
            raise UnsupportedError(f"debug information of {self.end} bytes", f"{self.types.source} is too large")
        order = "<" if data.byteorder == "little" else ">"
        header = struct.pack(
            order + "IHBBI", length - 4, VERSION, COMPILE_UNIT, self.types.pointer_size, abbreviations_at
        )
        return [header, *parts]

    def _string(self, text: bytes) -> int:
        """Return the place of a string in .debug_str, where it is put."""
        self.strings += text + b"\0"
        return len(self.strings) - len(text) - 1

    def _size(self, symbol: Symbol) -> int:
        """Return a symbol's size in bytes, 0 if nothing says it."""
        size = symbol.size or self._next.get(symbol.address, symbol.address) - symbol.address
        return size if size <= MAX_SIZE else 0

    def _records(self, wanted: int) -> Iterator[tuple[int, int, str]]:
        """Yield (id, place in words, name) of the named records of one kind."""
        checked, strings = self.checked, self.strings
        find = strings.find
        for type_id, at in enumerate(checked.places, checked.first_id):
            if checked.kinds[type_id] == wanted and (name := checked.words[at]):
                yield type_id, at, strings[name : find(b"\0", name)].decode("utf-8", "replace")

    def _find_functions(self) -> list[tuple[Symbol, int]]:
        """Return (symbol, place in words) of the functions that can be told apart; the first one at each address."""
        words = self.checked.words
        found: dict[str, tuple[Symbol, int] | None] = {}
        for _, at, name in self._records(FUNC):
            symbol = self.symbols.get(name)
            if symbol is not None and self._size(symbol):
                known = found.setdefault(name, (symbol, at))
                if known is not None and words[known[1] + 2] != words[at + 2]:
                    found[name] = None
        by_address: dict[int, tuple[Symbol, int]] = {}
        for function in found.values():
            if function is not None:
                by_address.setdefault(function[0].address, function)
        return list(by_address.values())

    def _write_functions(self, functions: list[tuple[Symbol, int]]) -> list[bytes]:
        words, pack, prototypes = self.checked.words, self.pack, self.entries.prototypes
        parts = []
        for symbol, at in functions:
            prototype = prototypes.get(words[at + 2])
            if prototype is None:
                self.checked.left_out += 1
                continue
            result, parameters = prototype
            entry, void = FUNCTIONS[symbol.kind.isupper()]
            size = self._size(symbol)
            if result:
                parts.append(pack[entry].pack(entry, words[at], symbol.address, size, result))
            else:
                parts.append(pack[void].pack(void, words[at], symbol.address, size))
            parts.append(parameters)
            self.functions += 1
        return parts

    def _write_variables(self, parts: list[bytes]) -> set[str]:
        """Append the variables that BTF describes, and return their names."""
        words, places, sizes = self.checked.words, self.entries.places, self.checked.sizes
        known: set[str] = set()
        for _, at, name in self._records(VAR):
            symbol = self.symbols.get(name)
            if symbol is None or name in known:
                continue
            target = words[at + 2]
            if target >= len(sizes) or sizes[target] < 0:
                self.checked.left_out += 1
                continue
            known.add(name)
            parts.append(self._variable(symbol, words[at], places[target]))
        return known

    def _write_declared(self, known: set[str], at: int) -> list[bytes]:
        """Return the entries, of which the first one will be at `at`, of variables that only `declaration` has."""
        types = DeclaredTypes(self.types, self.entries, at)
        parts = []
        for variables in DECLARATIONS.values():
            for name, text in variables.items():
                symbol = self.symbols.get(name)
                if symbol is not None and name not in known:
                    place = types.find(text, self._size(symbol))
                    if place is not None:
                        parts.append(self._variable(symbol, self._string(name.encode()), place))
        return types.parts + parts

    def _variable(self, symbol: Symbol, name: int, type_at: int) -> bytes:
        self.variables += 1
        entry = VARIABLES[symbol.kind.isupper()]
        size = self.types.pointer_size + 1
        return self.pack[entry].pack(entry, name, type_at, size, OPERATION_ADDR, symbol.address)


def _by_name(symbols: Iterable[Symbol]) -> dict[str, Symbol]:
    """Return symbols by name, without the names that several addresses have."""
    found: dict[str, Symbol] = {}
    ambiguous = set()
    for symbol in symbols:
        if found.setdefault(symbol.name, symbol).address != symbol.address:
            ambiguous.add(symbol.name)
    for name in ambiguous:
        del found[name]
    return found
