"""BTF's bytes: header, type records, strings, and the tables that find a record by number or by name.

Facts: include/uapi/linux/btf.h and Documentation/bpf/btf.rst. A header (`struct btf_header`; `hdr_len` says how long
it is, later versions append to it) is followed by type records and strings. A record is three 32-bit words (name,
info, size or type) and, by kind, more of them; it can only be found by walking over all before it. `info` is 16 bits
of vlen, 5 of kind and the kind flag in bit 31; the unused bits between are taken into vlen and kind here, so that a
wider vlen is read right and an unknown kind is noticed. Ids count from 1, or in split BTF (modules) go on after the
base's; string offsets go on after the base's strings likewise.

Names are found by the CRC-32 of what C calls them: "struct page", "enum zone_type", "atomic_t"; "enumerator X" leads
to the enum that has X, "var x" to a variable. Hashes are kept in ascending order, with the ids beside them.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import compress, count
from typing import Final, TypeAlias

from kvm_dbg.errors import FormatError, UnsupportedError

Buffer = bytes | bytearray | memoryview
Words: TypeAlias = "memoryview | array[int]"

MAGIC = 0xEB9F
HEADER = "HBBIIIII"  # magic, version, flags, hdr_len, type_off, type_len, str_off, str_len

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)
RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(11, 20)

VLEN_MASK = 0xFFFFFF
KIND_MASK = 0x7F
KIND_FLAG = 0x80000000

# words after the first three of a record: fixed ones, and for each of vlen
FIXED_WORDS: Final = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
WORDS_EACH: Final = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}

# what names of these kinds start with when they are looked up
PREFIXES: Final = {
    INT: b"", FLOAT: b"", TYPEDEF: b"", STRUCT: b"struct ", UNION: b"union ", ENUM: b"enum ", ENUM64: b"enum ",
    VAR: b"var ",
}  # fmt: skip
ENUMERATOR_PREFIX = b"enumerator "


class _Steps(dict[int, int]):
    """From a record's info word to the record's length in words; there are only some hundred different ones."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def __missing__(self, info: int) -> int:
        kind = info >> 24 & KIND_MASK
        if not INT <= kind <= ENUM64:
            raise UnsupportedError(f"BTF kind {kind}", f"{self.path} is newer than this reader")
        step = self[info] = 3 + FIXED_WORDS.get(kind, 0) + WORDS_EACH.get(kind, 0) * (info & VLEN_MASK)
        return step


class BtfData:
    """One BTF section.

    Args:
        data: the section, or the bytes between __start_BTF and __stop_BTF.
        path: names it in errors.
        base: what split BTF goes on from.

    Raises:
        FormatError: the header is impossible.
        UnsupportedError: another version than 1.

    Attributes:
        first_id: the id of the first record here. byteorder: "little" or "big".
    """

    def __init__(self, data: Buffer, path: str, base: BtfData | None = None) -> None:
        self.path = path
        self.base = base
        head = bytes(data[:24])
        if len(head) < 24:
            raise FormatError(path, len(head), "btf_header", "the BTF ends inside its header")
        self.byteorder = "little" if head[0] == MAGIC & 0xFF else "big"
        order = "<" if self.byteorder == "little" else ">"
        magic, version, _, size, type_off, type_len, str_off, str_len = struct.unpack(order + HEADER, head)
        if magic != MAGIC:
            raise FormatError(path, 0, "magic", f"{head[:2].hex()} is not BTF's")
        if version != 1:
            raise UnsupportedError(f"BTF version {version}", path)
        if size < 24 or size > len(data):
            raise FormatError(path, 4, "hdr_len", f"{size} bytes cannot be, of {len(data)}")
        for field, where, start, length in (("type_off", 8, type_off, type_len), ("str_off", 16, str_off, str_len)):
            if size + start + length > len(data):
                raise FormatError(path, where, field, f"{length} bytes at {start} do not fit into {len(data)} bytes")
        if type_len % 4:
            raise FormatError(path, 12, "type_len", f"{type_len} is not a multiple of 4")
        view = memoryview(data)
        self.header_size = size
        self.types_offset = size + type_off
        self._types = view[size + type_off :][:type_len]
        self._strings_view = view[size + str_off :][:str_len]
        self._strings: bytes | None = None
        self.string_base: int = base.string_base + len(base._strings_view) if base is not None else 0
        self.first_id: int = base.first_id + len(base.offsets) if base is not None else 1
        self._words: Words | None = None
        self._parts: dict[str, Words] = {}

    def sample(self) -> bytes:
        """Return what tells this BTF from another one of the same kernel: lengths, and a checksum of both ends."""
        ends = (self._types[:4096], self._types[-4096:], self._strings_view[-4096:])
        checksums = (zlib.crc32(end) for end in ends)
        return struct.pack("<QQIIIQ", len(self._types), len(self._strings_view), *checksums, self.first_id)

    @property
    def words(self) -> Words:
        """Return all type records as 32-bit numbers."""
        if self._words is None:
            if self.byteorder == sys.byteorder:
                self._words = self._types.cast("B").cast("I")
            else:
                self._words = array("I", self._types.tobytes())
                self._words.byteswap()
        return self._words

    @property
    def strings(self) -> bytes:
        """Return the strings of this section, without the base's."""
        if self._strings is None:
            self._strings = bytes(self._strings_view)
            if not self._strings.endswith(b"\0"):
                self._strings += b"\0"
        return self._strings

    def name(self, offset: int) -> bytes:
        """Return the string at `offset`. Raises FormatError: outside the strings."""
        if offset < self.string_base and self.base is not None:
            return self.base.name(offset)
        offset -= self.string_base
        strings = self.strings
        if offset >= len(strings):
            message = f"no string at {offset:#x} of {len(strings):#x}"
            raise FormatError(self.path, self.types_offset, "name_off", message)
        return strings[offset : strings.find(b"\0", offset)]

    def record(self, type_id: int) -> int:
        """Return the place in `words` of the record of a type of this section. Raises FormatError."""
        number = type_id - self.first_id
        if not 0 <= number < len(self.offsets):
            raise FormatError(self.path, self.types_offset, "type", f"no type has the number {type_id}")
        at = int(self.offsets[number])
        words = self.words
        if at + 3 > len(words) or at + _Steps(self.path)[words[at + 1]] > len(words):
            raise FormatError(self.path, self.types_offset + 4 * at, "info", f"type {type_id} is cut off")
        return at

    @property
    def offsets(self) -> Words:
        """Return the places in `words` of all records, in order of id. Raises FormatError, UnsupportedError."""
        if "offsets" not in self._parts:
            self._parts["offsets"] = self._walk()
        return self._parts["offsets"]

    def _walk(self) -> Words:
        words = array("I", self._types.tobytes())  # its items are twice as fast as a memoryview's
        if self.byteorder != sys.byteorder:
            words.byteswap()
        size = len(words)
        steps = _Steps(self.path)
        found: list[int] = []
        append = found.append
        at = 0
        try:
            while at < size:
                append(at)
                at += steps[words[at + 1]]
        except IndexError:
            at = size + 1
        if at != size:
            where = self.types_offset + 4 * found[-1]
            raise FormatError(self.path, where, "type_len", f"type {self.first_id + len(found) - 1} is cut off")
        self._words = words
        return array("I", found)

    def tables(self) -> dict[str, Words]:
        """Return `offsets`, `hashes`, `ids`, and `facts` (has an enum its kind flag set?), building them if need be.

        Raises:
            FormatError, UnsupportedError: see `offsets`.
        """
        if "hashes" not in self._parts:
            _ = self.offsets
            self._parts |= self._build()
        return self._parts

    def adopt(self, parts: Mapping[str, memoryview]) -> bool:
        """Take tables that were kept, and return whether they were fit to be used."""
        try:
            found: dict[str, Words] = {name: parts[name].cast("I") for name in ("offsets", "hashes", "ids", "facts")}
        except (KeyError, TypeError):
            return False
        if len(found["hashes"]) != len(found["ids"]) or len(found["facts"]) != 1:
            return False
        self._parts = found
        return True

    def _build(self) -> dict[str, Words]:
        words = self.words
        kinds = bytes([words[at + 1] >> 24 & KIND_MASK for at in self.offsets])
        mask = kinds.translate(bytes(number in PREFIXES for number in range(256)))
        rows: dict[int, list[tuple[int, int]]] = {kind: [] for kind in PREFIXES}  # kind -> (id, place in words)
        for type_id, at, kind in compress(zip(count(self.first_id), self.offsets, kinds, strict=False), mask):
            rows[kind].append((type_id, at))
        hashes: list[int] = []
        ids: list[int] = []
        for kind, prefix in PREFIXES.items():
            named = [
                (type_id, words[at])
                for type_id, at in rows[kind]
                if words[at] and not (kind == ENUM and not words[at + 1] & VLEN_MASK)
            ]
            ids += [type_id for type_id, _ in named]
            hashes += self._hashes(prefix, [name for _, name in named])
        flagged = bool(rows[ENUM64])
        for kind in (ENUM, ENUM64):
            each = WORDS_EACH[kind]
            names: list[int] = []
            for type_id, at in rows[kind]:
                info = words[at + 1]
                flagged = flagged or info >= KIND_FLAG
                names += words[at + 3 : at + 3 + each * (info & VLEN_MASK) : each]
                ids += [type_id] * (info & VLEN_MASK)
            hashes += self._hashes(ENUMERATOR_PREFIX, names)
        order = sorted(range(len(ids)), key=hashes.__getitem__)
        return {
            "hashes": array("I", [hashes[i] for i in order]),
            "ids": array("I", [ids[i] for i in order]),
            "facts": array("I", [flagged]),
        }

    def _hashes(self, prefix: bytes, names: list[int]) -> list[int]:
        """Return the hashes of prefix + name for all offsets of names."""
        seed, low = zlib.crc32(prefix), self.string_base
        if names and (min(names) < low or max(names) - low >= len(self.strings)):
            return [zlib.crc32(self.name(name), seed) for name in names]
        strings, crc32 = self.strings, zlib.crc32
        find = strings.find
        return [crc32(strings[name - low : find(b"\0", name - low)], seed) for name in names]

    def find_ids(self, prefix: bytes, name: bytes) -> Iterator[int]:
        """Yield the ids that the hash of prefix + name leads to, ascending; the caller compares the names."""
        tables = self.tables()
        wanted = zlib.crc32(name, zlib.crc32(prefix))
        hashes, ids = tables["hashes"], tables["ids"]
        for at in range(bisect_left(hashes, wanted), len(hashes)):
            if hashes[at] != wanted:
                return
            yield ids[at]
