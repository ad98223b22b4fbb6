"""kdump-compressed dumps: every version, layout and compression, split sets, damage, and size."""

from __future__ import annotations

import itertools
import os
import random
import struct
import time
from pathlib import Path

import pytest

from kvm_dbg.errors import CommandError, FormatError, NotInImageError, UnknownFormatError, UnsupportedError
from kvm_dbg.image import open_image
from kvm_dbg.image.base import MemoryImage, Presence
from tests.unit.image_check import check_same
from tests.writers.elfcore import write_note
from tests.writers.flattened import write_flattened
from tests.writers.kdump import FLAGS, METHODS, UTS, write_kdump
from tests.writers.memory import make_memory

BLOCK_SIZE_AT, SUB_AT, BITMAP_AT, MAPNR_AT = 428, 432, 436, 440


def opened(tmp_path: Path, data: bytes, name: str = "vmcore") -> MemoryImage:
    path = tmp_path / name
    path.write_bytes(data)
    return open_image(path)


@pytest.mark.parametrize("method", METHODS)
def test_every_compression(tmp_path: Path, method: str) -> None:
    memory = make_memory(1, 1200)
    with opened(tmp_path, write_kdump(memory.pages, excluded=memory.excluded, method=method)) as image:
        check_same(image, memory.image())
        assert image.info.compression == (() if method == "raw" else (method,))
        assert image.info.complete


def test_compression_of_each_page(tmp_path: Path) -> None:
    memory = make_memory(2, 100)
    data = write_kdump(memory.pages, excluded=memory.excluded, method=lambda pfn: METHODS[pfn % 5], status=0x20)
    with opened(tmp_path, data) as image:
        check_same(image, memory.image())
        assert set(image.info.compression) == {"zlib", "lzo", "snappy", "zstd"}


def test_flag_in_the_header_does_not_decide(tmp_path: Path) -> None:
    memory = make_memory(3)
    with opened(tmp_path, write_kdump(memory.pages, excluded=memory.excluded, method="raw", status=0x20)) as image:
        check_same(image, memory.image())
        assert image.info.compression == ()
        assert any("zstd" in quirk for quirk in image.info.quirks)


@pytest.mark.parametrize("version", range(1, 7))
@pytest.mark.parametrize(
    ("bits", "order", "padded"), [(64, "<", 0), (64, ">", 0), (32, "<", 0), (32, ">", 1), (32, "<", 1)]
)
def test_every_header(tmp_path: Path, version: int, bits: int, order: str, padded: int) -> None:
    memory = make_memory(version)
    info = b"OSRELEASE=6.1.0-note\nPAGESIZE=4096\n"
    notes = write_note("CORE", 1, bytes(336), order) + write_note("VMCOREINFO", 0, info, order)
    data = write_kdump(
        memory.pages, excluded=memory.excluded, version=version, bits=bits, order=order, padded=bool(padded),
        notes=notes if version >= 4 else b"", vmcoreinfo=info, level=17,
    )  # fmt: skip
    with opened(tmp_path, data) as image:
        check_same(image, memory.image(), reads=30)
        facts = image.info
        assert (facts.word_bits, facts.byteorder) == (bits, "little" if order == "<" else "big")
        assert (facts.dump_level, facts.machine, facts.release) == (17, "x86_64", "6.1.0-test")
        assert dict(facts.details)["header version"] == str(version)
        found = image.find_note("VMCOREINFO")
        assert (found.desc if found else None) == (info if version >= 3 else None)
        assert (image.find_note("CORE", 1) is not None) is (version >= 4)


@pytest.mark.parametrize("block", [1024, 4096, 65536])
@pytest.mark.parametrize("method", ["zlib", "snappy"])
def test_block_size(tmp_path: Path, block: int, method: str) -> None:
    memory = make_memory(4, 60, block)
    with opened(tmp_path, write_kdump(memory.pages, excluded=memory.excluded, block=block, method=method)) as image:
        check_same(image, memory.image(block), reads=60)


def test_random_memories(tmp_path: Path) -> None:
    chance = random.Random(5)
    for seed in range(30):
        memory = make_memory(seed, chance.choice((5, 513, 700)))
        data = write_kdump(memory.pages, excluded=memory.excluded, method=chance.choice(METHODS))
        with opened(tmp_path, data) as image:
            check_same(image, memory.image(), seed, reads=40)


def test_diskdump_with_one_bitmap(tmp_path: Path) -> None:
    memory = make_memory(6)
    data = write_kdump(memory.pages, max_mapnr=30000, signature=b"DISKDUMP", version=1, bitmaps=1)
    with opened(tmp_path, data) as image:
        check_same(image, memory._replace(excluded=set()).image())
        assert image.info.producer is not None
        assert image.info.producer.startswith("diskdump")


def test_made_by_qemu(tmp_path: Path) -> None:
    memory = make_memory(7)
    notes = write_note("VMCOREINFO", 0, b"OSRELEASE=6.6.6\n")
    data = write_kdump(memory.pages, excluded=memory.excluded, uts=("", "", "", "", "Unknown", ""), notes=notes)
    with opened(tmp_path, write_flattened(data)) as image:
        check_same(image, memory.image())
        assert (image.info.machine, image.info.release) == (None, "6.6.6")
        assert image.info.producer is not None
        assert image.info.producer.startswith("QEMU")


# split sets


def parts(memory_seed: int = 8, flat: bool = False) -> list[bytes]:
    memory = make_memory(memory_seed, 100)
    cuts = [(0, 30), (30, 71), (71, 100)]
    files = [write_kdump(memory.pages, excluded=memory.excluded, split=cut, method="lzo") for cut in cuts]
    return [write_flattened(file) for file in files] if flat else files


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flat", [False, True])
def test_split_in_any_order(tmp_path: Path, order: tuple[int, ...], flat: bool) -> None:
    paths = []
    for number in order:
        paths.append(tmp_path / f"part{number}")
        paths[-1].write_bytes(parts(flat=flat)[number])
    with open_image(paths) as image:
        check_same(image, make_memory(8, 100).image(), reads=60)
        assert image.info.complete


@pytest.mark.parametrize("missing", range(3))
def test_split_with_a_part_missing(tmp_path: Path, missing: int) -> None:
    paths = []
    for number in {0, 1, 2} - {missing}:
        paths.append(tmp_path / f"part{number}")
        paths[-1].write_bytes(parts()[number])
    memory = make_memory(8, 100)
    low, high = [(0, 30), (30, 71), (71, 100)][missing]
    with open_image(paths) as image:
        assert not image.info.complete
        assert any("split" in quirk for quirk in image.info.quirks)
        for pfn in range(100):
            presence = [piece.presence for piece in image.pieces(pfn * 4096, 4096)]
            if pfn in memory.pages and low <= pfn < high:
                assert presence == [Presence.TRUNCATED]
                with pytest.raises(NotInImageError, match="truncated"):
                    image.read(pfn * 4096, 8)
            elif pfn in memory.pages:
                assert image.read(pfn * 4096, 4096) == memory.pages[pfn]
        lost = sum(run.size for run in image.coverage() if run.presence is Presence.TRUNCATED) // 4096
        assert lost == sum(low <= pfn < high for pfn in memory.pages)


def test_files_that_are_no_set(tmp_path: Path) -> None:
    memory = make_memory(8, 100)
    names = {
        "one": write_kdump(memory.pages, split=(0, 50)),
        "overlapping": write_kdump(memory.pages, split=(40, 100)),
        "whole": write_kdump(memory.pages),
        "larger": write_kdump(memory.pages, split=(50, 100), max_mapnr=200),
        "stranger": write_kdump(memory.pages, split=(50, 100), uts=(*UTS[:2], "5.10", *UTS[3:])),
        "wide": write_kdump(memory.pages, split=(50, 100), bits=32),
    }
    for name, data in names.items():
        (tmp_path / name).write_bytes(data)
    for other in set(names) - {"one"}:
        with pytest.raises(FormatError) as error:
            open_image([tmp_path / "one", tmp_path / other])
        assert other in str(error.value)
    (tmp_path / "text").write_bytes(b"hello")
    with pytest.raises(CommandError, match="text"):
        open_image([tmp_path / "one", tmp_path / "text"])


# files that end too early, and files that are wrong


@pytest.mark.parametrize("flat", [False, True])
def test_every_truncation(tmp_path: Path, flat: bool) -> None:
    memory = make_memory(9, 24)
    whole = write_kdump(memory.pages, excluded=memory.excluded, method="zlib", notes=write_note("CORE", 1, bytes(40)))
    data = write_flattened(whole, 700) if flat else whole
    headers = 4096 + 104 if not flat else 4096 + 16 + 700
    opened_at_all = 0
    chance = random.Random(9)
    for size in sorted(
        {*range(1, 64), *(chance.randrange(len(data)) for _ in range(250)), *range(len(data) - 80, len(data))}
    ):
        try:
            image = opened(tmp_path, data[:size])
        except (FormatError, UnknownFormatError):
            assert size < headers + (20000 if flat else 0)
            continue
        opened_at_all += 1
        with image:
            assert image.info.complete is False
            read = image.read_partial(0, 24 * 4096)
            missing = {pfn for run in read.missing for pfn in range(run.start // 4096, run.end // 4096)}
            for pfn, page in memory.pages.items():
                assert pfn in missing or read.data[pfn * 4096 : (pfn + 1) * 4096] == page, (size, pfn)
            held = {pfn for run in image.coverage() for pfn in range(run.start // 4096, run.end // 4096)
                    if run.presence is Presence.PRESENT}  # fmt: skip
            assert held == set(range(24)) - missing, size
    assert opened_at_all > 100


def test_incomplete_flag(tmp_path: Path) -> None:
    memory = make_memory(10)
    data = bytearray(write_kdump(memory.pages, excluded=memory.excluded, status=0x8 | FLAGS["zlib"]))
    descriptors = (1 + 1 + 2) * 4096
    last = sorted(memory.pages)[-1]
    struct.pack_into("<QIIQ", data, descriptors + 24 * (len(memory.pages) - 1), 0, 0, 0, 0)
    with opened(tmp_path, bytes(data)) as image:
        assert not image.info.complete
        with pytest.raises(NotInImageError, match="truncated"):
            image.read(last * 4096, 1)
        assert list(image.coverage())[-1].presence is Presence.TRUNCATED
        assert image.read(0, 4096) == memory.pages[0]


@pytest.mark.parametrize(
    ("offset", "value", "field"),
    [
        (8, 0x7F7F7F7F, "header_version"),
        (BLOCK_SIZE_AT, 4095, "block_size"),
        (BLOCK_SIZE_AT, 0, "block_size"),
        (SUB_AT, 0xFFFFFFFF, "sub_hdr_size"),
        (BITMAP_AT, 0, "bitmap_blocks"),
        (MAPNR_AT, 0, None),  # version 6: the 64-bit one counts
        (4096 + 96, 1 << 40, "bitmap_blocks"),  # max_mapnr_64
    ],
)
def test_header_field_wrong(tmp_path: Path, offset: int, value: int, field: str | None) -> None:
    memory = make_memory(11)
    data = bytearray(write_kdump(memory.pages, excluded=memory.excluded))
    struct.pack_into("<Q" if offset > 4096 else "<I", data, offset, value)
    if field is None:
        with opened(tmp_path, bytes(data)) as image:
            check_same(image, memory.image(), reads=5)
        return
    with pytest.raises(FormatError) as error:
        opened(tmp_path, bytes(data))
    assert error.value.field == field


def test_split_limits_wrong(tmp_path: Path) -> None:
    with pytest.raises(FormatError) as error:
        opened(tmp_path, write_kdump(make_memory(11).pages, split=(20, 10)))
    assert error.value.field == "start_pfn"


def test_huge_bitmap(tmp_path: Path) -> None:
    data = bytearray(write_kdump(make_memory(11).pages))
    struct.pack_into("<I", data, BITMAP_AT, 0xFFFFFFFF)
    with pytest.raises(UnsupportedError, match="bitmap"):
        opened(tmp_path, bytes(data))


@pytest.mark.parametrize("area", ["offset_vmcoreinfo", "size_vmcoreinfo", "offset_note", "size_note"])
def test_notes_that_point_nowhere(tmp_path: Path, area: str) -> None:
    memory = make_memory(12)
    notes = write_note("CORE", 1, bytes(100))
    data = bytearray(write_kdump(memory.pages, excluded=memory.excluded, notes=notes, vmcoreinfo=b"OSRELEASE=1\n"))
    at = {"offset_vmcoreinfo": 32, "size_vmcoreinfo": 40, "offset_note": 48, "size_note": 56}[area]
    struct.pack_into("<Q", data, 4096 + at, 1 << 50)
    with opened(tmp_path, bytes(data)) as image:
        check_same(image, memory.image(), reads=5)
        assert any("missing" in quirk or "damaged" in quirk for quirk in image.info.quirks)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ((5, 100, 1, 0), "offset"),  # inside the header
        ((-1, 0, 1, 0), "size"),
        ((-1, 1 << 20, 1, 0), "size"),
        ((-1, 100, 0, 0), "size"),  # an uncompressed page must be whole
        ((-1, 100, 3, 0), "flags"),
        ((-1, 100, 0x100, 0), "flags"),
    ],
)
def test_descriptor_wrong(tmp_path: Path, row: tuple[int, int, int, int], field: str) -> None:
    pages = {pfn: b"text %2d " % pfn * 512 for pfn in range(8)}
    data = bytearray(write_kdump(pages))
    at = 4 * 4096 + 24 * 3
    offset = struct.unpack_from("<Q", data, at)[0] if row[0] < 0 else row[0]
    struct.pack_into("<QIIQ", data, at, offset, *row[1:])
    with opened(tmp_path, bytes(data)) as image:
        with pytest.raises(FormatError) as error:
            image.read(3 * 4096, 16)
        assert error.value.field == field
        assert at <= error.value.offset < at + 24
        assert image.read(4 * 4096, 4096) == pages[4]
        with pytest.raises(FormatError):
            image.read_partial(0, 8 * 4096)


@pytest.mark.parametrize("method", ["zlib", "lzo", "snappy", "zstd"])
def test_decompressors_fed_garbage(tmp_path: Path, method: str) -> None:
    page = b"".join(b"%d,%d;" % (number % 7, number % 31 * 1000) for number in range(2000))[:4096]
    clean = write_kdump({0: page}, method=method)
    offset, size = struct.unpack_from("<QI", clean, 4 * 4096)
    chance = random.Random(13)
    path = tmp_path / "vmcore"
    failed = 0
    for _ in range(300):
        data = bytearray(clean)
        for _ in range(chance.randint(1, 4)):
            data[offset + chance.randrange(size)] = chance.randrange(256)
        path.write_bytes(data)
        with open_image(path) as image:
            try:
                assert len(image.read(0, 4096)) == 4096
            except FormatError as error:
                assert error.offset == offset  # noqa: PT017
                assert str(path) in str(error)  # noqa: PT017
                failed += 1
    assert failed > 50


@pytest.mark.parametrize(
    ("method", "packed"),
    [
        ("snappy", b"\xff\xff\xff\xff\x0f" + bytes(100)),  # says 4 GiB
        ("zstd", bytes.fromhex("28b52ffd e0 0000000000000010 010000")),  # says 2^60 bytes
        ("zlib", __import__("zlib").compress(bytes(4 << 20), 9)),  # gives 4 MiB
        ("lzo", __import__("lzallright").LZOCompressor().compress(bytes(1 << 20))),  # gives 1 MiB
    ],
)
def test_output_larger_than_a_page(tmp_path: Path, method: str, packed: bytes) -> None:
    data = bytearray(write_kdump({0: b"x" * 4096}, method=method))
    at = 4 * 4096
    struct.pack_into("<QIIQ", data, at, len(data), min(len(packed), 5000), FLAGS[method], 0)
    with opened(tmp_path, bytes(data) + packed) as image, pytest.raises(FormatError, match=method):
        image.read(0, 4096)


# size and laziness


def test_a_terabyte_opens_at_once(tmp_path: Path) -> None:
    frames = 1 << 28
    small = bytearray(write_kdump({0: b"first".ljust(4096, b"\0")}, max_mapnr=16, method="raw"))
    path = tmp_path / "vmcore"
    half = frames // 8
    descriptors = 2 * 4096 + 2 * half
    struct.pack_into("<I", small, BITMAP_AT, 2 * half // 4096)
    struct.pack_into("<Q", small, 4096 + 96, frames)
    with path.open("wb") as file:
        file.write(small[: 2 * 4096])
        file.truncate(descriptors + (1 << 20))
        for bitmap in (0, half):  # page frame 0, 100,000 of them at 512 GiB, and the last one
            file.seek(2 * 4096 + bitmap)
            file.write(b"\x01")
            file.seek(2 * 4096 + bitmap + half // 2)
            file.write(b"\xff" * 12500)
            file.seek(2 * 4096 + bitmap + half - 1)
            file.write(b"\x80")
        data_at = descriptors + 24 * 100_002
        for number, content in ((0, b"first"), (1, b"second"), (100_001, b"last")):
            file.seek(descriptors + 24 * number)
            file.write(struct.pack("<QIIQ", data_at, 4096, 0, 0))
            file.seek(data_at)
            file.write(content.ljust(4096, b"."))
            data_at += 4096
    began = time.process_time()
    with open_image(path) as image:
        assert time.process_time() - began < 0.1
        assert image.read(0, 5) == b"first"
        assert image.read((1 << 39) + 0, 6) == b"second"
        assert image.read((1 << 40) - 4096, 4) == b"last"
        assert next(iter(image.coverage())).size == 4096
        assert [run.start for run in image.coverage(1 << 32)][-1] == (1 << 40) - 4096
    assert time.process_time() - began < 3.0
    assert os.stat(path).st_blocks * 512 < 1 << 20


def test_close_releases_the_file(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    image = opened(tmp_path, write_kdump(make_memory(1).pages))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    image.close()
    assert len(os.listdir("/proc/self/fd")) == before
