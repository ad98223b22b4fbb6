"""FreeBSD minidumps: memory by physical address, for every machine and version, whole, cut off and damaged."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from kvm_dbg.errors import FormatError, NotInImageError, UnsupportedError
from kvm_dbg.image import open_image
from kvm_dbg.image.base import BytesImage, Presence
from kvm_dbg.image.freebsd_minidump import FreebsdMinidumpImage
from tests.unit.image_check import check_same
from tests.writers.freebsd_minidump import HAS_DUMP_AVAIL, NEWEST, write_minidump
from tests.writers.memory import PAGE, Memory, make_memory

EVERY = [(platform, version) for platform, newest in NEWEST.items() for version in range(1, newest + 1)]
MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "riscv": "riscv64", "i386": "i386", "powerpc64": "ppc64"}


def open_bytes(tmp_path: Path, data: bytes) -> FreebsdMinidumpImage:
    path = tmp_path / "vmcore"
    path.write_bytes(data)
    image = open_image(path)
    assert isinstance(image, FreebsdMinidumpImage)
    return image


def areas_of(memory: Memory, page: int = PAGE) -> list[tuple[int, int]]:
    """Return the runs of pages that are memory, dumped or not."""
    runs: list[tuple[int, int]] = []
    for pfn in sorted({*memory.pages, *memory.excluded}):
        if runs and runs[-1][1] == pfn * page:
            runs[-1] = (runs[-1][0], (pfn + 1) * page)
        else:
            runs.append((pfn * page, (pfn + 1) * page))
    return runs


@pytest.mark.parametrize(("platform", "version"), EVERY)
@pytest.mark.parametrize("top", [40, 1500])
def test_same_memory(tmp_path: Path, platform: str, version: int, top: int) -> None:
    memory = make_memory(31, top)
    data = write_minidump(platform, memory.pages, version=version, avail=areas_of(memory))
    listed = version >= HAS_DUMP_AVAIL[platform]
    with open_bytes(tmp_path, data) as image:
        check_same(image, (memory if listed else memory._replace(excluded=set())).image())
        info = image.info
        assert (info.format, info.system, info.machine) == ("freebsd-minidump", "FreeBSD", MACHINES[platform])
        assert (info.word_bits, info.byteorder, info.complete) == (32 if platform == "i386" else 64, "little", True)
        assert ("dumped pages", str(len(memory.pages))) in info.details
        assert image.read_message_buffer() == b"<118>FreeBSD\n"


def test_big_endian(tmp_path: Path) -> None:
    memory = make_memory(32, 1500)
    for version in (1, 2):
        data = write_minidump("powerpc64", memory.pages, version=version, avail=areas_of(memory), order=">")
        with open_bytes(tmp_path, data) as image:
            check_same(image, (memory if version == 2 else memory._replace(excluded=set())).image())
            assert image.info.byteorder == "big"


def test_pages_of_16_kib(tmp_path: Path) -> None:
    memory = make_memory(33, 700, 16384)
    areas = areas_of(memory, 16384)
    with open_bytes(tmp_path, write_minidump("arm64", memory.pages, avail=areas, page=16384)) as image:
        check_same(image, memory.image(16384))


def test_ranges_that_are_not_whole_pages(tmp_path: Path) -> None:
    """Of a range the first address is rounded down and the last one up, as vm_page_dump_add() counts."""
    pages = {0: b"a" * PAGE, 1: b"b" * PAGE, 9: b"c" * PAGE, 10: b"d" * PAGE}
    data = write_minidump("amd64", pages, avail=[(0x800, 0x1900), (0x9400, 0xA001)])
    with open_bytes(tmp_path, data) as image:
        check_same(image, BytesImage({pfn * PAGE: page for pfn, page in pages.items()}))


def test_truncated_everywhere(tmp_path: Path) -> None:
    memory = make_memory(34, 60)
    data = write_minidump("amd64", memory.pages, avail=areas_of(memory), pmap=bytes(PAGE))
    start = len(data) - len(memory.pages) * PAGE
    whole = memory.image()
    chance = random.Random(0)
    cut_headers = set()
    for size in [*range(20, 90, 7), *(chance.randrange(90, start) for _ in range(30))]:
        path = tmp_path / "vmcore"
        path.write_bytes(data[:size])
        try:
            with open_image(path) as image:
                assert not image.info.complete
                assert {run.presence for run in image.coverage()} <= {Presence.TRUNCATED, Presence.EXCLUDED}
        except FormatError as error:
            cut_headers.add(error.field)
    assert cut_headers == {"magic", "minidumphdr", "dump_avail"}
    for size in [*(chance.randrange(start, len(data)) for _ in range(40)), start + PAGE, len(data) - 1]:
        with open_bytes(tmp_path, data[:size]) as image:
            assert not image.info.complete
            present = size - start
            for run in image.coverage():
                if run.presence is Presence.EXCLUDED:
                    continue
                assert (run.presence is Presence.PRESENT) is (present > 0)
                if run.presence is Presence.PRESENT:
                    assert image.read(run.start, run.size) == whole.read(run.start, run.size)
                    present -= run.size
                else:
                    with pytest.raises(NotInImageError, match="truncated"):
                        image.read(run.start, 1)
            assert present == 0


FIELDS = [  # file offset, struct code, value, the error's field
    (24, "<I", 4, "version"),
    (24, "<I", 0, "version"),
    (32, "<I", 0, "bitmapsize"),
    (32, "<I", 8, "dump_avail"),
    (56, "<Q", 1, "dmapend"),
    (64, "<I", 1 << 21, "dumpavailsize"),
    (64, "<I", 8, "dump_avail"),
    (2 * PAGE, "<Q", 1 << 50, "dump_avail"),
    (2 * PAGE + 8, "<Q", (1 << 64) - 1, "dump_avail"),
    (2 * PAGE + 8, "<Q", 0, "dump_avail"),
    (2 * PAGE + 16, "<Q", 0, "dump_avail"),
]


@pytest.mark.parametrize(("offset", "code", "value", "field"), FIELDS)
def test_field_wrong(tmp_path: Path, offset: int, code: str, value: int, field: str) -> None:
    pages = {pfn: bytes(PAGE) for pfn in range(100)}
    data = bytearray(write_minidump("amd64", pages, avail=[(0, 60 * PAGE), (60 * PAGE, 100 * PAGE)]))
    struct.pack_into(code, data, offset, value)
    with pytest.raises((FormatError, UnsupportedError), match=field):
        open_bytes(tmp_path, bytes(data))


def test_sizes_that_lead_past_the_file(tmp_path: Path) -> None:
    data = bytearray(write_minidump("amd64", {0: b"x" * PAGE}))
    for offset in (28, 32, 36):  # msgbufsize, bitmapsize, pmapsize
        mutant = data.copy()
        struct.pack_into("<I", mutant, offset, 0xFFFFF000)
        path = tmp_path / "vmcore"
        path.write_bytes(mutant)
        if offset == 28:
            with pytest.raises(FormatError, match="dump_avail"):
                open_image(path)
            continue
        with open_image(path) as image:
            assert not image.info.complete
            assert all(run.presence is not Presence.PRESENT for run in image.coverage())


@pytest.mark.parametrize("platform", ["arm", "mips", "sparc64", ""])
def test_unknown_machine(tmp_path: Path, platform: str) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(f"minidump FreeBSD/{platform}".encode().ljust(PAGE, b"\0"))
    with pytest.raises(UnsupportedError, match=repr(platform)):
        open_image(path)


def test_page_size_that_is_not_known(tmp_path: Path) -> None:
    data = bytearray(write_minidump("arm64", {0: b""}))
    data[24 + 16 + 32 + 4] = 2  # flags: MINIDUMP_FLAG_PS_64K
    with pytest.raises(UnsupportedError, match="page size"):
        open_bytes(tmp_path, bytes(data))


@pytest.mark.parametrize("areas", [[(0, 4000)], [(0, 700), (700, 1024), (1024, 4000)], [(3, 520), (700, 4000)]])
def test_runs_that_are_longer_than_what_is_read_of_the_bitmap_at_once(
    tmp_path: Path, areas: list[tuple[int, int]]
) -> None:
    chance = random.Random(7)
    holes = {1536, *range(2049, 2060), 3583, 3584}
    numbers = [pfn for start, end in areas for pfn in range(start, end) if pfn not in holes]
    memory = Memory({pfn: chance.randbytes(8) + bytes(PAGE - 8) for pfn in numbers}, set())
    listed = {pfn for start, end in areas for pfn in range(start, end)}
    oracle = memory._replace(excluded=listed - memory.pages.keys()).image()
    data = write_minidump("amd64", memory.pages, avail=[(start * PAGE, end * PAGE) for start, end in areas])
    for order in (sorted(numbers), chance.sample(numbers, len(numbers)), sorted(numbers, reverse=True)):
        with open_bytes(tmp_path, data) as image:
            assert all(image.read(pfn * PAGE, PAGE) == memory.pages[pfn] for pfn in order)
            check_same(image, oracle, reads=100)
    with open_bytes(tmp_path, data[: len(data) - 700 * PAGE - 5]) as image:
        assert (
            b"".join(chunk for _, chunk in image.for_each_chunk())
            == b"".join(memory.pages[pfn] for pfn in sorted(numbers)[:-700])[:-5]
        )
