"""Which functions an address is in: the one whose code it is, and those that the compiler inlined there.

Facts: the DWARF standard, 3.3 (DW_TAG_subprogram, DW_TAG_inlined_subroutine with DW_AT_call_file and DW_AT_call_line,
DW_AT_abstract_origin), 3.5 (lexical blocks), 6.1.2 (.debug_aranges).

Only units that are asked for are read. .debug_aranges tells which; where a compiler writes none (clang), or an address
is missing in it, the ranges of the units themselves do.
"""

from __future__ import annotations

import posixpath
import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, NamedTuple

from kvm_dbg.debuginfo.dwarf_entry import DwarfSections, Entry, Run, UnitReader
from kvm_dbg.debuginfo.dwarf_line import Line, LineTable
from kvm_dbg.debuginfo.dwarf_search import read_unit
from kvm_dbg.elf import ElfFile
from kvm_dbg.errors import FormatError

TAG_LEXICAL_BLOCK, TAG_INLINED, TAG_SUBPROGRAM = 0x0B, 0x1D, 0x2E
AT_STMT_LIST, AT_COMP_DIR, AT_CALL_COLUMN, AT_CALL_FILE, AT_CALL_LINE = 0x10, 0x1B, 0x57, 0x58, 0x59
FUNCTIONS: Final = frozenset((TAG_SUBPROGRAM,))
SCOPES: Final = frozenset((TAG_LEXICAL_BLOCK, TAG_INLINED))
KEPT_UNITS = 64  # read units that are kept: two megabytes each at most
MAX_UNITS = 1 << 20
MAX_DEPTH = 256  # scopes inside each other


class Place(NamedTuple):
    """Where an address is in the source.

    function: None if the compiler says nothing of it. line: None if unknown; for a function into which the next inner
    one was inlined, the call. scopes: the entries of the function's blocks that hold the address, outermost first, its
    own before them; empty where there are none.
    """

    function: str | None
    line: Line | None
    inlined: bool
    scopes: tuple[Entry, ...]


class CodeUnit:
    """One unit, its functions and its lines, each read when first needed."""

    def __init__(self, sections: DwarfSections, start: int) -> None:
        self.reader = UnitReader(sections, start)
        self._lines: LineTable | None = None
        self._functions: list[tuple[int, int, int]] | None = None
        self._starts: list[int] = []

    @property
    def path(self) -> str:
        """Return the path of the unit's source file, "" if the unit has no name. Raises FormatError."""
        name = self.reader.string(self.reader.top)
        return posixpath.normpath(posixpath.join(self._directory, name)) if name else ""

    @property
    def _directory(self) -> str:
        return self.reader.string(self.reader.top, AT_COMP_DIR) or ""

    @property
    def lines(self) -> LineTable | None:
        """Return the unit's lines, None if it has none. Raises FormatError, UnsupportedError."""
        if self._lines is None:
            at = self.reader.number(self.reader.top, AT_STMT_LIST)
            if at is None:
                return None
            self._lines = LineTable(self.reader.sections, at, self._directory)
        return self._lines

    def function_at(self, address: int) -> Entry | None:
        """Return the entry of the function that has code at `address`. Raises FormatError."""
        if self._functions is None:
            found = []
            for entry in self.reader.children_of_tag(self.reader.top, FUNCTIONS):
                found += [(start, end, entry.offset) for start, end in self.reader.ranges(entry)]
            self._functions = sorted(found)
            self._starts = [start for start, _, _ in self._functions]
        number = bisect_right(self._starts, address) - 1
        if number < 0 or address >= self._functions[number][1]:
            return None
        return self.reader.entry(self._functions[number][2])

    def scopes_at(self, address: int) -> list[Entry]:
        """Return the function at `address`, and the scopes in it that hold `address`, outermost first."""
        scope = self.function_at(address)
        found: list[Entry] = []
        while scope is not None:
            found.append(scope)
            if len(found) > MAX_DEPTH:
                raise self.reader.wrong(scope.offset, f"more than {MAX_DEPTH} scopes inside each other")
            scope = self._inner(scope, address)
        return found

    def _inner(self, scope: Entry, address: int) -> Entry | None:
        for entry in self.reader.children_of_tag(scope, SCOPES):
            if any(start <= address < end for start, end in self.reader.ranges(entry)):
                return entry
        return None

    def places_at(self, address: int) -> list[Place]:
        """Return the places of an address, the innermost first. Raises FormatError, UnsupportedError."""
        table = self.lines
        line = table.find(address) if table is not None else None
        scopes: list[Entry] = []
        found: list[Place] = []
        for scope in reversed(self.scopes_at(address)):
            scopes.insert(0, scope)
            if scope.tag == TAG_LEXICAL_BLOCK:
                continue
            inlined = scope.tag == TAG_INLINED
            found.append(Place(self.reader.named(scope), line, inlined, tuple(scopes)))
            scopes = []
            if inlined:
                line = self._call_of(scope, table)
        return found or [Place(None, line, False, ())]

    def _call_of(self, scope: Entry, table: LineTable | None) -> Line | None:
        """Return where an inlined function was called."""
        number = self.reader.number
        file, line = number(scope, AT_CALL_FILE), number(scope, AT_CALL_LINE)
        path = table.file(file) if table is not None and file is not None else None
        return Line(path, line or 0, number(scope, AT_CALL_COLUMN) or 0) if path is not None else None


class CodeMap:
    """From addresses, as the file has them, to units.

    Args:
        elf: the file; it must stay open.

    Raises:
        UnsupportedError: the file has no debug information.
    """

    def __init__(self, elf: ElfFile) -> None:
        self.sections = DwarfSections(elf)
        self._units: OrderedDict[int, CodeUnit] = OrderedDict()
        self._runs = sorted(self._for_each_arange())
        self._starts = [run[0] for run in self._runs]
        self._complete = False

    def unit_at(self, address: int) -> CodeUnit | None:
        """Return the unit that has code at `address`. Raises FormatError, UnsupportedError."""
        start = self._find(address)
        if start is None and not self._complete:
            self._complete = True
            self._runs = sorted({*self._runs, *self._for_each_unit_run()})
            self._starts = [run[0] for run in self._runs]
            start = self._find(address)
        return None if start is None else self._unit(start)

    def places_at(self, address: int) -> list[Place]:
        """Return the places of an address, the innermost first; none if no unit has it. Raises FormatError, ..."""
        unit = self.unit_at(address)
        return [] if unit is None else unit.places_at(address)

    def _find(self, address: int) -> int | None:
        number = bisect_right(self._starts, address) - 1
        return self._runs[number][2] if number >= 0 and address < self._runs[number][1] else None

    def _unit(self, start: int) -> CodeUnit:
        unit = self._units.get(start)
        if unit is None:
            unit = self._units[start] = CodeUnit(self.sections, start)
            if len(self._units) > KEPT_UNITS:
                self._units.popitem(last=False)
        else:
            self._units.move_to_end(start)
        return unit

    def _for_each_arange(self) -> Iterator[tuple[int, int, int]]:
        """Yield (start, end, the unit's place) of .debug_aranges. Raises FormatError."""
        sections, area = self.sections, self.sections["aranges"]
        at = 0
        for _ in range(MAX_UNITS):
            if at + 12 > len(area):
                return
            length, size, head = sections.number("aranges", at, 4), 4, at + 4
            if length == 0xFFFFFFFF:
                length, size, head = sections.number("aranges", at + 4, 8), 8, at + 12
            end = head + length
            unit = sections.number("aranges", head + 2, size)
            width = sections.number("aranges", head + 2 + size, 1)
            if end > len(area) or width not in (4, 8):
                raise sections.wrong("aranges", at, "a set of ranges does not fit")
            first = head + 4 + size
            first += -(first - at) % (2 * width)
            pairs = struct.Struct(sections.order + ("QQ" if width == 8 else "II"))
            data = area.read(first, max(0, end - first) // pairs.size * pairs.size)
            for start, length in pairs.iter_unpack(data):
                if length:
                    yield start, start + length, unit
            at = end

    def _for_each_unit_run(self) -> Iterator[tuple[int, int, int]]:
        """Yield the same by the units' own ranges; a unit that cannot be read has none."""
        sections, at = self.sections, 0
        for _ in range(MAX_UNITS):
            if at + 12 > len(sections["info"]):
                return
            unit = read_unit(sections["info"], at, sections.order, sections.path)
            try:
                reader = UnitReader(sections, at)
                runs: list[Run] = reader.ranges(reader.top)
            except FormatError:
                runs = []
            yield from ((start, end, at) for start, end in runs)
            at = unit.end
