"""Read a layout file and check its numbers; `layout` makes types of it. The format: docs/layout-files.md.

A key at the top is a struct's tag, or a keyword and a name; "$layout" says what the file was made from:

    {"$layout": {"version": 1, "pointer_size": 8, ...},
     "timeval": {"size": 16, "members": {"tv_sec": {"offset": 0, "size": 8, "type": "time_t"}, ...}},
     "union sigval": {"size": 8, "members": ...},
     "enum vtype": {"size": 4, "enumerators": {"VNON": 0, ...}},
     "typedef pid_t": {"size": 4, "type": "int"}}
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from kvm_dbg.errors import FileAccessError, FormatError

HEADER = "$layout"
VERSION = 1
KEYWORDS = ("struct", "union", "enum", "typedef")
BODIES = {"members": ("struct", "union"), "enumerators": ("enum",), "type": ("typedef",)}
MAX_FILE = 256 << 20  # bytes
MAX_SIZE = 1 << 31  # bytes of a type
MAX_MEMBERS = 1 << 16  # of one struct
MAX_DEPTH = 16  # anonymous structs in each other
MAX_VALUE = 1 << 64  # of an enumerator

Place = tuple[str, ...]  # keys, from the top of the file down


class Row(NamedTuple):
    """A member: its start in bits from the start of the struct, its size in bytes, the size in bits of a bit-field.

    inside: what an anonymous struct or union, named "{...}" in the member's type, has in it.
    """

    name: str
    start: int
    size: int
    text: str
    bit_size: int
    inside: Entry | None
    place: Place


class Entry(NamedTuple):
    """What the file has under one key; `size` in bytes, None for a typedef that does not say it."""

    keyword: str
    size: int
    members: tuple[Row, ...]
    enumerators: dict[str, int]
    text: str
    place: Place


class LayoutFile:
    """A checked layout file.

    Attributes:
        path: named in errors.
        entries: key -> entry; a key is a struct's tag, or a keyword and a name.
        enumerators: all enumerators' values by name.
        pointer_size: in bytes, 0 where the file does not say it.
        char_signed: whether `char` is signed.
        facts: the texts of the header: "producer", "source", "release", "machine", "build_id", ...

    Raises:
        FormatError: it is no layout file; names the place.
    """

    def __init__(self, data: bytes, path: object) -> None:
        self.path = str(path)
        self._data = data
        document = self._parse(data)
        self.facts: dict[str, str] = {}
        self.pointer_size, self.char_signed = self._header(document.pop(HEADER, {}))
        self.entries = {key: self._entry(key, body, (key,), 0) for key, body in document.items()}
        self.enumerators: dict[str, int] = {}
        for entry in self.entries.values():
            for name, value in entry.enumerators.items():
                self.enumerators.setdefault(name, value)

    def for_each_struct(self) -> Iterator[Entry]:
        """Yield all structs and unions, those inside others too."""
        pending = [entry for entry in self.entries.values() if entry.members]
        while pending:
            entry = pending.pop()
            yield entry
            pending += [row.inside for row in entry.members if row.inside is not None]

    def wrong(self, place: Place, field: str, message: str) -> FormatError:
        """Return the error that names a place by its keys, and by where the last of them first stands in the file."""
        at = 0
        for key in place:
            found = re.compile(re.escape(f'"{key}"'.encode()) + rb"\s*:").search(self._data, at)
            if found is None:
                break
            at = found.start()
        return FormatError(self.path, at, ".".join((*place, field)), message)

    def _parse(self, data: bytes) -> dict[str, Any]:
        import json

        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) != len(pairs):
                names = sorted(name for name, _ in pairs)
                twice = next(name for name, after in pairwise(names) if name == after)
                raise self.wrong((twice,), "name", "the name is there twice")
            return found

        try:
            document = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
        except UnicodeDecodeError as error:
            raise FormatError(self.path, error.start, "layout", "not UTF-8") from error
        except json.JSONDecodeError as error:
            raise FormatError(self.path, error.pos, "layout", f"not JSON: {error.msg}") from error
        except (RecursionError, ValueError) as error:  # too deep, or a number of thousands of digits
            raise FormatError(self.path, 0, "layout", f"not a layout file: {error}") from error
        if not isinstance(document, dict):
            raise FormatError(self.path, 0, "layout", "not a layout file: structs by name are expected")
        return document

    def _header(self, header: Any) -> tuple[int, bool]:
        place = (HEADER,)
        if not isinstance(header, dict):
            raise self.wrong(place, "value", "an object is expected")
        version = header.get("version", VERSION)
        if version != VERSION:
            raise self.wrong(place, "version", f"{version!r}, where {VERSION} is known")
        self.facts = {key: value for key, value in header.items() if isinstance(value, str)}
        pointer_size = header.get("pointer_size", 0)
        if pointer_size not in (0, 4, 8) or isinstance(pointer_size, bool):
            raise self.wrong(place, "pointer_size", f"{pointer_size!r} is neither 4 nor 8")
        return pointer_size, header.get("char_signed", True) is not False

    def _number(self, body: dict[str, Any], key: str, place: Place, limit: int, default: int | None = None) -> int:
        value = body.get(key, default)
        if type(value) is not int or not 0 <= value <= limit:
            raise self.wrong(
                place, key, f"{value!r} is not a number from 0 to {limit}" if key in body else "is missing"
            )
        return value

    def _entry(self, key: str, body: Any, place: Place, depth: int) -> Entry:
        if not isinstance(body, dict) or len(BODIES.keys() & body.keys()) != 1:
            raise self.wrong(place, "value", f"an object with one of {', '.join(BODIES)} is expected")
        if depth > MAX_DEPTH:
            raise self.wrong(place, "members", f"more than {MAX_DEPTH} levels")
        (kind,) = BODIES.keys() & body.keys()
        keyword = body.get("kind", key.partition(" ")[0])
        if keyword == "typedef" or keyword not in KEYWORDS:  # which a tag alone, and a typedef of what has no tag, lack
            keyword = BODIES[kind][0]
        if keyword not in BODIES[kind]:
            raise self.wrong(place, kind, f"{keyword} has none")
        size = self._number(body, "size", place, MAX_SIZE)
        rows: tuple[Row, ...] = ()
        values: dict[str, int] = {}
        if kind == "members":
            rows = self._rows(body[kind], size, place, depth)
        elif kind == "enumerators":
            values = self._values(body[kind], (*place, kind))
        elif not isinstance(body["type"], str):
            raise self.wrong(place, "type", "a C type in quotes is expected")
        return Entry(keyword, size, rows, values, body.get("type", ""), place)

    def _values(self, found: Any, place: Place) -> dict[str, int]:
        if not isinstance(found, dict):
            raise self.wrong(place, "value", "an object is expected")
        for name, value in found.items():
            if type(value) is not int or not -MAX_VALUE < value < MAX_VALUE:
                raise self.wrong(place, name, f"{value!r} is not a number of 64 bits")
        return found

    def _rows(self, members: Any, size: int, place: Place, depth: int) -> tuple[Row, ...]:
        if not isinstance(members, dict) or len(members) > MAX_MEMBERS:
            raise self.wrong(place, "members", f"an object of at most {MAX_MEMBERS} members is expected")
        rows = [self._row(name, body, size, (*place, "members", name), depth) for name, body in members.items()]
        rows.sort(key=lambda row: row.start)
        return tuple(rows)

    def _row(self, name: str, body: Any, struct_size: int, place: Place, depth: int) -> Row:
        if not isinstance(body, dict) or not isinstance(body.get("type"), str):
            raise self.wrong(place, "type", "a C type in quotes is expected")
        offset = self._number(body, "offset", place, struct_size)
        size = self._number(body, "size", place, MAX_SIZE)
        bit_size = self._number(body, "bit_size", place, 8 * size, 0)
        start = self._number(body, "bit_offset", place, 8 * struct_size, 8 * offset) if bit_size else 8 * offset
        if start + (bit_size or 8 * size) > 8 * struct_size:
            raise self.wrong(place, "offset", f"it ends behind the {struct_size} bytes of the struct")
        inside = None
        if "inside" in body:
            keyword = "union" if body["type"].split()[:1] == ["union"] else "struct"
            inside = self._entry(keyword, body["inside"], (*place, "inside"), depth + 1)
        return Row(name, start, size, body["type"], bit_size, inside, place)


def read_layout_file(path: str | os.PathLike[str]) -> LayoutFile:
    """Read and check the layout file `path`.

    Raises:
        FileAccessError: missing, no permission, no regular file.
        FormatError: it is no layout file; names the place.
    """
    name = os.fspath(path)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # never waits for a FIFO's writer
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FileAccessError(name, "not a regular file")
            if status.st_size > MAX_FILE:
                raise FormatError(name, MAX_FILE, "layout", f"more than {MAX_FILE} bytes are no layout file")
            data = file.read(status.st_size)
    except OSError as error:
        raise FileAccessError(name, error.strerror or str(error)) from error
    return LayoutFile(data, name)
