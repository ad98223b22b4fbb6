"""Write ELF cores: any class, byte order and set of segments."""

from __future__ import annotations

import struct
from typing import NamedTuple


class Load(NamedTuple):
    """A PT_LOAD: `data` at `paddr`, `memsz` bytes of memory if more than that."""

    paddr: int
    data: bytes
    memsz: int | None = None
    vaddr: int = 0


def write_note(name: str, kind: int, desc: bytes, order: str = "<") -> bytes:
    """Return one note, padded to 4 bytes."""
    raw = name.encode() + b"\0"
    head = struct.pack(order + "III", len(raw), len(desc), kind)
    return head + raw + bytes(-len(raw) % 4) + desc + bytes(-len(desc) % 4)


def write_elfcore(
    loads: list[Load],
    notes: bytes = b"",
    *,
    bits: int = 64,
    order: str = "<",
    machine: int = 62,
    kind: int = 4,
    xnum: bool = False,
    phoff: int = 0,
) -> bytes:
    """Return an ELF file: header, (section 0 if `xnum`), program headers, notes, memory.

    xnum: hide the number of segments in section 0, as with 65535 and more. phoff: where the program headers start.
    """
    wide = bits == 64
    ehsize, phsize, shsize = (64, 56, 64) if wide else (52, 32, 40)
    shoff = ehsize if xnum else 0
    phoff = phoff or ehsize + (shsize if xnum else 0)
    count = len(loads) + 1
    place = phoff + count * phsize
    header = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    header += struct.pack(
        order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"),
        kind, machine, 1, 0, phoff, shoff, 0, 8, phsize, 0xFFFF if xnum else count, shsize, 1 if xnum else 0, 0,
    )  # fmt: skip
    if xnum:
        header += struct.pack(order + ("IIQQQQIIQQ" if wide else "10I"), 0, 0, 0, 0, 0, 0, 0, count, 0, 0)
    table = [_segment(wide, order, 4, place, 0, 0, len(notes), 0)]
    body = [notes]
    place += len(notes)
    for load in loads:
        memsz = len(load.data) if load.memsz is None else load.memsz
        table.append(_segment(wide, order, 1, place, load.vaddr, load.paddr, len(load.data), memsz))
        body.append(load.data)
        place += len(load.data)
    return header.ljust(phoff, b"\0") + b"".join(table + body)


def _segment(wide: bool, order: str, kind: int, offset: int, vaddr: int, paddr: int, filesz: int, memsz: int) -> bytes:
    if wide:
        return struct.pack(order + "IIQQQQQQ", kind, 7, offset, vaddr, paddr, filesz, memsz, 0)
    return struct.pack(order + "8I", kind, offset, vaddr & 0xFFFFFFFF, paddr, filesz, memsz, 7, 0)
