"""Unwind rules as instructions of DWARF: rows of ORC, and the entries of .debug_frame that they are in.

Facts: DWARF 5 section 6.4 and figure "Register rule instructions" for the encoding (CIE version 1, as in DWARF 2);
System V ABI for x86-64, figure 3.36, for register numbers, 3.4 for registers that a function preserves;
Linux arch/x86/include/asm/ptrace.h for struct pt_regs.
"""

from __future__ import annotations

import struct

from kvm_dbg.kernel.freebsd.machine import AMD64
from kvm_dbg.kernel_file.leb128 import encode_signed, encode_unsigned

DWARF_NUMBERS = {
    "rax": 0,
    "rdx": 1,
    "rcx": 2,
    "rbx": 3,
    "rsi": 4,
    "rdi": 5,
    "rbp": 6,
    "rsp": 7,
    **{f"r{number}": number for number in range(8, 16)},
    "rip": 16,
}
PT_REGS = {  # offsets in bytes
    "r15": 0,
    "r14": 8,
    "r13": 16,
    "r12": 24,
    "rbp": 32,
    "rbx": 40,
    "r11": 48,
    "r10": 56,
    "r9": 64,
    "r8": 72,
    "rax": 80,
    "rcx": 88,
    "rdx": 96,
    "rsi": 104,
    "rdi": 112,
    "rip": 128,
    "rsp": 152,
}
TRAPFRAME = {name: offset for name, offset in AMD64.trapframe.items() if name in DWARF_NUMBERS}
SAVED = {"regs": PT_REGS, "trap": TRAPFRAME}  # kind of row -> where all registers are
INTERRUPT_FRAME = {"rip": 0, "rsp": 24}  # offsets in bytes from where the processor's own frame starts
PRESERVED = ("rbx", "r12", "r13", "r14", "r15")  # by every function; rbp has a rule in each row
DATA_ALIGN = -8
CFA_ADVANCE_LOC = 0x40
CFA_OFFSET = 0x80
CFA_RESTORE = 0xC0
CFA_ADVANCE_LOC1, CFA_ADVANCE_LOC2, CFA_ADVANCE_LOC4 = 0x02, 0x03, 0x04
CFA_UNDEFINED, CFA_SAME_VALUE = 0x07, 0x08
CFA_DEF, CFA_DEF_OFFSET, CFA_DEF_EXPRESSION = 0x0C, 0x0E, 0x0F
CFA_EXPRESSION, CFA_OFFSET_SF, CFA_DEF_SF = 0x10, 0x11, 0x12
OP_DEREF, OP_CONSTS, OP_PLUS, OP_BREG0 = 0x06, 0x11, 0x22, 0x70
OP_CONST1U, OP_MUL, OP_SHR, OP_NE, OP_LIT0 = 0x08, 0x1E, 0x25, 0x2E, 0x30
RESTORE_FRAME_POINTER = bytes((CFA_RESTORE | DWARF_NUMBERS["rbp"],))
ENTRY_HEAD = struct.Struct("<IIQQ")
NOPS = bytes(8)  # DW_CFA_nop
NO_AUGMENTATION = bytes((0,))  # its length

Rule = tuple[str, str, int, str, int]  # an UnwindRow without its addresses
AT_CALL: Rule = ("call", "rsp", 8, "", 0)  # what holds at a function's first instruction, and in the CIE


def expressible(rule: Rule) -> Rule:
    """Return the rule, or that nothing is known where DWARF cannot say it or nobody knows what it means."""
    kind, base, offset, frame_base, frame_offset = rule
    if kind == "end":
        return rule
    if kind == "chain":
        return rule if base in DWARF_NUMBERS and offset == 2 * -DATA_ALIGN else ("undefined", "", 0, "", 0)
    known = base.strip("[]") in DWARF_NUMBERS and (kind == "call" or base in DWARF_NUMBERS)
    if not known or offset % 8 or frame_offset % 8 or frame_base not in ("", "previous", "rbp"):
        return ("undefined", "", 0, "", 0)
    return rule


def encode_change(old: Rule, new: Rule) -> bytes:
    """Return the instructions that lead from the rules of a row to those of the next one in its entry.

    A row that interrupts or ends has an entry of its own: there is no way from it, and the way to it starts at AT_CALL.
    """
    if new[0] != "call":
        return _alone(new)
    if old[0] == "undefined":  # what held before that is forgotten
        return _define_cfa("rsp", 8) + _saved("rip", -8) + RESTORE_FRAME_POINTER + encode_change(AT_CALL, new)
    if old[0] != "call":
        return b""
    _, base, offset, frame_base, frame_offset = new
    if old[1:3] == new[1:3]:
        define = b""
    elif base.startswith("["):
        define = _define_cfa_by_memory(base.strip("[]"), offset)
    elif base == old[1] and offset >= 0:
        define = bytes((CFA_DEF_OFFSET,)) + encode_unsigned(offset)
    else:
        define = _define_cfa(base, offset)
    if old[3:] == new[3:]:
        return define
    if frame_base == "previous":
        return define + _saved("rbp", frame_offset)
    if frame_base == "rbp":
        return define + _saved_at(frame_base, frame_offset)
    return define + RESTORE_FRAME_POINTER


def _alone(rule: Rule) -> bytes:
    """Return the instructions of a row that has an entry of its own."""
    kind, base, offset, _, _ = rule
    if kind in SAVED:
        return _define_cfa(base, offset) + b"".join([_saved(name, place) for name, place in SAVED[kind].items()])
    if kind == "partial":
        rules = [_saved(name, place) for name, place in INTERRUPT_FRAME.items()]
        rules += [_same(name) for name in PRESERVED]  # the entry code has not used them yet, or has put them back
        return _define_cfa(base, offset) + b"".join(rules)
    if kind == "chain":
        return _define_cfa(base, offset) + _saved(base, -offset) + _chained(base)
    return stop()


def _chained(register: str) -> bytes:
    """Return the rule for the return address behind a frame pointer.

    Its place is 0, where nothing can be read and backtraces end, if this frame pointer is a user's or the caller's 0.
    """
    number = OP_BREG0 + DWARF_NUMBERS[register]
    this = bytes((number, 0))
    expression = bytes((number, 8)) + this + bytes((OP_CONST1U, 63, OP_SHR, OP_MUL))
    expression += this + bytes((OP_DEREF, OP_LIT0, OP_NE, OP_MUL))
    return bytes((CFA_EXPRESSION, DWARF_NUMBERS["rip"])) + encode_unsigned(len(expression)) + expression


def stop() -> bytes:
    """Return the rules of a frame that nobody called."""
    return bytes((CFA_UNDEFINED, DWARF_NUMBERS["rip"]))


def _define_cfa(register: str, offset: int) -> bytes:
    number = bytes((DWARF_NUMBERS[register],))
    if offset >= 0:
        return bytes((CFA_DEF,)) + number + encode_unsigned(offset)
    return bytes((CFA_DEF_SF,)) + number + encode_signed(offset // DATA_ALIGN)


def _define_cfa_by_memory(register: str, offset: int) -> bytes:
    """Return the rule for a stack that was switched: where the old stack pointer was put, and what is added.

    ORC adds its offset to rsp's word after it was read, to rbp before (arch/x86/kernel/unwind_orc.c,
    unwind_next_frame; since 87ccc826bf1c, 5.12, and not used with rsp before).
    """
    before, after = (0, offset) if register == "rsp" else (offset, 0)
    number = DWARF_NUMBERS[register]
    expression = (
        bytes((OP_BREG0 + number,)) + encode_signed(before) + bytes((OP_DEREF, OP_CONSTS)) + encode_signed(after)
    )
    expression += bytes((OP_PLUS,))
    return bytes((CFA_DEF_EXPRESSION,)) + encode_unsigned(len(expression)) + expression


def _saved(register: str, offset: int) -> bytes:
    """Return the rule "the caller's register is in memory, at CFA + offset"."""
    number = DWARF_NUMBERS[register]
    if offset <= 0:
        return bytes((CFA_OFFSET | number,)) + encode_unsigned(offset // DATA_ALIGN)
    return bytes((CFA_OFFSET_SF, number)) + encode_signed(offset // DATA_ALIGN)


def _saved_at(register: str, offset: int) -> bytes:
    """Return the rule "the caller's rbp is in memory, at this frame's register + offset"."""
    expression = bytes((OP_BREG0 + DWARF_NUMBERS[register],)) + encode_signed(offset)
    return bytes((CFA_EXPRESSION, DWARF_NUMBERS["rbp"])) + encode_unsigned(len(expression)) + expression


def _same(register: str) -> bytes:
    return bytes((CFA_SAME_VALUE, DWARF_NUMBERS[register]))


def encode_advance(size: int) -> bytes:
    """Return the instructions that lead to the address `size` bytes further on."""
    if size < 1 << 6:
        return bytes((CFA_ADVANCE_LOC | size,)) if size else b""
    if size < 1 << 8:
        return struct.pack("<BB", CFA_ADVANCE_LOC1, size)
    if size < 1 << 16:
        return struct.pack("<BH", CFA_ADVANCE_LOC2, size)
    if size < 1 << 32:
        return struct.pack("<BI", CFA_ADVANCE_LOC4, size)
    return struct.pack("<BI", CFA_ADVANCE_LOC4, (1 << 32) - 1) + encode_advance(size - (1 << 32) + 1)


def encode_cie(augmentation: bytes) -> bytes:
    """Return a CIE, whose rules are AT_CALL."""
    head = struct.pack("<IB", 0xFFFFFFFF, 1) + augmentation + b"\0" + encode_unsigned(1) + encode_signed(DATA_ALIGN)
    rules = _define_cfa("rsp", 8) + _saved("rip", -8) + _same("rbp")
    rules += b"".join([bytes((CFA_UNDEFINED, DWARF_NUMBERS[name])) for name in PRESERVED])
    body = head + bytes((DWARF_NUMBERS["rip"],)) + (NO_AUGMENTATION if augmentation else b"") + rules
    body += bytes(-(len(body) + 4) % 8)  # DW_CFA_nop
    return struct.pack("<I", len(body)) + body


def encode_entry(start: int, size: int, rules: bytes, cie: int = 0) -> bytes:
    """Return the entry for code, by the CIE at that offset, of which all but the first have augmentation data."""
    if cie:
        rules = NO_AUGMENTATION + rules
    padding = -(ENTRY_HEAD.size + len(rules)) % 8
    return ENTRY_HEAD.pack(ENTRY_HEAD.size - 4 + len(rules) + padding, cie, start, size) + rules + NOPS[:padding]
