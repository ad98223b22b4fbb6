"""A real NetBSD dump, damaged: every command ends in an answer or an error of ours, within bounds of time and memory.

Memory that was read is overwritten, as are the dump's headers and the kernel's name list; without the list, the symbols
that the kernel keeps in memory are damaged.
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
from tests.golden.sample import THREADS, attempt, bounded, run
from tests.golden.test_mutant import OPENING, Trace, check_text, damage_file, damage_memory, kernel_pointers, traced
from tests.shared import shared_data, unpack

LINES = (
    "sys", "procs", "lwps", "bt --all", "args", "env", "files", "loadavg", "log", "vm 19", "nlist allproc",
    "vtop allproc", THREADS,
)  # fmt: skip
OWN_SYMBOLS = "(opening without a name list)"
MEMORY_MUTANTS, HEADER_MUTANTS, LIST_MUTANTS = 300, 120, 60
HEADERS = 5656  # bytes in front of the memory: 331 segments


class Dump:
    """The dump, its name list, and its layout file."""

    def __init__(self, folder: Path) -> None:
        data = shared_data("netbsd")
        self.core = unpack(data / "netbsd.0.core.zst", folder)
        self.names = folder / "list"  # not where it would be found
        unpack(data / "netbsd.0.zst", folder).rename(self.names)
        self.layout = str(data / "layout.json")

    def open(self, *, core: Path | None = None, names: Path | None = None, own: bool = False) -> Session:
        """Return a session; own: without the name list. Raises KvmDbgError."""
        session = Session()
        session.open(
            OpenRequest((str(core or self.core),), None if own else str(names or self.names), layout=self.layout)
        )
        return session


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Dump:
    return Dump(tmp_path_factory.mktemp("mutant"))


def trace(dump: Dump) -> dict[str, Trace]:
    """Return where each command reads, and where opening does."""
    traces = {}
    for place, own in ((OPENING, False), (OWN_SYMBOLS, True)):
        with traced() as opening:
            dump.open(own=own).close()
        traces[place] = opening
    for line in LINES:
        with traced() as found:
            session = dump.open()
            for places in found:
                places.clear()
            assert run(session, line)
            session.close()
        traces[line] = found
    session = dump.open()
    for one in traces.values():
        for places in one:  # what the dump has not is asked for, too
            places[:] = [place for place in places if not session.image.read_partial(*place).missing]
    session.close()
    return traces


def test_mutants_of_kernel_memory(dump: Dump) -> None:
    traces = trace(dump)
    session = dump.open()
    pointers = kernel_pointers(session, {name: one for name, one in traces.items() if name != OWN_SYMBOLS})
    session.close()
    assert len(pointers) > 500
    good = bad = 0
    with bounded():
        for number in range(MEMORY_MUTANTS):
            chance = random.Random(f"netbsd memory {number}")
            line = chance.choice(LINES)
            place = chance.choice((line, line, line, OPENING, OWN_SYMBOLS, chance.choice(LINES)))
            session = dump.open()
            image = session.image
            assert isinstance(image, OverlayImage)
            damage_memory(chance, image, traces[place], pointers)
            try:
                with attempt():
                    if place in (OPENING, OWN_SYMBOLS):
                        names = None if place == OWN_SYMBOLS else str(dump.names)
                        session._kernel = open_kernel(image, names, layout=dump.layout)
                    assert run(session, line), f"mutant {number}: {line}"
                good += 1
            except KvmDbgError as error:
                check_text(error)
                bad += 1
            finally:
                session.close()
    assert good > MEMORY_MUTANTS // 2, "most of a damaged kernel is still there"
    assert bad > MEMORY_MUTANTS // 25, "the damage is noticed"


def use(dump: Dump, chance: random.Random, **files: Path) -> bool:
    """Open damaged files and run a command; return whether that went well."""
    try:
        with attempt():
            session = dump.open(own="names" not in files, **files)
            try:
                assert run(session, chance.choice(LINES))
            finally:
                session.close()
    except KvmDbgError as error:
        check_text(error)
        return False
    return True


def test_mutants_of_headers(dump: Dump, tmp_path: Path) -> None:
    """The file is damaged in place and repaired, since it is large; what `damage_file` appends is cut off again."""
    path = tmp_path / "core"
    path.write_bytes(dump.core.read_bytes())
    good, size = 0, path.stat().st_size
    with path.open("r+b", buffering=0) as file, bounded():
        head = file.read(4 * HEADERS)
        for number in range(HEADER_MUTANTS):
            chance = random.Random(f"netbsd header {number}")
            data = bytearray(head)
            damage_file(chance, data, [(0, 16), (16, 24), (0, 64), (24, HEADERS), (HEADERS - 8, 8)])
            file.seek(0)
            file.write(data)
            if len(data) < len(head):
                file.truncate(len(data))
            good += use(dump, chance, core=path)
            file.seek(0)
            file.write(head)
            if len(data) < len(head):
                file.truncate(len(head))
                file.seek(len(head))
                with dump.core.open("rb") as whole:
                    whole.seek(len(head))
                    file.write(whole.read())
            assert path.stat().st_size == size
    assert 0 < good < HEADER_MUTANTS


def test_mutants_of_the_name_list(dump: Dump, tmp_path: Path) -> None:
    seed = dump.names.read_bytes()
    sections = ElfFile(seed, dump.names).sections
    areas = [(0, 64), (64, 56), (120, 64 * len(sections)), *((one.offset, one.size) for one in sections[1:4])]
    path = tmp_path / "list"
    good = 0
    with bounded():
        for number in range(LIST_MUTANTS):
            chance = random.Random(f"netbsd list {number}")
            data = bytearray(seed)
            damage_file(chance, data, areas)
            path.write_bytes(data)
            good += use(dump, chance, names=path)
    assert LIST_MUTANTS // 10 < good < LIST_MUTANTS
