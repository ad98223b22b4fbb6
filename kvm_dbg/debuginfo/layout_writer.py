"""Write a layout file: the structs that are asked for and what lies in them. The format: docs/layout-files.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from kvm_dbg.debuginfo.base import (
    ArrayType,
    EnumType,
    IntType,
    Member,
    PointerType,
    StructType,
    Type,
    TypedefType,
    TypeTable,
    size_of,
)
from kvm_dbg.debuginfo.c_type import c_type_text
from kvm_dbg.debuginfo.layout_file import HEADER, MAX_DEPTH, MAX_MEMBERS, VERSION
from kvm_dbg.elf import ElfFile
from kvm_dbg.errors import FormatError, MemberNotFound, TypeNotFound

MAX_TYPES = 1 << 16  # entries of a file

Body = dict[str, Any]


class LayoutWriter:
    """Collects types.

    Attributes:
        entries: key -> entry, as in the file.
        problems: a sentence on each member that was left out.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Body] = {}
        self.problems: list[str] = []
        self._pending: list[Type] = []

    def add(self, type_: Type) -> None:
        """Add a type and all that lies in it by value; what is pointed to is named, and left out."""
        self._pending.append(type_)
        while self._pending and len(self.entries) < MAX_TYPES:
            self._add(self._pending.pop())

    def _add(self, type_: Type) -> None:
        key = _key(type_)
        if isinstance(type_, ArrayType):
            self._pending.append(type_.element)
        elif isinstance(type_, PointerType):
            self._name(type_)
        elif key is None or key in self.entries:
            return
        elif isinstance(type_, StructType):
            self.entries[key] = {}  # now, since it may be in itself by an error
            self.entries[key] = self._struct(type_, 0)
        elif isinstance(type_, EnumType):
            self.entries[key] = {"size": type_.size, "enumerators": _values(type_)}
        elif isinstance(type_, TypedefType):
            self._typedef(key, type_)

    def _typedef(self, key: str, type_: TypedefType) -> None:
        target, stripped = type_.target, type_.stripped()
        if isinstance(target, StructType) and not target.name:
            self.entries[key] = {"kind": target.keyword, **self._struct(target, 0)}
        elif isinstance(target, EnumType) and not target.name:
            self.entries[key] = {"size": target.size, "type": _integer(target)}
        else:
            self.entries[key] = {"type": c_type_text(target)}
            if not isinstance(stripped, (ArrayType, PointerType)) or size_of(stripped):
                self.entries[key]["size"] = size_of(stripped)
            self._pending.append(target)

    def _name(self, type_: Type) -> None:
        """Add the typedefs that a pointer's type names, so that its target's name is known."""
        for _ in range(MAX_DEPTH):
            if isinstance(type_, PointerType):
                type_ = type_.target
            elif isinstance(type_, ArrayType):
                type_ = type_.element
            elif isinstance(type_, TypedefType):
                key = _key(type_)
                target = type_.target
                if (
                    key is None
                    or key in self.entries
                    or (isinstance(target, (StructType, EnumType)) and not target.name)
                ):
                    return
                self.entries[key] = {"size": size_of(type_), "type": c_type_text(target)}
                type_ = target
            else:
                return

    def _struct(self, struct: StructType, depth: int) -> Body:
        members: Body = {}
        for member, start in _flat(struct):
            try:
                members[member.name] = self._member(member, start, depth)
            except (FormatError, TypeNotFound, MemberNotFound, ValueError) as error:
                self.problems.append(f"{struct.keyword} {struct.name or '{...}'} without {member.name}: {error}")
        return {"size": struct.size, "members": members}

    def _member(self, member: Member, start: int, depth: int) -> Body:
        type_ = member.type
        size = size_of(type_)
        inner = type_
        for _ in range(MAX_DEPTH):
            if not isinstance(inner, (ArrayType, PointerType)):
                break
            inner = inner.element if isinstance(inner, ArrayType) else inner.target
        text = c_type_text(type_)
        if isinstance(inner, EnumType) and not inner.name:
            text = text.replace("enum {...}", _integer(inner), 1)
        body: Body = {"offset": start >> 3, "size": size, "type": text}
        if member.bit_size:
            unit = start // (8 * size) * 8 * size if size else start
            body |= {"offset": unit >> 3, "bit_offset": start, "bit_size": member.bit_size}
        if isinstance(inner, StructType) and not inner.name and depth < MAX_DEPTH:
            if not _has_pointer(type_):
                body["inside"] = self._struct(inner, depth + 1)
        else:
            self._pending.append(type_)
        return body


def make_layout(types: TypeTable, names: Iterable[str], elf: ElfFile, producer: str) -> tuple[bytes, list[str], int]:
    """Return (the file's bytes, sentences on what is missing, how many structs) with the named types.

    names: as `TypeTable.find_type` takes them; those that the kernel does not have are left out.
    """
    writer = LayoutWriter()
    for name in names:
        found = types.find_type(name)
        if found is not None:
            writer.add(found)
    header: Body = {"version": VERSION, "pointer_size": elf.header.word_bits // 8, "byte_order": elf.header.byteorder}
    build_id = elf.find_build_id()
    header |= {"machine": elf.machine} if elf.machine else {}
    header |= {"build_id": build_id.hex()} if build_id else {}
    header |= {"source": types.source, "producer": producer}
    char = types.find_type("char")
    if isinstance(char, IntType):
        header["char_signed"] = char.signed
    document = {HEADER: header, **dict(sorted(writer.entries.items()))}
    data = json.dumps(document, indent=1).encode() + b"\n"
    structs = sum("members" in body for body in writer.entries.values())
    return data, writer.problems, structs


def _key(type_: Type) -> str | None:
    """Return the key of a type's entry, None if it needs none."""
    if isinstance(type_, StructType):
        if not type_.name:
            return None
        return type_.name if type_.keyword == "struct" else f"{type_.keyword} {type_.name}"
    if isinstance(type_, EnumType):
        return f"enum {type_.name}" if type_.name else None
    return f"typedef {type_.name}" if isinstance(type_, TypedefType) else None


def _values(type_: EnumType) -> dict[str, int]:
    return {entry.name: entry.value for entry in type_.enumerators}


def _integer(type_: EnumType) -> str:
    """Return the name of the integer that an enum without a tag is kept in."""
    return f"{'' if type_.signed else 'u'}int{8 * type_.size}_t"


def _has_pointer(type_: Type) -> bool:
    for _ in range(MAX_DEPTH):
        if isinstance(type_, PointerType):
            return True
        if not isinstance(type_, ArrayType):
            return False
        type_ = type_.element
    return False


def _flat(struct: StructType) -> Iterator[tuple[Member, int]]:
    """Yield (member, bits from the start) of a struct, those of members without a name in their place."""
    seen: set[str] = set()
    pending = [(member, 0, 0) for member in reversed(struct.members)]
    while pending:
        member, base, depth = pending.pop()
        start = base + member.bit_offset
        if member.name:
            if member.name not in seen and len(seen) < MAX_MEMBERS:
                seen.add(member.name)
                yield member, start
            continue
        inner = member.type.stripped()
        if isinstance(inner, StructType) and depth < MAX_DEPTH:
            pending += [(further, start, depth + 1) for further in reversed(inner.members)]
