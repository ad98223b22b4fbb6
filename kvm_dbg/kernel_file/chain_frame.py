"""Unwind rules by frame pointers, for processors other than x86-64: .debug_frame in a file of its own, or .eh_frame.

A gdb that knows no rule for an address guesses from the code, which a dump need not have. Here is one rule for each run
of code: the caller's frame pointer and return address are where the frame pointer leads. Where the chain ends, or has
left the kernel, the return address is at 0, where nothing can be read, which ends a backtrace. Registers that a
function may have saved are undefined in its caller, so that gdb shows no wrong value.

Facts: DWARF 5 sections 2.5 (expressions) and 6.4 (entries, instructions; version 1 of a CIE is DWARF 2's); registers'
numbers and those that are preserved by the System V ABI for i386, table 2.14; AAPCS64 and aadwarf64; the RISC-V ELF
psABI; the 64-bit Power ELF ABI, 2.2 and 2.4. Which column stands for the return address: gdb's aarch64-tdep.c,
riscv-tdep.c, rs6000-tdep.c and i386-tdep.c, functions that start a DWARF frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Literal, NamedTuple

from kvm_dbg.arch.base import Arch
from kvm_dbg.elf import SHT_NOBITS, SHT_PROGBITS, SHT_STRTAB
from kvm_dbg.kernel.unwind_rule import UnwindRow, UnwindTable
from kvm_dbg.kernel_file.leb128 import encode_signed, encode_unsigned

CFA_UNDEFINED, CFA_DEF, CFA_DEF_EXPRESSION = 0x07, 0x0C, 0x0F
CFA_EXPRESSION, CFA_OFFSET_SF = 0x10, 0x11
OP_DEREF, OP_CONST1U, OP_DUP, OP_SWAP, OP_MINUS, OP_MUL = 0x06, 0x08, 0x12, 0x16, 0x1C, 0x1E
OP_PLUS, OP_PLUS_UCONST, OP_SHR, OP_EQ, OP_NE, OP_LIT0, OP_BREG0 = 0x22, 0x23, 0x25, 0x29, 0x2E, 0x30, 0x70
SHF_ALLOC_EXEC = 2 | 4


class Processor(NamedTuple):
    """One processor. registers: DWARF numbers by name. back: the column of the return address.

    link: bytes from the frame's address to where the return address is, if that is above the frame (Power's back
    chain); 0 where it and the caller's frame pointer are the two words below. undefined: registers that a function
    preserves.
    """

    registers: dict[str, int]
    back: int
    undefined: range | tuple[int, ...]
    link: int = 0


PROCESSORS = {
    "i386": Processor({"ebp": 5}, 8, (3, 6, 7)),
    "aarch64": Processor({"x29": 29}, 30, range(19, 29)),
    "riscv64": Processor({"fp": 8}, 1, (9, *range(18, 28))),
    "ppc64": Processor({"[r1]": 1}, 65, range(14, 32), link=16),
}


def make_chain_file(arch: Arch, tables: Iterable[UnwindTable]) -> bytes | None:
    """Return an ELF file with the rules of the kind "chain" at run-time addresses; None if there are none.

    Args:
        arch: one of PROCESSORS, else there are none.
        tables: of one system; rules of other kinds are left out.
    """
    processor = PROCESSORS.get(arch.name)
    if processor is None:
        return None
    writer = _Writer(arch)
    for table in tables:
        for row in table.rows():
            if row.kind == "chain" and row.base in processor.registers:
                number = processor.registers[row.base]
                rules = _back_chain(processor, number) if processor.link else b""
                writer.add(row.start, row.end, rules or _records(arch, processor, number, row.offset))
    return writer.file(processor.back) if writer.entries else None


def make_chain_eh_frame(arch: Arch, functions: Iterable[tuple[int, int]], row: UnwindRow) -> bytes:
    """Return .eh_frame for lldb, with one entry for each function [start, end); pointers are absolute.

    lldb ends a stack where the frame is nowhere, and wants plain rules.

    Args:
        arch: one of PROCESSORS with words of 64 bits, little-endian.
        functions: ascending.
        row: the rule of the kind "chain".

    Raises:
        KeyError: nothing is known of the processor, or of the rule's register.
    """
    processor = PROCESSORS[arch.name]
    number = processor.registers[row.base]
    if processor.link:
        expression = bytes((OP_BREG0 + number, 0, OP_DEREF))
        rules = bytes((CFA_DEF_EXPRESSION,)) + encode_unsigned(len(expression)) + expression
        saved = {processor.back: processor.link // -arch.pointer_size}
    else:
        rules = bytes((CFA_DEF,)) + encode_unsigned(number) + encode_unsigned(row.offset)
        saved = {number: 2, processor.back: 1}
    for register, words in saved.items():
        rules += bytes((CFA_OFFSET_SF,)) + encode_unsigned(register) + encode_signed(words)
    writer = _Writer(arch)
    head = struct.pack("<IB", 0, 1) + b"z\0" + encode_unsigned(1) + encode_signed(-arch.pointer_size)
    out = bytearray(writer.padded(head + bytes((processor.back, 0)) + rules + _undefined(processor)))
    for start, end in functions:
        out += writer.padded(struct.pack("<IQQ", len(out) + 4, start, end - start) + b"\0")  # no augmentation data
    return bytes(out) + bytes(4)


def _records(arch: Arch, processor: Processor, number: int, offset: int) -> bytes:
    """Return the rules where the two words below the frame's address are the caller's frame pointer and address."""
    word = arch.pointer_size
    # is the caller's frame pointer one of the kernel's? i386's may have the same addresses as the user's: any but 0
    test = bytes((OP_CONST1U, 63, OP_SHR)) if word == 8 else bytes((OP_LIT0, OP_NE))
    place = bytes((OP_DUP, OP_CONST1U, 2 * word, OP_MINUS, OP_DEREF)) + test
    place += bytes((OP_SWAP, OP_CONST1U, word, OP_MINUS, OP_MUL))
    out = bytes((CFA_DEF,)) + encode_unsigned(number) + encode_unsigned(offset)
    out += bytes((CFA_OFFSET_SF,)) + encode_unsigned(number) + encode_signed(2)
    return out + _saved_at(processor.back, place) + _undefined(processor)


def _back_chain(processor: Processor, number: int) -> bytes:
    """Return the rules where the stack pointer leads to the caller's, above which is the return address."""
    caller = bytes((OP_BREG0 + number, 0, OP_DEREF))
    # the last frame has no caller: its address is then its own header's end, for gdb wants each above the one before
    frame = caller + bytes((OP_DUP, OP_LIT0, OP_EQ, OP_BREG0 + number, processor.link, OP_MUL, OP_PLUS))
    out = bytes((CFA_DEF_EXPRESSION,)) + encode_unsigned(len(frame)) + frame
    place = caller + bytes((OP_DUP, OP_CONST1U, 63, OP_SHR, OP_SWAP, OP_PLUS_UCONST)) + encode_unsigned(processor.link)
    return out + _saved_at(processor.back, place + bytes((OP_MUL,))) + _undefined(processor)


def _saved_at(register: int, place: bytes) -> bytes:
    """Return the rule that a register is in memory, at what `place` makes of the frame's address."""
    return bytes((CFA_EXPRESSION,)) + encode_unsigned(register) + encode_unsigned(len(place)) + place


def _undefined(processor: Processor) -> bytes:
    return b"".join(bytes((CFA_UNDEFINED,)) + encode_unsigned(number) for number in processor.undefined)


class _Writer:
    """Writes an ELF file of a processor's word size and byte order."""

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self.entries: list[bytes] = []
        self._byteorder: Literal["little", "big"] = "big" if arch.byteorder == "big" else "little"
        self._order = ">" if arch.byteorder == "big" else "<"
        self._word = "Q" if arch.pointer_size == 8 else "I"

    def add(self, start: int, end: int, rules: bytes) -> None:
        """Add the rules for the code at [start, end)."""
        body = struct.pack(self._order + "I" + 2 * self._word, 0, start, end - start) + rules
        self.entries.append(self.padded(body))

    def padded(self, body: bytes) -> bytes:
        """Return an entry with its length."""
        body += bytes(-(len(body) + 4) % 8)  # DW_CFA_nop
        return struct.pack(self._order + "I", len(body)) + body

    def file(self, back: int) -> bytes:
        """Return the file; `back` is the column of the return address."""
        head = struct.pack(self._order + "IB", 0xFFFF_FFFF, 1) + b"\0" + encode_unsigned(1)
        cie = self.padded(head + encode_signed(-self.arch.pointer_size) + bytes((back,)))
        frame = cie + b"".join(self.entries)
        names = b"\0.text\0.debug_frame\0.shstrtab\0"
        wide = self.arch.pointer_size == 8
        start, row = (64, 64) if wide else (52, 40)
        data = frame + names + bytes(-(len(frame) + len(names)) % 8)
        sections = [
            (0, 0, 0, 0, 0, 0),
            (1, SHT_NOBITS, SHF_ALLOC_EXEC, 0, 0, 1),
            (7, SHT_PROGBITS, 0, start, len(frame), 8),
            (20, SHT_STRTAB, 0, start + len(frame), len(names), 1),
        ]
        form = self._order + ("IIQQQQIIQQ" if wide else "10I")
        table = b"".join(
            struct.pack(form, name, kind, flags, 0, offset, size, 0, 0, align, 0)
            for name, kind, flags, offset, size, align in sections
        )
        ident = b"\x7fELF" + bytes((2 if wide else 1, 2 if self._byteorder == "big" else 1, 1)) + bytes(9)
        form = self._order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH")
        counts = (start, 0, 0, row, len(sections), len(sections) - 1)
        return (
            ident + struct.pack(form, 2, self.arch.elf_machine, 1, 0, 0, start + len(data), 0, *counts) + data + table
        )
