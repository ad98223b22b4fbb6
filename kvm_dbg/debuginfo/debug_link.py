"""Debug files that stripped files name: the section .gnu_debuglink.

It holds a file's name, a NUL, zeros up to a multiple of four, and the CRC-32 of that file (the one of zlib) in the byte
order of the ELF file; the debug file is looked for beside the stripped one, below `.debug` there, and at the same place
below the directory of debug files: "Debugging Information in Separate Files" in gdb's manual.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.errors import FileAccessError, FormatError

if TYPE_CHECKING:
    from kvm_dbg.elf import ElfFile

SECTION = ".gnu_debuglink"
DEBUG_DIRECTORY = "/usr/lib/debug"
ALIGNMENT = CRC_SIZE = 4  # bytes
CHUNK = 1 << 20  # bytes read at a time


class DebugLink(NamedTuple):
    """What a stripped file says of its debug file."""

    name: str
    crc: int


def read_debug_link(file: ElfFile) -> DebugLink | None:
    """Return the link of a file, None if it has none. Raises FormatError: the section is damaged."""
    section = file.find_section(SECTION)
    if section is None:
        return None
    data = bytes(file.section_data(section))
    name, end, _ = data.partition(b"\0")
    place = -(-(len(name) + 1) // ALIGNMENT) * ALIGNMENT  # of the CRC, behind the NUL
    if not end or not name or b"/" in name or len(data) < place + CRC_SIZE:
        raise FormatError(file.path, section.offset, SECTION, "no file's name and CRC are in it")
    crc = struct.unpack_from(file.header.order + "I", data, place)[0]
    return DebugLink(os.fsdecode(name), crc)


def find_debug_file(link: DebugLink, directory: str) -> tuple[str | None, str]:
    """Return (the debug file, "") of a stripped file that lies in `directory`, or (None, why there is none)."""
    why = f"its debug file {link.name} was not found"
    beside = os.path.abspath(directory)
    for place in (beside, os.path.join(beside, ".debug"), DEBUG_DIRECTORY + beside):
        path = os.path.join(place, link.name)
        if not os.path.isfile(path):
            continue
        crc = _crc_of(path)
        if crc == link.crc:
            return path, ""
        why = f"{path} is not its debug file: the CRC is {crc:#010x}, not {link.crc:#010x}"
    return None, why


def _crc_of(path: str) -> int:
    crc = 0
    try:
        with open(path, "rb") as file:
            while data := file.read(CHUNK):
                crc = zlib.crc32(data, crc)
    except OSError as error:
        raise FileAccessError(path, error.strerror or str(error)) from error
    return crc
