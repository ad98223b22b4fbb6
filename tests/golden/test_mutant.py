"""Thousands of damaged copies of a real dump: of its kernel's memory, its headers, its kernel file and its indexes.

Whatever is damaged, a command gives rows, an error of kvm_dbg's own, or both, in bounded time and memory. Kernel memory
is damaged where it matters: a first, undisturbed run of each command notes every place that it reads. The seeds are
fixed, so a failure names the mutant that shows it again.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from kvm_dbg.arch.paging import AddressSpace
from kvm_dbg.commands.session import Session
from kvm_dbg.elf import ElfFile
from kvm_dbg.errors import KvmDbgError, NotInImageError
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.kernel import open_kernel
from tests.golden.sample import COMMANDS, THREADS, Sample, attempt, bounded, run

LINES = (*COMMANDS, THREADS)
OPENING = "(opening)"
MEMORY_MUTANTS = 2400
HEADER_MUTANTS = 300
KERNEL_FILE_MUTANTS = 150
INDEX_MUTANTS = 150
KERNEL_HALF = 0xFFFF800000000000
ODD_POINTERS = (
    *(0, 1, (1 << 64) - 1, 1 << 63, 1 << 31, 0x400000, 0x7FFF00001000),
    *(0xDEAD000000000100, 0xFFFFC00000000000, 0xFFFF888000000000, 0x8000000000000000),
)
ODD_NUMBERS = (0, 1, 5000, 1 << 16, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return Sample(tmp_path_factory.mktemp("sample"))


class Trace(NamedTuple):
    """Where an undisturbed run reads: (physical address, size) of its reads by virtual and by physical address."""

    virtual: list[tuple[int, int]]
    physical: list[tuple[int, int]]


@contextmanager
def traced() -> Iterator[Trace]:
    """Note every read of the images that are opened while it lasts."""
    trace = Trace([], [])
    read_image, read_space = OverlayImage.read, AddressSpace.read

    def image(self: OverlayImage, paddr: int, size: int) -> bytes:
        trace.physical.append((paddr, size))
        return read_image(self, paddr, size)

    def space(self: AddressSpace, vaddr: int, size: int) -> bytes:
        if size:
            with suppress(KvmDbgError):
                trace.virtual.append((self.translate(vaddr), size))
        return read_space(self, vaddr, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OverlayImage, "read", image)
        patch.setattr(AddressSpace, "read", space)
        yield trace
    for places in trace:
        places[:] = sorted({place for place in places if place[1]})


def trace_all(sample: Sample) -> dict[str, Trace]:
    """Return where each command reads, and where opening does."""
    with traced() as opening:
        sample.open().close()
    traces = {OPENING: opening}
    for line in LINES:
        with traced() as trace:
            session = sample.open()
            for places in trace:
                places.clear()
            assert run(session, line)
            session.close()
        traces[line] = trace
    return traces


def kernel_pointers(session: Session, traces: dict[str, Trace]) -> list[int]:
    """Return what looks like a pointer of the kernel in the places that are read."""
    found: set[int] = set()
    for trace in traces.values():
        for paddr, size in trace.virtual:
            size = min(size, 4096 - paddr % 4096) & ~7
            found.update(struct.unpack(f"<{size // 8}Q", session.image.read(paddr, size)))
    return sorted(value for value in found if value >= KERNEL_HALF)


def damage_memory(chance: random.Random, image: OverlayImage, trace: Trace, pointers: list[int]) -> None:
    """Overwrite something that is read: pointers by others, counts by odd ones, members by noise or each other."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        places = trace.virtual if trace.virtual and chance.random() < 0.8 else trace.physical
        paddr, size = chance.choice(places)
        paddr += chance.randrange(size)
        how = chance.randrange(8)
        if how == 0:
            paddr, data = paddr & ~7, struct.pack("<Q", chance.choice(pointers))
        elif how == 1:
            paddr, data = paddr & ~7, struct.pack("<Q", chance.choice(ODD_POINTERS))
        elif how == 2:
            paddr, data = paddr & ~3, struct.pack("<I", chance.choice(ODD_NUMBERS))
        elif how == 3:
            paddr, data = paddr & ~7, struct.pack("<8Q", *chance.choices(pointers, k=8))
        elif how == 4:
            data = image.read_partial(*chance.choice(places)).data[:4096]
        elif how == 5:
            data = chance.randbytes(chance.choice((1, 8, 64, min(size, 4096))))
        elif how == 6:
            data = bytes([image.read(paddr, 1)[0] ^ 1 << chance.randrange(8)])
        else:
            data = chance.choice((b"\xff", b"\0")) * chance.choice((8, 64, min(size, 4096)))
        try:
            image.write(paddr, data)
        except NotInImageError:  # over the end of memory
            continue


def check_text(error: KvmDbgError) -> None:
    """Check that there is a text, and not the whole of what was damaged in it."""
    assert 0 < len(str(error)) < 2000


def test_mutants_of_kernel_memory(sample: Sample) -> None:
    traces = trace_all(sample)
    session = sample.open()
    pointers = kernel_pointers(session, traces)
    session.close()
    assert len(pointers) > 1000, "the places that are read are full of pointers"
    good = bad = 0
    with bounded():
        for number in range(MEMORY_MUTANTS):
            chance = random.Random(f"memory {number}")
            line = chance.choice(LINES)
            place = chance.choice((line, line, line, line, OPENING, chance.choice(LINES)))
            session = sample.open()
            image = session.image
            assert isinstance(image, OverlayImage)
            damage_memory(chance, image, traces[place], pointers)
            try:
                with attempt():
                    if place == OPENING or chance.random() < 0.2:
                        session._kernel = open_kernel(image, str(sample.vmlinux), index_directory=str(sample.index))
                    assert run(session, line), f"mutant {number}: {line}"
                good += 1
            except KvmDbgError as error:
                check_text(error)
                bad += 1
            finally:
                session.close()
    assert good > MEMORY_MUTANTS // 2, "most of a damaged kernel is still there"
    # Damage to a module's own symbols is no error of `mods`: its file is then refused, and the table says why.
    assert bad > MEMORY_MUTANTS // 25, "the damage is noticed"


def damage_file(chance: random.Random, data: bytearray, areas: list[tuple[int, int]]) -> None:
    """Overwrite bytes in some of `areas`, each (offset, size), or cut the file off."""
    whole = len(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        offset, size = chance.choice(areas)
        at = offset + chance.randrange(size)
        how = chance.randrange(6)
        if how == 0:
            piece = bytes([chance.randrange(256)])
        elif how == 1:
            piece = bytes([data[at] ^ 1 << chance.randrange(8)])
        elif how == 2:
            layout, bits = chance.choice((("<I", 32), ("<Q", 64)))
            at &= ~3
            values = (0, 1, (1 << bits) - 1, 1 << bits - 1, (1 << bits - 1) - 1, 1 << chance.randrange(bits), whole)
            piece = struct.pack(layout, chance.choice(values))
        elif how == 3:
            piece = chance.randbytes(chance.randrange(1, 64))
        elif how == 4:
            piece = chance.randbytes(4096)
        else:
            start = chance.randrange(whole - 4096)
            piece = bytes(data[start : start + 4096])
        data[at : at + len(piece)] = piece[: whole - at]
    if chance.random() < 0.08:
        del data[chance.randrange(whole) :]


def use(sample: Sample, chance: random.Random, **files: Path) -> bool:
    """Open damaged files and run a command; return whether that went well."""
    try:
        with attempt():
            session = sample.open(**files)
            try:
                assert run(session, chance.choice(LINES))
            finally:
                session.close()
    except KvmDbgError as error:
        check_text(error)
        return False
    return True


def test_mutants_of_headers_and_page_descriptors(sample: Sample, tmp_path: Path) -> None:
    seed = sample.vmcore.read_bytes()
    block, sub, bitmap = struct.unpack_from("<iiI", seed, 428)  # struct disk_dump_header
    descriptors = block * (1 + sub + bitmap)
    areas = [(0, 4096), (424, 40), (4096, 104), (4096, sub * block), (0, 1 << 16), (descriptors, 24 * 4000)]
    path = tmp_path / "vmcore"
    good = 0
    with bounded():
        for number in range(HEADER_MUTANTS):
            chance = random.Random(f"header {number}")
            data = bytearray(seed)
            damage_file(chance, data, [*areas, (descriptors, len(seed) - descriptors)])
            path.write_bytes(data)
            good += use(sample, chance, vmcore=path)
    assert HEADER_MUTANTS // 4 < good < HEADER_MUTANTS * 9 // 10


def test_mutants_of_the_kernel_file(sample: Sample, tmp_path: Path) -> None:
    seed = sample.vmlinux.read_bytes()
    sections = ElfFile(seed, sample.vmlinux).sections
    names = {section.name: (section.offset, section.size) for section in sections}
    known = [names[name] for name in (".BTF", ".symtab", ".strtab", ".shstrtab", ".notes")]
    (table,) = struct.unpack_from("<Q", seed, 0x28)  # e_shoff
    areas = [(0, 64), (64, 64 * 20), (table, 64 * len(sections)), (known[0][0], 2000), *known]
    path = tmp_path / "vmlinux"
    good = 0
    with bounded():
        for number in range(KERNEL_FILE_MUTANTS):
            chance = random.Random(f"kernel file {number}")
            data = bytearray(seed)
            damage_file(chance, data, areas)
            path.write_bytes(data)
            good += use(sample, chance, vmlinux=path, index=tmp_path / f"index {number % 2 * number}")
    assert KERNEL_FILE_MUTANTS // 10 < good < KERNEL_FILE_MUTANTS


def test_mutants_of_the_indexes(sample: Sample, tmp_path: Path) -> None:
    index = tmp_path / "index"
    session = sample.open(index=index)
    for line in LINES:
        assert run(session, line)
    session.close()
    seeds = {path: path.read_bytes() for path in index.rglob("*.index")}
    assert len(seeds) >= 2
    with bounded():
        for number in range(INDEX_MUTANTS):
            chance = random.Random(f"index {number}")
            for path, seed in seeds.items():
                data = bytearray(seed)
                damage_file(chance, data, [(0, 64), (0, len(seed)), (0, len(seed))])
                path.write_bytes(data)
            assert use(sample, chance, index=index), f"mutant {number}: an index that is damaged is built again"


def test_mutants_of_the_indexes_with_right_checksums(sample: Sample, tmp_path: Path) -> None:
    index = tmp_path / "index"
    session = sample.open(index=index)
    for line in LINES:
        assert run(session, line)
    session.close()
    header = struct.Struct("<8sIIIIQII")  # as in kvm_dbg.index: the last but one is the checksum of what follows
    seeds = {path: path.read_bytes() for path in index.rglob("*.index")}
    with bounded():
        for number in range(INDEX_MUTANTS):
            chance = random.Random(f"checked index {number}")
            for path, seed in seeds.items():
                data = bytearray(seed)
                damage_file(chance, data, [(64, 300), (64, len(seed) - 64)])
                fields = list(header.unpack_from(seed))
                fields[5], fields[6] = len(data), zlib.crc32(data[header.size :])
                data[: header.size] = header.pack(*fields)
                path.write_bytes(data)
            use(sample, chance, index=index)
