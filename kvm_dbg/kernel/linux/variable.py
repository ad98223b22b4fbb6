"""Parameters and variables of the functions on a stack, as far as their values are known for sure.

What is known of the registers in a frame: all, where the processor or the kernel saved them (struct pt_regs); those of
a sleeping task that __switch_to_asm() pushed; and in callers, what the called functions saved (DWARF's call frame
information), step by step. The registers that a function preserves are rbx, rbp and r12 to r15 (System V ABI, AMD64
supplement, 3.2.1; figure 3.36 for DWARF's numbers); the others are lost in a call. The kernel's ORC tables say where
each frame is. Where call frame information contradicts them, what it says of registers does not count: it is exact at
calls only (-fno-asynchronous-unwind-tables).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.base import size_of
from kvm_dbg.debuginfo.dwarf_entry import Entry, UnitReader
from kvm_dbg.debuginfo.dwarf_location import OPTIMIZED_OUT, FrameFacts, locate
from kvm_dbg.debuginfo.dwarf_scope import Place
from kvm_dbg.debuginfo.value import Value
from kvm_dbg.errors import FormatError, ReadError, TypeNotFound
from kvm_dbg.kernel.base import Frame, Thread, Variable
from kvm_dbg.kernel.linux.stack import WORD
from kvm_dbg.kernel.linux.unwind import EXCEPTION, FRAME_POINTER, ORC, REGISTERS, SCAN

if TYPE_CHECKING:
    from kvm_dbg.kernel.linux.source_line import CodeFile, Source

DWARF_REGISTERS = (
    "rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip",
)  # fmt: skip
NUMBERS = {name: number for number, name in enumerate(DWARF_REGISTERS)}
PRESERVED = tuple(NUMBERS[name] for name in ("rbx", "rbp", "r12", "r13", "r14", "r15"))
RSP, RIP = NUMBERS["rsp"], NUMBERS["rip"]
CALLED = (ORC, FRAME_POINTER)  # how frames are found whose stack pointer is that before the call of the next inner one
TAG_PARAMETER, TAG_VARIABLE = 0x05, 0x34
VARIABLES = frozenset((TAG_PARAMETER, TAG_VARIABLE))
AT_LOCATION, AT_CONST_VALUE, AT_DECLARATION, AT_TYPE = 0x02, 0x1C, 0x3C, 0x49
MAX_VARIABLES = 4096  # of one place
MAX_OBJECT = 1 << 16  # bytes


def read_variables(source: Source, thread: Thread, frames: Sequence[Frame], number: int) -> list[list[Variable]]:
    """Return the variables at each place of frame `number`, the innermost place first; none of a frame that is a guess.

    Raises:
        KvmDbgError: the debug information is damaged.
    """
    from kvm_dbg.kernel.linux.source_line import address_of

    frame = frames[number]
    file = source.file_of(frame)
    if file is None or frame.how == SCAN:
        return []
    address = address_of(frame) - file.slide
    unit = file.map.unit_at(address)
    if unit is None:
        return []
    facts = FrameFacts(
        known_registers(source, thread, frames, number),
        lambda register: DWARF_REGISTERS[register] if register < len(DWARF_REGISTERS) else f"register {register}",
        cfa_of(frames, number),
        file.slide,
        source.kernel.read,
    )
    places = unit.places_at(address)
    function = places[-1].scopes[0] if places[-1].scopes else unit.reader.top
    reader = PlaceReader(source, file, unit.reader, function, address, facts)
    return [list(reader.variables(place)) for place in places]


def cfa_of(frames: Sequence[Frame], number: int) -> int | None:
    """Return the stack pointer before the call of a frame's function, None if it was not called or that is unknown."""
    if number + 1 < len(frames) and frames[number + 1].how in CALLED:
        return frames[number + 1].sp
    return None


def known_registers(source: Source, thread: Thread, frames: Sequence[Frame], number: int) -> dict[int, int]:
    """Return the registers that are known for sure in frame `number`, by DWARF's numbers. Raises KvmDbgError."""
    known: dict[int, int] = {}
    for at, frame in enumerate(frames[: number + 1]):
        if frame.how == EXCEPTION:
            known = _numbered(frame.registers or {})
        elif frame.how == REGISTERS and not at:
            known = _numbered(thread.registers)
        elif frame.how in CALLED:
            known = _preserved(source, frames, at - 1, known)
        else:
            known = {}
        known[RSP], known[RIP] = frame.sp, frame.pc
    return known


def _numbered(registers: Mapping[str, int]) -> dict[int, int]:
    return {NUMBERS[name]: value for name, value in registers.items() if name in NUMBERS}


def _preserved(source: Source, frames: Sequence[Frame], number: int, known: Mapping[int, int]) -> dict[int, int]:
    """Return the registers of the caller of frame `number` that its function preserves, as far as they are known."""
    from kvm_dbg.kernel.linux.source_line import address_of

    frame, cfa = frames[number], cfa_of(frames, number)
    file = source.file_of(frame)
    row = file.frames.find(address_of(frame) - file.slide) if file is not None else None
    if row is None or row.cfa is None or cfa is None or row.cfa[0] not in known:
        return {}
    if known[row.cfa[0]] + row.cfa[1] != cfa:
        return {}
    found: dict[int, int] = {}
    for register in PRESERVED:
        if register not in row.saved:
            if register in known:
                found[register] = known[register]
            continue
        offset = row.saved[register]
        if offset is None or cfa + offset < frame.sp:
            continue  # not so simple; or already taken from the stack
        try:
            data = source.kernel.read(cfa + offset, WORD)
        except ReadError:
            continue
        found[register] = int.from_bytes(data, "little")
    return found


class PlaceReader:
    """Reads the variables in one frame."""

    def __init__(
        self, source: Source, file: CodeFile, reader: UnitReader, function: Entry, address: int, facts: FrameFacts
    ) -> None:
        self._kernel = source.kernel
        self._file = file
        self._reader = reader
        self._function = function
        self._address = address
        self._facts = facts

    def variables(self, place: Place) -> Iterator[Variable]:
        """Yield the variables of a function's scopes, the outermost scope's first."""
        count = 0
        for scope in place.scopes:
            for entry in self._reader.children_of_tag(scope, VARIABLES):
                found = self._variable(entry)
                if found is not None:
                    yield found
                count += 1
                if count > MAX_VARIABLES:
                    raise self._reader.wrong(entry.offset, f"more than {MAX_VARIABLES} variables")

    def _variable(self, entry: Entry) -> Variable | None:
        """Return a variable, None if it has no name or is another file's."""
        reader = self._reader
        name = reader.named(entry)
        if name is None or AT_DECLARATION in entry.attributes:
            return None
        try:
            type_at = next((at for origin in reader.origins(entry) if (at := reader.reference(origin, AT_TYPE))), 0)
            type_ = self._file.types.type_at(type_at)
            size = size_of(type_)
        except (FormatError, TypeNotFound) as error:
            return Variable(name, None, f"unknown: {error}")
        byteorder = reader.sections.byteorder
        for origin in reader.origins(entry):
            if AT_CONST_VALUE in origin.attributes:
                constant = origin.attributes[AT_CONST_VALUE][1]
                if isinstance(constant, int):
                    constant = (constant & (1 << 8 * size) - 1).to_bytes(size, byteorder)
                if len(constant) < size:
                    return Variable(name, None, "unknown: a constant that is too short")
                return Variable(name, Value(self._kernel, type_, 0, byteorder, bytes(constant[:size])))
            if AT_LOCATION in origin.attributes:
                found = locate(reader, origin, self._function, self._address, min(size, MAX_OBJECT), self._facts)
                if found.why:
                    why = found.why if found.why == OPTIMIZED_OUT else f"unknown: {found.why}"
                    return Variable(name, None, why)
                return Variable(name, Value(self._kernel, type_, found.address or 0, byteorder, found.data))
        return Variable(name, None, OPTIMIZED_OUT)
