"""The loaded files, kld modules among them, with their sections and symbols as the kernel keeps them.

Sources: sys/sys/linker.h and sys/kern/kern_linker.c (`linker_files`, a TAILQ; the first is the kernel; deps are the
files that a file needs), sys/kern/link_elf_obj.c: a relocatable file's struct elf_file begins with its struct
linker_file, and has a table of its sections (Elf_progent) and its symbols, whose values are addresses once it is
linked. Files of the other kind (link_elf.c, for ET_DYN) have a struct elf_file of their own, and debug information
may show only that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import CorruptError, KvmDbgError, MemberNotFound, TypeNotFound
from kvm_dbg.kernel.base import Module
from kvm_dbg.kernel.bsd.queue import for_each_entry
from kvm_dbg.kernel.freebsd.offset import require_types
from kvm_dbg.kernel.freebsd.proc import MISSING, attempt
from kvm_dbg.kernel.layout import Layout, Names, Record, decode_text, remembered
from kvm_dbg.symbols.kallsyms import JoinedSymbols, ListedSymbols, parse_module_symbols

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel
    from kvm_dbg.symbols.base import Symbol, SymbolTable

TEXT_LIMIT = 1024  # bytes; MAXPATHLEN
MAX_FILES = 1 << 12
MAX_SECTIONS = 1 << 12  # of one file
MAX_SYMBOLS = 1 << 18  # of one file
MAX_STRINGS = 1 << 24  # bytes
SUFFIX = ".ko"
STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE = 1, 2, 3, 4
LETTERS = {STT_OBJECT: "D", STT_FUNC: "T", STT_SECTION: "U", STT_FILE: "U"}  # STT_* -> nm's letter, U: none

FILE: dict[str, Names] = {
    "link": "link",
    "filename": "filename",
    "address": "address",
    "size": "size",
    "refs": ("refs", None),
    "count": ("ndeps", None),
    "deps": ("deps", None),
}
ORDER = (  # of the members that a relocatable file's struct elf_file has behind its struct linker_file, a word each
    "preloaded", "address", "object", "e_shdr", "progtab", "nprogtab", "relatab", "nrelatab", "reltab", "nreltab",
    "ddbsymtab", "ddbsymcnt", "ddbstrtab", "ddbstrcnt",
)  # fmt: skip


class Object(NamedTuple):
    """What the kernel keeps of a relocatable file: the places of its tables, and how many rows or bytes they have."""

    sections: int
    section_count: int
    symbols: int
    symbol_count: int
    strings: int
    string_size: int


def file_layout(kernel: Kernel) -> Layout:
    """Return the members of struct linker_file that are read. Raises TypeNotFound, MemberNotFound."""
    return remembered(kernel, _make_file)


def _make_file(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct linker_file", FILE, kernel.arch.byteorder)


def for_each_linker_file(kernel: Kernel) -> Iterator[Record]:
    """Yield the loaded files in the order of the kernel's list, the kernel itself first.

    Raises:
        SymbolNotFound, TypeNotFound, MemberNotFound: the list is not known.
        ReadError, CorruptError: it cannot be read to its end.
    """
    require_types(kernel, "loaded files")
    layout = file_layout(kernel)
    head = kernel.symbols.address("linker_files")
    for address in for_each_entry(kernel, head, layout.offsets["link"], "loaded files", MAX_FILES):
        yield layout.read(kernel, address)


def for_each_module(kernel: Kernel) -> Iterator[Module]:
    """Yield the loaded files but the kernel itself, in the order of the kernel's list. Raises as `read_files`."""
    files: list[Record] = []
    failure: KvmDbgError | None = None
    try:
        for file in for_each_linker_file(kernel):
            files.append(file)  # one by one: those before an error count
    except MISSING as error:
        failure = error
    names: dict[int, str] = {}
    users: dict[int, list[str]] = {}
    for file in files:
        names[file.address] = _name(kernel, file)
    for file in files:
        for needed in attempt([], (), partial(_needs, kernel, file)) or ():
            users.setdefault(needed, []).append(names[file.address])
    for file in files[1:]:
        yield _module(kernel, file, names[file.address], tuple(users.get(file.address, ())))
    if failure is not None:
        raise failure


def _name(kernel: Kernel, file: Record) -> str:
    text = attempt([], (), lambda: _text(kernel, file["filename"]))
    return text.rpartition("/")[2].removesuffix(SUFFIX) if text else f"file_{file.address:x}"


def _text(kernel: Kernel, address: int) -> str:
    return decode_text(read_string(kernel, address, TEXT_LIMIT)) if address else ""


def _needs(kernel: Kernel, file: Record) -> tuple[int, ...]:
    """Return the addresses of the files that a file needs. Raises ReadError, CorruptError."""
    count = file.get("count")
    if not 0 <= count <= MAX_FILES:
        raise CorruptError(file.address, f"a loaded file needs {count} others")
    if not count or not file.get("deps"):
        return ()
    return _words(kernel, kernel.read(file["deps"], count * kernel.arch.pointer_size))


def _words(kernel: Kernel, data: bytes) -> tuple[int, ...]:
    code = "Q" if kernel.arch.pointer_size == 8 else "I"
    order = "<" if kernel.arch.byteorder == "little" else ">"
    return struct.unpack(f"{order}{len(data) // kernel.arch.pointer_size}{code}", data)


def _module(kernel: Kernel, file: Record, name: str, users: tuple[str, ...]) -> Module:
    unread: list[str] = []
    start = attempt(unread, ("address",), lambda: file["address"]) or 0
    size = attempt(unread, ("size",), lambda: file["size"]) or 0
    sections = attempt(unread, ("sections",), lambda: read_sections(kernel, file)) if start else None
    return Module(
        name=name,
        address=start,
        size=size,
        users=users,
        reference_count=attempt(unread, ("refs",), lambda: file.get("refs")),
        struct_address=file.address,
        ranges=((start, size),) if size else (),
        sections=sections or {},
        unread=tuple(unread),
    )


def read_object(kernel: Kernel, file: Record) -> Object | None:
    """Return what the kernel keeps of a relocatable file, None for files of other kinds.

    Raises:
        ReadError: it cannot be read.
    """
    word = kernel.arch.pointer_size
    try:
        layout = Layout(kernel.types, "struct elf_file", {name: name for name in ORDER}, kernel.arch.byteorder)
    except (MemberNotFound, TypeNotFound):  # or the types show the struct of link_elf.c
        start = -(-kernel.types.size_of("struct linker_file") // word) * word
        values = dict(zip(ORDER, _words(kernel, kernel.read(file.address + start, word * len(ORDER))), strict=True))
        shift = 32 if word == 8 and kernel.arch.byteorder == "big" else 0
        values["nprogtab"] = values["nprogtab"] >> shift & 0xFFFFFFFF
    else:
        found = layout.read(kernel, file.address)
        values = {name: found[name] for name in ORDER}
    sane = 0 < values["nprogtab"] <= MAX_SECTIONS and 0 <= values["ddbsymcnt"] <= MAX_SYMBOLS
    if values["address"] != file["address"] or not sane or not 0 <= values["ddbstrcnt"] <= MAX_STRINGS:
        return None
    return Object(*(values[name] for name in (ORDER[4], ORDER[5], *ORDER[10:])))


def read_sections(kernel: Kernel, file: Record) -> Mapping[str, int]:
    """Return section name -> run-time address of a relocatable file, nothing for files of other kinds.

    Raises:
        ReadError: they cannot be read.
    """
    found = read_object(kernel, file)
    if found is None:
        return {}
    wide = kernel.arch.pointer_size == 8
    row = struct.Struct(("<" if kernel.arch.byteorder == "little" else ">") + ("QQiiQ" if wide else "IIiiI"))
    sections: dict[str, int] = {}
    for address, _, _, _, name in row.iter_unpack(kernel.read(found.sections, found.section_count * row.size)):
        text = attempt([], (), partial(_text, kernel, name))
        if address and text:
            sections.setdefault(text, address)
    return sections


def read_symbols(kernel: Kernel, file: Record, name: str) -> tuple[Symbol, ...]:
    """Return a relocatable file's symbols at their run-time addresses. Raises ReadError."""
    found = read_object(kernel, file)
    if found is None or not found.symbol_count:
        return ()
    wide = kernel.arch.pointer_size == 8
    size, info = (24, 4) if wide else (16, 12)
    table = kernel.read(found.symbols, found.symbol_count * size)
    letters = "".join(LETTERS.get(byte & 0xF, "?") for byte in table[info::size])
    strings = kernel.read(found.strings, found.string_size)
    order, bits = kernel.arch.byteorder, 8 * kernel.arch.pointer_size
    return parse_module_symbols(name, table, strings, letters.encode(), word_bits=bits, byteorder=order)


def all_symbols(kernel: Kernel) -> SymbolTable:
    """Return the kernel's symbols joined with those of all loaded files whose tables can be read."""
    return remembered(kernel, _join)


def _join(kernel: Kernel) -> SymbolTable:
    tables: dict[str, SymbolTable] = {}
    ranges: list[tuple[int, int, str]] = []
    try:
        for number, file in enumerate(for_each_linker_file(kernel)):
            if not number:
                continue
            name = _name(kernel, file)
            symbols = attempt([], (), partial(read_symbols, kernel, file, name))
            if symbols:
                tables[name] = ListedSymbols(symbols)
                ranges.append((file["address"], file["address"] + file["size"], name))
    except KvmDbgError:
        pass  # a broken list, or no types of it, costs the names of the rest
    return JoinedSymbols(kernel.symbols, tables, ranges)
