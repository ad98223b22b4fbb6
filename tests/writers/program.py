"""Write programs as a linker does: three segments, a note with the build-id, and sections at will; and map them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kvm_dbg.errors import NotInImageError, NotMappedError
from kvm_dbg.image.base import PartialRead, Presence, Range
from kvm_dbg.kernel.base import MemoryMapping

PAGE = 4096
NOTE_AT = 0x200
CODE_AT, DATA_AT = PAGE, 2 * PAGE
DATA_ADDRESS = 3 * PAGE  # a page higher than in the file, as linkers have it
DYNAMIC_AT = DATA_AT + 0x100
CODE_SIZE = 0x800
PT_LOAD, PT_DYNAMIC, PT_NOTE = 1, 2, 4
R, W, X = 4, 2, 1


def write_program(
    build_id: bytes = b"", code: bytes = b"\xcc", sections: tuple[tuple[str, bytes], ...] = (), code_pages: int = 1
) -> bytes:
    """Return an ELF64 file; `code` is repeated, `sections` are (name, bytes) and not part of any segment."""
    note = struct.pack("<III4s", 4, len(build_id), 3, b"GNU\0") + build_id if build_id else b""
    size = CODE_SIZE + (code_pages - 1) * PAGE
    data_at = DATA_AT + (code_pages - 1) * PAGE
    segments = [
        (PT_LOAD, R, 0, 0, NOTE_AT + len(note)),
        (PT_LOAD, R | X, CODE_AT, CODE_AT, size),
        (PT_LOAD, R | W, data_at, data_at + PAGE, 0x400),
        (PT_DYNAMIC, R | W, data_at + 0x100, data_at + PAGE + 0x100, 0x20),
        *([(PT_NOTE, R, NOTE_AT, NOTE_AT, len(note))] if note else []),
    ]
    body = bytearray(data_at + 0x400)
    body[NOTE_AT : NOTE_AT + len(note)] = note
    body[CODE_AT : CODE_AT + size] = (code * (size // len(code) + 1))[:size]
    body[data_at : data_at + 0x400] = b"\xdd" * 0x400
    names = b"\0" + b"".join(name.encode() + b"\0" for name, _ in sections) + b".shstrtab\0"
    rows = [(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)]
    at = 1
    for name, data in (*sections, (".shstrtab", names)):
        rows.append((at, 3 if name == ".shstrtab" else 1, 0, 0, len(body), len(data), 0, 0, 1, 0))
        body += data
        at += len(name) + 1
    table = len(body)
    body += b"".join(struct.pack("<IIQQQQIIQQ", *row) for row in rows)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1", 3, 62, 1, CODE_AT, 64, table, 0, 64, 56, len(segments), 64, len(rows), len(rows) - 1,
    )  # fmt: skip
    body[:64] = header
    for index, (kind, flags, offset, vaddr, length) in enumerate(segments):
        row = struct.pack("<IIQQQQQQ", kind, flags, offset, vaddr, vaddr, length, length, PAGE)
        body[64 + 56 * index : 64 + 56 * (index + 1)] = row
    return bytes(body)


def map_program(
    program: bytes, base: int, name: str, code_pages: int = 1
) -> tuple[list[MemoryMapping], dict[int, bytes]]:
    """Return the mappings of a program that was loaded at `base`, and its pages by their addresses."""
    mappings = []
    pages = {}
    data_at = DATA_AT + (code_pages - 1) * PAGE
    for permissions, offset, vaddr, count in (
        ("r--p", 0, 0, 1),
        ("r-xp", CODE_AT, CODE_AT, code_pages),
        ("rw-p", data_at, data_at + PAGE, 1),
    ):
        start, end = base + vaddr, base + vaddr + count * PAGE
        mappings.append(MemoryMapping(start, end, permissions, offset, 0, 2, 7, name, True, 0))
        for number in range(count):
            place = offset + number * PAGE
            pages[start + number * PAGE] = program[place : place + PAGE].ljust(PAGE, b"\0")
    return mappings, pages


class Pages:
    """An address space: pages by their addresses; None for one that the image lacks."""

    def __init__(self, pages: dict[int, bytes] | dict[int, bytes | None]) -> None:
        self.pages: dict[int, bytes | None] = dict(pages)

    def read(self, vaddr: int, size: int) -> bytes:
        parts = []
        while size > 0:
            page = vaddr & -PAGE
            if page not in self.pages:
                raise NotMappedError(vaddr, "the entry is empty")
            data = self.pages[page]
            if data is None:
                raise NotInImageError(vaddr, PAGE, "excluded")
            part = data[vaddr - page : vaddr - page + size]
            parts.append(part)
            vaddr += len(part)
            size -= len(part)
        return b"".join(parts)

    def read_partial(self, vaddr: int, size: int) -> PartialRead:
        return PartialRead(self.read(vaddr, size), ())

    def translate(self, vaddr: int) -> int:
        return vaddr

    def for_each_run(self, start: int, end: int) -> Iterator[Range]:
        for page in sorted(self.pages):
            if start <= page < end:
                lost = self.pages[page] is None
                yield Range(page, PAGE, Presence.EXCLUDED if lost else Presence.PRESENT)
