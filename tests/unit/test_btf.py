from __future__ import annotations

import contextlib
import random
import struct
from pathlib import Path

import pytest

from kvm_dbg.debuginfo.base import (
    ArrayType,
    EnumType,
    FloatType,
    FunctionType,
    IntType,
    PointerType,
    StructType,
    TypedefType,
    VoidType,
    size_of,
)
from kvm_dbg.debuginfo.btf import INDEX_LAYOUT, BtfTypes
from kvm_dbg.errors import FormatError, KvmDbgError, MemberNotFound, TypeNotFound, UnsupportedError
from kvm_dbg.index import Index
from tests.writers import btf as b
from tests.writers.btf import BtfWriter


def kernel(order: str = "<", *, flags: bool = True) -> BtfWriter:
    """Return types of all kinds, numbered as the tests below expect."""
    w = BtfWriter(order)
    w.integer("int", 4, b.SIGNED)  # 1
    w.integer("long unsigned int", 8)  # 2
    w.integer("char", 1, b.SIGNED)  # 3
    w.integer("_Bool", 1, b.BOOL)  # 4
    w.alias(b.TYPEDEF, 1, "pid_t")  # 5
    w.array(3, 16)  # 6
    w.struct("list_head", 16, [("next", 8, 0), ("prev", 8, 64)])  # 7
    w.pointer(7)  # 8
    w.struct("", 8, [("inner_a", 1, 0), ("inner_b", 5, 32)])  # 9
    w.struct("", 8, [("whole", 2, 0), ("", 9, 0)], kind=b.UNION)  # 10
    w.alias(b.CONST, 12)  # 11
    w.alias(b.VOLATILE, 5)  # 12
    members = [("comm", 6, 0), ("tasks", 7, 128), ("", 10, 256), ("pid", 11, 320), ("low", 1, 352), ("high", 1, 355)]
    if flags:
        members[4] = ("low", 1, 3 << 24 | 352)
        members[5] = ("high", 1, 29 << 24 | 355)
    w.struct("task_struct", 48, members, flag=flags)  # 13
    w.enum("desc_state", [("desc_reserved", 0), ("desc_finalized", 2), ("desc_miss", -1)], flag=flags)  # 14
    w.enum("plain", [("TOP_BIT", 0x80000000)])  # 15
    if flags:
        w.enum64("wide", [("WIDE", 1 << 40), ("MINUS", -5)], flag=True)  # 16
    else:
        w.integer("unused", 8)
    w.add("elsewhere", b.FWD, 0, [])  # 17
    w.add("list_head", b.FWD, 0, [])  # 18
    w.add("", b.FUNC_PROTO, 1, [0, 1], vlen=1)  # 19
    w.add("do_it", b.FUNC, 19, [])  # 20
    w.add("runqueues", b.VAR, 13, [1])  # 21
    w.add(".data..percpu", b.DATASEC, 48, [21, 0, 48], vlen=1)  # 22
    w.add("double", b.FLOAT, 8, [])  # 23
    w.add("user", b.TYPE_TAG, 7, [])  # 24
    w.pointer(24)  # 25
    w.add("tag", b.DECL_TAG, 13, [0xFFFFFFFF])  # 26
    w.alias(b.RESTRICT, 8)  # 27
    w.struct("holder", 40, [("p", 25, 0), ("fn", 30, 64), ("q", 17 + 12, 128), ("lh", 31, 192), ("v", 32, 256)])  # 28
    w.pointer(17)  # 29
    w.pointer(19)  # 30
    w.pointer(18)  # 31
    w.pointer(0)  # 32
    w.alias(b.TYPEDEF, 13, "task_t")  # 33
    return w


def types(order: str = "<", **options: bool) -> BtfTypes:
    return BtfTypes(kernel(order, **options).section(), source="BTF of a test")


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_struct_and_its_members(order: str) -> None:
    struct_type = types(order).struct("struct task_struct")
    assert (struct_type.keyword, struct_type.name, struct_type.size) == ("struct", "task_struct", 48)
    assert [(m.name, m.bit_offset, m.bit_size) for m in struct_type.members] == [
        ("comm", 0, 0),
        ("tasks", 128, 0),
        ("", 256, 0),
        ("pid", 320, 0),
        ("low", 352, 3),
        ("high", 355, 29),
    ]


@pytest.mark.parametrize("order", ["<", ">"])
def test_anonymous_levels_and_paths(order: str) -> None:
    table = types(order)
    assert table.offset_of("struct task_struct", "whole") == 32
    assert table.offset_of("struct task_struct", "inner_b") == 36
    assert table.offset_of("struct task_struct", "tasks.prev") == 24
    assert table.offset_of("task_t", "pid") == 40
    assert table.has_member("struct task_struct", "inner_a")
    assert not table.has_member("struct task_struct", "tasks.none")
    assert not table.has_member("struct none", "a")
    with pytest.raises(MemberNotFound, match="struct task_struct has no member 'state'"):
        table.offset_of("struct task_struct", "state")


@pytest.mark.parametrize("order", ["<", ">"])
def test_every_kind(order: str) -> None:
    table = types(order)
    number = table.type("int")
    assert isinstance(number, IntType)
    assert (number.size, number.signed, number.is_bool, number.is_char) == (4, True, False, False)
    truth, letter = table.type("_Bool"), table.type("char")
    assert isinstance(truth, IntType)
    assert truth.is_bool
    assert isinstance(letter, IntType)
    assert letter.is_char
    alias = table.type("pid_t")
    assert isinstance(alias, TypedefType)
    assert alias.stripped() is number
    assert isinstance(table.type("double"), FloatType)
    comm = table.struct("struct task_struct").member("comm").type
    assert isinstance(comm, ArrayType)
    assert (comm.count, comm.byte_size, size_of(comm)) == (16, 16, 16)
    holder = table.struct("struct holder")
    tagged, function = holder.member("p").type, holder.member("fn").type
    assert isinstance(tagged, PointerType)
    assert tagged.target is table.type("struct list_head")
    assert isinstance(function, PointerType)
    assert isinstance(function.target, FunctionType)
    forward = holder.member("q").type
    assert isinstance(forward, PointerType)
    assert isinstance(forward.target, StructType)
    assert (forward.target.name, forward.target.size, forward.target.members) == ("elsewhere", 0, ())
    known = holder.member("lh").type
    assert isinstance(known, PointerType)
    assert known.target is table.type("struct list_head")
    void = holder.member("v").type
    assert isinstance(void, PointerType)
    assert isinstance(void.target, VoidType)
    assert size_of(void) == 8
    assert table.find_variable("runqueues") is table.type("struct task_struct")
    assert table.find_variable("none") is None


def test_a_pointer_is_as_large_as_long() -> None:
    w = BtfWriter()
    w.integer("long unsigned int", 4)
    w.struct("s", 4, [("p", 3, 0)])
    w.pointer(1)
    table = BtfTypes(w.section())
    assert table.struct("struct s").member("p").type.size == 4


def test_declarations_do_not_count_as_types() -> None:
    assert types().find_type("struct elsewhere") is None
    w = BtfWriter()
    w.enum("only_declared", [])
    assert BtfTypes(w.section()).find_type("enum only_declared") is None
    with pytest.raises(TypeNotFound, match="no type 'struct elsewhere' in BTF of a test"):
        types().type("struct elsewhere")


def test_integers_by_any_spelling() -> None:
    table = types()
    for name in ("unsigned long", "unsigned long int", "long unsigned int"):
        assert table.size_of(name) == 8
    assert table.type("bool").size == 1
    assert table.find_type("unsigned short") is None


def test_the_same_tag_of_two_kinds() -> None:
    w = BtfWriter()
    w.integer("int", 4, b.SIGNED)
    w.struct("both", 4, [("a", 1, 0)])
    w.enum("both", [("E", 1)])
    w.alias(b.TYPEDEF, 1, "both")
    w.struct("both", 8, [("u", 1, 0)], kind=b.UNION)
    table = BtfTypes(w.section())
    assert table.struct("struct both").keyword == "struct"
    assert table.struct("union both").keyword == "union"
    assert isinstance(table.type("enum both"), EnumType)
    assert isinstance(table.type("both"), TypedefType)


@pytest.mark.parametrize("order", ["<", ">"])
def test_enumerators(order: str) -> None:
    table = types(order)
    assert [table.find_enumerator(name) for name in ("desc_finalized", "desc_miss", "TOP_BIT", "WIDE", "MINUS")] == [
        2,
        -1,
        0x80000000,
        1 << 40,
        -5,
    ]
    assert table.find_enumerator("NONE") is None
    state = table.type("enum desc_state")
    assert isinstance(state, EnumType)
    assert state.signed
    assert [value.name for value in state.enumerators] == ["desc_reserved", "desc_finalized", "desc_miss"]


def test_enums_of_writers_that_never_set_the_flag_are_signed() -> None:
    table = types(flags=False)
    assert table.find_enumerator("desc_miss") == -1
    assert table.find_enumerator("TOP_BIT") == -0x80000000


def test_bit_fields_of_structs_without_the_flag() -> None:
    w = BtfWriter()
    w.integer("int", 4, b.SIGNED)
    w.integer("unsigned int", 4, 0, bits=5, first_bit=3)
    w.alias(b.TYPEDEF, 2, "five_bits")
    w.alias(b.CONST, 3)
    w.struct("old", 8, [("whole", 1, 0), ("five", 4, 32)])
    members = BtfTypes(w.section()).struct("struct old").members
    assert [(m.name, m.bit_offset, m.bit_size) for m in members] == [("whole", 0, 0), ("five", 35, 5)]


def test_a_longer_header_is_skipped() -> None:
    table = BtfTypes(kernel().section(header_size=40))
    assert table.offset_of("struct task_struct", "pid") == 40


@pytest.mark.parametrize("order", ["<", ">"])
def test_split_btf_goes_on_from_its_base(order: str) -> None:
    base_writer = kernel(order)
    base = BtfTypes(base_writer.section())
    w = BtfWriter(order, base_writer)
    own = w.struct("of_module", 24, [("list", 7, 0), ("pid", 5, 128), ("fresh", 1, 160)])
    w.pointer(own)
    w.struct("other", 8, [("back", own + 1, 0)])
    w.enum("", [("MODULE_VALUE", 9)])
    table = BtfTypes(w.section(), base=base, source="BTF of a module")
    struct_type = table.struct("struct of_module")
    assert [m.name for m in struct_type.members] == ["list", "pid", "fresh"]
    assert struct_type.member("list").type is base.type("struct list_head")
    assert table.type("struct task_struct") is base.type("struct task_struct")
    back = table.struct("struct other").member("back").type
    assert isinstance(back, PointerType)
    assert back.target is struct_type
    assert table.find_enumerator("MODULE_VALUE") == 9
    assert table.find_enumerator("desc_finalized") == 2
    assert base.find_type("struct of_module") is None


def test_the_index_gives_the_same_answers(tmp_path: Path) -> None:
    data = kernel().section()
    for _ in range(2):
        index = Index(tmp_path, b"\x01\x02")
        table = BtfTypes(data, index=index)
        assert index.note is None
        assert table.offset_of("struct task_struct", "inner_b") == 36
        assert table.find_enumerator("desc_finalized") == 2
        assert table.find_type("struct none") is None
    assert Path(index.path("btf")).is_file()


def test_an_index_of_other_types_is_not_used(tmp_path: Path) -> None:
    index = Index(tmp_path, b"\x01\x02")
    BtfTypes(kernel().section(), index=index)
    w = BtfWriter()
    w.integer("int", 4)
    w.struct("task_struct", 4, [("other", 1, 0)])
    assert BtfTypes(w.section(), index=index).has_member("struct task_struct", "other")


def test_an_index_with_bad_numbers_raises_only_our_errors(tmp_path: Path) -> None:
    data = kernel().section()
    index = Index(tmp_path, b"\x01\x02")
    good = BtfTypes(data)
    identity = INDEX_LAYOUT + good.data.sample()
    generator = random.Random(5)
    parts = {name: part.tobytes() for name, part in good.data.tables().items()}
    for _ in range(300):
        broken = dict(parts)
        name = generator.choice(("offsets", "ids"))
        numbers = bytearray(broken[name])
        place = generator.randrange(len(numbers) // 4) * 4
        struct.pack_into("I", numbers, place, generator.choice((0, 1, 5, 33, 34, 200, 1 << 31, 0xFFFFFFFF)))
        broken[name] = bytes(numbers)
        index.store("btf", identity, broken)
        ask_everything(BtfTypes(data, index=index))


def ask_everything(table: BtfTypes) -> None:
    """Ask all there is; only kvm_dbg's own errors may come out."""
    for name in ("struct task_struct", "struct holder", "pid_t", "enum desc_state", "enum wide", "int", "task_t"):
        with contextlib.suppress(KvmDbgError):
            found = table.find_type(name)
            if found is not None:
                size_of(found)
                inner = found.stripped()
                if isinstance(inner, StructType):
                    inner.find_member("no.such.member")
                    for member in inner.members:
                        size_of(member.type)
                if isinstance(inner, EnumType):
                    list(inner.enumerators)
    for name in ("desc_finalized", "WIDE", "none"):
        with contextlib.suppress(KvmDbgError):
            table.find_enumerator(name)
    with contextlib.suppress(KvmDbgError):
        table.find_variable("runqueues")


@pytest.mark.parametrize("order", ["<", ">"])
def test_every_truncation_and_many_mutants_raise_only_our_errors(order: str) -> None:
    good = kernel(order).section()
    for size in range(len(good)):
        with pytest.raises((FormatError, UnsupportedError)):
            BtfTypes(good[:size]).find_type("struct task_struct")
    generator = random.Random(3)
    for _ in range(1500):
        data = bytearray(good)
        for _ in range(generator.choice((1, 2, 8))):
            place = generator.randrange(len(data))
            data[place] = generator.choice((0, 1, 2, 0x80, 0xFF, generator.randrange(256)))
        with contextlib.suppress(KvmDbgError):
            ask_everything(BtfTypes(bytes(data)))


@pytest.mark.parametrize(
    ("place", "value", "error", "words"),
    [
        (0, b"\x00", FormatError, "magic"),
        (2, b"\x02", UnsupportedError, "BTF version 2"),
        (4, b"\x17", FormatError, "hdr_len"),
        (4, b"\xff\xff", FormatError, "hdr_len"),
        (8, b"\xff\xff\xff", FormatError, "type_off"),
        (12, b"\x02", FormatError, "type_len"),
        (20, b"\xff\xff\xff", FormatError, "str_off"),
        (24 + 4 + 3, b"\x14", UnsupportedError, "BTF kind 20"),
        (24 + 4 + 3, b"\x00", UnsupportedError, "BTF kind 0"),
    ],
)
def test_each_wrong_field_is_named(place: int, value: bytes, error: type[KvmDbgError], words: str) -> None:
    data = bytearray(kernel().section())
    data[place : place + len(value)] = value
    with pytest.raises(error, match=words):
        BtfTypes(bytes(data), source="BTF of a test").find_type("int")


def test_circles_end() -> None:
    w = BtfWriter()
    w.integer("int", 4)
    w.alias(b.CONST, 3)
    w.alias(b.VOLATILE, 2)
    w.struct("through_qualifiers", 4, [("a", 2, 0)])
    w.alias(b.TYPEDEF, 6, "ping")
    w.alias(b.TYPEDEF, 5, "pong")
    w.array(7, 2)
    w.struct("through_array", 4, [("a", 7, 0)])
    w.struct("inside_itself", 4, [("", 9, 0), ("", 9, 0), ("", 9, 0), ("x", 1, 0)])
    table = BtfTypes(w.section())
    with pytest.raises(FormatError, match="qualifiers"):
        _ = table.struct("struct through_qualifiers").members[0].type
    with pytest.raises(TypeNotFound, match="refers to itself"):
        table.size_of("ping")
    with pytest.raises(TypeNotFound, match="array of itself"):
        size_of(table.struct("struct through_array").members[0].type)
    assert table.offset_of("struct inside_itself", "x") == 0
    assert not table.has_member("struct inside_itself", "y")


def test_a_reference_to_no_type_names_the_place() -> None:
    w = BtfWriter()
    w.struct("s", 8, [("a", 99, 0)])
    with pytest.raises(FormatError, match="no type has the number 99"):
        _ = BtfTypes(w.section()).struct("struct s").members[0].type
