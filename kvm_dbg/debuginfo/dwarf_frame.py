"""Call frame information of DWARF: where a function has saved the registers of its caller.

Facts: the DWARF standard, 6.4 (call frame information; the instructions and their encodings are 7.24).

Only the rules that compilers write for C are known: the frame's address is a register and an offset, registers are
saved at an offset from it, or left alone. Everything else makes a register unknown.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from kvm_dbg.debuginfo.dwarf_entry import DwarfSections
from kvm_dbg.debuginfo.dwarf_search import read_leb128, read_sleb128

NAME: Final = "frame"
CIE_ID: Final = 0xFFFFFFFF
WIDE: Final = 0xFFFFFFFF
MAX_ENTRIES = 1 << 21
MAX_REMEMBERED = 64
ADVANCE, OFFSET, RESTORE = 0x40, 0x80, 0xC0  # in the two highest bits
(
    NOP, SET_LOC, ADVANCE1, ADVANCE2, ADVANCE4, OFFSET_EXTENDED, RESTORE_EXTENDED, UNDEFINED, SAME_VALUE, REGISTER,
    REMEMBER, RESTORE_STATE, DEF_CFA, DEF_CFA_REGISTER, DEF_CFA_OFFSET, DEF_CFA_EXPRESSION, EXPRESSION,
    OFFSET_EXTENDED_SF, DEF_CFA_SF, DEF_CFA_OFFSET_SF, VAL_OFFSET, VAL_OFFSET_SF, VAL_EXPRESSION,
) = range(0x17)  # fmt: skip
GNU_ARGS_SIZE: Final = 0x2E


class SavedRegisters(NamedTuple):
    """What holds at one address.

    cfa: (register, offset): the frame's address, which is the stack pointer before the call; None if not so simple.
    saved: register -> offset from there, where the caller's value is; None where that is not so simple. Registers that
    are not in it have not been touched, if they are of those that a function preserves.
    """

    cfa: tuple[int, int] | None
    saved: Mapping[int, int | None]


class _Common(NamedTuple):
    code_factor: int
    data_factor: int
    instructions: bytes


class FrameTable:
    """The call frame information of one file, .debug_frame. Raises FormatError if it is damaged."""

    def __init__(self, sections: DwarfSections) -> None:
        self._sections = sections
        self._entries = sorted(self._for_each_entry())
        self._starts = [entry[0] for entry in self._entries]
        self._common: dict[int, _Common | None] = {}

    def find(self, address: int) -> SavedRegisters | None:
        """Return what holds at an address of the file, None if nothing is said of it. Raises FormatError."""
        number = bisect_right(self._starts, address) - 1
        if number < 0 or address >= self._entries[number][1]:
            return None
        start, _, common_at, at, end = self._entries[number]
        if common_at not in self._common:
            self._common[common_at] = self._read_common(common_at)
        common = self._common[common_at]
        if common is None:
            return None
        code = self._sections[NAME].read(at, end - at)
        try:
            initial = _run(common, common.instructions, SavedRegisters(None, {}), None, 0)
            return _run(common, code, initial, initial, address - start)
        except (IndexError, KeyError):
            return None  # damaged, or instructions that are not known

    def _for_each_entry(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield (start, end, place of the common entry, place and end of the instructions)."""
        sections, area = self._sections, self._sections[NAME]
        width = sections.elf.header.word_bits // 8
        byteorder, at, whole = sections.byteorder, 0, area.read(0, len(area))
        for _ in range(MAX_ENTRIES):
            if at + 8 > len(whole):
                return
            length = int.from_bytes(whole[at : at + 4], byteorder)
            common = int.from_bytes(whole[at + 4 : at + 8], byteorder)
            end = at + 4 + length
            if length == WIDE or end > len(whole) or length < 4:
                raise sections.wrong(NAME, at, "an entry does not fit, or is of 64-bit DWARF")
            first = at + 8 + 2 * width
            if common != CIE_ID and first <= end:
                start = int.from_bytes(whole[at + 8 : at + 8 + width], byteorder)
                size = int.from_bytes(whole[at + 8 + width : first], byteorder)
                yield start, start + size, common, first, end
            at = end
        raise sections.wrong(NAME, at, f"more than {MAX_ENTRIES} entries")

    def _read_common(self, at: int) -> _Common | None:
        sections = self._sections
        if sections.number(NAME, at + 4, 4) != CIE_ID:
            raise sections.wrong(NAME, at, "no common entry")
        data = sections[NAME].read(at + 8, sections.number(NAME, at, 4) - 4)
        try:
            version, augmentation = data[0], data[1]
            if version not in (1, 3, 4) or augmentation:
                return None
            place = 2 if version < 4 else 4  # sizes of addresses and segment selectors
            code_factor, place = read_leb128(data, place)
            data_factor, place = read_sleb128(data, place)
            _, place = (data[place], place + 1) if version == 1 else read_leb128(data, place)
            return _Common(code_factor, data_factor, data[place:])
        except IndexError:
            raise sections.wrong(NAME, at, "a common entry is cut off") from None


def _run(
    common: _Common, code: bytes, state: SavedRegisters, initial: SavedRegisters | None, target: int
) -> SavedRegisters:
    """Return the state at `target` bytes from the function's start. Raises IndexError, KeyError."""
    cfa, saved = state.cfa, dict(state.saved)
    remembered: list[tuple[tuple[int, int] | None, dict[int, int | None]]] = []
    at = here = 0
    while at < len(code):
        byte = code[at]
        operation, low = byte & 0xC0 or byte, byte & 0x3F
        at += 1
        if operation in (ADVANCE, ADVANCE1, ADVANCE2, ADVANCE4):
            if operation != ADVANCE:
                size = {ADVANCE1: 1, ADVANCE2: 2, ADVANCE4: 4}[operation]
                low, at = int.from_bytes(code[at : at + size], "little"), at + size
            here += low * common.code_factor
            if here > target:
                break
            continue
        if operation in (OFFSET, RESTORE):
            register = low
        elif operation not in (NOP, REMEMBER, RESTORE_STATE, DEF_CFA_EXPRESSION, DEF_CFA_OFFSET, DEF_CFA_OFFSET_SF):
            register, at = read_leb128(code, at)
        if operation in (OFFSET, OFFSET_EXTENDED):
            value, at = read_leb128(code, at)
            saved[register] = value * common.data_factor
        elif operation == OFFSET_EXTENDED_SF:
            value, at = read_sleb128(code, at)
            saved[register] = value * common.data_factor
        elif operation in (RESTORE, RESTORE_EXTENDED):
            saved.pop(register, None)
            if initial is not None and register in initial.saved:
                saved[register] = initial.saved[register]
        elif operation == SAME_VALUE:
            saved.pop(register, None)
        elif operation == UNDEFINED:
            saved[register] = None
        elif operation in (REGISTER, VAL_OFFSET, VAL_OFFSET_SF):
            _, at = read_leb128(code, at)
            saved[register] = None
        elif operation in (EXPRESSION, VAL_EXPRESSION):
            length, at = read_leb128(code, at)
            at += length
            saved[register] = None
        elif operation == REMEMBER:
            if len(remembered) >= MAX_REMEMBERED:
                raise IndexError
            remembered.append((cfa, dict(saved)))
        elif operation == RESTORE_STATE:
            cfa, saved = remembered.pop()
        elif operation == DEF_CFA:
            value, at = read_leb128(code, at)
            cfa = register, value
        elif operation == DEF_CFA_SF:
            value, at = read_sleb128(code, at)
            cfa = register, value * common.data_factor
        elif operation == DEF_CFA_REGISTER:
            cfa = (register, cfa[1]) if cfa is not None else None
        elif operation in (DEF_CFA_OFFSET, DEF_CFA_OFFSET_SF):
            value, at = (read_leb128 if operation == DEF_CFA_OFFSET else read_sleb128)(code, at)
            value *= 1 if operation == DEF_CFA_OFFSET else common.data_factor
            cfa = (cfa[0], value) if cfa is not None else None
        elif operation == DEF_CFA_EXPRESSION:
            length, at = read_leb128(code, at)
            at += length
            cfa = None
        elif operation not in (NOP, GNU_ARGS_SIZE):
            raise KeyError(operation)
    return SavedRegisters(cfa, saved)
