"""Kernel files made from damaged images: symbols, types and unwind rules are garbage where they are read.

Whatever is damaged, a file that ELF and DWARF readers can read is made, or there is an error of kvm_dbg's own, in
bounded time and memory. A first, undisturbed run notes every place that is read; the seeds are fixed.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.elf import ElfFile
from kvm_dbg.errors import KvmDbgError
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.kernel import open_kernel
from kvm_dbg.kernel_file import MadeFile, make_kernel_file
from kvm_dbg.kernel_file.debug_info import read_module_types
from kvm_dbg.symbols.elf import ElfSymbolTable
from tests.golden import sample
from tests.golden.sample import attempt, bounded
from tests.golden.subject import find_subject
from tests.golden.test_mutant import check_text, damage_memory, kernel_pointers, traced

MUTANTS = 16
LARGE = 1 << 16  # bytes: what is read at once is a table
SECONDS = 20.0  # of CPU time; a sound image takes three
GROWTH = 768 << 20  # bytes


def open_image() -> Session:
    """Return a session with nothing but an image of a kernel whose modules have types."""
    subject = find_subject("deb12-4level")
    session = Session()
    session.open(OpenRequest(tuple(map(str, subject.dump.files[subject.kind].paths))))
    assert getattr(session.kernel, "vmlinux_path", None) is None
    return session


def make(session: Session, number: int) -> MadeFile:
    """Make the file for one of the debuggers, with problems of modules' types among its own."""
    problems: list[str] = []
    types = read_module_types(session.kernel, session.system, problems)
    made = make_kernel_file(session.kernel, session.system, module_types=types, for_lldb=bool(number % 2))
    return made._replace(problems=(*made.problems, *problems))


def test_mutants_of_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with traced() as trace:
        session = open_image()
        whole = make(session, 0)
    assert whole.problems == ()
    tables = [(paddr, size) for paddr, size in trace.virtual if size >= LARGE]
    assert sum(size for _, size in tables) > 8 << 20, "kallsyms, BTF and ORC are read in large pieces"
    pointers = kernel_pointers(session, {"made": trace})
    session.close()
    monkeypatch.setattr(sample, "SECONDS", SECONDS)
    monkeypatch.setattr(sample, "GROWTH", GROWTH)
    made = said = 0
    with bounded():
        for number in range(MUTANTS):
            chance = random.Random(f"made {number}")
            session = open_image()
            image = session.image
            assert isinstance(image, OverlayImage)
            damage_memory(chance, image, trace, pointers)
            for _ in range(chance.choice((1, 2, 8))):
                paddr, size = chance.choice(tables)
                length = chance.choice((4, 64, min(size, 1 << 15)))
                image.write(paddr + chance.randrange(size - length + 1), chance.randbytes(length))
            try:
                with attempt():
                    session._kernel = open_kernel(image)  # which reads the symbols
                    found = make(session, number)
                    check_file(found, tmp_path / "made")
                made += 1
                said += bool(found.problems)
            except KvmDbgError as error:
                check_text(error)
                said += 1
            finally:
                session.close()
    assert made > MUTANTS // 4, "some of the damage costs only a part"
    assert said > MUTANTS // 2, "the damage is noticed"


def check_file(made: MadeFile, path: Path) -> None:
    """Check that the file is one, whose sections lie in it and whose symbols can be read."""
    data = b"".join(made.pieces)
    path.write_bytes(data)
    file = ElfFile(data, path)
    assert {section.name for section in file.sections} >= {".symtab", ".strtab", ".debug_frame"}
    for section in file.sections:
        assert section.type == 8 or section.offset + section.size <= len(data), section.name  # SHT_NOBITS
    assert len(list(ElfSymbolTable(path).for_each())) == made.symbols
