"""ELF vmcores: classes, byte orders, overlapping segments, filtered and truncated ones, damage, size."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import pytest

from kvm_dbg.errors import FormatError, NotInImageError, UnknownFormatError
from kvm_dbg.image import open_image
from kvm_dbg.image.base import BytesImage, MemoryImage, Presence, Range
from tests.unit.image_check import check_same
from tests.writers.elfcore import Load, write_elfcore, write_note
from tests.writers.flattened import write_flattened

INFO = write_note("VMCOREINFO", 0, b"OSRELEASE=6.1.0-42\n")


def opened(tmp_path: Path, data: bytes) -> MemoryImage:
    path = tmp_path / "vmcore"
    path.write_bytes(data)
    return open_image(path)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize(("bits", "order"), [(64, "<"), (64, ">"), (32, "<"), (32, ">")])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("xnum", [False, True])
def test_classes_and_orders(tmp_path: Path, bits: int, order: str, flat: bool, xnum: bool) -> None:
    memory = {0: noise(30000, 1), 0x10000: noise(4096, 2), 0x11000: noise(5000, 3)}
    notes = write_note("VMCOREINFO", 0, b"OSRELEASE=6.1.0-42\n", order)
    data = write_elfcore([Load(*item) for item in memory.items()], notes, bits=bits, order=order, xnum=xnum)
    with opened(tmp_path, write_flattened(data) if flat else data) as image:
        check_same(image, BytesImage(memory))
        facts = image.info
        assert (facts.word_bits, facts.byteorder) == (bits, "little" if order == "<" else "big")
        assert (facts.format, facts.machine, facts.release, facts.complete) == ("elf", "x86_64", "6.1.0-42", True)


def test_geometry_that_is_not_needed(tmp_path: Path) -> None:
    # as QEMU writes it: e_ehsize 8 (the writer's always), program headers at 192
    data = write_elfcore([Load(0, b"abc" * 2000)], phoff=192)
    assert struct.unpack_from("<H", data, 52)[0] == 8
    with opened(tmp_path, data) as image:
        assert image.read(3000, 3) == b"abc"


def test_segments_in_any_order(tmp_path: Path) -> None:
    memory = {start: noise(4096, start) for start in range(0, 40960, 8192)}
    loads = [Load(*item) for item in memory.items()]
    random.Random(1).shuffle(loads)
    with opened(tmp_path, write_elfcore(loads)) as image:
        check_same(image, BytesImage(memory))


def test_kernel_text_twice(tmp_path: Path) -> None:
    ram = noise(64 << 10)
    text = Load(0x4000, ram[0x4000:0x9000], vaddr=0xFFFFFFFF81000000)
    with opened(tmp_path, write_elfcore([text, Load(0, ram)], INFO)) as image:
        check_same(image, BytesImage({0: ram}))
        assert image.info.producer is not None
        assert image.info.producer.startswith("/proc/vmcore")


def test_overlapping_mappings(tmp_path: Path) -> None:
    # paging on: one range of memory for each place where it is mapped, cut in many ways
    ram = noise(1 << 17)
    chance = random.Random(2)
    loads = []
    covered: set[int] = set()
    for number in range(60):
        page, count = chance.randrange(30), chance.randint(1, 5)
        loads.append(
            Load(page * 4096, ram[page * 4096 : (page + count) * 4096], vaddr=0xFFFF888000000000 + number * 65536)
        )
        covered |= {page + i for i in range(count) if page + i < 32}
    oracle = BytesImage({page * 4096: ram[page * 4096 : (page + 1) * 4096] for page in covered})
    with opened(tmp_path, write_elfcore(loads, write_note("QEMU", 0, bytes(440)))) as image:
        check_same(image, oracle)
        assert any("paging" in quirk for quirk in image.info.quirks)


def test_present_bytes_win_over_excluded_ones(tmp_path: Path) -> None:
    ram = noise(8192)
    loads = [Load(0, b"", 65536), Load(4096, ram), Load(0, b"", 4096)]
    with opened(tmp_path, write_elfcore(loads)) as image:
        assert list(image.coverage()) == [
            Range(0, 4096, Presence.EXCLUDED),
            Range(4096, 8192, Presence.PRESENT),
            Range(12288, 65536 - 12288, Presence.EXCLUDED),
        ]
        assert image.read(4096, 8192) == ram


def test_excluded_tail(tmp_path: Path) -> None:
    with opened(tmp_path, write_elfcore([Load(0x2000, b"x" * 4096, 0x5000), Load(0x9000, b"y" * 10)])) as image:
        check_same(image, BytesImage({0x2000: b"x" * 4096, 0x9000: b"y" * 10}, excluded=((0x3000, 0x4000),)))
        assert image.info.producer is not None
        assert image.info.producer.startswith("makedumpfile")
        with pytest.raises(NotInImageError, match="excluded"):
            image.read(0x3000, 1)


@pytest.mark.parametrize("flat", [False, True])
def test_every_truncation(tmp_path: Path, flat: bool) -> None:
    ram = {0: noise(9000, 4), 0x8000: noise(3000, 5)}
    whole = write_elfcore([Load(*item) for item in ram.items()], INFO)
    data = write_flattened(whole, 600) if flat else whole
    for size in range(1, len(data), 7):
        path = tmp_path / "vmcore"
        path.write_bytes(data[:size])
        try:
            image = open_image(path)
        except (FormatError, UnknownFormatError):
            assert size < (4096 + 16 + 64 + 3 * 56 if flat else 64 + 3 * 56)
            continue
        with image:
            assert not image.info.complete
            covered = 0
            for run in image.coverage():
                for start, content in ram.items():
                    if start <= run.start < start + len(content) and run.presence is Presence.PRESENT:
                        part = content[run.start - start : run.end - start]
                        assert image.read(run.start, run.size) == part
                        covered += run.size
            lost = sum(run.size for run in image.coverage() if run.presence is Presence.TRUNCATED)
            assert covered + lost == 12000


@pytest.mark.parametrize(
    ("offset", "layout", "value", "field"),
    [
        (64 + 56 + 32, "<Q", 1 << 40, "p_filesz"),  # more than p_memsz
        (64 + 56 + 24, "<Q", (1 << 64) - 4096, "p_paddr"),  # past 64 bits
        (56, "<H", 40000, "e_phoff"),
        (16, "<H", 99, "e_type"),
        (4, "<B", 9, "EI_CLASS"),
    ],
)
def test_field_wrong(tmp_path: Path, offset: int, layout: str, value: int, field: str) -> None:
    data = bytearray(write_elfcore([Load(0x1000, b"x" * 8192)], INFO))
    struct.pack_into(layout, data, offset, value)
    with pytest.raises(FormatError) as error:
        opened(tmp_path, bytes(data))
    assert error.value.field == field


def test_offset_past_the_end_is_truncated_memory(tmp_path: Path) -> None:
    data = bytearray(write_elfcore([Load(0x1000, b"x" * 8192)]))
    struct.pack_into("<Q", data, 64 + 56 + 8, 1 << 45)
    with opened(tmp_path, bytes(data)) as image:
        assert list(image.coverage()) == [Range(0x1000, 8192, Presence.TRUNCATED)]


def test_damaged_notes_cost_the_notes_only(tmp_path: Path) -> None:
    notes = write_note("CORE", 1, bytes(336)) + struct.pack("<III", 5, 1 << 30, 0) + b"QEMU\0\0\0\0"
    with opened(tmp_path, write_elfcore([Load(0, b"x" * 4096)], notes)) as image:
        assert [note.name for note in image.notes] == ["CORE"]
        assert any("n_descsz" in quirk for quirk in image.info.quirks)
        assert image.read(0, 1) == b"x"


def test_virtual_segments_of_kcore_are_left_out(tmp_path: Path) -> None:
    loads = [Load((1 << 64) - 1, b"v" * 4096, vaddr=0xFFFFC90000000000), Load(0, b"p" * 4096)]
    with opened(tmp_path, write_elfcore(loads)) as image:
        assert list(image.coverage()) == [Range(0, 4096, Presence.PRESENT)]


@pytest.mark.parametrize(("kind", "word"), [(1, "module"), (2, "vmlinux"), (3, "library")])
def test_other_elf_files(tmp_path: Path, kind: int, word: str) -> None:
    with pytest.raises(UnknownFormatError, match=word):
        opened(tmp_path, write_elfcore([], kind=kind))


def test_core_of_a_process(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError, match="process"):
        opened(tmp_path, write_elfcore([Load(0, b"x", vaddr=0x400000)], write_note("CORE", 6, bytes(160))))


def test_a_terabyte_opens_at_once(tmp_path: Path) -> None:
    data = bytearray(write_elfcore([Load(0, b"start")], INFO))
    struct.pack_into("<QQ", data, 64 + 56 + 32, 1 << 40, 1 << 40)
    path = tmp_path / "vmcore"
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate(len(data) - 5 + (1 << 40))
        file.seek(-4, 2)
        file.write(b"last")
    began = time.process_time()
    with open_image(path) as image:
        assert image.read(0, 5) == b"start"
        assert image.read((1 << 40) - 4, 4) == b"last"
        assert list(image.coverage()) == [Range(0, 1 << 40, Presence.PRESENT)]
        assert image.info.complete
    assert time.process_time() - began < 0.2


def test_many_segments(tmp_path: Path) -> None:
    loads = [Load(number * 8192, b"%08d" % number) for number in range(70000)]
    with opened(tmp_path, write_elfcore(loads, xnum=True)) as image:
        assert image.read(69999 * 8192, 8) == b"00069999"


def test_file_that_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(write_elfcore([Load(0, bytes(1 << 20))]))
    with open_image(path) as image:
        with path.open("r+b") as file:
            file.truncate(4096)
        with pytest.raises(Exception, match="shortened"):
            list(image.for_each_chunk())
