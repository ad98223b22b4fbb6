"""Read entries of DWARF, by pyelftools, into plain lists that can be kept.

A node is a list whose first item says what it is; references are offsets into .debug_info, 0 for void:
    ["struct" or "union", name, size, [[member, bit offset, bit size, type], ...]]    ["declared", keyword, name]
    ["int", name, size, signed, is bool, is char]    ["float", name, size]    ["pointer", size, target]
    ["array", [count, ...], element]    ["typedef", name, target]    ["same", target]    ["function", name]
    ["enum", name, size, signed, [[enumerator, value], ...]]

Facts: the DWARF standard, versions 4 and 5: 5.6 and 5.7 (members; DW_AT_data_bit_offset counts from the start of the
struct, the older DW_AT_bit_offset from the most significant bit of the storage unit), 5.5 (arrays), 7.8 (encodings).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from kvm_dbg.debuginfo.dwarf_search import Area, Unit
from kvm_dbg.elf import ElfFile
from kvm_dbg.errors import FormatError

Node = list[Any]

ENCODING_BOOLEAN, ENCODING_FLOAT, ENCODING_SIGNED, ENCODING_SIGNED_CHAR, ENCODING_UNSIGNED_CHAR = 2, 4, 5, 6, 8
OP_PLUS_UCONST = 0x23
SAME_TAGS = frozenset(
    (
        "DW_TAG_const_type",
        "DW_TAG_volatile_type",
        "DW_TAG_restrict_type",
        "DW_TAG_atomic_type",
        "DW_TAG_LLVM_annotation",
    )
)
POINTER_TAGS = frozenset(("DW_TAG_pointer_type", "DW_TAG_reference_type", "DW_TAG_rvalue_reference_type"))
KEYWORDS = {"DW_TAG_structure_type": "struct", "DW_TAG_class_type": "struct", "DW_TAG_union_type": "union"}
REFERENCE_FORMS = frozenset(
    ("DW_FORM_ref1", "DW_FORM_ref2", "DW_FORM_ref4", "DW_FORM_ref8", "DW_FORM_ref_udata", "DW_FORM_ref")
)
MAX_CHILDREN = 1 << 16


class _Stream(io.BytesIO):
    """A section as a file that is only read where it is needed."""

    def __init__(self, area: Area) -> None:
        self._area = area
        self._at = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._area.read(self._at, len(self._area) if size is None or size < 0 else size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = offset + (0, self._at, len(self._area))[whence]
        return self._at

    def tell(self) -> int:
        return self._at


class DwarfReader:
    """Reads nodes from one file."""

    def __init__(self, elf: ElfFile) -> None:
        from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo

        self.path = elf.path
        self.little = elf.header.byteorder == "little"
        self._address_size = elf.header.word_bits // 8

        def describe(name: str) -> Any:
            area = Area(elf, name)
            return DebugSectionDescriptor(_Stream(area), name, area.file_offset, len(area), 0) if len(area) else None

        present = ("info", "abbrev", "str", "addr", "str_offsets", "line_str", "types")
        sections = {f"debug_{name}_sec": describe(f".debug_{name}") for name in present}
        absent = ("aranges", "frame", "loc", "ranges", "line", "pubtypes", "pubnames", "loclists", "rnglists", "sup")
        self._info = DWARFInfo(
            config=DwarfConfig(
                little_endian=self.little, machine_arch=elf.machine or "", default_address_size=self._address_size
            ),
            eh_frame_sec=None,
            gnu_debugaltlink_sec=None,
            **sections,
            **{f"debug_{name}_sec": None for name in absent},
        )

    def read(self, unit: Unit, offset: int) -> Node:
        """Return the node of the entry at `offset` of .debug_info. Raises FormatError."""
        from elftools.common.exceptions import DWARFError, ELFError
        from elftools.construct import ConstructError

        try:
            return self._read(self._info.get_CU_at(unit.start).get_DIE_from_refaddr(offset))
        except (
            DWARFError,
            ELFError,
            ConstructError,
            KeyError,
            IndexError,
            ValueError,
            TypeError,
            AttributeError,
        ) as error:
            raise self._wrong(offset, f"{type(error).__name__}: {error}") from error
        except (AssertionError, NotImplementedError, OverflowError, RecursionError) as error:
            raise self._wrong(offset, f"{type(error).__name__}: {error}") from error

    def _wrong(self, offset: int, message: str) -> FormatError:
        return FormatError(self.path, offset, ".debug_info", f"the entry cannot be read: {message}")

    def _read(self, die: Any) -> Node:
        tag: str = die.tag
        name = _name(die)
        if tag in KEYWORDS:
            keyword = KEYWORDS[tag]
            if "DW_AT_declaration" in die.attributes:
                return ["declared", keyword, name]
            return [keyword, name, _size(die), self._members(die)]
        if tag == "DW_TAG_typedef":
            return ["typedef", name, self._reference(die)]
        if tag in POINTER_TAGS:
            return ["pointer", _size(die) or self._address_size, self._reference(die)]
        if tag in SAME_TAGS:
            return ["same", self._reference(die)]
        if tag == "DW_TAG_base_type":
            encoding = die.attributes["DW_AT_encoding"].value
            if encoding == ENCODING_FLOAT:
                return ["float", name, _size(die)]
            is_char = encoding in (ENCODING_SIGNED_CHAR, ENCODING_UNSIGNED_CHAR)
            signed = encoding in (ENCODING_SIGNED, ENCODING_SIGNED_CHAR)
            return ["int", name, _size(die), signed, encoding == ENCODING_BOOLEAN, is_char]
        if tag == "DW_TAG_array_type":
            return ["array", [_count(child) for child in self._children(die)], self._reference(die)]
        if tag == "DW_TAG_enumeration_type":
            if "DW_AT_declaration" in die.attributes:
                return ["declared", "enum", name]
            values = [
                [_name(child), child.attributes["DW_AT_const_value"].value]
                for child in self._children(die)
                if child.tag == "DW_TAG_enumerator"
            ]
            return ["enum", name, _size(die), any(value < 0 for _, value in values), values]
        if tag == "DW_TAG_enumerator":
            return ["enumerator", name, die.attributes["DW_AT_const_value"].value]
        if tag == "DW_TAG_subroutine_type":
            return ["function", name]
        if tag == "DW_TAG_unspecified_type":
            return ["same", 0]
        raise self._wrong(die.offset, f"{tag} is no type of data")

    def _children(self, die: Any) -> Iterator[Any]:
        """Yield the children; they must ascend, so that a wrong DW_AT_sibling cannot make this endless."""
        last = die.offset
        for number, child in enumerate(die.iter_children()):
            if child.offset <= last or number >= MAX_CHILDREN:
                raise self._wrong(child.offset, "its siblings form a circle")
            last = child.offset
            yield child

    def _reference(self, die: Any) -> int:
        attribute = die.attributes.get("DW_AT_type")
        if attribute is None:
            return 0
        if attribute.form in REFERENCE_FORMS:
            return int(attribute.value + die.cu.cu_offset)
        if attribute.form == "DW_FORM_ref_addr":
            return int(attribute.value)
        raise self._wrong(die.offset, f"a type in form {attribute.form}")

    def _members(self, die: Any) -> list[list[Any]]:
        return [self._member(child) for child in self._children(die) if child.tag == "DW_TAG_member"]

    def _member(self, die: Any) -> list[Any]:
        attributes = die.attributes
        start = 8 * _location(attributes.get("DW_AT_data_member_location"))
        bit_size = attributes["DW_AT_bit_size"].value if "DW_AT_bit_size" in attributes else 0
        if "DW_AT_data_bit_offset" in attributes:
            start += attributes["DW_AT_data_bit_offset"].value
        elif "DW_AT_bit_offset" in attributes:
            from_top = attributes["DW_AT_bit_offset"].value
            storage = _size(die) or self._storage(die)
            start += 8 * storage - from_top - bit_size if self.little else from_top
        return [_name(die), start, bit_size, self._reference(die)]

    def _storage(self, die: Any) -> int:
        """Return the size of the type of a bit-field in bytes, its typedefs and qualifiers followed."""
        for _ in range(64):
            die = die.get_DIE_from_attribute("DW_AT_type")
            if size := _size(die):
                return size
        raise self._wrong(die.offset, "a bit-field without a type")


def _name(die: Any) -> str:
    attribute = die.attributes.get("DW_AT_name")
    return attribute.value.decode("utf-8", "replace") if attribute is not None else ""


def _size(die: Any) -> int:
    attribute = die.attributes.get("DW_AT_byte_size")
    return attribute.value if attribute is not None and isinstance(attribute.value, int) else 0


def _count(die: Any) -> int:
    """Return the number of elements of one dimension, 0 where it is not said (a flexible array)."""
    for key, more in (("DW_AT_count", 0), ("DW_AT_upper_bound", 1)):
        attribute = die.attributes.get(key)
        if attribute is not None and isinstance(attribute.value, int) and "ref" not in attribute.form:
            count = attribute.value + more
            return 0 if count < 0 or count >= 1 << 32 else count  # older compilers write -1 as 2^32-1 or 2^64-1
    return 0


def _location(attribute: Any) -> int:
    """Return the offset of a member in bytes: a number, or in old DWARF an expression that adds one."""
    if attribute is None:
        return 0
    if isinstance(attribute.value, int):
        return attribute.value
    code, value, shift = list(attribute.value), 0, 0
    if not code or code[0] != OP_PLUS_UCONST:
        raise ValueError("a member's place is not a plain offset")
    for byte in code[1:]:
        value |= (byte & 0x7F) << shift
        shift += 7
    return value
