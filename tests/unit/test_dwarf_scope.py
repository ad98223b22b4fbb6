"""Source lines and inlined functions out of written DWARF."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest

from kvm_dbg.debuginfo.dwarf_scope import CodeMap
from kvm_dbg.debuginfo.relocation import relocated
from kvm_dbg.elf import ElfFile
from kvm_dbg.errors import FormatError, KvmDbgError, UnsupportedError
from tests.writers import dwarf as d
from tests.writers.dwarf import Die, DwarfWriter
from tests.writers.dwarf_line import Row, address_ranges, line_program
from tests.writers.kernel_file import ALLOC, EXEC, SECTION, Entry, Part, write_kernel_file

BASE = 0xFFFFFFFF81000000
COLD = BASE + 0x1000  # a part of the function far from the rest
RELA = 4


def entries(version: int, base: int = BASE) -> list[Die]:
    """outer() at +0..+0x40 and in COLD; in it middle() at +0x10..+0x20, inside a block, and inner() at +0x14..+0x18."""
    size = d.DATA4
    inner = Die(
        d.INLINED,
        [
            (d.ABSTRACT_ORIGIN, d.REF4, "inner"), (d.LOW_PC, d.ADDR, base + 0x14), (d.HIGH_PC, size, 4),
            (d.CALL_FILE, d.DATA1, 2 - (version >= 5)), (d.CALL_LINE, d.DATA1, 31), (d.CALL_COLUMN, d.DATA1, 7),
        ],
    )  # fmt: skip
    middle = Die(
        d.INLINED,
        [
            (d.ABSTRACT_ORIGIN, d.REF4, "middle"), (d.LOW_PC, d.ADDR, base + 0x10), (d.HIGH_PC, size, 0x10),
            (d.CALL_FILE, d.DATA1, 1 - (version >= 5)), (d.CALL_LINE, d.DATA2, 300),
        ],
        [inner],
    )  # fmt: skip
    block = Die(d.LEXICAL_BLOCK, [(d.LOW_PC, d.ADDR, base + 8), (d.HIGH_PC, size, 0x20)], [middle])
    return [
        Die(d.SUBPROGRAM, [(d.NAME, d.STRP, "inner_function"), (d.INLINE, d.DATA1, 3)], label="inner"),
        Die(d.SUBPROGRAM, [(d.NAME, d.STRP, "middle_function"), (d.INLINE, d.DATA1, 3)], label="middle"),
        Die(d.SUBPROGRAM, [(d.NAME, d.STRP, "outer_function"), (d.RANGES, d.SEC_OFFSET, 0)], [block], label="outer"),
        Die(
            d.SUBPROGRAM,
            [(d.NAME, d.STRP, "next_function"), (d.LOW_PC, d.ADDR, base + 0x40), (d.HIGH_PC, size, 0x10)],
        ),
    ]


def rows(version: int, base: int = BASE) -> list[Row]:
    c, h = (0, 1) if version >= 5 else (1, 2)
    return [
        (base, c, 10, 1), (base + 8, c, 12, 5), (base + 0x10, h, 30, 2), (base + 0x14, h, 20, 9),
        (base + 0x18, h, 32, 1), (base + 0x20, c, 14, 3), (base + 0x40, c, 1000, 0), base + 0x50,
        (COLD, c, 11, 4), COLD + 0x10,
    ]  # fmt: skip


def written(version: int = 5, *, aranges: bool = True) -> list[Part]:
    writer = DwarfWriter("<", version)
    directories = ["/build", "include"] if version >= 5 else ["include"]
    files = [("a.c", 0), ("b.h", 1)]
    if version >= 5:  # DW_RLE_start_length for each
        runs = b"\x07" + struct.pack("<Q", BASE) + b"\x40" + b"\x07" + struct.pack("<Q", COLD) + b"\x10\0"
    else:
        runs = struct.pack("<6Q", BASE, BASE + 0x40, COLD, COLD + 0x10, 0, 0)
    whole = len(runs)
    runs += b"\x07" + struct.pack("<Q", BASE) + b"\x50" + b"\x07" + struct.pack("<Q", COLD) + b"\x10\0"
    if version < 5:
        runs = runs[:whole] + struct.pack("<6Q", BASE, BASE + 0x50, COLD, COLD + 0x10, 0, 0)
    writer.unit(*[Die(d.BASE, [(d.NAME, d.STRP, "some type")])])
    start = len(writer.info)
    writer.unit(
        *entries(version),
        attributes=[
            (d.COMP_DIR, d.STRING, "/build"), (d.STMT_LIST, d.SEC_OFFSET, 0), (d.RANGES, d.SEC_OFFSET, whole),
            (d.LOW_PC, d.ADDR, 0),
        ],
    )  # fmt: skip
    parts = writer.parts()
    parts.append(Part(".debug_line", flags=0, data=line_program(version, directories, files, rows(version))))
    parts.append(Part(".debug_rnglists" if version >= 5 else ".debug_ranges", flags=0, data=runs))
    if aranges:
        parts.append(Part(".debug_aranges", flags=0, data=address_ranges(start, (BASE, 0x50), (COLD, 0x10))))
    return parts


def places(code: CodeMap, address: int) -> list[tuple[str | None, str | None, bool]]:
    found = code.places_at(address)
    return [
        (place.function, place.line and f"{place.line.file}:{place.line.line}:{place.line.column}", place.inlined)
        for place in found
    ]


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("aranges", [True, False])
def test_places(version: int, aranges: bool) -> None:
    code = CodeMap(ElfFile(write_kernel_file(written(version, aranges=aranges)), "vmlinux"))
    assert places(code, BASE) == [("outer_function", "/build/a.c:10:1", False)]
    assert places(code, BASE + 0xF) == [("outer_function", "/build/a.c:12:5", False)]
    assert places(code, BASE + 0x12) == [
        ("middle_function", "/build/include/b.h:30:2", True),
        ("outer_function", "/build/a.c:300:0", False),
    ]
    assert places(code, BASE + 0x17) == [
        ("inner_function", "/build/include/b.h:20:9", True),
        ("middle_function", "/build/include/b.h:31:7", True),
        ("outer_function", "/build/a.c:300:0", False),
    ]
    assert places(code, BASE + 0x3F) == [("outer_function", "/build/a.c:14:3", False)]
    assert places(code, BASE + 0x40) == [("next_function", "/build/a.c:1000:0", False)]
    assert places(code, COLD + 4) == [("outer_function", "/build/a.c:11:4", False)]
    for outside in (BASE - 1, BASE + 0x50, COLD - 1, COLD + 0x10):
        assert places(code, outside) == []


def test_the_file_of_the_unit() -> None:
    code = CodeMap(ElfFile(write_kernel_file(written()), "vmlinux"))
    unit = code.unit_at(BASE)
    assert unit is not None
    assert unit.path == "/build/unit.c"
    assert code.unit_at(BASE + 1) is unit


def test_no_debug_information_says_so() -> None:
    with pytest.raises(UnsupportedError, match="without debug information"):
        CodeMap(ElfFile(write_kernel_file([]), "vmlinux"))


@pytest.mark.parametrize("version", [4, 5])
def test_a_line_program_that_is_cut_off(version: int) -> None:
    for size in range(0, 60, 3):
        parts = [
            part._replace(data=part.data[:size]) if part.name == ".debug_line" else part for part in written(version)
        ]
        code = CodeMap(ElfFile(write_kernel_file(parts), "vmlinux"))
        with pytest.raises(FormatError, match="debug_line") as caught:
            code.places_at(BASE)
        assert caught.value.path == "vmlinux"


def test_mutants_raise_only_our_errors() -> None:
    generator = random.Random(8)
    for version in (4, 5):
        good = written(version)
        for _ in range(400):
            parts = list(good)
            number = generator.choice([at for at, part in enumerate(parts) if part.name != ".debug_str"])
            data = bytearray(parts[number].data)
            for _ in range(generator.choice((1, 3))):
                data[generator.randrange(len(data))] = generator.choice((0, 1, 0x7F, 0xFF, generator.randrange(256)))
            if generator.random() < 0.2:
                del data[generator.randrange(len(data)) :]
            parts[number] = parts[number]._replace(data=bytes(data))
            with contextlib.suppress(KvmDbgError):
                code = CodeMap(ElfFile(write_kernel_file(parts), "vmlinux"))
                for address in (BASE, BASE + 0x16, COLD):
                    code.places_at(address)


def module_file(*relocations: tuple[int, int, int, int], flags: int = 0) -> bytes:
    """Return a file that was not linked, its .debug_info 32 bytes of 0xFF; relocations: place, symbol, type, addend."""
    parts = [
        Part(".text", flags=ALLOC | EXEC, data=bytes(16)),
        Part(".init.text", flags=ALLOC | EXEC, data=bytes(16)),
        Part(".debug_info", flags=flags, data=b"\xff" * 32),
        Part(".debug_str", flags=0, data=b"\0name\0"),
        Part(
            ".rela.debug_info",
            RELA,
            0,
            data=b"".join(
                struct.pack("<QQq", place, symbol << 32 | kind, add) for place, symbol, kind, add in relocations
            ),
            link=6,
            info=3,
        ),
    ]
    symbols = [
        Entry("", 0, 0, ".text", 0, SECTION), Entry("", 0, 0, ".init.text", 0, SECTION),
        Entry("", 0, 0, ".debug_str", 0, SECTION), Entry("f", 8, 4, ".text"),
    ]  # fmt: skip
    return write_kernel_file(parts, symbols, kind=1)


def info_of(elf: ElfFile) -> bytes:
    section = elf.find_section(".debug_info")
    assert section is not None
    return bytes(elf.section_data(section))


def test_a_module_is_relocated_to_where_its_sections_are() -> None:
    text = 0xFFFFFFFFC0001000
    elf = ElfFile(module_file((0, 1, 1, 4), (8, 3, 10, 1), (16, 4, 1, -1), (24, 2, 1, 0), (24, 0, 0, 0)), "m.ko")
    info = info_of(relocated(elf, {".text": text}))
    assert info[:8] == struct.pack("<Q", text + 4)
    assert info[8:16] == struct.pack("<I", 1) + b"\xff" * 4
    assert info[16:24] == struct.pack("<Q", text + 8 - 1)
    assert struct.unpack("<Q", info[24:])[0] < 1 << 63  # its section is gone: no address of the kernel's


def test_a_linked_file_needs_no_relocation() -> None:
    elf = ElfFile(write_kernel_file([]), "vmlinux")
    assert relocated(elf, {}) is elf


@pytest.mark.parametrize("wrong", [(28, 1, 1, 0), (1 << 40, 1, 1, 0), (0, 99, 1, 0)])
def test_relocations_that_lead_nowhere(wrong: tuple[int, int, int, int]) -> None:
    with pytest.raises(FormatError, match="a relocation of byte"):
        relocated(ElfFile(module_file(wrong), "m.ko"), {})


def test_relocations_that_are_not_known() -> None:
    with pytest.raises(UnsupportedError, match="relocation type 2"):
        relocated(ElfFile(module_file((0, 1, 2, 0)), "m.ko"), {})
    with pytest.raises(UnsupportedError, match="compressed"):
        relocated(ElfFile(module_file((0, 1, 1, 0), flags=0x800), "m.ko"), {})
