"""Writing an ELF core file: notes, the memory that there is, and nothing for the memory that there is not.

A segment with more memory than bytes reads as zeros in gdb, so that only what is present has a segment. Program headers
come last, when it is known how many there are; 65,535 or more are counted in a section header (elf(5), PN_XNUM).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import IO

from kvm_dbg.errors import CommandError
from kvm_dbg.image.base import Note, Presence
from kvm_dbg.kernel.base import AddressSpaceReader, MemoryMapping

ET_CORE, PT_LOAD, PT_NOTE = 4, 1, 4
FLAGS = ((4, "r"), (2, "w"), (1, "x"))  # PF_R, PF_W, PF_X
PN_XNUM = 0xFFFF
IDENTIFICATION = b"\x7fELF\2\1\1"  # 64 bits, little-endian, version 1
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SEGMENT = struct.Struct("<IIQQQQQQ")
SECTION = struct.Struct("<IIQQQQIIQQ")
MAX_SIZE = 1 << 42  # bytes: more than any process has, less than page tables that loop can claim


class CoreFile:
    """A core file that is being written: notes first, then mappings, then `finish`.

    Args:
        file: seekable and empty.
        machine: e_machine.
        page_size: bytes.
    """

    def __init__(self, file: IO[bytes], machine: int, page_size: int) -> None:
        self._file = file
        self._machine = machine
        self._page_size = page_size
        self._segments: list[tuple[int, int, int, int, int, int]] = []  # type, flags, offset, vaddr, size, alignment
        self._at = 0
        self._write(bytes(HEADER.size))

    def add_notes(self, notes: Iterable[Note]) -> None:
        """Write the segment of the notes."""
        data = b"".join(_pack_note(note) for note in notes)
        self._segments.append((PT_NOTE, 0, self._at, 0, len(data), 4))
        self._write(data)

    def add_mapping(self, mapping: MemoryMapping, space: AddressSpaceReader) -> tuple[int, int]:
        """Write the pages of a mapping that are present; return how many bytes are, and how many are lost.

        Lost is what the process has and the image lacks: filtered, cut off or swapped out. Pages that it never used
        are not.

        Raises:
            FormatError: the image is corrupt where the bytes should be.
            CommandError: the page tables claim more memory than there can be.
        """
        flags = sum(bit for bit, letter in FLAGS if letter in mapping.permissions)
        present = lost = start = 0
        end = -1  # of the segment that is being written
        for run in space.for_each_run(mapping.start, mapping.end):
            if run.presence is not Presence.PRESENT:
                lost += run.size
                continue
            if run.start != end:
                self._write(bytes(-self._at % self._page_size))
                self._segments.append((PT_LOAD, flags, self._at, run.start, 0, self._page_size))
                start = run.start
            self._write(space.read(run.start, run.size))
            end = run.end
            self._segments[-1] = (*self._segments[-1][:4], end - start, self._page_size)
            present += run.size
            if self._at > MAX_SIZE:
                raise CommandError(f"the core file grows beyond {MAX_SIZE >> 40} TiB: the page tables must be broken")
        return present, lost

    def finish(self) -> int:
        """Write the headers; return the size of the file in bytes."""
        self._write(bytes(-self._at % 8))
        segments, sections, count = self._at, 0, len(self._segments)
        for kind, flags, offset, vaddr, size, alignment in self._segments:
            memory = size if kind == PT_LOAD else 0
            self._write(SEGMENT.pack(kind, flags, offset, vaddr, 0, size, memory, alignment))
        if count >= PN_XNUM:
            sections = self._at
            self._write(SECTION.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0))
        self._file.seek(0)
        self._file.write(
            HEADER.pack(
                IDENTIFICATION,
                ET_CORE,
                self._machine,
                1,
                0,
                segments,
                sections,
                0,
                HEADER.size,
                SEGMENT.size,
                min(count, PN_XNUM),
                SECTION.size if sections else 0,
                1 if sections else 0,
                0,
            )
        )
        return self._at

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._at += len(data)


def _pack_note(note: Note) -> bytes:
    name = note.name.encode() + b"\0"
    head = struct.pack("<III", len(name), len(note.desc), note.type)
    return head + name + bytes(-len(name) % 4) + note.desc + bytes(-len(note.desc) % 4)
