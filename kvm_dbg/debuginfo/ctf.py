"""Types from CTF, which kernel files of FreeBSD, NetBSD and illumos have in them; the bytes are `ctf_data`'s business.

Facts: as in `ctf_data`, and libctf (cddl/contrib/opensolaris/common/ctf/ctf_open.c):
- A bit-field is a member whose INTEGER has fewer bits than its bytes; the encoding's offset is added to the member's.
- A FORWARD's `ctt_type` is the kind of its tag, 0 for a struct.
- void is an INTEGER without bytes.
- CTF does not say how large a pointer is: the ELF file's class does.
- The types of data symbols follow each other in the order of the ELF symbol table, a 0 where there is none. Functions
  have an info word, 0 where there is none, a return type and arguments; a last argument 0 says that there may be more.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cached_property, partial
from typing import NamedTuple

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
from kvm_dbg.debuginfo.ctf_data import (
    ARRAY,
    CONST,
    ENUM,
    FLOAT,
    FORWARD,
    FUNCTION,
    INTEGER,
    POINTER,
    RESTRICT,
    STRUCT,
    TYPEDEF,
    UNION,
    UNKNOWN,
    VOLATILE,
    CtfData,
    Record,
)
from kvm_dbg.debuginfo.ctf_symbol import STT_FUNC, STT_OBJECT, find_symbol_names, find_symbol_strings
from kvm_dbg.elf import ElfFile
from kvm_dbg.errors import FormatError, TypeNotFound

SECTION = ".SUNW_ctf"
MAX_CHAIN = 64  # qualifiers or typedefs one after another
MAX_BITS = 1 << 40  # a member's offset
QUALIFIERS = frozenset((VOLATILE, CONST, RESTRICT))
PREFIXES = {STRUCT: "struct ", UNION: "union ", ENUM: "enum ", TYPEDEF: "", INTEGER: "", FLOAT: ""}
INT_SIGNED, INT_CHAR, INT_BOOL = 1, 2, 4  # of an encoding, its bits 24 to 31

_VOID = VoidType()


class Signature(NamedTuple):
    """A function: what it returns and takes, and whether more arguments may follow."""

    returns: Type
    arguments: tuple[Type, ...]
    variadic: bool


class CtfTypes(TypeTable):
    """The types of one CTF section.

    Args:
        data: its bytes.
        pointer_size: in bytes.
        elf: the file that it is in, whose symbols data and functions are found by; None for neither.
        parent: the kernel's types, for a module's.
        source: names it for people.
    """

    def __init__(
        self,
        data: CtfData,
        *,
        pointer_size: int,
        elf: ElfFile | None = None,
        parent: CtfTypes | None = None,
        source: str = "CTF",
    ) -> None:
        self.data = data
        self.pointer_size = pointer_size
        self.parent = parent
        self.source = source
        self._elf = elf
        self._types: dict[int, Type] = {}

    # by name

    @cached_property
    def _names(self) -> dict[str, int]:
        """Return the number of each type that has a name, as C spells it; declarations do not count."""
        found: dict[str, int] = {}
        clones: dict[str, int] = {}
        for number in range(1, len(self.data.offsets) + 1):
            record = self.data.record(number)
            prefix = PREFIXES.get(record.kind)
            if prefix is None or not record.name:
                continue
            name = prefix + self.data.name(record.name)
            if record.kind == INTEGER and self._encoding(record)[2] != 8 * record.value:
                clones.setdefault(name, number)  # of a bit-field
            else:
                found.setdefault(name, number)
        return clones | found

    @cached_property
    def _enumerators(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for number in range(1, len(self.data.offsets) + 1):
            record = self.data.record(number)
            if record.kind == ENUM:
                for enumerator in self._values(record):
                    found.setdefault(enumerator.name, enumerator.value)
        return found

    def find_type(self, name: str) -> Type | None:
        number = next((self._names[text] for text in (name, *other_spellings(name)) if text in self._names), None)
        if number is not None:
            return self._own(number)
        if name == "void":
            return _VOID
        return self.parent.find_type(name) if self.parent is not None else None

    def find_enumerator(self, name: str) -> int | None:
        value = self._enumerators.get(name)
        return self.parent.find_enumerator(name) if value is None and self.parent is not None else value

    # by symbol

    def find_variable(self, name: str) -> Type | None:
        """Return the type of the data symbol `name`. Raises FormatError."""
        number = self._objects.get(name, 0)
        return self.type_by_id(number) if number else None

    def find_function(self, name: str) -> Signature | None:
        """Return what the function `name` returns and takes. Raises FormatError."""
        at = self._functions.get(name)
        if at is None:
            return None
        form = self.data.form
        info, returns = self.data.unpack(2 * form.number, at)
        count = info & form.vlen_mask
        numbers = self.data.unpack(f"{count + 2}{form.number}", at)[2:]
        variadic = numbers[-1:] == (0,)
        arguments = tuple(map(self.type_by_id, numbers[: len(numbers) - variadic]))
        return Signature(self.type_by_id(returns), arguments, variadic)

    @cached_property
    def _objects(self) -> dict[str, int]:
        """Return the number of the type of each data symbol that has one."""
        header, code = self.data.header, self.data.form.number
        size = 2 if code == "H" else 4
        count = (header.functions - header.objects) // size
        numbers = self.data.unpack(f"{count}{code}", header.objects) if count else ()
        names = find_symbol_names(self._elf, STT_OBJECT) if self._elf is not None else ()
        found: dict[str, int] = {}
        for name, number in zip(names, numbers, strict=False):  # zeros fill the section up
            if number:
                found.setdefault(name, number)
        return found

    @cached_property
    def _functions(self) -> dict[str, int]:
        """Return where in the body each function is that has types."""
        form, header = self.data.form, self.data.header
        size = 2 if form.number == "H" else 4
        at, end = header.functions, header.types
        found: dict[str, int] = {}
        for name in find_symbol_names(self._elf, STT_FUNC) if self._elf is not None else ():
            if at + size > end:
                break
            (info,) = self.data.unpack(form.number, at)
            if not info:
                at += size
                continue
            after = at + size * ((info & form.vlen_mask) + 2)
            if info >> form.kind_shift != FUNCTION or after > end:
                raise self.data.wrong(at, "cth_funcoff", f"{info:#x} of {name} is no function, or one that is cut off")
            found.setdefault(name, at)
            at = after
        return found

    # by number

    def type_by_id(self, type_id: int) -> Type:
        """Return the type with a number, behind its qualifiers.

        Raises:
            FormatError: no type has it.
            TypeNotFound: it is the parent's, which is not known.
        """
        if type_id == 0:
            return _VOID
        child = self.data.form.child
        if self.data.is_child and not type_id & child:
            if self.parent is None:
                name = self.data.parent_name
                raise TypeNotFound(name, f"{self.source} needs the types of {name!r}, which are not open")
            return self.parent.type_by_id(type_id)
        return self._own(type_id & ~child)

    def _own(self, number: int) -> Type:
        found = self._types.get(number)
        if found is None:
            found = self._types[number] = self._make(number)
        return found

    def _make(self, number: int) -> Type:
        record = self.data.record(number)
        for _ in range(MAX_CHAIN):
            if record.kind not in QUALIFIERS:
                break
            if record.value == 0:
                return _VOID
            if self.data.is_child and not record.value & self.data.form.child:
                return self.type_by_id(record.value)
            record = self.data.record(record.value)
        else:
            raise self.data.wrong(record.at, "ctt_type", f"more than {MAX_CHAIN} qualifiers in a row")
        return self._from_record(record)

    def _from_record(self, record: Record) -> Type:
        data, kind = self.data, record.kind
        if kind == POINTER:
            return PointerType(self.pointer_size, partial(self.type_by_id, record.value))
        name = data.name(record.name)
        if kind in (STRUCT, UNION):
            return StructType(PREFIXES[kind].rstrip(), name, record.value, partial(self._members, record))
        if kind == INTEGER:
            if not record.value:
                return _VOID
            coding = self._encoding(record)[0]
            is_char = bool(coding & INT_CHAR) or name in ("char", "signed char", "unsigned char")
            is_bool = bool(coding & INT_BOOL)
            return IntType(name, record.value, signed=bool(coding & INT_SIGNED), is_bool=is_bool, is_char=is_char)
        if kind == FLOAT:
            return FloatType(name, record.value)
        if kind == ARRAY:
            element, _, count = data.unpack(data.form.array, record.at)
            return ArrayType(count, partial(self.type_by_id, element))
        if kind == ENUM:
            values = self._values(record)
            signed = any(value < 0 for _, value in values)
            return EnumType(name, record.value, signed=signed, enumerators=lambda: values)
        if kind == TYPEDEF:
            return TypedefType(name, partial(self.type_by_id, record.value))
        if kind == FORWARD:  # the struct itself may be known all the same
            keyword = PREFIXES.get(record.value, "struct ").rstrip() or "struct"
            return (self.find_type(f"{keyword} {name}") if name else None) or StructType(keyword, name, 0, tuple)
        if kind == FUNCTION:
            return FunctionType(name, 0)
        raise self._no_type(record)

    def _no_type(self, record: Record) -> FormatError:
        what = "a type of an unknown kind" if record.kind == UNKNOWN else f"kind {record.kind}"
        return self.data.wrong(record.at, "ctt_info", f"{what} is no type of data")

    def _encoding(self, record: Record) -> tuple[int, int, int]:
        """Return how an integer is coded, where its bits start in it, and how many there are."""
        (word,) = self.data.unpack("I", record.at)
        return word >> 24, word >> 16 & 0xFF, word & 0xFFFF

    def _values(self, record: Record) -> tuple[Enumerator, ...]:
        rows = struct.Struct(self.data.order + "Ii").iter_unpack(
            self.data.body[record.at : record.at + 8 * record.vlen]
        )
        return tuple(Enumerator(self.data.name(name), value) for name, value in rows)

    def _members(self, record: Record) -> tuple[Member, ...]:
        found = []
        parser = self.data.member(record)
        for number in range(record.vlen):
            at = record.at + number * parser.size
            name, type_id, *halves = parser.unpack_from(self.data.body, at)
            offset = halves[0] if len(halves) == 1 else halves[0] << 32 | halves[1]
            if offset > MAX_BITS:
                raise self.data.wrong(at, "ctlm_offsethi", f"a member at bit {offset:#x}")
            start, bits = self._bit_field(type_id)
            found.append(Member(self.data.name(name), offset + start, bits, partial(self.type_by_id, type_id)))
        return tuple(found)

    def _bit_field(self, type_id: int) -> tuple[int, int]:
        """Return (first bit, number of bits) of a member's type if that is a bit-field's, else (0, 0)."""
        child = self.data.form.child
        for _ in range(MAX_CHAIN):
            if type_id == 0:
                return 0, 0
            if self.data.is_child and not type_id & child:
                return self.parent._bit_field(type_id) if self.parent is not None else (0, 0)
            record = self.data.record(type_id)
            if record.kind == INTEGER:
                _, first, bits = self._encoding(record)
                return (first, bits) if 0 < bits < 8 * record.value else (0, 0)
            if record.kind not in QUALIFIERS and record.kind != TYPEDEF:
                return 0, 0
            type_id = record.value
        raise self.data.wrong(self.data.header.types, "ctt_type", f"more than {MAX_CHAIN} typedefs in a row")

    def for_each_name(self) -> Iterator[str]:
        yield from self._names


def open_ctf(elf: ElfFile, *, parent: CtfTypes | None = None) -> CtfTypes | None:
    """Return the types of a kernel's or module's file, None if it has no CTF.

    Args:
        elf: the file; it must stay open.
        parent: the kernel's types, for a module.

    Raises:
        FormatError, UnsupportedError: see `CtfData`.
    """
    section = elf.find_section(SECTION)
    if section is None or not section.size:
        return None
    view = elf.section_data(section)
    strings = find_symbol_strings(elf, section)
    data = CtfData(view, elf.path, offset=section.offset, strings=strings)
    source = f"CTF of {elf.path}"
    return CtfTypes(data, pointer_size=elf.header.word_bits // 8, elf=elf, parent=parent, source=source)
