"""The parts of a kernel in memory, as the file for lldb has them (see `lldb_module.py`).

What savecore writes of NetBSD's symbols (sys/kern/kern_ksyms.c, ksyms_hdr_init()) has one section for all of them,
.bss, of 2^64 - 1 bytes at address 0, and one segment that is the same.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.elf import (
    PF_R,
    PF_W,
    PF_X,
    PT_LOAD,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_WRITE,
    SHT_NOTE,
    SHT_PROGBITS,
    ElfFile,
    Segment,
)

if TYPE_CHECKING:
    from kvm_dbg.commands.session import Session

SHN_ABS = 0xFFF1
MAX_PART = 1 << 40  # bytes; no section of a kernel is as large
END_OF_MEMORY = 1 << 64


class Part(NamedTuple):
    """A section in memory, with its bytes if it has notes. number: in the kernel file, 0 if it is not there."""

    number: int
    name: str
    kind: int
    flags: int
    address: int
    size: int
    data: bytes = b""


class Parts:
    """What the kernel has in memory: the sections and segments of its file, or what the system says instead.

    Attributes:
        made: whether it is the system's word: a section of the file is larger than a kernel can be.
        sections, segments: ascending by address where they are made, else as in the file.

    Raises:
        FormatError: the kernel file is damaged.
    """

    def __init__(self, session: Session, file: ElfFile) -> None:
        memory = [section for section in file.sections if section.flags & SHF_ALLOC]
        self.made = any(section.size > MAX_PART or section.addr + section.size > END_OF_MEMORY for section in memory)
        if self.made:
            self._take_areas(session)
            return
        self.segments: list[Segment] = list(file.segments)
        self.sections = [
            Part(
                section.number,
                section.name,
                SHT_NOTE if section.type == SHT_NOTE else SHT_PROGBITS,
                section.flags,
                section.addr,
                section.size,
                bytes(file.section_data(section)) if section.type == SHT_NOTE else b"",
            )
            for section in memory
        ]

    def _take_areas(self, session: Session) -> None:
        slide = getattr(session.kernel, "slide", None) or 0
        self.segments, self.sections = [], []
        for area in session.system.for_each_area(session.kernel, modules=False):
            start, size = area.start - slide, area.end - area.start
            flags = SHF_ALLOC | (SHF_EXECINSTR if area.executable else 0) | (SHF_WRITE if area.writable else 0)
            self.sections.append(Part(0, area.name, SHT_PROGBITS, flags, start, size))
            allowed = PF_R | (PF_X if area.executable else 0) | (PF_W if area.writable else 0)
            self.segments.append(Segment(PT_LOAD, allowed, 0, start, start, 0, size, 1 << 12))

    def find(self, number: int, address: int) -> int:
        """Return the number that a symbol's section has here: of its own, or of the part that it lies in."""
        if not self.made:
            return self._numbers.get(number, SHN_ABS)
        index = bisect_right(self._starts, address) - 1
        inside = index >= 0 and address - self._starts[index] < self.sections[index].size
        return index + 1 if inside else SHN_ABS

    @functools.cached_property
    def _numbers(self) -> dict[int, int]:
        return {part.number: number for number, part in enumerate(self.sections, 1)}

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [part.address for part in self.sections]
