"""Core files of processes: registers, vectors and memory equal what the guest itself said, in every scenario."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvm_dbg.commands.core_file import CoreFile
from kvm_dbg.elf import ElfFile, open_elf
from kvm_dbg.errors import UnsupportedError
from kvm_dbg.kernel import system_of
from kvm_dbg.kernel.base import Kernel, Process
from tests.golden.subject import Subject, find_subject
from tests.lab import ProcessTruth

NT_PRSTATUS, NT_PRPSINFO, NT_AUXV = 1, 3, 6
PT_LOAD = 1
IA32 = b"ia32"
AT_EXECFN = 31
PRSTATUS_PID, PRSTATUS_REGISTERS = 32, 112
# The first members of struct user_regs_struct, arch/x86/include/asm/user_64.h
NAMES = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base"),
)
# /proc/PID/syscall: number, six arguments, stack pointer, instruction pointer (Documentation/filesystems/proc.rst)
SYSTEM_CALL = ("orig_rax", "rdi", "rsi", "rdx", "r10", "r8", "r9", "rsp", "rip")
SELECTORS = {"cs": 0x33, "ss": 0x2B}  # of 64-bit user code


def write_core(kernel: Kernel, process: Process, path: Path) -> tuple[int, int]:
    """Write a core file; return how many bytes of memory are in it, and how many are lost."""
    system = system_of(kernel)
    mappings = list(system.for_each_mapping(kernel, process.pid))
    notes, remarks = system.read_core_notes(kernel, process, mappings)
    assert remarks == []
    space = system.address_space(kernel, process.address)
    with path.open("wb") as file:
        core = CoreFile(file, kernel.arch.elf_machine, 4096)
        core.add_notes(notes)
        sizes = [core.add_mapping(mapping, space) for mapping in mappings]
        assert core.finish() == file.seek(0, 2)
    return sum(here for here, _ in sizes), sum(lost for _, lost in sizes)


def with_memory(subject: Subject) -> Iterator[tuple[ProcessTruth, Process]]:
    found = {process.pid: process for process in system_of(subject.kernel).for_each_process(subject.kernel)}
    for truth in subject.settled():
        if subject.truth.contents.get(f"proc/{truth.pid}/maps") and truth.comm != IA32:
            yield truth, found[truth.pid]


def read(core: ElfFile, path: Path, address: int, size: int) -> bytes:
    """Return memory from the segments of a core file."""
    data = path.read_bytes()
    for segment in core.segments:
        if segment.type == PT_LOAD and segment.vaddr <= address < segment.vaddr + segment.filesz:
            start = segment.offset + address - segment.vaddr
            assert segment.vaddr + segment.filesz >= address + size
            return data[start : start + size]
    raise AssertionError(f"{address:#x} is in no segment")


def test_a_32_bit_process_has_no_core_file(subject: Subject, tmp_path: Path) -> None:
    processes = system_of(subject.kernel).for_each_process(subject.kernel)
    [process] = [process for process in processes if process.command == IA32.decode()]
    with pytest.raises(UnsupportedError, match="32-bit"):
        write_core(subject.kernel, process, tmp_path / "core")


def test_registers_and_vectors_equal_proc(subject: Subject) -> None:
    system, kernel = system_of(subject.kernel), subject.kernel
    threads = 0
    for truth, process in with_memory(subject):
        notes, remarks = system.read_core_notes(kernel, process, [])
        assert remarks == []
        found = {}
        for note in notes:
            if note.type == NT_PRSTATUS:
                [tid] = struct.unpack_from("<i", note.desc, PRSTATUS_PID)
                words = struct.unpack_from("<23Q", note.desc, PRSTATUS_REGISTERS)
                found[tid] = dict(zip(NAMES, words, strict=True))
            elif note.type == NT_AUXV:
                auxv = subject.truth.read(f"proc/{truth.pid}/auxv")
                assert auxv.startswith(note.desc)
                assert not any(auxv[len(note.desc) :])
        assert sorted(found) == [lwp.tid for lwp in truth.lwps]
        for tid, registers in found.items():
            said = subject.truth.text(f"proc/{truth.pid}/task/{tid}/syscall").split()
            names = SYSTEM_CALL if len(said) == len(SYSTEM_CALL) else ("rsp", "rip")
            assert len(said) in (3, 9), (truth.comm, said)
            assert [registers[name] for name in names] == [int(word, 0) for word in said[-len(names) :]], truth.comm
            assert {name: registers[name] for name in SELECTORS} == SELECTORS
            threads += 1
    assert threads > 90


@pytest.mark.parametrize("name", ["deb12-4level", "deb11-5level", "bpo13-4level"])
def test_memory_in_a_core_file(name: str, tmp_path: Path) -> None:
    """Arguments, and the program's own name, are where the auxiliary vector and /proc say."""
    subject = find_subject(name)
    path = tmp_path / "core"
    checked = 0
    for truth, process in with_memory(subject):
        if truth.comm not in (b"files", b"manythreads", b"longarg", b"hog"):
            continue
        present, lost = write_core(subject.kernel, process, path)
        with open_elf(path) as core:
            notes = [note for segment in core.segments[:1] for note in core.for_each_note(segment)]
            [auxv] = [bytes(note.desc) for note in notes if note.type == NT_AUXV]
            entries = dict(struct.iter_unpack("<2Q", auxv))
            assert read(core, path, entries[AT_EXECFN], 5) == b"/zoo/"
            stat = subject.truth.text(f"proc/{truth.pid}/stat").rpartition(") ")[2].split()
            start, end = int(stat[45]), int(stat[46])  # arg_start, arg_end: fields 48 and 49 of proc(5)
            if truth.arguments:
                assert read(core, path, start, end - start) == truth.arguments
            loads = [segment for segment in core.segments if segment.type == PT_LOAD]
            assert sum(segment.filesz for segment in loads) == present
            assert all(segment.filesz == segment.memsz and segment.offset % 4096 == 0 for segment in loads)
        assert lost == 0
        assert present >= 4096 * truth.rss // 2  # rss lags by up to a batch for each CPU, and counts no kernel pages
        checked += 1
    assert checked == 4


def test_filtered_memory_is_left_out(tmp_path: Path) -> None:
    """Dump level 31 leaves out all memory of users: registers and vectors remain."""
    subject = find_subject("deb12-4level")
    kernel = subject.open("zlib-d31")
    [truth] = [truth for truth, _ in with_memory(subject) if truth.comm == b"files"]
    [process] = [one for one in system_of(kernel).for_each_process(kernel) if one.pid == truth.pid]
    system = system_of(kernel)
    mappings = list(system.for_each_mapping(kernel, process.pid))
    notes, remarks = system.read_core_notes(kernel, process, mappings)
    assert [note.type for note in notes].count(NT_PRSTATUS) == len(truth.lwps)
    assert len(remarks) == 1  # its arguments are in its stack
    assert "the arguments are missing" in remarks[0]
    path = tmp_path / "core"
    with path.open("wb") as file:
        core = CoreFile(file, 62, 4096)
        core.add_notes(notes)
        sizes = [core.add_mapping(mapping, system.address_space(kernel, process.address)) for mapping in mappings]
        core.finish()
    for mapping, (present, lost) in zip(mappings, sizes, strict=True):
        assert present == 0 or mapping.path in ("[vdso]", "[vvar]"), mapping  # those are the kernel's pages
        assert lost or mapping.path in ("[vdso]", "[vvar]"), mapping
