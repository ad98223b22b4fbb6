"""What lldb is told of a kernel's sections, where its file's are right and where they cannot be."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kvm_dbg.elf import PT_LOAD, open_elf
from kvm_dbg.kernel.base import Area
from kvm_dbg.rsp.module_part import SHN_ABS, Parts

TEXT, DATA = 0xFFFF_FFFF_8010_0000, 0xFFFF_FFFF_8020_0000
SLIDE = 0x100_0000
AREAS = (Area(".text", TEXT, DATA, executable=True), Area(".data", DATA, DATA + 0x1000, writable=True))


def session(slide: int = 0) -> Any:
    """Return what stands in for a session: its system knows AREAS, moved by the slide."""
    areas = [area._replace(start=area.start + slide, end=area.end + slide) for area in AREAS]
    return SimpleNamespace(
        kernel=SimpleNamespace(slide=slide), system=SimpleNamespace(for_each_area=lambda _, **__: iter(areas))
    )


def write_file(path: Path, address: int, size: int) -> Path:
    """Write an ELF file with one section in memory (Elf64_Ehdr, Elf64_Shdr: System V ABI, chapter 4)."""
    names = b"\0.bss\0.shstrtab\0"
    head = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), 2, 62, 1, 0, 0, 64, 0, 64, 56, 0, 64, 3, 2),
    )
    rows = (
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        (1, 8, 6, address, 256, size, 0, 0, 1, 0),  # SHT_NOBITS, SHF_ALLOC | SHF_EXECINSTR
        (6, 3, 0, 0, 256, len(names), 0, 0, 1, 0),
    )
    path.write_bytes(head + b"".join(struct.pack("<IIQQQQIIQQ", *row) for row in rows) + names)
    return path


def test_sections_of_a_file_are_taken_as_they_are(tmp_path: Path) -> None:
    with open_elf(write_file(tmp_path / "kernel", TEXT, 0x5000)) as file:
        parts = Parts(session(), file)
    assert not parts.made
    assert [(part.number, part.name, part.address, part.size) for part in parts.sections] == [(1, ".bss", TEXT, 0x5000)]
    assert parts.find(1, TEXT) == 1
    assert parts.find(7, TEXT) == SHN_ABS


def test_a_section_of_all_memory_is_replaced_by_what_the_system_knows(tmp_path: Path) -> None:
    """As savecore writes NetBSD's list of symbols: address 0, 2^64 - 1 bytes."""
    with open_elf(write_file(tmp_path / "netbsd.0", 0, (1 << 64) - 1)) as file:
        parts = Parts(session(SLIDE), file)
    assert parts.made
    assert [(part.name, part.address, part.size) for part in parts.sections] == [
        (".text", TEXT, DATA - TEXT),
        (".data", DATA, 0x1000),
    ]
    assert [(segment.type, segment.vaddr, segment.memsz, segment.flags) for segment in parts.segments] == [
        (PT_LOAD, TEXT, DATA - TEXT, 5),
        (PT_LOAD, DATA, 0x1000, 6),
    ]
    found = [parts.find(4, address) for address in (TEXT - 1, TEXT, DATA - 1, DATA, DATA + 0xFFF, DATA + 0x1000)]
    assert found == [SHN_ABS, 1, 1, 2, 2, SHN_ABS]


def test_a_section_that_goes_over_the_end_of_memory_is_none(tmp_path: Path) -> None:
    with open_elf(write_file(tmp_path / "kernel", (1 << 64) - 0x1000, 0x2000)) as file:
        assert Parts(session(), file).made
