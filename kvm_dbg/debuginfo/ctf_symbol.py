"""The symbols of an ELF file in the order in which CTF counts them.

Facts: `init_symtab` of libctf (cddl/contrib/opensolaris/common/ctf/ctf_open.c), which skips symbols that are undefined,
have no name, or are called _START_ or _END_; of data symbols also absolute ones with the value 0. The `sh_link` of the
section is the symbol table, as ctfconvert and ctfmerge write it; where it is not, the file's full one is meant.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kvm_dbg.elf import SHT_NOBITS, SHT_SYMTAB, ElfFile, Section

SHT_DYNSYM = 11
SHN_UNDEF, SHN_ABS = 0, 0xFFF1
STT_OBJECT, STT_FUNC = 1, 2
SKIPPED = (b"", b"_START_", b"_END_")


def _find_table(elf: ElfFile, section: Section | None = None) -> Section | None:
    """Return the symbol table that CTF in `section` (by default .SUNW_ctf) goes by, None if the file has none."""
    sections = elf.sections
    section = section or elf.find_section(".SUNW_ctf")
    linked = sections[section.link] if section is not None and section.link < len(sections) else None
    if linked is not None and linked.type in (SHT_SYMTAB, SHT_DYNSYM):
        return linked
    found = [s for kind in (SHT_SYMTAB, SHT_DYNSYM) for s in sections if s.type == kind]
    return found[0] if found else None


def find_symbol_strings(elf: ElfFile, section: Section) -> bytes:
    """Return the names of the symbols that CTF in `section` refers to; empty if there are none. Raises FormatError."""
    table = _find_table(elf, section)
    if table is None or not 0 < table.link < len(elf.sections):
        return b""
    return bytes(elf.section_data(elf.sections[table.link]))


def find_symbol_names(elf: ElfFile, kind: int) -> Iterator[str]:
    """Yield the names of the symbols of one kind (STT_OBJECT, STT_FUNC) that CTF counts. Raises FormatError."""
    table = _find_table(elf)
    if table is None or table.type == SHT_NOBITS or not 0 < table.link < len(elf.sections):
        return
    strings = bytes(elf.section_data(elf.sections[table.link])) + b"\0"
    wide = elf.header.word_bits == 64
    parser = struct.Struct(elf.header.order + ("IBxHQ8x" if wide else "II4xBxH"))
    view = elf.section_data(table)
    for fields in parser.iter_unpack(view[: len(view) - len(view) % parser.size]):
        name, info, section, value = fields if wide else (fields[0], fields[2], fields[3], fields[1])
        if info & 15 != kind or section == SHN_UNDEF or (kind == STT_OBJECT and section == SHN_ABS and not value):
            continue
        text = strings[name : strings.find(b"\0", name)] if name < len(strings) else b""
        if text not in SKIPPED:
            yield text.decode("utf-8", "replace")
