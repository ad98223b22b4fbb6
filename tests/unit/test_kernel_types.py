"""The types of kernel files of any system: which source wins, and layout files that are of another kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvm_dbg.debuginfo.kernel_types import open_kernel_types
from kvm_dbg.elf import ElfFile
from kvm_dbg.errors import FormatError, KernelMismatchError
from tests.unit.test_ctf import kernel as ctf_kernel
from tests.unit.test_dwarf import as_clang
from tests.writers.kernel_file import NOTE, Part, build_id_note, write_kernel_file

BUILD_ID = bytes(range(20))


def bare(bits: int = 64, order: str = "<", *parts: Part) -> ElfFile:
    note = Part(".note.gnu.build-id", NOTE, data=build_id_note(BUILD_ID, order))
    return ElfFile(write_kernel_file([note, *parts], bits=bits, order=order), "kernel")


def layout(directory: Path, header: dict[str, Any], size: int = 8) -> Path:
    path = directory / "layout.json"
    member = {"offset": 0, "size": size, "type": "struct proc *"}
    path.write_text(json.dumps({"$layout": header, "proc": {"size": size, "members": {"p_next": member}}}))
    return path


def test_a_layout_file_that_is_named_comes_before_what_the_file_has(tmp_path: Path) -> None:
    path = layout(tmp_path, {})
    ctf = Part(".SUNW_ctf", data=ctf_kernel().section(), flags=0)
    files = (ElfFile(as_clang("<", 5, 64), "kernel"), bare(64, "<", ctf), bare())
    found = [open_kernel_types(elf) for elf in files]
    assert [None if types is None else types.source.split()[0] for types in found] == ["DWARF", "CTF", None]
    named = [types.source for elf in files if (types := open_kernel_types(elf, layout=path)) is not None]
    preferred = f"layout file {path}, which was named: the types of kernel are not used"
    assert named == [preferred, preferred, f"layout file {path}"]


def test_a_layout_file_of_the_same_build(tmp_path: Path) -> None:
    header = {"build_id": BUILD_ID.hex(), "byte_order": "big", "pointer_size": 4}
    types = open_kernel_types(bare(32, ">"), layout=layout(tmp_path, header, 4))
    assert types is not None
    assert types.offset_of("struct proc", "p_next") == 0


@pytest.mark.parametrize("header", [{"pointer_size": 4}, {"byte_order": "big"}])
def test_a_layout_file_of_another_processor(tmp_path: Path, header: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="but the kernel file has"):
        open_kernel_types(bare(), layout=layout(tmp_path, header))


def test_a_layout_file_of_another_build(tmp_path: Path) -> None:
    with pytest.raises(KernelMismatchError, match="build-id"):
        open_kernel_types(bare(), layout=layout(tmp_path, {"build_id": "00" * 20}))
