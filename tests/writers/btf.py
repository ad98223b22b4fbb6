"""Write BTF, as Documentation/bpf/btf.rst describes it."""

from __future__ import annotations

import struct

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)
RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(11, 20)
SIGNED, CHAR, BOOL = 1, 2, 4


class BtfWriter:
    """Collects types; every method that adds one returns its number.

    Args:
        order: struct's byte-order character.
        base: for split BTF, what it goes on from.
    """

    def __init__(self, order: str = "<", base: BtfWriter | None = None) -> None:
        self.order = order
        self.first: int = base.next if base is not None else 1
        self.string_base: int = base.string_base + len(base.strings) if base is not None else 0
        self.base = base
        self.next: int = self.first
        self.types = b""
        self.strings: bytes = b"" if base is not None else b"\0"
        self.places: dict[str, int] = {"": 0} if base is None else dict(base.places)

    def string(self, text: str) -> int:
        if text not in self.places:
            self.places[text] = self.string_base + len(self.strings)
            self.strings += text.encode() + b"\0"
        return self.places[text]

    def add(self, name: str, kind: int, third: int, words: list[int], vlen: int = 0, flag: bool = False) -> int:
        info = flag << 31 | kind << 24 | vlen
        numbers = [self.string(name), info, third, *(word & 0xFFFFFFFF for word in words)]
        self.types += struct.pack(f"{self.order}{len(numbers)}I", *numbers)
        self.next += 1
        return self.next - 1

    def integer(self, name: str, size: int, coding: int = 0, bits: int | None = None, first_bit: int = 0) -> int:
        bits = 8 * size if bits is None else bits
        return self.add(name, INT, size, [coding << 24 | first_bit << 16 | bits])

    def pointer(self, target: int) -> int:
        return self.add("", PTR, target, [])

    def array(self, element: int, count: int, index: int = 1) -> int:
        return self.add("", ARRAY, 0, [element, index, count])

    def struct(
        self, name: str, size: int, members: list[tuple[str, int, int]], *, kind: int = STRUCT, flag: bool = False
    ) -> int:
        """Add a struct of (name, type, offset word) members."""
        words = [word for member, type_id, offset in members for word in (self.string(member), type_id, offset)]
        return self.add(name, kind, size, words, len(members), flag)

    def enum(self, name: str, values: list[tuple[str, int]], *, size: int = 4, flag: bool = False) -> int:
        words = [word for label, value in values for word in (self.string(label), value)]
        return self.add(name, ENUM, size, words, len(values), flag)

    def enum64(self, name: str, values: list[tuple[str, int]], *, flag: bool = False) -> int:
        words = [word for label, value in values for word in (self.string(label), value, value >> 32)]
        return self.add(name, ENUM64, 8, words, len(values), flag)

    def alias(self, kind: int, target: int, name: str = "") -> int:
        """Add a typedef or a qualifier."""
        return self.add(name, kind, target, [])

    def section(self, header_size: int = 24) -> bytes:
        """Return the section; a longer header is padded with bytes that mean nothing here."""
        header = struct.pack(
            self.order + "HBBIIIII", 0xEB9F, 1, 0, header_size, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + b"\xff" * (header_size - 24) + self.types + self.strings
