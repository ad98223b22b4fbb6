"""Which code a kernel file has call frame information for.

Fact: DWARF 5 section 6.4.1: .debug_frame is a sequence of entries, each a length and then, for a CIE, 0xffffffff, for
an FDE the offset of its CIE, the first address and the length of the code that it is for.
"""

from __future__ import annotations

from struct import Struct

from kvm_dbg.elf import open_elf
from kvm_dbg.errors import FormatError

CIE_ID = 0xFFFF_FFFF
PADDING = 80  # bytes: functions are up to 64 bytes apart, and a call pad of 16 lies before them


def read_covered(path: str) -> list[tuple[int, int]]:
    """Return the [start, end) runs of link-time addresses that .debug_frame has rules for, ascending.

    Runs with no more than padding between them are joined; none without that section.

    Raises:
        FileAccessError, FormatError: the file cannot be read, or an entry of the section cannot be right.
    """
    with open_elf(path) as file:
        section = file.find_section(".debug_frame")
        if section is None:
            return []
        data = file.section_data(section)
        entry = Struct(file.header.order + ("IIQQ" if file.header.word_bits == 64 else "4I"))
        found: list[tuple[int, int]] = []
        position = 0
        last = len(data) - entry.size
        while position <= last:
            length, cie, start, size = entry.unpack_from(data, position)
            if length >= 0xFFFF_FFF0:
                raise FormatError(path, section.offset + position, ".debug_frame", f"impossible length {length:#x}")
            if cie != CIE_ID:
                found.append((start, start + size))
            position += 4 + length
        data.release()
    return join(found)


def join(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the runs ascending, those joined that lie closer than PADDING."""
    runs.sort()
    joined: list[tuple[int, int]] = []
    low = high = -1
    for start, end in runs:
        if high >= 0 and start < high + PADDING:
            high = max(high, end)
            continue
        if high >= 0:
            joined.append((low, high))
        low, high = start, end
    if high >= 0:
        joined.append((low, high))
    return joined
