"""The file that lldb takes for the kernel: vmlinux's sections without their bytes, its symbols, and unwind rules.

A module of lldb's has an object file and may have another one for its debug information. lldb unwinds by the rules of
both: by vmlinux's .debug_frame where that has an entry for the function, else by the object file's .eh_frame. So with
this file for the object and vmlinux for the symbols, entry code has rules (`eh_frame.py`), and every function keeps its
source lines and its compiler's rules. The bytes of the sections come from the image, which knows what was patched; in
this file they would begin behind its end, so that lldb has no others to show where the image lacks some.

Two more things are told here. Where a C function runs on another stack for a while, the compiler's rules are wrong and
ORC's are right: it has an entry as well, and lldb takes that one if it is told that the function is a trap handler
(`target.trap-handler-names`). And symbols of code that vmlinux has no rules for end where the next one begins, as in
the kernel's own kallsyms: `entry_SYSCALL_64_after_hwframe` is no part of `entry_SYSCALL_64`.

A list of symbols that savecore wrote for NetBSD has one section of all memory, from which lldb takes no names. In its
place are the parts of the kernel as the system knows them, and the list itself has nothing more to tell.

Facts: lldb's behaviour as seen in 19.1 and 23.1 (`image show-unwind`). A file is about 5 MB, one for each kernel file.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.elf import (
    PT_NOTE,
    SHT_NOTE,
    SHT_PROGBITS,
    SHT_STRTAB,
    SHT_SYMTAB,
    ElfFile,
    open_elf,
)
from kvm_dbg.errors import CommandError, FormatError, ReadError
from kvm_dbg.kernel.unwind_rule import UnwindRow, UnwindTable
from kvm_dbg.kernel_file.chain_frame import make_chain_eh_frame
from kvm_dbg.kernel_file.elf_writer import HEADER as ELF_HEADER
from kvm_dbg.kernel_file.elf_writer import PROGRAM_HEADER, SECTION_HEADER
from kvm_dbg.kernel_file.frame import by_function
from kvm_dbg.rsp.debugger_file import keep
from kvm_dbg.rsp.eh_frame import Entry, make_eh_frame
from kvm_dbg.rsp.frame_table import read_covered
from kvm_dbg.rsp.module_part import Parts

if TYPE_CHECKING:
    from kvm_dbg.commands.session import Session

LAYOUT = 6  # raise it when what is written changes
TRAP_HANDLERS = ".kvm_dbg.trap_handlers"  # names of functions, each ended by a zero byte
SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: st_name, st_info, st_other, st_shndx, st_value, st_size
STT_NOTYPE, STT_FUNC = 0, 2
SHN_LORESERVE = 0xFF00
NOWHERE = 1 << 40  # bytes; behind the end of the file
CODE_SAMPLE = 4096  # bytes
MAX_FUNCTION = 1 << 20  # bytes; what is longer is a hole behind the last function of its section
LAST_ADDRESS = (1 << 64) - 1


class LldbModule(NamedTuple):
    """The file, and the functions that lldb shall take for trap handlers.

    complete: it has all that the kernel file would tell lldb.
    """

    path: str
    trap_handlers: list[str]
    complete: bool = False


def make_lldb_module(session: Session, made: str | None = None) -> LldbModule:
    """Return the file for the opened kernel, made in the session's cache if it is not there yet.

    Args:
        session: with an open image.
        made: the kernel file that was made from the image, where there is no vmlinux.

    Raises:
        CommandError: there is no vmlinux, no cache, or the kernel has no unwind rules beyond its debug information.
        FileAccessError: the file cannot be written.
        FormatError: the kernel file is damaged.
        ReadError, CorruptError: the kernel's unwind tables cannot be read.
    """
    vmlinux = getattr(session.kernel, "vmlinux_path", None) or made
    if vmlinux is None or session.index_directory is None:
        raise CommandError("there is no vmlinux" if vmlinux is None else "there is no cache directory")
    arch = session.kernel.arch
    if arch.pointer_size != 8 or arch.byteorder != "little":
        raise CommandError(f"lldb has none but its own rules for this {arch.name}, by frame pointers")
    path = str(vmlinux)
    with open_elf(path) as file:
        build_id = file.find_build_id()
        status = os.stat(path)
        name = build_id.hex() if build_id is not None else f"no-build-id-{status.st_mtime_ns:x}"
        blind = _is_blind(session)
        place = f"lldb-{LAYOUT}-{status.st_size:x}{'-blind' if blind else ''}"
        target = Path(session.index_directory) / name / place / Path(path).name
        if not target.is_file():
            if session.progress is not None:
                session.progress("making unwind rules for lldb")
            keep([_make(session, file, blind=blind) if made is None else _make_beside_made(session, file)], target)
        complete = Parts(session, file).made
    with open_elf(target) as written:
        section = written.find_section(TRAP_HANDLERS)
        if section is None:
            raise FormatError(target, 0, TRAP_HANDLERS, "there is no such section; delete the file")
        names = bytes(written.section_data(section)).decode("utf-8", "replace").split("\0")
    return LldbModule(str(target), [name for name in names if name], complete)


class SymbolRows:
    """A kernel file's symbol table, and where its functions are."""

    def __init__(self, file: ElfFile) -> None:
        section = next((section for section in file.sections if section.type == SHT_SYMTAB), None)
        if section is None or file.header.word_bits != 64 or not 0 < section.link < len(file.sections):
            raise CommandError(f"{file.path} has no symbol table of 64 bits")
        self.section = section
        self.names = bytes(file.section_data(file.sections[section.link]))
        data = bytes(file.section_data(section))
        self.rows = list(SYMBOL.iter_unpack(data[: len(data) // SYMBOL.size * SYMBOL.size]))
        code = [
            (value, size)
            for _, info, _, where, value, size in self.rows
            if info & 15 in (STT_NOTYPE, STT_FUNC) and 0 < where < SHN_LORESERVE
        ]
        self.starts = sorted({value for value, _ in code})
        self.functions = sorted({row[4] for row in self.rows if row[1] & 15 == STT_FUNC and 0 < row[3] < SHN_LORESERVE})
        self.sized = sorted({(value, value + size) for value, size in code if size})

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield [start, end) of the symbols that begin in the run, each up to the next one."""
        first, last = bisect_left(self.starts, start), bisect_left(self.starts, end)
        yield from pairwise([*self.starts[first:last], end])

    def find_function(self, address: int) -> tuple[int, int] | None:
        """Return [start, end) of the function of known size that holds the address."""
        index = bisect_right(self.sized, (address, LAST_ADDRESS)) - 1
        if index < 0 or address >= self.sized[index][1]:
            return None
        return self.sized[index]

    def find_next(self, address: int) -> int:
        """Return where the first symbol at or above the address begins, the address itself if there is none."""
        index = bisect_left(self.starts, address)
        return self.starts[index] if index < len(self.starts) else address

    def names_at(self, addresses: set[int]) -> list[str]:
        """Return the names of the functions that begin at these addresses, sorted."""
        found = set()
        for name, info, _, where, value, _ in self.rows:
            if value in addresses and info & 15 in (STT_NOTYPE, STT_FUNC) and 0 < where < SHN_LORESERVE:
                found.add(self.names[name : self.names.find(b"\0", name)].decode("utf-8", "replace"))
        return sorted(found)

    def encode(self, ends: dict[int, int], parts: Parts) -> bytes:
        """Return the table with other ends for functions, and the numbers that its sections have in another file."""
        out = bytearray()
        pack = SYMBOL.pack
        for name, info, other, where, value, size in self.rows:
            if 0 < where < SHN_LORESERVE:
                if value in ends and info & 15 in (STT_NOTYPE, STT_FUNC):
                    size = ends[value] - value
                where = parts.find(where, value)
            out += pack(name, info, other, where, value, size)
        return bytes(out)


def _is_blind(session: Session) -> bool:
    """Return whether the image has no code where the kernel's begins: it is absent, or was overwritten with zeros."""
    text = next((area for area in session.system.for_each_area(session.kernel, modules=False) if area.executable), None)
    if text is None:
        return False
    try:
        return not any(session.kernel.read(text.start, min(CODE_SAMPLE, text.end - text.start)))
    except ReadError:
        return True


def _make(session: Session, file: ElfFile, *, blind: bool) -> bytes:
    kernel, slide = session.kernel, getattr(session.kernel, "slide", None) or 0
    symbols = SymbolRows(file)
    covered = [(start + slide, end + slide) for start, end in read_covered(file.path)]
    entries: list[Entry] = []
    switched: set[tuple[int, int]] = set()
    for run in _runs(session.system.for_each_unwind_gap(kernel, covered)):
        start, end = run[0].start - slide, run[-1].end - slide
        if any(low <= run[0].start < high for low, high in covered):
            function = symbols.find_function(start)
            if function is not None:
                switched.add(function)
            continue
        entries += _entries(symbols, start, end, run, slide)
    ends = {entry.start: entry.end for entry in entries}
    for run in _runs(session.system.for_each_unwind_gap(kernel, _complement(sorted(switched), slide))):
        function = symbols.find_function(run[0].start - slide)
        if function in switched and function is not None:
            entries.append(Entry(*function, run))
            # lldb looks for a trap handler at its program counter, behind the last call if that does not return.
            ends[function[0]] = symbols.find_next(function[1])
    if not entries:
        raise CommandError("the kernel has no unwind rules beyond its debug information")
    # What begins like a C function lldb unwinds by its frame pointer, unless it is told that this is no such function.
    traps = {entry.start for entry in entries if any(row.kind == "trap" for row in entry.rows)}
    names = symbols.names_at({start for start, _ in switched} | traps)
    handlers = b"".join([name.encode() + b"\0" for name in names])
    parts = Parts(session, file)
    if kernel.arch.name == X86_64.name:
        return _elf(file, parts, symbols, ends, make_eh_frame(entries, slide, blind=blind), handlers)
    functions = [(entry.start, entry.end) for entry in entries]
    frames = make_chain_eh_frame(kernel.arch, functions, entries[0].rows[0])
    return _elf(file, parts, symbols, ends, frames, handlers)


def _make_beside_made(session: Session, file: ElfFile) -> bytes:
    """Return the file to go with one that was made from the image and has rules for most of the code.

    What interrupts other code, or was called by nobody, has its entries here.
    """
    kernel, slide = session.kernel, getattr(session.kernel, "slide", None) or 0
    symbols = SymbolRows(file)
    functions = [address + slide for address in symbols.functions]
    entries: list[Entry] = []
    for table in session.system.for_each_unwind_table(kernel, modules=False):
        if table.rules:
            for rows in by_function(table, functions).for_each_odd():
                entries.append(Entry(rows[0].start - slide, rows[-1].end - slide, rows))
    if not entries:
        raise CommandError("the kernel has no unwind rules")
    return _elf(file, Parts(session, file), symbols, {}, make_eh_frame(entries, slide), b"")


def _runs(tables: Iterator[UnwindTable]) -> Iterator[list[UnwindRow]]:
    """Yield the rows in runs without a hole."""
    run: list[UnwindRow] = []
    for row in (row for table in tables for row in table.rows()):
        if run and run[-1].end != row.start:
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def _entries(symbols: SymbolRows, start: int, end: int, rows: Sequence[UnwindRow], slide: int) -> Iterator[Entry]:
    starts = [row.start for row in rows]
    for low, high in symbols.pieces(start, end):
        high = min(high, low + MAX_FUNCTION)
        first = max(bisect_right(starts, low + slide) - 1, 0)
        yield Entry(low, high, rows[first : bisect_left(starts, high + slide)])


def _complement(functions: list[tuple[int, int]], slide: int) -> list[tuple[int, int]]:
    """Return what lies between the functions, at run-time addresses."""
    edges = [0, *(address + slide for function in functions for address in function), LAST_ADDRESS]
    return [(low, high) for low, high in zip(edges[::2], edges[1::2], strict=True) if low < high]


def _elf(
    file: ElfFile, parts: Parts, symbols: SymbolRows, ends: dict[int, int], eh_frame: bytes, handlers: bytes
) -> bytes:
    """Return the file: vmlinux's sections in memory without their bytes but for notes, then ours."""
    table = symbols.encode(ends, parts)
    link = len(parts.sections) + 4  # the number of .strtab
    # name, type, flags, address, size in memory, bytes, link, info, alignment, size of an entry
    sections: list[tuple[str, int, int, int, int, bytes, int, int, int, int]] = [
        (part.name, part.kind, part.flags, part.address, part.size, part.data, 0, 0, 1, 0) for part in parts.sections
    ]
    sections += [
        (".eh_frame", SHT_PROGBITS, 0, 0, 0, eh_frame, 0, 0, 8, 0),
        (TRAP_HANDLERS, SHT_PROGBITS, 0, 0, 0, handlers, 0, 0, 1, 0),
        (".symtab", SHT_SYMTAB, 0, 0, 0, table, link, symbols.section.info, 8, SYMBOL.size),
        (".strtab", SHT_STRTAB, 0, 0, 0, symbols.names, 0, 0, 1, 0),
    ]
    names = b"\0" + b"".join([section[0].encode() + b"\0" for section in sections]) + b".shstrtab\0"
    sections.append((".shstrtab", SHT_STRTAB, 0, 0, 0, names, 0, 0, 1, 0))

    body = bytearray(ELF_HEADER.size + PROGRAM_HEADER.size * len(parts.segments))
    headers = [SECTION_HEADER.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)]
    place = 1
    notes_at = 0
    for name, kind, flags, address, size, data, linked, info, align, entry_size in sections:
        body += bytes(-len(body) % 8)
        if kind == SHT_NOTE:
            notes_at = notes_at or len(body)
        offset = len(body) if data or not size else NOWHERE
        headers.append(
            SECTION_HEADER.pack(place, kind, flags, address, offset, len(data) or size, linked, info, align, entry_size)
        )
        place += len(name.encode()) + 1
        body += data
    body += bytes(-len(body) % 8)
    for number, segment in enumerate(parts.segments):
        is_note = segment.type == PT_NOTE and notes_at
        PROGRAM_HEADER.pack_into(
            body,
            ELF_HEADER.size + PROGRAM_HEADER.size * number,
            segment.type,
            segment.flags,
            notes_at if is_note else 0,
            segment.vaddr,
            segment.paddr,
            segment.filesz if is_note else 0,
            segment.memsz,
            segment.align,
        )
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = file.header
    counts = (ELF_HEADER.size, PROGRAM_HEADER.size, len(parts.segments), SECTION_HEADER.size, len(headers))
    ELF_HEADER.pack_into(
        body, 0, ident, head.type, head.machine, 1, 0, ELF_HEADER.size, len(body), 0, *counts, len(headers) - 1
    )
    return bytes(body) + b"".join(headers)
