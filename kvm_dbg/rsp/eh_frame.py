"""Unwind rules as lldb wants them: .eh_frame with one entry for each function, made from the kernel's ORC rows.

lldb looks an entry up by the first address of a function, and takes no other for the rest of it: all rows of a function
are in one entry, whatever their kinds. An entry of code that interrupts other code (its rows know a struct pt_regs, or
the processor's own frame) has the augmentation "S": lldb then takes its caller's program counter for the instruction
that was interrupted, not for a return address, and shows a user's one, where it ends.

ORC knows the stack, instruction and frame pointers only. The other registers that a function preserves are as its
caller left them while nothing has been pushed, and undefined where the function may have saved them: a debugger shall
show no wrong value. The same holds of "chain" rows, where frames hang together by their frame pointers.

Facts: DWARF 5 section 6.4.2 and table 7.29 for instructions; Linux Standard Base Core 10.6.1 for .eh_frame and its
augmentations "z" and "S"; System V ABI for x86-64, figure 3.36, for register numbers, 3.2.1 for preserved registers.
Seen: lldb 23 crashes on DW_CFA_restore of a register that the CIE says nothing of, and lldb 19 and 23 take the operands
of DW_CFA_val_offset for instructions; there are none here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kvm_dbg.kernel.unwind_rule import UnwindRow
from kvm_dbg.kernel_file.frame import INTERRUPTS
from kvm_dbg.kernel_file.frame_rule import DWARF_NUMBERS, INTERRUPT_FRAME, SAVED
from kvm_dbg.kernel_file.leb128 import encode_signed

PRESERVED = ("rbx", "rbp", "r12", "r13", "r14", "r15")
WORD = 8
DATA_ALIGN = -WORD
FRAME_SIZE = 2 * WORD  # bytes: the caller's frame pointer and the return address
CFA_ADVANCE_LOC4 = 0x04
CFA_UNDEFINED = 0x07
CFA_SAME_VALUE = 0x08
CFA_DEF_EXPRESSION = 0x0F
CFA_EXPRESSION = 0x10
CFA_OFFSET_SF = 0x11
CFA_DEF_SF = 0x12
CFA_VAL_EXPRESSION = 0x16
OP_DEREF, OP_CONSTS, OP_PLUS, OP_BREG0 = 0x06, 0x11, 0x22, 0x70
PLAIN, SIGNAL = b"z\0", b"zS\0"  # augmentations


class Entry(NamedTuple):
    """The rules of one function, [start, end) in link-time addresses; the rows' addresses are `slide` above those."""

    start: int
    end: int
    rows: Sequence[UnwindRow]


Rules = dict[str, bytes]  # by register: the instruction that says where the caller's value is; "cfa" is the frame


def make_eh_frame(entries: Iterable[Entry], slide: int, *, blind: bool = False) -> bytes:
    """Return the section's bytes; its own address has no meaning, for all pointers in it are absolute.

    blind: the image has no code. lldb unwinds the innermost frame by what it makes of the function's instructions, if
    the rules put the return address where it would look for it; so frame pointers' rules say the same place in
    other words.
    """
    out = bytearray()
    cies: dict[bytes, int] = {}
    for augmentation in (PLAIN, SIGNAL):
        cies[augmentation] = len(out)
        out += _cie(augmentation)
    for entry in entries:
        interrupts = any(row.kind in INTERRUPTS for row in entry.rows)
        distance = len(out) + 4 - cies[SIGNAL if interrupts else PLAIN]
        head = struct.pack("<IQQ", distance, entry.start, entry.end - entry.start)
        out += _padded(head + b"\0" + _instructions(entry, slide, blind))  # no augmentation data
    out += bytes(4)
    return bytes(out)


def _instructions(entry: Entry, slide: int, blind: bool) -> bytes:
    out = bytearray()
    now = _at_entry()
    place = entry.start
    for row in entry.rows:
        start = max(row.start - slide, entry.start)
        if start >= entry.end:
            break
        if start > place:
            out += struct.pack("<BI", CFA_ADVANCE_LOC4, start - place)
            place = start
        rules = _rules(row)
        if blind and row.kind == "call" and row.base == "rbp":
            rules["rip"] = _return_address(row)
        if now["rsp"] and not rules["rsp"]:
            rules["rsp"] = _stack_pointer(row)
        out += b"".join([rule for name, rule in rules.items() if now[name] != rule])
        now = rules
    return bytes(out)


def _at_entry() -> Rules:
    """Return what holds at a function's first instruction: the return address is at the top of the stack."""
    rules = {name: _undefined(name) for name in DWARF_NUMBERS}
    rules.update({name: _same(name) for name in PRESERVED})
    rules["rsp"] = b""  # the frame's own address, unless something else is said
    rules["rip"] = _saved("rip", -8)
    return {"cfa": _frame("rsp", 8), **rules}


def _rules(row: UnwindRow) -> Rules:
    """Return the rules of a row; those of a frame that nobody called where DWARF cannot say it."""
    rules = _at_entry()
    base = row.base.strip("[]")
    fits = base in DWARF_NUMBERS and not row.offset % 8 and not row.frame_offset % 8
    saved = {**SAVED, "partial": INTERRUPT_FRAME}.get(row.kind)
    if fits and row.kind == "call":
        rules["cfa"] = _frame(base, row.offset) if base == row.base else _frame_in_memory(base, row.offset)
        if (row.base, row.offset) != ("rsp", 8):
            rules.update({name: _undefined(name) for name in PRESERVED if name != "rbp"})
        if row.frame_base == "previous":
            rules["rbp"] = _saved("rbp", row.frame_offset)
        elif row.frame_base:
            rules["rbp"] = _undefined("rbp")
    elif fits and row.kind == "chain" and row.offset == FRAME_SIZE:
        rules["cfa"] = _frame(base, row.offset)
        rules.update({name: _undefined(name) for name in PRESERVED if name != base})
        rules[base] = _saved(base, -FRAME_SIZE)
    elif fits and saved is not None and base == row.base:
        rules["cfa"] = _frame(row.base, row.offset)
        rules.update({name: _same(name) for name in DWARF_NUMBERS})
        rules.update({name: _saved(name, offset) for name, offset in saved.items()})
    else:
        rules["rip"] = _undefined("rip")
    return rules


def _frame(register: str, offset: int) -> bytes:
    return bytes((CFA_DEF_SF, DWARF_NUMBERS[register])) + encode_signed(offset // DATA_ALIGN)


def _stack_pointer(row: UnwindRow) -> bytes:
    """Return the rule "the caller's stack pointer is this frame's address", where it was another before."""
    base = row.base if row.kind == "call" and row.base in DWARF_NUMBERS else "rsp"
    expression = bytes((OP_BREG0 + DWARF_NUMBERS[base],)) + encode_signed(row.offset)
    return bytes((CFA_VAL_EXPRESSION, DWARF_NUMBERS["rsp"], len(expression))) + expression


def _return_address(row: UnwindRow) -> bytes:
    """Return the rule "the return address is in the word below the frame's address", by the base register."""
    place = bytes((OP_BREG0 + DWARF_NUMBERS[row.base],)) + encode_signed(row.offset - WORD)
    return bytes((CFA_EXPRESSION, DWARF_NUMBERS["rip"], len(place))) + place


def _frame_in_memory(register: str, offset: int) -> bytes:
    """Return the rule for a stack that was switched: where the old stack pointer was put, and what is added.

    ORC adds its offset to rsp's word after it was read, to rbp before (arch/x86/kernel/unwind_orc.c,
    unwind_next_frame).
    """
    before, after = (0, offset) if register == "rsp" else (offset, 0)
    expression = bytes((OP_BREG0 + DWARF_NUMBERS[register],)) + encode_signed(before) + bytes((OP_DEREF, OP_CONSTS))
    expression += encode_signed(after) + bytes((OP_PLUS,))
    return bytes((CFA_DEF_EXPRESSION, len(expression))) + expression


def _saved(register: str, offset: int) -> bytes:
    return bytes((CFA_OFFSET_SF, DWARF_NUMBERS[register])) + encode_signed(offset // DATA_ALIGN)


def _same(register: str) -> bytes:
    return bytes((CFA_SAME_VALUE, DWARF_NUMBERS[register]))


def _undefined(register: str) -> bytes:
    return bytes((CFA_UNDEFINED, DWARF_NUMBERS[register]))


def _cie(augmentation: bytes) -> bytes:
    head = struct.pack("<IB", 0, 1) + augmentation + b"\1" + encode_signed(DATA_ALIGN)
    return _padded(head + bytes((DWARF_NUMBERS["rip"], 0)) + b"".join(_at_entry().values()))


def _padded(body: bytes) -> bytes:
    body += bytes(-(len(body) + 4) % 8)  # DW_CFA_nop
    return struct.pack("<I", len(body)) + body
