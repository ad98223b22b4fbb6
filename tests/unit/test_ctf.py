"""Types from CTF: both versions, both byte orders, packed and not, with a parent, and damaged."""

from __future__ import annotations

import random
import struct
import zlib

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
from kvm_dbg.debuginfo.ctf import CtfTypes, open_ctf
from kvm_dbg.debuginfo.ctf_data import CtfData
from kvm_dbg.debuginfo.value import Value
from kvm_dbg.elf import ElfFile
from kvm_dbg.errors import FormatError, KvmDbgError, MemberNotFound, TypeNotFound, UnsupportedError
from kvm_dbg.kernel.layout import Layout
from tests.writers import ctf as c
from tests.writers.ctf import CtfWriter
from tests.writers.kernel_file import ABS, FUNC, OBJECT, Entry, Part, write_kernel_file

FORMATS = [(version, order) for version in (2, 3) for order in "<>"]


def kernel(version: int = 3, order: str = "<") -> CtfWriter:
    """Return types of all kinds, with the numbers that stand beside them."""
    w = CtfWriter(version, order)
    w.integer("int", 4, c.SIGNED)  # 1
    w.integer("long unsigned int", 8)  # 2
    w.integer("char", 1, c.SIGNED | c.CHAR)  # 3
    w.integer("_Bool", 1, c.BOOL)  # 4
    w.integer("void", 0, c.SIGNED)  # 5
    w.alias(c.POINTER, 5)  # 6
    w.array(3, 2, 20)  # 7
    w.integer("unsigned int", 4, bits=3)  # 8, of a bit-field
    w.integer("unsigned int", 4)  # 9
    w.integer("int", 4, c.SIGNED, bits=5)  # 10, of a bit-field
    w.alias(c.TYPEDEF, 1, "lwpid_t")  # 11
    w.alias(c.CONST, 13)  # 12
    w.alias(c.VOLATILE, 11)  # 13
    w.alias(c.FORWARD, c.STRUCT, "thread")  # 14
    w.alias(c.POINTER, 14)  # 15
    w.struct("", 8, [("inner_a", 1, 0), ("inner_b", 1, 32)])  # 16
    w.struct("", 8, [("whole", 2, 0), ("", 16, 0)], kind=c.UNION)  # 17
    w.enum("td_states", [("TDS_INACTIVE", 0), ("TDS_RUNNING", 3), ("TDS_ODD", -2)])  # 18
    w.function(1, [6, 1, 0])  # 19, int (void *, int, ...)
    w.alias(c.POINTER, 19)  # 20
    w.struct(  # 21
        "thread",
        96,
        [
            ("td_next", 15, 0), ("td_name", 7, 64), ("td_tid", 12, 224), ("", 17, 256), ("td_low", 8, 320),
            ("td_high", 10, 323), ("td_state", 18, 352), ("td_hook", 20, 384), ("td_load", 23, 448),
            ("td_far", 24, 512),
        ],
    )  # fmt: skip
    w.alias(c.RESTRICT, 6)  # 22
    w.float_("double", 8)  # 23
    w.alias(c.POINTER, 25)  # 24
    w.alias(c.FORWARD, 0, "elsewhere")  # 25
    w.struct("big", 0x2000, [("head", 1, 0), ("tail", 1, 8 * 0x1FFC)])  # 26: large members in version 2
    w.struct("huge", 0x120000000, [("head", 1, 0), ("tail", 1, 8 * 0x11FFFFFFC)])  # 27: its size is written apart
    w.alias(c.TYPEDEF, 21, "thread_t")  # 28
    return w


def types_of(
    writer: CtfWriter, *, compressed: bool = False, pointer_size: int = 8, parent: CtfTypes | None = None
) -> CtfTypes:
    data = CtfData(writer.section(compressed=compressed), "a.ctf")
    return CtfTypes(data, pointer_size=pointer_size, source="CTF of a.ctf", parent=parent)


@pytest.mark.parametrize(("version", "order"), FORMATS)
@pytest.mark.parametrize("compressed", [False, True])
def test_types_of_all_kinds(version: int, order: str, compressed: bool) -> None:
    types = types_of(kernel(version, order), compressed=compressed)
    thread = types.struct("struct thread")
    assert (thread.size, thread.keyword) == (96, "struct")
    assert [m.name for m in thread.members][:3] == ["td_next", "td_name", "td_tid"]
    next_ = thread.member("td_next")
    assert isinstance(next_.type, PointerType)
    assert next_.type.target is thread  # by way of its declaration
    name = thread.member("td_name")
    assert isinstance(name.type, ArrayType)
    assert (name.offset, size_of(name.type)) == (8, 20)
    tid = thread.member("td_tid")
    assert isinstance(tid.type, TypedefType)  # behind const and volatile
    assert (tid.offset, tid.type.name, tid.type.stripped().size) == (28, "lwpid_t", 4)
    assert (thread.member("whole").offset, thread.member("inner_b").offset) == (32, 36)
    assert (thread.member("td_low").bit_offset, thread.member("td_low").bit_size) == (320, 3)
    assert (thread.member("td_high").bit_offset, thread.member("td_high").bit_size) == (323, 5)
    state = thread.member("td_state").type
    assert isinstance(state, EnumType)
    assert (state.size, state.signed, state.enumerators[1]) == (4, True, ("TDS_RUNNING", 3))
    hook = thread.member("td_hook").type
    assert isinstance(hook, PointerType)
    assert isinstance(hook.target, FunctionType)
    assert isinstance(thread.member("td_load").type, FloatType)
    far = thread.member("td_far").type
    assert isinstance(far, PointerType)
    assert isinstance(far.target, StructType)
    assert (far.target.name, far.target.size) == ("elsewhere", 0)
    assert types.offset_of("struct big", "tail") == 0x1FFC
    assert types.size_of("struct huge") == 0x120000000
    assert types.offset_of("struct huge", "tail") == 0x11FFFFFFC
    assert types.struct("thread_t") is thread


@pytest.mark.parametrize(("version", "order"), FORMATS)
def test_names(version: int, order: str) -> None:
    types = types_of(kernel(version, order), pointer_size=4)
    assert types.size_of("unsigned long") == 8
    assert types.size_of("unsigned int") == 4
    assert types.find_type("struct elsewhere") is None  # only declared
    assert types.find_type("struct nothing") is None
    assert isinstance(types.find_type("void"), VoidType)
    assert types.find_enumerator("TDS_ODD") == -2
    assert types.find_enumerator("TDS_NONE") is None
    boolean = types.type("bool")
    assert isinstance(boolean, IntType)
    assert boolean.is_bool
    assert types.struct("struct thread").member("td_next").type.size == 4
    with pytest.raises(MemberNotFound):
        types.offset_of("struct thread", "td_gone")
    names = list(types.for_each_name())
    assert {"struct thread", "enum td_states", "lwpid_t", "char"} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("version", "order"), FORMATS)
def test_values(version: int, order: str) -> None:
    types = types_of(kernel(version, order))
    byteorder = "little" if order == "<" else "big"
    raw = bytearray(96)
    struct.pack_into(order + "Q20s", raw, 0, 0x1122334455667788, b"idle")
    struct.pack_into(order + "i", raw, 28, -7)
    raw[40] = 0b11101 << 3 | 0b101 if order == "<" else 0b101 << 5 | 0b11101

    class Memory:
        def read(self, vaddr: int, size: int) -> bytes:
            return bytes(raw[vaddr : vaddr + size])

    value = Value(Memory(), types.struct("struct thread"), 0, byteorder)
    assert int(value["td_next"]) == 0x1122334455667788
    assert value["td_name"].string() == b"idle"
    assert int(value["td_tid"]) == -7
    assert (int(value["td_low"]), int(value["td_high"])) == (5, -3)
    record = Layout(types, "struct thread", {"tid": "td_tid", "next": ("td_link", "td_next")}, byteorder).read(
        Memory(), 0
    )
    assert (record["tid"], record["next"]) == (-7, 0x1122334455667788)


@pytest.mark.parametrize(("version", "order"), FORMATS)
def test_a_module_goes_on_with_the_types_of_its_parent(version: int, order: str) -> None:
    parent = types_of(kernel(version, order))
    w = CtfWriter(version, order, parent="kernel")
    softc = w.struct("softc", 24, [("sc_thread", w.child | 2, 0), ("sc_tid", 11, 64), ("sc_flags", w.child | 3, 96)])
    w.alias(c.POINTER, 21)
    w.integer("u_char", 1)
    assert softc == w.child | 1
    types = types_of(w, parent=parent)
    assert types.data.parent_name == "kernel"
    found = types.struct("struct softc")
    pointer = found.member("sc_thread").type
    assert isinstance(pointer, PointerType)
    assert pointer.target is parent.type("struct thread")
    assert found.member("sc_tid").type.name == "lwpid_t"
    assert found.member("sc_flags").type.name == "u_char"
    assert types.struct("struct thread") is parent.struct("struct thread")
    assert types.find_enumerator("TDS_RUNNING") == 3
    alone = types_of(w)
    assert alone.offset_of("struct softc", "sc_tid") == 8
    with pytest.raises(TypeNotFound, match="needs the types of 'kernel'"):
        _ = alone.struct("struct softc").member("sc_tid").type


SYMBOLS = [
    Entry("_START_", 0x1000, 8, type=OBJECT),
    Entry("main", 0x1000, 8, type=FUNC),
    Entry("zero", 0, 8, section=ABS, type=OBJECT),
    Entry("undefined", 0, 8, section="", type=OBJECT),
    Entry("allproc", 0x1008, 8, type=OBJECT),
    Entry("asm_data", 0x1010, 8, type=OBJECT),
    Entry("asm_code", 0x1010, 8, type=FUNC),
    Entry("hz", 0x1018, 4, type=OBJECT),
    Entry("printf", 0x1020, 8, type=FUNC),
]


def kernel_file(writer: CtfWriter, *, bits: int = 64, compressed: bool = False) -> ElfFile:
    parts = [
        Part(".text", data=bytes(64), addr=0x1000, flags=6),
        Part(".SUNW_ctf", data=writer.section(compressed=compressed), flags=0),
    ]
    return ElfFile(write_kernel_file(parts, SYMBOLS, bits=bits, order=writer.order), "kernel")


@pytest.mark.parametrize(("version", "order"), FORMATS)
@pytest.mark.parametrize("bits", [32, 64])
def test_symbols_of_an_elf_file(version: int, order: str, bits: int) -> None:
    w = kernel(version, order)
    for type_id in (15, 0, 1):  # allproc, asm_data, hz
        w.data_symbol(type_id)
    w.function_symbol(1, [1, 6])
    w.function_symbol(None)
    w.function_symbol(1, [6, 0])
    types = open_ctf(kernel_file(w, bits=bits))
    assert types is not None
    assert types.pointer_size == bits // 8
    assert types.source == "CTF of kernel"
    allproc = types.find_variable("allproc")
    assert isinstance(allproc, PointerType)
    assert allproc.target is types.type("struct thread")
    hz = types.find_variable("hz")
    assert hz is not None
    assert hz.name == "int"
    assert types.find_variable("asm_data") is None
    assert types.find_variable("zero") is None
    main, printf = types.find_function("main"), types.find_function("printf")
    assert main is not None
    assert printf is not None
    assert (main.returns.name, len(main.arguments), main.variadic) == ("int", 2, False)
    assert (len(printf.arguments), printf.variadic) == (1, True)
    assert types.find_function("asm_code") is None


def test_names_in_the_strings_of_the_elf_file() -> None:
    w = CtfWriter()
    w.integer("int", 4, c.SIGNED)
    plain = kernel_file(w)
    table = plain.find_section(".strtab")
    assert table is not None
    at = bytes(plain.section_data(table)).index(b"allproc\0")
    w.struct(c.EXTERNAL | at, 4, [("one", 1, 0)])
    types = open_ctf(kernel_file(w))
    assert types is not None
    assert types.size_of("struct allproc") == 4
    w.struct(c.EXTERNAL | 0x10000, 4, [("one", 1, 0)])
    types = open_ctf(kernel_file(w))
    assert types is not None
    with pytest.raises(FormatError, match="no string at 0x10000 of the ELF file's strings"):
        types.size_of("struct allproc")


def test_a_file_without_ctf() -> None:
    assert open_ctf(ElfFile(write_kernel_file([Part(".text", data=b"x")]), "kernel")) is None


def damaged(place: int, code: str, value: int, *, compressed: bool = False) -> bytes:
    data = bytearray(kernel().section(compressed=compressed))
    struct.pack_into("<" + code, data, place, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xf1\xcf\x03", "cut off at 3"),
        (damaged(0, "H", 0x1234), "3412 is not the magic"),
        (damaged(12, "I", 1 << 20), "cth_objtoff"),
        (damaged(24, "I", 1 << 20), "cth_stroff: .* is before cth_typeoff"),
        (damaged(32, "I", 1 << 20), "cth_strlen: .* are needed"),
        (damaged(32, "I", 1 << 20, compressed=True), "bytes are expected, there are"),
        (damaged(32, "I", 1, compressed=True), "bytes are expected, there are more"),
        (damaged(32, "I", 1 << 30, compressed=True), "are more than 268435456"),
        (damaged(36, "I", 0xFFFFFFFF, compressed=True), "zlib"),
        (kernel().section(compressed=True)[:-40], "bytes are expected, there are"),
    ],
)
def test_a_header_that_cannot_be_right_names_the_field(data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        CtfData(data, "a.ctf", offset=0x1000)
    assert caught.value.offset >= 0x1000


def test_a_decompression_bomb_stops_at_the_size_that_the_header_says() -> None:
    header = kernel().section()[:3] + b"\1" + struct.pack("<8I", 0, 0, 0, 0, 0, 0, 0, 64)
    bomb = zlib.compress(bytes(1 << 26))
    with pytest.raises(FormatError, match="64 bytes are expected, there are more"):
        CtfData(header + bomb, "a.ctf")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xf2\xdf\x04\0" + bytes(60), r"GNU's CTF \(magic 0xdff2\)"),
        (damaged(2, "B", 1), "CTF version 1"),
        (damaged(2, "B", 9), "CTF version 9"),
    ],
)
def test_other_formats_are_refused_by_name(data: bytes, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        CtfData(data, "a.ctf")


@pytest.mark.parametrize("version", [2, 3])
def test_records_that_cannot_be_right(version: int) -> None:
    w = CtfWriter(version)
    w.add(c.STRUCT, "cut", 8, b"", count=1000)
    with pytest.raises(FormatError, match="type 1 is cut off"):
        types_of(w).find_type("struct cut")
    w = CtfWriter(version)
    w.add(31, "odd", 8)
    with pytest.raises(FormatError, match="31 is no kind"):
        types_of(w).find_type("struct odd")
    w = CtfWriter(version)
    w.struct("s", 8, [("gone", 77, 0), ("circle", 2, 0), ("names", 3, 0), ("name", 4, 0)])
    w.alias(c.CONST, 2)
    w.alias(c.TYPEDEF, 3, "t")
    w.add(c.TYPEDEF, 0x7000, 1)
    members = CtfTypes(CtfData(w.section(), "a.ctf"), pointer_size=8)
    with pytest.raises(FormatError, match="no string at 0x7000"):
        members.find_type("struct s")
    w = CtfWriter(version)
    w.struct("s", 8, [("gone", 77, 0)])
    w.struct("r", 8, [("circle", 3, 0)])
    w.alias(c.CONST, 3)
    w.struct("q", 8, [("t", 5, 0)])
    w.alias(c.TYPEDEF, 5, "t")
    types = types_of(w)
    with pytest.raises(FormatError, match="no type has the number 0x4d"):
        types.struct("struct s").member("gone")
    with pytest.raises(FormatError, match="more than 64"):
        types.struct("struct r").member("circle")
    with pytest.raises(FormatError, match="more than 64"):
        types.struct("struct q").member("t")


def test_mutants_raise_only_our_errors() -> None:
    rng = random.Random(11)
    for version, order in FORMATS:
        good = kernel(version, order).section()
        for _ in range(150):
            bad = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                bad[rng.randrange(len(bad))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            try:
                types = CtfTypes(
                    CtfData(bytes(bad[: rng.choice((len(bad), rng.randrange(len(bad))))]), "m"), pointer_size=8
                )
                for name in list(types.for_each_name()):
                    found = types.type(name).stripped()
                    for part in found.members if isinstance(found, StructType) else ():
                        size_of(part.type)
                types.find_enumerator("TDS_ODD")
            except KvmDbgError:
                continue
