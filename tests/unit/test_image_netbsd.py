"""NetBSD's crash dumps: packed segments, gaps, every truncation, each field wrong once."""

from __future__ import annotations

import random
import resource
import struct
import tracemalloc
from pathlib import Path

import pytest

from kvm_dbg.errors import CommandError, FormatError, NotInImageError, UnknownFormatError, UnsupportedError
from kvm_dbg.image import open_image
from kvm_dbg.image.base import BytesImage, MemoryImage, Presence, Range
from tests.unit.image_check import check_same
from tests.writers.netbsd_kcore import AMD64, I386, midmag, write_kcore, write_partition

CHANCE = random.Random(77)
FULL = {0: CHANCE.randbytes(0x9F000), 0x100000: CHANCE.randbytes(0x30000)}  # a small machine's mem_clusters
SPARSE = {number * 0x3000: CHANCE.randbytes(0x1000 * (1 + number % 2)) for number in range(100)}
SPARC64 = 156
LAYOUT = 16 + 8  # where cpu_kcore_hdr is in a file of amd64


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "netbsd.0.core"
    path.write_bytes(data)
    return path


def opened(tmp_path: Path, data: bytes) -> MemoryImage:
    return open_image(write(tmp_path, data))


def sparse_oracle() -> BytesImage:
    """Return SPARSE with what its gaps must be: left out, but for where no PC has memory."""
    ends = sorted([0, *(paddr + len(data) for paddr, data in SPARSE.items())])
    starts = sorted([*SPARSE, ends[-1]])
    gaps = []
    for start, end in zip(ends, starts, strict=True):
        for low, high in ((start, min(end, 0xA0000)), (max(start, 0x100000), end)):
            if low < high:
                gaps.append((low, high - low))
    return BytesImage(SPARSE, excluded=tuple(gaps))


def test_a_full_dump(tmp_path: Path) -> None:
    with opened(tmp_path, write_kcore(FULL, 0x4C6000)) as image:
        check_same(image, BytesImage(FULL))
        info = image.info
        assert (info.format, info.system, info.machine, info.root) == ("netbsd", "NetBSD", "x86_64", 0x4C6000)
        assert (info.complete, info.byteorder, info.word_bits, info.quirks) == (True, "little", 64, ())
        assert dict(info.details) == {"machine id": "157 (amd64)", "segments": "2"}
        assert image.read_partial(0x9F000, 0x61000).missing == (Range(0x9F000, 0x61000, Presence.HOLE),)


def test_a_sparse_dump(tmp_path: Path) -> None:
    with opened(tmp_path, write_kcore(SPARSE)) as image:
        check_same(image, sparse_oracle())
        assert any("sparse" in quirk for quirk in image.info.quirks)
        with pytest.raises(NotInImageError, match="excluded"):
            image.read(0x1000, 8)


def test_segments_in_any_order(tmp_path: Path) -> None:
    paddrs = list(SPARSE)
    random.Random(1).shuffle(paddrs)
    with opened(tmp_path, write_kcore({paddr: SPARSE[paddr] for paddr in paddrs})) as image:
        check_same(image, sparse_oracle())


def test_neighbours_and_empty_segments(tmp_path: Path) -> None:
    memory = {0: b"a" * 4096, 0x1000: b"", 0x2000: b"b" * 4096}
    with opened(tmp_path, write_kcore(memory)) as image:
        check_same(image, BytesImage(memory))
    memory = {0: b"a" * 4096, 0x1000: b"b" * 4096}
    with opened(tmp_path, write_kcore(memory)) as image:
        check_same(image, BytesImage(memory))
    with opened(tmp_path, write_kcore({})) as image:
        assert list(image.coverage()) == []


def test_larger_headers(tmp_path: Path) -> None:
    with opened(tmp_path, write_kcore(FULL, hdrsize=64, seghdrsize=24)) as image:
        check_same(image, BytesImage(FULL), reads=20)


def test_i386(tmp_path: Path) -> None:
    # I386_KCORE_PAE is a bit of pdppaddr
    with opened(tmp_path, write_kcore(FULL, 0x3FF000 | 0x200, mid=I386)) as image:
        check_same(image, BytesImage(FULL), reads=20)
        assert (image.info.machine, image.info.word_bits, image.info.root) == ("i386", 32, 0x3FF000)
        assert image.info.pae
    with opened(tmp_path, write_kcore(FULL, 0x3FF000, mid=I386)) as image:
        assert (image.info.root, image.info.pae) == (0x3FF000, False)


@pytest.mark.parametrize(
    ("mid", "word"),
    [(156, "sparc64"), (183, "aarch64"), (142, "mips"), (185, "riscv"), (300, "hp300"), (77, "not known")],
)
@pytest.mark.parametrize("order", "<>")
def test_other_machines(tmp_path: Path, mid: int, word: str, order: str) -> None:
    head = midmag(0, mid, 0x8FCA) + struct.pack(f"{order}HHI", 16, 8, 2)
    with pytest.raises(UnsupportedError, match=f"machine id {mid} .*{word}") as error:
        opened(tmp_path, head.ljust(8192, b"\0"))
    assert "netbsd.0.core" in str(error.value)


def test_more_than_4_gib(tmp_path: Path) -> None:
    # c_size of CORE_DATA has 32 bits: savecore writes the low ones of 5 GiB
    size = 5 << 30
    segments = [(0, 0x9F000), (0x100000, size - 0x9F000)]
    path = write(tmp_path, write_kcore({}, segments=segments, data_size=size & 0xFFFFFFFF))
    offset = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(offset + size)
        file.seek(offset + size - 5)
        file.write(b"final")
        file.seek(offset + 0x9F000)
        file.write(b"first")
    with open_image(path) as image:
        assert image.info.complete
        assert not image.info.quirks
        assert image.read(0x100000, 5) == b"first"
        assert image.read(0x100000 + size - 0x9F000 - 5, 5) == b"final"


def test_a_large_sparse_dump_opens_at_once(tmp_path: Path) -> None:
    # 64 GiB in runs of 512 KiB with gaps: more segments than real dumps of that size have
    step, length = 1 << 20, 1 << 19
    segments = [(number * step, length) for number in range(1 << 16)]
    path = write(tmp_path, write_kcore({}, segments=segments, data_size=0))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + length * len(segments))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    with open_image(path) as image:
        assert image.read(0xFFFF * step, 8) == bytes(8)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 2.0  # bounds with much room
    tracemalloc.start()
    try:
        with open_image(path):
            assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_truncated_anywhere(tmp_path: Path) -> None:
    memory = {0: FULL[0][:0x2000], 0x100000: FULL[0x100000][:0x2000]}
    whole = write_kcore(memory)
    headers = len(whole) - 0x4000
    for size in [*range(1, headers + 20, 7), *range(headers + 20, len(whole), 1111)]:
        path = write(tmp_path, whole[:size])
        if size < headers:
            with pytest.raises((FormatError, UnknownFormatError)) as error:
                open_image(path)
            assert str(path) in str(error.value)
            assert size < 12 or isinstance(error.value, FormatError)
            continue
        held = size - headers
        with open_image(path) as image:
            assert not image.info.complete
            assert any("truncated" in quirk for quirk in image.info.quirks)
            expected = [(0, min(held, 0x2000)), (0x100000, max(held - 0x2000, 0))]
            present = [(run.start, run.size) for run in image.coverage() if run.presence is Presence.PRESENT]
            assert present == [run for run in expected if run[1]]
            assert sum(run.size for run in image.coverage()) == 0x4000
            for paddr, count in expected:
                assert count == 0 or image.read(paddr, count) == memory[paddr][:count]
                if count < 0x2000:
                    with pytest.raises(NotInImageError) as missing:
                        image.read(paddr, count + 1)
                    assert (missing.value.address, missing.value.reason) == (paddr + count, "truncated")


@pytest.mark.parametrize(
    ("change", "field", "offset"),
    [
        ({"hdrsize": 8}, "c_hdrsize", 4),
        ({"hdrsize": 0x1001}, "c_hdrsize", 4),
        ({"seghdrsize": 0x2000}, "c_seghdrsize", 6),
        ({"nseg": 0}, "c_nseg", 8),
        ({"nseg": 3}, "c_nseg", 8),
        ({"nseg": 0x02000000}, "c_nseg", 8),
        ({"cpu_midmag": midmag(1, 0, 0x8FCA)}, "c_midmag", 16),
        ({"cpu_midmag": midmag(2, 0, 0x8FAC)}, "c_midmag", 16),
        ({"cpu_size": 8}, "c_size", 20),
        ({"cpu_size": 40}, "nmemsegs", 32),
        ({"cpu_size": 800}, "c_midmag", 824),
        ({"cpu_size": 0xFFFFFFF0}, "kcore_seg", None),
        ({"nmemsegs": 1 << 63}, "nmemsegs", 32),
        ({"nmemsegs": 1 << 21}, "nmemsegs", 32),
        ({"nmemsegs": 33}, "nmemsegs", 32),
        ({"root": 1 << 60}, "ptdpaddr", 24),
        ({"data_midmag": midmag(1, 0, 0x8FAC)}, "c_midmag", 528),
        ({"data_midmag": midmag(2, 0, 0x8FCA)}, "c_midmag", 528),
        ({"segments": [(0, 0x9F000), (0x9E000, 0x1000)]}, r"memsegs\[1\]", 56),
        ({"segments": [(0x5000, 0x1000), (0x1000, 0x8000)]}, r"memsegs\[0\]", 40),
        ({"segments": [(0, 0x1000), ((1 << 64) - 0x1000, 0x2000)]}, r"memsegs\[1\]", 56),
        ({"segments": [(0, 0x1000), (0x100000, 1 << 52)]}, r"memsegs\[1\]", 56),
        ({"segments": [(0, 0x1000), (0, 0x1000)]}, r"memsegs\[1\]", 56),
    ],
)
def test_each_field_wrong(tmp_path: Path, change: dict[str, object], field: str, offset: int | None) -> None:
    data = write_kcore(FULL, **change)  # type: ignore[arg-type]
    with pytest.raises(FormatError, match=field) as error:
        opened(tmp_path, data)
    assert offset in (None, error.value.offset)
    assert "netbsd.0.core" in str(error.value)


def test_sizes_that_the_file_does_not_have(tmp_path: Path) -> None:
    segments = [(0, 0x1000), (0x100000, 1 << 50)]
    with opened(tmp_path, write_kcore({0: FULL[0][:0x3000]}, segments=segments)) as image:
        assert not image.info.complete
        assert list(image.coverage()) == [
            Range(0, 0x1000, Presence.PRESENT),
            Range(0x100000, 0x2000, Presence.PRESENT),
            Range(0x102000, (1 << 50) - 0x2000, Presence.TRUNCATED),
        ]


def test_a_size_of_memory_that_lies_is_told(tmp_path: Path) -> None:
    with opened(tmp_path, write_kcore(FULL, data_size=4096)) as image:
        check_same(image, BytesImage(FULL), reads=10)
        assert any("c_size is 4096" in quirk for quirk in image.info.quirks)
    with opened(tmp_path, write_kcore(FULL) + bytes(100)) as image:
        assert any("100 bytes at the end" in quirk for quirk in image.info.quirks)


def test_what_only_looks_like_a_dump(tmp_path: Path) -> None:
    for head in (b"\x00\x9d\x8f\xca", b"\x04\x9d\x8f\xab" + bytes(8), midmag(0, 77, 0x8FCA) + b"\xff" * 8):
        with pytest.raises(UnknownFormatError):
            opened(tmp_path, head.ljust(5000, b"\xee") if len(head) > 4 else head)


# the dump partition


def test_a_partition_that_starts_with_a_dump(tmp_path: Path) -> None:
    with opened(tmp_path, write_partition(FULL, 0x4C6000)) as image:
        check_same(image, BytesImage(FULL), reads=20)
        info = image.info
        assert (info.format, info.system, info.root, info.complete) == ("netbsd-dump", "NetBSD", 0x4C6000, True)


@pytest.mark.parametrize("offset", [512, 4096, (1 << 20) - 512, 3 << 20])
def test_a_dump_further_in(tmp_path: Path, offset: int) -> None:
    # at the end of the partition if it fits, else one page from the start; what was swapped out before is around it
    dump = write_partition(SPARSE)
    path = write(tmp_path, random.Random(4).randbytes(offset) + dump + b"swapped out" * 100)
    with open_image(path, format="netbsd-dump", offset=offset) as image:
        check_same(image, sparse_oracle(), reads=20)
        assert dict(image.info.details)["offset"] == hex(offset)
    with open_image(path, format="netbsd-dump") as image:
        assert dict(image.info.details)["offset"] == hex(offset)
    with pytest.raises(FormatError, match="c_midmag") as error:
        open_image(path, format="netbsd-dump", offset=offset + 512)
    assert error.value.offset == offset + 512


@pytest.mark.parametrize("mid", [I386, AMD64])
def test_a_dump_of_either_machine_is_found(tmp_path: Path, mid: int) -> None:
    noise = bytearray(random.Random(5).randbytes(1 << 20))
    noise[0x1000:0x1004] = midmag(1, SPARC64, 0x8FCA)  # swapped out by chance, or an older dump
    path = write(tmp_path, bytes(noise) + write_partition(FULL, 0x3FF000, mid=mid))
    with open_image(path, format="netbsd-dump") as image:
        assert dict(image.info.details)["offset"] == "0x100000"
        assert image.info.machine == {I386: "i386", AMD64: "x86_64"}[mid]


def test_a_partition_of_another_machine_is_named(tmp_path: Path) -> None:
    dump = midmag(1, SPARC64, 0x8FCA) + struct.pack(">I", 504) + bytes(4096)
    for data in (dump, bytes(4096) + dump):
        with pytest.raises(UnsupportedError, match=r"machine id 156 \(sparc64\)"):
            open_image(write(tmp_path, data), format="netbsd-dump")


def test_no_dump_on_the_partition(tmp_path: Path) -> None:
    dump = write_partition(FULL)
    for data in (bytes(8192), b"x" * 100 + dump, b"\4"):
        with pytest.raises(UnknownFormatError, match="no crash dump"):
            open_image(write(tmp_path, data), format="netbsd-dump")
    with pytest.raises(FormatError, match="kcore_seg"):
        open_image(write(tmp_path, bytes(8192)), format="netbsd-dump", offset=1 << 40)
    broken = dump[:512].replace(struct.pack("<Q", 2), struct.pack("<Q", 1 << 40))
    with pytest.raises(FormatError, match="nmemsegs"):
        open_image(write(tmp_path, broken), format="netbsd-dump")
    with open_image(write(tmp_path, broken.ljust(8192, b"\0") + dump), format="netbsd-dump") as image:
        assert dict(image.info.details)["offset"] == "0x2000"


def test_a_truncated_partition(tmp_path: Path) -> None:
    dump = write_partition(FULL)
    with opened(tmp_path, dump[:-0x1000]) as image:
        assert not image.info.complete
        assert image.read_partial(0x12F000, 0x1000).missing == (Range(0x12F000, 0x1000, Presence.TRUNCATED),)


def test_an_offset_is_for_partitions(tmp_path: Path) -> None:
    for data, name in ((write_kcore(FULL), "netbsd"), (bytes(1 << 20), "raw")):
        with pytest.raises(CommandError, match="offset is for"):
            open_image(write(tmp_path, data), format=name, offset=512)
