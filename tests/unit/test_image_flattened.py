"""Flattened streams: records in any order, overwritten, missing; the stream's own damage."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from kvm_dbg.errors import FormatError, UnknownFormatError, UnsupportedError
from kvm_dbg.image import flattened, open_image
from kvm_dbg.image.flattened import FlattenedSource
from kvm_dbg.image.source import FileSource
from tests.writers.flattened import SIGNATURE, write_stream


def opened(tmp_path: Path, data: bytes) -> FlattenedSource:
    path = tmp_path / "stream"
    path.write_bytes(data)
    return FlattenedSource(FileSource(path))


@pytest.mark.parametrize("seed", range(40))
def test_records_that_overwrite_each_other(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    plain = bytearray()
    records = []
    for _ in range(chance.randint(1, 60)):
        offset, data = chance.randrange(5000), chance.randbytes(chance.choice((1, 7, 300, 2000)))
        records.append((offset, data))
        plain.extend(bytes(max(0, offset + len(data) - len(plain))))
        plain[offset : offset + len(data)] = data
    source = opened(tmp_path, write_stream(records))
    assert source.size == len(plain)
    assert source.ended
    assert source.read(0, len(plain) + 100) == plain
    for _ in range(100):
        offset, size = chance.randrange(len(plain) + 50), chance.randrange(3000)
        assert source.read(offset, size) == plain[offset : offset + size]
    source.close()


def test_records_out_of_order_and_gaps(tmp_path: Path) -> None:
    source = opened(tmp_path, write_stream([(300, b"c" * 100), (0, b"a" * 100), (500, b"e")]))
    assert source.read(0, 1000) == b"a" * 100 + bytes(200) + b"c" * 100 + bytes(100) + b"e"
    # a whole stream has zeros between records, as a sparse file would
    assert [tuple(stretch) for stretch in source.for_each_stretch(50, 500)] == [(50, 451, True), (501, 49, False)]
    assert source.is_written(100, 200)
    source.close()


def test_stream_without_end(tmp_path: Path) -> None:
    source = opened(tmp_path, write_stream([(0, b"a" * 100), (300, b"c" * 100)], end=False)[:-40])
    assert not source.ended
    assert source.size == 360
    runs = [(0, 100, True), (100, 200, False), (300, 60, True), (360, 40, False)]
    assert [tuple(stretch) for stretch in source.for_each_stretch(0, 400)] == runs
    assert source.is_written(20, 80)
    assert not source.is_written(20, 81)
    assert not source.is_written(350, 11)
    assert source.read(90, 1000) == b"a" * 10 + bytes(200) + b"c" * 60
    source.close()


def test_signature_with_something_behind_its_end(tmp_path: Path) -> None:
    """Makedumpfile 1.6.8 leaves the signature's last three bytes as they happen to be."""
    path = tmp_path / "stream"
    data = b"x" * 64
    path.write_bytes(SIGNATURE[:13] + b"\x92\xff\xff" + write_stream([(0, data)])[16:])
    with pytest.raises(UnknownFormatError) as caught:
        open_image(path)
    assert "is a text file" in str(caught.value)  # what is in the stream: it was looked through
    source = FlattenedSource(FileSource(path))
    assert source.read(0, 64) == data
    source.close()


def test_data_after_the_end_marker_are_not_records(tmp_path: Path) -> None:
    source = opened(tmp_path, write_stream([(0, b"abc")]) + write_stream([(0, b"xyz")])[4096:])
    assert source.read(0, 10) == b"abc"
    source.close()


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (SIGNATURE, "makedumpfile_header"),
        (SIGNATURE + struct.pack(">qq", 2, 1), "type"),
        (SIGNATURE + struct.pack(">qq", 1, 9), "version"),
        (write_stream([], end=False) + struct.pack(">qq", -5, 4), "offset"),
        (write_stream([], end=False) + struct.pack(">qq", 0, -4), "buf_size"),
        (write_stream([], end=False) + struct.pack(">qq", 0, 1 << 62), "buf_size"),
        (write_stream([], end=False) + bytes(16 * 70000), "buf_size"),  # nothing but empty records
    ],
)
def test_damage(tmp_path: Path, data: bytes, field: str) -> None:
    with pytest.raises(FormatError) as error:
        opened(tmp_path, data)
    assert error.value.field == field


def test_too_many_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flattened, "MAX_RECORDS", 10)
    with pytest.raises(UnsupportedError, match="makedumpfile -R"):
        opened(tmp_path, write_stream([(number, b"x") for number in range(11)]))


def test_empty_stream(tmp_path: Path) -> None:
    source = opened(tmp_path, write_stream([]))
    assert source.size == 0
    assert source.read(0, 10) == b""
    source.close()
