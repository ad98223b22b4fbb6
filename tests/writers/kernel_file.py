"""Write kernel files: ELF with loaded sections, a symbol table and a build-id."""

from __future__ import annotations

import struct
from typing import NamedTuple

PROGBITS, SYMTAB, STRTAB, NOTE, NOBITS, SYMTAB_SHNDX = 1, 2, 3, 7, 8, 18
WRITE, ALLOC, EXEC, COMPRESSED = 1, 2, 4, 0x800
LOCAL, GLOBAL, WEAK = 0, 1, 2
NOTYPE, OBJECT, FUNC, SECTION, FILE = 0, 1, 2, 3, 4
ABS = 0xFFF1


class Part(NamedTuple):
    """A section; `size` only for NOBITS."""

    name: str
    kind: int = PROGBITS
    flags: int = ALLOC
    addr: int = 0
    data: bytes = b""
    link: int = 0
    info: int = 0
    size: int = 0


class Entry(NamedTuple):
    """A symbol; `section` is a section's name, "" for undefined, or a number."""

    name: str
    value: int
    size: int = 0
    section: str | int = ".text"
    binding: int = GLOBAL
    type: int = FUNC


def build_id_note(build_id: bytes, order: str = "<") -> bytes:
    """Return a .notes section with a GNU build-id."""
    return struct.pack(order + "III", 4, len(build_id), 3) + b"GNU\0" + build_id + bytes(-len(build_id) % 4)


def write_kernel_file(
    parts: list[Part],
    symbols: list[Entry] | None = None,
    *,
    bits: int = 64,
    order: str = "<",
    kind: int = 2,
    machine: int | None = None,
    share_tails: bool = False,
    far_sections: bool = False,
) -> bytes:
    """Return an ELF file with these sections, and a symbol table if there are symbols.

    machine: e_machine, None for x86-64 or i386.
    share_tails: names that end another name start inside it, as ld writes them. far_sections: all section numbers of
    symbols are in SHT_SYMTAB_SHNDX, as in files with more than 65,279 sections.
    """
    wide = bits == 64
    every = [Part("", 0, 0), *parts]
    if symbols is not None:
        numbers = {part.name: number for number, part in enumerate(every)}
        ordered = sorted(symbols, key=lambda entry: entry.binding != LOCAL)
        strings, places = b"\0", {"": 0}
        for entry in sorted(ordered, key=lambda entry: -len(entry.name)) if share_tails else ordered:
            raw = entry.name.encode() + b"\0"
            if share_tails and raw in strings:
                places[entry.name] = strings.index(raw)
            elif entry.name not in places:
                places[entry.name] = len(strings)
                strings += raw
        rows, far = bytes(24 if wide else 16), struct.pack(order + "I", 0)
        for entry in ordered:
            number = entry.section if isinstance(entry.section, int) else numbers[entry.section]
            far += struct.pack(order + "I", number)
            if far_sections and number < 0xFF00:
                number = 0xFFFF
            info = entry.binding << 4 | entry.type
            if wide:
                rows += struct.pack(order + "IBBHQQ", places[entry.name], info, 0, number, entry.value, entry.size)
            else:
                rows += struct.pack(order + "IIIBBH", places[entry.name], entry.value, entry.size, info, 0, number)
        local = 1 + sum(entry.binding == LOCAL for entry in ordered)
        place = len(every)
        every.append(Part(".symtab", SYMTAB, 0, 0, rows, place + 1, local))
        every.append(Part(".strtab", STRTAB, 0, 0, strings))
        if far_sections:
            every.append(Part(".symtab_shndx", SYMTAB_SHNDX, 0, 0, far, place))
    every.append(Part(".shstrtab", STRTAB, 0))
    names, offsets = b"", []
    for part in every:
        offsets.append(len(names))
        names += part.name.encode() + b"\0"
    every[-1] = every[-1]._replace(data=names)
    ehsize, shsize = (64, 64) if wide else (52, 40)
    body, table = b"", b""
    for part, name_at in zip(every, offsets, strict=True):
        row = (
            name_at, part.kind, part.flags, part.addr, ehsize + len(body),
            part.size or len(part.data), part.link, part.info, 1, (24 if wide else 16) if part.kind == SYMTAB else 0,
        )  # fmt: skip
        table += struct.pack(order + ("IIQQQQIIQQ" if wide else "10I"), *row)
        body += part.data + bytes(-len(part.data) % 8)
    number = machine or (62 if wide else 3)
    header = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    header += struct.pack(
        order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"),
        kind, number, 1, 0, 0, ehsize + len(body), 0, ehsize, 0, 0, shsize, len(every), len(every) - 1,
    )  # fmt: skip
    return header + body + table
