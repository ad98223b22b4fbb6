"""BTF that can be trusted: a copy of its records in which every reference leads to a type that makes sense there.

An image lies, and a debugger believes: a pointer to itself makes gdb recurse without end, a struct that contains
itself makes clang do so. What no compiler writes is taken out here, once, so that those who write DWARF need not look.
Facts: Documentation/bpf/btf.rst; the rules are those that the kernel itself asks of BTF (btf_check_all_types in
kernel/bpf/btf.c).

- A record that cannot be is replaced by an empty struct called BROKEN_NAME, and so is the type of a member, parameter
  or element that cannot have the one it claims. Each is counted in `left_out`.
- Names that are outside the strings or are missing where there must be one become BROKEN_NAME too.
- Bit-fields of a struct without the kind flag are said as with it.
"""

from __future__ import annotations

from array import array
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
    KIND_MASK,
    PTR,
    RESTRICT,
    STRUCT,
    TYPE_TAG,
    TYPEDEF,
    UNION,
    VLEN_MASK,
    VOLATILE,
    BtfData,
)

BROKEN_NAME: Final = b"broken_btf_type"
MAX_DEPTH = 64  # of pointers, qualifiers, arrays and typedefs in a row, and of structs in structs; kernels have some 10
MAX_PARAMETERS = 127  # C11 5.2.4.1 asks for no more; it bounds what a small BTF can grow to
MAX_BYTES = 0xFFFFFFFF  # of an array, as in the kernel
MAX_BIT_OFFSET = 0xFFFFFF  # of a member of a struct with the kind flag

# what has no size: no object, element, member or parameter can be of it
VOID, INCOMPLETE, NO_TYPE = -1, -2, -3
INTEGER = -1  # in `inner`: may be a bit-field's type

LINKS = frozenset((PTR, ARRAY, CONST, VOLATILE, RESTRICT, TYPEDEF, TYPE_TAG, FUNC_PROTO))
NAMED = frozenset((INT, FLOAT, TYPEDEF, FWD))
SCALAR_SIZES: Final = {
    INT: (1, 2, 4, 8, 16), FLOAT: (2, 4, 8, 10, 12, 16), ENUM: (1, 2, 4, 8), ENUM64: (1, 2, 4, 8),
}  # fmt: skip


class CheckedBtf:
    """A mended copy of one BTF section's records.

    Args:
        data: the section.
        strings: the bytes of .debug_str so far; this section's strings are put at its end.
        pointer_size: in bytes.
        base: the kernel's, for a module's split BTF.

    Raises:
        FormatError, UnsupportedError: the records cannot be told apart (see BtfData.offsets).

    Attributes:
        words: the records; names are offsets in .debug_str.
        places: where in `words` each record is, by id minus `first_id`; at the end the broken type, if it is needed.
        kinds: the kind of each id, the base's too; 0 is void.
        sizes: bytes of each id, the base's too, or VOID, INCOMPLETE, NO_TYPE.
        voids: ids that mean void.
        left_out: how many records and references made no sense.
    """

    def __init__(self, data: BtfData, strings: bytearray, pointer_size: int, base: CheckedBtf | None = None) -> None:
        self.base = base
        self.first_id = data.first_id
        self.places = list(data.offsets)
        self.words = array("I", bytes(memoryview(data.words)))
        self.pointer_size = pointer_size
        self.left_out = 0
        self.broken_id = self.first_id + len(self.places)
        self.string_base = data.string_base
        self.string_place = len(strings)
        strings += data.strings
        self.broken_name: int = base.broken_name if base is not None else len(strings)
        if base is None:
            strings += BROKEN_NAME + b"\0"
        self._strings = strings
        words = self.words
        kinds = bytearray(words[at + 1] >> 24 & KIND_MASK for at in self.places)
        self.kinds: bytearray = (base.kinds[:-1] if base is not None else bytearray(1)) + kinds + bytes((STRUCT,))
        unknown = len(self.places)
        self.sizes: list[int] = (base.sizes[:-1] if base is not None else [VOID]) + [NO_TYPE] * unknown + [0]
        self._inner: list[int] = (base._inner[:-1] if base is not None else [0]) + [0] * unknown + [0]
        self._odd: dict[int, tuple[int, int]] = dict(base._odd) if base is not None else {}
        self.voids: set[int] = set(base.voids) if base is not None else {0}
        self.places.append(len(words))
        words.extend((self.broken_name, STRUCT << 24, 0))
        self._check_names()
        links, structs = self._check_scalars()
        self._check_links(links)
        self._check_nesting(structs)
        for type_id in structs:
            self._check_members(type_id)
        if not self.left_out:
            self.places.pop()

    def _check_names(self) -> None:
        """Make every name an offset in .debug_str."""
        words, strings, name = self.words, self._strings, self._name
        plain = self.base is None
        for number, at in enumerate(self.places[:-1]):
            offset = words[at]
            if not plain or offset >= self.broken_name or (offset and not strings[offset]):
                words[at] = name(offset)
            kind = self.kinds[self.first_id + number]
            if kind in (STRUCT, UNION):
                each = 3
            elif kind in (ENUM, FUNC_PROTO):
                each = 2
            elif kind == ENUM64:
                each = 3
            else:
                continue
            start, end = at + 3, at + 3 + each * (words[at + 1] & VLEN_MASK)
            names = words[start:end:each]
            if names and (not plain or max(names) >= self.broken_name or not all(strings[i] for i in names if i)):
                words[start:end:each] = array("I", map(name, names))
            if kind in (ENUM, ENUM64) and 0 in names:
                words[start:end:each] = array("I", [i or self.broken_name for i in words[start:end:each]])

    def _name(self, offset: int) -> int:
        """Return the offset in .debug_str of what BTF calls a name, 0 for none."""
        if offset == 0:
            return 0
        if offset < self.string_base and self.base is not None:
            return self.base._name(offset)
        place = offset - self.string_base + self.string_place
        end = self.broken_name if self.base is None else len(self._strings)
        if place >= end:
            self.left_out += 1
            return self.broken_name
        return place if self._strings[place] else 0

    def _break(self, type_id: int) -> None:
        """Replace a record by the broken type."""
        at = self.places[type_id - self.first_id]
        self.words[at], self.words[at + 1], self.words[at + 2] = self.broken_name, STRUCT << 24, 0
        self.kinds[type_id] = STRUCT
        self.sizes[type_id] = 0
        self._inner[type_id] = 0
        self.left_out += 1

    def _check_scalars(self) -> tuple[list[int], list[int]]:
        """Check what refers to nothing, and return the ids of links, and of structs and unions."""
        words, kinds, sizes, inner = self.words, self.kinds, self.sizes, self._inner
        links: list[int] = []
        structs: list[int] = []
        for type_id, at in enumerate(self.places[:-1], self.first_id):
            kind = kinds[type_id]
            if kind in NAMED and not words[at]:
                self._break(type_id)
            elif kind in LINKS:
                links.append(type_id)
            elif kind in (STRUCT, UNION):
                sizes[type_id] = words[at + 2]
                inner[type_id] = type_id
                structs.append(type_id)
            elif kind in SCALAR_SIZES:
                size = sizes[type_id] = words[at + 2]
                inner[type_id] = 0 if kind == FLOAT else INTEGER
                if size not in SCALAR_SIZES[kind]:
                    self._break(type_id)
                elif kind == INT:
                    bits, first = words[at + 3] & 0xFF, words[at + 3] >> 16 & 0xFF
                    if bits != 8 * size:
                        self._odd[type_id] = (first, bits)
            elif kind == FWD:
                sizes[type_id] = INCOMPLETE
        return links, structs

    def _check_links(self, links: list[int]) -> None:
        """Check what refers to one or more types: each must lead to other records in at most MAX_DEPTH steps."""
        known = bytearray(b"\1") * len(self.sizes)
        for type_id in links:
            known[type_id] = 0
        for _ in range(MAX_DEPTH):
            waiting = []
            for type_id in links:
                try:
                    found = self._check_link(type_id, known)
                except IndexError:
                    self._mend_references(type_id)
                    found = self._check_link(type_id, known)
                if found:
                    known[type_id] = 1
                else:
                    waiting.append(type_id)
            if not waiting:
                return
            links = waiting
        for type_id in links:
            self._break(type_id)

    def _check_link(self, type_id: int, known: bytearray) -> bool:
        """Settle a link whose targets are settled, and return whether they are. Raises IndexError: dangling."""
        words, sizes = self.words, self.sizes
        at = self.places[type_id - self.first_id]
        target = words[at + 2]
        kind = self.kinds[type_id]
        if kind == FUNC_PROTO:
            return self._check_prototype(type_id, at, known)
        if kind == ARRAY:
            target, count = words[at + 3], words[at + 5]
            if not known[target]:
                return False
            size = sizes[target]
            if size < 0 or size * count > MAX_BYTES:
                self._break(type_id)
                return True
            sizes[type_id] = size * count
            self._inner[type_id] = max(self._inner[target], 0)
            return True
        if not known[target]:
            return False
        size = sizes[target]
        if size == NO_TYPE:
            self._break(type_id)
        elif kind == PTR:
            sizes[type_id] = self.pointer_size
        else:
            sizes[type_id] = size
            self._inner[type_id] = self._inner[target]
            if target in self._odd:
                self._odd[type_id] = self._odd[target]
            if kind == TYPE_TAG and target in self.voids:
                self.voids.add(type_id)
        return True

    def _check_prototype(self, type_id: int, at: int, known: bytearray) -> bool:
        words, sizes = self.words, self.sizes
        count = words[at + 1] & VLEN_MASK
        if count > MAX_PARAMETERS:
            self._break(type_id)
            return True
        result = words[at + 2]
        if not known[result]:
            return False
        if count and words[at + 2 + 2 * count] == 0:
            count -= 1  # "..."
        parameters = words[at + 4 : at + 3 + 2 * count : 2]
        if not all(map(known.__getitem__, parameters)):
            return False
        if sizes[result] < VOID:
            words[at + 2] = self._dangling()
        if parameters and min([sizes[parameter] for parameter in parameters]) < 0:
            for where, parameter in enumerate(parameters):
                if sizes[parameter] < 0:
                    words[at + 4 + 2 * where] = self._dangling()
        sizes[type_id] = INCOMPLETE
        return True

    def _dangling(self) -> int:
        """Return what a reference that makes no sense is replaced by, and count it."""
        self.left_out += 1
        return self.broken_id

    def _mend_references(self, type_id: int) -> None:
        """Replace references to ids that do not exist."""
        words = self.words
        at = self.places[type_id - self.first_id]
        kind = self.kinds[type_id]
        if kind in (STRUCT, UNION):
            places = range(at + 4, at + 3 + 3 * (words[at + 1] & VLEN_MASK), 3)
        elif kind == FUNC_PROTO:
            places = range(at + 2, at + 3 + 2 * (words[at + 1] & VLEN_MASK), 2)
        else:
            places = range(at + 3, at + 4) if kind == ARRAY else range(at + 2, at + 3)
        for place in places:
            if words[place] >= self.broken_id:
                words[place] = self._dangling()

    def _check_nesting(self, structs: list[int]) -> None:
        """Take out members by which a struct contains itself, or structs nest deeper than MAX_DEPTH."""
        words, inner, first = self.words, self._inner, self.first_id
        contained: dict[int, set[int]] = {}
        for type_id in structs:
            at = self.places[type_id - first]
            targets = words[at + 4 : at + 3 + 3 * (words[at + 1] & VLEN_MASK) : 3]
            if targets and max(targets) >= self.broken_id:
                self._mend_references(type_id)
                targets = words[at + 4 : at + 3 + 3 * (words[at + 1] & VLEN_MASK) : 3]
            found = {inner[target] for target in targets}
            contained[type_id] = {struct for struct in found if struct >= first}
        for _ in range(MAX_DEPTH):
            settled = {type_id for type_id, structs_inside in contained.items() if not structs_inside}
            contained = {
                type_id: structs_inside - settled
                for type_id, structs_inside in contained.items()
                if type_id not in settled
            }
            if not contained:
                return
        for type_id, bad in contained.items():
            at = self.places[type_id - first]
            for place in range(at + 4, at + 3 + 3 * (words[at + 1] & VLEN_MASK), 3):
                if inner[words[place]] in bad:
                    words[place] = self._dangling()

    def _check_members(self, type_id: int) -> None:
        """Check that members lie inside their struct and are objects, and bit-fields integers."""
        words, sizes, inner, odd = self.words, self.sizes, self._inner, self._odd
        at = self.places[type_id - self.first_id]
        info = words[at + 1]
        limit = 8 * words[at + 2]
        places = range(at + 3, at + 3 + 3 * (info & VLEN_MASK), 3)
        if odd and info < KIND_FLAG and any(words[place + 1] in odd for place in places):
            self._say_bits(at, places)
            info = words[at + 1]
        flagged = info >= KIND_FLAG
        for place in places:
            target, offset = words[place + 1], words[place + 2]
            size = sizes[target]
            bits = 0
            if flagged:
                bits, offset = offset >> 24, offset & MAX_BIT_OFFSET
            if bits:
                good = bits <= 8 * size and offset + bits <= limit and inner[target] == INTEGER
            else:
                good = size >= 0 and offset & 7 == 0 and offset + 8 * size <= limit
            if not good:
                words[place + 1] = self._dangling()
                words[place + 2] = min(offset & ~7, limit & ~7)

    def _say_bits(self, at: int, places: range) -> None:
        """Write the offsets of a struct whose integers have fewer bits than their bytes as with the kind flag."""
        words = self.words
        words[at + 1] |= KIND_FLAG
        for place in places:
            first, bits = self._odd.get(words[place + 1], (0, 0))
            offset = words[place + 2] + first
            if offset > MAX_BIT_OFFSET:
                words[place + 1], offset, bits = self._dangling(), 0, 0
            words[place + 2] = bits << 24 | offset

    def text(self, name: int) -> bytes:
        """Return the string at a place in .debug_str."""
        return bytes(self._strings[name : self._strings.find(b"\0", name)])
