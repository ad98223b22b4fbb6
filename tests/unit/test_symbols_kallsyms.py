from __future__ import annotations

import random
import struct

import pytest

from kvm_dbg.symbols.base import Symbol
from kvm_dbg.symbols.kallsyms import JoinedSymbols, ListedSymbols, parse_module_symbols

BASE = 0xFFFFFFFFC0200000
# name, address, size, nm's letter, ELF section number
SYMBOLS = [
    ("lo_open", BASE, 0x40, "t", 1),
    ("loop_init", BASE + 0x40, 0x10, "T", 1),
    ("loop_data", BASE + 0x2000, 8, "d", 2),
    ("printk", 0, 0, "U", 0),
    ("version", 0x33, 0, "a", 0xFFF1),
]


def tables(bits: int = 64, order: str = "<", letter_in: str = "typetab") -> tuple[bytes, bytes, bytes]:
    """Return symtab, strtab, typetab as a kernel keeps them: an empty symbol first."""
    symtab, strtab, typetab = bytes(24 if bits == 64 else 16), b"\0", b"\0"
    for name, value, size, letter, section in SYMBOLS:
        info = 0x12
        if letter_in == "st_size":
            size = ord(letter)
        if letter_in == "st_info":
            info = ord(letter)
        value &= (1 << bits) - 1
        if bits == 64:
            symtab += struct.pack(order + "IBBHQQ", len(strtab), info, 0, section, value, size)
        else:
            symtab += struct.pack(order + "IIIBBH", len(strtab), value, size, info, 0, section)
        strtab += name.encode() + b"\0"
        typetab += letter.encode()
    return symtab, strtab, typetab


@pytest.mark.parametrize(("bits", "order", "byteorder"), [(64, "<", "little"), (64, ">", "big"), (32, "<", "little")])
def test_symbols_with_a_typetab(bits: int, order: str, byteorder: str) -> None:
    found = parse_module_symbols("loop", *tables(bits, order), word_bits=bits, byteorder=byteorder)
    mask = (1 << bits) - 1
    assert found == (
        Symbol("lo_open", BASE & mask, 0x40, "t", "loop"),
        Symbol("loop_init", BASE + 0x40 & mask, 0x10, "T", "loop"),
        Symbol("loop_data", BASE + 0x2000 & mask, 8, "d", "loop"),
        Symbol("version", 0x33, 0, "a", "loop"),
    )


@pytest.mark.parametrize("letter_in", ["st_size", "st_info"])
def test_letters_in_older_places(letter_in: str) -> None:
    symtab, strtab, _ = tables(letter_in=letter_in)
    found = parse_module_symbols("loop", symtab, strtab, None, letter_in=letter_in)
    assert [(symbol.name, symbol.kind) for symbol in found] == [
        ("lo_open", "t"),
        ("loop_init", "T"),
        ("loop_data", "d"),
        ("version", "a"),
    ]
    assert [symbol.size for symbol in found][:2] == ([0, 0] if letter_in == "st_size" else [0x40, 0x10])


def test_cut_tables_give_what_is_there() -> None:
    symtab, strtab, typetab = tables()
    for size in range(len(symtab)):
        names = [symbol.name for symbol in parse_module_symbols("loop", symtab[:size], strtab, typetab)]
        assert names == [name for name, *_, section in SYMBOLS[: max(size // 24 - 1, 0)] if section]
    assert parse_module_symbols("loop", symtab, strtab[:5], typetab) == ()
    assert [symbol.kind for symbol in parse_module_symbols("loop", symtab, strtab, typetab[:2])] == ["t", "?", "?", "?"]
    assert parse_module_symbols("loop", symtab, strtab, None)[0].kind == "?"


def test_garbage_gives_symbols_or_none_but_no_error() -> None:
    generator = random.Random(2)
    for _ in range(300):
        parts = [bytes(generator.randrange(256) for _ in range(generator.randrange(200))) for _ in range(3)]
        for symbol in parse_module_symbols("m", *parts):
            assert symbol.name
            assert symbol.kind == "?" or symbol.kind.isalpha()


def test_a_list_of_symbols_answers_like_any_table() -> None:
    table = ListedSymbols(parse_module_symbols("loop", *tables()))
    assert table.address("loop_init") == BASE + 0x40
    assert table.find("absent") is None
    assert [table.find_at(address) for address in (BASE + 0x3F, BASE + 0x50, BASE + 0x2007, BASE - 1, 0x33)] == [
        Symbol("lo_open", BASE, 0x40, "t", "loop"),
        None,
        Symbol("loop_data", BASE + 0x2000, 8, "d", "loop"),
        None,
        None,
    ]
    assert [symbol.address for symbol in table.for_each()] == sorted(symbol.address for symbol in table.for_each())
    assert len(table) == 4


def test_a_global_symbol_wins_in_a_list() -> None:
    table = ListedSymbols([Symbol("x", 0x10, 4, "t"), Symbol("x", 0x20, 4, "T"), Symbol("y", 0x20, 0, "t")])
    assert table.address("x") == 0x20
    assert [symbol.address for symbol in table.find_all("x")] == [0x10, 0x20]
    found = table.find_at(0x21)
    assert found is not None
    assert found.name == "x"


def test_the_kernel_comes_before_its_modules() -> None:
    kernel = ListedSymbols([Symbol("init_task", 0x1000, 0x100, "D"), Symbol("shared", 0x2000, 8, "T")])
    loop = ListedSymbols([Symbol("shared", BASE, 8, "T", "loop"), Symbol("lo_open", BASE + 0x10, 8, "t", "loop")])
    fuse = ListedSymbols([Symbol("fuse_open", BASE + 0x10000, 8, "t", "fuse")])
    joined = JoinedSymbols(
        kernel, {"loop": loop, "fuse": fuse}, [(BASE, BASE + 0x1000, "loop"), (BASE + 0x10000, BASE + 0x11000, "fuse")]
    )
    assert joined.address("shared") == 0x2000
    assert [symbol.module for symbol in joined.find_all("shared")] == [None, "loop"]
    assert joined.address("fuse_open") == BASE + 0x10000
    assert joined.find("absent") is None
    many = joined.find_many(["lo_open", "init_task", "absent"])
    assert {name: symbol.address for name, symbol in many.items()} == {"lo_open": BASE + 0x10, "init_task": 0x1000}
    inside, between = joined.find_at(BASE + 0x12), joined.find_at(BASE + 0x5000)
    assert inside is not None
    assert inside.name == "lo_open"
    assert between is None
    in_kernel = joined.find_at(0x1050)
    assert in_kernel is not None
    assert in_kernel.name == "init_task"
    assert len(joined) == 5
    assert [symbol.name for symbol in joined.for_each()] == ["init_task", "shared", "shared", "lo_open", "fuse_open"]
