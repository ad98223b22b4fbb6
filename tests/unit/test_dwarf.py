from __future__ import annotations

import contextlib
import random
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
    size_of,
)
from kvm_dbg.debuginfo.dwarf import DwarfTypes
from kvm_dbg.debuginfo.dwarf_search import DwarfSearch
from kvm_dbg.debuginfo.kernel_types import open_kernel_types
from kvm_dbg.elf import ElfFile
from kvm_dbg.errors import FormatError, KvmDbgError, UnsupportedError
from kvm_dbg.index import Index
from tests.writers import dwarf as d
from tests.writers.dwarf import Die, DwarfWriter
from tests.writers.kernel_file import write_kernel_file


def base(name: str, size: int, encoding: int) -> Die:
    form = d.STRING if len(name) <= 3 else d.STRP
    return Die(
        d.BASE, [(d.BYTE_SIZE, d.DATA1, size), (d.ENCODING, d.DATA1, encoding), (d.NAME, form, name)], label=name
    )


def named(tag: int, name: str, *attributes: d.Attribute, children: list[Die] | None = None, label: str = "") -> Die:
    form = d.STRING if len(name) <= 3 else d.STRP
    return Die(tag, [(d.NAME, form, name), *attributes], children or [], label or f"{tag} {name}")


def member(name: str, place: int | bytes, type_: str, *attributes: d.Attribute) -> Die:
    form = d.DATA1 if isinstance(place, int) else d.EXPRLOC
    where: list[d.Attribute] = [(d.TYPE, d.REF4, type_), (d.MEMBER_LOCATION, form, place), *attributes]
    if not name:
        return Die(d.MEMBER, where)
    return Die(d.MEMBER, [(d.NAME, d.STRING if len(name) <= 3 else d.STRP, name), *where])


def pointer(target: str | None, label: str) -> Die:
    attributes: list[d.Attribute] = [(d.BYTE_SIZE, d.DATA1, 8)]
    return Die(d.POINTER, attributes + ([(d.TYPE, d.REF4, target)] if target else []), label=label)


def first_unit(version: int, *, siblings: bool = True) -> list[Die]:
    low: list[d.Attribute]
    if version >= 5:
        low = [(d.BIT_SIZE, d.DATA1, 3), (d.DATA_BIT_OFFSET, d.DATA1, 32)]
        high: list[d.Attribute] = [(d.BIT_SIZE, d.DATA1, 29), (d.DATA_BIT_OFFSET, d.DATA1, 35)]
        fields = [
            Die(d.MEMBER, [(d.NAME, d.STRING, "low"), (d.TYPE, d.REF4, "int"), *low]),
            Die(d.MEMBER, [(d.NAME, d.STRP, "high"), (d.TYPE, d.REF4, "int"), *high]),
        ]
    else:  # counted from the most significant bit of an int at byte 4
        low = [(d.BYTE_SIZE, d.DATA1, 4), (d.BIT_SIZE, d.DATA1, 3), (d.BIT_OFFSET, d.DATA1, 29)]
        high = [(d.BIT_SIZE, d.DATA1, 29), (d.BIT_OFFSET, d.DATA1, 0)]  # the size is the type's
        fields = [member("low", 4, "int", *low), member("high", 4, "int", *high)]
    task = named(
        d.STRUCTURE,
        "task_struct",
        (d.BYTE_SIZE, d.DATA2, 600),
        children=[
            member("pid", 0, "pid_t"),
            *fields,
            member("comm", 8, "char[16]"),
            member("mm", b"\x23\x98\x03" if version < 5 else 24, "mm*"),
            member("", 32, "union"),
            member("fn", 40, "fn*"),
            member("any", 48, "void*"),
            member("grid", 56, "grid"),
            member("tail", 64, "tail"),
        ],
        label="task",
    )
    if version < 5:  # DW_OP_plus_uconst 408
        task.children[4].attributes[2] = (d.MEMBER_LOCATION, d.EXPRLOC, b"\x23\x98\x03")
    dies = [
        base("int", 4, 5),
        base("long unsigned int", 8, 7),
        base("char", 1, 6),
        base("_Bool", 1, 2),
        base("double", 8, 4),
        named(d.TYPEDEF, "pid_t", (d.TYPE, d.REF4, "const int"), label="pid_t"),
        Die(d.CONST, [(d.TYPE, d.REF4, "int")], label="const int"),
        Die(d.ARRAY, [(d.TYPE, d.REF4, "char")], [Die(d.SUBRANGE, [(d.UPPER_BOUND, d.DATA1, 15)])], "char[16]"),
        Die(
            d.ARRAY,
            [(d.TYPE, d.REF4, "int")],
            [Die(d.SUBRANGE, [(d.UPPER_BOUND, d.DATA1, 2)]), Die(d.SUBRANGE, [(d.COUNT, d.DATA1, 5)])],
            "grid",
        ),
        Die(d.ARRAY, [(d.TYPE, d.REF4, "int")], [Die(d.SUBRANGE, [(d.TYPE, d.REF4, "int")])], "tail"),
        named(d.STRUCTURE, "mm_struct", (d.DECLARATION, d.FLAG_PRESENT, 1), label="mm declared"),
        named(d.STRUCTURE, "nowhere", (d.DECLARATION, d.FLAG_PRESENT, 1), label="nowhere"),
        pointer("mm declared", "mm*"),
        Die(
            d.UNION,
            [(d.BYTE_SIZE, d.DATA1, 8)],
            [member("whole", 0, "long unsigned int"), member("half", 0, "int")],
            "union",
        ),
        Die(d.SUBROUTINE, [(d.TYPE, d.REF4, "int")], label="fn"),
        pointer("fn", "fn*"),
        pointer(None, "void*"),
        task,
        named(
            d.ENUMERATION,
            "desc_state",
            (d.BYTE_SIZE, d.DATA1, 4),
            children=[
                named(d.ENUMERATOR, "desc_finalized", (d.CONST_VALUE, d.DATA1, 2)),
                named(d.ENUMERATOR, "desc_miss", (d.CONST_VALUE, d.SDATA, -1)),
            ],
        ),
        named(
            d.SUBPROGRAM,
            "a_function",
            children=[
                named(d.STRUCTURE, "of_function", (d.BYTE_SIZE, d.DATA1, 8), children=[member("x", 0, "int")]),
                named(d.STRUCTURE, "rq", (d.BYTE_SIZE, d.DATA1, 9), children=[member("not_this", 0, "int")]),
            ],
        ),
    ]
    for die in dies:
        die.sibling = siblings
    return dies


def second_unit() -> list[Die]:
    return [
        base("int", 4, 5),
        named(d.STRUCTURE, "mm_struct", (d.BYTE_SIZE, d.DATA2, 1000), children=[member("pgd", 72, "int")]),
        named(d.STRUCTURE, "rq", (d.BYTE_SIZE, d.DATA1, 16), children=[member("rq", 8, "int")]),
        named(d.STRUCTURE, "struct_with_a_tail_named_mm_struct", (d.BYTE_SIZE, d.DATA1, 4)),
    ]


def written(
    version: int = 5, order: str = "<", first_code: int = 1, *, siblings: bool = True, compressed: bool = False
) -> bytes:
    writer = DwarfWriter(order, version, first_code)
    writer.string("struct_with_a_tail_named_mm_struct")  # so that mm_struct is only the end of another string
    writer.unit(*first_unit(version, siblings=siblings))
    writer.unit(*second_unit())
    return write_kernel_file(writer.parts(compressed=compressed), order=order)


def table(data: bytes, index: Index | None = None) -> DwarfTypes:
    return DwarfTypes(ElfFile(data, "vmlinux"), index=index)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(written(), id="5"),
        pytest.param(written(4), id="4"),
        pytest.param(written(first_code=120), id="codes-of-two-bytes"),
        pytest.param(written(siblings=False), id="no-siblings"),
        pytest.param(written(compressed=True), id="compressed"),
    ],
)
def test_a_struct_its_members_and_what_they_refer_to(data: bytes) -> None:
    types = table(data)
    task = types.struct("struct task_struct")
    mm_place = 24 if task.member("mm").offset == 24 else 408  # the expression of DWARF 4
    assert [(m.name, m.bit_offset, m.bit_size) for m in task.members] == [
        ("pid", 0, 0),
        ("low", 32, 3),
        ("high", 35, 29),
        ("comm", 64, 0),
        ("mm", 8 * mm_place, 0),
        ("", 256, 0),
        ("fn", 320, 0),
        ("any", 384, 0),
        ("grid", 448, 0),
        ("tail", 512, 0),
    ]
    assert task.size == 600
    assert task.member("half").offset == 32
    comm, grid, tail = (task.member(name).type for name in ("comm", "grid", "tail"))
    assert isinstance(comm, ArrayType)
    assert comm.count == 16
    assert isinstance(grid, ArrayType)
    assert isinstance(grid.element, ArrayType)
    assert (grid.count, grid.element.count, size_of(grid)) == (3, 5, 60)
    assert isinstance(tail, ArrayType)
    assert tail.count == 0
    function = task.member("fn").type
    assert isinstance(function, PointerType)
    assert isinstance(function.target, FunctionType)
    pid = task.member("pid").type.stripped()
    assert isinstance(pid, IntType)
    assert pid.signed


def test_a_struct_declared_here_is_found_in_another_unit() -> None:
    types = table(written())
    mm = types.struct("struct task_struct").member("mm").type
    assert isinstance(mm, PointerType)
    assert isinstance(mm.target, StructType)
    assert mm.target.size == 1000
    assert mm.target.member("pgd").offset == 72
    assert types.find_type("struct nowhere") is None


def test_names_written_in_place_and_types_of_functions() -> None:
    types = table(written())
    assert types.struct("struct rq").size == 16  # not the one inside a function
    assert types.find_type("struct of_function") is None
    assert types.type("int").size == 4
    assert types.size_of("unsigned long") == 8
    assert isinstance(types.type("double"), FloatType)
    assert types.type("void").size == 0


def test_enums() -> None:
    types = table(written())
    state = types.type("enum desc_state")
    assert isinstance(state, EnumType)
    assert state.signed
    assert [tuple(value) for value in state.enumerators] == [("desc_finalized", 2), ("desc_miss", -1)]
    assert types.find_enumerator("desc_finalized") == 2
    assert types.find_enumerator("desc_miss") == -1
    assert types.find_enumerator("none") is None


def test_big_endian_bit_fields() -> None:
    task = table(written(4, ">")).struct("struct task_struct")
    low, high = task.member("low"), task.member("high")
    assert (low.bit_offset, high.bit_offset) == (32 + 29, 32)


def test_the_index_remembers_what_was_found_and_what_was_not(tmp_path: Path) -> None:
    data = written()
    index = Index(tmp_path, b"\x09")
    first = table(data, index)
    assert first.offset_of("struct task_struct", "comm") == 8
    assert first.find_type("struct absent") is None
    assert first.find_enumerator("desc_miss") == -1
    again = table(data, index)
    assert again.offset_of("struct task_struct", "comm") == 8
    assert again.find_type("struct absent") is None
    assert again.find_enumerator("desc_miss") == -1
    assert again._search is None  # the file was not searched
    mm = again.struct("struct task_struct").member("mm").type
    assert isinstance(mm, PointerType)
    assert mm.target.size == 1000


def test_a_damaged_kept_node_raises_only_our_errors(tmp_path: Path) -> None:
    data = written()
    index = Index(tmp_path, b"\x09")
    good = table(data, index)
    ask_everything(good)
    for text in (b"", b"[]", b"{}", b'{"names":{"struct task_struct":7},"nodes":{"7":["struct",1]}}', b"\xff"):
        index.store("dwarf", good._identity, {"nodes": text})
        ask_everything(table(data, index))


def ask_everything(types: DwarfTypes) -> None:
    for name in ("struct task_struct", "struct mm_struct", "struct rq", "enum desc_state", "pid_t", "int", "absent"):
        with contextlib.suppress(KvmDbgError):
            found = types.find_type(name)
            if found is not None:
                inner = found.stripped()
                size_of(inner)
                if isinstance(inner, StructType):
                    for member_ in inner.members:
                        size_of(member_.type)
    with contextlib.suppress(KvmDbgError):
        types.find_enumerator("desc_miss")


def as_clang(order: str, version: int, bits: int) -> bytes:
    """Return a file with the order of attributes that Clang writes: a typedef's and an enum's type before the name."""
    writer = DwarfWriter(order, version, clang=version == 5, address_size=bits // 8)
    writer.unit(Die(d.STRUCTURE, [(d.NAME, d.STRP, "proc"), (d.DECLARATION, d.FLAG_PRESENT, 0)], label="p"))
    number = Die(d.BASE, [(d.NAME, d.STRP, "int"), (d.ENCODING, d.DATA1, 5), (d.BYTE_SIZE, d.DATA1, 4)], label="int")
    alias = Die(d.TYPEDEF, [(d.TYPE, d.REF4, "int"), (d.NAME, d.STRP, "pid_t")], label="pid_t")
    values = [Die(d.ENUMERATOR, [(d.NAME, d.STRP, "SIDL"), (d.CONST_VALUE, d.UDATA, 1)])]
    enum: list[d.Attribute] = [(d.TYPE, d.REF4, "int"), (d.NAME, d.STRP, "states"), (d.BYTE_SIZE, d.DATA1, 4)]
    next_ = Die(d.POINTER, [(d.TYPE, d.REF4, "proc")], label="next")
    members = [
        Die(d.MEMBER, [(d.NAME, d.STRP, name), (d.TYPE, d.REF4, type_), (d.MEMBER_LOCATION, d.DATA1, place)])
        for name, type_, place in (("p_next", "next", 0), ("p_pid", "pid_t", bits // 8))
    ]
    proc = Die(d.STRUCTURE, [(d.NAME, d.STRP, "proc"), (d.BYTE_SIZE, d.DATA1, 24)], members, "proc")
    writer.unit(number, alias, Die(d.ENUMERATION, enum, values, "states"), next_, proc)
    return write_kernel_file(writer.parts(), order=order, bits=bits)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [32, 64])
def test_entries_as_clang_writes_them(version: int, order: str, bits: int) -> None:
    types = open_kernel_types(ElfFile(as_clang(order, version, bits), "kernel.debug"))
    assert isinstance(types, DwarfTypes)
    proc = types.struct("struct proc")
    pointer = proc.member("p_next").type
    assert isinstance(pointer, PointerType)
    assert (pointer.size, pointer.target) == (bits // 8, proc)
    assert (proc.size, proc.member("p_pid").offset, proc.member("p_pid").type.name) == (24, bits // 8, "pid_t")
    assert types.size_of("pid_t") == types.size_of("enum states") == types.size_of("int") == 4
    assert types.find_enumerator("SIDL") == 1
    assert types.find_type("struct gone") is None


def test_damaged_tables_of_strings_raise_only_our_errors() -> None:
    good, rng = as_clang("<", 5, 64), random.Random(5)
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(3):
            bad[rng.randrange(64, len(bad))] = rng.randrange(256)
        with contextlib.suppress(KvmDbgError):
            types = table(bytes(bad))
            for name in ("struct proc", "pid_t", "enum states", "int"):
                with contextlib.suppress(KvmDbgError):
                    types.find_type(name)


def test_no_debug_information_says_so() -> None:
    with pytest.raises(UnsupportedError, match="without debug information"):
        table(write_kernel_file([]))


def test_a_unit_that_does_not_fit_names_its_place() -> None:
    writer = DwarfWriter()
    writer.unit(base("int", 4, 5))
    writer.info = writer.info[:-1]
    elf = ElfFile(write_kernel_file(writer.parts()), "vmlinux")
    with pytest.raises(FormatError, match="unit_length") as caught:
        DwarfSearch(elf)
    section = elf.find_section(".debug_info")
    assert section is not None
    assert caught.value.offset == section.offset


def test_mutants_raise_only_our_errors() -> None:
    generator = random.Random(6)
    for version in (4, 5):
        writer = DwarfWriter("<", version)
        writer.unit(*first_unit(version))
        writer.unit(*second_unit())
        good = writer.parts()
        for _ in range(400):
            parts = list(good)
            number = generator.randrange(2)
            data = bytearray(parts[number].data)
            for _ in range(generator.choice((1, 3))):
                data[generator.randrange(len(data))] = generator.choice((0, 1, 0x7F, 0xFF, generator.randrange(256)))
            if generator.random() < 0.2:
                del data[generator.randrange(len(data)) :]
            parts[number] = parts[number]._replace(data=bytes(data))
            with contextlib.suppress(KvmDbgError):
                ask_everything(table(write_kernel_file(parts)))
