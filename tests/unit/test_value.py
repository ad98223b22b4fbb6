from __future__ import annotations

import pytest

from kvm_dbg.debuginfo.base import ArrayType, EnumType, IntType, Member, PointerType, StructType, Type, TypeTable
from kvm_dbg.debuginfo.value import STRING_CHUNK, Value, read_string, value_at
from kvm_dbg.errors import MemberNotFound, NotInImageError, ReadError, TypeNotFound

INT = IntType("int", 4, signed=True)
U64 = IntType("long unsigned int", 8, signed=False)
U8 = IntType("unsigned char", 1, signed=False)
CHAR = IntType("char", 1, signed=True, is_char=True)


def member(name: str, bit_offset: int, type_: Type, bit_size: int = 0) -> Member:
    return Member(name, bit_offset, bit_size, lambda: type_)


class Ram:
    """Memory of some ranges, which counts the reads."""

    def __init__(self, ranges: dict[int, bytes]) -> None:
        self.ranges = ranges
        self.reads: list[tuple[int, int]] = []

    def read(self, vaddr: int, size: int) -> bytes:
        self.reads.append((vaddr, size))
        for start, data in self.ranges.items():
            if start <= vaddr and vaddr + size <= start + len(data):
                return data[vaddr - start : vaddr - start + size]
        raise NotInImageError(vaddr, size, "hole")


NODE: StructType = StructType(
    "struct",
    "node",
    48,
    lambda: (
        member("number", 0, INT),
        member("low", 32, INT, 3),
        member("rest", 35, INT, 29),
        member("next", 64, PointerType(8, lambda: NODE)),
        member("name", 128, ArrayType(8, lambda: CHAR)),
        member("text", 192, PointerType(8, lambda: CHAR)),
        member("", 256, StructType("union", "", 8, lambda: (member("counter", 0, U64), member("word", 0, INT)))),
        member("tail", 320, ArrayType(0, lambda: U64)),
    ),
)
DATA = (
    (-5 & 0xFFFFFFFF).to_bytes(4, "little")
    + (0b101 | 0x123 << 3).to_bytes(4, "little")
    + (0x2000).to_bytes(8, "little")
    + b"task\0xyz"
    + (0x3000).to_bytes(8, "little")
    + (77).to_bytes(8, "little")
    + (11).to_bytes(8, "little")
    + (22).to_bytes(8, "little")
)


def ram() -> Ram:
    return Ram({0x1000: DATA, 0x2000: DATA[:48], 0x3000: b"a string\0"})


@pytest.mark.parametrize("loaded", [False, True])
def test_members_by_name(loaded: bool) -> None:
    memory = ram()
    node = Value(memory, NODE, 0x1000)
    if loaded:
        node.load()
    assert int(node["number"]) == -5
    assert int(node["low"]) == -3  # 0b101 of three bits, signed
    assert int(node["rest"]) == 0x123
    assert int(node["next"]) == 0x2000
    assert node["name"].string() == b"task"
    assert int(node["counter"]) == 77
    assert int(node["word"]) == 77
    assert int(node) == 77  # as atomic_t has it
    assert node.has("word")
    assert not node.has("absent")
    assert memory.reads[0] == ((0x1000, 48) if loaded else (0x1000, 4))
    assert len(memory.reads) == (1 if loaded else 8)


def test_nothing_is_read_before_it_is_asked_for() -> None:
    memory = ram()
    assert Value(memory, NODE, 0x1000)["next"].deref()["next"].address == 0x2008
    assert memory.reads == [(0x1008, 8)]


def test_pointers_arrays_and_strings() -> None:
    memory = ram()
    node = Value(memory, NODE, 0x1000).load()
    following = node["next"].deref()
    assert (following.address, following.type) == (0x2000, NODE)
    assert int(node["next"][1]["number"].address) == 0x2000 + 48
    assert node["text"].string(8) == b"a string"
    assert int(node["name"][0]) == ord("t")
    assert int(node["tail"][0]) == 11  # a flexible array goes on behind the struct
    assert int(node["tail"][1]) == 22


def test_an_index_before_the_start_reads_what_is_there() -> None:
    values = ArrayType(2, lambda: U64)
    memory = Ram({0x0FF8: b"".join(number.to_bytes(8, "little") for number in (9, 1, 2))})
    array = Value(memory, values, 0x1000).load()
    assert [int(array[index]) for index in (-1, 0, 1)] == [9, 1, 2]


def test_big_endian() -> None:
    bits = StructType("struct", "b", 4, lambda: (member("top", 0, U8, 3), member("rest", 3, INT, 13)))
    memory = Ram({0x10: bytes([0b101_10000, 0b0000_0001, 0xFF, 0xFE])})
    value = Value(memory, bits, 0x10, "big")
    assert int(value["top"]) == 0b101
    assert int(value["rest"]) == -0x1000 + 0x0001  # thirteen bits 1 0000 0000 0001
    assert int(Value(memory, IntType("short", 2, signed=True), 0x12, "big")) == -2


def test_enums_follow_their_sign() -> None:
    memory = Ram({0: b"\xff\xff\xff\xff"})
    assert int(Value(memory, EnumType("e", 4, signed=True, enumerators=tuple), 0)) == -1
    assert int(Value(memory, EnumType("e", 4, signed=False, enumerators=tuple), 0)) == 0xFFFFFFFF


def test_what_is_no_number_no_struct_no_pointer() -> None:
    memory = ram()
    node = Value(memory, NODE, 0x1000)
    with pytest.raises(MemberNotFound, match="struct node has no member 'absent'"):
        node["absent"]
    with pytest.raises(MemberNotFound):
        node["number"]["x"]
    with pytest.raises(TypeNotFound, match="cannot be indexed"):
        node[0]
    with pytest.raises(TypeNotFound, match="not a pointer"):
        node["number"].deref()
    with pytest.raises(TypeNotFound, match="not a number"):
        int(node["name"])


def test_missing_memory_raises_and_names_the_place() -> None:
    node = Value(ram(), NODE, 0x5000)
    with pytest.raises(ReadError) as caught:
        int(node["next"])
    assert caught.value.address == 0x5008


def test_strings_end_at_nul_limit_and_need_no_byte_behind_their_page() -> None:
    page = bytes(0x1000 - 5) + b"last\0"
    memory = Ram({0x1000: page})
    assert read_string(memory, 0x2000 - 5) == b"last"
    long = Ram({0x1000: b"x" * 3000 + b"\0" + bytes(1100)})
    assert read_string(long, 0x1000) == b"x" * 3000
    assert read_string(long, 0x1000, 700) == b"x" * 700
    assert all(vaddr // STRING_CHUNK == (vaddr + size - 1) // STRING_CHUNK for vaddr, size in long.reads)
    with pytest.raises(ReadError):
        read_string(Ram({0x1000: b"x" * 0x1000}), 0x1F00)


def test_value_at_looks_the_type_up() -> None:
    class Table(TypeTable):
        source = "a test"

        def find_type(self, name: str) -> Type | None:
            return NODE if name == "struct node" else None

        def find_enumerator(self, name: str) -> int | None:
            return None

    assert int(value_at(ram(), Table(), "struct node", 0x1000)["number"]) == -5
    with pytest.raises(TypeNotFound, match="no type 'struct none' in a test"):
        value_at(ram(), Table(), "struct none", 0)
