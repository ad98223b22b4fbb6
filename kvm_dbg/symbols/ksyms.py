"""NetBSD's own symbol tables, found in the kernel's memory: what savecore(8) makes the name list netbsd.N of.

Facts: sys/sys/ksyms.h (struct ksyms_symtab, the same from 5.0 to now up to `sd_gone`; in 2015 it had got its CTF, in
2021 `sd_pslist` at its end), sys/kern/kern_ksyms.c. The boot loader puts .symtab and .strtab of the kernel behind the
kernel, and `addsymtab()` describes them by the variable `kernel_symtab`, whose name is "netbsd". Tables of modules
follow it through `sd_queue`. All names count as one array: `st_name` has `sd_usroffset` added, the place of the table's
own names in it. All symbols are said to be of one section, SHBSS (4, and 5 since the header has a note). Their values
are run-time addresses, also of kernels that the boot loader (prekern) scatters over memory. Kernels with KDTRACE_HOOKS
keep symbols without names and those of source files as well, with the value 0.

Nothing says where the tables are: the name "netbsd" is looked for, then the pointer to it in a struct ksyms_symtab.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

from kvm_dbg.elf import (
    ET_EXEC,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHT_NOBITS,
    SHT_PROGBITS,
    SHT_STRTAB,
    SHT_SYMTAB,
    ElfFile,
)
from kvm_dbg.errors import CorruptError, ReadError
from kvm_dbg.symbols.elf import ElfSymbolTable

SOURCE = "the kernel's own symbol tables (ksyms)"
KERNEL = b"netbsd\0"
MAX_NAMES = 1 << 12  # places in memory where that text is
MAX_TABLE = 1 << 26  # bytes of either symbols or names: kernels with everything have 4 MiB
MAX_TABLES = 1 << 12
LAST_SECTION = 16  # SHBSS has been 4 and 5
FEWEST = 16  # symbols
CTF_MAGIC = b"\xf1\xcf"
_NAMES = (".symtab", ".strtab", ".shstrtab", ".bss", ".symtab_ctf", ".SUNW_ctf")


Blocks = Callable[[], Iterable[tuple[int, bytes]]]


class Memory(Protocol):
    """Where the tables are read from."""

    def read(self, vaddr: int, size: int) -> bytes:
        """Return `size` bytes at `vaddr`; raises ReadError."""


class Shape(NamedTuple):
    """The tables' layout on a processor.

    word: bytes of a pointer. machine: e_machine. order: struct's character for the byte order.
    """

    word: int
    machine: int
    order: str

    @property
    def table(self) -> struct.Struct:
        """Return the parser of a struct ksyms_symtab, up to sd_ctfsize."""
        wide = self.word == 8
        return struct.Struct(self.order + ("7Q4i?7xQi4x" if wide else "7I4i?3xIi"))

    @property
    def row(self) -> int:
        """Return the size of a symbol in bytes."""
        return 24 if self.word == 8 else 16

    @property
    def section_at(self) -> int:
        """Return where a symbol has its section, in bytes."""
        return 6 if self.word == 8 else 14


class Table(NamedTuple):
    """A struct ksyms_symtab, by its members' names."""

    next: int
    prev: int
    name: int
    symstart: int
    minsym: int
    maxsym: int
    strstart: int
    usroffset: int
    symsize: int
    strsize: int
    nglob: int
    gone: bool
    ctfstart: int
    ctfsize: int


def search_ksyms(memory: Memory, blocks: Blocks, shape: Shape) -> tuple[ElfSymbolTable, str] | None:
    """Return the symbols of the kernel and its modules, and a sentence on what is missing ("" if nothing is).

    Args:
        memory: the kernel's.
        blocks: returns an iterable of (address, bytes), the parts of the kernel's image that are there, ascending;
            called twice.
        shape: of the kernel's processor.

    Returns:
        None if no table of a kernel is in the blocks.

    Raises:
        ReadError: there is one, but its symbols or names are not in the image.
    """
    failure: ReadError | None = None
    for table in _for_each_candidate(memory, blocks, shape):
        try:
            parts, missing = _read_chain(memory, table, shape)
        except ReadError as error:
            failure = failure or error
            continue
        except CorruptError:
            continue  # something else
        return ElfSymbolTable(ElfFile(_make_elf(parts, shape, _read_ctf(memory, table)), SOURCE)), missing
    if failure is not None:
        raise failure
    return None


def _for_each_candidate(memory: Memory, blocks: Blocks, shape: Shape) -> Iterator[Table]:
    """Yield what could be the kernel's own struct ksyms_symtab."""
    parser, pack = shape.table, struct.Struct(shape.order + ("Q" if shape.word == 8 else "I")).pack
    pointers = [pack(name) for name in islice(_for_each_place(blocks, KERNEL), MAX_NAMES)]
    for vaddr, data in blocks() if pointers else ():
        for pointer in pointers:
            at = data.find(pointer)
            while at >= 0:
                if (vaddr + at) % shape.word == 0:
                    try:
                        table = Table._make(parser.unpack(memory.read(vaddr + at - 2 * shape.word, parser.size)))
                    except ReadError:
                        table = None
                    if table is not None and _is_possible(table, shape) and not table.usroffset and not table.gone:
                        yield table
                at = data.find(pointer, at + 1)


def _for_each_place(blocks: Blocks, text: bytes) -> Iterator[int]:
    """Yield the addresses of `text`."""
    tail, end = b"", -1
    for vaddr, block in blocks():
        before = tail if vaddr == end else b""
        data = before + block
        at = data.find(text)
        while at >= 0:
            yield vaddr - len(before) + at
            at = data.find(text, at + 1)
        tail, end = block[1 - len(text) :], vaddr + len(block)


def _is_possible(table: Table, shape: Shape) -> bool:
    return (
        FEWEST * shape.row <= table.symsize <= MAX_TABLE
        and table.symsize % shape.row == 0
        and 0 < table.strsize <= MAX_TABLE
        and 0 <= table.nglob <= table.symsize // shape.row
        and 0 <= table.usroffset <= MAX_TABLE
        and table.minsym <= table.maxsym > 0
        and bool(table.symstart and table.strstart)
    )


class _Part(NamedTuple):
    """One table's bytes, and where its names are among all."""

    symbols: bytes
    strings: bytes
    offset: int


def _read_chain(memory: Memory, first: Table, shape: Shape) -> tuple[list[_Part], str]:
    """Return the kernel's table and those of its modules, and a sentence on what is missing.

    Raises:
        ReadError, CorruptError: of the kernel's own table.
    """
    parts = [_read_part(memory, first, shape)]
    seen: set[int] = set()
    place = first.next
    while place:
        try:
            if place in seen or len(seen) >= MAX_TABLES:
                raise CorruptError(place, "the list of symbol tables loops")
            seen.add(place)
            table = Table._make(shape.table.unpack(memory.read(place, shape.table.size)))
            if not table.gone:
                if not _is_module(table, shape):
                    raise CorruptError(place, "what is listed as a module's symbol table is none")
                parts.append(_read_part(memory, table, shape))
            place = table.next
        except (ReadError, CorruptError) as error:
            return parts, f"symbols of modules are missing: {error}"
    return parts, ""


def _is_module(table: Table, shape: Shape) -> bool:
    return (
        0 <= table.symsize <= MAX_TABLE
        and table.symsize % shape.row == 0
        and 0 <= table.strsize <= MAX_TABLE
        and 0 < table.usroffset <= MAX_TABLE
    )


def _read_part(memory: Memory, table: Table, shape: Shape) -> _Part:
    """Return a table's symbols and names. Raises ReadError, CorruptError: the symbols' names are not in it."""
    symbols = memory.read(table.symstart, table.symsize) if table.symsize else b""
    strings = memory.read(table.strstart, table.strsize) if table.strsize else b""
    parser = struct.Struct(f"{shape.order}I{shape.row - 4}x")
    low, kept = table.usroffset, bytearray()
    for at, (name,) in enumerate(parser.iter_unpack(symbols)):
        if not low <= name < low + len(strings):
            raise CorruptError(table.symstart, "the symbols have names outside of their table")
        if strings[name - low]:
            kept += symbols[at * shape.row : (at + 1) * shape.row]
    if strings and strings[-1]:
        raise CorruptError(table.strstart, "the last name does not end")
    return _Part(bytes(kept), strings, low)


def _read_ctf(memory: Memory, table: Table) -> bytes:
    """Return the kernel's types; empty if its memory has none."""
    if not table.ctfstart or not 4 <= table.ctfsize <= MAX_TABLE:
        return b""
    try:
        data = memory.read(table.ctfstart, table.ctfsize)
    except ReadError:
        return b""
    return data if data[:2] in (CTF_MAGIC, CTF_MAGIC[::-1]) else b""


def _make_elf(parts: list[_Part], shape: Shape, ctf: bytes) -> bytes:
    """Return an ELF file of the tables, with the sections of savecore's name list.

    Symbols' section is one without bytes that claims all addresses. CTF counts symbols in the order of the kernel file,
    which is lost, since the kernel sorts them by name: an empty table is linked to it, and no symbol has a type of it.
    """
    symbols = b"".join(part.symbols for part in parts)
    strings = bytearray(max(part.offset + len(part.strings) for part in parts))
    for part in parts:
        strings[part.offset : part.offset + len(part.strings)] = part.strings
    usual = Counter(
        struct.unpack_from(f"{shape.order}H", symbols, at + shape.section_at)[0] for at in _sample(symbols, shape)
    )
    section = usual.most_common(1)[0][0]
    section = section if 4 <= section <= LAST_SECTION else 4
    names = b"\0" + b"".join(name.encode() + b"\0" for name in _NAMES)
    wide = shape.word == 8
    header = 64 if wide else 52
    rows: list[tuple[str, int, int, bytes, int, int]] = [("", 0, 0, b"", 0, 0)] * (section + (3 if ctf else 1))
    rows[1] = (".symtab", SHT_SYMTAB, 0, symbols, 2, shape.row)
    rows[2] = (".strtab", SHT_STRTAB, 0, bytes(strings), 0, 0)
    rows[3] = (".shstrtab", SHT_STRTAB, 0, names, 0, 0)
    rows[section] = (".bss", SHT_NOBITS, SHF_ALLOC | SHF_EXECINSTR, b"", 0, 0)
    if ctf:
        rows[section + 1] = (".symtab_ctf", SHT_SYMTAB, 0, b"", 2, shape.row)
        rows[section + 2] = (".SUNW_ctf", SHT_PROGBITS, 0, ctf, section + 1, 0)
    entry = struct.Struct(shape.order + ("IIQQQQIIQQ" if wide else "10I"))
    place = header + entry.size * len(rows)
    table, body = [], []
    for name, kind, flags, data, link, size in rows:
        length = (1 << 8 * shape.word) - 1 if kind == SHT_NOBITS else len(data)
        at = names.index(b"\0" + name.encode() + b"\0") + 1 if name else 0
        table.append(entry.pack(at, kind, flags, 0, place, length, link, 0, 1, size))
        body.append(data)
        place += len(data)
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if shape.order == "<" else 2, 1]) + bytes(9)
    outside = struct.pack(
        shape.order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"),
        ET_EXEC, shape.machine, 1, 0, 0, header, 0, header, 0, 0, entry.size, len(rows), 3,
    )  # fmt: skip
    return ident + outside + b"".join(table) + b"".join(body)


def _sample(symbols: bytes, shape: Shape) -> range:
    """Return where some of the symbols are: they are all of one section."""
    count = len(symbols) // shape.row
    return range(0, len(symbols), shape.row * max(count // 256, 1))
