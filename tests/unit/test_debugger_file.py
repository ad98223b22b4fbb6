"""The files that a server makes for its debugger: kept whole, made anew, and gone when it ends."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.errors import FileAccessError
from kvm_dbg.kernel_file import debug_info
from kvm_dbg.kernel_file.elf_writer import memory_section, write_elf
from kvm_dbg.rsp.debugger_file import MAX_SETS, DebuggerFiles, zero_based_sections
from kvm_dbg.symbols.elf import ElfSymbolTable
from tests.unit.conftest import Little
from tests.writers.system import DATA, EXT_INIT, LittleKernel

BUILD_ID = "00112233445566778899aabbccddeeff00112233"


@pytest.fixture
def session(little: Little, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(LittleKernel, "build_id", BUILD_ID, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    found = Session(index_directory=str(tmp_path / "index"))
    found.open(OpenRequest((little.image,)))
    return found


def path_of(answer: dict[str, object], name: str) -> Path:
    return Path(str(answer[name]))


def test_the_kernels_file_is_kept_and_the_modules_file_is_not(session: Session, tmp_path: Path) -> None:
    files = DebuggerFiles()
    answer = files.make_symbols(session)
    kernel, modules = path_of(answer, "file"), path_of(answer, "modules")
    assert kernel.parent == tmp_path / "index" / BUILD_ID
    assert ElfSymbolTable(kernel).address("banner") == DATA - LittleKernel.slide
    assert ElfSymbolTable(modules).address("ext_init") == EXT_INIT.address
    assert answer["temporary"] == [str(modules)]
    assert answer["zero_based"] == []
    before = kernel.stat()
    assert files.make_symbols(session)["file"] == str(kernel)
    assert kernel.stat() == before
    files.close()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert kernel.is_file()


@pytest.mark.parametrize("damage", ["cut", "other", "noise", "directory"])
def test_a_damaged_file_is_made_again(session: Session, damage: str) -> None:
    files = DebuggerFiles()
    kernel = path_of(files.make_symbols(session), "file")
    whole = kernel.read_bytes()
    kernel.unlink()
    if damage == "directory":
        kernel.mkdir()
    else:
        other = whole.replace(bytes.fromhex(BUILD_ID), bytes(20))
        kernel.write_bytes({"cut": whole[:-8], "other": other, "noise": b"noise"}[damage])
    answer = files.make_symbols(session)
    assert path_of(answer, "file").read_bytes() == whole
    assert (str(kernel) in str(answer["temporary"])) is False
    assert (answer["file"] == str(kernel)) == (damage != "directory")
    assert [path.name for path in kernel.parent.iterdir()] == [kernel.name]
    files.close()


def test_a_file_that_lacks_something_is_not_kept(session: Session, little: Little, tmp_path: Path) -> None:
    little.system.broken = {"areas"}
    files = DebuggerFiles()
    answer = files.make_symbols(session)
    assert answer["problems"]
    assert len(answer["temporary"]) == 2  # type: ignore[arg-type]
    assert not (tmp_path / "index" / BUILD_ID).exists()
    files.close()


def test_the_files_of_a_few_sets_of_modules_are_kept(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    for number in range(MAX_SETS + 2):
        monkeypatch.setattr(debug_info, "digest_of", lambda _, number=number: f"{number:016x}")
        files = DebuggerFiles()
        kept.append(path_of(files.make_symbols(session), "file"))
        os.utime(kept[-1], (number, number))
        lldb = path_of(files.make_symbols(session, for_lldb=True), "file")
        os.utime(lldb, (number, number))
        files.close()
    assert len(set(kept)) == len(kept)
    assert [path.is_file() for path in kept] == [False] * 2 + [True] * MAX_SETS
    assert lldb not in kept
    assert len(list(lldb.parent.iterdir())) == 2 * MAX_SETS


def test_with_a_vmlinux_there_are_only_modules(session: Session) -> None:
    session.kernel.vmlinux_path = "/vmlinux"  # type: ignore[attr-defined]
    files = DebuggerFiles()
    answer = files.make_symbols(session)
    assert answer["file"] is None
    assert ElfSymbolTable(path_of(answer, "modules")).find("ext_init") is not None
    again = files.make_symbols(session, ["ext9"])
    assert again["modules"] != answer["modules"]
    assert b"ext_init" not in path_of(again, "modules").read_bytes()
    files.close()


def test_where_nothing_can_be_written_is_said(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(FileAccessError, match="cannot write there"):
        DebuggerFiles().make_symbols(session)


def test_sections_at_address_0_are_those_that_no_slide_moves(tmp_path: Path) -> None:
    places = {".data..percpu": (0, 64), ".empty": (0, 0), ".text": (64, 128)}
    sections = [memory_section(name, start, end) for name, (start, end) in places.items()]
    (tmp_path / "file").write_bytes(b"".join(write_elf(sections, 62)))
    assert zero_based_sections(str(tmp_path / "file")) == [".data..percpu"]
