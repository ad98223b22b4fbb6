"""Layout files that are written: read back, they say the same of every member."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvm_dbg import cli
from kvm_dbg.debuginfo.base import ArrayType, PointerType, StructType, TypeTable, size_of
from kvm_dbg.debuginfo.c_type import c_type_text
from kvm_dbg.debuginfo.kernel_types import open_kernel_types
from kvm_dbg.debuginfo.layout import open_layout
from kvm_dbg.debuginfo.layout_writer import make_layout
from kvm_dbg.elf import open_elf
from tests.sample import unpack_sample
from tests.shared import shared_data

Capture = pytest.CaptureFixture[str]
Rows = dict[str, tuple[int, int, int, str]]


def rows_of(struct: StructType, base: int = 0) -> Rows:
    """Return name -> (start in bits, size in bytes, bits of a bit-field, kind); what has no name is looked through."""
    found: Rows = {}
    for member in struct.members:
        start = base + member.bit_offset
        inner = member.type.stripped()
        if not member.name and isinstance(inner, StructType):
            found = rows_of(inner, start) | found
            continue
        kind = "pointer" if isinstance(inner, PointerType) else "array" if isinstance(inner, ArrayType) else ""
        found.setdefault(member.name, (start, size_of(member.type), member.bit_size, kind))
    found.pop("", None)
    return found


def compare(before: TypeTable, after: TypeTable, names: list[str]) -> int:
    """Compare structs and return how many members they have."""
    count = 0
    for name in names:
        old, new = before.struct(name), after.struct(name)
        assert new.size == old.size, name
        assert rows_of(new) == rows_of(old), name
        count += len(rows_of(old))
    return count


@pytest.mark.parametrize("root", ["task_struct", "mm_struct", "module"])
def test_the_layout_of_a_linux_kernel(root: str, tmp_path: Path, capsys: Capture) -> None:
    unpack_sample(tmp_path)
    path = tmp_path / "layout.json"
    words = ["layout", str(tmp_path / "vmlinux"), "--struct", root, "-o", str(path), "--json"]
    assert cli.main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    document = json.loads(path.read_text())
    types = open_kernel_types(open_elf(tmp_path / "vmlinux"))
    assert types is not None
    keys = [key for key, body in document.items() if "members" in body and " " not in key]
    assert answer["structs"] >= len(keys) > 3
    assert answer["remarks"] == []
    assert root in keys
    assert document["$layout"]["build_id"] == (open_elf(tmp_path / "vmlinux").find_build_id() or b"").hex()
    assert compare(types, open_layout(path), [f"struct {key}" for key in keys]) > 70


def test_bit_fields_keep_their_place(tmp_path: Path) -> None:
    unpack_sample(tmp_path)
    elf = open_elf(tmp_path / "vmlinux")
    types = open_kernel_types(elf)
    assert types is not None
    path = tmp_path / "layout.json"
    path.write_bytes(make_layout(types, ["struct task_struct"], elf, "test")[0])
    old, new = types.struct("struct task_struct"), open_layout(path).struct("struct task_struct")
    for name in ("sched_reset_on_fork", "in_execve"):
        assert (new.member(name).bit_offset, new.member(name).bit_size) == (
            old.member(name).bit_offset,
            old.member(name).bit_size,
        )
        assert new.member(name).bit_size == 1


def test_a_file_made_from_a_file(tmp_path: Path) -> None:
    """NetBSD's layouts, which a real kernel's debug information gave: written again, nothing is lost."""
    source = shared_data("netbsd") / "layout.json"
    types = open_layout(source)
    names = [f"struct {key}" for key in json.loads(source.read_bytes())]
    unpack_sample(tmp_path)
    path = tmp_path / "again.json"
    data, problems, structs = make_layout(types, names, open_elf(tmp_path / "vmlinux"), "test")
    path.write_bytes(data)
    assert problems == []
    assert structs >= len(names)
    again = open_layout(path)
    assert compare(types, again, names) == 826
    old, new = types.struct("struct proc"), again.struct("struct proc")
    for member in old.members:
        assert c_type_text(new.member(member.name).type) == c_type_text(member.type)


def test_what_cannot_be_written(tmp_path: Path, capsys: Capture) -> None:
    unpack_sample(tmp_path)
    words = ["layout", str(tmp_path / "vmlinux"), "-o", str(tmp_path / "new.json")]
    assert cli.main([*words, "--struct", "no_such"]) == 1
    assert "no type 'struct no_such'" in capsys.readouterr().err
    assert not (tmp_path / "new.json").exists()
    (tmp_path / "new.json").write_text("precious")
    assert cli.main([*words, "--struct", "list_head"]) == 1
    assert "exists" in capsys.readouterr().err
