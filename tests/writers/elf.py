"""Write ELF files with sections, as a kernel file has them."""

from __future__ import annotations

import struct
from typing import NamedTuple


class Part(NamedTuple):
    """A section: its name, type, flags and bytes."""

    name: str
    kind: int
    flags: int
    data: bytes


def write_elf(parts: list[Part], *, bits: int = 64, order: str = "<", machine: int = 62, kind: int = 2) -> bytes:
    """Return an ELF file with a null section, the given sections and the table of their names."""
    wide = bits == 64
    ehsize, shsize = (64, 64) if wide else (52, 40)
    every = [Part("", 0, 0, b""), *parts, Part(".shstrtab", 3, 0, b"")]
    names = b"".join(part.name.encode() + b"\0" for part in every)
    every[-1] = Part(".shstrtab", 3, 0, names)
    body, rows, name_at = b"", [], 0
    for part in every:
        rows.append((name_at, part.kind, part.flags, 0, ehsize + len(body), len(part.data), 0, 0, 1, 0))
        name_at += len(part.name.encode()) + 1
        body += part.data
    table = b"".join(struct.pack(order + ("IIQQQQIIQQ" if wide else "10I"), *row) for row in rows)
    header = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    header += struct.pack(
        order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"),
        kind, machine, 1, 0, 0, ehsize + len(body), 0, ehsize, 0, 0, shsize, len(every), len(every) - 1,
    )  # fmt: skip
    return header + body + table
