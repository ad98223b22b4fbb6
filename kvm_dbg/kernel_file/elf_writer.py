"""Write a 64-bit little-endian ELF file: sections, the program headers over them, notes.

Facts: the System V gABI, chapters 4 and 5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kvm_dbg.elf import PF_R, PF_W, PF_X, PT_LOAD, SHF_ALLOC, SHF_EXECINSTR, SHT_NOBITS, SHT_NOTE, SHT_STRTAB

ET_EXEC = 2
EV_CURRENT = 1
NT_GNU_BUILD_ID = 3
PAGE = 0x1000
SHF_WRITE = 1
MAX_SEGMENTS = 64

HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
NOTE_HEADER = struct.Struct("<III")


class Section(NamedTuple):
    """One section; the first of a file has the number 1.

    data: its bytes, empty for SHT_NOBITS. size: in memory, where there are no bytes. link: another section's name.
    """

    name: str
    type: int
    data: bytes = b""
    flags: int = 0
    address: int = 0
    size: int = 0
    link: str = ""
    info: int = 0
    align: int = 1
    entry_size: int = 0


def memory_section(name: str, start: int, end: int, *, executable: bool = False, writable: bool = False) -> Section:
    """Return a section whose bytes are in memory only."""
    flags = SHF_ALLOC | (SHF_EXECINSTR if executable else 0) | (SHF_WRITE if writable else 0)
    return Section(name, SHT_NOBITS, flags=flags, address=start, size=end - start)


def build_id_section(build_id: bytes) -> Section:
    """Return the note by which debuggers recognise a file's build; it is in no memory."""
    body = NOTE_HEADER.pack(4, len(build_id), NT_GNU_BUILD_ID) + b"GNU\0" + build_id
    return Section(".note.gnu.build-id", SHT_NOTE, body + bytes(-len(body) % 4), align=4)


def write_elf(sections: Iterable[Section], machine: int) -> list[bytes]:
    """Return the pieces of an executable file with these sections and a segment for each run of memory.

    Args:
        sections: those with memory in ascending order of address.
        machine: e_machine.
    """
    every = [Section("", 0), *sections, Section(".shstrtab", SHT_STRTAB)]
    names, places = _strings([section.name for section in every])
    every[-1] = every[-1]._replace(data=names)
    numbers = {section.name: number for number, section in reversed(list(enumerate(every)))}
    segments = _segments(every)
    offset = HEADER.size + PROGRAM_HEADER.size * len(segments)
    pieces: list[bytes] = []
    table: list[bytes] = []
    for section, place in zip(every, places, strict=True):
        padding = -offset % max(section.align, 1) if section.data else 0
        offset += padding
        size = section.size if section.type == SHT_NOBITS else len(section.data)
        at = offset if section.type else 0
        link = numbers[section.link] if section.link else 0
        table.append(
            SECTION_HEADER.pack(
                place,
                section.type,
                section.flags,
                section.address,
                at,
                size,
                link,
                section.info,
                section.align if section.type else 0,
                section.entry_size,
            )
        )
        pieces += (bytes(padding), section.data)
        offset += len(section.data)
    pieces.append(bytes(-offset % 8))
    head = HEADER.pack(
        b"\x7fELF\x02\x01\x01",  # 64 bits, little-endian, version 1
        ET_EXEC,
        machine,
        EV_CURRENT,
        0,
        HEADER.size if segments else 0,
        offset + -offset % 8,
        0,
        HEADER.size,
        PROGRAM_HEADER.size if segments else 0,
        len(segments),
        SECTION_HEADER.size,
        len(every),
        len(every) - 1,
    )
    return [head, *segments, *pieces, *table]


def _strings(names: Sequence[str]) -> tuple[bytes, list[int]]:
    """Return a table of strings, and where each starts."""
    table = bytearray()
    places = []
    for name in names:
        places.append(len(table))
        table += name.encode("utf-8", "replace") + b"\0"
    return bytes(table), places


def _segments(sections: Iterable[Section]) -> list[bytes]:
    """Return a program header for each run of sections that lie close together and have the same access rights.

    Where there would be too many, none: debuggers then go by the sections.
    """
    runs: list[list[int]] = []  # [flags, start, end]
    for section in sections:
        if section.type != SHT_NOBITS or not section.flags & SHF_ALLOC:
            continue
        flags = PF_R | (PF_X if section.flags & SHF_EXECINSTR else 0) | (PF_W if section.flags & SHF_WRITE else 0)
        start, end = section.address, section.address + section.size
        if runs and runs[-1][0] == flags and 0 <= start - runs[-1][2] < PAGE:
            runs[-1][2] = end
        else:
            runs.append([flags, start, end])
    if len(runs) > MAX_SEGMENTS:
        return []
    return [PROGRAM_HEADER.pack(PT_LOAD, flags, 0, start, start, 0, end - start, 1) for flags, start, end in runs]
