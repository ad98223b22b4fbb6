"""Read made DWARF by pyelftools, and check that it is sound."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from elftools.elf.elffile import ELFFile

from kvm_dbg.debuginfo.btf import BtfTypes
from kvm_dbg.kernel_file.dwarf import MadeDwarf
from kvm_dbg.symbols.base import Symbol
from tests.writers.btf import SIGNED, BtfWriter
from tests.writers.elf import Part, write_elf


class Read:
    """What pyelftools finds in sections."""

    def __init__(self, made: MadeDwarf, *, bits: int = 64, order: str = "<") -> None:
        parts = [Part(name, 1, 0, data) for name, data in made.sections.items()]
        file = ELFFile(io.BytesIO(write_elf(parts, bits=bits, order=order)))
        self.info: Any = file.get_dwarf_info()
        self.units: list[Any] = list(self.info.iter_CUs())
        self.entries: list[Any] = [die for unit in self.units for die in unit.iter_DIEs() if not die.is_null()]

    def find(self, name: str, tag: str = "") -> Any:
        """Return the only entry of a name (and tag)."""
        found = [
            die
            for die in self.entries
            if die.attributes.get("DW_AT_name") and value(die, "name") == name and tag in die.tag
        ]
        assert len(found) == 1, (name, found)
        return found[0]

    def names(self, tag: str) -> list[str]:
        return [
            value(die, "name") for die in self.entries if die.tag == "DW_TAG_" + tag and "DW_AT_name" in die.attributes
        ]


def value(die: Any, attribute: str) -> Any:
    """Return an attribute's value, None without it."""
    found = die.attributes.get("DW_AT_" + attribute)
    if found is None:
        return None
    return found.value.decode() if isinstance(found.value, bytes) else found.value


def text(die: Any) -> str:
    """Return the type that an entry has, from left to right as in `char const *`."""
    if "DW_AT_type" not in die.attributes:
        return "void"
    target = die.get_DIE_from_attribute("DW_AT_type")
    tag = target.tag.removeprefix("DW_TAG_")
    if tag in ("const_type", "volatile_type", "restrict_type"):
        return f"{text(target)} {tag.removesuffix('_type')}"
    if tag == "pointer_type":
        return f"{text(target)} *"
    if tag == "array_type":
        [bound] = target.iter_children()
        return f"{text(target)} [{'' if value(bound, 'count') is None else value(bound, 'count')}]"
    if tag == "subroutine_type":
        return f"{text(target)} ({', '.join(parameters(target))})"
    words = {"structure_type": "struct ", "union_type": "union ", "enumeration_type": "enum "}
    return words.get(tag, "") + (value(target, "name") or "{}")


def parameters(die: Any) -> list[str]:
    """Return the parameters of a function or of its type."""
    found = []
    for child in die.iter_children():
        if child.tag == "DW_TAG_unspecified_parameters":
            found.append("...")
        else:
            assert child.tag == "DW_TAG_formal_parameter"
            found.append(" ".join(filter(None, (text(child), value(child, "name")))))
    return found


def members(die: Any) -> list[tuple[object, ...]]:
    """Return (name, type, byte offset) of each member, of bit-fields (name, type, bit offset, bits)."""
    found: list[tuple[object, ...]] = []
    for child in die.iter_children():
        if "DW_AT_bit_size" in child.attributes:
            found.append((value(child, "name"), text(child), value(child, "data_bit_offset"), value(child, "bit_size")))
        else:
            found.append((value(child, "name"), text(child), value(child, "data_member_location")))
    return found


def enumerators(die: Any) -> list[tuple[str, int]]:
    return [(value(child, "name"), value(child, "const_value")) for child in die.iter_children()]


def check(read: Read) -> None:
    """Check that every reference leads to a type's entry, and that no type goes round in a circle."""
    at = {die.offset: die for die in read.entries}
    for die in read.entries:
        if "DW_AT_type" in die.attributes:
            assert die.get_DIE_from_attribute("DW_AT_type").tag.endswith(("_type", "typedef"))
    depths: dict[int, int] = {}
    for die in read.entries:
        if die.tag.endswith(("_type", "typedef")):
            measure(die, at, depths)


def targets(die: Any) -> Iterator[int]:
    """Yield the places of the types that must be known before a type is: not what a struct's pointers lead to."""
    if die.tag in ("DW_TAG_structure_type", "DW_TAG_union_type"):
        for child in die.iter_children():
            target = child.get_DIE_from_attribute("DW_AT_type")
            while target.tag in ("DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_typedef", "DW_TAG_array_type"):
                if "DW_AT_type" not in target.attributes:
                    break
                target = target.get_DIE_from_attribute("DW_AT_type")
            if target.tag in ("DW_TAG_structure_type", "DW_TAG_union_type"):
                yield target.offset
        return
    for one in (die, *die.iter_children()):
        if "DW_AT_type" in one.attributes:
            target = one.get_DIE_from_attribute("DW_AT_type")
            if target.tag not in ("DW_TAG_structure_type", "DW_TAG_union_type"):
                yield target.offset


def measure(die: Any, at: dict[int, Any], depths: dict[int, int]) -> int:
    if die.offset not in depths:
        depths[die.offset] = 1000  # while it is being measured: a circle becomes too deep
        depths[die.offset] = 1 + max((measure(at[place], at, depths) for place in targets(die)), default=0)
    assert depths[die.offset] < 1000, die
    return depths[die.offset]


def symbol(name: str, address: int, size: int = 0x10, kind: str = "T", module: str | None = None) -> Symbol:
    return Symbol(name, address, size, kind, module)


def types_of(btf: BtfWriter, base: BtfTypes | None = None) -> BtfTypes:
    return BtfTypes(btf.section(), source="test", base=base)


def plain_btf() -> BtfWriter:
    """Return BTF whose type 1 is int, 2 unsigned long and 3 char."""
    found = BtfWriter()
    found.integer("int", 4, SIGNED)
    found.integer("long unsigned int", 8)
    found.integer("char", 1, SIGNED)
    return found
