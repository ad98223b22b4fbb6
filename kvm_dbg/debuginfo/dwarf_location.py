"""Where variables are: location lists and the expressions of DWARF, evaluated with what is known of a frame.

Facts: the DWARF standard, versions 4 and 5: 2.5 and 2.6 (expressions, location descriptions and lists), 7.7 (their
encodings; .debug_loc of version 4 is 7.7.3 there). GNU's operations of the same meaning precede version 5.

A frame of a dead kernel knows few registers. What an expression needs and nobody knows makes it unknown; it is never
taken for zero. Expressions on typed values (DW_OP_convert, ...) and values at the entry of a function are unknown, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from kvm_dbg.debuginfo.dwarf_entry import Entry, ListWalk, UnitReader
from kvm_dbg.debuginfo.dwarf_search import read_leb128, read_sleb128
from kvm_dbg.errors import ReadError

AT_LOCATION, AT_FRAME_BASE, AT_LOCLISTS_BASE = 0x02, 0x40, 0x8C
FORM_LOCLISTX: Final = 0x22
LLE_DEFAULT: Final = 5  # the others are those of range lists, with one more from here on
OPTIMIZED_OUT: Final = "optimized out"
MAX_LIST = 1 << 16  # entries of one list
MAX_STEPS = 10_000  # operations of one expression
MAX_STACK = 256
MAX_BYTES = 1 << 16  # of an object in pieces

OP_ADDR, OP_DEREF, OP_PLUS_UCONST, OP_BRA, OP_SKIP = 0x03, 0x06, 0x23, 0x28, 0x2F
OP_CONSTU, OP_CONSTS, OP_LIT0, OP_REG0, OP_BREG0 = 0x10, 0x11, 0x30, 0x50, 0x70
OP_REGX, OP_FBREG, OP_BREGX, OP_PIECE, OP_DEREF_SIZE, OP_NOP = 0x90, 0x91, 0x92, 0x93, 0x94, 0x96
OP_CALL_FRAME_CFA, OP_IMPLICIT_VALUE, OP_STACK_VALUE, OP_ADDRX, OP_CONSTX = 0x9C, 0x9E, 0x9F, 0xA1, 0xA2
OP_PICK: Final = 0x15
FIXED_CONSTANTS: Final = {
    0x08: (1, False), 0x09: (1, True), 0x0A: (2, False), 0x0B: (2, True), 0x0C: (4, False), 0x0D: (4, True),
    0x0E: (8, False), 0x0F: (8, True),
}  # fmt: skip
WHY_NOT: Final = {
    0xA0: "a pointer to what is not in memory", 0xF2: "a pointer to what is not in memory",
    0xA3: "needs a register at the function's entry", 0xF3: "needs a register at the function's entry",
}  # fmt: skip
BITS: Final = 64
MASK: Final = (1 << BITS) - 1


def _signed(value: int) -> int:
    return value - (1 << BITS) if value >> (BITS - 1) else value


def _shift(value: int, count: int) -> int:
    return value << count if count < BITS else 0


def _divide(one: int, two: int) -> int:
    one, two = _signed(one), _signed(two)
    if not two:
        raise Unknown("a division by zero")
    return abs(one) // abs(two) * (1 if (one < 0) == (two < 0) else -1)


def _modulo(one: int, two: int) -> int:
    if not two:
        raise Unknown("a division by zero")
    return one % two


BINARY: Final[Mapping[int, Callable[[int, int], int]]] = {
    0x1A: lambda one, two: one & two,
    0x1B: _divide,
    0x1C: lambda one, two: one - two,
    0x1D: _modulo,
    0x1E: lambda one, two: one * two,
    0x21: lambda one, two: one | two,
    0x22: lambda one, two: one + two,
    0x24: _shift,
    0x25: lambda one, two: one >> two if two < BITS else 0,
    0x26: lambda one, two: _signed(one) >> min(two, BITS - 1),
    0x27: lambda one, two: one ^ two,
    0x29: lambda one, two: one == two,
    0x2A: lambda one, two: _signed(one) >= _signed(two),
    0x2B: lambda one, two: _signed(one) > _signed(two),
    0x2C: lambda one, two: _signed(one) <= _signed(two),
    0x2D: lambda one, two: _signed(one) < _signed(two),
    0x2E: lambda one, two: one != two,
}
UNARY: Final[Mapping[int, Callable[[int], int]]] = {
    0x19: lambda one: abs(_signed(one)),
    0x1F: lambda one: -one,
    0x20: lambda one: ~one,
}


class Unknown(Exception):  # noqa: N818 - no mistake: nobody knows it
    """What an expression needs and nobody knows; it never leaves `locate`."""


class Location(NamedTuple):
    """Where an object is: at an address of memory, or its bytes themselves; or why it is not known."""

    address: int | None = None
    data: bytes | None = None
    why: str = ""


class FrameFacts(NamedTuple):
    """What is known of one frame.

    registers: by DWARF's numbers, those that are known for sure. name: a register's name. cfa: the stack pointer before
    the call of this function, None if unknown. slide: what addresses in the file lack, in bytes. read: of memory.
    """

    registers: Mapping[int, int]
    name: Callable[[int], str]
    cfa: int | None
    slide: int
    read: Callable[[int, int], bytes]


def locate(reader: UnitReader, entry: Entry, function: Entry, address: int, size: int, facts: FrameFacts) -> Location:
    """Return where a variable of `size` bytes is.

    Args:
        reader: of the unit.
        entry: the variable's.
        function: the function whose code it is.
        address: of the instruction, as in the file.
        size: of the object in bytes.
        facts: of the frame.

    Raises:
        FormatError: its list is damaged.
    """
    try:
        code = find_expression(reader, entry, AT_LOCATION, address)
        if not code:
            return Location(why=OPTIMIZED_OUT)
        return Expression(reader, function, address, facts).object(code, size)
    except Unknown as unknown:
        return Location(why=str(unknown))
    except ReadError:
        return Location(why="its memory is not in the image")
    except IndexError:
        return Location(why="its expression is damaged")


def find_expression(reader: UnitReader, entry: Entry, attribute: int, address: int) -> bytes | None:
    """Return the expression of an attribute that holds at an address, None for none. Raises FormatError."""
    form, value = entry.attributes.get(attribute, (0, b""))
    if isinstance(value, bytes):
        return value
    if reader.unit.version >= 5:
        return _in_list(reader, form, value, address)
    return _in_old_list(reader, value, address)


def _in_list(reader: UnitReader, form: int, at: int, address: int) -> bytes | None:
    sections, size = reader.sections, reader.unit.offset_size
    if form == FORM_LOCLISTX:
        start = reader.number(reader.top, AT_LOCLISTS_BASE)
        start = (12 if size == 4 else 20) if start is None else start
        at = start + sections.number("loclists", start + at * size, size)
    walk = ListWalk(reader, "loclists", at)
    base, default = reader.base, None
    for _ in range(MAX_LIST):
        kind = walk.byte()
        if not kind:
            return default
        pair = None if kind == LLE_DEFAULT else walk.run(kind - (kind > LLE_DEFAULT), base)
        if isinstance(pair, int):
            base = pair
            continue
        length = walk.leb128()
        code = sections["loclists"].read(walk.at, length)
        walk.at += length
        if pair is None:
            default = code
        elif pair[0] <= address < pair[1]:
            return code
    raise sections.wrong("loclists", at, f"a list of more than {MAX_LIST} locations")


def _in_old_list(reader: UnitReader, at: int, address: int) -> bytes | None:
    sections, size = reader.sections, reader.unit.address_size
    base, top = reader.base, (1 << 8 * size) - 1
    for _ in range(MAX_LIST):
        start, end = sections.number("loc", at, size), sections.number("loc", at + size, size)
        at += 2 * size
        if start == top:
            base = end
            continue
        if not start and not end:
            return None
        length = sections.number("loc", at, 2)
        if base + start <= address < base + end:
            return sections["loc"].read(at + 2, length)
        at += 2 + length
    raise sections.wrong("loc", at, f"a list of more than {MAX_LIST} locations")


class Expression:
    """Evaluates expressions in one frame. Its methods raise Unknown, ReadError, and IndexError for damaged ones."""

    def __init__(self, reader: UnitReader, function: Entry, address: int, facts: FrameFacts) -> None:
        self._reader = reader
        self._function = function
        self._address = address
        self._facts = facts
        self._in_frame_base = False

    def object(self, code: bytes, size: int) -> Location:
        """Return where an object is."""
        at, parts = 0, b""
        while True:
            location, at = self._simple(code, at)
            if at >= len(code):
                return self._whole(location, size) if not parts else self._joined(parts, size)
            if code[at] != OP_PIECE:
                raise Unknown(f"an operation that is not supported: {code[at]:#x}")
            length, at = read_leb128(code, at + 1)
            if len(parts) + length > MAX_BYTES:
                raise Unknown("an object in too many pieces")
            parts += self._bytes(location, length)
            if at >= len(code):
                return self._joined(parts, size)

    def _joined(self, parts: bytes, size: int) -> Location:
        if len(parts) < size:
            raise Unknown("a part of it is " + OPTIMIZED_OUT)
        return Location(data=parts[:size])

    def _whole(self, location: Location, size: int) -> Location:
        return location if location.address is not None else Location(data=self._bytes(location, size))

    def _bytes(self, location: Location, size: int) -> bytes:
        """Return the first bytes of what is at a location; for a register those that count least."""
        if location.address is not None:
            return self._facts.read(location.address, size)
        if location.data is None:
            raise Unknown("a part of it is " + OPTIMIZED_OUT)
        if len(location.data) < size:
            raise Unknown(f"{size} bytes of a register of {len(location.data)}")
        return location.data[:size] if self._reader.sections.byteorder == "little" else location.data[-size:]

    def _register(self, number: int) -> int:
        value = self._facts.registers.get(number)
        if value is None:
            raise Unknown(f"needs {self._facts.name(number)}")
        return value

    def _number(self, value: int) -> Location:
        return Location(data=(value & MASK).to_bytes(BITS // 8, self._reader.sections.byteorder))

    def _simple(self, code: bytes, at: int) -> tuple[Location, int]:
        """Return the location that starts at `at`, up to the end or DW_OP_piece, and the place after it."""
        if at < len(code) and code[at] == OP_PIECE:
            return Location(), at
        first = code[at]
        if OP_REG0 <= first < OP_BREG0:
            return self._number(self._register(first - OP_REG0)), at + 1
        if first == OP_REGX:
            number, at = read_leb128(code, at + 1)
            return self._number(self._register(number)), at
        if first == OP_IMPLICIT_VALUE:
            length, at = read_leb128(code, at + 1)
            return Location(data=code[at : at + length]), at + length
        value, at = self._run(code, at)
        if at < len(code) and code[at] == OP_STACK_VALUE:
            return self._number(value), at + 1
        return Location(address=value), at

    def _frame_base(self) -> int:
        code = find_expression(self._reader, self._function, AT_FRAME_BASE, self._address)
        if not code or self._in_frame_base:
            raise Unknown("needs the frame's base")
        if OP_REG0 <= code[0] < OP_BREG0:
            return self._register(code[0] - OP_REG0)
        self._in_frame_base = True
        value, _ = self._run(code, 0)
        self._in_frame_base = False
        return value

    def _run(self, code: bytes, at: int) -> tuple[int, int]:
        """Return the top of the stack where the operations end or a location does, and the place there."""
        stack: list[int] = []
        for _ in range(MAX_STEPS):
            if at >= len(code) or code[at] in (OP_PIECE, OP_STACK_VALUE):
                return stack[-1], at
            at = self._step(code, at, stack)
            if len(stack) > MAX_STACK:
                break
        raise Unknown("an expression that does not end")

    def _step(self, code: bytes, at: int, stack: list[int]) -> int:
        """Do one operation and return the place of the next."""
        operation, facts, reader = code[at], self._facts, self._reader
        byteorder = reader.sections.byteorder
        at += 1
        if OP_LIT0 <= operation < OP_REG0:
            stack.append(operation - OP_LIT0)
        elif OP_BREG0 <= operation < OP_REGX:
            offset, at = read_sleb128(code, at)
            stack.append(self._register(operation - OP_BREG0) + offset & MASK)
        elif operation == OP_BREGX:
            number, at = read_leb128(code, at)
            offset, at = read_sleb128(code, at)
            stack.append(self._register(number) + offset & MASK)
        elif operation == OP_FBREG:
            offset, at = read_sleb128(code, at)
            stack.append(self._frame_base() + offset & MASK)
        elif operation == OP_CALL_FRAME_CFA:
            if facts.cfa is None:
                raise Unknown("needs the caller's stack pointer")
            stack.append(facts.cfa)
        elif operation == OP_ADDR:
            size = reader.unit.address_size
            stack.append(int.from_bytes(_take(code, at, size), byteorder) + facts.slide & MASK)
            at += size
        elif operation in (OP_ADDRX, OP_CONSTX):
            index, at = read_leb128(code, at)
            stack.append(reader.indexed_address(index) + (facts.slide if operation == OP_ADDRX else 0) & MASK)
        elif operation in FIXED_CONSTANTS:
            size, signed = FIXED_CONSTANTS[operation]
            stack.append(int.from_bytes(_take(code, at, size), byteorder, signed=signed) & MASK)
            at += size
        elif operation == OP_CONSTU:
            value, at = read_leb128(code, at)
            stack.append(value & MASK)
        elif operation == OP_CONSTS:
            value, at = read_sleb128(code, at)
            stack.append(value & MASK)
        elif operation == OP_PLUS_UCONST:
            value, at = read_leb128(code, at)
            stack.append(stack.pop() + value & MASK)
        elif operation in BINARY:
            two, one = stack.pop(), stack.pop()
            stack.append(int(BINARY[operation](one, two)) & MASK)
        elif operation in UNARY:
            stack.append(UNARY[operation](stack.pop()) & MASK)
        elif operation in (OP_DEREF, OP_DEREF_SIZE):
            size = reader.unit.address_size
            if operation == OP_DEREF_SIZE:
                size, at = code[at], at + 1
            stack.append(int.from_bytes(facts.read(stack.pop(), size), byteorder) & MASK)
        elif operation in (OP_BRA, OP_SKIP):
            offset = int.from_bytes(_take(code, at, 2), byteorder, signed=True)
            at += 2
            if operation == OP_SKIP or stack.pop():
                at += offset
                if at < 0:
                    raise IndexError
        elif operation == OP_PICK:
            stack.append(stack[-1 - code[at]])
            at += 1
        elif operation == 0x12:  # dup
            stack.append(stack[-1])
        elif operation == 0x13:  # drop
            stack.pop()
        elif operation == 0x14:  # over
            stack.append(stack[-2])
        elif operation == 0x16:  # swap
            stack[-1], stack[-2] = stack[-2], stack[-1]
        elif operation == 0x17:  # rot: the first becomes the third
            stack[-3:] = [stack[-1], stack[-3], stack[-2]]
        elif operation != OP_NOP:
            raise Unknown(WHY_NOT.get(operation) or f"an operation that is not supported: {operation:#x}")
        return at


def _take(code: bytes, at: int, size: int) -> bytes:
    """Return bytes of an expression. Raises IndexError."""
    if at + size > len(code):
        raise IndexError
    return code[at : at + size]
