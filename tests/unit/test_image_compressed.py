"""Compressed dumps: what is inside, truncation at every place, damage, members, the cache, and bombs."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from kvm_dbg.errors import FileAccessError, FormatError, KvmDbgError, UnknownFormatError, UnsupportedError
from kvm_dbg.image import compressed, open_image
from kvm_dbg.image.base import BytesImage
from kvm_dbg.image.compressed import CompressedSource, find_compression
from kvm_dbg.image.source import FileSource
from tests.unit.image_check import check_same
from tests.writers.elfcore import Load, write_elfcore
from tests.writers.flattened import write_flattened
from tests.writers.kdump import write_kdump
from tests.writers.lime import write_lime

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}
NOISE = random.Random(3).randbytes(30000)
DATA = NOISE + bytes(200_000) + NOISE[:777] + bytes(70_000)
KINDS = pytest.mark.parametrize("kind", COMPRESS)


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "file"
    path.write_bytes(data)
    return path


def unpack(path: Path, directory: Path | None = None, lines: list[str] | None = None) -> CompressedSource:
    stream = FileSource(path)
    compression = find_compression(stream)
    assert compression is not None
    try:
        return CompressedSource(
            stream,
            compression,
            directory=None if directory is None else str(directory),
            progress=None if lines is None else lines.append,
        )
    except BaseException:
        stream.close()
        raise


def content(source: CompressedSource) -> bytes:
    try:
        return source.read(0, source.size + 10)
    finally:
        source.close()


@KINDS
def test_inside(tmp_path: Path, kind: str) -> None:
    source = unpack(write(tmp_path, COMPRESS[kind](DATA)))
    assert (source.size, source.ended, source.container) == (len(DATA), True, kind)
    assert source.read(29990, 20) == DATA[29990:30010]
    mapped = source.map()
    assert mapped is not None
    assert mapped[:] == DATA
    source.close()


@KINDS
def test_several_members_and_zeros_after_them(tmp_path: Path, kind: str) -> None:
    pack = COMPRESS[kind]
    data = pack(DATA[:20000]) + pack(DATA[20000:20001]) + pack(DATA[20001:]) + bytes(70_000)
    assert content(unpack(write(tmp_path, data))) == DATA


def test_members_that_end_at_a_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = compressed.COMPRESSIONS
    for kind, pack in COMPRESS.items():
        for size in range(1, 12):
            monkeypatch.setattr(compressed, "COMPRESSIONS", [entry._replace(slice_size=size) for entry in known])
            assert content(unpack(write(tmp_path, pack(b"one") + pack(b"two")))) == b"onetwo", (kind, size)


def test_zstd_with_skippable_frames(tmp_path: Path) -> None:
    # RFC 8878, 3.1.2: magic 0x184D2A5?, size, any bytes; pzstd starts its files with one
    skippable = (0x184D2A50).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"any."
    pack = COMPRESS["zstd"]
    data = skippable + pack(b"one") + skippable + pack(b"two") + skippable
    assert content(unpack(write(tmp_path, data))) == b"onetwo"


@KINDS
def test_truncated_anywhere(tmp_path: Path, kind: str) -> None:
    plain = NOISE[:3000]
    whole = COMPRESS[kind](plain) + COMPRESS[kind](plain)
    first = len(COMPRESS[kind](plain))
    for size in range(8, len(whole), 61):
        try:
            source = unpack(write(tmp_path, whole[:size]), tmp_path / "cache")
        except UnknownFormatError:
            assert size < first  # nothing came out yet
            continue
        assert source.ended is (size == first)
        data = content(source)
        assert (plain + plain).startswith(data)
        assert len(data) >= (len(plain) if size >= first else 0)
        assert list((tmp_path / "cache" / "image").iterdir()) == [], "what is not whole is not kept"


@KINDS
def test_damage_is_an_error(tmp_path: Path, kind: str) -> None:
    data = bytearray(COMPRESS[kind](DATA))
    data[len(data) // 2] ^= 0x10
    data[len(data) // 2 + 1] ^= 0xFF
    path = write(tmp_path, bytes(data))
    with pytest.raises(FormatError, match=f"{kind} stream") as error:
        unpack(path, tmp_path / "cache")
    assert str(path) in str(error.value)
    assert list((tmp_path / "cache" / "image").iterdir()) == []


@KINDS
def test_other_bytes_after_the_end(tmp_path: Path, kind: str) -> None:
    packed = COMPRESS[kind](DATA)
    with pytest.raises(FormatError, match="not another one") as error:
        unpack(write(tmp_path, packed + b"other bytes"))
    assert error.value.offset == len(packed)


@KINDS
def test_nothing_inside(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UnknownFormatError, match="nothing inside"):
        open_image(write(tmp_path, COMPRESS[kind](b"")))


def test_mutants(tmp_path: Path) -> None:
    chance = random.Random(9)
    for kind, pack in COMPRESS.items():
        seed = pack(DATA)
        answers: set[bool | None] = set()
        for _ in range(150):
            data = bytearray(seed)
            for _ in range(chance.choice((1, 2, 5))):
                data[chance.randrange(len(data) if chance.random() < 0.7 else 40)] = chance.randrange(256)
            path = write(tmp_path, bytes(data))
            with closing(FileSource(path)) as stream:
                if find_compression(stream) is None:
                    continue
            try:
                answers.add(content(unpack(path)) == DATA)
            except KvmDbgError:
                answers.add(None)
        assert None in answers, kind


def test_the_cache(tmp_path: Path) -> None:
    path = write(tmp_path, COMPRESS["gzip"](DATA))
    cache = tmp_path / "cache"
    assert content(unpack(path, cache)) == DATA
    (kept,) = (cache / "image").iterdir()
    assert kept.read_bytes() == DATA
    status = kept.stat()
    assert status.st_mode & 0o777 == 0o600  # a dump holds everybody's secrets
    assert status.st_blocks * 512 < len(DATA), "zeros are holes"
    os.utime(kept, (1, 1))
    assert content(unpack(path, cache)) == DATA
    assert kept.stat().st_mtime > 1, "it was used, and notes that"
    kept.write_bytes(b"found, not made")
    assert content(unpack(path, cache)) == b"found, not made"
    os.utime(kept, (1, 1))
    path.write_bytes(COMPRESS["gzip"](DATA + b"."))
    assert content(unpack(path, cache)) == DATA + b"."
    assert not kept.exists(), "unused for long"
    assert len(list((cache / "image").iterdir())) == 1


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    assert content(unpack(write(tmp_path, COMPRESS["xz"](DATA)), tmp_path / "cache")) == DATA


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(data: bytes) -> Iterator[bytes]:
        yield bytes(compressed.HEAD)
        yield b"more"
        raise KeyboardInterrupt

    class Interrupted:
        eof = False
        unused_data = b""
        feed = staticmethod(interrupted)

    entry = compressed.COMPRESSIONS[0]
    monkeypatch.setattr(compressed, "COMPRESSIONS", (entry._replace(decoder=Interrupted),))
    with pytest.raises(KeyboardInterrupt):
        unpack(write(tmp_path, COMPRESS["gzip"](DATA)), tmp_path / "cache")
    assert list((tmp_path / "cache" / "image").iterdir()) == []


@KINDS
def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(compressed, "MAX_SIZE", 5 << 20)
    with pytest.raises(UnsupportedError, match="5242880 bytes"):
        unpack(write(tmp_path, COMPRESS[kind](bytes(40 << 20))), tmp_path / "cache")
    monkeypatch.setattr(compressed, "SPARE", 1 << 62)
    with pytest.raises(FileAccessError, match="no room"):
        unpack(write(tmp_path, COMPRESS[kind](DATA)), tmp_path / "cache")
    assert list((tmp_path / "cache" / "image").iterdir()) == []


def test_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, COMPRESS["gzip"](random.Random(1).randbytes(1 << 20)))
    lines: list[str] = []
    unpack(path, None, lines).close()
    assert lines == [], "small files are quick"
    monkeypatch.setattr(compressed, "_QUIET", 0)
    unpack(path, None, lines).close()
    shares = [int(line.removeprefix(f"decompressing {path}: ").removesuffix(" %")) for line in lines]
    assert shares == sorted(shares)
    assert 5 < len(shares) <= 10
    assert all(0 < share <= 100 for share in shares)


# through open_image


@KINDS
def test_every_format_may_be_compressed(tmp_path: Path, kind: str) -> None:
    ram = random.Random(5).randbytes(2 << 20)
    pages = dict.fromkeys((0, 3, 4), NOISE[:4096])
    held = {0: NOISE[:4096], 3 * 4096: NOISE[:4096] * 2}
    files: dict[str, tuple[bytes, dict[int, bytes], str]] = {
        "elf": (write_elfcore([Load(0x1000, NOISE)]), {0x1000: NOISE}, kind),
        "lime": (write_lime([(0, NOISE)]), {0: NOISE}, kind),
        "raw": (ram, {0: ram}, kind),
        "kdump": (write_flattened(write_kdump(pages), 700), held, f"flattened, {kind}"),
    }
    for name, (data, memory, container) in files.items():
        path = write(tmp_path, COMPRESS[kind](data))
        with open_image(path, cache_directory=str(tmp_path / "cache")) as image:
            info = image.info
            assert (info.format, info.complete, image.paths) == (name, True, (str(path),))
            assert dict(info.details)["container"] == container
            if name != "kdump":
                check_same(image, BytesImage(memory), reads=20)
            for paddr, expected in memory.items():
                assert image.read(paddr, len(expected)) == expected


def test_raw_ram_that_was_cut_says_so(tmp_path: Path) -> None:
    ram = random.Random(5).randbytes(4 << 20)
    packed = gzip.compress(ram, mtime=0)
    # stored blocks of deflate, so that a cut of the file is a cut of the same size inside
    with open_image(write(tmp_path, packed[: len(packed) // 2]), format="raw") as image:
        assert not image.info.complete
        assert any("truncated" in quirk for quirk in image.info.quirks)
        assert image.read(0, 4096) == ram[:4096]


def test_what_is_no_image_is_not_decompressed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    tar = bytearray(4 << 20)
    tar[257:262] = b"ustar"
    for data, word in ((b"hello, world\n" * 1000, "text"), (bytes(tar), "tar archive")):
        with pytest.raises(UnknownFormatError, match=word):
            open_image(write(tmp_path, gzip.compress(data)), cache_directory=str(cache))
    assert list((cache / "image").iterdir()) == []


def test_a_failed_open_leaves_no_file_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for data in (b"text\n", DATA[:5000], b"makedumpfile\0\0\0\0"):
        for pack in COMPRESS.values():
            with pytest.raises((FormatError, UnknownFormatError)):
                open_image(write(tmp_path, pack(data)))
    assert os.listdir("/proc/self/fd") == before
