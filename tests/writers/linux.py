"""Write the memory of a small Linux: types declared member by member, objects placed, fields set by name.

    world = World()
    world.struct("struct list_head", next="ptr", prev="ptr")
    head = world.place("struct list_head", symbol="modules")
    world.put(head, "struct list_head", "next", head)

A member is "u8", "u16", "u32", "u64", "s32", "s64", "ptr", the name of a struct declared before, or a pair
(one of these, count) for an array; `bits` for a bit-field is (bits, "u8"). Names with a leading dot are unions'
members at the same place as the one before.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable

from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.debuginfo.base import (
    ArrayType,
    Enumerator,
    EnumType,
    IntType,
    Member,
    PointerType,
    StructType,
    Type,
    TypeTable,
    VoidType,
    size_of,
)
from kvm_dbg.errors import NotMappedError
from kvm_dbg.image.base import BytesImage
from kvm_dbg.kernel.base import Kernel
from kvm_dbg.symbols.base import Symbol
from kvm_dbg.symbols.kallsyms import ListedSymbols

START = 0xFFFF_8880_0000_0000
PAGE = 4096
CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "s32": "i", "s64": "q", "ptr": "Q"}

Spec = str | tuple[str, int] | tuple[int, str]


class Catalog(TypeTable):
    """Types by name."""

    source = "types of a test"

    def __init__(self) -> None:
        self.types: dict[str, Type] = {}
        self.enumerators: dict[str, int] = {}

    def find_type(self, name: str) -> Type | None:
        return self.types.get(name)

    def find_enumerator(self, name: str) -> int | None:
        return self.enumerators.get(name)


class World(Kernel):
    """A kernel whose memory is written by a test; it grows upwards from START, page by page."""

    def __init__(self) -> None:
        self.types: Catalog = Catalog()
        self.arch = X86_64
        self.image = BytesImage({})
        self.memory = bytearray()
        self.missing: set[int] = set()
        self._symbols: dict[str, int] = {}
        self.reads = 0

    @functools.cached_property
    def symbols(self) -> ListedSymbols:  # type: ignore[override]
        """The symbols that were placed so far."""
        return ListedSymbols(Symbol(name, address, 8, "D") for name, address in self._symbols.items())

    def read(self, vaddr: int, size: int) -> bytes:
        self.reads += 1
        start = vaddr - START
        pages = range((start) // PAGE, (start + max(size, 1) - 1) // PAGE + 1)
        self.memory += bytes(-len(self.memory) % PAGE)  # memory comes in pages
        if start < 0 or start + size > len(self.memory) or self.missing.intersection(pages):
            raise NotMappedError(vaddr, "nothing was placed there")
        return bytes(self.memory[start : start + size])

    def translate(self, vaddr: int) -> int:
        return vaddr - START

    def type(self, spec: Spec) -> Type:
        """Return the type that a member's words stand for."""
        if isinstance(spec, tuple):
            element, count = spec
            if isinstance(count, str):
                return self.type(count)
            assert isinstance(element, str)
            return ArrayType(count, functools.partial(self.type, element))
        if spec == "ptr":
            return PointerType(8, VoidType)
        if spec in CODES:
            return IntType(spec, int(spec[1:]) // 8, signed=spec[0] == "s", is_char=spec == "u8")
        return self.types.type(spec)

    def struct(self, name: str, /, **members: Spec) -> StructType:
        """Declare a struct; members are aligned to their size, 8 at most. A name that ends in "__" loses that."""
        made: list[Member] = []
        bit, end = 0, 0
        for own, spec in members.items():
            type_ = self.type(spec)
            resolve: Callable[[], Type] = functools.partial(self.type, spec)
            if isinstance(spec, tuple) and isinstance(spec[0], int):
                made.append(Member(own, bit, spec[0], resolve))
                bit += spec[0]
                continue
            if own.startswith("or_"):
                made.append(Member(own.removeprefix("or_"), made[-1].bit_offset, 0, resolve))
                bit = max(bit, made[-1].bit_offset + 8 * size_of(type_))
                continue
            unit = type_.element if isinstance(type_, ArrayType) else type_
            align = 8 * (8 if isinstance(unit, StructType) else max(1, min(8, size_of(unit))))
            bit = -(-bit // align) * align
            made.append(Member(own, bit, 0, resolve))
            bit += 8 * size_of(type_)
        end = -(-bit // 64) * 8
        found = StructType("struct", name.removeprefix("struct "), end, lambda: tuple(made))
        self.types.types[name] = found
        return found

    def enum(self, name: str, **values: int) -> None:
        """Declare an enumeration."""
        listed = tuple(Enumerator(own, value) for own, value in values.items())
        self.types.types[name] = EnumType(name, 4, signed=False, enumerators=lambda: listed)
        self.types.enumerators.update(values)

    def allocate(self, size: int, *, symbol: str | None = None, page: bool = False) -> int:
        """Return the address of `size` zero bytes; on a page of their own if asked."""
        unit = PAGE if page else 16
        self.memory += bytes(-len(self.memory) % unit)
        address = START + len(self.memory)
        self.memory += bytes(size)
        if page:
            self.memory += bytes(-len(self.memory) % unit)
        if symbol is not None:
            self._symbols[symbol] = address
            self.__dict__.pop("symbols", None)
        return address

    def place(self, type_name: str, *, symbol: str | None = None, page: bool = False, **values: int | bytes) -> int:
        """Return the address of a new object, with fields set; "__" in a field's name stands for a dot."""
        address = self.allocate(size_of(self.types.type(type_name)), symbol=symbol, page=page)
        for path, value in values.items():
            self.put(address, type_name, path.replace("__", "."), value)
        return address

    def put(self, address: int, type_name: str, path: str, value: int | bytes) -> None:
        """Set a field of the object at `address`."""
        member = self.types.struct(type_name).member(path)
        if isinstance(value, bytes):
            self.write(address + member.offset, value)
            return
        if member.bit_size:
            old = self.read(address + member.offset, 1)[0]
            shift = member.bit_offset & 7
            mask = (1 << member.bit_size) - 1 << shift
            self.write(address + member.offset, bytes([old & ~mask | value << shift]))
            return
        size = size_of(member.type)
        self.write(address + member.offset, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def write(self, address: int, data: bytes) -> None:
        """Set bytes."""
        start = address - START
        if not 0 <= start <= len(self.memory) - len(data):
            raise ValueError(f"{address:#x} was not allocated")
        self.memory[start : start + len(data)] = data

    def words(self, address: int, *values: int) -> None:
        """Set 64-bit words."""
        self.write(address, struct.pack(f"<{len(values)}Q", *values))

    def string(self, text: bytes) -> int:
        """Return the address of a string with its NUL."""
        address = self.allocate(len(text) + 1)
        self.write(address, text)
        return address

    def ring(self, head: int, nodes: list[int]) -> None:
        """Link list_heads into a ring."""
        line = [head, *nodes]
        for index, node in enumerate(line):
            self.words(node, line[(index + 1) % len(line)], line[index - 1])
