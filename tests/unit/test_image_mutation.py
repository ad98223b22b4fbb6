"""Thousands of damaged dumps of every format: each gives data or a KvmDbgError, in bounded time and memory.

A mutant is a good file with a few bytes, fields or stretches changed, mostly in its headers, where every byte counts.
It is opened and then used as a debugger would: its description, its coverage, reads here and there. The seeds are
fixed, so a failure names the mutant that shows it again.
"""

from __future__ import annotations

import random
import resource
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import pytest

from kvm_dbg.errors import KvmDbgError
from kvm_dbg.image import open_image
from tests.writers.elfcore import Load, write_elfcore, write_note
from tests.writers.flattened import write_flattened
from tests.writers.freebsd_minidump import write_minidump
from tests.writers.kdump import METHODS, write_kdump
from tests.writers.lime import write_lime
from tests.writers.memory import make_memory
from tests.writers.netbsd_kcore import write_kcore

MUTANTS = 400  # for each kind of file
SECONDS = 1.0  # of CPU time, for any one mutant
GROWTH = 160 << 20  # bytes of address space, of the whole process, over all mutants of a kind

NOTES = write_note("CORE", 1, bytes(336)) + write_note("VMCOREINFO", 0, b"OSRELEASE=6.1.0\n")
NOTES += write_note("QEMU", 0, bytes(440))


def kdump(method: str | Callable[[int], str] = "zlib", **options: object) -> bytes:
    memory = make_memory(21, 64)
    return write_kdump(memory.pages, excluded=memory.excluded, method=method, notes=NOTES, **options)  # type: ignore[arg-type]


def elfcore(**options: object) -> bytes:
    chance = random.Random(22)
    loads = [Load(number * 0x5000, chance.randbytes(9000), chance.choice((None, 0x6000))) for number in range(6)]
    return write_elfcore(loads, NOTES, **options)  # type: ignore[arg-type]


def minidump(platform: str, **options: object) -> bytes:
    memory = make_memory(23, 64)
    areas = [(0, 40 * 4096), (44 * 4096, 64 * 4096)]
    pages = {pfn: page for pfn, page in memory.pages.items() if not 40 <= pfn < 44}
    return write_minidump(platform, pages, avail=areas, pmap=bytes(range(256)) * 16, **options)  # type: ignore[arg-type]


# what it is -> the file, and how many of its first bytes are headers
SEEDS: dict[str, tuple[bytes, int]] = {
    "elf 64": (elfcore(), 64 + 7 * 56 + len(NOTES)),
    "elf 32 big-endian": (elfcore(bits=32, order=">"), 52 + 7 * 32 + len(NOTES)),
    "elf extended numbering": (elfcore(xnum=True), 128 + 7 * 56),
    "elf flattened": (write_flattened(elfcore(), 512), 4096 + 2000),
    "kdump mixed": (kdump(lambda pfn: METHODS[pfn % 5]), 5 * 4096 + 1500),
    "kdump zlib": (kdump("zlib"), 5 * 4096 + 1500),
    "kdump lzo": (kdump("lzo"), 5 * 4096 + 1500),
    "kdump snappy": (kdump("snappy"), 5 * 4096 + 1500),
    "kdump zstd": (kdump("zstd"), 5 * 4096 + 1500),
    "kdump 32 big-endian": (kdump("lzo", bits=32, order=">"), 5 * 4096 + 1500),
    "kdump version 2": (kdump("raw", version=2), 5 * 4096 + 1500),
    "kdump flattened": (write_flattened(kdump("zlib"), 700), 4096 + 8000),
    "diskdump": (kdump("zlib", signature=b"DISKDUMP", version=1), 5 * 4096 + 1500),
    "netbsd": (write_kcore({number * 0x2000: bytes([number]) * 4096 for number in range(20)}), 16 + 8 + 16 + 20 * 16),
    "netbsd sparse": (
        write_kcore({number * 0x2000: bytes([number]) * 4096 for number in range(80)}, 0x2000),
        16 + 8 + 16 + 80 * 16,
    ),
    "minidump amd64": (minidump("amd64"), 4 * 4096),
    "minidump amd64 version 2": (minidump("amd64", version=2), 4 * 4096),
    "minidump arm64": (minidump("arm64"), 4 * 4096),
    "minidump powerpc64 big-endian": (minidump("powerpc64", order=">"), 4 * 4096),
    "lime": (write_lime([(number << 20, bytes([number]) * 6000) for number in range(5)]), 32),
}
HOT = {
    "minid": [*range(24, 72), *range(8192, 8240), *range(12288, 12296)],
    "kdump": [*range(8, 12), *range(424, 464), *range(4096, 4200)],
    "disk": [*range(8, 12), *range(424, 464)],
}


def mutate(chance: random.Random, name: str, seed: bytes, headers: int) -> bytes:
    """Return a damaged copy."""
    data = bytearray(seed)
    hot = HOT.get(name[:5].rstrip(), HOT.get(name[:4], [])) if "flattened" not in name else []
    for _ in range(chance.choice((1, 1, 2, 4))):
        pick = chance.randrange(10)
        at = chance.choice(hot) if hot and pick < 5 else chance.randrange(headers if pick < 8 else len(data))
        how = chance.randrange(6)
        if how == 0:
            data[at] = chance.randrange(256)
        elif how == 1:
            data[at] ^= 1 << chance.randrange(8)
        elif how == 2:  # a number at the edge of something
            layout, bits = chance.choice((("<I", 32), (">I", 32), ("<Q", 64), (">Q", 64)))
            value = chance.choice((0, 1, (1 << bits) - 1, 1 << bits - 1, 1 << chance.randrange(bits), len(data)))
            at = min(at & ~3, len(data) - 8)
            struct.pack_into(layout, data, at, value)
        elif how == 3:
            size = chance.randrange(1, 64)
            data[at : at + size] = chance.randbytes(len(data[at : at + size]))
        elif how == 4:
            del data[at : at + chance.randrange(1, 3000)]
        else:
            del data[at if chance.random() < 0.3 else max(len(data) - chance.randrange(1, 5000), 0) :]
        if len(data) < 16:
            return bytes(data)
        headers = min(headers, len(data))
        hot = [place for place in hot if place < len(data)]
    return bytes(data)


def use(path: Path, chance: random.Random) -> bool:
    """Do with an image what a debugger would; return True if it gave any data."""
    given = False
    with open_image(path) as image:
        page_map = image.page_map
        for vaddr in (0xFFFFFE0000001000, 0xFFFF000000001000, 0xE000000000001000) if page_map is not None else ():
            with suppress(KvmDbgError):
                assert page_map is not None
                page_map.translate_page(image.read, vaddr)
        _ = image.info, [image.find_note(name) for name in ("CORE", "VMCOREINFO", "QEMU")]
        runs = list(islice(image.coverage(), 2000))
        tops = [run.end for run in runs[-2:]] or [1 << 20]
        places = [0, (1 << 64) - 4, *(run.start for run in runs[:20])]
        places += [chance.randrange(tops[-1] + 8192) for _ in range(20)]
        for paddr in places:
            for size in (8, 5000):
                for attempt in (image.read, image.read_partial):
                    try:
                        attempt(paddr, size)
                        given = True
                    except KvmDbgError:
                        continue
        for _ in islice(image.for_each_chunk(), 8):
            given = True
    return given


@contextmanager
def limited_memory() -> Iterator[None]:
    """Let the process grow by at most GROWTH: what wants more gets a MemoryError, and the test fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GROWTH, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("name", SEEDS)
def test_mutants(tmp_path: Path, name: str) -> None:
    seed, headers = SEEDS[name]
    path = tmp_path / "vmcore"
    path.write_bytes(seed)
    assert use(path, random.Random(0)), "the seed itself must be good"
    good = bad = 0
    with limited_memory():
        for number in range(MUTANTS):
            chance = random.Random(f"{name} {number}")
            path.write_bytes(mutate(chance, name, seed, headers))
            began = time.process_time()
            try:
                good += use(path, chance)
            except KvmDbgError:
                bad += 1
            spent = time.process_time() - began
            assert spent < SECONDS, f"mutant {number} took {spent:.1f} s"
    assert good > MUTANTS // 10, "most of a damaged file is still there"
    assert bad > MUTANTS // 100, "the damage reaches the headers"
