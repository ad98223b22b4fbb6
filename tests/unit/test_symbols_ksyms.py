"""The symbol tables that a NetBSD kernel keeps in memory, of both word sizes: whole, with modules, damaged, missing."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kvm_dbg.debuginfo.ctf import open_ctf
from kvm_dbg.errors import CorruptError, KernelNotFoundError, ReadError
from kvm_dbg.image import open_image
from kvm_dbg.kernel import open_kernel
from kvm_dbg.kernel.netbsd.boot import for_each_block
from kvm_dbg.kernel.space import ImageSpace, header_space
from kvm_dbg.symbols.elf import ElfSymbolTable
from kvm_dbg.symbols.ksyms import Shape, search_ksyms
from tests.writers.ctf import SIGNED, CtfWriter
from tests.writers.netbsd_kernel import LittleNetbsd

WIDE, NARROW = Shape(8, 62, "<"), Shape(4, 3, "<")
FUNCTIONS = [f"function{number}" for number in range(20)]


def make(*, wide: bool = True) -> LittleNetbsd:
    kernel = LittleNetbsd(wide=wide)
    for name in FUNCTIONS:
        kernel.function(name)
    return kernel


def space_of(kernel: LittleNetbsd, tmp_path: Path) -> ImageSpace:
    space = header_space(open_image(kernel.write_core(tmp_path / "core")))
    assert space is not None
    return space


def search(kernel: LittleNetbsd, tmp_path: Path) -> tuple[ElfSymbolTable, str] | None:
    space = space_of(kernel, tmp_path)
    return search_ksyms(space, lambda: for_each_block(space), WIDE if kernel.wide else NARROW)


@pytest.mark.parametrize("wide", [True, False])
def test_the_kernel_s_own_symbols(tmp_path: Path, wide: bool) -> None:
    kernel = make(wide=wide)
    kernel.add_ksyms()
    found = search(kernel, tmp_path)
    assert found is not None
    symbols, missing = found
    assert missing == ""
    assert {symbol.name: (symbol.address, symbol.size) for symbol in symbols.for_each()} == {
        name: (value, size) for name, (value, size, _) in kernel.symbols.items()
    }
    assert len(symbols) == len(kernel.symbols)
    address, _, _ = kernel.symbols["function7"]
    inside = symbols.find_at(address + 5)
    assert inside is not None
    assert (inside.name, inside.kind) == ("function7", "T")
    assert symbols.find("version").kind == "D"  # type: ignore[union-attr]


@pytest.mark.parametrize("wide", [True, False])
def test_symbols_of_modules(tmp_path: Path, wide: bool) -> None:
    kernel = make(wide=wide)
    heap = kernel.parts["heap"].vaddr
    kernel.add_ksyms(
        [("ext2fs", {"ext2fs_mount": heap + 0x100, "ext2fs_sync": heap + 0x200}), ("if_tap", {"tap": heap})]
    )
    found = search(kernel, tmp_path)
    assert found is not None
    assert found[1] == ""
    names = {"ext2fs_mount": heap + 0x100, "ext2fs_sync": heap + 0x200, "tap": heap}
    assert {name: symbol.address for name, symbol in found[0].find_many(names).items()} == names
    assert found[0].address("function3") == kernel.symbols["function3"][0]


def test_a_module_s_table_that_is_none_costs_the_modules(tmp_path: Path) -> None:
    for change, word in (("loop", "loops"), ("unmapped", "missing"), ("no table", "is none")):
        kernel = make()
        place = kernel.add_ksyms([("one", {"first": 0xFFFFA00000000100})])
        first = kernel.get(place - kernel.parts["data"].vaddr + kernel.parts["data"].paddr, 8)
        if change == "loop":
            kernel.set(first, struct.pack("<Q", first))
        elif change == "unmapped":
            kernel.set(first, struct.pack("<Q", 0xFFFFB00000000000))
        else:
            kernel.set(first + 60, struct.pack("<i", 23))  # sd_symsize
        found = search(kernel, tmp_path)
        assert found is not None
        assert "symbols of modules are missing" in found[1]
        assert word in found[1]
        assert found[0].address("function3") == kernel.symbols["function3"][0]


def test_the_kernel_s_types(tmp_path: Path) -> None:
    """Those of structs; the order in which CTF counts variables is lost, so that they have none."""
    writer = CtfWriter(version=2)
    number = writer.integer("int", 4, SIGNED)
    writer.struct("little", 8, [("first", number, 0), ("second", number, 32)])
    writer.data_symbol(number)
    kernel = make()
    kernel.add_ksyms(ctf=writer.section())
    found = search(kernel, tmp_path)
    assert found is not None
    types = open_ctf(found[0].elf)
    assert types is not None
    assert types.struct("struct little").size == 8
    assert types.offset_of("struct little", "second") == 4
    assert types.find_variable("version") is None
    assert len(found[0]) == len(kernel.symbols)


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (24, struct.pack("<Q", 0)),  # sd_symstart
        (32, struct.pack("<Q", (1 << 64) - 1)),  # sd_minsym: above sd_maxsym
        (40, struct.pack("<Q", 0)),  # sd_maxsym
        (56, struct.pack("<i", 8)),  # sd_usroffset
        (60, struct.pack("<i", 1001)),  # sd_symsize
        (60, struct.pack("<i", -24)),
        (64, struct.pack("<i", 5)),  # sd_strsize: too few for the names
        (64, struct.pack("<i", -1)),
        (68, struct.pack("<i", 1 << 20)),  # sd_nglob
        (72, b"\1"),  # sd_gone
    ],
)
def test_each_field_wrong(tmp_path: Path, offset: int, data: bytes) -> None:
    kernel = make()
    kernel.set(kernel.add_ksyms() + offset, data)
    assert search(kernel, tmp_path) is None
    with (
        open_image(tmp_path / "core") as image,
        pytest.raises(KernelNotFoundError, match="no symbol tables were found"),
    ):
        open_kernel(image)


def test_tables_that_are_not_in_the_image(tmp_path: Path) -> None:
    kernel = make()
    kernel.add_ksyms()
    del kernel.pages[kernel.parts["syms"].paddr]
    with pytest.raises(ReadError):
        search(kernel, tmp_path)
    with open_image(tmp_path / "core") as image, pytest.raises(KernelNotFoundError, match="not all of them"):
        open_kernel(image)


def test_no_tables_at_all(tmp_path: Path) -> None:
    assert search(make(), tmp_path) is None


def test_names_without_end_are_bounded() -> None:
    class Nothing:
        def read(self, vaddr: int, size: int) -> bytes:
            raise CorruptError(vaddr, "not asked")

    assert search_ksyms(Nothing(), lambda: [(0x1000, b"netbsd\0" * 20000)], WIDE) is None


def test_what_lies_across_blocks_is_found(tmp_path: Path) -> None:
    kernel = make()
    place = kernel.add_ksyms()
    space = space_of(kernel, tmp_path)
    whole = [(vaddr, data) for vaddr, data in for_each_block(space)]
    name = int.from_bytes(space.read(place + 16, 8), "little")
    for cut in (name + 3, place + 24, place + 40):
        blocks = []
        for vaddr, data in whole:
            at = cut - vaddr
            blocks += [(vaddr, data[:at]), (cut, data[at:])] if 0 < at < len(data) else [(vaddr, data)]
        assert len(blocks) == len(whole) + 1
        found = search_ksyms(space, blocks.copy, WIDE)
        assert found is not None
        assert len(found[0]) == len(kernel.symbols)
