"""The bytes of CTF, the Compact C Type Format of illumos, FreeBSD and NetBSD: header, strings, records of types.

Facts: FreeBSD's sys/sys/ctf.h (versions 2 and 3: `ctf_header`, `ctf_stype_v2`, `ctf_type_v3`, `ctf_lmember_v2`, ...),
with which NetBSD's external/cddl/osnet/dist/uts/common/sys/ctf.h agrees in version 2; the manual page ctf(5); and
cddl/contrib/opensolaris/tools/ctf/cvt/ctf.c, which writes it.
- A header of 36 bytes; the offsets in it count from its end. What follows it, labels, types of data symbols, types of
  functions, types and strings in this order, may be one zlib stream of stroff + strlen bytes (CTF_F_COMPRESS).
- A record is a name, a word `info` (kind, whether it is a root, vlen) and a size or a type's number. A size that does
  not fit is 0xffff (version 3: 0xffffffff), and 64 bits more follow. vlen counts what follows the record.
- Members of large structs (8 KiB; version 3: 512 MiB) have offsets of 64 bits.
- Version 2 pads the arguments of a function to a multiple of four bytes.
- The top bit of a name says that it is in the string table of the ELF file.
- Types are numbered from 1; those of a file with a parent (a module) have the top bit of a number set.
GNU's CTF (section .ctf, magic 0xdff2) is another format.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from kvm_dbg.errors import FormatError, UnsupportedError

Buffer = bytes | memoryview

MAGIC, GNU_MAGIC = 0xCFF1, 0xDFF2
FLAG_COMPRESS = 1
HEADER_SIZE = 36
(
    UNKNOWN, INTEGER, FLOAT, POINTER, ARRAY, FUNCTION, STRUCT, UNION, ENUM, FORWARD, TYPEDEF, VOLATILE, CONST, RESTRICT,
) = range(14)  # fmt: skip
EXTERNAL = 1 << 31  # of a name: it is in the ELF file's strings
MAX_BODY = 1 << 28  # bytes, decompressed
MAX_TYPES = 1 << 22


class Form(NamedTuple):
    """What differs between the versions; codes are struct's, sizes in bytes."""

    record: str  # name, info, size or type
    number: str  # a type's number
    member: str  # name, type, offset in bits
    large_member: str  # name, type, offset's upper and lower half
    array: str  # type of the elements, of the index, count
    kind_shift: int
    vlen_mask: int
    large_size: int  # that says: the size follows
    large_struct: int  # bytes, from which on members are large
    child: int  # the bit of a number that says: a type of this file, which has a parent


FORMS = {
    2: Form("IHH", "H", "IHH", "IHxxII", "HHI", 11, 0x3FF, 0xFFFF, 1 << 13, 1 << 15),
    3: Form("III", "I", "III", "IIII", "III", 26, 0xFFFFFF, 0xFFFFFFFF, 1 << 29, 1 << 31),
}


class Header(NamedTuple):
    """`ctf_header` behind its preamble: two names, and offsets and sizes in bytes."""

    parent_label: int
    parent_name: int
    labels: int
    objects: int
    functions: int
    types: int
    strings: int
    strings_size: int


class Record(NamedTuple):
    """One type: `value` is its size in bytes, or the number of the type it refers to; `at`: where its rest starts."""

    kind: int
    vlen: int
    name: int
    value: int
    at: int


class CtfData:
    """The CTF of one file.

    Args:
        data: the section's bytes.
        path: named in errors.
        offset: where the section starts in the file, for errors.
        strings: the string table of the ELF file.

    Raises:
        FormatError: the header is impossible, or the compressed bytes are damaged.
        UnsupportedError: another version, or GNU's format.
    """

    def __init__(self, data: Buffer, path: object, *, offset: int = 0, strings: Buffer = b"") -> None:
        self.path = str(path)
        self.offset = offset
        if len(data) < HEADER_SIZE:
            raise FormatError(path, offset, "cth_magic", f"a header of {HEADER_SIZE} bytes is cut off at {len(data)}")
        first = bytes(data[:2])
        orders = [order for order in "<>" if struct.unpack(order + "H", first)[0] in (MAGIC, GNU_MAGIC)]
        if not orders:
            raise FormatError(path, offset, "cth_magic", f"{first.hex()} is not the magic of CTF")
        self.order = orders[0]
        magic, self.version, flags, *fields = struct.unpack_from(f"{self.order}HBB8I", data)
        if magic == GNU_MAGIC:
            raise UnsupportedError("GNU's CTF (magic 0xdff2)", self.path)
        if self.version not in FORMS:
            raise UnsupportedError(f"CTF version {self.version}", self.path)
        self.form = FORMS[self.version]
        self.header = Header(*fields)
        self._check_order()
        body = memoryview(data)[HEADER_SIZE:]
        self.compressed = bool(flags & FLAG_COMPRESS)
        self.body = self._inflate(body) if self.compressed else bytes(body)
        end = self.header.strings + self.header.strings_size
        if end > len(self.body):
            message = f"{end} bytes are needed, there are {len(self.body)}"
            raise FormatError(path, offset + 32, "cth_strlen", message)
        self.strings = self.body[self.header.strings : end]
        self._external = bytes(strings)
        self._record = struct.Struct(self.order + self.form.record)
        self._offsets: list[int] | None = None

    def _check_order(self) -> None:
        places = self.header[2:7]
        fields = ("cth_lbloff", "cth_objtoff", "cth_funcoff", "cth_typeoff", "cth_stroff")
        for number in range(1, len(places)):
            if places[number] < places[number - 1]:
                message = f"{places[number]:#x} is before {fields[number - 1]}, {places[number - 1]:#x}"
                raise FormatError(self.path, self.offset + 12 + 4 * number, fields[number], message)

    def _inflate(self, packed: memoryview) -> bytes:
        size = self.header.strings + self.header.strings_size
        if size > MAX_BODY:
            raise FormatError(self.path, self.offset + 28, "cth_stroff", f"{size} bytes are more than {MAX_BODY}")
        try:
            found = zlib.decompressobj().decompress(packed, size + 1)
        except zlib.error as error:
            raise FormatError(self.path, self.offset + HEADER_SIZE, "CTF", f"zlib: {error}") from error
        if len(found) != size:
            more = "more" if len(found) > size else len(found)
            raise FormatError(
                self.path, self.offset + HEADER_SIZE, "CTF", f"{size} bytes are expected, there are {more}"
            )
        return found

    def wrong(self, at: int, field: str, message: str) -> FormatError:
        """Return the error that names a place: in the file, or in the decompressed bytes."""
        if self.compressed:
            return FormatError(self.path, self.offset, field, f"at {at:#x} of the decompressed CTF: {message}")
        return FormatError(self.path, self.offset + HEADER_SIZE + at, field, message)

    def name(self, reference: int) -> str:
        """Return the text of a name. Raises FormatError: there is no such string."""
        strings = self._external if reference & EXTERNAL else self.strings
        at = reference & ~EXTERNAL
        if not reference:
            return ""
        end = strings.find(b"\0", at)
        if at >= len(strings) or end < 0:
            where = "the ELF file's strings" if reference & EXTERNAL else "the strings"
            raise self.wrong(
                self.header.strings, "ctt_name", f"no string at {at:#x} of {where}, {len(strings):#x} bytes"
            )
        return strings[at:end].decode("utf-8", "replace")

    @property
    def is_child(self) -> bool:
        """Return whether the types of another file, the parent, belong to these."""
        return self.header.parent_name != 0

    @property
    def parent_name(self) -> str:
        """Return the name of the parent ("kernel"), "" if there is none. Raises FormatError."""
        return self.name(self.header.parent_name)

    @property
    def offsets(self) -> list[int]:
        """Return where the records are in the body, that of type 1 first. Raises FormatError."""
        if self._offsets is None:
            self._offsets = self._walk()
        return self._offsets

    def _walk(self) -> list[int]:
        found: list[int] = []
        at, end = self.header.types, self.header.strings
        while at < end:
            if len(found) >= MAX_TYPES:
                raise self.wrong(at, "cth_typeoff", f"more than {MAX_TYPES} types")
            record = self._read(at)
            found.append(at)
            at = record.at + self._rest(record)
            if at > end:
                raise self.wrong(found[-1], "ctt_info", f"type {len(found)} is cut off: it needs {at - end} bytes more")
        return found

    def _read(self, at: int) -> Record:
        """Return the record at a place of the body. Raises FormatError."""
        size = self._record.size
        if at + size > self.header.strings:
            raise self.wrong(at, "ctt_name", "a type is cut off")
        name, info, value = self._record.unpack_from(self.body, at)
        form = self.form
        kind = info >> form.kind_shift
        rest = at + size
        if value == form.large_size and kind in SIZED:
            if rest + 8 > self.header.strings:
                raise self.wrong(at, "ctt_lsizehi", "a type is cut off")
            high, low = struct.unpack_from(self.order + "II", self.body, rest)
            value, rest = high << 32 | low, rest + 8
        return Record(kind, info & form.vlen_mask, name, value, rest)

    def _rest(self, record: Record) -> int:
        """Return how many bytes follow a record. Raises FormatError."""
        kind, vlen = record.kind, record.vlen
        if kind in (INTEGER, FLOAT):
            return 4
        if kind in (STRUCT, UNION):
            return vlen * self.member(record).size
        if kind == ENUM:
            return 8 * vlen
        if kind == FUNCTION:
            return 4 * vlen if self.version == 3 else 2 * (vlen + (vlen & 1))
        if kind == ARRAY:
            return struct.calcsize("=" + self.form.array)
        if kind > RESTRICT:
            raise self.wrong(record.at, "ctt_info", f"{kind} is no kind of type")
        return 0

    def member(self, record: Record) -> struct.Struct:
        """Return how a struct's members are written."""
        large = record.value >= self.form.large_struct
        return struct.Struct(self.order + (self.form.large_member if large else self.form.member))

    def record(self, type_id: int) -> Record:
        """Return the record of a type by its number, with or without the bit of a child. Raises FormatError."""
        index = type_id & ~self.form.child
        if not 0 < index <= len(self.offsets):
            raise self.wrong(self.header.types, "ctt_type", f"no type has the number {type_id:#x}")
        return self._read(self.offsets[index - 1])

    def unpack(self, code: str, at: int) -> tuple[int, ...]:
        """Return numbers at a place of the body; the record that they belong to has been measured."""
        return struct.unpack_from(self.order + code, self.body, at)


SIZED = frozenset((UNKNOWN, INTEGER, FLOAT, ARRAY, STRUCT, UNION, ENUM))
