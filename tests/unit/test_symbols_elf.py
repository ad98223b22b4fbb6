from __future__ import annotations

import contextlib
import random
import struct
import subprocess
from pathlib import Path

import pytest

from kvm_dbg.errors import FileAccessError, FormatError, KvmDbgError, SymbolNotFound, UnknownFormatError
from kvm_dbg.index import Index
from kvm_dbg.symbols.elf import FEW, INDEX_LAYOUT, ElfSymbolTable, open_kernel_file
from tests.shared import shared_data, unpack
from tests.writers import kernel_file as k
from tests.writers.kernel_file import Entry, Part, write_kernel_file

TEXT, DATA, PERCPU, BSS = 0xFFFFFFFF81000000, 0xFFFFFFFF82000000, 0, 0xFFFFFFFF83000000
BUILD_ID = bytes(range(20))
BANNER = b"Linux version 6.1.0-test (x) #1 SMP\n\0"
PARTS = [
    Part(".text", flags=k.ALLOC | k.EXEC, addr=TEXT, data=bytes(0x400)),
    Part(".rodata", addr=DATA, data=BANNER + bytes(0x40)),
    Part(".data", flags=k.ALLOC | k.WRITE, addr=DATA + 0x1000, data=bytes(0x100)),
    Part(".data..percpu", flags=k.ALLOC | k.WRITE, addr=PERCPU, data=bytes(0x200)),
    Part(".bss", k.NOBITS, k.ALLOC | k.WRITE, BSS, size=0x1000),
    Part(".notes", k.NOTE, k.ALLOC, DATA + 0x2000, k.build_id_note(BUILD_ID)),
    Part(".comment", flags=0, data=b"GCC"),
]
SYMBOLS = [
    Entry("first.c", 0, section=k.ABS, binding=k.LOCAL, type=k.FILE),
    Entry("", TEXT, section=".text", binding=k.LOCAL, type=k.SECTION),
    Entry("helper", TEXT + 0x100, 0x10, binding=k.LOCAL),
    Entry("second.c", 0, section=k.ABS, binding=k.LOCAL, type=k.FILE),
    Entry("helper", TEXT + 0x80, 0x10, binding=k.LOCAL),
    Entry("both", TEXT + 0x200, 8, binding=k.LOCAL),
    Entry("static_counter", DATA + 0x1008, 4, ".data", k.LOCAL, k.OBJECT),
    Entry("a_number", 0x1000, 0, k.ABS, k.LOCAL, k.NOTYPE),
    Entry("_stext", TEXT, 0, ".text", type=k.NOTYPE),
    Entry("start_kernel", TEXT, 0x40),
    Entry("label_inside", TEXT + 0x20, 0, type=k.NOTYPE),
    Entry("both", TEXT + 0x300, 8),
    Entry("kernel", TEXT + 0x340, 8),
    Entry("weak_one", TEXT + 0x380, 8, binding=k.WEAK),
    Entry("weak_object", DATA + 0x1020, 8, ".data", k.WEAK, k.OBJECT),
    Entry("linux_banner", DATA, len(BANNER), ".rodata", type=k.OBJECT),
    Entry("init_task", DATA + 0x1040, 0x20, ".data", type=k.OBJECT),
    Entry("__per_cpu_start", 0, 0, ".data..percpu", type=k.NOTYPE),
    Entry("runqueues", 0x180, 0x40, ".data..percpu", type=k.OBJECT),
    Entry("__per_cpu_load", DATA + 0x5000, 0, ".data..percpu", type=k.NOTYPE),
    Entry("init_per_cpu__gdt_page", DATA + 0x1050, 0, k.ABS, type=k.NOTYPE),
    Entry("phys_startup_64", 0x1000000, 0, k.ABS, type=k.NOTYPE),
    Entry("jiffies_buffer", BSS + 8, 8, ".bss", type=k.OBJECT),
    Entry("undefined_one", 0, 0, "", type=k.NOTYPE),
    Entry("gcc_note", 1, 0, ".comment", type=k.NOTYPE),
]
LETTERS = {
    "start_kernel": "T", "static_counter": "d", "init_task": "D", "linux_banner": "R", "jiffies_buffer": "B",
    "a_number": "a", "phys_startup_64": "A", "weak_one": "W", "weak_object": "V", "runqueues": "D", "gcc_note": "N",
}  # fmt: skip


def written(path: Path, *, share_tails: bool = False, far_sections: bool = False) -> Path:
    file = path / "vmlinux"
    file.write_bytes(write_kernel_file(PARTS, SYMBOLS, share_tails=share_tails, far_sections=far_sections))
    return file


@pytest.fixture
def vmlinux(tmp_path: Path) -> Path:
    return written(tmp_path)


def tables(path: Path, directory: Path) -> list[ElfSymbolTable]:
    """Return a table that searches, one that has built its own index of names, a fresh and a kept index."""
    eager = ElfSymbolTable(path)
    for number in range(FEW + 1):
        eager.find(f"no{number}")
    return [
        ElfSymbolTable(path),
        eager,
        ElfSymbolTable(path, index=Index(directory / "cache", BUILD_ID)),
        ElfSymbolTable(path, index=Index(directory / "cache", BUILD_ID)),
    ]


def test_names_are_found_the_same_in_every_way(vmlinux: Path, tmp_path: Path) -> None:
    for table in tables(vmlinux, tmp_path):
        assert table.address("start_kernel") == TEXT
        assert table.find("init_task") == ("init_task", DATA + 0x1040, 0x20, "D", None)
        assert table.find("absent") is None
        assert table.find("") is None
        with pytest.raises(SymbolNotFound, match="absent"):
            table.address("absent")


def test_a_global_symbol_wins_else_the_first(vmlinux: Path, tmp_path: Path) -> None:
    for table in tables(vmlinux, tmp_path):
        assert table.address("both") == TEXT + 0x300
        assert table.address("helper") == TEXT + 0x100
        assert [symbol.address for symbol in table.find_all("helper")] == [TEXT + 0x80, TEXT + 0x100]


def test_files_sections_and_undefined_symbols_are_no_names(vmlinux: Path, tmp_path: Path) -> None:
    for table in tables(vmlinux, tmp_path):
        assert table.find("first.c") is None
        assert table.find("undefined_one") is None
    assert "undefined_one" not in {symbol.name for symbol in ElfSymbolTable(vmlinux).for_each()}


def test_names_that_share_their_ends_are_found(tmp_path: Path) -> None:
    path = written(tmp_path, share_tails=True)
    assert b"start_kernel\0" in path.read_bytes()
    assert b"\0kernel\0" not in path.read_bytes()
    for table in tables(path, tmp_path):
        assert table.address("kernel") == TEXT + 0x340
        assert table.find("ernel") is None


def test_find_many_returns_only_what_is_there(vmlinux: Path, tmp_path: Path) -> None:
    wanted = ["init_task", "absent", "runqueues", "both", "", "first.c", "undefined_one"]
    more = [*wanted, *(f"no{number}" for number in range(FEW))]
    for table, names in ((table, names) for table in tables(vmlinux, tmp_path) for names in (wanted, more)):
        found = table.find_many(names)
        assert {name: symbol.address for name, symbol in found.items()} == {
            "init_task": DATA + 0x1040,
            "runqueues": 0x180,
            "both": TEXT + 0x300,
        }


def test_letters_are_those_of_nm(vmlinux: Path) -> None:
    table = ElfSymbolTable(vmlinux)
    assert {name: symbol.kind for name in LETTERS if (symbol := table.find(name))} == LETTERS | {"gcc_note": "N"}


def test_the_slide_moves_what_is_loaded_and_nothing_else(vmlinux: Path) -> None:
    linked = ElfSymbolTable(vmlinux)
    table = linked.slid(0x1400000)
    moved = {"start_kernel", "init_task", "jiffies_buffer", "__per_cpu_load", "init_per_cpu__gdt_page"}
    for symbol in linked.for_each():
        if symbol.name in moved:
            assert table.address(symbol.name) == symbol.address + 0x1400000
    for name, value in (
        ("runqueues", 0x180),
        ("__per_cpu_start", 0),
        ("phys_startup_64", 0x1000000),
        ("a_number", 0x1000),
    ):
        assert table.address(name) == value
    assert linked.address("start_kernel") == TEXT
    runqueues, task = table.find("runqueues"), table.find("init_task")
    assert runqueues is not None
    assert table.is_per_cpu(runqueues)
    assert task is not None
    assert not table.is_per_cpu(task)


def test_a_per_cpu_section_with_an_address_moves_like_any_other(tmp_path: Path) -> None:
    """As x86 links it since 6.15."""
    place = DATA + 0x8000
    parts = [part._replace(addr=place) if part.name == ".data..percpu" else part for part in PARTS]
    path = tmp_path / "vmlinux"
    path.write_bytes(
        write_kernel_file(parts, [Entry("runqueues", place + 0x180, 0x40, ".data..percpu", type=k.OBJECT)])
    )
    table = ElfSymbolTable(path, slide=0x1000000)
    symbol = table.find("runqueues")
    assert symbol is not None
    assert symbol.address == place + 0x1000180
    assert not table.is_per_cpu(symbol)
    assert table.find_at(place + 0x1000190) == symbol


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (TEXT, "start_kernel"),  # sized before unsized
        (TEXT + 0x1F, "start_kernel"),
        (TEXT + 0x20, "label_inside"),
        (TEXT + 0x80, "helper"),
        (TEXT + 0x90, None),  # past the end of what is below
        (TEXT + 0x104, "helper"),
        (TEXT + 0x3FF, None),
        (DATA + 0x1045, "init_task"),
        (BSS + 8, "jiffies_buffer"),
        (BSS + 0x10, None),
        (0x188, None),  # an offset, no address
        (0, None),
        (1 << 64, None),
        (TEXT - 1, None),
    ],
)
def test_what_lies_at_an_address(vmlinux: Path, tmp_path: Path, address: int, name: str | None) -> None:
    for table in tables(vmlinux, tmp_path):
        for slide in (0, 0x2000000):
            found = table.slid(slide).find_at(address + slide if address else 0)
            assert (found.name if found else None) == name


def test_a_function_is_found_around_a_symbol_that_ended(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    entries = [Entry("outer", TEXT, 0x100), Entry("inner", TEXT + 0x10, 8)]
    path.write_bytes(write_kernel_file(PARTS, entries))
    found = ElfSymbolTable(path).find_at(TEXT + 0x20)
    assert found is not None
    assert found.name == "outer"


def test_all_symbols_come_in_order_of_address(vmlinux: Path) -> None:
    table = ElfSymbolTable(vmlinux, slide=0x1000)
    found = list(table.for_each())
    assert [symbol.address for symbol in found] == sorted(symbol.address for symbol in found)
    names = sum(entry.section != "" and entry.type not in (k.FILE, k.SECTION) for entry in SYMBOLS)
    assert len(found) == len(table) == names


@pytest.mark.parametrize(("bits", "order"), [(64, ">"), (32, "<"), (32, ">")])
def test_other_classes_and_byte_orders(tmp_path: Path, bits: int, order: str) -> None:
    parts = [Part(".text", flags=k.ALLOC | k.EXEC, addr=0xC0100000, data=bytes(0x100))]
    entries = [Entry("one", 0xC0100010, 8), Entry("two", 0xC0100020, 8, binding=k.LOCAL)]
    path = tmp_path / "vmlinux"
    path.write_bytes(write_kernel_file(parts, entries, bits=bits, order=order))
    for table in tables(path, tmp_path):
        assert table.find("one") == ("one", 0xC0100010, 8, "T", None)
        assert table.find("two") == ("two", 0xC0100020, 8, "t", None)
        at = table.find_at(0xC0100024)
        assert at is not None
        assert at.name == "two"


def test_section_numbers_kept_aside(tmp_path: Path) -> None:
    for table in tables(written(tmp_path, far_sections=True), tmp_path):
        assert table.find("init_task") == ("init_task", DATA + 0x1040, 0x20, "D", None)
        found = table.find_at(TEXT + 0x21)
        assert found is not None
        assert found.name == "label_inside"


def test_what_the_file_says_of_itself(vmlinux: Path) -> None:
    table = ElfSymbolTable(vmlinux, slide=0x5000)
    assert table.build_id == BUILD_ID
    assert table.linux_banner() == BANNER[:-1]
    section = table.find_section(".data..percpu")
    assert section is not None
    assert section.addr == 0
    assert table.read_linked(DATA + 6, 7) == b"version"
    assert table.read_linked(BSS, 8) is None  # nothing of it is in the file
    assert table.read_linked(0x1234567, 8) is None


def test_a_kept_index_of_another_file_is_not_used(vmlinux: Path, tmp_path: Path) -> None:
    index = Index(tmp_path / "cache", BUILD_ID)
    assert ElfSymbolTable(vmlinux, index=index).address("init_task") == DATA + 0x1040
    other = tmp_path / "other"
    entries = [entry._replace(value=entry.value + 16) if entry.name == "init_task" else entry for entry in SYMBOLS]
    other.write_bytes(write_kernel_file(PARTS, [*entries[:8], *reversed(entries[8:])]))
    assert ElfSymbolTable(other, index=index).address("init_task") == DATA + 0x1050
    assert ElfSymbolTable(vmlinux, index=index).address("init_task") == DATA + 0x1040


def test_an_index_with_a_good_checksum_and_bad_numbers_breaks_nothing(vmlinux: Path, tmp_path: Path) -> None:
    index = Index(tmp_path / "cache", BUILD_ID)
    table = ElfSymbolTable(vmlinux, index=index)
    table.find("init_task")
    table.find_at(TEXT)
    generator = random.Random(7)
    identity = INDEX_LAYOUT + table._data.sample()
    for _ in range(200):
        numbers = [generator.choice((0, 1, 3, 24, 25, 1 << 20, 0xFFFFFFFF)) for _ in range(32)]
        part = struct.pack("32I", *numbers)
        index.store("symbols", identity, {"buckets": part[: generator.choice((0, 64))], "chain": part})
        index.store("addresses", identity, {"rows": part})
        broken = ElfSymbolTable(vmlinux, index=index)
        found = broken.find("init_task")
        assert found is None or found.address == DATA + 0x1040
        broken.find_at(TEXT + 0x300)


@pytest.mark.parametrize(
    "parts", [{}, {"chain": bytes(64)}, {"buckets": bytes(64)}, {"buckets": b"123", "chain": b"1"}]
)
def test_an_index_that_lacks_its_parts_is_built_again(vmlinux: Path, tmp_path: Path, parts: dict[str, bytes]) -> None:
    index = Index(tmp_path / "cache", BUILD_ID)
    identity = INDEX_LAYOUT + ElfSymbolTable(vmlinux)._data.sample()
    index.store("symbols", identity, parts)
    index.store("addresses", identity, parts)
    table = ElfSymbolTable(vmlinux, index=index)
    assert table.address("init_task") == DATA + 0x1040
    found = table.find_at(DATA + 0x1040)
    assert found is not None
    assert found.name == "init_task"
    kept = index.find("symbols", identity)
    assert kept is not None
    assert set(kept) == {"buckets", "chain"}


def test_a_read_only_cache_costs_a_note_only(vmlinux: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no directory")
    index = Index(tmp_path / "cache", BUILD_ID)
    table = ElfSymbolTable(vmlinux, index=index)
    assert table.address("init_task") == DATA + 0x1040
    assert index.note is not None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bytes(0x202) + b"HdrS" + bytes(100), "bzImage"),
        (b"\x1f\x8b" + bytes(100), "gzip"),
        (b"\xfd7zXZ\0" + bytes(100), "xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "zstd"),
        (b"just a text\n", "not an ELF file"),
        (b"", "empty"),
    ],
)
def test_what_is_no_kernel_file_says_what_it_is(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(data)
    with pytest.raises(UnknownFormatError, match=words) as caught:
        ElfSymbolTable(path)
    assert str(path) in str(caught.value)


def test_a_core_is_no_kernel_file(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(write_kernel_file(PARTS, SYMBOLS, kind=4))
    with pytest.raises(UnknownFormatError, match="core"):
        open_kernel_file(path)


def test_a_stripped_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(write_kernel_file(PARTS))
    with pytest.raises(FormatError, match="stripped"):
        ElfSymbolTable(path)


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileAccessError, match=str(path)):
            ElfSymbolTable(path)


def use(path: Path, directory: Path | None) -> None:
    """Ask everything; only kvm_dbg's own errors may come out."""
    try:
        index = Index(directory, BUILD_ID) if directory is not None else None
        table = ElfSymbolTable(path, index=index)
    except KvmDbgError:
        return
    for ask in (
        lambda: table.find("init_task"),
        lambda: table.find_many([f"n{i}" for i in range(20)]),
        lambda: table.find_at(TEXT + 0x21),
        lambda: len(list(table.for_each())),
        lambda: table.linux_banner(),
        lambda: table.build_id,
    ):
        with contextlib.suppress(KvmDbgError):
            ask()


def test_truncated_and_damaged_files_raise_only_our_errors(tmp_path: Path) -> None:
    good = write_kernel_file(PARTS, SYMBOLS, share_tails=True)
    path = tmp_path / "vmlinux"
    generator = random.Random(11)
    for number in range(400):
        data = bytearray(good)
        if number % 3 == 0:
            del data[generator.randrange(len(data)) :]
        else:
            for _ in range(generator.choice((1, 4, 16))):
                area = generator.choice(((0, 64), (0xB00, len(data))))
                data[generator.randrange(*area)] = generator.choice((0, 1, 0x7F, 0xFF, generator.randrange(256)))
        path.write_bytes(data)
        use(path, tmp_path / "cache" if number % 2 else None)


@pytest.mark.parametrize(("system", "name"), [("netbsd", "netbsd.0.zst"), ("freebsd", "kernel-amd64.xz")])
def test_name_lists_of_real_kernels(system: str, name: str, tmp_path: Path) -> None:
    """Symbols without any code; savecore's .bss has 2^64 - 1 bytes. readelf says what they are."""
    path = unpack(shared_data(system) / name, tmp_path)
    shown = subprocess.run(["readelf", "-sW", str(path)], capture_output=True, text=True, check=True).stdout
    rows = [row for row in map(str.split, shown.splitlines()) if len(row) == 8 and row[0][:-1].isdigit()]
    with ElfSymbolTable(path).elf as elf:
        table = ElfSymbolTable(elf)
        ours = {(symbol.name, symbol.address) for symbol in table.for_each()}
        assert ours == {
            (row[7], int(row[1], 16)) for row in rows if row[6] != "UND" and row[3] not in ("SECTION", "FILE")
        }
        found = table.find_at(table.address("allproc"))
        assert found is not None
        assert found.name == "allproc"


def test_what_libkvm_says_of_a_name_list(tmp_path: Path) -> None:
    truth = (shared_data("netbsd") / "truth" / "libkvm-dead.txt").read_text().splitlines()
    rows = [line.split() for line in truth if line.startswith("SYM _")]  # the underscore is nlist's own
    known = {row[1][1:]: int(row[2].removeprefix("value="), 16) for row in rows if row[2] != "value=0x0"}
    assert "allproc" in known
    with ElfSymbolTable(unpack(shared_data("netbsd") / "netbsd.0.zst", tmp_path)).elf as elf:
        table = ElfSymbolTable(elf)
        assert {name: table.address(name) for name in known} == known
