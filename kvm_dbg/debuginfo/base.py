"""Types as every source of debug information gives them: BTF, DWARF, CTF.

A type is a small immutable object; what it refers to (pointer targets, members' types) is resolved when asked
for, since the types of a kernel form one connected graph of a hundred thousand nodes. Qualifiers (const,
volatile, restrict, attributes, BTF's type tags) are skipped: they do not change what bytes mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

from kvm_dbg.errors import MemberNotFound, TypeNotFound, UnsupportedError

MAX_CHAIN = 64  # typedefs of typedefs, arrays of arrays
MAX_ANONYMOUS = 4096  # anonymous structs and unions inside one struct


class Type:
    """A type; `name` as C spells it, without a tag for anonymous ones; `size` in bytes (0: incomplete or void)."""

    __slots__ = ("__dict__", "name", "size")

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size

    def stripped(self) -> Type:
        """Return the type behind all typedefs."""
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name or '(anonymous)'} size={self.size}>"


class VoidType(Type):
    """void."""

    def __init__(self) -> None:
        super().__init__("void", 0)


class IntType(Type):
    """An integer, `signed` or not; `is_bool` and `is_char` as the source says."""

    def __init__(self, name: str, size: int, *, signed: bool, is_bool: bool = False, is_char: bool = False) -> None:
        super().__init__(name, size)
        self.signed = signed
        self.is_bool = is_bool
        self.is_char = is_char


class FloatType(Type):
    """A floating-point number."""


class PointerType(Type):
    """A pointer; `target` is what it points to."""

    def __init__(self, size: int, resolve: Callable[[], Type]) -> None:
        super().__init__("", size)
        self._resolve = resolve

    @cached_property
    def target(self) -> Type:
        """Return the type pointed to."""
        return self._resolve()


class ArrayType(Type):
    """An array of `count` elements (0 for a flexible array); `size` needs the element and is computed when asked."""

    def __init__(self, count: int, resolve: Callable[[], Type]) -> None:
        super().__init__("", 0)
        self.count = count
        self._resolve = resolve

    @cached_property
    def element(self) -> Type:
        """Return the type of one element."""
        return self._resolve()

    @property
    def byte_size(self) -> int:
        """Return the size of the whole array in bytes.

        Raises:
            TypeNotFound: it is an array of itself.
        """
        count, inner = self.count, self.element.stripped()
        for _ in range(MAX_CHAIN):
            if not isinstance(inner, ArrayType):
                return count * inner.size
            count *= inner.count
            inner = inner.element.stripped()
        raise TypeNotFound(self.name, "an array is an array of itself")


class TypedefType(Type):
    """Another name for `target`."""

    def __init__(self, name: str, resolve: Callable[[], Type]) -> None:
        super().__init__(name, 0)
        self._resolve = resolve

    @cached_property
    def target(self) -> Type:
        """Return the type that the name stands for."""
        return self._resolve()

    def stripped(self) -> Type:
        found: Type = self
        for _ in range(MAX_CHAIN):
            if not isinstance(found, TypedefType):
                return found
            found = found.target
        raise TypeNotFound(self.name, f"typedef {self.name} refers to itself")


class FunctionType(Type):
    """A function; kernels' data structures only point to them."""


class Member:
    """A member of a struct or union: `bit_offset` from its start; `bit_size` of a bit-field, else 0."""

    __slots__ = ("_resolve", "_type", "bit_offset", "bit_size", "name")

    def __init__(self, name: str, bit_offset: int, bit_size: int, resolve: Callable[[], Type]) -> None:
        self.name = name
        self.bit_offset = bit_offset
        self.bit_size = bit_size
        self._resolve = resolve
        self._type: Type | None = None

    @property
    def type(self) -> Type:
        """Return the member's type."""
        if self._type is None:
            self._type = self._resolve()
        return self._type

    @property
    def offset(self) -> int:
        """Return the offset in whole bytes from the start of the struct."""
        return self.bit_offset >> 3

    def __repr__(self) -> str:
        return f"<Member {self.name} +{self.bit_offset} bits>"


class StructType(Type):
    """A struct or union (`keyword` says which); `name` is the tag, "" if anonymous."""

    def __init__(self, keyword: str, name: str, size: int, members: Callable[[], tuple[Member, ...]]) -> None:
        super().__init__(name, size)
        self.keyword = keyword
        self._members = members

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Return the members in order of declaration; anonymous structs and unions have the name ""."""
        return self._members()

    @cached_property
    def _by_name(self) -> dict[str, Member]:
        found: dict[str, Member] = {}
        inside: list[tuple[StructType, int]] = [(self, 0)]
        for struct, base in inside:  # grows while it is walked
            for member in struct.members:
                if member.name:
                    start = base + member.bit_offset
                    found.setdefault(
                        member.name,
                        Member(member.name, start, member.bit_size, member._resolve) if base else member,
                    )
                    continue
                inner = member.type.stripped()
                if isinstance(inner, StructType) and len(inside) < MAX_ANONYMOUS:
                    inside.append((inner, base + member.bit_offset))
        return found

    def find_member(self, path: str) -> Member | None:
        """Return the member `path` ("comm", "thread.sp", "mem[0].base" is not allowed), anonymous levels included.

        The offset is from the start of this struct.
        """
        known = self._by_name.get(path)
        if known is not None:
            return known
        struct: Type = self
        bit_offset = 0
        member: Member | None = None
        for name in path.split("."):
            if not isinstance(struct, StructType):
                return None
            member = struct._by_name.get(name)
            if member is None:
                return None
            bit_offset += member.bit_offset
            struct = member.type.stripped()
        if member is None:
            return None
        found = Member(path, bit_offset, member.bit_size, member._resolve)
        self._by_name[path] = found  # no member's own name has a dot
        return found

    def member(self, path: str) -> Member:
        """Return the member `path` as `find_member` does.

        Raises:
            MemberNotFound: no such member.
        """
        found = self.find_member(path)
        if found is None:
            raise MemberNotFound(f"{self.keyword} {self.name}".strip(), path)
        return found

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self.find_member(path) is not None


class Enumerator(NamedTuple):
    """One name of an enum and its value."""

    name: str
    value: int


class EnumType(Type):
    """An enumeration; `enumerators` in order of declaration."""

    def __init__(
        self, name: str, size: int, *, signed: bool, enumerators: Callable[[], tuple[Enumerator, ...]]
    ) -> None:
        super().__init__(name, size)
        self.signed = signed
        self._enumerators = enumerators

    @cached_property
    def enumerators(self) -> tuple[Enumerator, ...]:
        """Return names and values."""
        return self._enumerators()


def size_of(type_: Type) -> int:
    """Return the size of a value of the type in bytes, typedefs and arrays resolved."""
    found = type_.stripped()
    return found.byte_size if isinstance(found, ArrayType) else found.size


class TypeTable(ABC):
    """A source of types.

    Names are spelled as in C: "struct task_struct", "union thread_union", "enum desc_state", "atomic_t".
    """

    source: str  # for people: "BTF of vmlinux", "DWARF of /usr/lib/debug/..."

    @abstractmethod
    def find_type(self, name: str) -> Type | None:
        """Return the complete type called `name`; declarations without a body do not count."""

    @abstractmethod
    def find_enumerator(self, name: str) -> int | None:
        """Return the value of the enumerator `name` of whatever enum has it."""

    def for_each_name(self) -> Iterator[str]:
        """Yield the names of all complete types that have one, spelled as `find_type` takes them.

        Raises:
            UnsupportedError: this source cannot be listed.
        """
        raise UnsupportedError("a list of all types", self.source)

    def type(self, name: str) -> Type:
        """Return the type called `name`.

        Raises:
            TypeNotFound: no such type.
        """
        found = self.find_type(name)
        if found is None:
            raise TypeNotFound(name, f"no type {name!r} in {self.source}")
        return found

    def struct(self, name: str) -> StructType:
        """Return the struct or union called `name` ("struct task_struct", or a typedef of one).

        Raises:
            TypeNotFound: no such type, or it is neither a struct nor a union.
        """
        found = self.type(name).stripped()
        if not isinstance(found, StructType):
            raise TypeNotFound(name, f"{name!r} is not a struct or union in {self.source}")
        return found

    def has_member(self, struct: str, path: str) -> bool:
        """Return whether the struct exists and has the member: the probe for layouts."""
        found = self.find_type(struct)
        inner = found.stripped() if found is not None else None
        return isinstance(inner, StructType) and inner.find_member(path) is not None

    def offset_of(self, struct: str, path: str) -> int:
        """Return the offset of a member in bytes. Raises TypeNotFound or MemberNotFound."""
        return self.struct(struct).member(path).offset

    def size_of(self, name: str) -> int:
        """Return the size of a type in bytes. Raises TypeNotFound."""
        return size_of(self.type(name))
