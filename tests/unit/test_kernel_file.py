"""Made kernel files: their sections, symbols and unwind rules, and what damaged tables cost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from kvm_dbg.elf import open_elf
from kvm_dbg.kernel.base import Area
from kvm_dbg.kernel.linux.area import for_each_area
from kvm_dbg.kernel.linux.orc_table import PIECE_ROWS, for_each_unwind_table
from kvm_dbg.kernel.unwind_rule import UnwindRow, UnwindTable
from kvm_dbg.kernel_file.elf_writer import Section, build_id_section, memory_section, write_elf
from kvm_dbg.kernel_file.frame import MAX_ENTRY_ROWS, by_function, make_debug_frame
from kvm_dbg.kernel_file.frame_rule import Rule, encode_change
from kvm_dbg.kernel_file.symbol import join, make_symbols
from kvm_dbg.symbols.base import Symbol, SymbolColumns
from kvm_dbg.symbols.elf import ElfSymbolTable
from tests.unit.test_rsp_unwind import EXPECTED, IPS, OLD_TABLE, ROWS, TEXT, OrcTypes, make_kernel, table_of
from tests.writers.stand_in import StandInKernel, Symbols

SLIDE = 0x0100_0000
CALL: Rule = ("call", "rsp", 8, "", 0)


def write(folder: Path, sections: list[Section]) -> Path:
    path = folder / "made"
    path.write_bytes(b"".join(write_elf(sections, 62)))
    return path


def test_sections_and_segments(tmp_path: Path) -> None:
    sections = [
        memory_section(".text", 0x1000, 0x2000, executable=True),
        memory_section(".data", 0x2000, 0x2800, writable=True),
        memory_section(".bss", 0x2800, 0x9000, writable=True),
        memory_section(".text.far", 0xFFFF_FFFF_C000_0000, 0xFFFF_FFFF_C000_1000, executable=True),
        build_id_section(bytes(range(20))),
        Section(".debug_frame", 1, b"frame", align=8),
    ]
    with open_elf(write(tmp_path, sections)) as file:
        assert file.machine == "x86_64"
        assert file.find_build_id() == bytes(range(20))
        assert [(one.vaddr, one.memsz, one.filesz, one.flags) for one in file.segments] == [
            (0x1000, 0x1000, 0, 5),
            (0x2000, 0x7000, 0, 6),
            (0xFFFF_FFFF_C000_0000, 0x1000, 0, 5),
        ]
        found = file.find_section(".debug_frame")
        assert found is not None
        assert found.offset % 8 == 0
        assert bytes(file.section_data(found)) == b"frame"
        text = file.find_section(".text")
        assert text is not None
        assert (text.type, text.addr, text.size, text.flags) == (8, 0x1000, 0x1000, 6)


def test_too_many_segments_are_none(tmp_path: Path) -> None:
    sections = [memory_section(f".{index}", index << 16, (index << 16) + 16) for index in range(1, 200)]
    with open_elf(write(tmp_path, sections)) as file:
        assert file.segments == ()
        assert len(file.sections) == 201


def columns(symbols: list[Symbol]) -> SymbolColumns:
    return Symbols(symbols).columns()


AREAS = (
    Area(".data..percpu", 0, 0x100, writable=True, fixed=True),
    Area(".text", 0x8100_0000, 0x8100_1000, executable=True),
    Area(".data", 0x8100_1000, 0x8100_2000, writable=True),
)
NAMES = [
    Symbol("per_cpu", 0x40, 0, "A"),
    Symbol("number", 0x2000, 0, "a"),
    Symbol("first", 0x8100_0000, 0, "T"),
    Symbol("_text", 0x8100_0000, 0, "T"),
    Symbol("second", 0x8100_0010, 0, "t"),
    Symbol("sized", 0x8100_0020, 4, "W"),
    Symbol("_etext", 0x8100_1000, 0, "T"),
    Symbol("datum", 0x8100_1000, 0, "d"),
    Symbol("code_of_a_linker", 0x8100_1800, 0, "t"),
    Symbol("_end", 0x8100_2000, 0, "B"),
    Symbol("nowhere", 0x9000_0000, 0, "T"),
]


def make_table(folder: Path, slide: int = 0) -> tuple[ElfSymbolTable, int, dict[str, tuple[int, int, int, int]]]:
    placed = make_symbols(columns(NAMES), AREAS, slide)
    parts = [
        memory_section(area.name, area.start - (0 if area.fixed else slide), area.end - (0 if area.fixed else slide))
        for area in AREAS
    ]
    path = write(folder, [*parts, *placed.sections])
    with path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        rows = {
            symbol.name: (
                symbol["st_value"],
                symbol["st_size"],
                {"STT_FUNC": 2, "STT_OBJECT": 1, "STT_NOTYPE": 0}[symbol["st_info"]["type"]],
                0xFFF1 if symbol["st_shndx"] == "SHN_ABS" else symbol["st_shndx"],
            )
            for symbol in table.iter_symbols()
            if symbol.name
        }
        first_global = table["sh_info"]
        bindings = [symbol["st_info"]["bind"] for symbol in table.iter_symbols()]
        assert set(bindings[:first_global]) == {"STB_LOCAL"}
        assert "STB_LOCAL" not in bindings[first_global:]
    return ElfSymbolTable(path), placed.homeless, rows


def test_symbols_have_sections_types_and_sizes(tmp_path: Path) -> None:
    table, homeless, rows = make_table(tmp_path)
    assert homeless == 1
    assert rows == {
        "per_cpu": (0x40, 0xC0, 1, 1),
        "number": (0x2000, 0, 0, 0xFFF1),
        "first": (0x8100_0000, 0x10, 2, 2),
        "_text": (0x8100_0000, 0, 2, 2),  # the kernel shows the first one: only that has a size
        "second": (0x8100_0010, 0x10, 2, 2),
        "sized": (0x8100_0020, 4, 2, 2),
        "_etext": (0x8100_1000, 0x800, 1, 3),
        "datum": (0x8100_1000, 0, 1, 3),
        "code_of_a_linker": (0x8100_1800, 0x800, 1, 3),
        "_end": (0x8100_2000, 0, 1, 3),
    }
    at = table.find_at(0x8100_0004)
    assert at is not None
    assert at.name == "first"


def test_a_slide_moves_what_is_a_place(tmp_path: Path) -> None:
    _, _, rows = make_table(tmp_path, SLIDE)
    assert (rows["first"][0], rows["_end"][0]) == (0x8000_0000, 0x8000_2000 + 0x100_0000 - SLIDE)
    assert (rows["per_cpu"][0], rows["number"][0]) == (0x40, 0x2000)


def test_tables_are_joined_in_order_of_address() -> None:
    joined = join(
        [columns([Symbol("b", 2, 1, "t"), Symbol("d", 4)]), columns([Symbol("a", 1, 3, "D"), Symbol("c", 3)])]
    )
    assert joined == SymbolColumns([b"a", b"b", b"c", b"d"], [1, 2, 3, 4], [3, 1, 0, 0], b"Dt??")


def test_no_symbols_make_no_table() -> None:
    assert make_symbols(join([]), AREAS, 0).sections == ()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [  # DWARF 5, 7.24: DW_CFA_def_cfa_offset 0e, def_cfa 0c, def_cfa_sf 12, offset 80+, restore c0+, expression 10
        (CALL, CALL, ""),
        (CALL, ("call", "rsp", 16, "", 0), "0e10"),
        (CALL, ("call", "rsp", 208, "previous", -16), "0ed0018602"),
        (("call", "rsp", 16, "previous", -16), ("call", "rbp", 16, "previous", -16), "0c0610"),
        (("call", "rbp", 16, "previous", -16), CALL, "0c0708c6"),
        (CALL, ("call", "r10", -8, "", 0), "120a01"),
        (CALL, ("call", "[rbp]", -8, "rbp", 0), "0f067678061100221006027600"),
        (("regs", "rsp", 0, "", 0), CALL, ""),
        (CALL, ("end", "", 0, "", 0), "0710"),
        (("undefined", "", 0, "", 0), ("call", "rsp", 16, "", 0), "0c07089001c60e10"),  # all is said anew
    ],
)
def test_a_change_of_rules_is_as_short_as_it_can_be(old: Rule, new: Rule, expected: str) -> None:
    assert encode_change(old, new).hex() == expected


def entries_of(folder: Path, frame: bytes) -> dict[int, tuple[int, bytes]]:
    """Return the address of each entry, its end, and its CIE's augmentation, as pyelftools reads them."""
    path = write(folder, [Section(".debug_frame", 1, frame)])
    with path.open("rb") as file:
        found = [item for item in ELFFile(file).get_dwarf_info().CFI_entries() if isinstance(item, FDE)]
        return {
            item.header["initial_location"]: (
                item.header["initial_location"] + item.header["address_range"],
                item.cie.header["augmentation"],
            )
            for item in found
            if item.cie is not None
        }


def test_entries_begin_where_functions_do_and_around_other_rows(tmp_path: Path) -> None:
    frame = make_debug_frame([table_of(EXPECTED, (TEXT + 0x80, TEXT + 0x100))], SLIDE, user=False)
    base = TEXT - SLIDE
    assert entries_of(tmp_path, frame) == {
        base: (base + 0x80, b""),
        base + 0x80: (base + 0x100, b""),  # a system call
        base + 0x100: (base + 0x180, b"zS"),  # an interrupt
        base + 0x180: (base + 0x200, b""),
        base + 0x200: (base + 0x280, b""),
        base + 0x280: (base + 0x284, b"zS"),  # the stack is switched
        base + 0x284: (base + 0x400, b""),
    }


def test_with_functions_there_is_an_entry_for_each_that_is_called(tmp_path: Path) -> None:
    """The system call at 0x80 and the interrupt at 0x100 have none; the last row goes on in a function of its own."""
    functions = [TEXT + offset for offset in (0x10, 0x80, 0x100, 0x200, 0x300, 0x400)]
    frame = make_debug_frame([table_of(EXPECTED)], SLIDE, user=False, functions=functions)
    base = TEXT - SLIDE
    assert {start - base: end - base for start, (end, _) in entries_of(tmp_path, frame).items()} == {
        0: 0x10,
        0x10: 0x80,
        0x200: 0x300,
        0x300: 0x400,
    }


def test_odd_functions_are_whole_and_no_others() -> None:
    functions = [TEXT + offset for offset in (0, 0x40, 0x80, 0x120, 0x200, 0x280, 0x300)]
    found = [(rows[0].start - TEXT, rows[-1].end - TEXT) for rows in by_function(ODD_TABLE, functions).for_each_odd()]
    assert found == [(0x80, 0x120), (0x120, 0x200), (0x300, 0x380)]


ODD_TABLE = table_of(
    [
        UnwindRow(TEXT, TEXT + 0xA0, "call", "rsp", 8),
        UnwindRow(TEXT + 0xA0, TEXT + 0x150, "regs", "rsp", 0),  # in two functions
        UnwindRow(TEXT + 0x150, TEXT + 0x220, "call", "rsp", 16),
        UnwindRow(TEXT + 0x220, TEXT + 0x2A0, "undefined", "", 0),
        UnwindRow(TEXT + 0x2A0, TEXT + 0x360, "call", "[rsp]", 16),
        UnwindRow(TEXT + 0x360, TEXT + 0x380, "end", "", 0),
    ]
)


def test_rules_go_on_behind_a_place_that_nobody_knows(tmp_path: Path) -> None:
    rows = [
        UnwindRow(TEXT, TEXT + 4, "call", "rsp", 8),
        UnwindRow(TEXT + 4, TEXT + 8, "call", "rbp", 16, "previous", -16),
        UnwindRow(TEXT + 8, TEXT + 0xC, "undefined", "", 0),
        UnwindRow(TEXT + 0xC, TEXT + 0x10, "call", "rsp", 24),
    ]
    path = write(
        tmp_path, [Section(".debug_frame", 1, make_debug_frame([table_of(rows)], user=False, functions=[TEXT]))]
    )
    with path.open("rb") as file:
        (entry,) = (item for item in ELFFile(file).get_dwarf_info().CFI_entries() if isinstance(item, FDE))
        table = {line["pc"] - TEXT: line for line in entry.get_decoded().table}
    assert sorted(table) == [0, 4, 8, 0xC]
    assert (table[8][16].type, table[0xC][16].type, table[0xC][16].arg) == ("UNDEFINED", "OFFSET", -8)
    assert (table[0xC]["cfa"].reg, table[0xC]["cfa"].offset) == (7, 24)
    assert (table[4][6].type, table[0xC][6].type) == ("OFFSET", "SAME_VALUE")


def test_an_entry_has_a_bounded_number_of_rows(tmp_path: Path) -> None:
    rows = [UnwindRow(TEXT + index, TEXT + index + 1, "call", "rsp", 16 + index % 2 * 8) for index in range(10_000)]
    found = entries_of(tmp_path, make_debug_frame([table_of(rows)], user=False))
    assert sorted(found) == [TEXT + index for index in range(0, 10_000, MAX_ENTRY_ROWS)]


def test_rules_that_nobody_can_say_are_none(tmp_path: Path) -> None:
    rows = [
        UnwindRow(TEXT, TEXT + 1, "call", "cr3", 8),
        UnwindRow(TEXT + 1, TEXT + 2, "call", "rsp", 9),
        UnwindRow(TEXT + 2, TEXT + 3, "call", "rsp", 16, "rdi", 8),
        UnwindRow(TEXT + 3, TEXT + 4, "regs", "[rsp]", 8),
        UnwindRow(TEXT + 4, TEXT + 5, "later", "rsp", 8),
    ]
    frame = make_debug_frame([table_of(rows)], user=False)
    assert len(entries_of(tmp_path, frame)) == 5
    assert frame.count(b"\x07\x10\0\0") == 5  # DW_CFA_undefined rip


def own_tables(kernel: StandInKernel) -> list[UnwindTable]:
    return list(for_each_unwind_table(kernel, modules=False))


def rows_in(table: UnwindTable) -> Iterator[UnwindRow]:
    ends = [*table.starts[1:], table.end][: len(table.rules)]
    for start, end, rule in zip(table.starts, ends, table.rules, strict=True):
        yield table.decode(rule)._replace(start=start, end=end)


def test_all_rows_of_a_kernel() -> None:
    (table,) = own_tables(make_kernel(OrcTypes(old=True), OLD_TABLE))
    assert list(rows_in(table)) == EXPECTED
    assert table.problem == ""


def test_rows_outside_the_text_are_left_out() -> None:
    kernel = make_kernel(OrcTypes(old=True), [*OLD_TABLE, (0x500, OLD_TABLE[0][1])])
    tables = own_tables(kernel)
    assert [row for table in tables for row in rows_in(table)] == EXPECTED


def many_rows(count: int) -> list[tuple[int, bytes]]:
    return [(4 * index, OLD_TABLE[1][1]) for index in range(count)]


def large_kernel(count: int) -> StandInKernel:
    kernel = make_kernel(OrcTypes(old=True), many_rows(count))
    found = {symbol.name: symbol for symbol in kernel.symbols.for_each()}
    found["_etext"] = Symbol("_etext", TEXT + 4 * count)
    kernel.symbols = Symbols(found.values())
    return kernel


def test_a_missing_page_costs_its_rows() -> None:
    count = 3 * PIECE_ROWS
    kernel = large_kernel(count)
    del kernel.space._pages[(IPS + 4096) // 4096]  # of the addresses: PIECE_ROWS rows
    tables = own_tables(kernel)
    rows = [row for table in tables for row in rows_in(table)]
    # The row before the gap has an end that nobody knows.
    assert [row.start for row in rows] == [
        TEXT + 4 * index for index in range(count) if not PIECE_ROWS - 1 <= index < 2 * PIECE_ROWS
    ]
    assert all(row.end == row.start + 4 for row in rows)
    problems = [table.problem for table in tables if table.problem]
    assert problems == [f"the kernel: {PIECE_ROWS + 1} of {count} unwind rules (ORC) are not in the image, or damaged"]


def test_a_damaged_piece_costs_its_rows() -> None:
    count = 2 * PIECE_ROWS
    kernel = large_kernel(count)
    noise = random.Random(7).randbytes(400)
    kernel.image.write(kernel.translate(IPS + 4000), noise)  # type: ignore[attr-defined]
    tables = own_tables(kernel)
    rows = [row for table in tables for row in rows_in(table)]
    good = [index for index in range(count) if not 1000 <= index < 1100]
    assert [row.start for row in rows if (row.start - TEXT) // 4 not in range(995, 1105)] == [
        TEXT + 4 * index for index in good if index not in range(995, 1105)
    ]
    assert all(row.end == row.start + 4 for row in rows)
    assert sum(bool(table.problem) for table in tables) == 1


def test_nothing_but_noise_is_said() -> None:
    kernel = large_kernel(PIECE_ROWS)
    kernel.image.write(kernel.translate(IPS), random.Random(8).randbytes(4 * PIECE_ROWS))  # type: ignore[attr-defined]
    tables = own_tables(kernel)
    assert sum(len(table.rules) for table in tables) < 4
    assert any("damaged" in table.problem for table in tables)
    kernel.image.write(kernel.translate(ROWS), random.Random(9).randbytes(6 * PIECE_ROWS))  # type: ignore[attr-defined]
    make_debug_frame(own_tables(kernel))


def test_a_kernel_without_rules_has_no_table() -> None:
    assert own_tables(StandInKernel()) == []


def test_tables_that_cannot_be_are_said() -> None:
    kernel = make_kernel(OrcTypes(old=True), OLD_TABLE)
    found = {symbol.name: symbol for symbol in kernel.symbols.for_each()}
    found["__stop_orc_unwind_ip"] = Symbol("__stop_orc_unwind_ip", IPS + (1 << 40))
    kernel.symbols = Symbols(found.values())
    (table,) = own_tables(kernel)
    assert "cannot be used: " in table.problem


def test_areas_fill_the_kernel() -> None:
    kernel = StandInKernel()
    kernel.symbols = Symbols(
        [
            Symbol("__per_cpu_start", 0),
            Symbol("__per_cpu_end", 0x3000),
            Symbol("_text", TEXT),
            Symbol("_etext", TEXT + 0x100),
            Symbol("__start_rodata", TEXT + 0x200),
            Symbol("__end_rodata", TEXT + 0x180),  # impossible
            Symbol("_sdata", TEXT + 0x300),
            Symbol("_edata", TEXT + 0x400),
            Symbol("_end", TEXT + 0x1000),
        ]
    )
    found = [(area.name, area.start, area.end, area.executable, area.fixed) for area in for_each_area(kernel)]
    assert found == [
        (".data..percpu", 0, 0x3000, False, True),
        (".text", TEXT, TEXT + 0x100, True, False),
        (".rest1", TEXT + 0x100, TEXT + 0x300, False, False),
        (".data", TEXT + 0x300, TEXT + 0x400, False, False),
        (".rest2", TEXT + 0x400, TEXT + 0x1000, False, False),
    ]


def test_a_kernel_without_its_bounds_has_no_areas() -> None:
    assert list(for_each_area(StandInKernel())) == []
