"""Whole ORC tables at once, for who wants all rules of a kernel and its modules.

What the tables are, and where, is in `orc.py`. A damaged or missing piece of a table costs the rows in it.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice, pairwise
from operator import add, le

from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.base import Kernel
from kvm_dbg.kernel.linux.module import ModuleReader, for_each_module_record
from kvm_dbg.kernel.linux.orc import IP_SIZE, Decoder, OrcTable, find_module_table, find_table, for_each_unwind_row
from kvm_dbg.kernel.unwind_rule import UnwindRow, UnwindTable

MISSING = (ReadError, CorruptError, SymbolNotFound, TypeNotFound, MemberNotFound)
TEXT = (("_text", "_etext"), ("_sinittext", "_einittext"))
# From arch/x86/entry/entry_64.S and entry_64_compat.S: entry points of system calls with the labels in them, where new
# tasks begin, and what calls a function on the stack of interrupts (5.8 to 5.11; before and after, rows tell it).
CALLED = (
    *("entry_SYSCALL_64", "entry_SYSCALL_64_safe_stack", "entry_SYSCALL_64_after_hwframe"),
    *("entry_SYSENTER_compat", "entry_SYSENTER_compat_after_hwframe", "entry_INT80_compat", "asm_int80_emulation"),
    *("entry_SYSCALL_compat", "entry_SYSCALL_compat_safe_stack", "entry_SYSCALL_compat_after_hwframe"),
    *("asm_fred_entrypoint_user", "ret_from_fork", "ret_from_fork_asm"),
)
SWITCHES = ("asm_call_on_stack", "asm_call_sysvec_on_stack", "asm_call_irq_on_stack")
MAX_ROWS = 1 << 22  # of the kernel, and of all modules: each costs a hundred bytes while it is worked on
PIECE_ROWS = 1 << 10  # read at once where the whole table cannot be: a page of addresses

Piece = tuple[list[int], list[bytes]]  # first addresses and rows; the end of the last row follows where it is known


def for_each_unwind_table(kernel: Kernel, *, modules: bool) -> Iterator[UnwindTable]:
    """Yield the kernel's own rules, or those of its modules; see `OperatingSystem`."""
    try:
        table = find_table(kernel)
    except MISSING as error:
        yield _nothing(f"the kernel's unwind rules (ORC) cannot be used: {error}")
        return
    if table is None:
        return
    if not modules and table.size > MAX_ROWS:
        yield _nothing(f"the kernel's unwind rules (ORC) cannot be used: there are {table.size}, which cannot be")
    elif not modules:
        called, switches = _find_runs(kernel, CALLED), _find_runs(kernel, SWITCHES)
        for found in _read(kernel, table, _find_text(kernel), "the kernel"):
            yield found._replace(called=called, switches=switches)
    else:
        try:
            yield from _for_each_module_table(kernel, table.decoder)
        except MISSING as error:
            yield _nothing(f"unwind rules of modules are missing: {error}")


def for_each_unwind_gap(kernel: Kernel, covered: Sequence[tuple[int, int]]) -> Iterator[UnwindTable]:
    """Yield the rows of `orc.for_each_unwind_row`, a table for each run without gaps. Raises as that does."""
    runs: list[list[UnwindRow]] = []
    for row in for_each_unwind_row(kernel, covered):
        if runs and runs[-1][-1].end == row.start:
            runs[-1].append(row)
        else:
            runs.append([row])
    called, switches = _find_runs(kernel, CALLED), _find_runs(kernel, SWITCHES)
    for run in runs:
        rules = [row[2:] for row in run]
        yield UnwindTable([row.start for row in run], run[-1].end, rules, _row_of, called, switches)


def _row_of(rule: tuple[str, str, int, str, int]) -> UnwindRow:
    return UnwindRow(0, 0, *rule)


def _for_each_module_table(kernel: Kernel, decoder: Decoder) -> Iterator[UnwindTable]:
    """Yield the rules of each module. Raises ReadError, CorruptError: the list of modules is broken."""
    reader = ModuleReader(kernel)
    rows = 0
    for module in for_each_module_record(kernel):
        name = f"module {module.text('name')}"
        try:
            areas = sorted((base, min(base + size, 1 << 64)) for base, size in reader.ranges(module))
            table = find_module_table(kernel, module.address, decoder)
        except MISSING as error:
            yield _nothing(f"{name}: its unwind rules (ORC) cannot be used: {error}")
            continue
        if table is None:
            continue
        rows += table.size
        if rows > MAX_ROWS:
            raise CorruptError(module.address, f"there are more than {MAX_ROWS} ORC rows")
        yield from _read(kernel, table, areas, name)


def _nothing(problem: str) -> UnwindTable:
    return UnwindTable((), 0, (), lambda _: UnwindRow(0, 0, "undefined", "", 0), problem=problem)


def _find_text(kernel: Kernel) -> list[tuple[int, int]]:
    """Return [start, end) of each part of the kernel that holds code, ascending."""
    pairs = [(kernel.symbols.find(first), kernel.symbols.find(last)) for first, last in TEXT]
    return sorted((first.address, last.address) for first, last in pairs if first is not None and last is not None)


def _find_runs(kernel: Kernel, names: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return [start, end) of the code that has one of the names, ascending; labels may lie inside of functions."""
    runs: list[tuple[int, int]] = []
    for start in sorted({symbol.address for symbol in kernel.symbols.find_many(names).values()}):
        symbol = kernel.symbols.find_at(start)
        end = symbol.address + symbol.size if symbol is not None else start
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(runs[-1][1], end))
        elif start < end:
            runs.append((start, end))
    return runs


def _read(kernel: Kernel, table: OrcTable, areas: list[tuple[int, int]], what: str) -> Iterator[UnwindTable]:
    """Yield the rows for each of the ascending areas; a module's rows for code that it has freed are in none."""
    decode = partial(table.decoder.row, 0, 0)
    good = 0
    for piece in _for_each_piece(kernel, table):
        for starts, rules in _for_each_ascending(piece):
            good += len(rules)
            for low, high in areas:
                first, last = bisect_left(starts, low), min(bisect_left(starts, high), len(rules))
                if first < last:
                    end = min(starts[last], high) if last < len(starts) else high
                    yield UnwindTable(starts[first:last], end, rules[first:last], decode)
    if good < table.size:
        lost = table.size - good
        yield _nothing(f"{what}: {lost} of {table.size} unwind rules (ORC) are not in the image, or damaged")


def _for_each_piece(kernel: Kernel, table: OrcTable) -> Iterator[Piece]:
    """Yield the table, or what can be read of it."""
    try:
        yield _read_piece(kernel, table, 0, table.size)
    except ReadError:
        for first in range(0, table.size, PIECE_ROWS):
            number = min(PIECE_ROWS, table.size - first)
            for more in (1, 0):  # the next piece's first address tells where this one's last row ends
                try:
                    starts, rules = _read_piece(kernel, table, first, min(number + more, table.size - first))
                except ReadError:
                    continue
                if len(rules) > number or first + number == table.size:
                    yield starts, rules[:number]
                else:
                    yield starts, rules[:-1]
                break


def _read_piece(kernel: Kernel, table: OrcTable, first: int, number: int) -> Piece:
    place, size = table.ips + first * IP_SIZE, table.decoder.size
    distances = struct.unpack(f"<{number}i", kernel.read(place, number * IP_SIZE))
    data = kernel.read(table.rows + first * size, number * size)
    starts = list(map(add, range(place, place + number * IP_SIZE, IP_SIZE), distances))
    return starts, list(chain.from_iterable(struct.iter_unpack(f"{size}s", data)))


def _for_each_ascending(piece: Piece) -> Iterator[Piece]:
    """Yield the piece, or what is before and after the part of it where addresses do not ascend."""
    starts, rules = piece
    if all(map(le, starts, islice(starts, 1, None))):
        yield piece
        return
    falls = [index for index, (start, after) in enumerate(pairwise(starts)) if start > after]
    after = falls[-1] + 2  # where it falls, either of the two may be the wrong one
    limit = starts[after] if after < len(starts) else starts[0]
    before = bisect_left(starts, limit, 0, falls[0])
    if before:
        yield starts[:before], rules[: before - 1]
    if after < len(rules):
        yield starts[after:], rules[after:]
