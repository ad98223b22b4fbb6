"""Files of modules: compressed ones, those named by build-id, and wrong ones."""

from __future__ import annotations

import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zstandard

from kvm_dbg.errors import CommandError
from kvm_dbg.kernel.base import Module
from kvm_dbg.rsp.module_file import plan_modules
from kvm_dbg.symbols.base import Symbol
from tests.writers.linux_memory import gnu_note, write_vmlinux
from tests.writers.stand_in import Symbols

TEXT = 0xFFFF_FFFF_C000_0000
BUILD_ID = bytes(range(20))
ET_REL = 1
FUNCTIONS = {"shelf_open": 0x0, "shelf_close": 0x40, "twice": 0x80}


def write_module(build_id: bytes = BUILD_ID, **changes: int) -> bytes:
    """Return a module's file, its .text linked at 0."""
    return write_vmlinux(FUNCTIONS | changes, (0x10_0000, b"data"), gnu_note(build_id) if build_id else b"", 62, ET_REL)


def session(cache: Path | None, *, build_id: str | None = BUILD_ID.hex()) -> Any:
    module = Module(
        "shelf",
        TEXT,
        4096,
        build_id=build_id,
        ranges=((TEXT, 0x1000),),
        sections={".text": TEXT, ".init.text": TEXT - 1},
    )
    symbols = Symbols(Symbol(name, TEXT + value, 64, "t", "shelf") for name, value in FUNCTIONS.items())
    system = SimpleNamespace(for_each_module=lambda _: iter([module]), all_symbols=lambda _: symbols)
    directory = str(cache) if cache is not None else None
    return SimpleNamespace(kernel=SimpleNamespace(), system=system, index_directory=directory, request=None)


def plan(folder: Path, cache: Path | None = None, **options: Any) -> dict[str, Any]:
    [found] = plan_modules(session(cache, **options), str(folder))
    return found


def compress_zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(("suffix", "compress"), [("xz", lzma.compress), ("gz", gzip.compress), ("zst", compress_zstd)])
def test_compressed(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    places, cache = tmp_path / "modules" / "kernel" / "fs", tmp_path / "cache"
    places.mkdir(parents=True)
    (places / f"shelf.ko.{suffix}").write_bytes(compress(write_module()))
    found = plan(tmp_path / "modules", cache)
    assert found["problem"] is None
    path = Path(found["file"])
    assert path.is_relative_to(cache)
    assert path.read_bytes() == write_module()
    assert found["sections"] == {".text": hex(TEXT)}  # .init.text is freed, and not in the file
    before = path.stat().st_mtime_ns
    assert plan(tmp_path / "modules", cache)["file"] == str(path)
    assert path.stat().st_mtime_ns == before  # unpacked once
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("suffix", "what"), [("xz", "xz stream"), ("gz", "gzip stream"), ("zst", "zstd stream")])
@pytest.mark.parametrize("cut", [0, 1, 40])
def test_damaged(tmp_path: Path, suffix: str, what: str, cut: int) -> None:
    compress: dict[str, Callable[[bytes], bytes]] = {"xz": lzma.compress, "gz": gzip.compress, "zst": compress_zstd}
    data = compress[suffix](os.urandom(4096))
    (tmp_path / f"shelf.ko.{suffix}").write_bytes(data[: len(data) - cut * 8] if cut else b"no such thing at all")
    found = plan(tmp_path, tmp_path / "cache")
    assert found["file"] is None
    assert f"shelf.ko.{suffix}" in found["problem"]
    assert what in found["problem"]
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_compressed_without_a_cache(tmp_path: Path) -> None:
    (tmp_path / "shelf.ko.xz").write_bytes(lzma.compress(write_module()))
    assert "no cache directory" in plan(tmp_path)["problem"]


def test_named_by_build_id(tmp_path: Path) -> None:
    folder = tmp_path / ".build-id" / BUILD_ID.hex()[:2]
    folder.mkdir(parents=True)
    path = folder / f"{BUILD_ID.hex()[2:]}.debug"
    path.write_bytes(write_module())
    (tmp_path / "shelf.ko").write_bytes(write_module())
    assert plan(tmp_path)["file"] == str(path)


def test_debug_files_come_first_and_a_dash_is_an_underscore(tmp_path: Path) -> None:
    for name in ("shelf.ko", "shelf.ko.debug"):
        (tmp_path / name).write_bytes(write_module())
    assert plan(tmp_path)["file"] == str(tmp_path / "shelf.ko.debug")


def test_another_build(tmp_path: Path) -> None:
    (tmp_path / "shelf.ko").write_bytes(write_module(bytes(20)))
    found = plan(tmp_path)
    assert found["file"] is None
    assert f"another build: {bytes(20).hex()}, in the image {BUILD_ID.hex()}" in found["problem"]


def test_another_build_beside_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "shelf.ko").write_bytes(write_module(bytes(20)))
    (tmp_path / "right").mkdir()
    (tmp_path / "right" / "shelf.ko").write_bytes(write_module())
    found = plan(tmp_path)
    assert (found["file"], found["problem"]) == (str(tmp_path / "right" / "shelf.ko"), None)


@pytest.mark.parametrize("build_id", [None, BUILD_ID.hex()])
def test_symbols_that_are_elsewhere(tmp_path: Path, build_id: str | None) -> None:
    """Before v5.14, or with a filtered note, the kernel's own table of symbols tells."""
    (tmp_path / "shelf.ko").write_bytes(write_module(shelf_close=0x48))
    found = plan(tmp_path, build_id=build_id)
    assert found["file"] is None
    assert "1 of 3 symbols are elsewhere" in found["problem"]
    assert f"shelf_close would be at {TEXT + 0x48:#x}, and is at {TEXT + 0x40:#x}" in found["problem"]


def test_no_file(tmp_path: Path) -> None:
    assert plan(tmp_path) == {"name": "shelf", "file": None, "sections": {}, "problem": None}
    with pytest.raises(CommandError, match="not a directory"):
        plan(tmp_path / "nowhere")
