"""The copy of a kernel file without functions in several pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvm_dbg.elf import SHF_COMPRESSED, open_elf
from kvm_dbg.errors import CommandError, FileAccessError, FormatError
from kvm_dbg.rsp.joined_file import find_split_functions, make_joined_file
from tests.writers.elf import Part, write_elf

# code, tag, children, (attribute, form)..., 0, 0 (DWARF 5, section 7.5.3)
COMPILE_UNIT = bytes((1, 0x11, 1, 0x03, 0x0E, 0x55, 0x17, 0, 0))  # has ranges, and keeps them
FUNCTION = bytes((2, 0x2E, 0, 0x03, 0x0E, 0x11, 0x01, 0x12, 0x07, 0, 0))  # in one piece
SPLIT = bytes((3, 0x2E, 1, 0x03, 0x0E, 0x3B, 0x21, 0x55, 0x55, 0x17, 0, 0))  # its line, 0x55, is part of the form
INLINED = bytes((0x84, 0x01, 0x1D, 0, 0x31, 0x13, 0x55, 0x17, 0xB7, 0x42, 0x19, 0, 0))  # long numbers
TABLE = COMPILE_UNIT + FUNCTION + SPLIT + INLINED + b"\0"
PLACE = len(COMPILE_UNIT + FUNCTION) + 8


def write_kernel(path: Path, abbreviations: bytes, flags: int = 0) -> bytes:
    parts = [Part(".text", 1, 6, b"code" * 9), Part(".debug_abbrev", 1, flags, abbreviations), Part("x", 1, 0, b"end")]
    path.write_bytes(write_elf(parts))
    return path.read_bytes()


def test_the_ranges_of_functions_are_found_and_no_others() -> None:
    assert find_split_functions(TABLE * 2) == [PLACE, len(TABLE) + PLACE]
    assert find_split_functions(COMPILE_UNIT + FUNCTION + INLINED + b"\0") == []


def test_only_these_bytes_change_and_the_file_itself_does_not(tmp_path: Path) -> None:
    before = write_kernel(tmp_path / "vmlinux", TABLE)
    copy = Path(make_joined_file(str(tmp_path / "vmlinux"), str(tmp_path / "cache")))
    assert copy.name == "vmlinux"
    assert (tmp_path / "vmlinux").read_bytes() == before
    after = copy.read_bytes()
    with open_elf(copy) as file:
        section = file.find_section(".debug_abbrev")
        assert section is not None
        assert [at - section.offset for at in range(len(after)) if after[at] != before[at]] == [PLACE]
    assert len(after) == len(before)
    assert find_split_functions(after[section.offset : section.offset + section.size]) == []


def test_the_copy_is_made_once_and_again_for_another_file(tmp_path: Path) -> None:
    path, cache = tmp_path / "vmlinux", str(tmp_path / "cache")
    write_kernel(path, TABLE)
    first = make_joined_file(str(path), cache)
    made = Path(first).stat().st_ino
    assert make_joined_file(str(path), cache) == first
    assert Path(first).stat().st_ino == made
    write_kernel(path, TABLE * 2)
    assert make_joined_file(str(path), cache) != first
    assert [file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()] == ["vmlinux", "vmlinux"]


@pytest.mark.parametrize("abbreviations", [COMPILE_UNIT + FUNCTION + b"\0", b""])
def test_a_file_without_such_functions_needs_no_copy(tmp_path: Path, abbreviations: bytes) -> None:
    write_kernel(tmp_path / "vmlinux", abbreviations)
    assert make_joined_file(str(tmp_path / "vmlinux"), None) == str(tmp_path / "vmlinux")


def test_what_stands_in_the_way_is_said(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    write_kernel(path, TABLE)
    with pytest.raises(CommandError, match="no cache directory"):
        make_joined_file(str(path), None)
    (tmp_path / "file").touch()
    with pytest.raises(FileAccessError, match="cannot be written"):
        make_joined_file(str(path), str(tmp_path / "file"))
    write_kernel(path, TABLE, SHF_COMPRESSED)
    with pytest.raises(CommandError, match="compressed"):
        make_joined_file(str(path), str(tmp_path / "cache"))
    write_kernel(path, TABLE[: PLACE + 1])
    with pytest.raises(FormatError, match="ends in the middle"):
        make_joined_file(str(path), str(tmp_path / "cache"))
