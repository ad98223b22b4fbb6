"""Unwind rules as debuggers read them: .debug_frame, made from what the kernel's own unwinder knows (ORC).

Where a whole file is made, all code has its rules from here. Beside a vmlinux they fill its gaps: entry code is
assembly without call frame information, where a debugger guesses and shows stack words as callers; and where C code
runs on another stack for a while, the compiler's rules are wrong. A debugger takes the first rule that it finds: the
file has to be loaded before vmlinux.

ORC says nothing of registers other than the stack, instruction and frame pointers: those that a function may have
saved are undefined in its caller, so that a debugger shows no wrong value.

A caller's frame is looked up by the address before its next instruction, which is that of the call; where it was
interrupted, that may belong to another function. A stack grows downwards, and gdb ends a backtrace where a caller's
frame is below: the unwinder has gone astray. It has not where interrupts have stacks of their own. So code that
interrupts, or may be on another stack than its caller, is marked as compilers mark a signal's frame (augmentation "S",
Linux Standard Base, .eh_frame). gdb shows `<signal handler called>` for it.

Facts: DWARF 5 section 6.4 and figure "Register rule instructions" for the encoding (CIE version 1, as in DWARF 2);
System V ABI for x86-64, figure 3.36, for register numbers, 3.4 for registers that a function preserves;
arch/x86/include/asm/ptrace.h for struct pt_regs.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import chain, compress, pairwise
from operator import sub
from typing import Any

from kvm_dbg.elf import SHT_PROGBITS
from kvm_dbg.kernel.base import UnwindTable
from kvm_dbg.kernel_file.elf_writer import Section, memory_section, write_elf
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
INTERRUPT_FRAME = {"rip": 0, "rsp": 24}  # offsets in bytes from where the processor's own frame starts
PRESERVED = ("rbx", "r12", "r13", "r14", "r15")  # by every function; rbp has a rule in each row
USER_START, USER_END = 0x1000, 0x7FFF_FFFF_E000  # a backtrace ends at the first user frame
WORD = (1 << 64) - 1
MACHINE = 62  # EM_X86_64

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

FUNCTION_ALIGN = 16  # bytes; where the kernel's functions are no better aligned, entries only get longer
MAX_ENTRY_ROWS = 1 << 12  # a debugger runs through all rows of an entry up to the one that it wants
ENTRY_HEAD = struct.Struct("<IIQQ")
NOPS = bytes(8)  # DW_CFA_nop
NO_AUGMENTATION = bytes((0,))  # its length

Rule = tuple[str, str, int, str, int]  # an UnwindRow without its addresses
AT_CALL: Rule = ("call", "rsp", 8, "", 0)  # what holds at a function's first instruction, and in the CIE


def make_debug_frame(
    tables: Iterable[UnwindTable],
    slide: int = 0,
    *,
    user: bool = True,
    inlined: bool = False,
    edges: Iterable[int] = (),
) -> bytes:
    """Return .debug_frame with the tables' rules, b"" if there are none.

    Args:
        tables: of x86-64.
        slide: what is subtracted from their addresses.
        user: with a rule that ends a backtrace at the first frame of a user's code, in a file that is not slid.
        edges: more addresses at which entries shall begin: lldb 19 counts an entry's instructions from where the
            function begins.
        inlined: the debugger knows of inlined functions in those that switch the stack, which need no mark then.
    """
    plain, signal = _cie(b""), _cie(b"zS")
    encoder = _Encoder(len(plain), inlined=inlined)
    begins = list(edges)
    entries = [entry for table in tables if table.rules for entry in encoder.entries(table, slide, begins)]
    if user:
        entries.append(_entry(USER_START, USER_END - USER_START, _stop()))
    return plain + signal + b"".join(entries) if entries else b""


def make_frame_file(tables: Iterable[UnwindTable]) -> bytes | None:
    """Return an ELF file with nothing but the tables' rules, at run-time addresses, or None if there are none.

    It is for gaps of a vmlinux, whose functions that switch the stack in the middle keep their names: functions that
    were inlined into them lie between the stacks, and no mark is needed.
    """
    some = list(tables)
    if not some:
        return None
    frame = make_debug_frame(some, inlined=True)
    sections = [memory_section(".text", 0, 0, executable=True), Section(".debug_frame", SHT_PROGBITS, frame)]
    return b"".join(write_elf(sections, MACHINE))


class _Encoder:
    """Turns rows into entries; what has been encoded once is known from then on."""

    def __init__(self, signal: int, *, inlined: bool) -> None:
        self._signal = signal  # where the CIE with the mark is
        self._inlined = inlined
        self._rules: list[Rule] = [AT_CALL]
        self._numbers: dict[Rule, int] = {AT_CALL: 0}
        self._changes = _Known(lambda pair: encode_change(self._rules[pair[0]], self._rules[pair[1]]))
        self._advances = _Known(_advance)

    def entries(self, table: UnwindTable, slide: int, begins: Sequence[int]) -> list[bytes]:
        """Return the entries for a table: about one for each function, one for each row that is no call's."""
        starts, rules = table.starts, table.rules
        number_of = _Known(lambda rule: self._number(_expressible(table.decode(rule)[2:])))
        numbers: list[int] = list(map(number_of.__getitem__, rules))
        # Two pieces for each row but the first of an entry: the way to it, and what changes there.
        pieces: list[bytes] = [b""] * (2 * len(numbers))
        pieces[2::2] = map(self._advances.__getitem__, map(sub, starts[1:], starts))
        pieces[3::2] = map(self._changes.__getitem__, pairwise(numbers))
        called, switches = list(chain(*table.called)), list(chain(*table.switches))
        found = []
        for first, last in pairwise([*self._cuts(starts, numbers, [*switches, *begins]), len(numbers)]):
            start, stop = starts[first], starts[last] if last < len(starts) else table.end
            if start < stop:
                instructions = b"".join(pieces[2 * first + 2 : 2 * last])
                body = self._changes[0, numbers[first]] + instructions
                kind, base, *_ = self._rules[numbers[first]]
                # After an odd number of their edges an address is inside of runs.
                interrupts = kind in ("regs", "partial") and not bisect_right(called, start) & 1
                signal = interrupts or (base == "[rsp]" and not self._inlined) or bisect_right(switches, start) & 1
                found.append(_entry(start - slide & WORD, stop - start, body, self._signal if signal else 0))
        return found

    def _cuts(self, starts: Sequence[int], numbers: list[int], edges: Iterable[int]) -> list[int]:
        """Return where entries begin, ascending.

        That is where what holds at a call holds at an address that a function can have, around rows of other kinds, and
        at the `edges` of code that may be on another stack than its caller.
        """
        single = [rule[0] != "call" or rule[1] == "[rsp]" for rule in self._rules]
        candidates = [not number or alone for number, alone in enumerate(single)]
        cuts = {0, *(bisect_left(starts, edge) for edge in edges)}
        for index in compress(range(len(numbers)), map(candidates.__getitem__, numbers)):
            if single[numbers[index]]:
                cuts.add(index)
                cuts.add(index + 1)
            elif not starts[index] % FUNCTION_ALIGN:
                cuts.add(index)
        cuts.discard(len(numbers))
        found: list[int] = []
        for cut, after in pairwise([*sorted(cuts), len(numbers)]):
            found += range(cut, after, MAX_ENTRY_ROWS)
        return found

    def _number(self, rule: Rule) -> int:
        number = self._numbers.get(rule)
        if number is None:
            number = self._numbers[rule] = len(self._rules)
            self._rules.append(rule)
        return number


class _Known(dict[Any, Any]):
    """What a function returned for each key, asked once."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: Hashable) -> Any:
        value = self[key] = self._make(key)
        return value


def _expressible(rule: Rule) -> Rule:
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

    A row that is no call's has an entry of its own: there is no way from it, and the way to it starts at AT_CALL.
    """
    if new[0] != "call":
        return _alone(new)
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
    return define + bytes((CFA_RESTORE | DWARF_NUMBERS["rbp"],))


def _alone(rule: Rule) -> bytes:
    """Return the instructions of a row that has an entry of its own."""
    kind, base, offset, _, _ = rule
    if kind == "regs":
        return _define_cfa(base, offset) + b"".join([_saved(name, place) for name, place in PT_REGS.items()])
    if kind == "partial":
        rules = [_saved(name, place) for name, place in INTERRUPT_FRAME.items()]
        rules += [_same(name) for name in PRESERVED]  # the entry code has not used them yet, or has put them back
        return _define_cfa(base, offset) + b"".join(rules)
    if kind == "chain":
        return _define_cfa(base, offset) + _saved(base, -offset) + _chained(base)
    return _stop()


def _chained(register: str) -> bytes:
    """Return the rule for the return address behind a frame pointer.

    Its place is 0, where nothing can be read and backtraces end, if this frame pointer is a user's or the caller's 0.
    """
    number = OP_BREG0 + DWARF_NUMBERS[register]
    this = bytes((number, 0))
    expression = bytes((number, 8)) + this + bytes((OP_CONST1U, 63, OP_SHR, OP_MUL))
    expression += this + bytes((OP_DEREF, OP_LIT0, OP_NE, OP_MUL))
    return bytes((CFA_EXPRESSION, DWARF_NUMBERS["rip"])) + encode_unsigned(len(expression)) + expression


def _stop() -> bytes:
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


def _advance(size: int) -> bytes:
    if size < 1 << 6:
        return bytes((CFA_ADVANCE_LOC | size,)) if size else b""
    if size < 1 << 8:
        return struct.pack("<BB", CFA_ADVANCE_LOC1, size)
    if size < 1 << 16:
        return struct.pack("<BH", CFA_ADVANCE_LOC2, size)
    if size < 1 << 32:
        return struct.pack("<BI", CFA_ADVANCE_LOC4, size)
    return struct.pack("<BI", CFA_ADVANCE_LOC4, (1 << 32) - 1) + _advance(size - (1 << 32) + 1)


def _cie(augmentation: bytes) -> bytes:
    head = struct.pack("<IB", 0xFFFFFFFF, 1) + augmentation + b"\0" + encode_unsigned(1) + encode_signed(DATA_ALIGN)
    rules = _define_cfa("rsp", 8) + _saved("rip", -8) + _same("rbp")
    rules += b"".join([bytes((CFA_UNDEFINED, DWARF_NUMBERS[name])) for name in PRESERVED])
    body = head + bytes((DWARF_NUMBERS["rip"],)) + (NO_AUGMENTATION if augmentation else b"") + rules
    body += bytes(-(len(body) + 4) % 8)  # DW_CFA_nop
    return struct.pack("<I", len(body)) + body


def _entry(start: int, size: int, rules: bytes, cie: int = 0) -> bytes:
    """Return the entry for code, by the CIE at that offset, of which all but the first have augmentation data."""
    if cie:
        rules = NO_AUGMENTATION + rules
    padding = -(ENTRY_HEAD.size + len(rules)) % 8
    return ENTRY_HEAD.pack(ENTRY_HEAD.size - 4 + len(rules) + padding, cie, start, size) + rules + NOPS[:padding]
