"""Expressions, location lists and call frame information, with the answers that the DWARF standard gives."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Mapping

import pytest

from kvm_dbg.debuginfo.dwarf_entry import DwarfSections, Entry, UnitReader
from kvm_dbg.debuginfo.dwarf_frame import FrameTable, SavedRegisters
from kvm_dbg.debuginfo.dwarf_location import OPTIMIZED_OUT, FrameFacts, Location, locate
from kvm_dbg.elf import ElfFile
from kvm_dbg.errors import FormatError, KvmDbgError, NotInImageError
from tests.writers import dwarf as d
from tests.writers.dwarf import Die, DwarfWriter, leb128
from tests.writers.kernel_file import Part, write_kernel_file

BASE = 0xFFFFFFFF81000000
SLIDE = 0x3000000
STACK = 0xFFFFC90000001000
MEMORY = bytes(range(0x80, 0x100))
REGISTERS = {3: 0x1122334455667788, 6: STACK + 0x40, 7: STACK}  # rbx, rbp, rsp


def read(vaddr: int, size: int) -> bytes:
    if not STACK <= vaddr <= STACK + len(MEMORY) - size:
        raise NotInImageError(vaddr, size, "hole")
    return MEMORY[vaddr - STACK : vaddr - STACK + size]


def facts(registers: Mapping[int, int] = REGISTERS, cfa: int | None = STACK + 0x50) -> FrameFacts:
    return FrameFacts(registers, lambda number: f"r{number}", cfa, SLIDE, read)


class Written:
    """A unit with a function whose frame base is its call frame's address, and one variable."""

    def __init__(self, variable: d.Attribute | None, version: int = 5, extra: tuple[Part, ...] = ()) -> None:
        writer = DwarfWriter("<", version)
        child = Die(d.VARIABLE, [(d.NAME, d.STRP, "counter"), *([variable] if variable is not None else [])])
        base: list[d.Attribute] = [(d.NAME, d.STRP, "function"), (d.FRAME_BASE, d.EXPRLOC, b"\x9c")]
        writer.unit(Die(d.SUBPROGRAM, base, [child]), attributes=[(d.LOW_PC, d.ADDR, BASE)])
        self.sections = DwarfSections(ElfFile(write_kernel_file([*writer.parts(), *extra]), "vmlinux"))
        self.reader = UnitReader(self.sections, 0)
        self.function: Entry = next(self.reader.children(self.reader.top))
        self.variable: Entry = next(self.reader.children(self.function))

    def locate(self, size: int = 4, address: int = BASE, known: FrameFacts | None = None) -> Location:
        return locate(self.reader, self.variable, self.function, address, size, known or facts())


def at(code: bytes, size: int = 4, known: FrameFacts | None = None) -> Location:
    return Written((d.LOCATION, d.EXPRLOC, code)).locate(size, known=known)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (b"\x03" + u64(BASE + 0x100), BASE + SLIDE + 0x100),  # addr
        (b"\x91\x10", STACK + 0x60),  # fbreg 16
        (b"\x91\x70", STACK + 0x40),  # fbreg -16
        (b"\x77\x08", STACK + 8),  # breg7 8
        (b"\x92\x07\x08", STACK + 8),  # bregx 7, 8
        (b"\x77\x00\x06", 0x8786858483828180),  # deref
        (b"\x77\x00\x94\x02", 0x8180),  # deref_size 2
        (b"\x77\x00\x23\x05", STACK + 5),  # plus_uconst 5
    ],
)
def test_addresses(code: bytes, expected: int) -> None:
    assert at(code) == Location(address=expected)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (b"\x35", 5),
        (b"\x08\xff", 255),
        (b"\x09\xff", -1),
        (b"\x0a\xff\xff", 65535),
        (b"\x0b\xfe\xff", -2),
        (b"\x0d\xfe\xff\xff\xff", -2),
        (b"\x0e" + u64(1 << 63), -1 << 63),
        (b"\x10\x80\x01", 128),
        (b"\x11\x7f", -1),
        (b"\x35\x33\x1c", 2),  # 5 - 3
        (b"\x35\x11\x7e\x1b", -2),  # 5 / -2, towards zero
        (b"\x11\x79\x32\x1b", -3),  # -7 / 2
        (b"\x11\x7f\x33\x1d", ((1 << 64) - 1) % 3),  # mod is unsigned
        (b"\x11\x7e\x33\x1e", -6),
        (b"\x11\x7f\x31\x25", (1 << 63) - 1),  # shr
        (b"\x11\x7e\x31\x26", -1),  # shra
        (b"\x31\x08\x40\x24", 0),  # all bits shifted out
        (b"\x11\x7f\x30\x2d", 1),  # -1 < 0
        (b"\x11\x7f\x30\x2b", 0),  # -1 > 0
        (b"\x35\x36\x29", 0),
        (b"\x35\x1f", -5),
        (b"\x35\x20", -6),
        (b"\x11\x7b\x19", 5),
        (b"\x31\x32\x33\x17\x1c", 1 - 2),  # rot: 1 2 3 becomes 3 1 2
        (b"\x31\x32\x14\x1c\x22", 1 + (2 - 1)),  # over
        (b"\x31\x32\x33\x15\x02\x1c\x22\x22", 1 + 2 + (3 - 1)),  # pick 2
        (b"\x31\x32\x16\x1c", 2 - 1),  # swap
        (b"\x35\x2f\x01\x00\x13\x96", 5),  # skip over drop
        (b"\x35\x31\x28\x01\x00\x13", 5),  # bra, taken
        (b"\x35\x36\x30\x28\x01\x00\x13", 6 - 1),  # bra, not taken: drop
    ],
)
def test_arithmetic(code: bytes, expected: int) -> None:
    found = at(code + b"\x9f", 8)
    assert found.data == (expected & (1 << 64) - 1).to_bytes(8, "little")


def test_registers_values_and_pieces() -> None:
    assert at(b"\x53").data == b"\x88\x77\x66\x55"  # the low bytes
    assert at(b"\x90\x03", 2).data == b"\x88\x77"
    assert at(b"\x9e\x04abcd").data == b"abcd"
    assert at(b"\x53\x93\x02\x77\x00\x93\x02").data == b"\x88\x77\x80\x81"
    assert at(b"").why == OPTIMIZED_OUT
    assert Written(None).locate().why == OPTIMIZED_OUT
    assert OPTIMIZED_OUT in at(b"\x93\x02\x53\x93\x02").why


@pytest.mark.parametrize(
    ("code", "size", "why"),
    [
        (b"\x50", 4, "needs r0"),
        (b"\x70\x00", 4, "needs r0"),
        (b"\x53", 16, "16 bytes of a register of 8"),
        (b"\xa3\x01\x55\x9f", 8, "at the function's entry"),
        (b"\xf3\x01\x55\x9f", 8, "at the function's entry"),
        (b"\xa0\0\0\0\0\0", 8, "not in memory"),
        (b"\xa8\x00\x9f", 8, "not supported: 0xa8"),
        (b"\x31\x30\x1b\x9f", 8, "division by zero"),
        (b"\x30\x06\x9f", 8, "not in the image"),
        (b"\x2f\xfd\xff", 8, "does not end"),
        (b"\x22", 8, "damaged"),
        (b"\x0e\x01", 8, "damaged"),
        (b"\x2f\xf0\xff", 8, "damaged"),
    ],
)
def test_what_is_not_known_says_why(code: bytes, size: int, why: str) -> None:
    found = at(code, size)
    assert (found.address, found.data) == (None, None)
    assert why in found.why


def test_without_the_callers_stack_pointer() -> None:
    assert "needs the caller's stack pointer" in at(b"\x91\x00", known=facts(cfa=None)).why


def lists(version: int) -> tuple[Part, int]:
    """Return a section with a list: rbx at +0..+8, rbp at +8..+0x10, and rsp from BASE + 0x100 to +0x110."""
    if version >= 5:
        data = b"\x04\x00\x08\x01\x53" + b"\x04\x08\x10\x01\x56"  # offset_pair
        data += b"\x06" + u64(BASE + 0x100) + b"\x04\x00\x08\x01\x57"  # base_address
        data += b"\x08" + u64(BASE + 0x108) + b"\x08\x01\x57" + b"\0"  # start_length
        return Part(".debug_loclists", flags=0, data=b"header" + data), 6
    rows = [(0, 8, b"\x53"), (8, 0x10, b"\x56"), (0xFFFFFFFFFFFFFFFF, BASE + 0x100, b""), (0, 0x10, b"\x57")]
    data = b"".join(struct.pack("<QQ", *row[:2]) + (struct.pack("<H", 1) + row[2] if row[2] else b"") for row in rows)
    return Part(".debug_loc", flags=0, data=b"before" + data + bytes(16)), 6


@pytest.mark.parametrize("version", [4, 5])
def test_location_lists(version: int) -> None:
    part, place = lists(version)
    written = Written((d.LOCATION, d.SEC_OFFSET, place), version, (part,))
    assert written.locate(8, BASE).data == u64(REGISTERS[3])
    assert written.locate(8, BASE + 7).data == u64(REGISTERS[3])
    assert written.locate(8, BASE + 8).data == u64(REGISTERS[6])
    assert written.locate(8, BASE + 0x10).why == OPTIMIZED_OUT
    assert written.locate(8, BASE + 0x100).data == u64(REGISTERS[7])
    assert written.locate(8, BASE + 0x10F).data == u64(REGISTERS[7])
    assert written.locate(8, BASE + 0x110).why == OPTIMIZED_OUT


def test_a_list_with_a_default() -> None:
    part = Part(".debug_loclists", flags=0, data=b"\x05\x01\x56" + b"\x04\x00\x08\x01\x53" + b"\0")
    written = Written((d.LOCATION, d.SEC_OFFSET, 0), 5, (part,))
    assert written.locate(8, BASE).data == u64(REGISTERS[3])
    assert written.locate(8, BASE + 8).data == u64(REGISTERS[6])


@pytest.mark.parametrize("version", [4, 5])
def test_a_list_that_is_cut_off(version: int) -> None:
    part, place = lists(version)
    part = part._replace(data=part.data[:-17])
    written = Written((d.LOCATION, d.SEC_OFFSET, place), version, (part,))
    with pytest.raises(FormatError, match="debug_loc"):
        written.locate(8, BASE + 0x200)


def test_random_expressions_raise_only_our_errors() -> None:
    generator = random.Random(3)
    written = Written((d.LOCATION, d.EXPRLOC, b"\x30"))
    place, form = d.LOCATION, d.EXPRLOC
    for _ in range(3000):
        code = bytes(generator.randrange(256) for _ in range(generator.randrange(1, 12)))
        entry = written.variable._replace(attributes={place: (form, code)})
        with contextlib.suppress(KvmDbgError):
            found = locate(written.reader, entry, written.function, BASE, 8, facts())
            assert (found.address is None) + (found.data is None) + (not found.why) == 2


def frame_table(code: bytes, version: int = 1) -> FrameTable:
    """Return the table of a function at BASE of 0x40 bytes; at its start the frame is at rsp + 8, as after any call."""
    more = b"\x08\x00" if version >= 4 else b""
    common = b"\xff\xff\xff\xff" + bytes([version]) + b"\0" + more + b"\x01\x78\x10" + b"\x0c\x07\x08\x90\x01"
    common += bytes(-len(common) % 4)
    entry = struct.pack("<IQQ", 0, BASE, 0x40) + code
    data = struct.pack("<I", len(common)) + common + struct.pack("<I", len(entry)) + entry
    writer = DwarfWriter()
    writer.unit(Die(d.BASE, [(d.NAME, d.STRP, "int")]))
    parts = [*writer.parts(), Part(".debug_frame", flags=0, data=data)]
    return FrameTable(DwarfSections(ElfFile(write_kernel_file(parts), "vmlinux")))


@pytest.mark.parametrize("version", [1, 3, 4])
def test_call_frame_information(version: int) -> None:
    # push %rbp; mov %rsp,%rbp; push %rbx; ...; pop %rbx; pop %rbp; ret; and a part behind the return
    code = b"\x41\x0e\x10\x86\x02" + b"\x43\x0d\x06" + b"\x41\x83\x03" + b"\x0a" + b"\x02\x20\xc3\xc6\x0c\x07\x08"
    code += b"\x41\x0b"
    table = frame_table(code, version)
    after = {16: -8}
    assert table.find(BASE) == SavedRegisters((7, 8), after)
    assert table.find(BASE + 1) == SavedRegisters((7, 16), after | {6: -16})
    assert table.find(BASE + 4) == SavedRegisters((6, 16), after | {6: -16})
    assert table.find(BASE + 5) == SavedRegisters((6, 16), after | {6: -16, 3: -24})
    assert table.find(BASE + 0x25) == SavedRegisters((7, 8), after)
    assert table.find(BASE + 0x26) == SavedRegisters((6, 16), after | {6: -16, 3: -24})
    assert table.find(BASE - 1) is None
    assert table.find(BASE + 0x40) is None


@pytest.mark.parametrize(
    "code", [b"\x16\x03\x02\x70\x00", b"\x10\x03\x02\x70\x00", b"\x07\x03", b"\x09\x03\x06", b"\x14\x03\x01"]
)
def test_rules_that_are_not_simple_make_a_register_unknown(code: bytes) -> None:
    row = frame_table(code).find(BASE)
    assert row is not None
    assert row.saved[3] is None


def test_a_frame_that_is_not_simple() -> None:
    row = frame_table(b"\x0f\x02\x77\x00").find(BASE)
    assert row is not None
    assert row.cfa is None
    assert frame_table(b"\x3f").find(BASE) is None  # no instruction that is known
    assert frame_table(b"\x0b").find(BASE) is None  # nothing was remembered


def test_frame_mutants_raise_only_our_errors() -> None:
    generator = random.Random(9)
    for _ in range(1000):
        code = leb128(generator.randrange(1 << 20)) + bytes(generator.randrange(256) for _ in range(12))
        with contextlib.suppress(KvmDbgError):
            frame_table(code).find(BASE + generator.randrange(0x40))
