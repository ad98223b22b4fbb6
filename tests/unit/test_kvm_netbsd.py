"""kvm(3) on NetBSD's crash dumps: descriptors without symbols, and dump partitions with kvm_dump(3).

The texts are those of NetBSD's lib/libkvm/kvm.c and kvm_x86_64.c.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvm_dbg.image import open_image
from kvm_dbg.image.base import MemoryImage
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.kernel.base import Kernel
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.kvm import (
    O_RDONLY,
    O_RDWR,
    Kvm,
    Nlist,
    descriptor,
    kvm_close,
    kvm_dump_inval,
    kvm_dump_mkheader,
    kvm_dump_wrtheader,
    kvm_geterr,
    kvm_getlwps,
    kvm_getprocs,
    kvm_nlist,
    kvm_openfiles,
    kvm_read,
    kvm_write,
)
from kvm_dbg.kvm.dump import open_descriptor
from kvm_dbg.symbols.base import Symbol
from kvm_dbg.symbols.kallsyms import ListedSymbols
from tests.writers.netbsd_kcore import AMD64, cpu_header, midmag, write_kcore, write_partition
from tests.writers.page_table import PAGE, PageTables
from tests.writers.stand_in import NoTypes

BASE = 0xFFFFFFFF80000000
DATA = b"\x01\x01\xca\x8f" + bytes(range(1, 250))
OFFSET = 4096


def memory() -> dict[int, bytes]:
    """Return a page of data at BASE, then one that is mapped but not dumped, then nothing."""
    tables = PageTables()
    tables.page(0x8000, DATA)
    tables.map(BASE, 0x8000)
    tables.map(BASE + PAGE, 0x20000)
    tables.set_entry(BASE + (1 << 30), 3, 0x30000 | 3)  # a table that is not in the dump
    return {paddr: bytes(page) for paddr, page in sorted(tables.memory.items())}


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text"
    path.write_text("no kernel\n")
    return str(path)


@pytest.fixture
def partition(tmp_path: Path) -> str:
    path = tmp_path / "wd0b"
    path.write_bytes(b"\xee" * OFFSET + write_partition(memory()) + b"\xee" * 5000)
    return str(path)


@pytest.fixture
def kd(tmp_path: Path, text: str) -> Iterator[Kvm]:
    path = tmp_path / "netbsd.0.core"
    path.write_bytes(write_kcore(memory()))
    opened = kvm_openfiles(text, str(path))
    assert opened is not None
    yield opened
    assert kvm_close(opened) == 0


def test_reading_needs_no_symbols(kd: Kvm) -> None:
    buffer = bytearray(64)
    assert kvm_read(kd, BASE + 4, buffer) == 64
    assert buffer == DATA[4:68]
    assert kvm_nlist(kd, [name := Nlist("version", 5, 5, 5, 5)]) == -1
    assert (name, kvm_geterr(kd)) == (Nlist("version"), "bad namelist")
    assert kvm_getprocs(kd) is None
    assert kvm_geterr(kd) == "_nprocs: no such symbol"
    assert kvm_getlwps(kd, 1) is None
    assert "text" in kvm_geterr(kd)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (BASE + 2 * PAGE, "invalid translation (invalid PTE)"),
        (BASE + (1 << 21), "invalid translation (invalid level 2 PDE)"),
        (BASE - (1 << 30), "invalid translation (invalid level 3 PDE)"),
        (0x400000, "invalid translation (invalid level 4 PDE)"),
        (1 << 63, "invalid translation (invalid address)"),
        (BASE + PAGE, "kvm_read: "),
        (BASE + (1 << 30), "could not read PT level 2 entry: "),
    ],
)
def test_what_cannot_be_read_is_told_in_its_words(kd: Kvm, address: int, message: str) -> None:
    assert kvm_read(kd, address, bytearray(8)) == -1
    assert kvm_geterr(kd).startswith(message)
    assert len(kvm_geterr(kd)) == len(message) or message.endswith(" ")


def test_writing(kd: Kvm) -> None:
    assert kvm_write(kd, BASE, b"x") == -1
    assert kvm_geterr(kd) == "kvm_write not implemented for dead kernels"


def test_a_closed_descriptor(tmp_path: Path, text: str, partition: str) -> None:
    dump = tmp_path / "dump"
    dump.write_bytes(write_kcore(memory()))
    for opened in (kvm_openfiles(text, str(dump)), kvm_openfiles(text, partition, format="netbsd-dump")):
        assert opened is not None
        assert kvm_close(opened) == kvm_close(opened) == 0
        assert kvm_read(opened, BASE, bytearray(8)) == -1
        assert kvm_geterr(opened) == "this image has been closed"
        assert kvm_dump_mkheader(opened, OFFSET) == kvm_dump_wrtheader(opened, io.BytesIO(), 0) == -1
        assert kvm_geterr(opened) == "this image has been closed"


# kvm_dump(3)


def test_a_partition_has_no_memory_before_its_dump_is_found(text: str, partition: str) -> None:
    kd = kvm_openfiles(text, partition, format="netbsd-dump")
    assert kd is not None
    for answer in (kvm_read(kd, BASE, bytearray(8)), kvm_nlist(kd, [Nlist("version")]), kvm_dump_inval(kd)):
        assert answer == -1
        assert kvm_geterr(kd) == "no valid dump header"
    assert kvm_dump_wrtheader(kd, io.BytesIO(), 100) == -1
    assert kvm_geterr(kd) == "no valid dump header(s)"
    kd.close()


def test_mkheader(text: str, partition: str) -> None:
    kd = kvm_openfiles(text, partition, format="netbsd-dump")
    assert kd is not None
    assert kvm_dump_mkheader(kd, 0) == 0
    assert kvm_geterr(kd) == "invalid magic in cpu_hdr"
    size = Path(partition).stat().st_size
    assert kvm_dump_mkheader(kd, size - 3) == -1
    assert kvm_geterr(kd) == f"read 3 bytes at offset {size - 3:x} for cpu_hdr instead of requested 8"
    assert kvm_dump_mkheader(kd, -1) == -1
    assert kvm_dump_mkheader(kd, OFFSET) == 512
    buffer = bytearray(16)
    assert kvm_read(kd, BASE, buffer) == 16
    assert buffer == DATA[:16]
    assert kvm_dump_mkheader(kd, OFFSET) == -1
    assert kvm_geterr(kd) == "already has a dump header"
    kd.close()


def test_a_dump_that_is_found_to_be_damaged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wd0b"
    head = midmag(1, AMD64, 0x8FCA)
    for data, message in (
        (head + struct.pack("<I", 504) + bytes(100), "size 100 != cpu_hdr.csize 504"),
        (head + struct.pack("<I", 504) + cpu_header([], 0, nmemsegs=99).ljust(504, b"\0"), "nmemsegs"),
    ):
        path.write_bytes(data)
        kd = kvm_openfiles(text, str(path), format="netbsd-dump")
        assert kd is not None
        assert kvm_dump_mkheader(kd, 0) == -1
        assert message in kvm_geterr(kd)
        assert kvm_dump_mkheader(kd, 8) == 0, "the partition is still open"
        kd.close()


def test_wrtheader_makes_savecores_file(tmp_path: Path, text: str, partition: str) -> None:
    kd = kvm_openfiles(text, partition, format="netbsd-dump")
    assert kd is not None
    size = kvm_dump_mkheader(kd, OFFSET)
    held = memory()
    total = sum(map(len, held.values()))
    file = io.BytesIO()
    assert kvm_dump_wrtheader(kd, file, total) == 0
    assert file.getvalue() + b"".join(held.values()) == write_kcore(held)
    saved = tmp_path / "netbsd.0.core"
    saved.write_bytes(file.getvalue() + Path(partition).read_bytes()[OFFSET + size :][:total])
    with open_image(saved) as image:
        assert not image.info.quirks
        assert list(image.for_each_chunk()) == list(kd.image.for_each_chunk())
    with open("/dev/full", "wb", buffering=0) as full:
        assert kvm_dump_wrtheader(kd, full, total) == -1
    assert kvm_geterr(kd) == "kvm_dump_header: No space left on device"
    kd.close()


class Small(Kernel):
    """The memory above, with a symbol."""

    def __init__(self, image: MemoryImage, space: ImageSpace) -> None:
        self.image, self.arch, self.types = image, space.arch, NoTypes()
        self.space = space
        self.symbols = ListedSymbols(
            [Symbol("dumpmag", BASE, 4, "D"), Symbol("_both", 1, 0, "T"), Symbol("both", 2, 0, "T")]
        )

    def read(self, vaddr: int, size: int) -> bytes:
        return self.space.read(vaddr, size)

    def translate(self, vaddr: int) -> int:
        return self.space.translate(vaddr)


def joined(path: str, text: str, flags: int, monkeypatch: pytest.MonkeyPatch) -> Kvm:
    with_memory = open_descriptor(path, text, writable=flags == O_RDWR, format="netbsd-dump", offset=OFFSET)
    space = with_memory.space()
    assert isinstance(space, ImageSpace)
    kernel = Small(with_memory.image, space)
    room = SimpleNamespace(name="NetBSD", all_symbols=lambda _: kernel.symbols, kernel_space=lambda _: space)
    monkeypatch.setattr(descriptor, "system_of", lambda _: room)
    return Kvm(kernel, writable=flags == O_RDWR)


def test_inval_changes_the_private_copy(text: str, partition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Path(partition).read_bytes()
    with joined(partition, text, O_RDWR, monkeypatch) as kd:
        assert isinstance(kd.image, OverlayImage)
        assert kvm_dump_inval(kd) == 0
        buffer = bytearray(8)
        assert kvm_read(kd, BASE, buffer) == 8
        assert buffer == bytes(4) + DATA[4:8]
    assert Path(partition).read_bytes() == before


def test_inval_of_what_may_not_be_written(text: str, partition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with joined(partition, text, O_RDONLY, monkeypatch) as kd:
        assert kvm_dump_inval(kd) == -1
        assert kvm_geterr(kd) == "cannot invalidate dump: Bad file descriptor"


def test_an_underscore_is_not_part_of_the_name(text: str, partition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with joined(partition, text, O_RDONLY, monkeypatch) as kd:
        names = [Nlist("_both"), Nlist("both"), Nlist("__both"), Nlist("_dumpmag"), Nlist("dumpmag")]
        assert kvm_nlist(kd, names) == 0
        assert [name.n_value for name in names] == [2, 2, 1, BASE, BASE]
