"""FreeBSD's dump partitions: what is inside, at every place, compressed, cleared, damaged; what is not opened."""

from __future__ import annotations

import gzip
import struct
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
import zstandard

from kvm_dbg.errors import CommandError, FormatError, UnknownFormatError, UnsupportedError
from kvm_dbg.image import open_image
from kvm_dbg.image.base import MemoryImage
from tests.unit.image_check import check_same
from tests.writers.elfcore import Load, write_elfcore
from tests.writers.freebsd_dump import CLEARED, SWAP, TEXT, write_header, write_partition
from tests.writers.freebsd_minidump import write_minidump
from tests.writers.memory import make_memory

MEMORY = make_memory(51, 300)._replace(excluded=set())
AVAIL = [(pfn * 4096, (pfn + 1) * 4096) for pfn in sorted(MEMORY.pages)]
DUMP = write_minidump("amd64", MEMORY.pages, avail=AVAIL)
DISK = SWAP * 1000  # in front of a partition, and behind it
EVERY = [(version, block) for version in (1, 2, 3, 4) for block in (512, 4096)]


def opened(tmp_path: Path, data: bytes, **options: object) -> MemoryImage:
    path = tmp_path / "swap"
    path.write_bytes(data)
    return open_image(path, **options)  # type: ignore[arg-type]


def details(image: MemoryImage) -> dict[str, str]:
    return dict(image.info.details)


@pytest.mark.parametrize(("version", "block"), EVERY)
def test_dump_at_the_end_of_a_partition(tmp_path: Path, version: int, block: int) -> None:
    with opened(tmp_path, write_partition(DUMP, version=version, block=block)) as image:
        check_same(image, MEMORY.image())
        info = image.info
        assert (info.format, info.system, info.machine, info.complete) == (
            "freebsd-minidump",
            "FreeBSD",
            "x86_64",
            True,
        )
        found = details(image)
        assert found["dump header"] == f"version {version}, as savecore wants it"
        assert {
            name: found[name] for name in ("hostname", "kernel version", "panic", "dump time", "dump architecture")
        } == {
            "hostname": "panicked.example.org",
            "kernel version": "FreeBSD 14.1-RELEASE releng/14.1 GENERIC",
            "panic": "kdb_sysctl_panic",
            "dump time": "2023-11-14 22:13:20 UTC",
            "dump architecture": "amd64",
        }
        assert "dump compression" not in found


@pytest.mark.parametrize(("version", "block"), EVERY)
def test_partition_that_starts_with_its_header(tmp_path: Path, version: int, block: int) -> None:
    whole = write_partition(DUMP, version=version, block=block, before=0)
    with opened(tmp_path, whole) as image:
        check_same(image, MEMORY.image())
    with opened(tmp_path, whole + DISK) as image:  # more than the partition was copied
        check_same(image, MEMORY.image())
    with opened(tmp_path, whole[:-block] + DISK) as image:  # and its last header is lost
        check_same(image, MEMORY.image())
        assert "differ" in details(image)["dump header"]


@pytest.mark.parametrize(("version", "block"), EVERY)
def test_offset_of_either_header(tmp_path: Path, version: int, block: int) -> None:
    partition = write_partition(DUMP, version=version, block=block, before=0)
    disk = DISK[: 100 * 512] + partition + DISK
    for offset in (100 * 512, 100 * 512 + len(partition) - block):
        for options in ({}, {"format": "freebsd-dump"}):
            with opened(tmp_path, disk, offset=offset, **options) as image:
                check_same(image, MEMORY.image(), reads=20)
    with opened(tmp_path, disk, format="freebsd-dump") as image:  # it is searched for
        check_same(image, MEMORY.image(), reads=20)
    with pytest.raises(UnknownFormatError, match=r"no header .* at offset 0x200"):
        opened(tmp_path, disk, offset=512, format="freebsd-dump")
    with pytest.raises((UnknownFormatError, CommandError)):
        opened(tmp_path, disk, offset=512)


@pytest.mark.parametrize(("number", "pack"), [(1, gzip.compress), (2, zstandard.compress)])
@pytest.mark.parametrize("version", [3, 4])
def test_compressed_dumps(tmp_path: Path, number: int, pack: object, version: int) -> None:
    assert callable(pack)
    # the rest of what was reserved has what was swapped out before
    partition = bytearray(write_partition(pack(DUMP), version=version, compression=number, room=1 << 16))
    partition[-512 - 4096 : -512] = SWAP[:1] * 4096
    for cache in (None, str(tmp_path / "cache"), str(tmp_path / "cache")):
        with opened(tmp_path, bytes(partition), cache_directory=cache) as image:
            check_same(image, MEMORY.image(), reads=20)
            found = details(image)
            assert found["container"] == f"{('gzip', 'zstd')[number - 1]}, dump partition"
            assert found["dump compression"] == ("gzip", "zstd")[number - 1]
            assert found["panic"] == "kdb_sysctl_panic"


def test_partition_inside_a_compressed_file(tmp_path: Path) -> None:
    with opened(tmp_path, gzip.compress(write_partition(DUMP))) as image:
        check_same(image, MEMORY.image(), reads=20)
        assert details(image)["container"] == "dump partition, gzip"


def test_full_dump_inside(tmp_path: Path) -> None:
    with opened(tmp_path, write_partition(write_elfcore([Load(0x1000, b"a" * 4096)]))) as image:
        assert image.info.format == "elf"
        assert image.read(0x1800, 4) == b"aaaa"
        assert details(image)["hostname"] == "panicked.example.org"


def test_dump_that_savecore_has_saved(tmp_path: Path) -> None:
    last = CLEARED.ljust(20, b"\0") + write_header(len(DUMP))[20:]  # the parity stays
    with opened(tmp_path, write_partition(DUMP, last=last)) as image:
        check_same(image, MEMORY.image(), reads=20)
        assert "cleared" in details(image)["dump header"]


def test_headers_that_differ_are_said(tmp_path: Path) -> None:
    for first in (bytes(512), write_header(len(DUMP), version=4, block=4096)):
        with opened(tmp_path, write_partition(DUMP, first=first)) as image:
            check_same(image, MEMORY.image(), reads=20)
            assert "differ" in details(image)["dump header"]


def test_partition_that_is_cut_off(tmp_path: Path) -> None:
    whole = write_partition(DUMP, before=0)
    with opened(tmp_path, whole[: len(whole) // 2]) as image:
        assert not image.info.complete
        first = min(MEMORY.pages)
        assert image.read(first * 4096, 4096) == MEMORY.pages[first]
    with pytest.raises(FormatError, match="ends at its header"):
        opened(tmp_path, whole[:512])
    for size in range(20, 512, 4):  # inside the header
        with pytest.raises(FormatError, match="inside the header"):
            opened(tmp_path, whole[:size])


@pytest.mark.parametrize(
    ("header", "error", "text"),
    [
        (write_header(len(DUMP), parity=0), FormatError, "parity"),
        (write_header(len(DUMP), version=5), UnsupportedError, "version 5"),
        (write_header(len(DUMP), version=0), UnsupportedError, "version 0"),
        (write_header(0), FormatError, "dumplength"),
        (write_header(len(DUMP), extent=len(DUMP) - 1), FormatError, "dumplength"),
        (write_header(len(DUMP), block=0), FormatError, "blocksize"),
        (write_header(len(DUMP), block=1000), FormatError, "blocksize"),
        (write_header(len(DUMP), block=1 << 20), FormatError, "blocksize"),
        (write_header(len(DUMP), compression=3), UnsupportedError, "compression 3"),
        (write_header(1 << 63, extent=1 << 63), FormatError, "ends at its header"),
    ],
)
def test_headers_that_cannot_be(tmp_path: Path, header: bytes, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        opened(tmp_path, write_partition(DUMP, first=header, last=header))


def test_every_field_of_a_header_counts(tmp_path: Path) -> None:
    partition = write_partition(DUMP, before=0)
    for at in (*range(20, 72), *range(72, 508, 29), 508, 511):
        broken = bytearray(partition)
        broken[at] ^= 4
        broken[len(partition) - 512 + at] ^= 4
        with pytest.raises(FormatError, match="parity"):
            opened(tmp_path, bytes(broken))


def test_what_is_inside_may_be_unknown(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError):
        opened(tmp_path, write_partition(SWAP * 100))


def test_text_dumps_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"text dump .* savecore"):
        opened(tmp_path, write_partition(DUMP, magic=TEXT))
    for names in (("ddb.txt", "msgbuf.txt"), ("config.txt",), ("panic.txt", "version.txt")):
        out = BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 4
                tar.addfile(info, BytesIO(b"text"))
        for data in (out.getvalue(), gzip.compress(out.getvalue())):
            for options in ({}, {"format": "elf"}):
                with pytest.raises(UnknownFormatError, match=r"a text dump of FreeBSD.*tar -xf"):
                    opened(tmp_path, data, **options)


@pytest.mark.parametrize("version", [2, 3, 4])
def test_encrypted_dumps_are_named(tmp_path: Path, version: int) -> None:
    noise = bytes(range(256)) * 32
    with pytest.raises(UnsupportedError, match=r"encrypted .* decryptcore"):
        opened(tmp_path, write_partition(noise, key=bytes(512), version=version))
    (tmp_path / "vmcore_encrypted.3").write_bytes(noise)
    with pytest.raises(
        UnknownFormatError, match=r"encrypted .*decryptcore .*key\.3 -e vmcore_encrypted\.3 -c vmcore\.3"
    ):
        open_image(tmp_path / "vmcore_encrypted.3")
    for order in "<>":
        (tmp_path / "key.3").write_bytes(b"\1" + bytes(32) + struct.pack(order + "I", 256) + noise[:256])
        with pytest.raises(UnknownFormatError, match="the key of an encrypted dump"):
            open_image(tmp_path / "key.3")
