"""Unwind rules: ORC tables in memory to rows, rows to an ELF file, and which code a kernel file covers by itself."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile

from kvm_dbg.debuginfo.base import IntType, Member, StructType, Type, TypeTable
from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.linux.orc import for_each_unwind_row
from kvm_dbg.kernel.linux.orc_table import for_each_unwind_gap
from kvm_dbg.kernel.unwind_rule import UnwindRow, UnwindTable
from kvm_dbg.kernel_file.frame import USER_END, USER_START, make_frame_file
from kvm_dbg.rsp.frame_table import PADDING, join, read_covered
from kvm_dbg.symbols.base import Symbol
from tests.writers.stand_in import NoTypes, StandInKernel, Symbols

TEXT = 0xFFFFFFFF_82001000  # inside the stand-in's pages
IPS = 0xFFFFFFFF_82010000
ROWS = 0xFFFFFFFF_82020000
S16 = IntType("s16", 2, signed=True)
UNSIGNED = IntType("unsigned int", 4, signed=False)


class OrcTypes(NoTypes):
    """Nothing but `struct orc_entry`: with `end` and a type of two bits, or as since 6.4."""

    def __init__(self, *, old: bool) -> None:
        kind = (("type", 40, 2), ("end", 42, 1)) if old else (("type", 40, 3), ("signal", 43, 1))
        members = [Member("sp_offset", 0, 0, lambda: S16), Member("bp_offset", 16, 0, lambda: S16)]
        for name, offset, bits in (("sp_reg", 32, 4), ("bp_reg", 36, 4), *kind):
            members.append(Member(name, offset, bits, lambda: UNSIGNED))
        self._struct = StructType("struct", "orc_entry", 6, lambda: tuple(members))

    def find_type(self, name: str) -> Type | None:
        return self._struct if name == "struct orc_entry" else None


def entry(sp_offset: int, bp_offset: int, sp_reg: int, bp_reg: int, kind: int) -> bytes:
    return struct.pack("<hhBB", sp_offset, bp_offset, sp_reg | bp_reg << 4, kind)


def make_kernel(types: TypeTable, table: list[tuple[int, bytes]]) -> StandInKernel:
    """Return a kernel with rows at TEXT + offset, as its memory would have them."""
    kernel = StandInKernel()
    kernel.types = types
    kernel.symbols = Symbols(
        [
            Symbol("_text", TEXT),
            Symbol("_etext", TEXT + 0x400),
            Symbol("__start_orc_unwind_ip", IPS),
            Symbol("__stop_orc_unwind_ip", IPS + 4 * len(table)),
            Symbol("__start_orc_unwind", ROWS),
            Symbol("__stop_orc_unwind", ROWS + 6 * len(table)),
        ]
    )
    for index, (offset, row) in enumerate(table):
        place = IPS + 4 * index
        kernel.image.write(kernel.translate(place), struct.pack("<i", TEXT + offset - place))  # type: ignore[attr-defined]
        kernel.image.write(kernel.translate(ROWS + 6 * index), row)  # type: ignore[attr-defined]
    return kernel


OLD_TABLE = [
    (0x000, entry(8, 0, 5, 0, 0)),
    (0x001, entry(16, -16, 5, 1, 0)),
    (0x080, entry(0, 0, 5, 0, 1)),
    (0x100, entry(24, 0, 5, 0, 2)),
    (0x180, entry(0, 0, 0, 0, 0 | 1 << 2)),
    (0x200, entry(16, -16, 4, 1, 0)),
    (0x280, entry(8, 0, 9, 0, 0)),
    (0x284, entry(8, 0, 5, 0, 0)),
]
NEW_TABLE = [
    (0x000, entry(8, 0, 3, 0, 2)),
    (0x001, entry(16, -16, 3, 8, 2)),
    (0x080, entry(0, 0, 3, 0, 3)),
    (0x100, entry(24, 0, 3, 0, 4)),
    (0x180, entry(0, 0, 0, 0, 1)),
    (0x200, entry(16, -16, 4, 8, 2)),
    (0x280, entry(8, 0, 9, 0, 2)),
    (0x284, entry(8, 0, 3, 0, 2)),
]
EXPECTED = [
    UnwindRow(TEXT, TEXT + 1, "call", "rsp", 8),
    UnwindRow(TEXT + 1, TEXT + 0x80, "call", "rsp", 16, "previous", -16),
    UnwindRow(TEXT + 0x80, TEXT + 0x100, "regs", "rsp", 0),
    UnwindRow(TEXT + 0x100, TEXT + 0x180, "partial", "rsp", 24),
    UnwindRow(TEXT + 0x180, TEXT + 0x200, "end", "", 0),
    UnwindRow(TEXT + 0x200, TEXT + 0x280, "call", "rbp", 16, "previous", -16),
    UnwindRow(TEXT + 0x280, TEXT + 0x284, "call", "[rsp]", 8),
    UnwindRow(TEXT + 0x284, TEXT + 0x400, "call", "rsp", 8),
]
LAYOUTS = pytest.mark.parametrize(("old", "table"), [(True, OLD_TABLE), (False, NEW_TABLE)], ids=["6.1", "7.3"])


@LAYOUTS
def test_rows_of_all_text(old: bool, table: list[tuple[int, bytes]]) -> None:
    kernel = make_kernel(OrcTypes(old=old), table)
    assert list(for_each_unwind_row(kernel, [])) == EXPECTED


@LAYOUTS
def test_covered_code_has_no_rows_but_where_the_stack_is_switched(old: bool, table: list[tuple[int, bytes]]) -> None:
    kernel = make_kernel(OrcTypes(old=old), table)
    covered = [(TEXT - 0x1000, TEXT + 0x40), (TEXT + 0xC0, TEXT + 0x1000)]
    assert list(for_each_unwind_row(kernel, covered)) == [
        EXPECTED[1]._replace(start=TEXT + 0x40),
        EXPECTED[2]._replace(end=TEXT + 0xC0),
        EXPECTED[6],
    ]


def test_a_kernel_without_orc_has_no_rows() -> None:
    kernel = StandInKernel()
    assert list(for_each_unwind_row(kernel, [])) == []


def test_tables_of_different_lengths_are_corrupt() -> None:
    kernel = make_kernel(OrcTypes(old=True), OLD_TABLE)
    symbols = {symbol.name: symbol for symbol in kernel.symbols.for_each()}
    symbols["__stop_orc_unwind"] = Symbol("__stop_orc_unwind", ROWS + 6)
    kernel.symbols = Symbols(symbols.values())
    with pytest.raises(CorruptError, match="8 rows of 6 bytes"):
        list(for_each_unwind_row(kernel, []))


def table_of(rows: list[UnwindRow], *called: tuple[int, int]) -> UnwindTable:
    """Return rows without gaps as a table."""
    rules = [row[2:] for row in rows]
    return UnwindTable([row.start for row in rows], rows[-1].end, rules, lambda rule: UnwindRow(0, 0, *rule), called)


def test_gaps_are_tables_without_gaps() -> None:
    kernel = make_kernel(OrcTypes(old=True), OLD_TABLE)
    first, second = for_each_unwind_gap(kernel, [(TEXT - 0x1000, TEXT + 0x40), (TEXT + 0xC0, TEXT + 0x1000)])
    assert ([*first.starts], first.end) == ([TEXT + 0x40, TEXT + 0x80], TEXT + 0xC0)
    assert ([*second.starts], second.end) == ([TEXT + 0x280], TEXT + 0x284)
    assert [first.decode(rule)[2:] for rule in first.rules] == [row[2:] for row in EXPECTED[1:3]]


def read_rules(path: Path) -> Iterator[tuple[int, int, dict[object, object]]]:
    """Yield (start, end, rules of the last location) of every entry, as pyelftools understands the file."""
    with path.open("rb") as file:
        dwarf = ELFFile(file).get_dwarf_info()
        for item in dwarf.CFI_entries():
            if isinstance(item, FDE):
                start = item.header["initial_location"]
                for line in item.get_decoded().table:
                    yield line["pc"], start + item.header["address_range"], line


def test_the_file_says_what_the_rows_say(tmp_path: Path) -> None:
    data = make_frame_file([table_of(EXPECTED)])
    assert data is not None
    (tmp_path / "rules").write_bytes(data)
    rules = {start: (end, line) for start, end, line in read_rules(tmp_path / "rules")}
    assert set(rules) == {row.start for row in EXPECTED} | {USER_START}

    def cfa(offset: int) -> tuple[object, object]:
        rule = rules[TEXT + offset][1]["cfa"]
        return rule.reg, rule.offset  # type: ignore[attr-defined]

    def saved(offset: int) -> dict[object, object]:
        line = rules[TEXT + offset][1]
        return {key: line[key].arg for key in line if isinstance(key, int) and line[key].type == "OFFSET"}  # type: ignore[attr-defined]

    assert (cfa(0), saved(0)) == ((7, 8), {16: -8})
    assert (cfa(1), saved(1)) == ((7, 16), {16: -8, 6: -16})
    assert cfa(0x80) == (7, 0)
    assert saved(0x80)[16] == 128
    assert saved(0x80)[7] == 152
    assert saved(0x80)[15] == 0  # r15 is the first of struct pt_regs
    assert (cfa(0x100), saved(0x100)) == ((7, 24), {16: 0, 7: 24})
    assert rules[TEXT + 0x180][1][16].type == "UNDEFINED"  # type: ignore[attr-defined]
    assert (cfa(0x200), saved(0x200)) == ((6, 16), {16: -8, 6: -16})
    switched = rules[TEXT + 0x280][1]["cfa"]
    assert switched.expr == [0x77, 0, 0x06, 0x11, 8, 0x22]  # type: ignore[attr-defined]
    assert rules[USER_START][0] == USER_END
    assert rules[USER_START][1][16].type == "UNDEFINED"  # type: ignore[attr-defined]


def test_no_rows_make_no_file() -> None:
    assert make_frame_file([]) is None


def test_the_covered_code_of_that_file_is_its_rows(tmp_path: Path) -> None:
    data = make_frame_file([table_of(EXPECTED)])
    assert data is not None
    (tmp_path / "rules").write_bytes(data)
    assert read_covered(str(tmp_path / "rules")) == [(USER_START, USER_END), (TEXT, TEXT + 0x400)]


def test_runs_closer_than_padding_are_one() -> None:
    assert join([]) == []
    assert join([(50, 60), (0, 10)]) == [(0, 60)]
    assert join([(0, 10), (10 + PADDING, 200), (5, 7)]) == [(0, 10), (10 + PADDING, 200)]
