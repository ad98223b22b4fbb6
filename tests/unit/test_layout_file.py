"""Types from layout files: the numbers of the file, the types of C texts, and files that cannot be right."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from kvm_dbg.debuginfo.base import (
    ArrayType,
    EnumType,
    FloatType,
    FunctionType,
    IntType,
    PointerType,
    StructType,
    Type,
    TypedefType,
    VoidType,
    size_of,
)
from kvm_dbg.debuginfo.c_type import c_type_text, parse_c_type
from kvm_dbg.debuginfo.layout import LayoutTypes, open_layout
from kvm_dbg.debuginfo.layout_file import LayoutFile
from kvm_dbg.debuginfo.value import Value
from kvm_dbg.errors import FileAccessError, FormatError, KvmDbgError, TypeNotFound
from kvm_dbg.kernel.layout import Layout
from tests.shared import shared_data

Document = dict[str, Any]


def member(offset: int, size: int, text: str, **more: Any) -> Document:
    return {"offset": offset, "size": size, "type": text, **more}


def struct(size: int, **members: Document) -> Document:
    return {"size": size, "members": members}


def types_of(document: Document, **options: int) -> LayoutTypes:
    return LayoutTypes(LayoutFile(json.dumps(document).encode(), "a.json"), **options)


def one(text: str, size: int, *, pointer_size: int = 8, **others: Document) -> Type:
    """Return the type of a member of this text and size, in a file with other types."""
    types = types_of({"holder": struct(size, it=member(0, size, text)), **others}, pointer_size=pointer_size)
    return types.struct("struct holder").member("it").type


class Bytes:
    """Memory of some bytes from address 0."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, vaddr: int, size: int) -> bytes:
        return self.data[vaddr : vaddr + size]


@pytest.mark.parametrize(
    ("text", "base", "steps"),
    [
        ("int", "int", ()),
        ("const struct sysent * volatile", "struct sysent", ("pointer",)),
        ("__uint8_t [6][64]", "__uint8_t", (64, 6)),  # six arrays of 64
        ("struct intrsource *[32]", "struct intrsource", ("pointer", 32)),
        ("int (*)[4]", "int", (4, "pointer")),
        ("int (**)(void *)", "int", ("function", "pointer", "pointer")),
        ("struct lwp *(*)(wchan_t)", "struct lwp", ("pointer", "function", "pointer")),
        ("void (*[3])(struct tty *, int (*)(int), ...)", "void", ("function", "pointer", 3)),
        ("char []", "char", (0,)),
        ("unsigned long long", "unsigned long long", ()),
        ("union {...} *", "union {...}", ("pointer",)),
        ("int (void)", "int", ("function",)),
    ],
)
def test_type_names_are_taken_apart(text: str, base: str, steps: tuple[str | int, ...]) -> None:
    assert parse_c_type(text) == (base, steps)


@pytest.mark.parametrize(
    "text",
    [
        "", "*", "int *)", "int (*", "int [3", "int [x]", "struct", "struct a b", "int {...}", "a; b", "int [-1]", "7",
        "(", "int " + "*" * 33, "int " + "(*" * 40 + ")" * 40, "int [" + "9" * 19 + "]",
    ],
)  # fmt: skip
def test_what_is_no_type_name_says_so(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_c_type(text)


@pytest.mark.parametrize(
    ("text", "size", "signed"),
    [
        ("int", 4, True), ("unsigned", 4, False), ("long", 8, True), ("unsigned long", 8, False), ("short", 2, True),
        ("char", 1, True), ("unsigned char", 1, False), ("_Bool", 1, False), ("u_quad_t", 8, False),
        ("u_int", 4, False), ("__int16_t", 2, True), ("uint64_t", 8, False), ("u_int8_t", 1, False),
        ("size_t", 8, False), ("off_t", 8, True), ("__pid_t", 4, True), ("uid_t", 4, False),
        ("volatile __uint32_t", 4, False), ("kauth_cred_t", 8, False),
    ],
)  # fmt: skip
def test_numbers_are_what_they_are_called(text: str, size: int, signed: bool) -> None:
    found = one(text, size)
    assert isinstance(found, IntType)
    assert (found.size, found.signed) == (size, signed)


@pytest.mark.parametrize(("order", "value"), [("little", 0x7F04030201), ("big", 0x010203047F)])
def test_words_of_32_bits_in_either_order(order: str, value: int) -> None:
    document = {
        "$layout": {"version": 1, "pointer_size": 4, "char_signed": False},
        "s": struct(
            12, p=member(0, 4, "void *"), n=member(4, 4, "long"), c=member(8, 1, "char"), z=member(9, 1, "u_char")
        ),
    }
    types = types_of(document)
    assert types.pointer_size == 4
    assert types.size_of("unsigned long") == 4
    layout = Layout(types, "struct s", {"p": "p", "n": "n", "c": "c"}, order)
    record = layout.read(Bytes(bytes([1, 2, 3, 4, 0xFF, 0xFF, 0xFF, 0xFE, 0x80, 0, 0, 0])), 0)
    assert record["p"] == int.from_bytes(b"\1\2\3\4", "little" if order == "little" else "big")
    assert record["n"] == (-0x1000001 if order == "little" else -2)
    assert record["c"] == 0x80
    assert value > record["p"]


def test_structs_typedefs_unions_and_enums() -> None:
    types = types_of(
        {
            "timeval": struct(16, tv_sec=member(0, 8, "time_t"), tv_usec=member(8, 4, "suseconds_t")),
            "union sigval": struct(8, sival_int=member(0, 4, "int"), sival_ptr=member(0, 8, "void *")),
            "enum vtype": {"size": 4, "enumerators": {"VNON": 0, "VREG": 1, "VBAD": -1}},
            "typedef pid_t": {"size": 4, "type": "__int32_t"},
            "typedef fsid_t": {"size": 8, "members": {"val": member(0, 8, "int [2]")}},
            "phys_ram_seg_t": struct(8, start=member(0, 8, "u_quad_t")),
            "proc": struct(
                72,
                p_pid=member(0, 4, "pid_t"),
                p_type=member(4, 4, "enum vtype"),
                p_start=member(8, 16, "struct timeval"),
                p_val=member(24, 8, "union sigval"),
                p_fs=member(32, 8, "fsid_t"),
                p_next=member(40, 8, "struct proc *"),
                p_list=member(48, 16, "struct {...}", inside=struct(16, next=member(0, 8, "struct proc *"))),
                p_load=member(64, 8, "double"),
            ),
        }
    )
    proc = types.struct("struct proc")
    assert proc.size == 72
    assert [m.name for m in proc.members][:3] == ["p_pid", "p_type", "p_start"]
    assert types.offset_of("struct proc", "p_start.tv_usec") == 16
    assert types.offset_of("struct proc", "p_list.next") == 48
    pid = types.type("pid_t")
    assert isinstance(pid, TypedefType)
    assert isinstance(pid.stripped(), IntType)
    assert types.struct("phys_ram_seg_t").size == types.struct("fsid_t").size == 8
    assert types.struct("union sigval").keyword == "union"
    assert types.find_type("struct sigval") is None
    next_ = proc.member("p_next").type
    assert isinstance(next_, PointerType)
    assert next_.target is proc
    enum = proc.member("p_type").type
    assert isinstance(enum, EnumType)
    assert enum.signed
    assert types.find_enumerator("VREG") == 1
    assert types.find_enumerator("VDIR") is None
    assert isinstance(proc.member("p_load").type, FloatType)
    assert isinstance(types.find_type("void"), VoidType)
    assert types.size_of("time_t") == 8  # as a member shows it
    assert types.find_type("ino_t") is None
    with pytest.raises(TypeNotFound, match=r"struct inode.*a\.json"):
        types.struct("struct inode")


def test_a_typedef_that_is_not_defined() -> None:
    found = one("sigpend_t", 32, sigpend=struct(32, sp_set=member(0, 4, "int")))
    assert found.stripped().name == "sigpend"
    opaque = one("stack_t", 24).stripped()
    assert isinstance(opaque, StructType)
    assert (opaque.size, opaque.members) == (24, ())
    array = one("struct rlimit [12]", 192)
    assert isinstance(array, ArrayType)
    assert (array.count, size_of(array.element)) == (12, 16)
    pointer = one("int (**)(void *)", 8)
    assert isinstance(pointer, PointerType)
    assert isinstance(pointer.target, PointerType)
    assert isinstance(pointer.target.target, FunctionType)


@pytest.mark.parametrize(("order", "low", "high"), [("little", 5, -2), ("big", 0, 5)])
def test_bit_fields(order: str, low: int, high: int) -> None:
    document = {
        "flags": struct(
            4,
            low=member(0, 4, "unsigned int", bit_offset=0, bit_size=3),
            high=member(0, 4, "int", bit_offset=12, bit_size=4),
        )
    }
    value = Value(Bytes(b"\x05\xe5\0\0"), types_of(document).struct("struct flags"), 0, order)
    assert (int(value["low"]), int(value["high"])) == (low, high)


@pytest.mark.parametrize(
    "text",
    [
        "int",
        "struct proc *",
        "char [17]",
        "struct {...}",
        "unsigned char [6][64]",
        "void *[3]",
        "int (*)[4]",
        "enum vtype",
    ],
)
def test_texts_are_written_as_they_are_read(text: str) -> None:
    sizes = {"int": 4, "char [17]": 17, "unsigned char [6][64]": 384, "void *[3]": 24, "enum vtype": 4}
    assert c_type_text(one(text, sizes.get(text, 8))) == text


def test_functions_are_written_without_what_they_take() -> None:
    assert c_type_text(one("int (**)(void *)", 8)) == "void (**)()"


GOOD: Document = {"s": struct(8, a=member(0, 4, "int"), b=member(4, 4, "unsigned int"))}
IN_S = b'{"s": {"size": 4, "members": {'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "offset 0x0: layout: not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[1]", "structs by name"),
        (b'{"a": NaN}', "a.value: an object"),
        (b"[" * 100000, "not a layout file"),
        (b'{"s": {"size": ' + b"9" * 5000 + b', "members": {}}}', "not a layout file"),
        (b'{"s": {"size": 4, "members": {}}, "s": {"size": 4, "members": {}}}', "offset 0x1: s.name: .*twice"),
        (b'{"s": {"members": {}}}', "offset 0x1: s.size: is missing"),
        (b'{"s": {"size": -1, "members": {}}}', "s.size: -1"),
        (b'{"s": {"size": true, "members": {}}}', "s.size: True"),
        (b'{"s": {"size": 4}}', "s.value"),
        (b'{"s": {"size": 4, "members": {}, "type": "int"}}', "s.value"),
        (b'{"s": {"size": 4, "members": []}}', "s.members"),
        (b'{"s": {"size": 4, "members": {"a": 4}}}', "s.members.a.type"),
        (b'{"s": {"size": 4, "members": {"a": {"size": 4, "type": "int"}}}}', "s.members.a.offset: is missing"),
        (IN_S + b'"a": {"offset": 1, "size": 4, "type": "int"}}}}', f"offset {len(IN_S):#x}: s.members.a.offset"),
        (IN_S + b'"a": {"offset": 0, "size": 4, "type": 4}}}}', "s.members.a.type"),
        (IN_S + b'"a": {"offset": 0, "size": 4, "type": "int", "bit_size": 33}}}}', "bit_size"),
        (IN_S + b'"a": {"offset": 0, "size": 4, "type": "int", "bit_size": 9, "bit_offset": 24}}}}', "the 4 bytes"),
        (b'{"enum e": {"size": 4, "members": {}}}', "enum has none"),
        (b'{"s": {"size": 4, "kind": "enum", "members": {}}}', "enum has none"),
        (b'{"e": {"size": 4, "enumerators": {"A": "1"}}}', "e.enumerators.A"),
        (b'{"typedef t": {"size": 4, "type": null}}', "typedef t.type"),
        (b'{"$layout": {"version": 2}}', "version: 2"),
        (b'{"$layout": {"pointer_size": 3}}', "pointer_size"),
        (b'{"$layout": 1}', r"\$layout.value"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_right_names_the_place(data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        LayoutFile(data, "bad.json")
    assert str(caught.value).startswith("bad.json: ")


def test_anonymous_structs_in_each_other_end() -> None:
    inner: Document = struct(8)
    for _ in range(20):
        inner = struct(8, a=member(0, 8, "struct {...}", inside=inner))
    with pytest.raises(FormatError, match="levels"):
        types_of({"s": inner})


@pytest.mark.parametrize(
    ("text", "size", "words"),
    [
        ("int", 8, "int has 4 bytes, not 8"),
        ("struct s", 4, "struct s has 8 bytes, not 4"),
        ("char [3]", 8, "3 elements cannot have 8 bytes"),
        ("void *", 4, "a pointer of 4 bytes"),
        ("int [0]", 4, "without elements"),
        ("a;b", 4, "no part of a C type"),
        ("void", 4, "void has 0 bytes"),
    ],
)
def test_a_type_that_does_not_fit_names_its_member(text: str, size: int, words: str) -> None:
    types = types_of({**GOOD, "bad": struct(16, p=member(0, 8, "void *"), it=member(8, size, text))})
    with pytest.raises(FormatError, match=rf"bad\.members\.it\.type: .*{words}"):
        _ = types.struct("struct bad").member("it").type
    assert types.size_of("struct s") == 8  # the others can be used


def test_sizes_of_one_type_that_differ() -> None:
    types = types_of({"s": struct(16, a=member(0, 4, "ino_t"), b=member(8, 8, "ino_t"))})
    with pytest.raises(FormatError, match="ino_t has 4 bytes elsewhere, not 8"):
        types.find_type("ino_t")


def test_typedefs_in_a_circle_end() -> None:
    types = types_of({"typedef a": {"size": 4, "type": "b"}, "typedef b": {"size": 4, "type": "a"}})
    with pytest.raises(TypeNotFound, match="refers to itself"):
        types.size_of("a")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="No such file"):
        open_layout(tmp_path / "gone.json")
    with pytest.raises(FileAccessError, match=r"directory|not a regular file"):
        open_layout(tmp_path)


def test_mutants_raise_only_our_errors() -> None:
    document = {
        **GOOD,
        "typedef t": {"size": 4, "type": "int"},
        "u": struct(40, a=member(0, 8, "struct s *"), b=member(8, 16, "struct s [2]"), c=member(24, 4, "t")),
        "e": {"size": 4, "enumerators": {"A": 1}},
    }
    good = json.dumps(document).encode()
    rng = random.Random(7)
    for _ in range(2000):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            bad[rng.randrange(len(bad))] = rng.choice(b'0123456789"{}[]:,*(). \xffabst')
        try:
            types = LayoutTypes(LayoutFile(bytes(bad), "m"))
            for name in ("struct s", "struct u", "t", "e", "long"):
                found = types.find_type(name)
                for part in found.members if isinstance(found, StructType) else ():
                    size_of(part.type)
        except KvmDbgError:
            continue


def test_the_layout_of_a_real_kernel() -> None:
    """NetBSD 6.99.16, as its own debug information gave it: every size and offset is that of the file."""
    path = shared_data("netbsd") / "layout.json"
    types = open_layout(path)
    document = json.loads(path.read_bytes())
    assert types.pointer_size == 8
    for tag, body in document.items():
        found = types.struct(f"struct {tag}")
        assert found.size == body["size"]
        for name, row in body["members"].items():
            part = found.member(name)
            assert (part.offset, size_of(part.type)) == (row["offset"], row["size"])
    assert types.offset_of("struct lwp", "l_rtime.sec") == 96
    ttyp = types.struct("struct session").member("s_ttyp").type
    assert isinstance(ttyp, PointerType)
    assert ttyp.target.size == document["tty"]["size"]
    assert types.struct("phys_ram_seg_t").member("size").offset == 8
