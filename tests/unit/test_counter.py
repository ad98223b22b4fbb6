"""Counters and vnodes of kernels written here: layouts that no real dump here has, and damage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.debuginfo.layout import LayoutTypes
from kvm_dbg.debuginfo.layout_file import LayoutFile
from kvm_dbg.errors import CorruptError, NotMappedError, SymbolNotFound, TypeNotFound
from kvm_dbg.image.base import BytesImage
from kvm_dbg.kernel.base import Kernel
from kvm_dbg.kernel.linux import vmstat
from kvm_dbg.kernel.netbsd import counter
from kvm_dbg.kernel.netbsd.vnode import VnodeReader
from kvm_dbg.kernel.usage import Counter
from kvm_dbg.symbols.base import Symbol
from kvm_dbg.symbols.kallsyms import ListedSymbols

BASE = 0xFFFF_8000_0000_0000
Document = dict[str, Any]


class Small(Kernel):
    """A kernel of a few words of memory, all else is not mapped."""

    def __init__(self, types: Document, symbols: Mapping[str, tuple[int, int]]) -> None:
        self.image = BytesImage({})
        self.arch = X86_64
        document = {"$layout": {"version": 1, "pointer_size": 8}, **types}
        self.types = LayoutTypes(LayoutFile(json.dumps(document).encode(), "types"))
        self.symbols = ListedSymbols(Symbol(name, at, size, "D") for name, (at, size) in symbols.items())
        self.bytes: dict[int, int] = {}

    def put(self, address: int, *values: int, size: int = 8) -> None:
        for number, value in enumerate(values):
            data = value.to_bytes(size, "little", signed=value < 0)
            self.bytes.update({address + number * size + at: byte for at, byte in enumerate(data)})

    def read(self, vaddr: int, size: int) -> bytes:
        try:
            return bytes(self.bytes[address] for address in range(vaddr, vaddr + size))
        except KeyError:
            raise NotMappedError(vaddr, "nothing is here") from None

    def translate(self, vaddr: int) -> int:
        return vaddr


def struct_of(size: int, **members: tuple[int, int, str]) -> Document:
    rows = {name: {"offset": at, "size": length, "type": kind} for name, (at, length, kind) in members.items()}
    return {"size": size, "members": rows}


def enum_of(*names: str) -> Document:
    return {"size": 4, "enumerators": {name: number for number, name in enumerate(names)}}


LINUX = {
    "enum zone_stat_item": enum_of("NR_FREE_PAGES", "NR_BOUNCE", "NR_VM_ZONE_STAT_ITEMS"),
    "enum node_stat_item": enum_of("NR_ANON_THPS", "NR_SWAPCACHE", "NR_VM_NODE_STAT_ITEMS"),
    "enum vm_event_item": enum_of("PGPGIN", "PGFAULT", "NR_VM_EVENT_ITEMS"),
    "vm_event_state": struct_of(16, event=(0, 16, "unsigned long [2]")),
}
TEXTS = (
    "nr_free_pages",
    "nr_bounce",
    "nr_anon_transparent_hugepages",
    "nr_swapcached",
    "high",
    "low",
    "pgpgin",
    "pgfault",
)
PLACES = {
    "vmstat_text": (BASE, 64),
    "vm_zone_stat": (BASE + 0x100, 16),
    "vm_node_stat": (BASE + 0x200, 16),
    "vm_event_states": (BASE + 0x300, 16),
}


def linux(without: str = "") -> Small:
    """Return a kernel for one processor, without NUMA."""
    kernel = Small(LINUX, {name: place for name, place in PLACES.items() if name != without})
    for number, text in enumerate(TEXTS):
        kernel.put(BASE + 8 * number, BASE + 0x1000 + 0x40 * number)
        kernel.put(BASE + 0x1000 + 0x40 * number, *text.encode().ljust(64, b"\0"), size=1)
    kernel.put(BASE + 0x100, 88, -3)
    kernel.put(BASE + 0x200, 1536, 7)
    kernel.put(BASE + 0x300, 1001, 5)
    return kernel


def test_linux_counts_as_proc_vmstat_shows() -> None:
    """mm/vmstat.c: what is below 0 is 0, huge pages are divided by 512, sectors by 2."""
    assert [(one.name, one.value) for one in vmstat.for_each_counter(linux())] == list(
        zip(TEXTS, (88, 0, 3, 7, None, None, 500, 5), strict=True)
    )


def test_before_5_12_huge_pages_were_counted_as_such() -> None:
    kernel = linux()
    kernel.types = Small(
        LINUX | {"enum node_stat_item": enum_of("NR_ANON_THPS", "NR_OTHER", "NR_VM_NODE_STAT_ITEMS")}, {}
    ).types
    assert [one.value for one in vmstat.for_each_counter(kernel)][2] == 1536


def test_a_group_that_is_not_in_the_image_costs_its_counters() -> None:
    kernel = linux()
    for address in range(BASE + 0x200, BASE + 0x210):
        del kernel.bytes[address]
    found = list(vmstat.for_each_counter(kernel))
    assert [one.value for one in found] == [88, 0, None, None, None, None, 500, 5]
    assert "nothing is here" in found[2].why


def test_a_kernel_without_events_has_none() -> None:
    assert [one.name for one in vmstat.for_each_counter(linux("vm_event_states"))] == list(TEXTS[:6])


def test_without_names_there_are_no_counters() -> None:
    with pytest.raises(SymbolNotFound):
        list(vmstat.for_each_counter(linux("vmstat_text")))


@pytest.mark.parametrize("number", [-1, 1 << 20])
def test_an_impossible_number_of_counters_is_refused(number: int) -> None:
    kernel = linux()
    kernel.types = Small(
        LINUX | {"enum zone_stat_item": {"size": 4, "enumerators": {"NR_VM_ZONE_STAT_ITEMS": number}}}, {}
    ).types
    with pytest.raises(CorruptError, match="NR_VM_ZONE_STAT_ITEMS"):
        list(vmstat.for_each_counter(kernel))


UVMEXP = struct_of(16, pagesize=(0, 4, "int"), free=(4, 4, "int"), filepages=(8, 4, "int"), pgswapin=(12, 4, "int"))
COUNTS = ("NFAULT", "FREEPAGES", "FILEUNKNOWN", "FILECLEAN", "FILEDIRTY", "EXECPAGES")
NEW = {  # sys/sys/cpu_data.h 1.45 and later
    "uvmexp": UVMEXP,
    "cpu_info": struct_of(0x80, ci_data=(0, 0x40, "struct cpu_data")),
    "cpu_data": struct_of(0x40, cpu_index=(0, 4, "u_int"), cpu_counts=(8, 48, "int64_t [6]")),
    "enum cpu_count": enum_of(*(f"CPU_COUNT_{name}" for name in COUNTS)),
}


def netbsd(types: Document) -> Small:
    """Return a kernel with two CPUs and the name cache's counters."""
    places = {
        "uvmexp": (BASE, 16),
        "cpu_infos": (BASE + 0x40, 8),
        "ncpu": (BASE + 0x48, 4),
        "nchstats": (BASE + 0x100, 88),
    }
    kernel = Small(types, places)
    kernel.put(BASE, 4096, 11, 12, 13, size=4)
    kernel.put(BASE + 0x40, BASE + 0x80)
    kernel.put(BASE + 0x48, 2, size=4)
    kernel.put(BASE + 0x80, BASE + 0x200, BASE + 0x300)
    for cpu, start in enumerate((BASE + 0x200, BASE + 0x300)):
        kernel.put(start, cpu)
        kernel.put(start + 8, 10 + cpu, -5 + 10 * cpu, 3, 4, 5, 2)
    kernel.put(BASE + 0x100, 50, 30, 0, 0, 20, 0, 1, 2, 0, 0, 0)
    return kernel


def by_name(kernel: Small) -> dict[str, Counter]:
    return {one.name: one for one in counter.for_each_counter(kernel)}


def test_netbsd_10_counts_on_each_cpu() -> None:
    found = by_name(netbsd(NEW))
    assert (found["pagesize"].value, found["pgswapin"].value) == (4096, 13)
    assert (found["faults"].value, found["free"].value) == (21, 0)  # one CPU may owe what another has
    assert found["filepages"].value == 2 * (3 + 4 + 5 - 2)
    assert "CPU_COUNT_NTRAP" in found["traps"].why
    assert found["colorhit"].value is None


def test_the_name_caches_shares_are_rounded_down() -> None:
    found = by_name(netbsd(NEW))
    assert (found["ncs_total"].value, found["ncs_goodhits_percent"].value, found["ncs_pass2_percent"].value) == (
        100,
        50,
        1,
    )


def test_a_name_cache_that_nobody_asked_has_no_shares() -> None:
    kernel = netbsd(NEW)
    kernel.put(BASE + 0x100, *[0] * 11)
    assert by_name(kernel)["ncs_goodhits_percent"].value == 0


def test_without_types_of_cpus_their_counters_say_why() -> None:
    found = by_name(netbsd({"uvmexp": UVMEXP}))
    assert (found["free"].value, found["faults"].value) == (11, None)
    assert "struct cpu_data" in found["faults"].why


def test_without_uvmexp_there_are_no_counters() -> None:
    with pytest.raises(TypeNotFound):
        list(counter.for_each_counter(netbsd({})))


NODES = {  # as far as they are read
    "vnode": struct_of(
        64,
        v_type=(0, 4, "int"),
        v_tag=(4, 4, "int"),
        v_size=(8, 8, "uint64_t"),
        v_data=(16, 8, "void *"),
        v_mount=(24, 8, "struct mount *"),
        v_un=(32, 8, "void *"),
        v_vflag=(40, 4, "int"),
    ),
    "mount": struct_of(64, mnt_stat=(0, 64, "struct statvfs")),
    "statvfs": struct_of(64, f_mntonname=(0, 64, "char [64]")),
    "namecache": struct_of(
        64,
        nc_lru=(0, 8, "void *"),
        nc_dvp=(8, 8, "void *"),
        nc_vp=(16, 8, "void *"),
        nc_nlen=(24, 1, "unsigned char"),
        nc_name=(25, 39, "char [39]"),
    ),
}
ROOT, DIRECTORY, FILE, NAMES = BASE + 0x400, BASE + 0x500, BASE + 0x600, BASE + 0x800


def tree(mounted: str = "/", up: int = ROOT) -> Small:
    """Return a kernel with a file in a directory of the root of a file system."""
    kernel = Small(NODES, {"nclruhead": (BASE, 16)})
    for place, kind, flag in ((ROOT, 2, 1), (DIRECTORY, 2, 0), (FILE, 1, 0)):
        kernel.put(place, kind, 99, size=4)
        kernel.put(place + 8, 512, 0, BASE + 0x700, 0, flag)
    kernel.put(BASE + 0x700, *mounted.encode().ljust(64, b"\0"), size=1)
    kernel.put(BASE, NAMES)
    for number, (name, above, node) in enumerate(((b"sub", up, DIRECTORY), (b"file", DIRECTORY, FILE))):
        at = NAMES + 64 * number
        kernel.put(at, at + 64 if number == 0 else 0, above, node)
        kernel.put(at + 24, len(name), *name.ljust(39, b"\0"), size=1)
    return kernel


@pytest.mark.parametrize(("mounted", "path"), [("/", "/sub/file"), ("/home", "/home/sub/file")])
def test_a_path_ends_where_its_file_system_is_mounted(mounted: str, path: str) -> None:
    found = VnodeReader(tree(mounted)).describe(FILE)
    assert (found["path"], found["mount"], found["kind"], found["size"]) == (path, mounted, "reg", 512)
    assert VnodeReader(tree(mounted)).describe(ROOT)["path"] == mounted


def test_a_name_that_has_left_the_cache_costs_the_path() -> None:
    kernel = tree()
    kernel.put(NAMES, 0)  # the list ends behind the first
    found = VnodeReader(kernel).describe(FILE)
    assert "path" not in found
    assert found["unread"] == ()


def test_directories_that_lead_to_each_other_cost_the_path() -> None:
    found = VnodeReader(tree(up=DIRECTORY)).describe(FILE)
    assert "path" not in found
    assert found["unread"] == ("path",)


def test_a_list_of_names_that_loops_costs_the_path() -> None:
    kernel = tree()
    kernel.put(NAMES + 64, NAMES)
    assert VnodeReader(kernel).describe(FILE)["unread"] == ("path",)


def test_a_mount_that_is_not_in_the_image_costs_where_it_is() -> None:
    kernel = tree()
    for address in range(BASE + 0x700, BASE + 0x740):
        del kernel.bytes[address]
    found = VnodeReader(kernel).describe(FILE)
    assert found["unread"] == ("mount", "path")
    assert found["size"] == 512
