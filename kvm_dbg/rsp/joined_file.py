"""A copy of a kernel file for debuggers that take a function in several pieces for one large one.

gcc moves the unlikely part of a function away (`NAME.cold`, below .text.unlikely) and describes the function by
DW_AT_ranges instead of DW_AT_low_pc. lldb 19 takes everything from the lowest to the highest address of such a
function for its body, which in a kernel is most of .text, and disassembles all of it when it unwinds through it: a
backtrace takes minutes. lldb 23 knows such functions.

In the copy, the attribute has a number that means nothing where it belongs to a function. Debuggers then know these
functions by their symbols and line tables only; every other function is untouched. What is changed lies in
.debug_abbrev alone, so nothing moves.

Facts: DWARF 5 sections 7.5.3 (abbreviations), 7.5.4 and table 7.3, 7.5 for the numbers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

from kvm_dbg.elf import SHF_COMPRESSED, open_elf
from kvm_dbg.errors import CommandError, FileAccessError, FormatError

DW_TAG_SUBPROGRAM = 0x2E
DW_AT_RANGES = 0x55
DW_FORM_IMPLICIT_CONST = 0x21
RESERVED_ATTRIBUTE = 0x04  # as long as DW_AT_ranges, and no attribute of any version
FICLONE = 0x40049409  # _IOW(0x94, 9, int), include/uapi/linux/fs.h: share the blocks until one side changes
SPACE_TO_LEAVE = 64 << 20  # bytes


def find_split_functions(abbreviations: bytes) -> list[int]:
    """Return where the abbreviations of functions in several pieces name their ranges, as offsets in .debug_abbrev.

    Raises:
        IndexError: the section ends in the middle of an abbreviation.
    """
    found: list[int] = []
    at, end = 0, len(abbreviations)
    while at < end:
        code, at = _read_uleb(abbreviations, at)
        if not code:
            continue
        tag, at = _read_uleb(abbreviations, at)
        at += 1  # whether it has children
        while True:
            where = at
            name, at = _read_uleb(abbreviations, at)
            form, at = _read_uleb(abbreviations, at)
            if form == DW_FORM_IMPLICIT_CONST:
                _, at = _read_uleb(abbreviations, at)
            if not name and not form:
                break
            if tag == DW_TAG_SUBPROGRAM and name == DW_AT_RANGES and at - where >= 2 and abbreviations[where] < 0x80:
                found.append(where)
    return found


def _read_uleb(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    shift = 7
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def make_joined_file(path: str, cache: str | None) -> str:
    """Return the path of the copy, made in the directory `cache` if need be; `path` itself where nothing is split.

    Raises:
        CommandError: there is no cache, or the section is compressed.
        FileAccessError: the copy cannot be written.
        FormatError: the kernel file is damaged.
    """
    with open_elf(path) as file:
        section = next((section for section in file.sections if section.name == ".debug_abbrev"), None)
        build_id = file.find_build_id()
        if section is None or not section.size:
            return path
        status = os.stat(path)
        name = build_id.hex() if build_id is not None else "no-build-id"
        place = f"joined-{status.st_size:x}-{status.st_mtime_ns:x}"
        target = Path(cache) / name / place / Path(path).name if cache is not None else None
        if target is not None and target.is_file():
            return str(target)
        if section.flags & SHF_COMPRESSED:
            raise CommandError(f"{path}: .debug_abbrev is compressed (objcopy --decompress-debug-sections undoes that)")
        with open(path, "rb") as source:
            source.seek(section.offset)
            abbreviations = source.read(section.size)
    try:
        found = find_split_functions(abbreviations)
    except IndexError:
        raise FormatError(path, section.offset, ".debug_abbrev", "it ends in the middle of an abbreviation") from None
    if not found:
        return path
    if target is None:
        raise CommandError(f"there is no cache directory for a changed copy of {path}")
    changed = bytearray(abbreviations)
    for where in found:
        changed[where] = RESERVED_ATTRIBUTE
    _write_copy(path, target, section.offset, changed)
    return str(target)


def _write_copy(path: str, target: Path, offset: int, changed: bytes | bytearray) -> None:
    part = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "rb") as source, open(part, "wb") as copy:
            try:
                fcntl.ioctl(copy.fileno(), FICLONE, source.fileno())
            except OSError:
                free = os.statvfs(target.parent)
                if free.f_bavail * free.f_frsize < os.fstat(source.fileno()).st_size + SPACE_TO_LEAVE:
                    raise FileAccessError(target, f"there is no room for a copy of {path}") from None
                shutil.copyfileobj(source, copy, 1 << 20)
            copy.seek(offset)
            copy.write(changed)
        part.replace(target)
    except OSError as error:
        raise FileAccessError(target, f"cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
