"""Write ORC tables: rows of `struct orc_entry` in each of the layouts that kernels had."""

from __future__ import annotations

import struct
from typing import NamedTuple

from kvm_dbg.debuginfo.base import IntType, Member, StructType

OLD_NUMBERS = {"": 0, "previous": 1, "rdx": 2, "rdi": 3, "rbp": 4, "rsp": 5, "r10": 6, "r13": 7, "[rbp]": 8, "[rsp]": 9}
NEW_NUMBERS = {"": 0, "rax": 1, "rdx": 2, "rsp": 3, "rbp": 4, "rdi": 5, "r10": 6, "r13": 7}
NEW_NUMBERS |= {"previous": 8, "[rsp]": 9, "[rbp]": 10}
OLD_KINDS = {"call": 0, "regs": 1, "partial": 2, "undefined": 3, "end": 0}
NEW_KINDS = {"undefined": 0, "end": 1, "call": 2, "regs": 3, "partial": 4}


class Layout(NamedTuple):
    """One version of the table: its bit-fields from bit 40 on, and its numbers."""

    fields: tuple[tuple[str, int, int], ...]
    registers: dict[str, int]
    kinds: dict[str, int]


LAYOUTS = {
    "v1": Layout((("type", 40, 2), ("end", 42, 1)), OLD_NUMBERS, OLD_KINDS),  # 4.17
    "v2": Layout((("type", 40, 2), ("signal", 42, 1), ("end", 43, 1)), OLD_NUMBERS, OLD_KINDS),  # 6.3
    "v3": Layout((("type", 40, 3), ("signal", 43, 1)), OLD_NUMBERS, NEW_KINDS),  # 6.4
    "v4": Layout((("type", 40, 3), ("signal", 43, 1)), NEW_NUMBERS, NEW_KINDS),  # 7.1
}


class Row(NamedTuple):
    """A row as `kernel/base.py` UnwindRow has it, without the addresses."""

    kind: str
    base: str = "rsp"
    offset: int = 8
    frame_base: str = ""
    frame_offset: int = 0


def orc_entry(version: str) -> StructType:
    """Return the type of `struct orc_entry`."""
    s16, u32 = IntType("s16", 2, signed=True), IntType("unsigned int", 4, signed=False)
    members = [Member("sp_offset", 0, 0, lambda: s16), Member("bp_offset", 16, 0, lambda: s16)]
    for name, offset, bits in (("sp_reg", 32, 4), ("bp_reg", 36, 4), *LAYOUTS[version].fields):
        members.append(Member(name, offset, bits, lambda: u32))
    return StructType("struct", "orc_entry", 6, lambda: tuple(members))


def encode(version: str, row: Row) -> bytes:
    """Return a row's six bytes."""
    layout = LAYOUTS[version]
    values = {"type": layout.kinds[row.kind], "end": row.kind == "end", "signal": row.kind in ("regs", "partial")}
    bits = sum(values[name] << offset - 40 for name, offset, _ in layout.fields)
    base = "" if row.kind in ("end", "undefined") else row.base
    registers = layout.registers[base] | layout.registers[row.frame_base] << 4
    return struct.pack("<hhBB", row.offset, row.frame_offset, registers, bits)
