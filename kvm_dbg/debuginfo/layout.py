"""Types from a layout file: JSON with the sizes and members of structs, for kernels without debug information.

The format is described in docs/layout-files.md; `layout_file` checks it. What a file does not define is known by what
it is called and how large it is:
- Integers of C, of <stdint.h> and of BSD's <sys/types.h> are what they are called.
- NAME_t, undefined, is the struct NAME that is defined and has the same size.
- Every other undefined typedef of 1, 2, 4 or 8 bytes is an unsigned number, or a signed one where POSIX's and BSD's
  <sys/types.h> make it one (pid_t, off_t, time_t, ...); of other sizes it is bytes whose inside is not known.
"""

from __future__ import annotations

import os
import re
from functools import partial

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
    size_of,
)
from kvm_dbg.debuginfo.c_integer import SAME
from kvm_dbg.debuginfo.c_type import ANONYMOUS, FUNCTION, KEYWORDS, POINTER, CType, parse_c_type
from kvm_dbg.debuginfo.layout_file import Entry, LayoutFile, Place, read_layout_file

INT_SIZES = (1, 2, 4, 8)  # of undefined typedefs that count as numbers
FLOATS = {"float": 4, "double": 8, "long double": 0}  # 0: as large as the member
WORD = 0  # a size: as large as a pointer
SIZES_OF_SAME = (1, 1, 2, 2, 4, 4, WORD, WORD, 8, 8, 1)  # of the integers of SAME, in their order
C_INTEGERS = {
    name: (size, "unsigned" not in names[0] and names[0] != "_Bool")
    for names, size in zip(SAME, SIZES_OF_SAME, strict=True)
    for name in names
} | {"__int128": (16, True), "unsigned __int128": (16, False)}
BSD_INTEGERS = {
    "u_char": (1, False), "u_short": (2, False), "u_int": (4, False), "u_long": (WORD, False), "ushort": (2, False),
    "uint": (4, False), "ulong": (WORD, False), "quad_t": (8, True), "u_quad_t": (8, False), "size_t": (WORD, False),
    "ssize_t": (WORD, True), "intptr_t": (WORD, True), "uintptr_t": (WORD, False), "intmax_t": (8, True),
    "uintmax_t": (8, False),
}  # fmt: skip
SIGNED = frozenset((
    "blkcnt_t", "blksize_t", "daddr_t", "lwpid_t", "off_t", "pid_t", "pri_t", "psetid_t", "register_t", "sbintime_t",
    "segsz_t", "suseconds_t", "time_t", "vm_ooffset_t", "voff_t",
))  # fmt: skip
_EXACT = re.compile(r"(u_?)?int(8|16|32|64)_t")

_VOID = VoidType()


class LayoutTypes(TypeTable):
    """The types of one layout file.

    Args:
        file: what `read_layout_file` returned.
        pointer_size: in bytes, for files that neither say nor show it.
    """

    def __init__(self, file: LayoutFile, *, pointer_size: int = 8) -> None:
        self.file = file
        self.source = f"layout file {file.path}"
        self.pointer_size = file.pointer_size or self._seen_pointer_size() or pointer_size
        self._types: dict[str, Type] = {}
        self._seen: dict[str, int] | None = None  # typedefs that members have -> size in bytes

    def _seen_pointer_size(self) -> int:
        """Return the size of the first member that is a pointer, 0 if there is none. All others must agree with it."""
        for struct in self.file.for_each_struct():
            for row in struct.members:
                text = row.text
                if "*" in text and "[" not in text and row.size in (4, 8):
                    return row.size
        return 0

    def find_type(self, name: str) -> Type | None:
        if name not in self._types:
            found = self._look_up(name)
            if found is None:
                return None
            self._types[name] = found
        return self._types[name]

    def _look_up(self, name: str) -> Type | None:
        keyword, _, tag = name.partition(" ")
        if keyword in KEYWORDS and tag:
            return self._tagged(keyword, tag)
        if name in self.file.entries or f"typedef {name}" in self.file.entries:
            return self._typedef(name, 0, None)
        if name == "void":
            return _VOID
        known = self._number(name, 0)
        if known is not None:
            return known
        size = self._sizes_seen().get(name)
        return self._typedef(name, size, None) if size else None

    def find_enumerator(self, name: str) -> int | None:
        return self.file.enumerators.get(name)

    def _tagged(self, keyword: str, tag: str) -> Type | None:
        for key in (f"{keyword} {tag}", tag):
            entry = self.file.entries.get(key)
            if entry is not None and entry.keyword == keyword:
                return self._entry(key, tag)
        return None

    def _entry(self, key: str, name: str) -> Type:
        """Return the struct, union or enum that the file has at `key`."""
        found = self._types.get(f"= {key}")
        if found is None:
            found = self._types[f"= {key}"] = self._defined(key, name)
        return found

    def _defined(self, key: str, name: str) -> Type:
        entry = self.file.entries[key]
        if entry.keyword == "enum":
            values = tuple(Enumerator(*item) for item in entry.enumerators.items())
            return EnumType(name, entry.size, signed=any(v < 0 for _, v in values), enumerators=lambda: values)
        if entry.keyword == "typedef":
            return TypedefType(name, partial(self._from_text, entry.text, entry.size, entry.place, None))
        return StructType(entry.keyword, name, entry.size, partial(self._members, entry))

    def _members(self, entry: Entry) -> tuple[Member, ...]:
        return tuple(
            Member(
                row.name, row.start, row.bit_size, partial(self._from_text, row.text, row.size, row.place, row.inside)
            )
            for row in entry.members
        )

    # from text

    def _from_text(self, text: str, size: int | None, place: Place, inside: Entry | None) -> Type:
        """Return the type that a C text names; `size` in bytes is what the file says of it.

        Raises:
            FormatError: it is no C type, or of another size than the file says.
        """
        try:
            return self._derive(parse_c_type(text), size, place, inside)
        except ValueError as error:
            raise self.file.wrong(place, "type", str(error)) from error

    def _derive(self, parsed: CType, size: int | None, place: Place, inside: Entry | None) -> Type:
        if not parsed.steps:
            return self._base(parsed.base, size, place, inside)
        *inner, last = parsed.steps
        rest = CType(parsed.base, tuple(inner))
        if last == POINTER:
            if size is not None and size != self.pointer_size:
                raise ValueError(f"a pointer of {size} bytes, where others have {self.pointer_size}")
            return PointerType(self.pointer_size, partial(self._resolve, rest, None, place, inside))
        if last == FUNCTION:
            return FunctionType("", 0)
        count = int(last)
        if size is None or not count:
            if size:
                raise ValueError(f"an array without elements of {size} bytes")
            return ArrayType(count, partial(self._resolve, rest, None, place, inside))
        if size % count:
            raise ValueError(f"{count} elements cannot have {size} bytes together")
        element = self._derive(rest, size // count, place, inside)
        return ArrayType(count, lambda: element)

    def _resolve(self, parsed: CType, size: int | None, place: Place, inside: Entry | None) -> Type:
        try:
            return self._derive(parsed, size, place, inside)
        except ValueError as error:
            raise self.file.wrong(place, "type", str(error)) from error

    def _base(self, name: str, size: int | None, place: Place, inside: Entry | None) -> Type:
        keyword, _, tag = name.partition(" ")
        found: Type | None
        if keyword in KEYWORDS:
            if tag == ANONYMOUS:
                return self._anonymous(keyword, size, inside)
            found = self._tagged(keyword, tag) or _opaque(keyword, tag, size or 0)
        elif name == "void":
            found = _VOID
        else:
            found = self._number(name, size or 0) or self._typedef(name, size, place)
        entry = self.file.entries.get(f"typedef {name}")
        known = entry.size if entry is not None else size_of(found)
        if size is not None and known != size:
            raise ValueError(f"{name} has {known} bytes, not {size}")
        return found

    def _anonymous(self, keyword: str, size: int | None, inside: Entry | None) -> Type:
        if inside is None:
            return _opaque(keyword, "", size or 0)
        if size is not None and size != inside.size:
            raise ValueError(f"its members need {inside.size} bytes, not {size}")
        return StructType(keyword, "", inside.size, partial(self._members, inside))

    def _number(self, name: str, size: int) -> Type | None:
        """Return the number that C, <stdint.h> or BSD's <sys/types.h> call `name`; `size` where the name has none."""
        if name in FLOATS:
            return FloatType(name, FLOATS[name] or size or 2 * self.pointer_size)
        if name in ("char", "signed char", "unsigned char"):
            signed = self.file.char_signed if name == "char" else name == "signed char"
            return IntType(name, 1, signed=signed, is_char=True)
        known = C_INTEGERS.get(name)
        if known is None and f"typedef {name}" not in self.file.entries:
            plain = name.lstrip("_")
            exact = _EXACT.fullmatch(plain)
            known = (int(exact[2]) // 8, not exact[1]) if exact is not None else BSD_INTEGERS.get(plain)
        if known is None:
            return None
        return IntType(name, known[0] or self.pointer_size, signed=known[1], is_bool=name in ("_Bool", "bool"))

    def _typedef(self, name: str, size: int | None, place: Place | None) -> Type:
        entries = self.file.entries
        key = f"typedef {name}"
        if key in entries:
            found = self._entry(key, name)
            return found if isinstance(found, TypedefType) else TypedefType(name, lambda: found)
        if name in entries:  # of an anonymous struct, or of one with the same name
            return self._entry(name, name)
        if size is None and place is not None:
            size = self._sizes_seen().get(name)
        tag = name.removesuffix("_t")
        if size and tag != name and tag in entries and entries[tag].size == size:
            return TypedefType(name, partial(self._entry, tag, tag))
        if size in INT_SIZES:
            return IntType(name, size or 0, signed=name.lstrip("_") in SIGNED)
        return TypedefType(name, partial(_opaque, "struct", "", size or 0))

    def _sizes_seen(self) -> dict[str, int]:
        """Return the sizes in bytes of typedefs that are not defined, as members show them.

        Raises:
            FormatError: two members of one type have different sizes.
        """
        if self._seen is None:
            seen: dict[str, int] = {}
            for struct in self.file.for_each_struct():
                for row in struct.members:
                    name, size = self._seen_in(row.text, row.size, row.place)
                    if size and seen.setdefault(name, size) != size:
                        raise self.file.wrong(row.place, "size", f"{name} has {seen[name]} bytes elsewhere, not {size}")
            self._seen = seen
        return self._seen

    def _seen_in(self, text: str, size: int, place: Place) -> tuple[str, int]:
        try:
            base, steps = parse_c_type(text)
        except ValueError as error:
            raise self.file.wrong(place, "type", str(error)) from error
        for step in reversed(steps):
            if not isinstance(step, int) or not step or size % step:
                return base, 0
            size //= step
        return base, 0 if " " in base else size


def _opaque(keyword: str, name: str, size: int) -> Type:
    """Return a type of which nothing but the size is known."""
    if keyword == "enum":
        return EnumType(name, size, signed=False, enumerators=tuple)
    return StructType(keyword, name, size, tuple)


def open_layout(path: str | os.PathLike[str], *, pointer_size: int = 8) -> LayoutTypes:
    """Read the layout file `path`.

    Raises:
        FileAccessError: missing, no permission, no regular file.
        FormatError: not a layout file; names the place.
    """
    return LayoutTypes(read_layout_file(path), pointer_size=pointer_size)
