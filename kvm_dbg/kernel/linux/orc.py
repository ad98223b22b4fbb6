"""ORC: the kernel's own unwind tables, read from its memory.

Sources: Documentation/arch/x86/orc-unwinder.rst; arch/x86/include/asm/orc_types.h and arch/x86/kernel/unwind_orc.c.
`__start_orc_unwind_ip` is an array of s32, each the distance from itself to the first address of its row, ascending
in memory (sorted at boot, at build time since 5.6, commit 57fa18994285); `__start_orc_unwind` is the array of `struct
orc_entry` beside it. The types of rows were 0 call, 1 regs, 2 partial regs in two bits with a separate bit `end`
(commit d31a580266ee, 4.17) until the field grew to three bits: 0 undefined, 1 end of stack, 2 call, 3 regs, 4
partial regs (commit fb799447ae29, 6.4). Which numbering of registers a kernel has is seen by which of the two numbers
of the stack pointer is the frequent one: nearly every row has it for its base. A module's tables are in its
`arch.orc_unwind_ip`, `orc_unwind`, `num_orcs` (arch/x86/include/asm/module.h), sorted when it is loaded.
"""

from __future__ import annotations

import contextlib
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kvm_dbg.debuginfo.base import StructType
from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.base import Kernel
from kvm_dbg.kernel.layout import Layout, Names, remembered
from kvm_dbg.kernel.linux.module import ModuleReader, for_each_module_record
from kvm_dbg.kernel.unwind_rule import UnwindRow

IP_SIZE = 4  # bytes of one entry of the address table
MAX_ROWS = 1 << 24  # of a whole kernel; real ones have under a million
SAMPLE_ROWS = 2048  # enough to see which numbering of registers it is

# What the numbers stand for; re-ordered in 7.1 (commit 1735858caa4b), which AX came just before (96f3b16a9de5).
OLD_REGISTERS = ("", "previous", "rdx", "rdi", "rbp", "rsp", "r10", "r13", "[rbp]", "[rsp]", "rax")
NEW_REGISTERS = ("", "rax", "rdx", "rsp", "rbp", "rdi", "r10", "r13", "previous", "[rsp]", "[rbp]")
REGISTER_BITS = 4
NOWHERE = (0, 0)
TEXT, INIT_TEXT = ("_stext", "_etext"), ("_sinittext", "_einittext")
MISSING = (ReadError, CorruptError, SymbolNotFound, TypeNotFound, MemberNotFound)
OLD_KINDS = ("call", "regs", "partial", "undefined")
NEW_KINDS = ("undefined", "end", "call", "regs", "partial")


class Decoder:
    """Reads `struct orc_entry` by its layout in this kernel; `registers` are names by number."""

    def __init__(self, layout: StructType, registers: tuple[str, ...]) -> None:
        self.layout = layout
        self.size = layout.size  # bytes
        self.registers = registers
        names = ["sp_offset", "bp_offset", "sp_reg", "bp_reg", "type"]
        if "end" in layout:
            names.append("end")
        members = {name: layout.member(name) for name in names}
        self._fields = {
            name: (member.bit_offset, member.bit_size or member.type.stripped().size * 8)
            for name, member in members.items()
        }
        self._known: dict[bytes, tuple[str, str, int, str, int]] = {}
        self._kinds = NEW_KINDS if self._fields["type"][1] > 2 else OLD_KINDS

    def _field(self, number: int, name: str) -> int:
        offset, bits = self._fields.get(name, (0, 0))
        return number >> offset & ((1 << bits) - 1)

    def _offset(self, number: int, name: str) -> int:
        value = self._field(number, name)
        bits = self._fields[name][1]
        return value - (1 << bits) if value >> (bits - 1) else value

    def _register(self, number: int, name: str) -> str:
        index = self._field(number, name)
        return self.registers[index] if index < len(self.registers) else ""

    def row(self, start: int, end: int, data: bytes) -> UnwindRow:
        """Return the row that `data` holds."""
        rest = self._known.get(data)
        if rest is None:
            rest = self._known[data] = self._decode(data)
        return UnwindRow(start, end, *rest)

    def _decode(self, data: bytes) -> tuple[str, str, int, str, int]:
        number = int.from_bytes(data, "little")
        kind_number = self._field(number, "type")
        kind = self._kinds[kind_number] if kind_number < len(self._kinds) else "undefined"
        base = self._register(number, "sp_reg")
        if self._field(number, "end"):
            kind = "end"
        elif kind not in ("end", "undefined") and not base:
            kind = "undefined"
        return (
            kind,
            base,
            self._offset(number, "sp_offset"),
            self._register(number, "bp_reg"),
            self._offset(number, "bp_offset"),
        )


class OrcTable(NamedTuple):
    """Where a table is: `ips` and `rows` are addresses, `size` the number of rows, `decoder` what reads one."""

    ips: int
    rows: int
    size: int
    decoder: Decoder


def find_table(kernel: Kernel) -> OrcTable | None:
    """Return where the kernel's own table is, or None if the kernel was built without.

    Raises:
        TypeNotFound, MemberNotFound: the layout of struct orc_entry is not known.
        ReadError: the table is not in the image.
        CorruptError: its sizes do not fit.
    """
    symbols = kernel.symbols.find_many(
        ("__start_orc_unwind_ip", "__stop_orc_unwind_ip", "__start_orc_unwind", "__stop_orc_unwind")
    )
    if len(symbols) < 4:
        return None
    ips = symbols["__start_orc_unwind_ip"].address
    rows = symbols["__start_orc_unwind"].address
    layout = kernel.types.struct("struct orc_entry")
    count = (symbols["__stop_orc_unwind_ip"].address - ips) // IP_SIZE
    if not 0 < count <= MAX_ROWS or count > (symbols["__stop_orc_unwind"].address - rows) // layout.size:
        raise CorruptError(ips, f"the ORC tables cannot have {count} rows of {layout.size} bytes")
    base = layout.member("sp_reg")
    if base.bit_size != REGISTER_BITS or base.bit_offset % 8:
        raise CorruptError(rows, f"struct orc_entry has sp_reg at bit {base.bit_offset}, {base.bit_size} bits wide")
    first = max(0, count // 2 - SAMPLE_ROWS // 2)
    sample = _read_bases(kernel, rows, layout, first, min(SAMPLE_ROWS, count - first))
    new = sample.count(NEW_REGISTERS.index("rsp")) > sample.count(OLD_REGISTERS.index("rsp"))
    return OrcTable(ips, rows, count, Decoder(layout, NEW_REGISTERS if new else OLD_REGISTERS))


def _read_bases(kernel: Kernel, rows: int, layout: StructType, first: int, number: int) -> bytes:
    """Return the number of the base register of each of `number` rows, a byte each. Raises ReadError."""
    low_bits = bytes(byte & 15 for byte in range(256))
    offset = layout.member("sp_reg").bit_offset // 8
    return kernel.read(rows + first * layout.size, number * layout.size)[offset :: layout.size].translate(low_bits)


def for_each_unwind_row(kernel: Kernel, covered: Sequence[tuple[int, int]]) -> Iterator[UnwindRow]:
    """Yield the rows of the kernel's text that is not `covered`, and of code that runs on a switched stack.

    The entry code is assembly that debug information says nothing of. A few instructions of C functions run on
    another stack than the one they were called on, where the compiler's rules are wrong.

    Args:
        kernel: whose memory has the tables.
        covered: [start, end) runs of run-time addresses, ascending.

    Raises:
        TypeNotFound, MemberNotFound: the layout of struct orc_entry is not known.
        ReadError: the tables are not in the image.
        CorruptError: they contradict themselves.
    """
    table = find_table(kernel)
    first, last = kernel.symbols.find("_text"), kernel.symbols.find("_etext")
    if table is None or first is None or last is None:
        return
    gaps = list(_for_each_gap(first.address, last.address, covered))
    for start, end in gaps:
        yield from for_each_row(kernel, table, start, end)
    starts = [start for start, _ in gaps]
    for row in for_each_switched_row(kernel, table):
        index = bisect_right(starts, row.start) - 1
        if index < 0 or row.start >= gaps[index][1]:
            yield row


def _for_each_gap(start: int, end: int, covered: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for low, high in covered:
        if high <= start:
            continue
        if low >= end:
            break
        if low > start:
            yield start, low
        start = high
    if start < end:
        yield start, end


def for_each_row(kernel: Kernel, table: OrcTable, start: int, end: int) -> Iterator[UnwindRow]:
    """Yield the rows for [start, end), ascending, cut to that range. Raises as `for_each_unwind_row`."""
    size, decoder = table.decoder.size, table.decoder
    first = _find_index(kernel, table, start)
    last = min(_find_index(kernel, table, end - 1) + 1, table.size)
    number = last - first
    starts = _read_starts(kernel, table.ips, first, min(number + 1, table.size - first))
    data = kernel.read(table.rows + first * size, number * size)
    for index in range(number):
        low = max(starts[index], start)
        high = min(starts[index + 1], end) if index + 1 < len(starts) else end
        if low < high:
            yield decoder.row(low, high, data[index * size : (index + 1) * size])


def for_each_switched_row(kernel: Kernel, table: OrcTable) -> Iterator[UnwindRow]:
    """Yield the rows whose caller's stack pointer lies at the top of this stack. Raises as `for_each_unwind_row`."""
    decoder = table.decoder
    mark = decoder.registers.index("[rsp]")
    bases = _read_bases(kernel, table.rows, decoder.layout, 0, table.size)
    index = bases.find(mark)
    while index >= 0:
        starts = _read_starts(kernel, table.ips, index, min(2, table.size - index))
        if len(starts) == 2:
            yield decoder.row(starts[0], starts[1], kernel.read(table.rows + index * decoder.size, decoder.size))
        index = bases.find(mark, index + 1)


def find_row(kernel: Kernel, table: OrcTable, address: int) -> UnwindRow | None:
    """Return the row for the code at `address`, None if the table starts above it.

    Raises:
        ReadError: the table is not in the image.
        CorruptError: the table is not ascending where it was searched.
    """
    index = _find_index(kernel, table, address)
    starts = _read_starts(kernel, table.ips, index, min(2, table.size - index))
    if address < starts[0]:
        if index:
            raise CorruptError(table.ips + index * IP_SIZE, "the ORC table is not in ascending order")
        return None
    end = starts[1] if len(starts) == 2 else address + 1
    if address >= end:
        raise CorruptError(table.ips + index * IP_SIZE, "the ORC table is not in ascending order")
    size = table.decoder.size
    return table.decoder.row(starts[0], end, kernel.read(table.rows + index * size, size))


def _read_starts(kernel: Kernel, ips: int, first: int, number: int) -> list[int]:
    """Return the first addresses of `number` rows. Raises ReadError."""
    place = ips + first * IP_SIZE
    distances = struct.unpack(f"<{number}i", kernel.read(place, number * IP_SIZE))
    return [place + index * IP_SIZE + distance for index, distance in enumerate(distances)]


def _find_index(kernel: Kernel, table: OrcTable, address: int) -> int:
    """Return the index of the last row that starts at or below `address` (0 if all are above). Raises ReadError."""
    low, high = 0, table.size
    while high - low > 1:
        middle = (low + high) // 2
        place = table.ips + middle * IP_SIZE
        if place + int.from_bytes(kernel.read(place, IP_SIZE), "little", signed=True) <= address:
            low = middle
        else:
            high = middle
    return low


class RowFinder:
    """Finds the row for an address in the kernel's own table or in a module's.

    Attributes:
        why: why there are no rows at all, "" if there are.
        text: [start, end) of all memory that holds code, the kernel's and that of modules.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._table: OrcTable | None = None
        self._modules: list[tuple[int, int, int]] = []  # start, end, struct module
        self._tables: dict[int, OrcTable | None] = {}
        self._rows: dict[int, UnwindRow | None] = {}
        self.why = ""
        try:
            self._table = find_table(kernel)
            if self._table is None:
                self.why = "the kernel has no ORC tables"
        except MISSING as error:
            self.why = f"the ORC tables cannot be used: {error}"
        self.text = [found for marks in (TEXT, INIT_TEXT) if (found := find_range(kernel, marks)) != NOWHERE]
        with contextlib.suppress(*MISSING):  # a kernel without modules, or nothing known of them: no rows for these
            self._modules = read_module_ranges(kernel)
        self._own = tuple(self.text)
        self.text += [(start, end) for start, end, _ in self._modules]

    def is_text(self, address: int) -> bool:
        """Return whether `address` may be code."""
        return any(start <= address < end for start, end in self.text)

    def find(self, address: int) -> UnwindRow | None:
        """Return the row for the code at `address`, None if there is none. Raises ReadError, CorruptError."""
        if address not in self._rows:
            self._rows[address] = self._find(address)
        return self._rows[address]

    def _find(self, address: int) -> UnwindRow | None:
        if self._table is None:
            return None
        if any(start <= address < end for start, end in self._own):
            return find_row(self._kernel, self._table, address)
        for start, end, module in self._modules:
            if start <= address < end:
                if module not in self._tables:
                    self._tables[module] = find_module_table(self._kernel, module, self._table.decoder)
                table = self._tables[module]
                return None if table is None else find_row(self._kernel, table, address)
        return None


def find_range(kernel: Kernel, marks: tuple[str, str]) -> tuple[int, int]:
    """Return [start, end) of the section that two of the linker's symbols mark, NOWHERE if they are not known."""
    first, last = (kernel.symbols.find(mark) for mark in marks)
    return NOWHERE if first is None or last is None else (first.address, last.address)


def read_module_ranges(kernel: Kernel) -> list[tuple[int, int, int]]:
    """Return (start, end, struct module) of each area of each module; a broken list gives those before the break."""
    reader = ModuleReader(kernel)
    found: list[tuple[int, int, int]] = []
    with contextlib.suppress(ReadError, CorruptError):
        for module in for_each_module_record(kernel):
            found += [(base, base + size, module.address) for base, size in reader.ranges(module)]
    return found


def find_module_table(kernel: Kernel, module: int, decoder: Decoder) -> OrcTable | None:
    """Return the table of the struct module at `module`, None if it has none. Raises ReadError, CorruptError."""
    try:
        arch = remembered(kernel, _make_module).read(kernel, module)
    except (TypeNotFound, MemberNotFound):
        return None
    if not arch["size"] or not arch["ips"] or not arch["rows"]:
        return None
    if arch["size"] > MAX_ROWS:
        raise CorruptError(module, f"a module has {arch['size']} ORC rows")
    return OrcTable(arch["ips"], arch["rows"], arch["size"], decoder)


def _make_module(kernel: Kernel) -> Layout:
    members: dict[str, Names] = {
        "size": "arch.num_orcs",
        "ips": "arch.orc_unwind_ip",
        "rows": "arch.orc_unwind",
    }
    return Layout(kernel.types, "struct module", members, kernel.arch.byteorder)
