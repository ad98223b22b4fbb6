"""Chosen members of one struct, looked up once and read together.

A walk over a thousand tasks cannot afford to look types up in its loop: a `Layout` resolves the members that the
walk wants when it is made, each by the newest of its names that this kernel has, and decodes them all from one read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from kvm_dbg.debuginfo.base import EnumType, IntType, PointerType, StructType, Type, TypeTable, size_of
from kvm_dbg.errors import MemberNotFound, ReadError

if TYPE_CHECKING:
    from kvm_dbg.debuginfo.value import Memory
    from kvm_dbg.kernel.base import Kernel

CODES = {(1, False): "B", (1, True): "b", (2, False): "H", (2, True): "h"}
CODES |= {(4, False): "I", (4, True): "i", (8, False): "Q", (8, True): "q"}

Result = TypeVar("Result")
Names = str | tuple[str | None, ...]


class Layout:
    """Some members of one struct.

    Args:
        types: the kernel's types.
        name: the struct ("struct task_struct").
        members: own name -> the member's path, or several, the newest layout's first; a last None says that a
            kernel may lack all of them. Integers, pointers, enums and atomic counters are decoded; of other members
            (arrays, embedded structs) the place is known.
        byteorder: the processor's.

    Attributes:
        offsets: own name -> bytes from the start of the struct, of the members that this kernel has.
        start, size: the bytes that one read fetches, from the first member to the end of the last.
        struct_size: sizeof(struct).

    Raises:
        TypeNotFound, MemberNotFound: the struct, or a member that must be there, is unknown.
    """

    def __init__(self, types: TypeTable, name: str, members: Mapping[str, Names], byteorder: str = "little") -> None:
        self.name = name
        self.byteorder = byteorder
        self.offsets: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        self.numbers: dict[str, tuple[int, str]] = {}
        found = types.struct(name)
        self.struct_size = found.size
        for own, names in members.items():
            self._add(found, own, (names,) if isinstance(names, str) else names)
        ends = [offset + self.sizes[own] for own, offset in self.offsets.items()]
        self.start = min(self.offsets.values(), default=0)
        self.size = max(ends, default=0) - self.start
        self._groups = self._compile("<" if byteorder == "little" else ">")

    def _add(self, found: StructType, own: str, names: tuple[str | None, ...]) -> None:
        for path in names:
            if path is None:
                return
            member = found.find_member(path)
            if member is None:
                continue
            type_: Type = member.type.stripped()
            self.offsets[own] = member.offset
            self.sizes[own] = size_of(type_)
            if isinstance(type_, StructType) and (counter := type_.find_member("counter")) is not None:
                type_ = counter.type.stripped()  # atomic_t and friends
            if isinstance(type_, (IntType, PointerType, EnumType)) and not member.bit_size:
                code = CODES.get((size_of(type_), bool(getattr(type_, "signed", False))))
                if code is not None:
                    self.numbers[own] = (member.offset, code)
            return
        raise MemberNotFound(self.name, " or ".join(str(path) for path in names))

    def _compile(self, order: str) -> tuple[tuple[struct.Struct, tuple[str, ...]], ...]:
        """Return unpackers that together decode all numbers; members that overlap (unions) go to different ones."""
        pending = sorted((offset, code, own) for own, (offset, code) in self.numbers.items())
        groups = []
        while pending:
            later, names, form, position = [], [], order, self.start
            for offset, code, own in pending:
                if offset < position:
                    later.append((offset, code, own))
                    continue
                form += f"{offset - position}x{code}"
                position = offset + struct.calcsize("=" + code)
                names.append(own)
            groups.append((struct.Struct(form), tuple(names)))
            pending = later
        return tuple(groups)

    def decode(self, address: int, data: bytes) -> Record:
        """Return the record at `address` from `data`, the `size` bytes from `start` on."""
        numbers: dict[str, int] = {}
        for unpacker, names in self._groups:
            found = dict(zip(names, unpacker.unpack_from(data)))  # noqa: B905 - as many as the format has, by its making
            numbers = numbers | found if numbers else found
        return Record(self, address, data, numbers)

    def read(self, memory: Memory, address: int) -> Record:
        """Return the record at `address`; members whose bytes are missing raise only when they are asked for.

        Raises:
            ReadError: nothing of it can be read.
        """
        try:
            return self.decode(address, memory.read(address + self.start, self.size))
        except ReadError as error:
            first = error
        data = bytearray(self.size)
        errors: dict[str, ReadError] = {}
        for own, offset in self.offsets.items():
            try:
                part = memory.read(address + offset, self.sizes[own])
            except ReadError as error:
                errors[own] = error
            else:
                data[offset - self.start : offset - self.start + len(part)] = part
        if len(errors) == len(self.offsets):
            raise first
        record = self.decode(address, bytes(data))
        for own in errors:
            record.numbers.pop(own, None)
        record.errors = errors
        return record


class Record:
    """One struct's members, read at one time. `record["pid"]` is the number; see also `text`, `at`, `get`."""

    __slots__ = ("address", "data", "errors", "layout", "numbers")

    def __init__(self, layout: Layout, address: int, data: bytes, numbers: dict[str, int]) -> None:
        self.layout = layout
        self.address = address
        self.data = data
        self.numbers = numbers
        self.errors: dict[str, ReadError] = {}

    def __getitem__(self, own: str) -> int:
        """Return a number. Raises ReadError if its bytes are missing, MemberNotFound if this kernel lacks it."""
        found = self.numbers.get(own)
        if found is None:
            raise self._missing(own)
        return found

    def get(self, own: str, default: int = 0) -> int:
        """Return a number, or `default` if this kernel has no such member. Raises ReadError if bytes are missing."""
        if own in self.errors:
            raise self.errors[own]
        return self.numbers.get(own, default)

    def __contains__(self, own: object) -> bool:
        return own in self.layout.offsets

    def bytes(self, own: str) -> bytes:
        """Return a member's bytes. Raises ReadError, MemberNotFound."""
        offset = self.layout.offsets.get(own)
        if offset is None or own in self.errors:
            raise self._missing(own)
        offset -= self.layout.start
        return self.data[offset : offset + self.layout.sizes[own]]

    def text(self, own: str) -> str:
        """Return a char array up to its first NUL. Raises ReadError, MemberNotFound."""
        return decode_text(self.bytes(own).partition(b"\0")[0])

    def at(self, own: str) -> int:
        """Return the address of a member. Raises MemberNotFound."""
        offset = self.layout.offsets.get(own)
        if offset is None:
            raise MemberNotFound(self.layout.name, own)
        return self.address + offset

    def _missing(self, own: str) -> Exception:
        return self.errors.get(own) or MemberNotFound(self.layout.name, own)


def decode_text(data: bytes) -> str:
    r"""Return text for people: UTF-8, and bytes that are none as \xNN."""
    return data.decode("utf-8", "backslashreplace")


def read_number(kernel: Kernel, vaddr: int, size: int, *, signed: bool = False) -> int:
    """Return the integer of `size` bytes at `vaddr`. Raises ReadError."""
    order = kernel.arch.byteorder
    return int.from_bytes(kernel.read(vaddr, size), "little" if order == "little" else "big", signed=signed)


def read_pointer(kernel: Kernel, vaddr: int) -> int:
    """Return the pointer at `vaddr`. Raises ReadError."""
    return read_number(kernel, vaddr, kernel.arch.pointer_size)


def remembered(kernel: Kernel, make: Callable[[Kernel], Result]) -> Result:
    """Return `make(kernel)`, made once per kernel where the kernel offers a `memo` to keep it in."""
    memo: dict[object, Result] | None = getattr(kernel, "memo", None)
    return _kept(memo, kernel, make)


def observed(kernel: Kernel, make: Callable[[Kernel], Result]) -> Result:
    """Return `make(kernel)`, which reads memory that may change: made once until the kernel is refreshed."""
    memo: dict[object, Result] | None = getattr(kernel, "observed", None)
    return _kept(memo, kernel, make)


def _kept(memo: dict[object, Result] | None, kernel: Kernel, make: Callable[[Kernel], Result]) -> Result:
    if memo is None:
        return make(kernel)
    if make not in memo:
        memo[make] = make(kernel)
    return memo[make]
