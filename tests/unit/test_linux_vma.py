"""Mappings of processes: lists and maple trees written by hand, names, and what is broken."""

from __future__ import annotations

import itertools

import pytest

from kvm_dbg.errors import CorruptError, ReadError
from kvm_dbg.kernel.base import MemoryMapping
from kvm_dbg.kernel.linux.maple import ALLOCATION, LEAF, RANGE, MapleTree
from kvm_dbg.kernel.linux.vma import MappingReader
from tests.unit.test_linux_path import Files

LAST = (1 << 64) - 1
RESERVED = 0x406


class Mapped(Files):
    """A process's memory; by a maple tree, or by a list as before v6.1."""

    def __init__(self, *, tree: bool = True, own_place: bool = True) -> None:
        super().__init__()
        self.tree = tree
        self.struct("struct maple_metadata", end="u8", gap="u8")
        self.struct(
            "struct maple_range_64", parent="ptr", pivot=("u64", 15), slot=("ptr", 15), meta="struct maple_metadata"
        )
        self.struct(
            "struct maple_arange_64",
            parent="ptr", pivot=("u64", 9), slot=("ptr", 10), gap=("u64", 10), meta="struct maple_metadata",
        )  # fmt: skip
        # The last slot of a plain node shares its place with the metadata.
        range_64 = self.types.struct("struct maple_range_64")
        range_64.member("slot")._resolve = lambda: self.type(("ptr", 16))
        self.struct("struct maple_tree", flags="u32", ma_root="ptr")
        self.struct("struct shared", rb="u64")
        names = {"shared": "struct shared", "anon_name" if own_place else "or_anon_name": "ptr"}
        self.struct(
            "struct vm_area_struct",
            vm_start="u64", vm_end="u64", **({} if tree else {"vm_next": "ptr"}), vm_mm="ptr", vm_flags="u64",
            **names, vm_ops="ptr", vm_pgoff="u64", vm_file="ptr", vm_private_data="ptr",
        )  # fmt: skip
        first = {"mm_mt": "struct maple_tree"} if tree else {"mmap": "ptr"}
        self.struct("struct mm_struct", **first, start_brk="u64", brk="u64", start_stack="u64")
        self.struct("struct path", mnt="ptr", dentry="ptr")
        self.struct("struct file", f_path="struct path", f_inode="ptr")
        self.struct("struct super_block", s_dev="u32", s_type="ptr")
        self.struct("struct vm_operations_struct", open="ptr", name="ptr")
        self.struct("struct vm_special_mapping", name="ptr")
        self.struct("struct anon_vma_name", kref="u32", name=("u8", 0))
        self.special = self.place("struct vm_operations_struct", symbol="special_mapping_vmops", name=1)
        self.mm = self.place("struct mm_struct", start_brk=0x20000, brk=0x21000, start_stack=0x7FF0_0800)

    def vma(self, start: int, end: int, flags: int = 0x3, **values: int) -> int:
        address = self.place("struct vm_area_struct", vm_start=start, vm_end=end, vm_flags=flags)
        for member, value in {"vm_mm": self.mm, **values}.items():
            self.put(address, "struct vm_area_struct", member, value)
        return address

    def file(self, name: bytes) -> int:
        sb = self.place("struct super_block", s_dev=8 << 20 | 0x11)
        inode = self.place("struct inode", i_ino=1234, i_sb=sb)
        dentry = self.dentry(name, self.root)
        mount = self.top + self.types.offset_of("struct mount", "mnt")
        return self.place("struct file", f_path__mnt=mount, f_path__dentry=dentry, f_inode=inode)

    def node(self, kind: int, last: int, *slots: tuple[int, int]) -> int:
        """Return a pointer to a node that ends at `last`, with (last index, content) of its slots."""
        name = "struct maple_arange_64" if kind == ALLOCATION else "struct maple_range_64"
        node = -(-self.allocate(512) // 256) * 256
        layout = self.types.struct(name)
        pivots, room = (9, 10) if kind == ALLOCATION else (15, 16)
        assert len(slots) <= room
        for index, (high, content) in enumerate(slots):
            if index < pivots and high != LAST:
                self.words(node + layout.member("pivot").offset + 8 * index, high)
            elif index < pivots and index == pivots - 1:
                self.words(node + layout.member("pivot").offset + 8 * index, last)
            self.words(node + layout.member("slot").offset + 8 * index, content)
        if len(slots) < room - (kind != ALLOCATION) or kind == ALLOCATION:
            self.put(node, name, "meta.end", len(slots) - 1)
        return node | kind << 3 | 4

    def root_of(self, pointer: int) -> None:
        self.put(self.mm, "struct mm_struct", "mm_mt.ma_root", pointer | 2)

    def leaf_of(self, *vmas: int) -> int:
        """Return a leaf with these mappings and the gaps between them, to the end of all addresses."""
        slots: list[tuple[int, int]] = []
        for vma in vmas:
            start, end = (int.from_bytes(self.read(vma + at, 8), "little") for at in (0, 8))
            if start and (not slots or slots[-1][0] != start - 1):
                slots.append((start - 1, 0))
            slots.append((end - 1, vma))
        return self.node(LEAF, LAST, *slots, (LAST, 0))

    def list_of(self, *vmas: int) -> None:
        self.put(self.mm, "struct mm_struct", "mmap", vmas[0])
        for vma, following in itertools.pairwise(vmas):
            self.put(vma, "struct vm_area_struct", "vm_next", following)

    def entries(self) -> list[tuple[int, int, int]]:
        return list(MapleTree(self).for_each_entry(self.mm + self.types.offset_of("struct mm_struct", "mm_mt")))

    def mappings(self) -> list[MemoryMapping]:
        return list(MappingReader(self).mappings(self.mm))


def take(mapped: Mapped) -> tuple[list[int], Exception]:
    """Return the starts of the mappings before the error, and the error."""
    starts: list[int] = []
    try:
        for mapping in MappingReader(mapped).mappings(mapped.mm):
            starts.append(mapping.start)
    except (CorruptError, ReadError) as error:
        return starts, error
    pytest.fail("no error")


def test_an_empty_tree() -> None:
    assert Mapped().mappings() == []


def test_a_tree_that_is_one_entry() -> None:
    mapped = Mapped()
    mapped.put(mapped.mm, "struct mm_struct", "mm_mt.ma_root", mapped.allocate(16))
    assert [(first, last) for first, last, _ in mapped.entries()] == [(0, 0)]


def test_a_leaf() -> None:
    mapped = Mapped()
    mapped.root_of(
        mapped.leaf_of(mapped.vma(0x1000, 0x3000), mapped.vma(0x3000, 0x4000, 0x5), mapped.vma(0x9000, 0xA000))
    )
    assert [(one.start, one.end, one.permissions) for one in mapped.mappings()] == [
        (0x1000, 0x3000, "rw-p"),
        (0x3000, 0x4000, "r-xp"),
        (0x9000, 0xA000, "rw-p"),
    ]


def test_reserved_entries_are_no_mappings() -> None:
    mapped = Mapped()
    vma = mapped.vma(0x1000, 0x2000)
    mapped.root_of(mapped.node(LEAF, LAST, (0xFFF, RESERVED), (0x1FFF, vma), (LAST, 0)))
    assert mapped.entries() == [(0x1000, 0x1FFF, vma)]


@pytest.mark.parametrize("count", [14, 15, 16])
def test_full_leaves(count: int) -> None:
    """The end is in the metadata, at the last pivot, or behind it."""
    mapped = Mapped()
    vmas = [mapped.vma(0x1000 * index, 0x1000 * (index + 1)) for index in range(count)]
    leaf = mapped.node(LEAF, 0x1000 * count - 1, *((0x1000 * (index + 1) - 1, vma) for index, vma in enumerate(vmas)))
    rest = mapped.node(LEAF, LAST, (LAST, 0))
    mapped.root_of(mapped.node(ALLOCATION, LAST, (0x1000 * count - 1, leaf), (LAST, rest)))
    assert [one.address for one in mapped.mappings()] == vmas


def test_three_levels() -> None:
    mapped = Mapped()
    leaves: list[tuple[int, int]] = []
    starts: list[int] = []
    for index in range(20):
        base = index << 20
        vmas = [mapped.vma(base + 0x1000 * page, base + 0x1000 * (page + 1)) for page in (1, 3)]
        starts += [base + 0x1000, base + 0x3000]
        last = ((index + 1) << 20) - 1
        slots = [(base + 0xFFF, 0), (base + 0x1FFF, vmas[0]), (base + 0x2FFF, 0), (base + 0x3FFF, vmas[1]), (last, 0)]
        leaves.append((last, mapped.node(LEAF, last, *slots)))
    left = mapped.node(RANGE, leaves[9][0], *leaves[:10])
    right = mapped.node(ALLOCATION, leaves[19][0], *leaves[10:])
    tail = mapped.node(RANGE, LAST, (LAST, mapped.node(LEAF, LAST, (LAST, 0))))
    mapped.root_of(mapped.node(ALLOCATION, LAST, (leaves[9][0], left), (leaves[19][0], right), (LAST, tail)))
    assert [one.start for one in mapped.mappings()] == starts


def test_a_broken_node_costs_what_is_below_it() -> None:
    mapped = Mapped()
    first, last = mapped.vma(0x1000, 0x2000), mapped.vma(0x30000, 0x31000)
    left = mapped.node(LEAF, 0xFFFF, (0xFFF, 0), (0x1FFF, first), (0xFFFF, 0))
    right = mapped.node(LEAF, LAST, (0x2FFFF, 0), (0x30FFF, last), (LAST, 0))
    gone = mapped.allocate(4096, page=True)
    mapped.missing.add((gone - 0xFFFF_8880_0000_0000) // 4096)
    mapped.root_of(mapped.node(ALLOCATION, LAST, (0xFFFF, left), (0x1FFFF, gone | LEAF << 3), (LAST, right)))
    starts, error = take(mapped)
    assert starts == [0x1000, 0x30000]
    assert isinstance(error, ReadError)


def test_a_tree_that_loops() -> None:
    mapped = Mapped()
    left = mapped.leaf_of(mapped.vma(0x1000, 0x2000))
    root = mapped.node(ALLOCATION, LAST, (0xFFFF, left), (LAST, 0))
    place = (root & ~0xFF) + mapped.types.offset_of("struct maple_arange_64", "slot") + 8
    mapped.words(place, root)
    mapped.words(left & ~0xFF | 8 + 8, 0x1FFF, 0xFFFF)  # the leaf ends where its slot does
    mapped.root_of(root)
    starts, error = take(mapped)
    assert starts == [0x1000]
    assert "loops back" in str(error)
    assert f"{place:#x}" in str(error)


def test_pivots_out_of_order() -> None:
    mapped = Mapped()
    vma = mapped.vma(0x1000, 0x2000)
    mapped.root_of(mapped.node(LEAF, LAST, (0x1FFF, 0), (0xFFF, vma), (LAST, 0)))
    assert "out of its place" in str(take(mapped)[1])


def test_a_node_with_too_many_slots() -> None:
    mapped = Mapped()
    root = mapped.leaf_of(mapped.vma(0x1000, 0x2000))
    mapped.put(root & ~0xFF, "struct maple_range_64", "meta.end", 16)
    mapped.root_of(root)
    assert "17 slots" in str(take(mapped)[1])


def test_a_node_of_no_known_type() -> None:
    mapped = Mapped()
    mapped.root_of(mapped.allocate(256) & ~0xFF | 9 << 3)
    assert "is no node" in str(take(mapped)[1])


def test_an_entry_that_is_no_mapping() -> None:
    mapped = Mapped()
    good, bad = mapped.vma(0x1000, 0x2000), mapped.vma(0x9000, 0x2000)
    mapped.root_of(mapped.node(LEAF, LAST, (0xFFF, 0), (0x1FFF, good), (0x2FFF, bad), (LAST, 0)))
    starts, error = take(mapped)
    assert starts == [0x1000]
    assert "a mapping is from 0x9000 to 0x2000" in str(error)


def test_a_list() -> None:
    mapped = Mapped(tree=False)
    mapped.list_of(mapped.vma(0x1000, 0x2000, 0x81), mapped.vma(0x5000, 0x6000, 0))
    assert [(one.start, one.permissions) for one in mapped.mappings()] == [(0x1000, "r--s"), (0x5000, "---p")]


def test_a_list_that_loops() -> None:
    mapped = Mapped(tree=False)
    first, second = mapped.vma(0x1000, 0x2000), mapped.vma(0x2000, 0x3000)
    mapped.list_of(first, second, first)
    starts, error = take(mapped)
    assert starts == [0x1000, 0x2000]
    assert "loops back" in str(error)


def test_a_list_that_leads_nowhere() -> None:
    mapped = Mapped(tree=False)
    first = mapped.vma(0x1000, 0x2000)
    mapped.list_of(first, 0xDEAD000)
    starts, error = take(mapped)
    assert starts == [0x1000]
    assert isinstance(error, ReadError)


@pytest.mark.parametrize("tree", [True, False])
def test_names(tree: bool) -> None:
    mapped = Mapped(tree=tree)
    name = mapped.place("struct vm_special_mapping", name=mapped.string(b"[vvar]"))
    given = mapped.allocate(32)
    mapped.write(given + 4, b"my heap\0")
    shared = mapped.place("struct vm_operations_struct")
    file = mapped.file(b"lib.so")
    vmas = [
        mapped.vma(0x1000, 0x2000, 0x5, vm_file=file, vm_pgoff=3, vm_ops=shared),
        mapped.vma(0x10000, 0x11000, vm_file=file, anon_name=given),
        mapped.vma(0x20000, 0x22000, anon_name=given),
        mapped.vma(0x22000, 0x23000, anon_name=given),
        mapped.vma(0x40000, 0x41000),
        mapped.vma(0x50000, 0x51000, vm_mm=0),
        mapped.vma(0x60000, 0x61000, 0x1, vm_ops=mapped.special, vm_private_data=name),
        mapped.vma(0x7FEF_0000, 0x7FF0_1000),
    ]
    mapped.list_of(*vmas) if not tree else mapped.root_of(mapped.leaf_of(*vmas))
    found = mapped.mappings()
    assert [one.path for one in found] == [
        "/lib.so", "[anon_shmem:my heap]", "[heap]", "[anon:my heap]", None, "[vdso]", "[vvar]", "[stack]",
    ]  # fmt: skip
    assert (found[0].offset, found[0].major, found[0].minor, found[0].inode) == (0x3000, 8, 0x11, 1234)
    assert [one.is_file for one in found] == [True, True, *[False] * 6]
    assert (found[2].offset, found[2].major, found[2].minor, found[2].inode) == (0, 0, 0, 0)


def test_the_name_of_a_file_is_not_looked_for_where_trees_of_files_are() -> None:
    """From v5.17 to v6.1 anon_name shares its place with what mappings of files use."""
    mapped = Mapped(own_place=False)
    mapped.root_of(mapped.leaf_of(mapped.vma(0x1000, 0x2000, vm_file=mapped.file(b"lib.so"), anon_name=0x1234)))
    assert [one.path for one in mapped.mappings()] == ["/lib.so"]


def test_a_missing_file_costs_its_fields() -> None:
    mapped = Mapped()
    mapped.root_of(mapped.leaf_of(mapped.vma(0x1000, 0x2000, vm_file=0xDEAD000), mapped.vma(0x2000, 0x3000)))
    lost, plain = mapped.mappings()
    assert (lost.start, lost.path, lost.major, lost.inode) == (0x1000, None, None, None)
    assert lost.unread == ("path", "device", "inode")
    assert not plain.unread


@pytest.mark.parametrize(("mode", "count"), [(0, 1), (1, 1), (2, 0)])
def test_the_vsyscall_page(mode: int, count: int) -> None:
    mapped = Mapped()
    name = mapped.allocate(16, symbol="gate_vma_name")
    operations = mapped.place("struct vm_operations_struct", name=name)
    gate = mapped.place(
        "struct vm_area_struct", symbol="gate_vma", vm_ops=operations, vm_flags=4,
        vm_start=0xFFFF_FFFF_FF60_0000, vm_end=0xFFFF_FFFF_FF60_1000,
    )  # fmt: skip
    mapped.words(mapped.allocate(8, symbol="vsyscall_mode"), mode)
    assert [(one.address, one.path, one.permissions) for one in mapped.mappings()] == [
        (gate, "[vsyscall]", "--xp")
    ] * count
