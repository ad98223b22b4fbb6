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

lldb looks an entry up by where a function begins, and takes no other for the rest of it: for lldb there is one entry
for each function. Code that interrupts, or that nobody called, has none then: lldb takes the rules of another section
for it (see `kvm_dbg.rsp.lldb_module`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import chain, compress, pairwise
from operator import sub
from typing import Any, NamedTuple

from kvm_dbg.elf import SHT_PROGBITS
from kvm_dbg.kernel.unwind_rule import UnwindRow, UnwindTable
from kvm_dbg.kernel_file.elf_writer import Section, memory_section, write_elf
from kvm_dbg.kernel_file.frame_rule import (
    AT_CALL,
    Rule,
    encode_advance,
    encode_change,
    encode_cie,
    encode_entry,
    expressible,
    stop,
)

USER_START, USER_END = 0x1000, 0x7FFF_FFFF_E000  # a backtrace ends at the first user frame
WORD = (1 << 64) - 1
MACHINE = 62  # EM_X86_64
FUNCTION_ALIGN = 16  # bytes; where the kernel's functions are no better aligned, entries only get longer
MAX_ENTRY_ROWS = 1 << 12  # a debugger runs through all rows of an entry up to the one that it wants
INTERRUPTS = ("regs", "trap", "partial")  # kinds of rows in code that interrupts its caller
ODD = (*INTERRUPTS, "end")  # kinds of rows in code that interrupts its caller, or that nobody called


def make_debug_frame(
    tables: Iterable[UnwindTable],
    slide: int = 0,
    *,
    user: bool = True,
    inlined: bool = False,
    functions: Sequence[int] = (),
) -> bytes:
    """Return .debug_frame with the tables' rules, b"" if there are none.

    Args:
        tables: of x86-64.
        slide: what is subtracted from their addresses.
        user: with a rule that ends a backtrace at the first frame of a user's code, in a file that is not slid.
        inlined: the debugger knows of inlined functions in those that switch the stack, which need no mark then.
        functions: where each function begins, ascending, for one entry for each that is not odd.
    """
    plain, signal = encode_cie(b""), encode_cie(b"zS")
    encoder = _Encoder(len(plain), inlined=inlined)
    entries: list[bytes] = []
    for table in tables:
        if table.rules:
            entries += encoder.entries(table, slide, functions)
    if user:
        entries.append(encode_entry(USER_START, USER_END - USER_START, stop()))
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


class ByFunction(NamedTuple):
    """A table with a row at the beginning of each function.

    cuts: the numbers of these rows, and 0, ascending. odd: those of functions that interrupt or that nobody called.
    """

    table: UnwindTable
    cuts: list[int]
    odd: set[int]

    def for_each_odd(self) -> Iterator[list[UnwindRow]]:
        """Yield the rows of each odd function."""
        for first, last in pairwise([*self.cuts, len(self.table.starts)]):
            if first in self.odd:
                yield list(self.table.rows_of(first, last))


def by_function(table: UnwindTable, functions: Sequence[int]) -> ByFunction:
    """Return the rules by functions, whose ascending addresses are given; the last row of one may go on in the next."""
    starts, rules = table.starts, dict(zip(table.starts, table.rules, strict=True))
    first, last = bisect_left(functions, starts[0]), bisect_left(functions, table.end)
    begins = functions[first:last]
    for address in begins:
        if address not in rules:
            rules[address] = table.rules[bisect_right(starts, address) - 1]
    places = sorted(rules)
    table = table._replace(starts=places, rules=list(map(rules.__getitem__, places)))
    numbers = dict(zip(places, range(len(places)), strict=True))
    cuts = sorted({0, *map(numbers.__getitem__, begins)})
    kinds = {rule for rule in set(table.rules) if table.decode(rule).kind in ODD}
    odd = compress(range(len(places)), map(kinds.__contains__, table.rules))
    return ByFunction(table, cuts, {cuts[bisect_right(cuts, number) - 1] for number in odd})


class _Encoder:
    """Turns rows into entries; what has been encoded once is known from then on."""

    def __init__(self, signal: int, *, inlined: bool) -> None:
        self._signal = signal  # where the CIE with the mark is
        self._inlined = inlined
        self._rules: list[Rule] = [AT_CALL]
        self._numbers: dict[Rule, int] = {AT_CALL: 0}
        self._changes = _Known(lambda pair: encode_change(self._rules[pair[0]], self._rules[pair[1]]))
        self._advances = _Known(encode_advance)

    def entries(self, table: UnwindTable, slide: int, functions: Sequence[int]) -> list[bytes]:
        """Return the entries for a table: about one for each function, one for each row that is no call's.

        With `functions`, exactly one for each of these that is not odd.
        """
        parts = by_function(table, functions) if functions else None
        table = parts.table if parts is not None else table
        starts, rules = table.starts, table.rules
        number_of = _Known(lambda rule: self._number(expressible(table.decode(rule)[2:])))
        numbers: list[int] = list(map(number_of.__getitem__, rules))
        # Two pieces for each row but the first of an entry: the way to it, and what changes there.
        pieces: list[bytes] = [b""] * (2 * len(numbers))
        pieces[2::2] = map(self._advances.__getitem__, map(sub, starts[1:], starts))
        pieces[3::2] = map(self._changes.__getitem__, pairwise(numbers))
        called, switches = list(chain(*table.called)), list(chain(*table.switches))
        found = []
        cuts = parts.cuts if parts is not None else self._cuts(starts, numbers, switches)
        without = parts.odd if parts is not None else ()
        for first, last in pairwise([*cuts, len(numbers)]):
            start, stop = starts[first], starts[last] if last < len(starts) else table.end
            if start < stop and first not in without:
                instructions = b"".join(pieces[2 * first + 2 : 2 * last])
                body = self._changes[0, numbers[first]] + instructions
                kind, base, *_ = self._rules[numbers[first]]
                # After an odd number of their edges an address is inside of runs.
                interrupts = kind in INTERRUPTS and not bisect_right(called, start) & 1
                signal = interrupts or (base == "[rsp]" and not self._inlined) or bisect_right(switches, start) & 1
                found.append(encode_entry(start - slide & WORD, stop - start, body, self._signal if signal else 0))
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
