"""An ELF file with nothing but unwind rules (.debug_frame), for the code that vmlinux has none for.

The kernel's entry code is assembly without call frame information: a debugger guesses there, and shows stack words
as callers. Where C code runs on another stack for a while, the compiler's rules are wrong. The kernel itself unwinds
both by ORC; those rows, said in DWARF, make a debugger's backtrace end where the kernel's does. A debugger takes the
first rule that it finds: the file has to be loaded before vmlinux.

Facts: DWARF 5 section 6.4 and figure "Register rule instructions" for the encoding (CIE version 1, as in DWARF 2);
System V ABI for x86-64, figure 3.36, for register numbers; arch/x86/include/asm/ptrace.h for struct pt_regs. All
addresses in the file are run-time addresses: it is loaded without an offset.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from kvm_dbg.kernel.base import UnwindRow

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
INTERRUPT_FRAME = {"rip": 0, "rsp": 24}  # offsets in bytes from where the processor's own frame starts
USER_START, USER_END = 0x1000, 0x7FFF_FFFF_E000  # a backtrace ends at the first user frame

DATA_ALIGN = -8
CFA_ADVANCE_LOC4 = 0x04
CFA_UNDEFINED = 0x07
CFA_RESTORE = 0xC0
CFA_DEF = 0x0C
CFA_DEF_EXPRESSION = 0x0F
CFA_OFFSET_SF = 0x11
CFA_DEF_SF = 0x12

OP_DEREF, OP_CONSTS, OP_PLUS, OP_BREG0 = 0x06, 0x11, 0x22, 0x70

ADVANCE = struct.Struct("<BI")
ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
EM_X86_64 = 62
SHT_PROGBITS, SHT_STRTAB, SHT_NOBITS = 1, 3, 8
SHF_ALLOC_EXECUTE = 2 | 4


def make_unwind_elf(rows: Iterable[UnwindRow]) -> bytes | None:
    """Return the file for the rows, or None if there are none.

    Neighbouring rows of calls share an entry; each of the other kinds has one of its own.
    """
    fdes: list[bytes] = []
    known: dict[tuple[str, str, int, str, int], bytes] = {}
    start = end = place = 0  # of the entry that is being made, and what its last rule is for
    instructions: list[bytes] = []
    for row in rows:
        key = row[2:]
        rules = known.get(key)
        if rules is None:
            rules = known[key] = _rules(row)
        joins = row.kind == "call" and not row.base.startswith("[")
        if instructions and not (joins and row.start == end):
            fdes.append(_fde(start, end, b"".join(instructions)))
            instructions = []
        if not joins:
            fdes.append(_fde(row.start, row.end, rules))
            continue
        if instructions:
            instructions.append(ADVANCE.pack(CFA_ADVANCE_LOC4, row.start - place))
        else:
            start = row.start
        instructions.append(rules)
        place, end = row.start, row.end
    if instructions:
        fdes.append(_fde(start, end, b"".join(instructions)))
    if not fdes:
        return None
    fdes.append(_fde(USER_START, USER_END, _stop()))
    return _elf(_cie() + b"".join(fdes))


def _uleb(value: int) -> bytes:
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        if not value:
            out.append(byte)
            return bytes(out)
        out.append(byte | 0x80)


def _sleb(value: int) -> bytes:
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        if (value == 0 and not byte & 0x40) or (value == -1 and byte & 0x40):
            out.append(byte)
            return bytes(out)
        out.append(byte | 0x80)


def _define_cfa(register: str, offset: int) -> bytes:
    number = bytes((DWARF_NUMBERS[register],))
    if offset >= 0:
        return bytes((CFA_DEF,)) + number + _uleb(offset)
    return bytes((CFA_DEF_SF,)) + number + _sleb(offset // DATA_ALIGN)


def _define_cfa_by_memory(register: str, offset: int) -> bytes:
    """Return the rule for a stack that was switched: where the old stack pointer was put, and what is added.

    ORC adds its offset to rsp's word after it was read, to rbp before (arch/x86/kernel/unwind_orc.c,
    unwind_next_frame; since 87ccc826bf1c, 5.12, and not used with rsp before).
    """
    before, after = (0, offset) if register == "rsp" else (offset, 0)
    number = DWARF_NUMBERS[register]
    expression = bytes((OP_BREG0 + number,)) + _sleb(before) + bytes((OP_DEREF, OP_CONSTS)) + _sleb(after)
    expression += bytes((OP_PLUS,))
    return bytes((CFA_DEF_EXPRESSION,)) + _uleb(len(expression)) + expression


def _saved(register: str, offset: int) -> bytes:
    """Return the rule "the caller's register is in memory, at CFA + offset"."""
    return bytes((CFA_OFFSET_SF, DWARF_NUMBERS[register])) + _sleb(offset // DATA_ALIGN)


def _stop() -> bytes:
    """Return the rules of a frame that nobody called."""
    return _define_cfa("rsp", 8) + bytes((CFA_UNDEFINED, DWARF_NUMBERS["rip"]))


def _rules(row: UnwindRow) -> bytes:
    base = row.base.strip("[]")
    if base not in DWARF_NUMBERS or row.offset % 8 or row.frame_offset % 8:
        return _stop()
    if row.kind == "call":
        define = _define_cfa if base == row.base else _define_cfa_by_memory
        rules = define(base, row.offset) + _saved("rip", -8)
        if row.frame_base == "previous":
            return rules + _saved("rbp", row.frame_offset)
        return rules + bytes((CFA_RESTORE | DWARF_NUMBERS["rbp"],))
    saved = {"regs": PT_REGS, "partial": INTERRUPT_FRAME}.get(row.kind)
    if saved is None or base != row.base:
        return _stop()
    return _define_cfa(row.base, row.offset) + b"".join([_saved(name, offset) for name, offset in saved.items()])


def _padded(body: bytes) -> bytes:
    body += bytes(-(len(body) + 4) % 8)  # DW_CFA_nop
    return struct.pack("<I", len(body)) + body


def _cie() -> bytes:
    head = struct.pack("<IB", 0xFFFFFFFF, 1) + b"\0" + _uleb(1) + _sleb(DATA_ALIGN)
    return _padded(head + bytes((DWARF_NUMBERS["rip"],)) + _define_cfa("rsp", 8) + _saved("rip", -8))


def _fde(start: int, end: int, rules: bytes) -> bytes:
    return _padded(struct.pack("<IQQ", 0, start, end - start) + rules)


def _elf(debug_frame: bytes) -> bytes:
    names = b"\0.text\0.debug_frame\0.shstrtab\0"
    frame_offset = ELF_HEADER.size
    names_offset = frame_offset + len(debug_frame)
    table_offset = (names_offset + len(names) + 7) & -8
    sections = (
        (0, 0, 0, 0, 0, 0),
        (names.index(b".text"), SHT_NOBITS, SHF_ALLOC_EXECUTE, 0, frame_offset, 0),
        (names.index(b".debug_frame"), SHT_PROGBITS, 0, 0, frame_offset, len(debug_frame)),
        (names.index(b".shstrtab"), SHT_STRTAB, 0, 0, names_offset, len(names)),
    )
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = ELF_HEADER.pack(
        ident, 2, EM_X86_64, 1, 0, 0, table_offset, 0, ELF_HEADER.size, 0, 0, SECTION_HEADER.size, len(sections), 3
    )
    table = b"".join(
        SECTION_HEADER.pack(name, kind, flags, addr, offset, size, 0, 0, 1, 0)
        for name, kind, flags, addr, offset, size in sections
    )
    return (header + debug_frame + names).ljust(table_offset, b"\0") + table
