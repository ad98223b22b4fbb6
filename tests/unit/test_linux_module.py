"""Modules in the three layouts of their memory and of their sections."""

from __future__ import annotations

import struct

import pytest

from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.base import Module
from kvm_dbg.kernel.linux.module import for_each_module, for_each_module_record
from kvm_dbg.kernel.linux.symbolize import read_module_symbols, symbolize
from tests.writers.linux import Spec, World

TEXT = 0xFFFF_FFFF_C000_0000


class Modules(World):
    """A kernel with modules. layout: "core" (v4.5), "battr" (v5.8), "mem" (v6.4), "private" (v6.14)."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout
        self.many = layout in ("mem", "private")
        self.struct("struct list_head", next="ptr", prev="ptr")
        self.struct("atomic_t", counter="s32")
        self.struct("struct module_layout", base="ptr", size="u32")
        self.struct("struct module_memory", base="ptr", size="u32")
        self.struct("struct attribute", name="ptr", mode="u32")
        self.struct("struct bin_attribute", attr="struct attribute", size="u64", private="ptr")
        self.struct("struct attribute_group", name="ptr", bin_attrs="ptr")
        self.struct("struct mod_kallsyms", symtab="ptr", num_symtab="u32", strtab="ptr", typetab="ptr")
        if layout == "private":
            self.struct("struct module_sect_attrs", grp="struct attribute_group")
        else:
            name = {"name": "ptr"} if layout == "core" else {"battr": "struct bin_attribute"}
            self.struct("struct module_sect_attr", **name, address="u64")
            self.struct(
                "struct module_sect_attrs",
                grp="struct attribute_group", nsections="u32", attrs=("struct module_sect_attr", 8),
            )  # fmt: skip
        self.struct("struct module_use", source_list="struct list_head", target_list="struct list_head", source="ptr")
        areas: dict[str, Spec] = {"core_layout": "struct module_layout", "init_layout": "struct module_layout"}
        if self.many:
            areas = {"mem": ("struct module_memory", 7)}
        self.struct(
            "struct module", state="u32", list="struct list_head", name=("u8", 56), **areas, taints="u64",
            kallsyms="ptr", sect_attrs="ptr", percpu="ptr", source_list="struct list_head", refcnt="atomic_t",
        )  # fmt: skip
        self.head = self.allocate(16, symbol="modules")
        self.all: list[int] = []

    def module(self, name: bytes, base: int, **values: int) -> int:
        at = self.place("struct module", name=name, refcnt__counter=1)
        for path, value in values.items():
            self.put(at, "struct module", path, value)
        link = self.types.offset_of("struct module", "list")
        if self.many:
            place = at + self.types.offset_of("struct module", "mem")
            size = self.types.size_of("struct module_memory")
            for index, (start, length) in enumerate(((base, 0x2000), (base + 0x8000, 0x1000), (0, 0), (0, 0x1000))):
                self.put(place + index * size, "struct module_memory", "base", start)
                self.put(place + index * size, "struct module_memory", "size", length)
        else:
            self.put(at, "struct module", "core_layout.base", base)
            self.put(at, "struct module", "core_layout.size", 0x3000)
        users = at + self.types.offset_of("struct module", "source_list")
        self.ring(users, [])
        self.all.append(at)
        self.ring(self.head, [one + link for one in self.all])
        return at

    def use(self, module: int, users: list[int]) -> None:
        nodes = [self.place("struct module_use", source=user) for user in users]
        self.ring(module + self.types.offset_of("struct module", "source_list"), nodes)
        self.put(module, "struct module", "refcnt.counter", 1 + len(users))

    def sections(self, module: int, sections: dict[bytes, int]) -> None:
        names = [(self.string(name), place) for name, place in sections.items()]
        table = self.place("struct module_sect_attrs")
        self.put(module, "struct module", "sect_attrs", table)
        if self.layout == "private":
            entries = [self.place("struct bin_attribute", attr__name=name, private=place) for name, place in names]
            array = self.allocate(8 * len(entries) + 8)
            self.words(array, *entries, 0)
            self.put(table, "struct module_sect_attrs", "grp.bin_attrs", array)
            return
        self.put(table, "struct module_sect_attrs", "nsections", len(names))
        place = table + self.types.offset_of("struct module_sect_attrs", "attrs")
        size = self.types.size_of("struct module_sect_attr")
        for index, (name, address) in enumerate(names):
            path = "name" if self.layout == "core" else "battr.attr.name"
            self.put(place + index * size, "struct module_sect_attr", path, name)
            self.put(place + index * size, "struct module_sect_attr", "address", address)


@pytest.fixture(params=["core", "battr", "mem", "private"])
def kernel(request: pytest.FixtureRequest) -> Modules:
    return Modules(request.param)


def modules(kernel: Modules) -> dict[str, Module]:
    return {module.name: module for module in for_each_module(kernel)}


def test_memory_and_users(kernel: Modules) -> None:
    low = kernel.module(b"low", TEXT)
    high = kernel.module(b"high", TEXT + 0x10000, taints=1 << 0 | 1 << 12 | 1 << 13, percpu=0x1_8000)
    other = kernel.module(b"other", TEXT + 0x20000)
    kernel.use(low, [other, high])
    found = modules(kernel)
    assert list(found) == ["low", "high", "other"]
    assert (found["low"].address, found["low"].struct_address) == (TEXT, low)
    assert found["low"].size == 0x3000
    areas = ((TEXT, 0x2000), (TEXT + 0x8000, 0x1000)) if kernel.many else ((TEXT, 0x3000),)
    assert found["low"].ranges == areas
    assert (found["low"].users, found["low"].reference_count) == (("other", "high"), 2)
    assert (found["high"].taints, found["high"].sections) == ("POE", {".data..percpu": 0x1_8000})
    assert (found["other"].users, found["other"].reference_count) == ((), 0)


def test_states(kernel: Modules) -> None:
    for state in range(4):
        kernel.module(b"m%d" % state, TEXT, state=state)
    found = [(module.name, module.state) for module in for_each_module(kernel)]
    assert found == [("m0", "live"), ("m1", "loading"), ("m2", "unloading"), ("m3", "unformed")]


def test_sections_and_build_id(kernel: Modules) -> None:
    module = kernel.module(b"low", TEXT)
    note = kernel.allocate(36)
    kernel.write(note, struct.pack("<III4s", 4, 20, 3, b"GNU\0") + bytes(range(20)))
    sections = {b".text": TEXT, b".init.text": TEXT + 0x9000, b".note.gnu.build-id": note}
    kernel.sections(module, sections)
    assert modules(kernel)["low"].sections == {name.decode(): address for name, address in sections.items()}
    assert modules(kernel)["low"].build_id == bytes(range(20)).hex()
    kernel.write(note + 8, b"\4")  # a note of another type
    assert modules(kernel)["low"].build_id is None


def test_sections_that_cannot_be_read(kernel: Modules) -> None:
    module = kernel.module(b"low", TEXT, sect_attrs=0x1234)
    assert (modules(kernel)["low"].sections, modules(kernel)["low"].unread) == ({}, ("sections",))
    if kernel.layout != "private":
        table = kernel.place("struct module_sect_attrs", nsections=1 << 30)
        kernel.put(module, "struct module", "sect_attrs", table)
        assert modules(kernel)["low"].sections == {}


def test_a_list_that_loops(kernel: Modules) -> None:
    kernel.module(b"a", TEXT)
    second = kernel.module(b"b", TEXT)
    link = kernel.types.offset_of("struct module", "list")
    kernel.words(second + link, kernel.all[0] + link)
    walk = for_each_module(kernel)
    assert [next(walk).name, next(walk).name] == ["a", "b"]
    with pytest.raises(CorruptError, match="loops"):
        next(walk)


def test_symbols(kernel: Modules) -> None:
    module = kernel.module(b"low", TEXT)
    names = b"\0alpha\0beta\0$d\0"
    entries = [(0, 0, 0), (1, TEXT + 0x100, 0x20), (7, TEXT + 0x200, 0), (12, TEXT + 0x204, 0)]
    symtab = kernel.allocate(24 * len(entries))
    kernel.write(
        symtab, b"".join(struct.pack("<IBBHQQ", name, 0x12, 0, 1, value, size) for name, value, size in entries)
    )
    strtab = kernel.string(names)
    typetab = kernel.string(b"?tdd")
    table = kernel.place("struct mod_kallsyms", symtab=symtab, num_symtab=len(entries), strtab=strtab, typetab=typetab)
    kernel.put(module, "struct module", "kallsyms", table)
    (record,) = for_each_module_record(kernel)
    symbols = read_module_symbols(kernel, record)
    assert [(symbol.name, symbol.address, symbol.kind) for symbol in symbols[:2]] == [
        ("alpha", TEXT + 0x100, "t"),
        ("beta", TEXT + 0x200, "d"),
    ]
    assert symbolize(kernel, TEXT + 0x100) == "alpha [low]"
    assert symbolize(kernel, TEXT + 0x11F) == "alpha+0x1f [low]"
    assert symbolize(kernel, TEXT + 0x204) == "beta+0x4 [low]"  # "$d" names nothing
    assert symbolize(kernel, TEXT - 0x100000) is None
