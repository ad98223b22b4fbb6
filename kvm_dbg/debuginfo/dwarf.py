"""Types from DWARF: for kernels without BTF. Only what is asked for is read.

`dwarf_search` finds an entry by name, `dwarf_node` reads it with pyelftools into a plain node, and types are made from
nodes. Nodes and names are kept in the index, so that the next process needs neither of the two.
A struct that is only declared where it is pointed to is looked for by name in the other units.
"""

from __future__ import annotations

from functools import partial
from typing import Any

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
from kvm_dbg.debuginfo.c_integer import other_spellings
from kvm_dbg.debuginfo.dwarf_node import DwarfReader, Node
from kvm_dbg.debuginfo.dwarf_search import (
    TAG_BASE,
    TAG_ENUMERATION,
    TAG_ENUMERATOR,
    TAG_STRUCTURE,
    TAG_TYPEDEF,
    TAG_UNION,
    DwarfSearch,
)
from kvm_dbg.elf import ElfFile
from kvm_dbg.errors import FormatError
from kvm_dbg.index import Index

INDEX_LAYOUT = b"dwarf 1 "  # raise it when what is kept changes
MAX_CHAIN = 64
TAGS = {"struct": (TAG_STRUCTURE,), "union": (TAG_UNION,), "enum": (TAG_ENUMERATION,)}
PLAIN = (TAG_TYPEDEF, TAG_BASE)

_VOID = VoidType()


class DwarfTypes(TypeTable):
    """The types of one kernel file.

    Args:
        elf: the file; it must stay open.
        index: where what was found is kept.

    Raises:
        UnsupportedError: the file has no debug information, or of an unknown version.
    """

    def __init__(self, elf: ElfFile, *, index: Index | None = None, table: str = "dwarf") -> None:
        self.source = f"DWARF of {elf.path}"
        self._elf = elf
        section = elf.find_section(".debug_info")
        self._identity = INDEX_LAYOUT + repr((len(elf.data), section and (section.offset, section.size))).encode()
        self._index = index
        self._table = table
        self._search: DwarfSearch | None = None
        self._reader: DwarfReader | None = None
        self._types: dict[int, Type] = {}
        self._nodes: dict[int, Node] = {}
        self._names: dict[str, int | None] = {}  # a type's name -> its entry; an enumerator's -> its value
        if not self._load():
            self._search = DwarfSearch(elf)

    def _load(self) -> bool:
        parts = self._index.find(self._table, self._identity) if self._index is not None else None
        if parts is None or "nodes" not in parts:
            return False
        import json

        try:
            kept = json.loads(bytes(parts["nodes"]))
            self._names = dict(kept["names"])
            self._nodes = {int(key): list(node) for key, node in kept["nodes"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        return True

    def _keep(self) -> None:
        if self._index is not None:
            import json

            text = json.dumps({"names": self._names, "nodes": self._nodes}, separators=(",", ":"))
            self._index.store(self._table, self._identity, {"nodes": text.encode()})

    def find_type(self, name: str) -> Type | None:
        found = self._find(name)
        if found is None:
            found = next(filter(None, map(self._find, other_spellings(name))), None)
        return _VOID if found is None and name == "void" else found

    def type_at(self, offset: int) -> Type:
        """Return the type whose entry is at `offset` of .debug_info, void for 0. Raises FormatError."""
        return self._type(offset) if offset else _VOID

    def _find(self, name: str) -> Type | None:
        if name not in self._names:
            keyword, _, tag = name.partition(" ")
            tags = TAGS.get(keyword, PLAIN)
            self._names[name] = self._first(tags, name if tags is PLAIN else tag)
            self._keep()
        offset = self._names[name]
        return self._type(offset) if offset is not None else None

    def _first(self, tags: tuple[int, ...], name: str) -> int | None:
        """Return the first complete entry of a name, its node read."""
        if not name:
            return None
        if self._search is None:
            self._search = DwarfSearch(self._elf)
        for _, offset in self._search.for_each_entry(tags, name.encode()):
            node = self._node(offset)
            if node[0] == "declared" or name not in node[1:3]:
                continue  # bytes that only looked like the entry
            return offset
        return None

    def find_enumerator(self, name: str) -> int | None:
        key = f"enumerator {name}"
        if key not in self._names:
            offset = self._first((TAG_ENUMERATOR,), name)
            self._names[key] = int(self._nodes[offset][2]) if offset is not None else None
            self._keep()
        return self._names[key]

    def _node(self, offset: int) -> Node:
        node = self._nodes.get(offset)
        if node is None:
            if self._search is None:
                self._search = DwarfSearch(self._elf)
            if self._reader is None:
                self._reader = DwarfReader(self._elf)
            unit = self._search.unit_of(offset)
            if unit is None:
                raise FormatError(self._elf.path, offset, "DW_AT_type", "a type outside .debug_info")
            node = self._nodes[offset] = self._reader.read(unit, offset)
        return node

    def _type(self, offset: int) -> Type:
        found = self._types.get(offset)
        if found is None:
            found = self._types[offset] = self._make(offset)
        return found

    def _make(self, offset: int) -> Type:
        for _ in range(MAX_CHAIN):
            if offset == 0:
                return _VOID
            node = self._node(offset)
            if node[0] != "same":
                try:
                    return self._from_node(node)
                except (ValueError, TypeError, IndexError) as error:  # a node that was kept, and is none
                    raise FormatError(self.source, offset, "index", f"a damaged node: {error}") from error
            offset = node[1]
        raise FormatError(self._elf.path, offset, "DW_AT_type", f"more than {MAX_CHAIN} qualifiers in a row")

    def _from_node(self, node: Node) -> Type:
        kind, *rest = node
        if kind in ("struct", "union"):
            name, size, members = rest
            return StructType(kind, name, size, partial(self._members, members))
        if kind == "declared":
            keyword, name = rest
            return (self._find(f"{keyword} {name}") if name else None) or StructType(keyword, name, 0, tuple)
        if kind == "pointer":
            size, target = rest
            return PointerType(size, partial(self._type, target))
        if kind == "typedef":
            name, target = rest
            return TypedefType(name, partial(self._type, target))
        if kind == "int":
            name, size, signed, is_bool, is_char = rest
            return IntType(name, size, signed=signed, is_bool=is_bool, is_char=is_char)
        if kind == "array":
            counts, element = rest
            return self._array(counts or [0], element)
        if kind == "enum":
            name, size, signed, values = rest
            return EnumType(name, size, signed=signed, enumerators=lambda: tuple(Enumerator(n, v) for n, v in values))
        if kind == "float":
            return FloatType(*rest)
        if kind == "function":
            return FunctionType(rest[0], 0)
        raise ValueError(f"{kind!r} is no type")

    def _array(self, counts: list[int], element: int) -> Type:
        count, *inner = counts
        return ArrayType(count, partial(self._array, inner, element) if inner else partial(self._type, element))

    def _members(self, rows: list[list[Any]]) -> tuple[Member, ...]:
        return tuple(Member(name, start, size, partial(self._type, target)) for name, start, size, target in rows)
