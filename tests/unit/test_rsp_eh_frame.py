"""Unwind rules for lldb, byte by byte: DWARF 5 section 6.4.2 and table 7.29, LSB Core 10.6.1 for the section."""

from __future__ import annotations

import struct

import pytest

from kvm_dbg.arch import find_arch
from kvm_dbg.kernel.unwind_rule import UnwindRow
from kvm_dbg.kernel_file.chain_frame import make_chain_eh_frame
from kvm_dbg.rsp.eh_frame import Entry, make_eh_frame

SLIDE = 0x1000
START = 0xFFFFFFFF81000000

# DW_CFA_undefined, DW_CFA_offset_extended_sf, DW_CFA_def_cfa_sf of x86-64's registers
UNDEFINED, OFFSET, DEF_CFA = 0x07, 0x11, 0x12
RAX, RBX, RSP, RIP = 0, 3, 7, 16


def records(section: bytes) -> list[bytes]:
    """Return the entries' bodies, which start with the CIE's distance (0 for a CIE); the section ends with a zero."""
    found = []
    at = 0
    while size := struct.unpack_from("<I", section, at)[0]:
        assert not (size + 4) % 8
        found.append(section[at + 4 : at + 4 + size])
        at += 4 + size
    assert at + 4 == len(section)
    return found


def instructions(*rows: UnwindRow) -> bytes:
    """Return the instructions of one function of 0x40 bytes."""
    fde = records(make_eh_frame([Entry(START, START + 0x40, rows)], SLIDE))[2]
    assert struct.unpack_from("<QQ", fde, 4) == (START, 0x40)
    assert fde[20] == 0  # no augmentation data
    return fde[21:].rstrip(b"\0")


def at(offset: int) -> int:
    return START + SLIDE + offset


def test_what_holds_at_a_functions_start_needs_no_instruction() -> None:
    assert instructions(UnwindRow(at(0), at(0x40), "call", "rsp", 8)) == b""


def test_a_push_moves_the_frame_and_hides_what_may_have_been_saved() -> None:
    code = instructions(
        UnwindRow(at(0), at(1), "call", "rsp", 8), UnwindRow(at(1), at(0x40), "call", "rsp", 16, "previous", -16)
    )
    assert code.startswith(bytes((0x04, 1, 0, 0, 0, DEF_CFA, RSP, 0x7E)))  # advance by 1; rsp + -2 * -8
    assert bytes((UNDEFINED, RBX)) in code
    assert bytes((OFFSET, 6, 2)) in code  # rbp is at the frame's address + 2 * -8


def test_a_function_that_interrupts_has_a_signal_frame_and_all_registers() -> None:
    row = UnwindRow(at(0), at(0x40), "regs", "rsp", 8)
    section = make_eh_frame([Entry(START, START + 0x40, (row,)), Entry(START + 0x40, START + 0x50, ())], SLIDE)
    plain, signal, interrupting, other = records(section)
    assert (plain[4:7], signal[4:8]) == (b"\1z\0", b"\1zS\0")
    assert section.index(interrupting) - struct.unpack_from("<I", interrupting)[0] == section.index(signal) - 4
    assert section.index(other) - struct.unpack_from("<I", other)[0] == section.index(plain) - 4
    # arch/x86/include/asm/ptrace.h: ax is at 80, ip at 128, sp at 152
    for register, offset in ((RAX, 80), (RIP, 128), (RSP, 152)):
        assert bytes((OFFSET, register, -offset // 8 & 0x7F)) in interrupting


def test_the_stack_pointer_is_said_anew_behind_saved_registers() -> None:
    code = instructions(UnwindRow(at(0), at(4), "regs", "rsp", 0), UnwindRow(at(4), at(0x40), "call", "rsp", 24))
    assert bytes((0x16, RSP, 2, 0x77, 24)) in code  # DW_CFA_val_expression: DW_OP_breg7 24


def test_a_switched_stack_is_found_in_memory() -> None:
    code = instructions(UnwindRow(at(0), at(0x40), "call", "[rsp]", 16))
    # DW_CFA_def_cfa_expression: DW_OP_breg7 0, DW_OP_deref, DW_OP_consts 16, DW_OP_plus
    assert code.startswith(bytes((0x0F, 6, 0x77, 0, 0x06, 0x11, 16, 0x22)))


def test_a_frame_in_a_chain_begins_with_its_callers_frame_pointer() -> None:
    code = instructions(UnwindRow(at(0), at(0x40), "chain", "rbp", 16))
    assert code.startswith(bytes((DEF_CFA, 6, 0x7E)))  # rbp + -2 * -8
    assert bytes((OFFSET, 6, 2)) in code  # rbp is at the frame's address + 2 * -8
    assert bytes((UNDEFINED, RBX)) in code
    assert bytes((UNDEFINED, RIP)) not in code


def test_a_frame_that_nobody_called_has_no_return_address() -> None:
    for row in (
        UnwindRow(at(0), at(0x40), "end", "", 0),
        UnwindRow(at(0), at(0x40), "undefined", "", 0),
        UnwindRow(at(0), at(0x40), "call", "rsp", 9),  # DWARF's factor is 8
        UnwindRow(at(0), at(0x40), "call", "xmm0", 8),
        UnwindRow(at(0), at(0x40), "chain", "rbp", 24),
    ):
        assert instructions(row) == bytes((UNDEFINED, RIP))


def test_without_code_a_frame_pointers_return_address_is_found_by_an_expression() -> None:
    rows = (
        UnwindRow(at(0), at(0x20), "call", "rbp", 16, "previous", -16),
        UnwindRow(at(0x20), at(0x40), "call", "rsp", 8),
    )
    fde = records(make_eh_frame([Entry(START, START + 0x40, rows)], SLIDE, blind=True))[2]
    expression = bytes((0x10, RIP, 2, 0x76, 8))  # DW_CFA_expression: DW_OP_breg6 8
    code = fde[21:]
    assert code.count(expression) == 1
    assert code.index(bytes((0x04, 0x20, 0, 0, 0))) > code.index(expression)
    assert bytes((OFFSET, RIP, 1)) in code[code.index(expression) :]  # by rsp it is where it always is
    assert expression not in instructions(*rows)


def test_a_frame_pointer_leads_to_the_callers_frame() -> None:
    code = instructions(UnwindRow(at(0), at(0x40), "chain", "rbp", 16))
    assert code.startswith(bytes((DEF_CFA, 6, 0x7E)))  # rbp + -2 * -8
    assert bytes((OFFSET, 6, 2)) in code  # rbp is at the frame's address + 2 * -8, and rip where it was
    assert bytes((UNDEFINED, RBX)) in code
    assert bytes((UNDEFINED, RIP)) not in code


@pytest.mark.parametrize(
    ("name", "row", "back", "frame", "saved"),
    [
        # DW_CFA_def_cfa
        ("aarch64", UnwindRow(0, 0, "chain", "x29", 16), 30, (0x0C, 29, 16), {29: 2, 30: 1}),
        ("riscv64", UnwindRow(0, 0, "chain", "fp", 0), 1, (0x0C, 8, 0), {8: 2, 1: 1}),
        # DW_CFA_def_cfa_expression: DW_OP_breg1 0, DW_OP_deref
        ("ppc64", UnwindRow(0, 0, "chain", "[r1]", 0), 65, (0x0F, 3, 0x71, 0, 0x06), {65: 0x7E}),
    ],
)
def test_other_processors_have_one_rule_for_all_functions(
    name: str, row: UnwindRow, back: int, frame: tuple[int, ...], saved: dict[int, int]
) -> None:
    functions = [(START, START + 0x40), (START + 0x40, START + 0x100)]
    section = make_chain_eh_frame(find_arch(name, byteorder="little"), functions, row)
    cie, *entries = records(section)
    assert cie[4:11] == b"\1z\0\1\x78" + bytes((back, 0))  # the factor of data is -8
    assert cie[11:].startswith(bytes(frame))
    assert all(bytes((OFFSET, register, words)) in cie for register, words in saved.items())
    assert [struct.unpack_from("<QQ", entry, 4) for entry in entries] == [
        (start, end - start) for start, end in functions
    ]
    for entry in entries:
        assert section.index(entry) == struct.unpack_from("<I", entry)[0]  # the way back to the CIE, which is first
        assert not entry[20:].strip(b"\0")
