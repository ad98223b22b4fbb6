"""Types from BTF: the kernel's own description of its types, in vmlinux and in the memory of most kernels.

Facts: include/uapi/linux/btf.h and Documentation/bpf/btf.rst; the bytes are `btf_data`'s business.
- A struct's kind flag says how members' offsets are coded: with it, the upper 8 bits are a bit-field's size; without
  it, a bit-field is a member whose INT has fewer bits than its bytes (and may start at a bit of its own).
- The kind flag of an ENUM says that its values are signed. Writers before pahole 1.24 never set it and had no ENUM64;
  in such BTF a value with the top bit set is taken for a negative one, and of 64-bit values the upper half is lost.
- BTF does not say how large a pointer is: it is as large as `long`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial

from kvm_dbg.debuginfo.base import (
    ArrayType,
    Enumerator,
    EnumType,
    FloatType,
    FunctionType,
    IntType,
    Member,
    PointerType,
    StructType,
    Type,
    TypedefType,
    TypeTable,
    VoidType,
)
from kvm_dbg.debuginfo.btf_data import (
    ARRAY,
    CONST,
    DATASEC,
    ENUM,
    ENUM64,
    ENUMERATOR_PREFIX,
    FLOAT,
    FUNC,
    FUNC_PROTO,
    FWD,
    INT,
    KIND_FLAG,
    KIND_MASK,
    PREFIXES,
    PTR,
    RESTRICT,
    STRUCT,
    TYPE_TAG,
    TYPEDEF,
    UNION,
    VAR,
    VLEN_MASK,
    VOLATILE,
    BtfData,
    Buffer,
)
from kvm_dbg.debuginfo.c_integer import other_spellings
from kvm_dbg.errors import FormatError
from kvm_dbg.index import Index

INDEX_LAYOUT = b"btf 1 "  # raise it when what is kept changes
MAX_CHAIN = 64  # qualifiers or typedefs one after another
QUALIFIERS = frozenset((VOLATILE, CONST, RESTRICT, TYPE_TAG))
KEYWORDS = {"struct": (STRUCT,), "union": (UNION,), "enum": (ENUM, ENUM64)}
PLAIN = (TYPEDEF, INT, FLOAT)
INT_SIGNED, INT_CHAR, INT_BOOL = 1, 2, 4  # bits 24.. of an INT's word

_VOID = VoidType()


class BtfTypes(TypeTable):
    """The types of one BTF section.

    Args:
        data: the section's bytes; kept, not copied.
        source: names it for people and in errors ("BTF of vmlinux").
        base: the kernel's types, for a module's split BTF.
        index: where the tables of names are kept; only for the kernel's own BTF.
        table: the name of the table in the index.

    Raises:
        FormatError: the header is impossible. What is wrong with the types shows at the first look-up, as
            FormatError or UnsupportedError (a kind of later kernels).
    """

    def __init__(
        self,
        data: Buffer,
        *,
        source: str = "BTF",
        base: BtfTypes | None = None,
        index: Index | None = None,
        table: str = "btf",
    ) -> None:
        self.source = source
        self.base = base
        self.data: BtfData = BtfData(data, source, base.data if base is not None else None)
        self._types: dict[int, Type] = {}
        self._found: dict[str, Type | None] = {}
        if index is not None:
            identity = INDEX_LAYOUT + self.data.sample()
            parts = index.find(table, identity)
            if parts is None or not self.data.adopt(parts):
                tables = self.data.tables()
                index.store(table, identity, {name: memoryview(part).cast("B") for name, part in tables.items()})

    @cached_property
    def pointer_size(self) -> int:
        """Return the size of a pointer in bytes."""
        found = self.find_type("unsigned long") or self.find_type("long")
        return found.size if found is not None and found.size in (4, 8) else 8

    def find_type(self, name: str) -> Type | None:
        if name in self._found:
            return self._found[name]
        found = self._look_up(name)
        if found is None:
            found = next(filter(None, map(self._look_up, other_spellings(name))), None)
        if found is None and name == "void":
            found = _VOID
        if found is None and self.base is not None:
            found = self.base.find_type(name)
        self._found[name] = found
        return found

    def _look_up(self, name: str) -> Type | None:
        keyword, _, tag = name.partition(" ")
        kinds = KEYWORDS.get(keyword, PLAIN)
        wanted = (name if kinds is PLAIN else tag).encode()
        words = self.data.words
        for type_id in self.data.find_ids(PREFIXES[kinds[0]], wanted):
            at = self.data.record(type_id)
            if words[at + 1] >> 24 & KIND_MASK in kinds and self.data.name(words[at]) == wanted:
                return self.type_by_id(type_id)
        return None

    def find_enumerator(self, name: str) -> int | None:
        for type_id in self.data.find_ids(ENUMERATOR_PREFIX, name.encode()):
            found = self.type_by_id(type_id)
            if isinstance(found, EnumType):
                for enumerator in found.enumerators:
                    if enumerator.name == name:
                        return enumerator.value
        return self.base.find_enumerator(name) if self.base is not None else None

    def find_variable(self, name: str) -> Type | None:
        """Return the type of a global variable. Kernels before 2026 describe only their per-CPU variables."""
        wanted = name.encode()
        words = self.data.words
        for type_id in self.data.find_ids(PREFIXES[VAR], wanted):
            at = self.data.record(type_id)
            if words[at + 1] >> 24 & KIND_MASK == VAR and self.data.name(words[at]) == wanted:
                return self.type_by_id(words[at + 2])
        return self.base.find_variable(name) if self.base is not None else None

    def for_each_variable_of(self, section: str) -> Iterator[tuple[str, int, int]]:
        """Yield (name, offset in the section, size) of the variables of a data section, sizes in bytes.

        Raises:
            FormatError: a record is cut off, or leads to no variable.
        """
        words = self.data.words
        for at in self.data.offsets:
            info = words[at + 1]
            if info >> 24 & KIND_MASK != DATASEC or self.data.name(words[at]) != section.encode():
                continue
            for member in range(info & VLEN_MASK):
                type_id, offset, size = words[at + 3 + 3 * member : at + 6 + 3 * member]
                variable = self.data.record(type_id)
                yield self.data.name(words[variable]).decode("utf-8", "backslashreplace"), offset, size

    def type_by_id(self, type_id: int) -> Type:
        """Return the type with a number, behind its qualifiers. Raises FormatError, UnsupportedError."""
        found = self._types.get(type_id)
        if found is None:
            found = self._types[type_id] = self._make(type_id)
        return found

    def _make(self, type_id: int) -> Type:
        data = self.data
        words = data.words
        at = info = kind = 0
        for step in range(MAX_CHAIN):
            if type_id == 0:
                return _VOID
            if type_id < data.first_id and self.base is not None:
                return self.base.type_by_id(type_id)
            at = data.record(type_id)
            info = words[at + 1]
            kind = info >> 24 & KIND_MASK
            if kind not in QUALIFIERS:
                if step:
                    return self.type_by_id(type_id)
                break
            type_id = words[at + 2]
        else:
            raise self._wrong(at, "type", f"more than {MAX_CHAIN} qualifiers in a row")
        third: int = words[at + 2]  # size in bytes, or a type's number
        if kind == PTR:
            return PointerType(self.pointer_size, partial(self.type_by_id, third))
        name = data.name(words[at]).decode("utf-8", "replace")
        if kind in (STRUCT, UNION):
            keyword = "struct" if kind == STRUCT else "union"
            return StructType(keyword, name, third, partial(self._members, at))
        if kind == INT:
            coding = words[at + 3] >> 24
            is_char = bool(coding & INT_CHAR) or name in ("char", "signed char", "unsigned char")
            is_bool = bool(coding & INT_BOOL)
            return IntType(name, third, signed=bool(coding & INT_SIGNED), is_bool=is_bool, is_char=is_char)
        if kind == ARRAY:
            return ArrayType(words[at + 5], partial(self.type_by_id, words[at + 3]))
        if kind in (ENUM, ENUM64):
            signed = info >= KIND_FLAG or not data.tables()["facts"][0]
            read = self._enumerators if kind == ENUM else self._enumerators_64
            return EnumType(name, third, signed=signed, enumerators=partial(read, at, signed))
        if kind == TYPEDEF:
            return TypedefType(name, partial(self.type_by_id, third))
        if kind == FWD:  # the struct itself may be known in this BTF all the same
            keyword = "union" if info >= KIND_FLAG else "struct"
            return self.find_type(f"{keyword} {name}") or StructType(keyword, name, 0, tuple)
        if kind in (FUNC, FUNC_PROTO):
            return FunctionType(name, 0)
        if kind == FLOAT:
            return FloatType(name, third)
        raise self._wrong(at, "info", f"type {type_id} of kind {kind} is no type of data")

    def _members(self, at: int) -> tuple[Member, ...]:
        words = self.data.words
        info = words[at + 1]
        flagged = info >= KIND_FLAG
        record = words[at + 3 : at + 3 + 3 * (info & VLEN_MASK)].tolist()
        found = []
        for name_off, type_id, offset in zip(record[0::3], record[1::3], record[2::3], strict=True):
            name = self.data.name(name_off).decode("utf-8", "replace") if name_off else ""
            if flagged:
                bit_offset, bit_size = offset & 0xFFFFFF, offset >> 24
            else:
                bit_offset, bit_size = self._old_bit_field(type_id, offset)
            found.append(Member(name, bit_offset, bit_size, partial(self.type_by_id, type_id)))
        return tuple(found)

    def _old_bit_field(self, type_id: int, offset: int) -> tuple[int, int]:
        """Return (bit offset, bit size or 0) of a member of a struct without the kind flag."""
        data = self.data
        words = data.words
        for _ in range(MAX_CHAIN):
            if type_id == 0:
                return offset, 0
            if type_id < data.first_id and self.base is not None:
                return self.base._old_bit_field(type_id, offset)
            at = data.record(type_id)
            kind = words[at + 1] >> 24 & KIND_MASK
            if kind == INT:
                bits, first = words[at + 3] & 0xFF, words[at + 3] >> 16 & 0xFF
                return (offset, 0) if bits == 8 * words[at + 2] else (offset + first, bits)
            if kind not in QUALIFIERS and kind != TYPEDEF:
                return offset, 0
            type_id = words[at + 2]
        raise self._wrong(0, "type", f"more than {MAX_CHAIN} qualifiers or typedefs in a row")

    def _enumerators(self, at: int, signed: bool) -> tuple[Enumerator, ...]:
        words = self.data.words
        record = words[at + 3 : at + 3 + 2 * (words[at + 1] & VLEN_MASK)]
        return tuple(
            Enumerator(self.data.name(name).decode("utf-8", "replace"), value - (value >> 31 << 32 if signed else 0))
            for name, value in zip(record[0::2], record[1::2], strict=True)
        )

    def _enumerators_64(self, at: int, signed: bool) -> tuple[Enumerator, ...]:
        words = self.data.words
        record = words[at + 3 : at + 3 + 3 * (words[at + 1] & VLEN_MASK)]
        return tuple(
            Enumerator(
                self.data.name(name).decode("utf-8", "replace"),
                (high << 32 | low) - (high >> 31 << 64 if signed else 0),
            )
            for name, low, high in zip(record[0::3], record[1::3], record[2::3], strict=True)
        )

    def _wrong(self, at: int, field: str, message: str) -> FormatError:
        return FormatError(self.source, self.data.types_offset + 4 * at, field, message)
