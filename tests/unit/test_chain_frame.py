"""Unwind rules by frame pointers: what a reader of DWARF makes of them, on stacks whose callers are known."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kvm_dbg.arch import find_arch
from kvm_dbg.arch.base import Arch
from kvm_dbg.elf import open_elf
from kvm_dbg.kernel.unwind_rule import UnwindRow, UnwindTable
from kvm_dbg.kernel_file.chain_frame import make_chain_file
from kvm_dbg.rsp.frame_table import read_covered

START, END = 0x80100000, 0x80200000
ROWS = {  # by processor: the rule, and the numbers of its register and of the return address
    "i386": (UnwindRow(0, 0, "chain", "ebp", 8), 5, 8),
    "aarch64": (UnwindRow(0, 0, "chain", "x29", 16), 29, 30),
    "riscv64": (UnwindRow(0, 0, "chain", "fp", 0), 8, 1),
    "ppc64": (UnwindRow(0, 0, "chain", "[r1]", 0), 1, 65),
}
CASES = [(name, order) for name in ROWS for order in (("little", "big") if name == "ppc64" else ("little",))]


def table(row: UnwindRow, start: int = START, end: int = END) -> UnwindTable:
    return UnwindTable([start], end, [row], lambda rule: rule, (), [])


class Machine:
    """A stack machine of DWARF 5, 2.5: the operations that the rules use."""

    def __init__(self, arch: Arch, registers: dict[int, int], memory: dict[int, int]) -> None:
        self.mask = (1 << 8 * arch.pointer_size) - 1
        self.registers = registers
        self.memory = memory

    def run(self, code: bytes, stack: list[int]) -> int:
        at = 0
        while at < len(code):
            op, at = code[at], at + 1
            if op == 0x06:
                stack.append(self.memory[stack.pop()])
            elif op == 0x08:
                stack.append(code[at])
                at += 1
            elif op == 0x12:
                stack.append(stack[-1])
            elif op == 0x16:
                stack[-2:] = stack[:-3:-1]
            elif op == 0x1C:
                top = stack.pop()
                stack[-1] = stack[-1] - top & self.mask
            elif op == 0x1E:
                top = stack.pop()
                stack[-1] = stack[-1] * top & self.mask
            elif op == 0x22:
                top = stack.pop()
                stack[-1] = stack[-1] + top & self.mask
            elif op == 0x23:
                stack[-1] = stack[-1] + code[at] & self.mask
                at += 1
            elif op == 0x25:
                top = stack.pop()
                stack[-1] >>= top
            elif op in (0x29, 0x2E):
                top = stack.pop()
                stack[-1] = int((stack[-1] == top) == (op == 0x29))
            elif op == 0x30:
                stack.append(0)
            elif 0x70 <= op < 0x90:
                stack.append(self.registers[op - 0x70] + code[at] & self.mask)
                at += 1
            else:
                raise AssertionError(f"operation {op:#x}")
        return stack[-1]


def rules_of(path: Path) -> tuple[int, int, dict[int, tuple[str, bytes | int]], tuple[str, bytes | tuple[int, int]]]:
    """Return (data alignment, column of the return address, rules by register, rule of the frame) of the only entry."""
    with open_elf(path) as file:
        section = file.find_section(".debug_frame")
        assert section is not None
        data = bytes(file.section_data(section))
        order, word = file.header.order, "Q" if file.header.word_bits == 64 else "I"
    length, cie, version = struct.unpack_from(order + "IIB", data)
    assert (cie, version, data[9], data[10]) == (0xFFFFFFFF, 1, 0, 1)
    align, back = data[11] - 0x80, data[12]
    entry = data[4 + length :]
    size, pointer, start, span = struct.unpack_from(order + "II" + 2 * word, entry)
    assert (pointer, start, span, 4 + size) == (0, START, END - START, len(entry))
    code = entry[8 + 2 * struct.calcsize(word) :]
    rules: dict[int, tuple[str, bytes | int]] = {}
    frame: tuple[str, bytes | tuple[int, int]] = ("", b"")
    at = 0
    while at < len(code):
        op = code[at]
        if op == 0x00:
            at += 1
        elif op == 0x07:
            rules[code[at + 1]] = ("undefined", 0)
            at += 2
        elif op == 0x0C:
            frame = ("register", (code[at + 1], code[at + 2]))
            at += 3
        elif op == 0x0F:
            frame = ("expression", code[at + 2 : at + 2 + code[at + 1]])
            at += 2 + code[at + 1]
        elif op == 0x10:
            rules[code[at + 1]] = ("at", code[at + 3 : at + 3 + code[at + 2]])
            at += 3 + code[at + 2]
        elif op == 0x11:
            rules[code[at + 1]] = ("offset", code[at + 2] * align)
            at += 3
        else:
            raise AssertionError(f"instruction {op:#x}")
    return align, back, rules, frame


@pytest.mark.parametrize(("name", "order"), CASES)
def test_rules_lead_to_the_caller_and_end(name: str, order: str, tmp_path: Path) -> None:
    arch = find_arch(name, byteorder=order)
    row, fp, back = ROWS[name]
    made = make_chain_file(arch, [table(row)])
    assert made is not None
    path = tmp_path / "rules"
    path.write_bytes(made)
    assert read_covered(str(path)) == [(START, END)]
    align, column, rules, frame = rules_of(path)
    word = arch.pointer_size
    assert (align, column) == (-word, back)
    top = 1 << 8 * word - 1
    own, callers, address = top + 0x1000, top + 0x2000, top + 0x345678
    # where the ABI has the caller's frame pointer and the return address
    places = {
        "i386": (own, own + 4),
        "aarch64": (own, own + 8),
        "riscv64": (own - 16, own - 8),
        "ppc64": (own, callers + 16),
    }[name]
    for caller, ends in ((callers, False), (0, True)):
        machine = Machine(arch, {fp: own}, {places[0]: caller, places[1]: address})
        kind, what = frame
        cfa = own + what[1] if kind == "register" and isinstance(what, tuple) else 0
        if isinstance(what, bytes):
            cfa = machine.run(what, [])
            assert cfa == (own + 16 if ends else callers)
        how, place = rules[back]
        assert how == "at"
        assert isinstance(place, bytes)
        assert machine.run(place, [cfa]) == (0 if ends else places[1])
        if name != "ppc64":
            how, offset = rules[fp]
            assert how == "offset"
            assert isinstance(offset, int)
            assert cfa + offset == places[0]
    undefined = {number for number, rule in rules.items() if rule[0] == "undefined"}
    assert undefined.isdisjoint({fp, back})
    assert undefined


def test_chain_that_leaves_the_kernel_ends(tmp_path: Path) -> None:
    for name in ("aarch64", "riscv64"):
        arch = find_arch(name)
        row, fp, back = ROWS[name]
        path = tmp_path / name
        path.write_bytes(make_chain_file(arch, [table(row)]) or b"")
        _, _, rules, frame = rules_of(path)
        own = 0xFFFF000000001000
        place = own if name == "aarch64" else own - 16
        assert isinstance(frame[1], tuple)
        assert isinstance(rules[back][1], bytes)
        machine = Machine(arch, {fp: own}, {place: 0x00007FFFFFFFE000, place + 8: 0x401000})
        assert machine.run(rules[back][1], [own + frame[1][1]]) == 0  # type: ignore[arg-type]


def test_no_rules_no_file() -> None:
    assert make_chain_file(find_arch("aarch64"), []) is None
    assert make_chain_file(find_arch("aarch64"), [table(UnwindRow(0, 0, "end", "", 0))]) is None
    assert make_chain_file(find_arch("x86_64"), [table(UnwindRow(0, 0, "chain", "rbp", 16))]) is None
