"""The kernel's own symbol table, in all its ways to say an address."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kvm_dbg.errors import CorruptError, NotInImageError
from kvm_dbg.index import Index
from kvm_dbg.symbols.base import Symbol
from kvm_dbg.symbols.kallsyms_table import KallsymsTable, Places, find_known, find_places, read_kallsyms
from kvm_dbg.symbols.vmcoreinfo import VmcoreInfo
from tests.writers.kallsyms import write_kallsyms

TEXT = 0xFFFFFFFF81000000
LONG = "x" * 300  # needs a length of two bytes
SYMBOLS = [
    ("T", "_text", TEXT),
    ("T", "_stext", TEXT),
    ("t", "twice", TEXT + 0x10),
    ("T", "sys_read", TEXT + 0x40),
    ("T", "twice", TEXT + 0x80),
    ("t", "init_twice", TEXT + 0x90),
    ("D", "init_task", TEXT + 0x400000),
    ("D", "init_uts_ns", TEXT + 0x401000),
    ("b", LONG, TEXT + 0x500000),
    ("B", "_end", TEXT + 0x600000),
]
PER_CPU = [("A", "fixed_percpu_data", 0), ("A", "current_task", 0x1F000)]
KNOWN = {"_stext": TEXT, "init_uts_ns": TEXT + 0x401000}
RULES = ["absolute-percpu", "relative", "place-relative"]


class Memory:
    """Bytes by address."""

    def __init__(self, parts: dict[int, bytes]) -> None:
        self.parts = parts

    def read(self, vaddr: int, size: int) -> bytes:
        for start, data in self.parts.items():
            if start <= vaddr and vaddr + size <= start + len(data):
                return data[vaddr - start : vaddr - start + size]
        raise NotInImageError(vaddr, size, "hole")


def make(rule: str) -> tuple[Memory, Places, list[tuple[str, str, int]]]:
    symbols = [*PER_CPU, *SYMBOLS] if rule == "absolute-percpu" else SYMBOLS
    parts, places = write_kallsyms(symbols, rule, TEXT + 0x200000, TEXT)
    return Memory(parts), places, symbols


@pytest.mark.parametrize("rule", RULES)
def test_every_symbol(rule: str) -> None:
    memory, places, symbols = make(rule)
    table = read_kallsyms(memory, places, KNOWN)
    assert len(table) == len(symbols)
    expected = sorted((address, name, letter) for letter, name, address in symbols)
    assert sorted((symbol.address, symbol.name, symbol.kind) for symbol in table.for_each()) == expected
    addresses = [symbol.address for symbol in table.for_each()]
    assert addresses == sorted(addresses)


def look_at(table: KallsymsTable) -> None:
    assert table.find("init_task") == Symbol("init_task", TEXT + 0x400000, 0, "D")
    assert table.find("twice") == Symbol("twice", TEXT + 0x80, 0, "T")  # the global one
    assert [symbol.address for symbol in table.find_all("twice")] == [TEXT + 0x10, TEXT + 0x80]
    for name in ("task", "init_tas", "", "\n", "Tinit_task", "init_task\n", "nonesuch", "_text\nT_stext", "\udc80"):
        assert table.find(name) is None
        assert table.find_all(name) == ()
    assert table.address(LONG) == TEXT + 0x500000
    assert "_end" in table


def test_looking_up_names() -> None:
    memory, places, _ = make("absolute-percpu")
    table = read_kallsyms(memory, places, KNOWN)
    look_at(table)  # by search
    for _ in range(40):
        table.find("sys_read")
    look_at(table)  # by the table of all names
    assert table.address("current_task") == 0x1F000
    many = table.find_many([f"none{number}" for number in range(50)] + ["_end", "sys_read"])
    assert set(many) == {"_end", "sys_read"}


def test_looking_up_addresses() -> None:
    memory, places, _ = make("absolute-percpu")
    table = read_kallsyms(memory, places, KNOWN)
    found = table.find_at(TEXT + 0x7F)
    assert found is not None
    assert (found.name, found.size) == ("sys_read", 0x40)
    assert table.find_at(TEXT + 0x40) == found
    at_text = table.find_at(TEXT + 1)
    assert at_text is not None
    assert at_text.name in ("_text", "_stext")
    for outside in (TEXT + 0x600000, TEXT + 0x700000, (1 << 64) - 1):
        assert table.find_at(outside) is None
    assert table.find_at(0x10) is None  # only absolute numbers are there


def test_vmcoreinfo_names_the_places() -> None:
    memory, places, _ = make("relative")
    keys = {f"kallsyms_{name}": address for name, address in places._asdict().items()}
    text = "".join(f"SYMBOL({name})={address:x}\n" for name, address in {**keys, **KNOWN}.items())
    info = VmcoreInfo(text.encode())
    assert find_places(info) == places
    assert find_known(info) == KNOWN
    assert find_places(VmcoreInfo(text.replace("kallsyms_names", "other").encode())) is None
    assert find_known(VmcoreInfo(b"")) == {}
    with pytest.raises(CorruptError):
        read_kallsyms(memory, places, {})


def test_the_index_gives_the_same(tmp_path: Path) -> None:
    memory, places, _ = make("absolute-percpu")
    index = Index(tmp_path, b"id")
    first = read_kallsyms(memory, places, KNOWN, index=index)
    assert list(tmp_path.rglob("*.index"))
    memory.parts[places.names] = (
        b"\xff" * (places.token_table - places.names) + memory.parts[places.names][places.token_table - places.names :]
    )
    assert list(read_kallsyms(memory, places, KNOWN, index=index).for_each()) == list(first.for_each())
    with pytest.raises(CorruptError):
        read_kallsyms(memory, places, KNOWN)


def test_what_leads_to_no_known_symbol_is_refused() -> None:
    memory, places, _ = make("absolute-percpu")
    with pytest.raises(CorruptError, match="_stext"):
        read_kallsyms(memory, places, {"_stext": TEXT + 8})
    with pytest.raises(CorruptError, match="known symbols"):
        read_kallsyms(memory, places, {"nonesuch": TEXT})


@pytest.mark.parametrize("count", [0, 13, 1000, 1 << 22, 0xFFFFFFFF])
def test_wrong_counts(count: int) -> None:
    memory, places, _ = make("absolute-percpu")
    memory.parts[places.num_syms] = struct.pack("<I", count) + memory.parts[places.num_syms][4:]
    with pytest.raises((CorruptError, NotInImageError)):
        read_kallsyms(memory, places, KNOWN)


@pytest.mark.parametrize("field", ["names", "token_table", "token_index"])
@pytest.mark.parametrize("address", [0, 1, TEXT + 0x10000000, (1 << 64) - 1])
def test_wrong_places(field: str, address: int) -> None:
    memory, places, _ = make("absolute-percpu")
    with pytest.raises((CorruptError, NotInImageError)):
        read_kallsyms(memory, places._replace(**{field: address}), KNOWN)


def test_names_of_garbage() -> None:
    memory, places, symbols = make("relative")
    good = memory.parts[places.names]
    size = places.token_table - places.names
    for at in range(0, size, 3):
        for value in (0, 1, 0x7F, 0xFF):
            memory.parts[places.names] = good[:at] + bytes([value]) + good[at + 1 :]
            try:
                table = read_kallsyms(memory, places, KNOWN)
            except CorruptError:
                continue
            assert len(table) == len(symbols)
            assert table.address("_stext") == TEXT
