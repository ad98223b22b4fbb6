"""Unwind rules for lldb, byte by byte: DWARF 5 section 6.4.2 and table 7.29, LSB Core 10.6.1 for the section."""

from __future__ import annotations

import struct

from kvm_dbg.kernel.unwind_rule import UnwindRow
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


def test_a_frame_that_nobody_called_has_no_return_address() -> None:
    for row in (
        UnwindRow(at(0), at(0x40), "end", "", 0),
        UnwindRow(at(0), at(0x40), "undefined", "", 0),
        UnwindRow(at(0), at(0x40), "call", "rsp", 9),  # DWARF's factor is 8
        UnwindRow(at(0), at(0x40), "call", "xmm0", 8),
    ):
        assert instructions(row) == bytes((UNDEFINED, RIP))
