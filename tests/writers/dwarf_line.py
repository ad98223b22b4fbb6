"""Write line programs, versions 4 and 5, and the table of address ranges."""

from __future__ import annotations

import struct

from tests.writers.dwarf import STRING, UDATA, leb128, sleb128

OPCODE_LENGTHS = bytes((0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1))  # of the standard's opcodes 1 to 12
LINE_BASE, LINE_RANGE = -5, 14
Row = tuple[int, int, int, int] | int  # address, file, line, column; or the address where the rows before it end


def line_program(version: int, directories: list[str], files: list[tuple[str, int]], rows: list[Row]) -> bytes:
    """Return a program that yields these rows.

    directories: in version 5 the first is the unit's own. files: (name, number of the directory).
    """
    code, at, line = b"", -1, 1
    for row in rows:
        address = row if isinstance(row, int) else row[0]
        if at < 0:
            code += b"\x00\x09\x02" + struct.pack("<Q", address)
        elif address != at:
            code += b"\x02" + leb128(address - at)
        at = address
        if isinstance(row, int):
            code += b"\x00\x01\x01"
            at, line = -1, 1
            continue
        _, file, number, column = row
        code += b"\x04" + leb128(file) + b"\x05" + leb128(column)
        if LINE_BASE <= number - line < LINE_BASE + LINE_RANGE:
            code += bytes([number - line - LINE_BASE + len(OPCODE_LENGTHS) + 1])  # a special opcode
        else:
            code += b"\x03" + sleb128(number - line) + b"\x01"
        line = number
    head = struct.pack("<BBBbBB", 1, 1, 1, LINE_BASE, LINE_RANGE, len(OPCODE_LENGTHS) + 1) + OPCODE_LENGTHS
    if version >= 5:
        head += bytes((1, 1, STRING)) + leb128(len(directories))
        head += b"".join(name.encode() + b"\0" for name in directories)
        head += bytes((2, 1, STRING, 2, UDATA)) + leb128(len(files))
        head += b"".join(name.encode() + b"\0" + leb128(number) for name, number in files)
    else:
        head += b"".join(name.encode() + b"\0" for name in directories) + b"\0"
        head += b"".join(name.encode() + b"\0" + leb128(number) + b"\0\0" for name, number in files) + b"\0"
    before = struct.pack("<HBB", 5, 8, 0) if version >= 5 else struct.pack("<H", version)
    body = before + struct.pack("<I", len(head)) + head + code
    return struct.pack("<I", len(body)) + body


def address_ranges(unit: int, *runs: tuple[int, int]) -> bytes:
    """Return the set of .debug_aranges of the unit at `unit`: runs are (start, size)."""
    body = struct.pack("<HIBB", 2, unit, 8, 0) + bytes(4)
    body += b"".join(struct.pack("<QQ", *run) for run in (*runs, (0, 0)))
    return struct.pack("<I", len(body)) + body
