"""Types of modules: the kernel's list of their BTF, whole and damaged."""

from __future__ import annotations

import pytest

from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.linux.module_types import MAX_SIZE, for_each_module_types
from kvm_dbg.kernel_file.debug_info import digest_of
from tests.unit.made_dwarf import plain_btf, types_of
from tests.unit.test_linux_module import TEXT, Modules
from tests.writers.btf import BtfWriter

BASE = plain_btf()
TYPES = types_of(BASE)


class Kept(Modules):
    """A kernel that keeps its modules' BTF."""

    def __init__(self) -> None:
        super().__init__("mem")
        self.struct("struct btf_module", list="struct list_head", module="ptr", btf="ptr")
        self.struct("struct btf", data="ptr", data_size="u32")
        self.list = self.allocate(16, symbol="btf_modules")
        self.kept: list[int] = []
        self.ring(self.list, [])
        self.ring(self.head, [])

    def keep(self, name: bytes, data: bytes, size: int | None = None) -> int:
        """Add a module and its BTF, and return the address of the list's entry."""
        module = self.module(name, TEXT + 0x10000 * len(self.all))
        place = self.allocate(len(data))
        self.write(place, data)
        btf = self.place("struct btf", data=place, data_size=len(data) if size is None else size)
        self.kept.append(self.place("struct btf_module", module=module, btf=btf))
        self.ring(self.list, self.kept)
        return self.kept[-1]


def split(name: str, size: int) -> bytes:
    """Return BTF of a module with one struct."""
    btf = BtfWriter(base=BASE)
    btf.struct(name, size, [("first", 1, 0)])
    return btf.section()


def test_types_go_on_from_the_kernels() -> None:
    kernel = Kept()
    kernel.keep(b"one", split("one_device", 64))
    kernel.keep(b"two", split("two_device", 128))
    kernel.module(b"three", TEXT + 0x90000)  # without BTF
    found = dict(for_each_module_types(kernel, TYPES))
    assert sorted(found) == ["one", "two"]
    assert found["one"].struct("struct one_device").size == 64
    assert found["two"].struct("struct two_device").members[0].type.name == "int"


def test_one_that_cannot_be_read_costs_no_other() -> None:
    kernel = Kept()
    kernel.keep(b"noise", b"\x9f\xeb noise that is no BTF at all")
    kernel.keep(b"none", split("none", 8), size=0)
    kernel.keep(b"huge", split("huge", 8), size=MAX_SIZE + 1)
    kernel.keep(b"cut", split("cut", 8)[:-40])
    stray = kernel.keep(b"stray", split("stray", 8))
    kernel.put(stray, "struct btf_module", "module", 0x1234)
    nowhere = kernel.keep(b"nowhere", split("nowhere", 8))
    kernel.put(nowhere, "struct btf_module", "btf", 0xFFFF_F000_0000_0000)
    kernel.keep(b"good", split("good", 8))
    assert [name for name, _ in for_each_module_types(kernel, TYPES)] == ["good"]


def test_a_broken_list_is_said_after_what_comes_before() -> None:
    kernel = Kept()
    kernel.keep(b"one", split("one", 8))
    last = kernel.keep(b"two", split("two", 8))
    kernel.put(last, "struct btf_module", "list.next", last)
    found = for_each_module_types(kernel, TYPES)
    assert next(found)[0] == "one"
    with pytest.raises(CorruptError, match="modules' types"):
        list(found)


def test_a_kernel_that_keeps_none_has_none() -> None:
    assert list(for_each_module_types(Modules("mem"), TYPES)) == []


def test_sets_of_modules_are_told_apart_by_names_and_by_every_byte() -> None:
    def digest(**modules: bytes) -> str:
        kernel = Kept()
        for name, data in modules.items():
            kernel.keep(name.encode(), data)
        return digest_of(dict(sorted(for_each_module_types(kernel, TYPES))))

    one, other = split("device", 64), split("device", 72)
    digests = [digest(), digest(a=one), digest(b=one), digest(a=other), digest(a=one, b=other), digest(a=other, b=one)]
    assert len(set(digests)) == len(digests)
    assert digest(b=other, a=one) == digest(a=one, b=other)
