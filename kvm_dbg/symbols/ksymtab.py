"""The kernel's table of exported symbols, found in its memory: names and places of data that kallsyms may leave out.

A kernel without CONFIG_KALLSYMS_ALL has only its functions in kallsyms. Modules need the addresses of exported data,
so these stand in `__ksymtab` and `__ksymtab_gpl` (one table since 7.0), each entry three (two before 5.4, commit
8651ec01daed) signed 32-bit numbers relative to their own places: value, name, namespace (include/linux/export.h,
kernel_symbol with CONFIG_HAVE_ARCH_PREL32_RELOCATIONS, x86 since 4.19). The strings follow behind the tables
(include/asm-generic/vmlinux.lds.h). Nothing says where the tables are: the name of a symbol that every kernel exports
is looked for, then the entry that leads to it, then its neighbours; what is found must agree with kallsyms.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterable

from kvm_dbg.errors import ReadError
from kvm_dbg.symbols.base import SymbolTable
from kvm_dbg.symbols.kallsyms_table import Memory

LANDMARK = b"\0init_task\0"  # exported since 2.5
ENTRY_SIZES = (12, 8)  # bytes
REACH = 1 << 21  # bytes between an entry and its name
MAX_ENTRIES = 1 << 16
MAX_NAME = 512
NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_.]*\0")
FEWEST = 500  # exports of a kernel; even the smallest that loads modules has more
AGREEMENT = 0.9  # of the exported functions are in kallsyms at the same address: aliases and weak ones may not be
MASK = (1 << 64) - 1


def search_exports(memory: Memory, blocks: Iterable[tuple[int, bytes]], functions: SymbolTable) -> dict[str, int]:
    """Return name -> run-time address of the exported symbols; empty if the table is not found.

    blocks: (address, bytes) of the kernel's image, in ascending order. functions: kallsyms, which must agree.
    """
    tail, tail_end = b"", -1
    for vaddr, block in blocks:
        overlap = tail if tail_end == vaddr else b""
        data = overlap + block
        at = data.find(LANDMARK)
        while at >= 0:
            found = _read_around(memory, vaddr - len(overlap) + at + 1)
            if _agrees(found, functions):
                return found
            at = data.find(LANDMARK, at + 1)
        tail, tail_end = data[-len(LANDMARK) :], vaddr + len(block)
    return {}


def _read_around(memory: Memory, name: int) -> dict[str, int]:
    """Return the table that an entry is in which leads to the name at this address; empty if there is none."""
    low = max(name - REACH, 0) & ~3
    try:
        before, names = memory.read(low, name - low & ~3), memory.read(name & ~3, REACH)
    except ReadError:
        return {}
    data = before + names
    words = array("i", before)
    for number, word in enumerate(words):
        if word + 4 * number + low == name:
            for size in ENTRY_SIZES:
                found = _read_table(data, low, 4 * number - 4, size)
                if len(found) >= FEWEST:
                    return found
    return {}


def _read_table(data: bytes, low: int, at: int, size: int) -> dict[str, int]:
    """Return the entries before and behind the one at offset `at` of `data`, which is memory from `low` on."""
    found: dict[str, int] = {}
    for step in (-size, size):
        place = at if step > 0 else at - size
        while 0 <= place <= len(data) - size and len(found) < MAX_ENTRIES:
            value, name = struct.unpack_from("<ii", data, place)
            match = NAME.match(data, place + 4 + name) if 0 <= place + 4 + name < len(data) else None
            if match is None or match.end() - match.start() > MAX_NAME:
                break
            found[match[0][:-1].decode()] = low + place + value & MASK
            place += step
    return found


def _agrees(exports: dict[str, int], functions: SymbolTable) -> bool:
    """Return whether those exports that kallsyms has as well are at the same places."""
    known = functions.find_many(exports)
    same = sum(symbol.address == exports[name] for name, symbol in known.items())
    return same >= FEWEST // 2 and same >= AGREEMENT * len(known)
