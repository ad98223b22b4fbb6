"""FreeBSD's dumps and kernel file as savecore, dumpon and people keep them: compressed, or on the dump partition."""

from __future__ import annotations

import gzip
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from kvm_dbg.errors import FormatError, UnknownFormatError, UnsupportedError
from kvm_dbg.image import open_image
from kvm_dbg.kernel import open_kernel, system_of
from kvm_dbg.kernel.base import Kernel
from tests.shared import shared_data, unpack
from tests.writers.freebsd_dump import write_partition

DUMPS = ("vmcore-amd64-full", "vmcore-amd64-minidump")
Pack = Callable[[bytes], bytes]
PACKS: dict[str, Pack] = {
    "gz": lambda data: gzip.compress(data, 1),
    "zst": lambda data: zstandard.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the dumps and the kernel file."""
    directory = tmp_path_factory.mktemp("freebsd")
    for name in DUMPS:
        unpack(shared_data("freebsd") / f"{name}.bz2", directory)
    unpack(shared_data("freebsd") / "kernel-amd64.xz", directory)
    return directory


def check(kernel: Kernel, dump: str) -> None:
    """Assert that threads and stacks are those that stand beside the data."""
    expected: dict[str, Any] = json.loads((shared_data("freebsd") / "expected.json").read_text())[dump]
    threads = list(system_of(kernel).for_each_thread(kernel))
    assert len(threads) == expected["threads"]
    for number, thread in expected["thread"].items():
        frames = system_of(kernel).unwind(kernel, threads[int(number)])
        assert [f"{frame.pc:#x}" for frame in frames] == thread["pc"]


@pytest.mark.parametrize("dump", DUMPS)
@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_vmcore(folder: Path, tmp_path: Path, dump: str, suffix: str) -> None:
    packed = tmp_path / f"vmcore.0.{suffix}"
    packed.write_bytes(PACKS[suffix]((folder / dump).read_bytes()))
    for _ in range(2):  # the second time it comes from the cache
        with open_image(packed, cache_directory=str(tmp_path / "cache")) as image:
            check(open_kernel(image, str(folder / "kernel-amd64")), dump)


@pytest.mark.parametrize("suffix", PACKS)
def test_compressed_kernel_file_that_is_named(folder: Path, tmp_path: Path, suffix: str) -> None:
    packed = tmp_path / f"kernel.{suffix}"
    data = (folder / "kernel-amd64").read_bytes()
    packed.write_bytes(PACKS[suffix](data))
    for dump in DUMPS:
        with open_image(folder / dump) as image:
            kernel = open_kernel(image, str(packed), index_directory=str(tmp_path / "cache"))
            check(kernel, dump)
            # a debugger reads the file as well
            assert Path(str(getattr(kernel, "vmlinux_path", ""))).read_bytes() == data


@pytest.mark.parametrize("suffix", PACKS)
def test_compressed_kernel_file_beside_the_dump(folder: Path, tmp_path: Path, suffix: str) -> None:
    dump = "vmcore-amd64-minidump"
    (tmp_path / "vmcore.0").symlink_to(folder / dump)
    (tmp_path / f"kernel.{suffix}").write_bytes(PACKS[suffix]((folder / "kernel-amd64").read_bytes()))
    with open_image(tmp_path / "vmcore.0") as image:
        check(open_kernel(image, index_directory=str(tmp_path / "cache")), dump)


def test_compressed_kernel_file_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    data = gzip.compress((folder / "kernel-amd64").read_bytes(), 1)
    packed, cache = tmp_path / "kernel.gz", str(tmp_path / "cache")
    with open_image(folder / DUMPS[1]) as image:
        packed.write_bytes(data)
        with pytest.raises(UnsupportedError, match=r"without a cache directory.*decompress"):
            open_kernel(image, str(packed))
        packed.write_bytes(data[: len(data) // 2])
        with pytest.raises(UnknownFormatError, match="ends too early"):
            open_kernel(image, str(packed), index_directory=cache)
        packed.write_bytes(gzip.compress(b"no kernel at all"))
        with pytest.raises(UnknownFormatError, match="no ELF file"):
            open_kernel(image, str(packed), index_directory=cache)
        packed.write_bytes(data[:-8] + bytes(8))
        with pytest.raises(FormatError, match="gzip stream"):
            open_kernel(image, str(packed), index_directory=cache)


@pytest.mark.parametrize("dump", DUMPS)
@pytest.mark.parametrize(("number", "suffix"), [(0, ""), (1, "gz"), (2, "zst")])
def test_dump_partition(folder: Path, tmp_path: Path, dump: str, number: int, suffix: str) -> None:
    data = (folder / dump).read_bytes()
    partition = tmp_path / "ada0p3"
    inside = PACKS[suffix](data) if suffix else data
    partition.write_bytes(write_partition(inside, compression=number, room=0 if not number else 1 << 20))
    try:
        with open_image(partition, cache_directory=str(tmp_path / "cache")) as image:
            check(open_kernel(image, str(folder / "kernel-amd64")), dump)
    finally:
        shutil.rmtree(tmp_path)  # a hundred million bytes
