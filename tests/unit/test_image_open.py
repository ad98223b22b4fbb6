"""Opening: which format a file is, raw RAM and LiME, and files that are no images."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest

from kvm_dbg.errors import (
    CommandError,
    FileAccessError,
    FormatError,
    NotInImageError,
    UnknownFormatError,
    UnsupportedError,
)
from kvm_dbg.image import FORMATS, open_image
from kvm_dbg.image.base import BytesImage, Presence, Range
from kvm_dbg.image.raw import RawImage
from tests.unit.image_check import check_same
from tests.writers.elfcore import Load, write_elfcore
from tests.writers.kdump import write_kdump
from tests.writers.lime import write_lime

NOISE = random.Random(0).randbytes(1 << 20)


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "file"
    path.write_bytes(data)
    return path


def test_formats_are_ordered_and_raw_is_last() -> None:
    names = ["live", "elf", "kdump", "freebsd-minidump", "lime", "netbsd", "netbsd-dump", "freebsd-dump", "raw"]
    assert [entry.name for entry in FORMATS] == names


# raw RAM


def test_raw_by_its_looks(tmp_path: Path) -> None:
    with open_image(write(tmp_path, NOISE)) as image:
        check_same(image, BytesImage({0: NOISE}), reads=20)
        assert image.info.format == "raw"
        assert any("taken as raw" in quirk for quirk in image.info.quirks)


@pytest.mark.parametrize("data", [NOISE[:-1], NOISE[:4096], b"hello world\n" * (1 << 18)])
def test_what_is_not_taken_as_raw(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UnknownFormatError):
        open_image(write(tmp_path, data))


def test_raw_when_said_so(tmp_path: Path) -> None:
    for data in (b"x" * 10, b"\x7fELF" + NOISE[:4000], b"KDUMP   " + NOISE, b"makedumpfile\0\0\0\0" + NOISE):
        with open_image(write(tmp_path, data), format="raw", base=0x40000000) as image:
            assert image.read(0x40000000, len(data)) == data
            assert image.info.quirks == ()
            with pytest.raises(NotInImageError, match="not memory"):
                image.read(0x3FFFFFFF, 2)


def test_raw_with_a_hole(tmp_path: Path) -> None:
    base, low = 0x1000, 0x81000
    oracle = BytesImage({base: NOISE[: low - base], 0x200000: NOISE[low - base :]})
    with open_image(write(tmp_path, NOISE), base=base, hole=(low, 0x200000)) as image:
        check_same(image, oracle)
    with open_image(write(tmp_path, NOISE), base=base) as image:
        assert isinstance(image, RawImage)
        assert image.read(low, 16) == NOISE[low - base : low - base + 16]
        image.set_hole((low, 0x200000))
        check_same(image, oracle)
        assert image.hole == (low, 0x200000)
        image.set_hole(None)
        check_same(image, BytesImage({base: NOISE}), reads=20)
        image.set_hole((1 << 40, 1 << 41))  # above all memory: nothing is moved
        check_same(image, BytesImage({base: NOISE}), reads=20)


@pytest.mark.parametrize("hole", [(0x1000, 0x1000), (0x2000, 0x1000), (0, 0x9000), (0x2000, (1 << 64) - 4096)])
def test_impossible_hole(tmp_path: Path, hole: tuple[int, int]) -> None:
    with pytest.raises(CommandError, match="hole"):
        open_image(write(tmp_path, NOISE), base=0x1000, hole=hole)


def test_impossible_base(tmp_path: Path) -> None:
    for base in (-1, (1 << 64) - 4096):
        with pytest.raises(CommandError, match="base"):
            open_image(write(tmp_path, NOISE), base=base)


# LiME


@pytest.mark.parametrize("order", ["<", ">"])
def test_lime(tmp_path: Path, order: str) -> None:
    memory = {0x1000: NOISE[:5000], 0x100000: NOISE[5000:9000], 0x3000: NOISE[:10]}
    with open_image(write(tmp_path, write_lime(memory.items(), order=order))) as image:
        check_same(image, BytesImage(memory))
        assert image.info.format == "lime"
        assert image.info.complete


def test_lime_with_padding(tmp_path: Path) -> None:
    one = write_lime([(0x1000, NOISE[:5000])])
    two = write_lime([(0x9000, NOISE[:4096])])
    with open_image(write(tmp_path, one.ljust(8192, b"\0") + two + bytes(100))) as image:
        check_same(image, BytesImage({0x1000: NOISE[:5000], 0x9000: NOISE[:4096]}))
        assert any("100 bytes" in quirk for quirk in image.info.quirks)


def test_lime_truncated_everywhere(tmp_path: Path) -> None:
    data = write_lime([(0x1000, NOISE[:300]), (0x5000, NOISE[300:700])])
    for size in range(1, len(data)):
        path = write(tmp_path, data[:size])
        if size < 32:
            with pytest.raises((FormatError, UnknownFormatError)):
                open_image(path)
            continue
        with open_image(path) as image:
            held = b"".join(chunk for _, chunk in image.for_each_chunk())
            expected = NOISE[: min(size - 32, 300)] + (NOISE[300 : 300 + size - 364] if size > 364 else b"")
            assert held == expected
            assert image.info.complete is (size == 332)  # between two ranges nothing tells


@pytest.mark.parametrize(
    ("offset", "value", "field"), [(332, 1, "magic"), (336, 7, "version"), (16, 0, "e_addr"), (348, 0, "e_addr")]
)
def test_lime_field_wrong(tmp_path: Path, offset: int, value: int, field: str) -> None:
    data = bytearray(write_lime([(0x1000, NOISE[:300]), (0x5000, NOISE[300:700])]))
    struct.pack_into("<I", data, offset, value)
    with pytest.raises(FormatError) as error:
        open_image(write(tmp_path, bytes(data)))
    assert error.value.field == field


def test_lime_of_another_version(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="version 2"):
        open_image(write(tmp_path, write_lime([(0, b"x")], version=2)))


# files that are no images


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\x04\x22\x4d\x18" + NOISE[:100], "lz4"),
        (b"MZ" + bytes(100), "PE"),
        (b"MZ".ljust(0x202, b"\0") + b"HdrS" + bytes(1 << 20), "bootable kernel"),
        (b"QFI\xfb" + bytes((1 << 20) - 4), "qcow2"),
        (b"AVML" + bytes(100), "AVML"),
        (b"hello, world\n", "text"),
        (bytes(100), "zeros"),
        (NOISE[:10], "--format raw"),
        (NOISE[:5000], "--format raw"),
    ],
)
def test_foreign_files(tmp_path: Path, data: bytes, word: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(UnknownFormatError, match=word) as error:
        open_image(path)
    assert str(path) in str(error.value)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, word in (
        (tmp_path / "missing", "No such file"),
        (tmp_path, "directory"),
        (Path("/dev/zero"), "device"),
        (tmp_path / "pipe", "pipe"),
        (Path("nul\0byte"), "null byte"),
    ):
        with pytest.raises(FileAccessError, match=word):
            open_image(path)
    with pytest.raises(UnknownFormatError, match="empty"):
        open_image(write(tmp_path, b""))


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    path = write(tmp_path, NOISE)
    monkeypatch.setattr(os, "open", refuse)  # root may read everything, so a mode would not do
    with pytest.raises(FileAccessError, match="Permission denied"):
        open_image(path)


def test_wrong_arguments(tmp_path: Path) -> None:
    core = tmp_path / "core"
    core.write_bytes(write_elfcore([Load(0, b"x")]))
    dump = tmp_path / "dump"
    dump.write_bytes(write_kdump({0: b"x" * 4096}))
    for path in (core, dump):
        with pytest.raises(CommandError, match="raw RAM"):
            open_image(path, base=0)
    with pytest.raises(CommandError, match="no format"):
        open_image(core, format="elv")
    with pytest.raises(CommandError, match="alone"):
        open_image([core, core])
    with pytest.raises(CommandError, match="no file"):
        open_image([])
    with pytest.raises(UnknownFormatError, match="'kdump'"):
        open_image(core, format="kdump")
    with open_image(core, format="elf") as image:
        assert image.paths == (str(core),)


def test_a_failed_open_leaves_no_file_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for data in (NOISE[:100], b"makedumpfile\0\0\0\0", b"KDUMP   ", write_elfcore([Load(0, b"x")])[:100]):
        with pytest.raises((FormatError, UnknownFormatError)):
            open_image(write(tmp_path, data))
    assert os.listdir("/proc/self/fd") == before


def test_coverage_of_nothing(tmp_path: Path) -> None:
    with open_image(write(tmp_path, write_elfcore([]))) as image:
        assert list(image.coverage()) == []
        assert image.read(0, 0) == b""
        assert image.read_partial(0, 8).missing == (Range(0, 8, Presence.HOLE),)
