"""Line programs of DWARF: from an address to file, line and column.

Facts: the DWARF standard, versions 2 to 5, 6.2 (the state machine, its opcodes, and the header, whose tables of
directories and files changed with version 5: entries have formats of their own, and both tables count from 0).

The program of one unit is run once, as a whole: it has 5 to 30 KiB in a kernel, which takes a few milliseconds.
"""

from __future__ import annotations

import posixpath
import struct
from bisect import bisect_right
from collections.abc import Callable
from typing import Final, NamedTuple

from kvm_dbg.debuginfo.dwarf_entry import DwarfSections
from kvm_dbg.debuginfo.dwarf_search import read_leb128, read_sleb128
from kvm_dbg.errors import UnsupportedError

(
    LNS_COPY, LNS_ADVANCE_PC, LNS_ADVANCE_LINE, LNS_SET_FILE, LNS_SET_COLUMN, LNS_NEGATE_STMT, LNS_SET_BASIC_BLOCK,
    LNS_CONST_ADD_PC, LNS_FIXED_ADVANCE_PC,
) = range(1, 10)  # fmt: skip
LNE_END_SEQUENCE, LNE_SET_ADDRESS = 1, 2
LNCT_PATH, LNCT_DIRECTORY_INDEX = 1, 2
FORM_DATA2, FORM_STRING, FORM_DATA1, FORM_STRP, FORM_UDATA, FORM_LINE_STRP = 0x05, 0x08, 0x0B, 0x0E, 0x0F, 0x1F
FIXED_FORMS: Final = {FORM_DATA2: 2, 0x06: 4, 0x07: 8, FORM_DATA1: 1, 0x1E: 16}
MAX_ROWS = 1 << 21  # of one unit
MAX_FILES = 1 << 16

Row = tuple[int, int, int, int]  # address, file, line, column; file -1: here a run of addresses ends


class Line(NamedTuple):
    """A place in a source file; `line` counts from 1, 0 if unknown; so does `column`."""

    file: str
    line: int
    column: int


class LineTable:
    """The rows of one unit's line program.

    Args:
        sections: of the file.
        at: where the program is in .debug_line.
        directory: the unit's DW_AT_comp_dir, which relative names start from.

    Raises:
        FormatError, UnsupportedError: the header is damaged, or of an unknown version.
    """

    def __init__(self, sections: DwarfSections, at: int, directory: str) -> None:
        program = _Program(sections, at, directory)
        try:
            program.read_header()
            self._rows = sorted(program.run(), key=_by_address)
        except (IndexError, struct.error) as error:
            raise sections.wrong("line", at, "a line program is cut off") from error
        self._addresses = [row[0] for row in self._rows]
        self._program = program

    def find(self, address: int) -> Line | None:
        """Return the place that the instruction at `address` was made from, None if it is in no run of the table."""
        number = bisect_right(self._addresses, address) - 1
        if number < 0 or self._rows[number][1] < 0:
            return None
        _, file, line, column = self._rows[number]
        path = self.file(file)
        return None if path is None else Line(path, line, column)

    def file(self, number: int) -> str | None:
        """Return the path of a file by its number in this unit, None if there is none."""
        program = self._program
        number -= program.version < 5
        if not 0 <= number < len(program.files):
            return None
        name, directory = program.files[number]
        if directory < len(program.directories):
            name = posixpath.join(program.directory, program.directories[directory], name)
        return posixpath.normpath(name)


def _by_address(row: Row) -> tuple[int, bool]:
    """Order rows by address; where one run ends and another begins, the beginning counts."""
    return row[0], row[1] >= 0


class _Program:
    """A line program, and the place that is read next."""

    def __init__(self, sections: DwarfSections, start: int, directory: str) -> None:
        self._sections = sections
        self._start = start
        self.directory = directory
        self.version = 0
        self.directories: list[str] = []
        self.files: list[tuple[str, int]] = []
        self._data = b""
        self._at = 0

    def _fixed(self, size: int) -> int:
        data = self._data[self._at : self._at + size]
        if len(data) < size:
            raise IndexError
        self._at += size
        return int.from_bytes(data, self._sections.byteorder)

    def _leb128(self) -> int:
        value, self._at = read_leb128(self._data, self._at)
        return value

    def _string(self) -> str:
        end = self._data.find(b"\0", self._at)
        if end < 0:
            raise IndexError
        text = self._data[self._at : end].decode("utf-8", "replace")
        self._at = end + 1
        return text

    def read_header(self) -> None:
        """Read all up to the opcodes. Raises IndexError, FormatError, UnsupportedError."""
        length = self._sections.number("line", self._start, 4)
        self._offset_size, head = 4, 4
        if length == 0xFFFFFFFF:
            length, self._offset_size, head = self._sections.number("line", self._start + 4, 8), 8, 12
        self._data = self._sections["line"].read(self._start + head, length)
        if len(self._data) < length:
            raise IndexError
        self.version = self._fixed(2)
        if not 2 <= self.version <= 5:
            raise UnsupportedError(f"line programs of DWARF version {self.version}", self._sections.path)
        if self.version >= 5:
            self._fixed(2)  # sizes of addresses and of segment selectors
        header_length = self._fixed(self._offset_size)
        self._first = self._at + header_length
        self._unit = self._fixed(1)
        if self.version >= 4:
            self._fixed(1)  # operations in one instruction: 1 but for VLIW processors
        self._fixed(1)  # default_is_stmt
        base = self._fixed(1)
        self._line_base = base - 256 if base > 127 else base
        self._line_range = self._fixed(1)
        self._opcode_base = self._fixed(1)
        if not self._line_range or not self._opcode_base:
            raise IndexError
        self._arguments = [self._fixed(1) for _ in range(self._opcode_base - 1)]
        if self.version >= 5:
            self.directories = [name for name, _ in self._table()]
            self.files = self._table()
            return
        self.directories = [""]
        while name := self._string():
            self.directories.append(name)
        while name := self._string():
            self.files.append((name, self._leb128()))
            self._leb128()
            self._leb128()

    def _table(self) -> list[tuple[str, int]]:
        """Return (name, number of its directory) of a table of version 5."""
        formats = [(self._leb128(), self._leb128()) for _ in range(self._fixed(1))]
        count = self._leb128()
        if count > MAX_FILES or (count and not formats):
            raise IndexError
        found = []
        for _ in range(count):
            name, directory = "", 0
            for kind, form in formats:
                value = self._value(form)
                if kind == LNCT_PATH and isinstance(value, str):
                    name = value
                elif kind == LNCT_DIRECTORY_INDEX and isinstance(value, int):
                    directory = value
            found.append((name, directory))
        return found

    def _value(self, form: int) -> str | int:
        if form == FORM_LINE_STRP:
            return self._sections.string("line_str", self._fixed(self._offset_size))
        if form == FORM_STRP:
            return self._sections.string("str", self._fixed(self._offset_size))
        if form == FORM_STRING:
            return self._string()
        if form == FORM_UDATA:
            return self._leb128()
        if form in FIXED_FORMS:
            return self._fixed(FIXED_FORMS[form])
        raise UnsupportedError(f"form {form:#x} in a line program", self._sections.path)

    def run(self) -> list[Row]:
        """Return the rows in the program's order. Raises IndexError, FormatError."""
        data, end = self._data, len(self._data)
        unit, line_base, line_range, opcode_base = self._unit, self._line_base, self._line_range, self._opcode_base
        constant = (255 - opcode_base) // line_range * unit
        address, file, line, column = 0, 1, 1, 0
        rows: list[Row] = []
        emit: Callable[[Row], None] = rows.append
        at = self._first
        while at < end:
            opcode = data[at]
            at += 1
            if opcode >= opcode_base:
                opcode -= opcode_base
                address += opcode // line_range * unit
                line += line_base + opcode % line_range
                emit((address, file, line, column))
            elif opcode == LNS_COPY:
                emit((address, file, line, column))
            elif opcode == LNS_ADVANCE_PC:
                value, at = read_leb128(data, at)
                address += value * unit
            elif opcode == LNS_ADVANCE_LINE:
                value, at = read_sleb128(data, at)
                line += value
            elif opcode == LNS_SET_FILE:
                file, at = read_leb128(data, at)
            elif opcode == LNS_SET_COLUMN:
                column, at = read_leb128(data, at)
            elif opcode == LNS_CONST_ADD_PC:
                address += constant
            elif opcode == LNS_FIXED_ADVANCE_PC:
                address += int.from_bytes(data[at : at + 2], self._sections.byteorder)
                at += 2
            elif opcode == 0:
                size, at = read_leb128(data, at)
                kind = data[at]
                if kind == LNE_END_SEQUENCE:
                    emit((address, -1, 0, 0))
                    address, file, line, column = 0, 1, 1, 0
                elif kind == LNE_SET_ADDRESS:
                    address = int.from_bytes(data[at + 1 : at + size], self._sections.byteorder)
                at += size
            else:
                for _ in range(self._arguments[opcode - 1]):
                    _, at = read_leb128(data, at)
            if len(rows) > MAX_ROWS:
                raise self._sections.wrong("line", self._start, f"more than {MAX_ROWS} rows")
        return rows
