"""BTF's types as debugging information entries: one for each, in the order of their ids.

Two passes over checked records: the first one finds out where each entry will be, the second one writes them. What a
debugger shows is what gcc's own DWARF makes it show, but for what BTF does not keep: an array of several dimensions
is one of all its elements, and `[]` at a struct's end is `[0]` (a length that is open within a struct would make gdb
refuse `ptype/o`). Writers of before pahole 1.20 had no FLOAT, and lost the signs of all chars; where "signed
char" itself has none, char is taken to be signed, as it is on x86 in kernels before 6.2 (3bc753c06dd0).

Facts: DWARF version 5, chapter 5 (types), 7.8 (encodings), 7.6 (LEB128).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from kvm_dbg.debuginfo.btf_data import (
    ARRAY,
    CONST,
    ENUM,
    ENUM64,
    FLOAT,
    FUNC_PROTO,
    FWD,
    INT,
    KIND_FLAG,
    PTR,
    RESTRICT,
    STRUCT,
    TYPE_TAG,
    TYPEDEF,
    UNION,
    VLEN_MASK,
    VOLATILE,
)
from kvm_dbg.kernel_file.dwarf_abbrev import SDATA_SIZE, Entry
from kvm_dbg.kernel_file.dwarf_check import MAX_BIT_OFFSET, CheckedBtf

BOOLEAN, REAL, SIGNED, SIGNED_CHAR, UNSIGNED, UNSIGNED_CHAR = 2, 4, 5, 6, 7, 8  # DW_ATE_*
INT_SIGNED, INT_BOOL = 1, 4  # bits 24.. of an INT's word
END: Final = bytes((Entry.END,))

QUALIFIERS: Final = {
    CONST: (Entry.CONST, Entry.CONST_VOID),
    VOLATILE: (Entry.VOLATILE, Entry.VOLATILE_VOID),
    RESTRICT: (Entry.RESTRICT, Entry.RESTRICT_VOID),
}
AGGREGATES: Final = {
    STRUCT: (Entry.STRUCT, Entry.STRUCT_NAMELESS),
    UNION: (Entry.UNION, Entry.UNION_NAMELESS),
}
REALS = frozenset((b"float", b"double", b"long double"))
# what an enum's values are stored in, if BTF itself has no such integer: (bytes, signed) -> name
INTEGER_NAMES: Final = {
    (1, False): b"unsigned char", (2, False): b"unsigned short", (4, False): b"unsigned int",
    (8, False): b"unsigned long", (1, True): b"signed char", (2, True): b"short", (4, True): b"int",
    (8, True): b"long",
}  # fmt: skip


class TypeEntries:
    """The entries of the types of one BTF section.

    Args:
        checked: the types.
        strings: the bytes of .debug_str, for names that BTF does not have.
        pack: the packers of entries.
        start: where in .debug_info the first entry will be.
        parameter_names: what `prototypes` has shall have the parameters' names.
        signs_known: the kind flag of an enum says that its values are signed; else those with the top bit set are.
        base: the kernel's entries, for a module's.

    Attributes:
        places: from a type's id, the base's too, to its entry's place in .debug_info; 0 for void.
        end: where in .debug_info the next entry will be.
        prototypes: from the id of a function's type to what a function of that type has: its result's place (0: void),
            and the bytes of its parameters and of the end of its children.
    """

    def __init__(
        self,
        checked: CheckedBtf,
        strings: bytearray,
        pack: Mapping[Entry, struct.Struct],
        *,
        start: int,
        parameter_names: bool,
        signs_known: bool,
        base: TypeEntries | None = None,
    ) -> None:
        self.checked = checked
        self.pack = pack
        self.parameter_names = parameter_names
        self.signs_known = signs_known
        self._strings = strings
        self.places: list[int] = base.places[: base.checked.broken_id] if base is not None else [0]
        self.prototypes: dict[int, tuple[int, bytes]] = dict(base.prototypes) if base is not None else {}
        self._integers: dict[tuple[int, bool], int] = dict(base._integers) if base is not None else {}
        self._own_integers: list[bytes] = []
        self._char_signs = True
        found = self._find_integers()
        self.end = self._write_integers(start, found)
        self._lay_out()
        self._integers |= {key: self.places[type_id] for key, type_id in found.items()}

    def _find_integers(self) -> dict[tuple[int, bool], int]:
        """Return the ids of the integers of this section that an enum can be stored in, by (bytes, signed)."""
        checked = self.checked
        found: dict[tuple[int, bool], int] = {}
        for type_id, at in enumerate(checked.places, checked.first_id):
            if checked.kinds[type_id] == INT:
                coding = checked.words[at + 3] >> 24
                if checked.text(checked.words[at]) == b"signed char":
                    self._char_signs = bool(coding & INT_SIGNED)
                if not coding & INT_BOOL:
                    found.setdefault((checked.words[at + 2], bool(coding & INT_SIGNED)), type_id)
        return found

    def _write_integers(self, at: int, found: dict[tuple[int, bool], int]) -> int:
        """Write integers for enums that BTF has none for, and return where the next entry will be."""
        checked = self.checked
        needed = {
            (checked.words[place + 2], self._is_signed(place, checked.kinds[type_id]))
            for type_id, place in enumerate(checked.places, checked.first_id)
            if checked.kinds[type_id] in (ENUM, ENUM64)
        }
        pack = self.pack[Entry.BASE_TYPE]
        for size, signed in sorted(needed - found.keys() - self._integers.keys()):
            coding = (SIGNED if signed else UNSIGNED) + (SIGNED_CHAR - SIGNED if size == 1 else 0)
            self._own_integers.append(pack.pack(Entry.BASE_TYPE, len(self._strings), size, coding))
            self._strings += INTEGER_NAMES[size, signed] + b"\0"
            self._integers[size, signed] = at
            at += pack.size
        return at

    def _is_signed(self, at: int, kind: int) -> bool:
        words = self.checked.words
        if self.signs_known:
            return words[at + 1] >= KIND_FLAG
        each, high = (2, 1) if kind == ENUM else (3, 2)
        values = words[at + 3 + high : at + 3 + each * (words[at + 1] & VLEN_MASK) : each]
        return bool(values) and max(values) >> 31 != 0

    def _lay_out(self) -> None:
        """Find the place of each entry."""
        checked, pack, voids = self.checked, self.pack, self.checked.voids
        words, kinds = checked.words, checked.kinds
        size_of = {entry: packer.size for entry, packer in pack.items()}
        at = self.end
        places = self.places
        tags: list[int] = []
        member = size_of[Entry.MEMBER]
        nameless = size_of[Entry.MEMBER_NAMELESS] - member
        bits = size_of[Entry.MEMBER_BITS] - member
        parameter = size_of[Entry.PARAMETER]
        for type_id, place in enumerate(checked.places, checked.first_id):
            kind = kinds[type_id]
            places.append(at)
            if kind == FUNC_PROTO:
                count = words[place + 1] & VLEN_MASK
                at += 1 + size_of[Entry.PROTOTYPE_VOID if words[place + 2] in voids else Entry.PROTOTYPE]
                at += parameter * count
                if count and words[place + 2 + 2 * count] == 0:
                    at += size_of[Entry.PARAMETERS_MORE] - parameter
            elif kind == PTR:
                at += size_of[Entry.POINTER_VOID if words[place + 2] in voids else Entry.POINTER]
            elif kind in AGGREGATES:
                info = words[place + 1]
                at += 1 + size_of[AGGREGATES[kind][not words[place]]]
                count = info & VLEN_MASK
                names = words[place + 3 : place + 3 + 3 * count : 3]
                at += member * count + nameless * names.count(0)
                if info >= KIND_FLAG:
                    offsets = words[place + 5 : place + 3 + 3 * count : 3]
                    for name, offset in zip(names, offsets, strict=True):
                        if offset > MAX_BIT_OFFSET:
                            at += bits if name else -member - nameless
            elif kind in QUALIFIERS:
                at += size_of[QUALIFIERS[kind][words[place + 2] in voids]]
            elif kind == TYPEDEF:
                at += size_of[Entry.TYPEDEF_VOID if words[place + 2] in voids else Entry.TYPEDEF]
            elif kind == ARRAY:
                at += 1 + size_of[Entry.ARRAY] + size_of[Entry.SUBRANGE]
            elif kind in (ENUM, ENUM64):
                count = words[place + 1] & VLEN_MASK
                if not count:
                    at += size_of[Entry.ENUM_DECLARED]
                else:
                    at += 1 + size_of[Entry.ENUM if words[place] else Entry.ENUM_NAMELESS]
                    at += count * size_of[self._enumerator(place, kind)]
            elif kind in (INT, FLOAT):
                at += size_of[Entry.BASE_TYPE]
            elif kind == FWD:
                at += size_of[Entry.STRUCT_DECLARED]
            elif kind == TYPE_TAG:
                tags.append(type_id)
        for type_id in checked.voids:
            places[type_id] = 0
        for type_id in tags:
            target = type_id
            while target >= checked.first_id and kinds[target] == TYPE_TAG:
                target = words[checked.places[target - checked.first_id] + 2]
            places[type_id] = places[target]
        self.end = at

    def _enumerator(self, at: int, kind: int) -> Entry:
        if self._is_signed(at, kind):
            return Entry.ENUMERATOR_SIGNED
        return Entry.ENUMERATOR_4 if kind == ENUM else Entry.ENUMERATOR_8

    def write(self) -> list[bytes]:
        """Return the entries, in order."""
        checked, pack, voids, places = self.checked, self.pack, self.checked.voids, self.places
        words, kinds = checked.words, checked.kinds
        parts = self._own_integers
        append = parts.append
        parameter = pack[Entry.PARAMETER].pack
        named = pack[Entry.PARAMETER_NAMED].pack
        more = pack[Entry.PARAMETERS_MORE].pack(Entry.PARAMETERS_MORE)
        for type_id, at in enumerate(checked.places, checked.first_id):
            kind = kinds[type_id]
            if kind == FUNC_PROTO:
                result = places[words[at + 2]]
                record = words[at + 3 : at + 3 + 2 * (words[at + 1] & VLEN_MASK)]
                end = END
                if record and record[-1] == 0:
                    del record[-2:]
                    end = more + END
                children = b"".join([parameter(Entry.PARAMETER, places[target]) for target in record[1::2]]) + end
                if result:
                    append(pack[Entry.PROTOTYPE].pack(Entry.PROTOTYPE, result))
                else:
                    append(pack[Entry.PROTOTYPE_VOID].pack(Entry.PROTOTYPE_VOID))
                append(children)
                if self.parameter_names and record:
                    pairs = zip(record[0::2], record[1::2], strict=True)
                    children = (
                        b"".join([named(Entry.PARAMETER_NAMED, name, places[target]) for name, target in pairs]) + end
                    )
                self.prototypes[type_id] = (result, children)
            elif kind == PTR:
                append(self.pointer(places[words[at + 2]]))
            elif kind in AGGREGATES:
                self._write_aggregate(parts, at, kind)
            elif kind in QUALIFIERS:
                plain, void = QUALIFIERS[kind]
                target = places[words[at + 2]]
                append(pack[plain].pack(plain, target) if target else pack[void].pack(void))
            elif kind == TYPEDEF:
                if words[at + 2] in voids:
                    append(pack[Entry.TYPEDEF_VOID].pack(Entry.TYPEDEF_VOID, words[at]))
                else:
                    append(pack[Entry.TYPEDEF].pack(Entry.TYPEDEF, words[at], places[words[at + 2]]))
            elif kind == ARRAY:
                append(self.array(places[words[at + 3]], words[at + 5]))
            elif kind in (ENUM, ENUM64):
                self._write_enum(parts, at, kind)
            elif kind in (INT, FLOAT):
                coding = REAL if kind == FLOAT else self._encoding(at)
                append(pack[Entry.BASE_TYPE].pack(Entry.BASE_TYPE, words[at], words[at + 2], coding))
            elif kind == FWD:
                entry = Entry.UNION_DECLARED if words[at + 1] >= KIND_FLAG else Entry.STRUCT_DECLARED
                append(pack[entry].pack(entry, words[at]))
        return parts

    def _write_aggregate(self, parts: list[bytes], at: int, kind: int) -> None:
        words, pack, places = self.checked.words, self.pack, self.places
        append = parts.append
        plain, nameless = AGGREGATES[kind]
        if words[at]:
            append(pack[plain].pack(plain, words[at], words[at + 2]))
        else:
            append(pack[nameless].pack(nameless, words[at + 2]))
        info = words[at + 1]
        flagged = info >= KIND_FLAG
        members = words[at + 3 : at + 3 + 3 * (info & VLEN_MASK)].tolist()
        member = pack[Entry.MEMBER].pack
        for name, target, offset in zip(members[0::3], members[1::3], members[2::3], strict=True):
            if flagged and offset > MAX_BIT_OFFSET:
                if name:  # C's bit-fields without a name are padding
                    bits = pack[Entry.MEMBER_BITS]
                    append(bits.pack(Entry.MEMBER_BITS, name, places[target], offset >> 24, offset & MAX_BIT_OFFSET))
            elif name:
                append(member(Entry.MEMBER, name, places[target], offset >> 3))
            else:
                append(pack[Entry.MEMBER_NAMELESS].pack(Entry.MEMBER_NAMELESS, places[target], offset >> 3))
        append(END)

    def _write_enum(self, parts: list[bytes], at: int, kind: int) -> None:
        words, pack = self.checked.words, self.pack
        size, count = words[at + 2], words[at + 1] & VLEN_MASK
        if not count:
            parts.append(pack[Entry.ENUM_DECLARED].pack(Entry.ENUM_DECLARED, words[at], size))
            return
        storage = self._integers[size, self._is_signed(at, kind)]
        if words[at]:
            parts.append(pack[Entry.ENUM].pack(Entry.ENUM, words[at], size, storage))
        else:
            parts.append(pack[Entry.ENUM_NAMELESS].pack(Entry.ENUM_NAMELESS, size, storage))
        each = 2 if kind == ENUM else 3
        record = words[at + 3 : at + 3 + each * count].tolist()
        values = record[1::each]
        if kind == ENUM64:
            values = [low | high << 32 for low, high in zip(values, record[2::each], strict=True)]
        entry = self._enumerator(at, kind)
        packer = pack[entry].pack
        if entry == Entry.ENUMERATOR_SIGNED:
            top = 1 << (31 if kind == ENUM else 63)
            parts += [
                packer(entry, name, _sleb128((value ^ top) - top))
                for name, value in zip(record[0::each], values, strict=True)
            ]
        else:
            parts += [packer(entry, name, value) for name, value in zip(record[0::each], values, strict=True)]
        parts.append(END)

    def _encoding(self, at: int) -> int:
        """Return the DW_ATE_* of an INT."""
        words = self.checked.words
        size, coding = words[at + 2], words[at + 3] >> 24
        if coding & INT_BOOL:
            return BOOLEAN
        name = self.checked.text(words[at])
        if name in REALS:
            return REAL
        if size == 1:
            signed = coding & INT_SIGNED or name == b"signed char" or (name == b"char" and not self._char_signs)
            return SIGNED_CHAR if signed else UNSIGNED_CHAR
        return SIGNED if coding & INT_SIGNED else UNSIGNED

    def pointer(self, target: int) -> bytes:
        """Return the entry of a pointer to the type at the place `target`, 0 for void."""
        size = self.checked.pointer_size
        if target:
            return self.pack[Entry.POINTER].pack(Entry.POINTER, size, target)
        return self.pack[Entry.POINTER_VOID].pack(Entry.POINTER_VOID, size)

    def array(self, element: int, count: int | None) -> bytes:
        """Return the entry of an array of `count` elements (None: unknown) whose type is at the place `element`."""
        pack = self.pack
        if count is not None:
            bound = pack[Entry.SUBRANGE].pack(Entry.SUBRANGE, count)
        else:
            bound = pack[Entry.SUBRANGE_OPEN].pack(Entry.SUBRANGE_OPEN)
        return pack[Entry.ARRAY].pack(Entry.ARRAY, element) + bound + END


def _sleb128(value: int) -> bytes:
    """Return a signed LEB128 of SDATA_SIZE bytes."""
    groups = [value >> 7 * group & 0x7F for group in range(SDATA_SIZE)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])
