"""Typed memory: a place in an address space together with its type.

A `Value` reads nothing when it is made. A struct that is `load()`ed once serves all its members from those bytes.
"""

from __future__ import annotations

from typing import Protocol

from kvm_dbg.debuginfo.base import (
    ArrayType,
    EnumType,
    IntType,
    Member,
    PointerType,
    StructType,
    Type,
    TypeTable,
    size_of,
)
from kvm_dbg.errors import MemberNotFound, TypeNotFound

STRING_CHUNK = 256  # bytes read at a time while looking for the end of a string


class Memory(Protocol):
    """Anything that reads bytes by virtual address."""

    def read(self, vaddr: int, size: int) -> bytes:
        """Return `size` bytes at `vaddr`; raises ReadError."""


class Value:
    """An object of `type` at `address` in `memory`.

    Args:
        byteorder: "little" or "big", the processor's.
        data: the object's bytes, if already read.
    """

    __slots__ = ("_data", "address", "bit_offset", "bit_size", "byteorder", "memory", "type")

    def __init__(
        self,
        memory: Memory,
        type_: Type,
        address: int,
        byteorder: str = "little",
        data: bytes | None = None,
        bit_offset: int = 0,
        bit_size: int = 0,
    ) -> None:
        self.memory = memory
        self.type = type_.stripped()
        self.address = address
        self.byteorder = byteorder
        self._data = data
        self.bit_offset = bit_offset
        self.bit_size = bit_size

    @property
    def data(self) -> bytes:
        """Return the object's bytes, reading them the first time. Raises ReadError."""
        if self._data is None:
            self._data = self.memory.read(self.address, size_of(self.type))
        return self._data

    def load(self) -> Value:
        """Read the whole object now and return it, so that its members cost no further reads. Raises ReadError."""
        _ = self.data
        return self

    def _at(self, offset: int, type_: Type, member: Member | None = None) -> Value:
        data = None
        if self._data is not None and offset >= 0:
            size = size_of(type_)
            data = self._data[offset : offset + size]
            if len(data) < size:
                data = None
        found = Value(self.memory, type_, self.address + offset, self.byteorder, data)
        if member is not None and member.bit_size:
            found.bit_offset = member.bit_offset & 7
            found.bit_size = member.bit_size
            found._data = None if self._data is None else self._data[offset : offset + 16]
        return found

    def member(self, path: str) -> Value:
        """Return the member `path` ("comm", "thread.sp") of this struct.

        Raises:
            MemberNotFound: no such member, or not a struct.
        """
        if not isinstance(self.type, StructType):
            raise MemberNotFound(self.type.name or "this type", path)
        return self.part(self.type.member(path))

    def part(self, member: Member) -> Value:
        """Return the member of this struct that `member` describes, which may be one without a name."""
        return self._at(member.bit_offset >> 3, member.type, member)

    def __getitem__(self, key: str | int) -> Value:
        """Return a member by name, or the element of an array or pointer by index."""
        if isinstance(key, str):
            return self.member(key)
        if isinstance(self.type, ArrayType):
            return self._at(key * size_of(self.type.element), self.type.element)
        if isinstance(self.type, PointerType):
            target = self.type.target
            return Value(self.memory, target, int(self) + key * size_of(target), self.byteorder)
        raise TypeNotFound(self.type.name, f"{self.type.name or 'this type'} cannot be indexed")

    def has(self, path: str) -> bool:
        """Return whether the struct has the member `path`."""
        return isinstance(self.type, StructType) and self.type.find_member(path) is not None

    def __int__(self) -> int:
        """Return the value of an integer, pointer, enum or bit-field. Raises ReadError."""
        type_ = self.type
        signed = bool(getattr(type_, "signed", False))
        if self.bit_size:
            return self._bit_field(signed)
        if not isinstance(type_, (IntType, PointerType, EnumType)):
            if isinstance(type_, StructType) and "counter" in type_:  # atomic_t and friends
                return int(self.member("counter"))
            raise TypeNotFound(type_.name, f"{type_!r} is not a number")
        return int.from_bytes(self.data, "little" if self.byteorder == "little" else "big", signed=signed)

    __index__ = __int__

    def _bit_field(self, signed: bool) -> int:
        size = (self.bit_offset + self.bit_size + 7) >> 3
        raw = (
            self._data[:size]
            if self._data is not None and len(self._data) >= size
            else self.memory.read(self.address, size)
        )
        if self.byteorder == "little":
            number = int.from_bytes(raw, "little") >> self.bit_offset
        else:
            number = int.from_bytes(raw, "big") >> (8 * size - self.bit_offset - self.bit_size)
        number &= (1 << self.bit_size) - 1
        if signed and number >> (self.bit_size - 1):
            number -= 1 << self.bit_size
        return number

    def deref(self) -> Value:
        """Return the object that this pointer points to (nothing is read of it yet). Raises ReadError."""
        if not isinstance(self.type, PointerType):
            raise TypeNotFound(self.type.name, f"{self.type!r} is not a pointer")
        return Value(self.memory, self.type.target, int(self), self.byteorder)

    def string(self, limit: int = 4096) -> bytes:
        """Return the bytes up to the first NUL of a char array, or of the string that a char pointer points to.

        An array is never left; a pointer's string is read for at most `limit` bytes. Raises ReadError.
        """
        if isinstance(self.type, PointerType):
            return read_string(self.memory, int(self), limit)
        return self.data.partition(b"\0")[0]

    def __repr__(self) -> str:
        return f"<Value {self.type!r} at {self.address:#x}>"


def read_string(memory: Memory, vaddr: int, limit: int = 4096) -> bytes:
    """Return the bytes at `vaddr` up to the first NUL, at most `limit`. Raises ReadError.

    Reads end at multiples of STRING_CHUNK, so that a string at the end of a page needs no byte of the next one.
    """
    parts = []
    while limit > 0:
        size = min(limit, STRING_CHUNK - vaddr % STRING_CHUNK)
        part = memory.read(vaddr, size)
        end = part.find(b"\0")
        if end >= 0:
            parts.append(part[:end])
            break
        parts.append(part)
        vaddr += size
        limit -= size
    return b"".join(parts)


def value_at(memory: Memory, types: TypeTable, type_name: str, address: int, byteorder: str = "little") -> Value:
    """Return the object of the named type at `address`. Raises TypeNotFound."""
    return Value(memory, types.type(type_name), address, byteorder)
