"""DWARF made from BTF that makes no sense."""

from __future__ import annotations

import random
import struct

import pytest

from kvm_dbg.debuginfo.btf import BtfTypes
from kvm_dbg.errors import FormatError, KvmDbgError, UnsupportedError
from kvm_dbg.kernel_file import dwarf
from kvm_dbg.kernel_file.dwarf import make_dwarf
from tests.unit.made_dwarf import Read, check, members, plain_btf, symbol, types_of
from tests.writers.btf import (
    ARRAY,
    CONST,
    DATASEC,
    DECL_TAG,
    ENUM,
    FLOAT,
    FUNC,
    FUNC_PROTO,
    FWD,
    PTR,
    RESTRICT,
    SIGNED,
    STRUCT,
    TYPE_TAG,
    TYPEDEF,
    UNION,
    VAR,
    VOLATILE,
    BtfWriter,
)

BROKEN = "broken_btf_type"


@pytest.fixture
def btf() -> BtfWriter:
    """Return BTF whose type 1 is int, 2 unsigned long and 3 char."""
    return plain_btf()


def loops(btf: BtfWriter) -> None:
    btf.pointer(btf.next + 1)
    btf.alias(CONST, btf.next + 1)
    btf.alias(TYPEDEF, btf.next - 2, "loop_t")


def contains_itself(btf: BtfWriter) -> None:
    btf.struct("selfish", 64, [("head", 1, 0), ("again", btf.next + 1, 64)])
    btf.array(btf.next - 1, 1)


def nests_deeply(btf: BtfWriter) -> None:
    for _ in range(200):
        btf.pointer(btf.next + 1)
    btf.pointer(1)


BAD = {
    "a pointer to itself": (loops, 3),
    "a struct in itself": (contains_itself, 1),
    "pointers without end": (nests_deeply, 137),
    "a type that is not there": (lambda btf: btf.pointer(999), 1),
    "a type that is none": (lambda btf: (btf.add("v", VAR, 1, [0]), btf.pointer(btf.next - 1)), 1),
    "a member that is not there": (lambda btf: btf.struct("s", 8, [("a", 999, 0), ("b", 1, 32)]), 1),
    "a member outside": (lambda btf: btf.struct("s", 8, [("a", 1, 0), ("b", 1, 64)]), 1),
    "a member of no type": (lambda btf: btf.struct("s", 8, [("a", 0, 0)]), 1),
    "a member between bytes": (lambda btf: btf.struct("s", 8, [("a", 1, 3)]), 1),
    "a bit-field that is too wide": (lambda btf: btf.struct("s", 8, [("a", 3, 9 << 24)], flag=True), 1),
    "a bit-field of pointers": (lambda btf: btf.struct("s", 8, [("a", btf.pointer(1), 9 << 24)], flag=True), 1),
    "an array of nothing": (lambda btf: btf.array(0, 4), 1),
    "an array as large as all": (lambda btf: btf.array(btf.array(2, 0x10000000), 0x10000000), 1),
    "an integer of 3 bytes": (lambda btf: btf.integer("odd", 3), 1),
    "an enum of 0 bytes": (lambda btf: btf.enum("e", [("A", 1)], size=0), 1),
    "a float of 1 GiB": (lambda btf: btf.add("f", FLOAT, 1 << 30, []), 1),
    "a typedef without a name": (lambda btf: btf.alias(TYPEDEF, 1), 1),
    "too many parameters": (lambda btf: btf.add("", FUNC_PROTO, 1, [0, 1] * 128, 128), 1),
    "a parameter of no type": (lambda btf: btf.add("", FUNC_PROTO, 1, [0, 0, 0, 1], 2), 1),
    "a result that is not there": (lambda btf: btf.add("", FUNC_PROTO, 999, []), 1),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_makes_no_sense_is_left_out_and_counted(btf: BtfWriter, what: str) -> None:
    build, count = BAD[what]
    build(btf)
    btf.struct("fine", 4, [("number", 1, 0)])
    found = make_dwarf(types_of(btf), [])
    assert found.left_out == count
    read = Read(found)
    assert members(read.find("fine")) == [("number", "int", 0)]
    check(read)


def test_a_struct_in_itself_keeps_its_other_members(btf: BtfWriter) -> None:
    contains_itself(btf)
    read = Read(make_dwarf(types_of(btf), []))
    assert members(read.find("selfish")) == [("head", "int", 0), ("again", f"struct {BROKEN}", 8)]


def test_names_that_are_not_there(btf: BtfWriter) -> None:
    btf.struct("marked", 8, [("good", 1, 0), ("lost", 1, 32)])
    btf.places["lost"] = 1 << 20
    btf.struct("fine", 8, [("good", 1, 0), ("lost", 1, 32)])
    found = make_dwarf(types_of(btf), [])
    assert found.left_out == 1
    assert [name for name, _, _ in members(Read(found).find("fine"))] == ["good", BROKEN]


def test_functions_and_variables_of_no_type(btf: BtfWriter) -> None:
    btf.add("f", FUNC, 1, [])
    btf.add("v", VAR, 999, [0])
    found = make_dwarf(types_of(btf), [symbol("f", 0x1000), symbol("v", 0x2000)])
    assert (found.left_out, found.functions, found.variables) == (2, 0, 0)
    assert Read(found).names("subprogram") == []


def test_btf_that_ends_early(btf: BtfWriter) -> None:
    with pytest.raises(FormatError, match="type_len"):
        make_dwarf(types_of(btf), []) if btf.add("cut", STRUCT, 4, [], vlen=1) else None


def test_kinds_of_later_kernels(btf: BtfWriter) -> None:
    btf.add("new", 40, 0, [])
    with pytest.raises(UnsupportedError, match="BTF kind 40"):
        make_dwarf(types_of(btf), [])


def test_more_than_dwarf_can_hold(btf: BtfWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dwarf, "MAX_LENGTH", 20)
    with pytest.raises(UnsupportedError, match="too large"):
        make_dwarf(types_of(btf), [])


def small_kernel() -> BtfWriter:
    """Return BTF with every kind in it."""
    btf = BtfWriter()
    btf.integer("int", 4, SIGNED)
    btf.integer("long unsigned int", 8)
    btf.pointer(4)
    btf.struct("node", 32, [("next", 3, 0), ("bits", 1, 64), ("inner", 5, 128)])
    btf.struct("inner", 16, [("a", 1, 3 << 24), ("b", 1, 5 << 24 | 3), ("rest", 6, 64)], kind=UNION, flag=True)
    btf.array(2, 1)
    btf.enum("choice", [("LEFT", 0), ("RIGHT", -1)])
    btf.enum64("wide", [("WIDE", 1 << 40)])
    btf.add("hidden", FWD, 0, [])
    btf.alias(TYPEDEF, 11, "node_t")
    btf.alias(CONST, 12)
    btf.alias(VOLATILE, 13)
    btf.alias(RESTRICT, 3)
    btf.add("", FUNC_PROTO, 1, [btf.string("n"), 10, 0, 3, 0, 0], 3)
    btf.add("work", FUNC, 14, [])
    btf.add("state", VAR, 4, [1])
    btf.add(".data..percpu", DATASEC, 32, [16, 0, 32], 1)
    btf.add("double", FLOAT, 8, [])
    btf.add("tag", DECL_TAG, 16, [0xFFFFFFFF])
    btf.alias(TYPE_TAG, 1, "user")
    btf.pointer(20)
    return btf


@pytest.mark.parametrize("seed", range(8))
def test_mutants_make_an_error_of_ours_or_sound_dwarf(seed: int) -> None:
    generator = random.Random(seed)
    good = small_kernel().section()
    symbols = [symbol("work", 0x1000), symbol("state", 0x2000, 32, "D"), symbol("jiffies", 0x3000, 8, "D")]
    assert make_dwarf(BtfTypes(good), symbols).left_out == 0
    sound = 0
    for _ in range(60):
        mutant = bytearray(good)
        for _ in range(generator.randint(1, 4)):
            if generator.random() < 0.5:
                mutant[generator.randrange(24, len(mutant))] = generator.randrange(256)
            else:
                at = generator.randrange(24, len(mutant) - 4) & ~3
                numbers = (0, 1, generator.randrange(24), 0xFFFFFFFF, 0x7FFFFFFF, 0x04000001, 0x8D000002)
                struct.pack_into("<I", mutant, at, generator.choice(numbers))
        if generator.random() < 0.1:
            del mutant[generator.randrange(len(mutant)) :]
        try:
            found = make_dwarf(BtfTypes(bytes(mutant)), symbols)
        except KvmDbgError:
            continue
        assert sum(map(len, found.sections.values())) < 20000
        check(Read(found))
        sound += 1
    assert sound > 10


def test_a_module_of_broken_btf(btf: BtfWriter) -> None:
    kernel = types_of(btf)
    split = BtfWriter(base=btf)
    split.add("", PTR, 999, [])
    split.add("", ARRAY, 0, [split.next, 1, 4])
    split.add("e", ENUM, 3, [])
    found = make_dwarf(kernel, [], modules={"bad": types_of(split, kernel)})
    assert found.left_out == 3
    check(Read(found))
