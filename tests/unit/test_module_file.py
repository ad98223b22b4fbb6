"""Files of modules: compressed ones, those named by build-id, and wrong ones."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zstandard

from kvm_dbg.commands.module_file import LoadedSymbols, Plan, plan_modules
from kvm_dbg.debuginfo import debug_link
from kvm_dbg.errors import CommandError
from kvm_dbg.kernel.base import Module
from kvm_dbg.symbols.base import Symbol
from tests.writers.kernel_file import EXEC, WRITE, Entry, Part, write_kernel_file
from tests.writers.linux_memory import gnu_note, write_vmlinux
from tests.writers.stand_in import Symbols

TEXT = 0xFFFF_FFFF_C000_0000
BUILD_ID = bytes(range(20))
ET_REL, ET_DYN = 1, 3
FUNCTIONS = {"shelf_open": 0x0, "shelf_close": 0x40, "twice": 0x80}


def write_module(build_id: bytes = BUILD_ID, more: dict[str, bytes] | None = None, **changes: int) -> bytes:
    """Return a module's file, its .text linked at 0."""
    notes = gnu_note(build_id) if build_id else b""
    return write_vmlinux(FUNCTIONS | changes, (0x10_0000, b"data"), notes, 62, ET_REL, more)


def session(cache: Path | None, **changes: Any) -> Any:
    """Return a session whose kernel has one module; `changes` are of its fields."""
    fields: dict[str, Any] = {
        "name": "shelf",
        "address": TEXT,
        "size": 4096,
        "build_id": BUILD_ID.hex(),
        "ranges": ((TEXT, 0x1000),),
        "sections": {".text": TEXT, ".init.text": TEXT - 1},
    }
    module = Module(**(fields | changes))
    symbols = Symbols(Symbol(name, TEXT + value, 64, "t", "shelf") for name, value in FUNCTIONS.items())
    system = SimpleNamespace(for_each_module=lambda _: iter([module]), all_symbols=lambda _: symbols)
    directory = str(cache) if cache is not None else None
    return SimpleNamespace(kernel=SimpleNamespace(), system=system, index_directory=directory, request=None)


def plan(folder: Path, cache: Path | None = None, *, unpack: bool = True, **changes: Any) -> Plan:
    [(_, found)] = plan_modules(session(cache, **changes), str(folder), unpack=unpack)
    return found


def compress_zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(("suffix", "compress"), [("xz", lzma.compress), ("gz", gzip.compress), ("zst", compress_zstd)])
def test_compressed(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    places, cache = tmp_path / "modules" / "kernel" / "fs", tmp_path / "cache"
    places.mkdir(parents=True)
    (places / f"shelf.ko.{suffix}").write_bytes(compress(write_module()))
    found = plan(tmp_path / "modules", cache)
    assert found.problem is None
    path = Path(str(found.file))
    assert path.is_relative_to(cache)
    assert path.read_bytes() == write_module()
    assert found.sections == {".text": TEXT}  # .init.text is freed, and not in the file
    before = path.stat().st_mtime_ns
    assert plan(tmp_path / "modules", cache).file == str(path)
    assert path.stat().st_mtime_ns == before  # unpacked once
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("suffix", "what"), [("xz", "xz stream"), ("gz", "gzip stream"), ("zst", "zstd stream")])
@pytest.mark.parametrize("cut", [0, 1, 40])
def test_damaged(tmp_path: Path, suffix: str, what: str, cut: int) -> None:
    compress: dict[str, Callable[[bytes], bytes]] = {"xz": lzma.compress, "gz": gzip.compress, "zst": compress_zstd}
    data = compress[suffix](os.urandom(4096))
    (tmp_path / f"shelf.ko.{suffix}").write_bytes(data[: len(data) - cut * 8] if cut else b"no such thing at all")
    found = plan(tmp_path, tmp_path / "cache")
    assert found.file is None
    assert f"shelf.ko.{suffix}" in str(found.problem)
    assert what in str(found.problem)
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_compressed_without_a_cache(tmp_path: Path) -> None:
    (tmp_path / "shelf.ko.xz").write_bytes(lzma.compress(write_module()))
    assert "no cache directory" in str(plan(tmp_path).problem)


def test_named_by_build_id(tmp_path: Path) -> None:
    folder = tmp_path / ".build-id" / BUILD_ID.hex()[:2]
    folder.mkdir(parents=True)
    path = folder / f"{BUILD_ID.hex()[2:]}.debug"
    path.write_bytes(write_module())
    (tmp_path / "shelf.ko").write_bytes(write_module())
    assert plan(tmp_path).file == str(path)


def test_debug_files_come_first_and_a_dash_is_an_underscore(tmp_path: Path) -> None:
    for name in ("shelf.ko", "shelf.ko.debug"):
        (tmp_path / name).write_bytes(write_module())
    assert plan(tmp_path).file == str(tmp_path / "shelf.ko.debug")


def test_another_build(tmp_path: Path) -> None:
    (tmp_path / "shelf.ko").write_bytes(write_module(bytes(20)))
    found = plan(tmp_path)
    assert found.file is None
    assert f"another build: {bytes(20).hex()}, in the image {BUILD_ID.hex()}" in str(found.problem)


def test_another_build_beside_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "shelf.ko").write_bytes(write_module(bytes(20)))
    (tmp_path / "right").mkdir()
    (tmp_path / "right" / "shelf.ko").write_bytes(write_module())
    found = plan(tmp_path)
    assert (found.file, found.problem) == (str(tmp_path / "right" / "shelf.ko"), None)


@pytest.mark.parametrize("build_id", [None, BUILD_ID.hex()])
def test_symbols_that_are_elsewhere(tmp_path: Path, build_id: str | None) -> None:
    """Before v5.14, or with a filtered note, the kernel's own table of symbols tells."""
    (tmp_path / "shelf.ko").write_bytes(write_module(shelf_close=0x48))
    found = plan(tmp_path, build_id=build_id)
    assert found.file is None
    assert "1 of 3 symbols are elsewhere" in str(found.problem)
    assert f"shelf_close would be at {TEXT + 0x48:#x}, and is at {TEXT + 0x40:#x}" in str(found.problem)


def test_no_file(tmp_path: Path) -> None:
    assert plan(tmp_path) == Plan("shelf", None, {})
    assert plan(tmp_path).summary == "no file found"
    with pytest.raises(CommandError, match="not a directory"):
        plan(tmp_path / "nowhere")


def test_compressed_and_only_named(tmp_path: Path) -> None:
    (tmp_path / "shelf.ko.xz").write_bytes(b"no such thing at all")
    found = plan(tmp_path, tmp_path / "cache", unpack=False)
    assert found.summary == f"{tmp_path}/shelf.ko.xz (compressed, and not checked yet)"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("state", ["loading", "unloading"])
def test_half_loaded(tmp_path: Path, state: str) -> None:
    """Its sections have places in sect_attrs from mod_sysfs_setup to mod_sysfs_teardown, kernel/module/main.c."""
    (tmp_path / "shelf.ko").write_bytes(write_module())
    assert plan(tmp_path, state=state).sections == {".text": TEXT}
    found = plan(tmp_path, state=state, sections={})
    assert (found.file, found.sections) == (None, {})
    assert found.problem == f"not placed: where its sections are is not in the image ({state})"


def test_unformed(tmp_path: Path) -> None:
    (tmp_path / "shelf.ko").write_bytes(write_module())
    found = plan(tmp_path, state="unformed")
    assert (found.file, found.sections) == (None, {})
    assert "not set up yet, or has been freed" in str(found.problem)


def test_live_without_places_of_sections(tmp_path: Path) -> None:
    """Without sect_attrs the text is taken to begin where the module does, if the kernel's symbols agree."""
    (tmp_path / "shelf.ko").write_bytes(write_module())
    assert plan(tmp_path, sections={}).sections == {".text": TEXT}
    (tmp_path / "shelf.ko").write_bytes(write_module(build_id=b""))
    found = plan(tmp_path, sections={}, address=TEXT - 0x40, ranges=((TEXT - 0x40, 0x1000),), build_id=None)
    assert "3 of 3 symbols are elsewhere" in str(found.problem)


def stripped(name: bytes = b"shelf.debug", *, crc: int) -> bytes:
    """Return a module's file that names its debug file, as objcopy --add-gnu-debuglink writes it."""
    link = name + b"\0" * (4 - len(name) % 4) + crc.to_bytes(4, "little")
    return write_module(more={".gnu_debuglink": link})


DEBUG_INFORMATION = write_module(more={".debug_info": b"123456789"})


@pytest.mark.parametrize("place", ["{modules}", "{modules}/.debug", "{root}{modules}"])
@pytest.mark.parametrize("name", [b"shelf.debug", b"a.debug", b"ab.debug", b"abc.debug"])
def test_debug_file_by_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, name: bytes) -> None:
    monkeypatch.setattr(debug_link, "DEBUG_DIRECTORY", str(tmp_path / "root"))
    modules = tmp_path / "modules"
    modules.mkdir()
    folder = Path(place.format(modules=modules, root=tmp_path / "root"))
    folder.mkdir(parents=True, exist_ok=True)
    (modules / "shelf.ko.gz").write_bytes(gzip.compress(stripped(name, crc=zlib.crc32(DEBUG_INFORMATION))))
    (folder / name.decode()).write_bytes(DEBUG_INFORMATION)
    found = plan(modules, tmp_path / "cache")
    assert (found.file, found.problem, found.remark) == (str(folder / name.decode()), None, None)
    assert found.sections == {".text": TEXT}


def test_debug_file_that_is_missing_or_another(tmp_path: Path) -> None:
    (tmp_path / "shelf.ko").write_bytes(stripped(crc=0xCBF43926))  # CRC-32 of "123456789", its usual check value
    found = plan(tmp_path)
    assert (found.file, found.remark) == (str(tmp_path / "shelf.ko"), "its debug file shelf.debug was not found")
    assert found.problem is None
    assert found.summary == f"{tmp_path}/shelf.ko (its debug file shelf.debug was not found)"
    (tmp_path / "shelf.debug").write_bytes(b"123456780")
    crc = zlib.crc32(b"123456780")
    assert plan(tmp_path).remark == (
        f"{tmp_path}/shelf.debug is not its debug file: the CRC is {crc:#010x}, not 0xcbf43926"
    )
    (tmp_path / "shelf.debug").write_bytes(b"123456789")  # the right CRC, and no ELF file
    assert plan(tmp_path).file is None


@pytest.mark.parametrize("link", [b"", b"shelf.debug", b"\0\0\0\0\1\2\3\4", b"a/b\0\1\2\3\4", b"abcd\0\0\0\0\1\2"])
def test_damaged_link(tmp_path: Path, link: bytes) -> None:
    (tmp_path / "shelf.ko").write_bytes(write_module(more={".gnu_debuglink": link}))
    found = plan(tmp_path)
    assert found.file is None
    assert re.search(r"shelf\.ko: offset 0x[0-9a-f]+: \.gnu_debuglink: ", str(found.problem))


def test_what_a_debugger_has_loaded(tmp_path: Path) -> None:
    (tmp_path / "shelf.ko").write_bytes(write_module())
    loaded, empty = LoadedSymbols(), tmp_path / "empty"
    empty.mkdir()
    assert loaded.summary("shelf") == "not loaded: `kvm mods --load`"
    loaded.plan([plan(empty)])
    assert loaded.summary("shelf") == "no file found"
    loaded.plan([plan(tmp_path)])
    assert loaded.summary("shelf") == f"not loaded: the debugger does not have {tmp_path}/shelf.ko"
    loaded.files = {os.path.realpath(tmp_path / "shelf.ko")}
    loaded.plan([plan(empty)])  # it still has the file
    assert loaded.summary("shelf") == str(tmp_path / "shelf.ko")


def test_a_file_whose_sections_lie_in_memory_as_in_the_file(tmp_path: Path) -> None:
    """FreeBSD's modules on most processors: ET_DYN, and the kernel keeps one address only."""
    parts = [
        Part(".text", flags=2 | EXEC, addr=0x1000, data=b"\x90" * 256),
        Part(".comment", flags=0, data=b"no part of memory"),
        Part(".data", flags=2 | WRITE, addr=0x3000, data=bytes(64)),
    ]
    symbols = [Entry(name, 0x1000 + value, 64) for name, value in FUNCTIONS.items()]
    path = tmp_path / "shelf.ko"
    path.write_bytes(write_kernel_file(parts, symbols, kind=ET_DYN))
    fields: dict[str, Any] = {"address": TEXT - 0x1000, "sections": {}, "ranges": (), "build_id": None}
    found = plan(tmp_path, **fields)
    assert (found.file, found.sections) == (str(path), {".text": TEXT, ".data": TEXT + 0x2000})
    other = plan(tmp_path, **(fields | {"address": TEXT}))
    assert other.file is None
    assert "3 of 3 symbols are elsewhere" in str(other.problem)


def test_a_module_whose_name_has_a_hyphen(tmp_path: Path) -> None:
    (tmp_path / "book-shelf.ko").write_bytes(write_module())
    assert plan(tmp_path, name="book-shelf").file == str(tmp_path / "book-shelf.ko")
