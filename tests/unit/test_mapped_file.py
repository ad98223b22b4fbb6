"""Which file of this machine is the one that a process runs: by build-id, by code, by segments; and never another."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.commands.mapped_file import MappedFile, find_mapped_files
from kvm_dbg.commands.user_process import UserMemory
from kvm_dbg.errors import FileAccessError, ReadError
from kvm_dbg.kernel.base import Kernel
from tests.writers.program import CODE_AT, CODE_SIZE, DATA_ADDRESS, DYNAMIC_AT, PAGE, Pages, map_program, write_program

ID, OTHER = bytes(range(20)), bytes(range(1, 21))
BASE = 0x5555_5555_4000
NAME = "/opt/bin/program"


def put(root: Path, data: bytes, name: str = NAME) -> Path:
    path = root / name.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def find(
    memory: bytes,
    *,
    lost: tuple[int, ...] = (),
    name: str = NAME,
    sysroot: Path | None = None,
    search: Path | None = None,
) -> MappedFile:
    """Return what is found for a program in memory; `lost` are numbers of its pages that the image lacks."""
    mappings, pages = map_program(memory, BASE, name)
    space = Pages({at: None if (at - BASE) // PAGE in lost else data for at, data in pages.items()})
    [found] = find_mapped_files(
        mappings, space, [str(sysroot)] if sysroot is not None else [], [str(search)] if search is not None else []
    )
    return found


def test_the_file_below_the_sysroot(tmp_path: Path) -> None:
    path = put(tmp_path, write_program(ID))
    found = find(write_program(ID), sysroot=tmp_path)
    assert (found.path, found.proven, found.bias, found.build_id) == (str(path), True, BASE, ID.hex())
    assert found.dynamic == BASE + DATA_ADDRESS + DYNAMIC_AT % PAGE
    assert found.refused == []


@pytest.mark.parametrize("place", [NAME, "deep/below/program", f".build-id/{ID.hex()[:2]}/{ID.hex()[2:]}"])
def test_the_file_below_a_searched_directory(tmp_path: Path, place: str) -> None:
    path = put(tmp_path, write_program(ID), place)
    put(tmp_path, write_program(OTHER), "another/program")
    assert find(write_program(ID), search=tmp_path).path == str(path)


def test_a_deleted_files_name_is_looked_for(tmp_path: Path) -> None:
    path = put(tmp_path, write_program(ID))
    assert find(write_program(ID), name=f"{NAME} (deleted)", sysroot=tmp_path).path == str(path)


def test_another_build_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, write_program(OTHER))
    found = find(write_program(ID), sysroot=tmp_path)
    assert found.path is None
    assert found.refused == [f"{path} is another build: {OTHER.hex()}, in memory {ID.hex()}"]


def test_the_systems_own_file_needs_a_proof(tmp_path: Path) -> None:
    path = put(tmp_path, write_program(ID))
    assert find(write_program(ID), name=str(path)).path == str(path)
    lost = find(write_program(ID), name=str(path), lost=(0,))
    assert lost.path is None
    assert "nothing proves that it is the same" in lost.refused[0]
    assert find(write_program(OTHER), name=str(path)).path is None


def test_code_proves_a_file_without_build_id(tmp_path: Path) -> None:
    put(tmp_path, write_program(ID, b"\x90\xc3"))
    assert find(write_program(ID, b"\x90\xc3"), lost=(0,), sysroot=tmp_path).proven
    refused = find(write_program(ID, b"\xc3\x90"), lost=(0,), sysroot=tmp_path)
    assert refused.path is None
    assert f"it has other bytes than the memory at {BASE + CODE_AT:#x}" in refused.refused[0]


def test_a_file_that_nothing_can_be_compared_with_is_unproven(tmp_path: Path) -> None:
    put(tmp_path, write_program(ID))
    found = find(write_program(ID), lost=(0, 1), sysroot=tmp_path)
    assert found.path is not None
    assert not found.proven
    assert "the page with its build-id cannot be read" in found.unreadable


def test_other_segments_are_another_build(tmp_path: Path) -> None:
    put(tmp_path, write_program(b"", code_pages=3))
    found = find(write_program(b""), sysroot=tmp_path)
    assert found.path is None
    assert "its segments are not those that are mapped" in found.refused[0]


@pytest.mark.parametrize("damage", [b"\x7fELF", b"", b"no ELF file at all", write_program(ID)[:100]])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: bytes) -> None:
    path = put(tmp_path, damage)
    found = find(write_program(ID), sysroot=tmp_path)
    assert found.path is None
    assert str(path) in found.refused[0]


@pytest.mark.parametrize("at", [4, 32, 54, 56, 0x200, 0x204])
def test_a_damaged_head_in_memory_proves_nothing(tmp_path: Path, at: int) -> None:
    path = put(tmp_path, write_program(ID))
    memory = bytearray(write_program(ID))
    memory[at : at + 2] = b"\xff\xff"
    found = find(bytes(memory), name=str(path))
    assert found.path is None
    assert found.build_id is None


def test_debug_files_by_build_id_and_by_link(tmp_path: Path) -> None:
    debug = write_program(ID, sections=((".debug_info", b"much"),))
    link = b"program.debug\0\0\0" + zlib.crc32(debug).to_bytes(4, "little")
    put(tmp_path, write_program(ID, sections=((".gnu_debuglink", link),)))
    named = put(tmp_path, write_program(ID), f".build-id/{ID.hex()[:2]}/{ID.hex()[2:]}.debug")
    assert find(write_program(ID), search=tmp_path).debug == str(named)
    named.write_bytes(write_program(OTHER))
    assert find(write_program(ID), search=tmp_path).debug is None
    linked = put(tmp_path, debug, "/opt/bin/.debug/program.debug")
    assert find(write_program(ID), search=tmp_path).debug == str(linked)
    linked.write_bytes(debug + b"\0")
    assert find(write_program(ID), search=tmp_path).debug is None


def test_a_file_with_its_own_debug_information_needs_no_other(tmp_path: Path) -> None:
    put(tmp_path, write_program(ID, sections=((".debug_info", b"much"),)))
    put(tmp_path, write_program(ID), f".build-id/{ID.hex()[:2]}/{ID.hex()[2:]}.debug")
    assert find(write_program(ID), search=tmp_path).debug is None


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="nowhere: not a directory"):
        find(write_program(ID), sysroot=tmp_path / "nowhere")


def memory_of(tmp_path: Path, *, lost: tuple[int, ...], program: bytes) -> UserMemory:
    mappings, pages = map_program(program, BASE, NAME)
    space = Pages({at: None if (at - BASE) // PAGE in lost else data for at, data in pages.items()})
    return UserMemory(WithArch(), space, find_mapped_files(mappings, space, [str(tmp_path)], []))


class WithArch(Kernel):
    """A kernel of which only the architecture is asked."""

    arch = X86_64

    def read(self, vaddr: int, size: int) -> bytes:
        raise NotImplementedError

    def translate(self, vaddr: int) -> int:
        raise NotImplementedError


def test_lost_code_comes_from_a_proven_file_and_lost_data_never(tmp_path: Path) -> None:
    program = write_program(ID, b"\x0f\x1f\x40")
    put(tmp_path, program)
    memory = memory_of(tmp_path, lost=(1, 3), program=program)
    assert memory.read(BASE + CODE_AT + 5, 16) == program[CODE_AT + 5 : CODE_AT + 21]
    assert memory.read(BASE + CODE_AT, PAGE) == program[CODE_AT : CODE_AT + CODE_SIZE]  # no further than the segment
    assert memory.read(BASE + PAGE - 4, 8) == program[PAGE - 4 : PAGE + 4]  # from the image, then from the file
    with pytest.raises(ReadError, match=f"the page of {BASE + DATA_ADDRESS:#x} is not in the image"):
        memory.read(BASE + DATA_ADDRESS, 4)


def test_an_unproven_file_gives_no_bytes(tmp_path: Path) -> None:
    program = write_program(ID)
    put(tmp_path, program)
    with pytest.raises(ReadError, match="is not in the image"):
        memory_of(tmp_path, lost=(0, 1), program=program).read(BASE + CODE_AT, 4)


def test_the_kernels_memory_is_not_the_processs(tmp_path: Path) -> None:
    memory = memory_of(tmp_path, lost=(), program=write_program(ID))
    with pytest.raises(ReadError, match="no memory of this process"):
        memory.read(0xFFFFFFFF81000000, 4)
