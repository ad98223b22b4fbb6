"""Write CTF, versions 2 and 3, as FreeBSD's sys/sys/ctf.h defines it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

INTEGER, FLOAT, POINTER, ARRAY, FUNCTION, STRUCT, UNION, ENUM, FORWARD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(
    1, 14
)
SIGNED, CHAR, BOOL = 1, 2, 4
EXTERNAL = 0x80000000
Members = Sequence[tuple[str, int, int]]  # name, type, offset in bits


class CtfWriter:
    """Collects types, which are numbered from 1 in the order in which they are added, and writes the section.

    version: 2 or 3. order: struct's byte-order character. parent: the name of the parent, for the types of a module.
    """

    def __init__(self, version: int = 3, order: str = "<", *, parent: str = "") -> None:
        self.version = version
        self.order = order
        self.wide = version == 3
        self.names = b"\0"
        self.types = b""
        self.count = 0
        self.objects = b""
        self.functions = b""
        self.labels = b""
        self.parent = self.name(parent) if parent else 0
        self.child = (0x80000000 if self.wide else 0x8000) if parent else 0

    def pack(self, code: str, *values: int) -> bytes:
        return struct.pack(self.order + code, *values)

    def name(self, text: str) -> int:
        at = len(self.names)
        if not text:
            return 0
        self.names += text.encode() + b"\0"
        return at

    def number(self, *values: int) -> bytes:
        """Return numbers of types, and info words of functions."""
        return self.pack(("I" if self.wide else "H") * len(values), *values)

    def info(self, kind: int, count: int) -> int:
        return kind << 26 | 1 << 25 | count if self.wide else kind << 11 | 1 << 10 | count

    def add(self, kind: int, name: str | int, value: int, rest: bytes = b"", *, count: int = 0) -> int:
        """Add a record and return its number, with the bit of a child if there is a parent."""
        where = name if isinstance(name, int) else self.name(name)
        sized = kind in (INTEGER, FLOAT, ARRAY, STRUCT, UNION, ENUM)
        limit = 0xFFFFFFFE if self.wide else 0xFFFE
        self.types += self.pack("I", where) + self.number(self.info(kind, count))
        if sized and value > limit:
            self.types += self.number(limit + 1) + self.pack("II", value >> 32, value & 0xFFFFFFFF)
        else:
            self.types += self.number(value)
        self.types += rest
        self.count += 1
        return self.count | self.child

    def integer(self, name: str, size: int, coding: int = 0, *, bits: int | None = None, first: int = 0) -> int:
        width = 8 * size if bits is None else bits
        return self.add(INTEGER, name, size, self.pack("I", coding << 24 | first << 16 | width))

    def float_(self, name: str, size: int) -> int:
        return self.add(FLOAT, name, size, self.pack("I", 2 << 24 | 8 * size))

    def alias(self, kind: int, target: int, name: str = "") -> int:
        """Add a pointer, typedef, qualifier, or forward (`target` is the kind of its tag)."""
        return self.add(kind, name, target)

    def array(self, element: int, index: int, count: int) -> int:
        return self.add(ARRAY, "", 0, self.number(element, index) + self.pack("I", count))

    def struct(self, name: str | int, size: int, members: Members, kind: int = STRUCT) -> int:
        rest = b""
        large = size >= (1 << 29 if self.wide else 1 << 13)
        for member, type_id, offset in members:
            rest += self.pack("I", self.name(member)) + self.number(type_id)
            if large:
                rest += (b"" if self.wide else bytes(2)) + self.pack("II", offset >> 32, offset & 0xFFFFFFFF)
            else:
                rest += self.number(offset)
        return self.add(kind, name, size, rest, count=len(members))

    def enum(self, name: str, values: Sequence[tuple[str, int]], size: int = 4) -> int:
        rest = b"".join(self.pack("Ii", self.name(text), value) for text, value in values)
        return self.add(ENUM, name, size, rest, count=len(values))

    def function(self, returns: int, arguments: Sequence[int]) -> int:
        rest = self.number(*arguments)
        if not self.wide:
            rest += bytes(2 * (len(arguments) & 1))
        return self.add(FUNCTION, "", returns, rest, count=len(arguments))

    def data_symbol(self, type_id: int) -> None:
        self.objects += self.number(type_id)

    def function_symbol(self, returns: int | None, arguments: Sequence[int] = ()) -> None:
        if returns is None:
            self.functions += self.number(0)
        else:
            self.functions += self.number(self.info(FUNCTION, len(arguments)), returns, *arguments)

    def section(self, *, compressed: bool = False) -> bytes:
        """Return the bytes of the section."""
        parts = [self.labels, self.objects, self.functions, self.types, self.names]
        parts[2] += bytes(-sum(map(len, parts[:3])) % 4)
        places = [sum(map(len, parts[:number])) for number in range(len(parts))]
        header = self.pack("HBB", 0xCFF1, self.version, int(compressed))
        header += self.pack("8I", 0, self.parent, *places, len(self.names))
        body = b"".join(parts)
        return header + (zlib.compress(body) if compressed else body)
