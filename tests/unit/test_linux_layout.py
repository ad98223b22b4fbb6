"""Members are found by the newest of their names, decoded from one read, and one by one where bytes are missing."""

from __future__ import annotations

import pytest

from kvm_dbg.errors import CorruptError, MemberNotFound, NotMappedError, TypeNotFound
from kvm_dbg.kernel.layout import Layout, decode_text, read_number, remembered
from kvm_dbg.kernel.linux.list import for_each_node
from kvm_dbg.kernel.linux.window import PIECE, Window
from tests.writers.linux import PAGE, World


@pytest.fixture
def world() -> World:
    world = World()
    world.struct("struct inner", low="u32", high="s64")
    world.struct("atomic_t", counter="s32")
    world.struct("struct thing", first="u8", second="u16", count="atomic_t", inner="struct inner", name=("u8", 8))
    return world


def test_numbers_of_all_kinds(world: World) -> None:
    layout = Layout(
        world.types,
        "struct thing",
        {"a": "first", "b": "second", "c": "count", "d": "inner.low", "e": "inner.high", "n": "name"},
    )
    at = world.place(
        "struct thing", first=200, second=60000, count__counter=-5, inner__low=7, inner__high=-9, name=b"abc"
    )
    record = layout.read(world, at)
    assert [record[name] for name in "abcde"] == [200, 60000, -5, 7, -9]
    assert record.text("n") == "abc"
    assert record.bytes("n") == b"abc\0\0\0\0\0"
    assert record.at("e") == at + 24
    assert world.reads == 1


def test_the_first_name_that_exists_counts(world: World) -> None:
    layout = Layout(
        world.types, "struct thing", {"x": ("newest", "second"), "y": ("gone", None), "z": ("inner.none", "first")}
    )
    record = layout.read(world, world.place("struct thing", first=1, second=2))
    assert (record["x"], record["z"], record.get("y", 42)) == (2, 1, 42)
    assert "y" not in record
    assert "x" in record
    with pytest.raises(MemberNotFound):
        record["y"]
    with pytest.raises(MemberNotFound):
        record.at("y")


def test_what_must_be_there(world: World) -> None:
    with pytest.raises(MemberNotFound, match="old or older"):
        Layout(world.types, "struct thing", {"x": ("old", "older")})
    with pytest.raises(TypeNotFound):
        Layout(world.types, "struct nothing", {"x": "y"})


def test_members_of_unions(world: World) -> None:
    world.struct("struct both", whole="u64", or_part="u32", after="u32")
    layout = Layout(world.types, "struct both", {"whole": "whole", "part": "part", "after": "after"})
    record = layout.read(world, world.place("struct both", whole=0x1_0000_0002, after=3))
    assert (record["whole"], record["part"], record["after"]) == (0x1_0000_0002, 2, 3)


def test_big_endian(world: World) -> None:
    layout = Layout(world.types, "struct thing", {"b": "second"}, "big")
    assert layout.read(world, world.place("struct thing", second=0x0102))["b"] == 0x0201


def test_a_missing_page_costs_the_members_on_it(world: World) -> None:
    world.struct("struct long", first="u64", room=("u8", 2 * PAGE), last="u64")
    layout = Layout(world.types, "struct long", {"first": "first", "last": "last"})
    at = world.place("struct long", page=True, first=11, last=22)
    world.missing = {2}
    record = layout.read(world, at)
    assert record["first"] == 11
    for ask in (record.__getitem__, record.get, record.bytes):
        with pytest.raises(NotMappedError):
            ask("last")
    world.missing = {0, 1, 2}
    with pytest.raises(NotMappedError):
        layout.read(world, at)


def test_bytes_that_are_no_text() -> None:
    assert decode_text(b"caf\xc3\xa9 \xff") == "café \\xff"


def test_numbers(world: World) -> None:
    at = world.allocate(16)
    world.words(at, 0xFFFFFFFF_00000001)
    assert read_number(world, at, 4) == 1
    assert read_number(world, at + 4, 4, signed=True) == -1


def test_remembered_once_per_kernel(world: World) -> None:
    made: list[object] = []

    def make(kernel: object) -> int:
        made.append(kernel)
        return len(made)

    assert [remembered(world, make) for _ in range(2)] == [1, 2]
    world.memo = {}  # type: ignore[attr-defined]
    assert [remembered(world, make) for _ in range(2)] == [3, 3]


class TestList:
    def nodes(self, world: World, count: int) -> list[int]:
        return [world.allocate(16) for _ in range(count)]

    def test_a_ring(self, world: World) -> None:
        head, *nodes = self.nodes(world, 6)
        world.ring(head, nodes)
        assert list(for_each_node(world, head, "things")) == nodes
        world.ring(head, [])
        assert list(for_each_node(world, head, "things")) == []

    @pytest.mark.parametrize("target", [1, 2, 4])
    def test_a_loop_that_misses_the_head(self, world: World, target: int) -> None:
        nodes = self.nodes(world, 6)
        world.ring(nodes[0], nodes[1:])
        world.words(nodes[4], nodes[target])
        found: list[int] = []
        with pytest.raises(CorruptError, match="loops back"):
            found.extend(for_each_node(world, nodes[0], "things"))

    def test_null_and_nowhere(self, world: World) -> None:
        nodes = self.nodes(world, 4)
        world.ring(nodes[0], nodes[1:])
        world.words(nodes[2], 0)
        walk = for_each_node(world, nodes[0], "things")
        assert [next(walk), next(walk)] == nodes[1:3]
        with pytest.raises(CorruptError, match="NULL"):
            next(walk)
        world.words(nodes[2], 0x1234)
        with pytest.raises(NotMappedError):
            list(for_each_node(world, nodes[0], "things"))

    def test_too_long(self, world: World) -> None:
        nodes = self.nodes(world, 10)
        world.ring(nodes[0], nodes[1:])
        with pytest.raises(CorruptError, match="more than 5"):
            list(for_each_node(world, nodes[0], "things", 5))


class TestWindow:
    def test_pieces(self, world: World) -> None:
        at = world.allocate(2 * PIECE, page=True)
        world.write(at + PIECE - 2, b"abcd")
        window = Window(world, at, 2 * PIECE, "the window")
        assert window.read(PIECE - 2, 4) == b"abcd"
        assert window.read(PIECE - 2, 2) == b"ab"
        before = world.reads
        assert window.read(PIECE - 1, 1) == b"b"
        assert world.reads == before

    def test_a_missing_page(self, world: World) -> None:
        at = world.allocate(PIECE, page=True)
        world.write(at, b"here")
        world.missing = {1}
        window = Window(world, at, PIECE, "the window")
        assert window.read(0, 4) == b"here"
        with pytest.raises(NotMappedError):
            window.read(PAGE, 1)

    @pytest.mark.parametrize(("offset", "size"), [(-1, 1), (99, 2), (0, -1), (1 << 40, 1)])
    def test_outside(self, world: World, offset: int, size: int) -> None:
        with pytest.raises(CorruptError, match="outside of the window"):
            Window(world, world.allocate(100), 100, "the window").read(offset, size)
