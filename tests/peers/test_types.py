"""All types of real kernels, as drgn reads them from DWARF, against ours from BTF and from DWARF."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvm_dbg.debuginfo.base import EnumType, Type, size_of
from kvm_dbg.debuginfo.btf import BtfTypes
from kvm_dbg.debuginfo.btf_data import ENUM, ENUM64, KIND_MASK, STRUCT, UNION
from kvm_dbg.debuginfo.dwarf import DwarfTypes
from kvm_dbg.elf import ElfFile, open_elf
from tests.lab import find

KERNELS = ("deb11-4level", "deb12-4level", "deb13-4level", "bpo13-4level")  # one scenario of each kernel
PREFIXES = {STRUCT: "struct ", UNION: "union ", ENUM: "enum ", ENUM64: "enum "}

# what the kernel rooms read, and types that are rarely met
ASKED = (
    "struct task_struct", "struct mm_struct", "struct pid", "struct upid", "struct cred", "struct file", "struct path",
    "struct module", "struct mod_kallsyms", "struct rq", "struct cfs_rq", "struct sched_entity", "struct page",
    "struct list_head", "struct signal_struct", "struct thread_struct", "struct vm_area_struct", "struct files_struct",
    "struct fdtable", "struct dentry", "struct qstr", "struct inode", "struct super_block", "struct mount",
    "struct socket", "struct sock", "struct tty_struct", "struct printk_info", "struct printk_ringbuffer",
    "struct prb_desc", "struct prb_data_ring", "struct uts_namespace", "struct new_utsname", "struct pid_namespace",
    "struct nsproxy", "struct zone", "struct pglist_data", "struct kmem_cache", "struct timekeeper", "struct pt_regs",
    "struct inactive_task_frame", "union thread_union", "struct net_device", "struct cpuinfo_x86", "struct iphdr",
    "struct tcphdr", "enum desc_state", "enum zone_type", "atomic_t", "pid_t", "u32", "unsigned long", "char",
)  # fmt: skip

Shape = tuple[object, ...]


class Kernel:
    """One kernel file, opened by both."""

    def __init__(self, path: Path) -> None:
        import drgn

        self.elf: ElfFile = open_elf(path)
        section = self.elf.find_section(".BTF")
        assert section is not None
        self.btf = BtfTypes(self.elf.section_data(section), source=f"BTF of {path}")
        self.drgn: Any = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        module: Any = self.drgn.extra_module("kernel", create=True)
        module.try_file(str(path), force=True)
        assert module.debug_file_status == drgn.ModuleFileStatus.HAVE

    def names(self) -> Iterator[str]:
        """Yield the names that BTF has one type for; of several, each reader may choose another."""
        data = self.btf.data
        words = data.words
        found: Counter[str] = Counter()
        for at in data.offsets:
            prefix = PREFIXES.get(words[at + 1] >> 24 & KIND_MASK)
            if prefix is not None and words[at]:
                found[prefix + data.name(words[at]).decode()] += 1
        yield from (name for name, times in found.items() if times == 1)


@functools.cache
def _open(name: str) -> Kernel | None:
    dump = find(name)
    return Kernel(dump.vmlinux) if dump is not None else None


@pytest.fixture(params=KERNELS, scope="module")
def kernel(request: pytest.FixtureRequest) -> Kernel:
    found = _open(request.param)
    if found is None:
        pytest.skip(f"the lab has no dump {request.param}: python -m tests.lab build {request.param}")
    return found


def our_shape(type_: Type | None) -> Shape | None:
    found = type_.stripped() if type_ is not None else None
    if isinstance(found, EnumType):
        return (found.size, *map(tuple, found.enumerators))
    if found is None or not hasattr(found, "members"):
        return (size_of(found),) if found is not None else None
    return (found.size, *((m.name or None, m.bit_offset, m.bit_size, size_of(m.type)) for m in found.members))


def their_shape(type_: Any) -> Shape:
    import drgn

    while type_.kind == drgn.TypeKind.TYPEDEF:
        type_ = type_.type
    if type_.kind == drgn.TypeKind.ENUM:
        return (type_.type.size, *((value.name, value.value) for value in type_.enumerators))
    if type_.kind not in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION):
        return (_their_size(type_),)
    return (
        type_.size,
        *((m.name, m.bit_offset, m.bit_field_size or 0, _their_size(m.type)) for m in type_.members or ()),
    )


def _their_size(type_: Any) -> int:
    import drgn

    try:
        return int(drgn.sizeof(type_))
    except TypeError:  # void, functions and incomplete types have none; flexible arrays have 0
        return 0


def test_every_type_of_btf_is_as_drgn_has_it(kernel: Kernel) -> None:
    different, absent, same = {}, [], 0
    for name in kernel.names():
        ours = our_shape(kernel.btf.find_type(name))
        if ours is None:
            continue  # an enum that is only declared
        try:
            theirs = their_shape(kernel.drgn.type(name))
        except LookupError:
            absent.append(name)
            continue
        if ours == theirs or (name.startswith("enum ") and _low_words(kernel, ours, theirs)):
            same += 1
        else:
            different[name] = (ours, theirs)
    assert not different
    assert same > 6000
    # drgn does not look for types inside functions, and neither does our search
    dwarf = DwarfTypes(kernel.elf)
    assert [name for name in absent[:5] if dwarf.find_type(name) is not None] == []
    assert len(absent) < same // 200


def _low_words(kernel: Kernel, ours: Shape, theirs: Shape) -> bool:
    """Return whether enums are equal but for what BTF of before ENUM64 cannot say: signs and upper halves."""

    def low(shape: Shape) -> list[tuple[str, int]]:
        return [(value[0], value[1] & 0xFFFFFFFF) for value in shape[1:] if isinstance(value, tuple)]

    return not kernel.btf.data.tables()["facts"][0] and ours[0] == theirs[0] and low(ours) == low(theirs)


@pytest.mark.parametrize("name", ASKED)
def test_dwarf_says_the_same_as_btf(kernel: Kernel, name: str) -> None:
    assert our_shape(_dwarf(kernel).find_type(name)) == our_shape(kernel.btf.find_type(name))


@functools.cache
def _dwarf(kernel: Kernel) -> DwarfTypes:
    return DwarfTypes(kernel.elf)


@pytest.mark.parametrize("name", ["PIDTYPE_SID", "MM_SHMEMPAGES", "ZONE_NORMAL", "desc_finalized", "NR_NO_SUCH_NAME"])
def test_enumerators_are_the_same_in_both(kernel: Kernel, name: str) -> None:
    assert _dwarf(kernel).find_enumerator(name) == kernel.btf.find_enumerator(name)
    if name == "PIDTYPE_SID":
        assert kernel.btf.find_enumerator(name) == int(kernel.drgn.constant(name))
