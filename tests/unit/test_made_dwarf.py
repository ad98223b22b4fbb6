"""DWARF made from written BTF, read back by pyelftools."""

from __future__ import annotations

import re
import struct
from typing import Any

import pytest

from kvm_dbg.kernel_file.declaration import DECLARATIONS
from kvm_dbg.kernel_file.dwarf import make_dwarf
from kvm_dbg.symbols.base import Symbol
from tests.unit.made_dwarf import Read, enumerators, members, parameters, plain_btf, symbol, text, types_of, value
from tests.writers.btf import (
    BOOL,
    CONST,
    DATASEC,
    DECL_TAG,
    FLOAT,
    FUNC,
    FUNC_PROTO,
    FWD,
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


def made(btf: BtfWriter, *symbols: Symbol, parameter_names: bool = False) -> Read:
    """Return what is made of BTF that makes sense."""
    found = make_dwarf(types_of(btf), symbols, parameter_names=parameter_names)
    assert found.left_out == 0
    return Read(found, order=btf.order)


@pytest.fixture
def btf() -> BtfWriter:
    """Return BTF whose type 1 is int, 2 unsigned long and 3 char."""
    return plain_btf()


def test_the_unit_is_c_and_has_a_name(btf: BtfWriter) -> None:
    [unit] = Read(make_dwarf(types_of(btf), [], name="6.1.0")).units
    top = unit.get_top_DIE()
    assert (unit["version"], unit["unit_type"], unit["address_size"]) == (5, "DW_UT_compile", 8)
    assert (value(top, "name"), value(top, "language")) == ("6.1.0", 0x1D)
    assert "DW_AT_low_pc" not in top.attributes


def test_scalars(btf: BtfWriter) -> None:
    btf.integer("_Bool", 1, BOOL)
    btf.integer("unsigned char", 1)
    btf.integer("__int128", 16, SIGNED)
    btf.add("double", FLOAT, 8, [])
    read = made(btf)
    found = {value(die, "name"): (value(die, "byte_size"), value(die, "encoding")) for die in read.entries[1:]}
    assert found == {  # sizes and DW_ATE_*: signed 5, unsigned 7, signed_char 6, unsigned_char 8, boolean 2, float 4
        "int": (4, 5),
        "long unsigned int": (8, 7),
        "char": (1, 6),
        "_Bool": (1, 2),
        "unsigned char": (1, 8),
        "__int128": (16, 5),
        "double": (8, 4),
    }


def test_scalars_of_writers_that_lost_the_signs_of_chars() -> None:
    """As pahole 1.18 wrote them for Linux 5.10, where gcc says signed_char (6), unsigned_char (8), float (4)."""
    btf = BtfWriter()
    for name, size in (("char", 1), ("signed char", 1), ("unsigned char", 1), ("double", 8)):
        btf.integer(name, size)
    read = made(btf)
    found = [value(read.find(name), "encoding") for name in ("char", "signed char", "unsigned char", "double")]
    assert found == [6, 6, 8, 4]


def test_links(btf: BtfWriter) -> None:
    text_ = btf.pointer(btf.alias(CONST, 3))
    handler = btf.add("", FUNC_PROTO, 0, [btf.string("n"), 1, 0, text_, 0, 0], 3)
    tagged = btf.alias(TYPE_TAG, 1, "user")
    btf.struct(
        "all",
        80,
        [
            ("text", text_, 0),
            ("any", btf.pointer(0), 64),
            ("port", btf.pointer(btf.alias(VOLATILE, 1)), 128),
            ("only", btf.alias(RESTRICT, text_), 192),
            ("handler", btf.pointer(handler), 256),
            ("tagged", btf.pointer(tagged), 320),
            ("nothing", btf.pointer(btf.alias(TYPE_TAG, 0, "rcu")), 384),
            ("constant", btf.pointer(btf.alias(CONST, 0)), 448),
            ("count", btf.alias(TYPEDEF, 2, "size_t"), 512),
            ("opaque", btf.pointer(btf.alias(TYPEDEF, 0, "opaque_t")), 576),
        ],
    )
    read = made(btf)
    assert [(name, found) for name, found, _ in members(read.find("all"))] == [
        ("text", "char const *"),
        ("any", "void *"),
        ("port", "int volatile *"),
        ("only", "char const * restrict"),
        ("handler", "void (int, char const *, ...) *"),
        ("tagged", "int *"),
        ("nothing", "void *"),
        ("constant", "void const *"),
        ("count", "size_t"),
        ("opaque", "opaque_t *"),
    ]
    assert text(read.find("size_t")) == "long unsigned int"
    assert text(read.find("opaque_t")) == "void"


def test_structs_and_unions(btf: BtfWriter) -> None:
    half = btf.struct("", 8, [("low", 1, 0), ("high", 1, 32)])
    word = btf.struct("", 8, [("whole", 2, 0), ("", half, 0)], kind=UNION)
    node = btf.next
    later = btf.next + 1
    btf.struct(
        "node", 24, [("next", later, 0), ("", word, 64), ("name", btf.next + 2, 128), ("rest", btf.next + 3, 192)]
    )
    btf.pointer(node)
    btf.array(3, 8)
    btf.array(1, 0)
    btf.struct("empty", 0, [])
    btf.add("elsewhere", FWD, 0, [])
    btf.add("either", FWD, 0, [], flag=True)
    read = made(btf)
    found = read.find("node")
    assert (found.tag, value(found, "byte_size")) == ("DW_TAG_structure_type", 24)
    assert members(found) == [
        ("next", "struct node *", 0),
        (None, "union {}", 8),
        ("name", "char [8]", 16),
        ("rest", "int [0]", 24),
    ]
    [union] = [die for die in read.entries if die.tag == "DW_TAG_union_type" and "DW_AT_name" not in die.attributes]
    assert members(union) == [("whole", "long unsigned int", 0), (None, "struct {}", 0)]
    assert members(read.find("empty")) == []
    declared = [read.find("elsewhere"), read.find("either")]
    assert [(die.tag, value(die, "declaration")) for die in declared] == [
        ("DW_TAG_structure_type", True),
        ("DW_TAG_union_type", True),
    ]


def test_bit_fields(btf: BtfWriter) -> None:
    small = btf.integer("unsigned int", 4, bits=3)
    wide = btf.integer("unsigned int", 4, bits=29, first_bit=3)
    flag = btf.integer("unsigned char", 1)
    bits = [("a", flag, 1 << 24), ("", flag, 2 << 24 | 1), ("b", flag, 5 << 24 | 3), ("c", 1, 32)]
    btf.struct("now", 8, bits, flag=True)
    btf.struct("before", 8, [("a", btf.alias(TYPEDEF, small, "three"), 0), ("b", wide, 0), ("c", 1, 32)])
    read = made(btf)
    assert members(read.find("now")) == [
        ("a", "unsigned char", 0, 1),
        ("b", "unsigned char", 3, 5),
        ("c", "int", 4),
    ]
    assert members(read.find("before")) == [("a", "three", 0, 3), ("b", "unsigned int", 3, 29), ("c", "int", 4)]


def test_enums_whose_signs_are_known(btf: BtfWriter) -> None:
    btf.enum("signed", [("MINUS", -1), ("PLUS", 1)], flag=True)
    btf.enum("unsigned", [("TOP", 0x80000000), ("ONE", 1)])
    btf.enum("small", [("A", 0), ("B", 255)], size=1)
    btf.enum("", [("NAMELESS", 7)])
    btf.enum("elsewhere", [])
    btf.enum64("large", [("HUGE", 1 << 63), ("LOW", 1)])
    btf.enum64("deep", [("LEAST", -(1 << 63)), ("MOST", (1 << 63) - 1)], flag=True)
    read = made(btf)
    found = {
        name: (value(read.find(name), "byte_size"), text(read.find(name)), enumerators(read.find(name)))
        for name in ("signed", "unsigned", "small", "large", "deep")
    }
    assert found == {
        "signed": (4, "int", [("MINUS", -1), ("PLUS", 1)]),
        "unsigned": (4, "unsigned int", [("TOP", 0x80000000), ("ONE", 1)]),
        "small": (1, "unsigned char", [("A", 0), ("B", 255)]),
        "large": (8, "long unsigned int", [("HUGE", 1 << 63), ("LOW", 1)]),
        "deep": (8, "long", [("LEAST", -(1 << 63)), ("MOST", (1 << 63) - 1)]),
    }
    assert value(read.find("NAMELESS"), "const_value") == 7
    assert value(read.find("elsewhere"), "declaration") is True


def test_enums_of_writers_that_did_not_say_the_sign(btf: BtfWriter) -> None:
    btf.enum("signed", [("MINUS", -1), ("PLUS", 1)])
    btf.enum("unsigned", [("ONE", 1)])
    read = made(btf)
    assert enumerators(read.find("signed")) == [("MINUS", -1), ("PLUS", 1)]
    assert text(read.find("unsigned")) == "unsigned int"


@pytest.fixture
def with_functions(btf: BtfWriter) -> BtfWriter:
    """Add `int open(char *name, ...)`, `void run(void)`, and functions that cannot be told apart."""
    opens = btf.add("", FUNC_PROTO, 1, [btf.string("name"), btf.pointer(3), 0, 0], 2)
    runs = btf.add("", FUNC_PROTO, 0, [])
    for name, prototype in (
        ("open", opens), ("run", runs), ("again", runs), ("twice", runs), ("both", runs), ("both", opens),
        ("gone", runs),
    ):  # fmt: skip
        btf.add(name, FUNC, prototype, [])
    return btf


SYMBOLS = (
    symbol("open", 0xFFFFFFFF81000000, 0x40),
    symbol("run", 0xFFFFFFFF81000040, 0, "t"),
    symbol("again", 0xFFFFFFFF81000040, 0),
    symbol("twice", 0xFFFFFFFF81000080),
    symbol("twice", 0xFFFFFFFF810000C0),
    symbol("both", 0xFFFFFFFF81000100),
    symbol("unknown", 0xFFFFFFFF81000140),
)


def test_functions(with_functions: BtfWriter) -> None:
    read = made(with_functions, *SYMBOLS)
    assert read.names("subprogram") == ["open", "run"]
    opens, runs = read.find("open"), read.find("run")
    assert (value(opens, "low_pc"), value(opens, "high_pc"), value(opens, "external")) == (
        0xFFFFFFFF81000000,
        0x40,
        True,
    )
    assert (value(runs, "low_pc"), value(runs, "high_pc"), value(runs, "external")) == (0xFFFFFFFF81000040, 0x40, None)
    assert (text(opens), parameters(opens)) == ("int", ["char *", "..."])
    assert (text(runs), parameters(runs)) == ("void", [])
    top = read.units[0].get_top_DIE()
    assert (value(top, "low_pc"), value(top, "high_pc")) == (0xFFFFFFFF81000000, 0x80)


def test_parameters_can_have_names(with_functions: BtfWriter) -> None:
    read = made(with_functions, *SYMBOLS, parameter_names=True)
    assert parameters(read.find("open")) == ["char * name", "..."]
    assert [parameters(die) for die in read.entries if die.tag == "DW_TAG_subroutine_type"] == [["char *", "..."], []]


def location(die: Any) -> int:
    """Return the address of a variable whose location is DW_OP_addr."""
    expression = bytes(die.attributes["DW_AT_location"].value)
    assert (expression[0], len(expression)) == (0x03, 9)
    return int(struct.unpack("<Q", expression[1:])[0])


def test_variables_of_btf(btf: BtfWriter) -> None:
    btf.struct("rq", 64, [("nr_running", 1, 0)])
    variable = btf.add("runqueues", VAR, btf.next - 1, [1])
    btf.add("absent", VAR, 1, [1])
    btf.add(".data..percpu", DATASEC, 64, [variable, 0x31980, 64], 1)
    btf.add("percpu", DECL_TAG, variable, [0xFFFFFFFF])
    read = made(btf, symbol("runqueues", 0x31980, 64, "A"))
    assert read.names("variable") == ["runqueues"]
    assert (text(read.find("runqueues")), location(read.find("runqueues"))) == ("struct rq", 0x31980)


def test_variables_that_btf_lacks(btf: BtfWriter) -> None:
    btf.struct("list_head", 16, [("next", 2, 0), ("prev", 2, 64)])
    btf.struct("task_struct", 100, [])
    btf.add("slab_caches", VAR, 1, [1])
    addresses = {
        "modules": (0x1000, 16),
        "linux_banner": (0x2000, 11),
        "saved_command_line": (0x3000, 8),
        "high_memory": (0x4000, 8),
        "jiffies": (0x5000, 8),
        "__per_cpu_offset": (0x6000, 8 * 64 + 7),
        "init_task": (0x7000, 99),  # too small for its type
        "init_mm": (0x8000, 1000),  # whose type is not there
        "slab_caches": (0x9000, 16),  # which BTF knows better
    }
    read = made(btf, *(symbol(name, address, size, "D") for name, (address, size) in addresses.items()))
    found = {name: (text(read.find(name)), location(read.find(name))) for name in read.names("variable")}
    assert found == {
        "modules": ("struct list_head", 0x1000),
        "linux_banner": ("char const [11]", 0x2000),
        "saved_command_line": ("char *", 0x3000),
        "high_memory": ("void *", 0x4000),
        "jiffies": ("long unsigned int volatile", 0x5000),
        "__per_cpu_offset": ("long unsigned int [64]", 0x6000),
        "slab_caches": ("int", 0x9000),
    }


def test_each_declaration_is_understood(btf: BtfWriter) -> None:
    """Every written type is found where its words name types; the base types stand for themselves."""
    names = [name for variables in DECLARATIONS.values() for name in variables]
    assert len(names) == len(set(names)) > 200
    every = {declared for variables in DECLARATIONS.values() for declared in variables.values()}
    bases = {re.sub(r"( ?(const\b|volatile\b|\*|\[\w*\]))*$", "", declared) for declared in every}
    for base in sorted(bases - {"int", "char", "void", "unsigned long"}):
        keyword, _, tag = base.partition(" ")
        if keyword in ("struct", "union"):
            btf.struct(tag, 1, [], kind=STRUCT if keyword == "struct" else UNION)
        elif keyword == "enum":
            btf.enum(tag, [(f"{tag}_", 1)])
        else:
            btf.integer(base, 4)
    lengths = sorted({length for text in every for length in re.findall(r"\[([A-Za-z_]\w*)\]", text)})
    btf.enum("", [(length, 2) for length in lengths])
    symbols = [symbol(name, 0x100000 * (number + 1), 0x10000, "D") for number, name in enumerate(names)]
    assert set(made(btf, *symbols).names("variable")) == set(names)


def test_modules_refer_to_the_kernel(with_functions: BtfWriter) -> None:
    kernel = types_of(with_functions)
    split = BtfWriter(base=with_functions)
    mine = split.struct("mine", 16, [("kernel", 4, 0), ("number", 2, 64)])
    split.pointer(mine)
    split.enum("choice", [("LEFT", 0), ("RIGHT", 1)])
    probe = split.add("", FUNC_PROTO, 1, [split.string("it"), split.next - 2], 1)
    split.add("probe", FUNC, probe, [])
    split.add("stop", FUNC, 6, [])  # the kernel's prototype of `run`
    module = types_of(split, kernel)
    symbols = (
        *SYMBOLS,
        symbol("probe", 0xFFFFFFFFC0000000, 0x20, "t", "loop"),
        symbol("stop", 0xFFFFFFFFC0000020, 0x20, "t", "loop"),
        symbol("run", 0xFFFFFFFFC0000040, 0x20, "t", "loop"),
    )
    found = make_dwarf(kernel, symbols, modules={"loop": module}, parameter_names=True)
    assert (found.left_out, found.functions) == (0, 4)
    read = Read(found)
    assert [value(unit.get_top_DIE(), "name") for unit in read.units] == ["vmlinux", "loop"]
    entry = read.find("mine")
    assert entry.cu.cu_offset == read.units[1].cu_offset
    assert members(entry) == [("kernel", "char *", 0), ("number", "long unsigned int", 8)]
    form = next(entry.iter_children()).attributes["DW_AT_type"].form
    assert form == "DW_FORM_ref_addr"
    assert parameters(read.find("probe")) == ["struct mine * it"]
    assert text(read.find("probe")) == "int"
    assert text(read.find("choice")) == "unsigned int"
    assert value(read.find("run"), "low_pc") == 0xFFFFFFFF81000040
    top = read.units[1].get_top_DIE()
    assert (value(top, "low_pc"), value(top, "high_pc")) == (0xFFFFFFFFC0000000, 0x40)


def test_another_byte_order_and_word_size() -> None:
    btf = BtfWriter(">")
    btf.integer("int", 4, SIGNED)
    btf.integer("long unsigned int", 4)
    btf.struct("pair", 8, [("one", 1, 0), ("two", btf.next + 1, 32)])
    btf.pointer(3)
    read = Read(make_dwarf(types_of(btf), []), bits=32, order=">")
    assert read.units[0]["address_size"] == 4
    assert members(read.find("pair")) == [("one", "int", 0), ("two", "struct pair *", 4)]


def test_names_cannot_command_a_terminal(btf: BtfWriter) -> None:
    btf.struct("evil\x1b[2Jé", 4, [("a\nb", 1, 0)])
    read = made(btf)
    assert [name for name, _, _ in members(read.find("evil?[2J??"))] == ["a?b"]
