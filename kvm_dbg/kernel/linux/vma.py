"""Mappings of processes, as /proc/PID/maps lists them.

Sources: include/linux/mm_types.h (struct vm_area_struct), mm.h (the bits of vm_flags), fs/proc/task_mmu.c (the order of
the names: file, the mapping's own operations, heap, stack, a name given by prctl(2)), mm/mmap.c (special mappings have
their name in a struct vm_special_mapping), arch/x86/entry/vsyscall/vsyscall_64.c (gate_vma). Mappings are a list by
vm_next from mm_struct.mmap before v6.1, and a maple tree since (commit 763ecb035029). `anon_name` shares its place with
`shared`, which files' mappings use, from v5.17 to v6.1; since v6.2 shared memory may have a name too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import CorruptError, KvmDbgError, MemberNotFound, ReadError
from kvm_dbg.kernel.base import MemoryMapping
from kvm_dbg.kernel.layout import Layout, Names, Record, decode_text, read_number, read_pointer, remembered
from kvm_dbg.kernel.linux.list import ListGuard
from kvm_dbg.kernel.linux.maple import MapleTree
from kvm_dbg.kernel.linux.path import PathReader
from kvm_dbg.kernel.linux.process import attempt
from kvm_dbg.kernel.linux.task import PF_KTHREAD, read_leaders

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MAX_MAPPINGS = 1 << 22  # vm.max_map_count is 65530 by default, and can be set to more
NAME_LIMIT = 256  # bytes; ANON_VMA_NAME_MAX_LEN is 80
ACCESS = ((0x1, "r"), (0x2, "w"), (0x4, "x"))  # VM_READ, VM_WRITE, VM_EXEC
VM_MAYSHARE = 0x80
MINOR_BITS = 20  # include/linux/kdev_t.h
VSYSCALL_NONE = 2  # of vsyscall_mode: nothing is mapped there

VMA: dict[str, Names] = {
    "start": "vm_start",
    "end": "vm_end",
    "flags": ("vm_flags", "__vm_flags"),
    "pgoff": "vm_pgoff",
    "file": "vm_file",
    "ops": "vm_ops",
    "private": "vm_private_data",
    "mm": "vm_mm",
    "next": ("vm_next", None),
    "anon_name": ("anon_name", None),  # v5.17, commit 9a10064f5625, with CONFIG_ANON_VMA_NAME
    "shared": ("shared", None),
}
FILE: dict[str, Names] = {"mnt": "f_path.mnt", "dentry": "f_path.dentry", "inode": "f_inode"}
MM: dict[str, Names] = {
    "mmap": ("mmap", None),
    "tree": ("mm_mt", None),
    "start_brk": "start_brk",
    "brk": "brk",
    "start_stack": "start_stack",
}


def for_each_mapping(kernel: Kernel, pid: int) -> Iterator[MemoryMapping]:
    """Yield the mappings of process `pid`, ascending by address; none for kernel threads and the dead.

    Raises:
        ReadError, CorruptError: after the last that could be found: the list or tree of them is broken.
    """
    leaders, failure = read_leaders(kernel)
    for task in leaders:
        if task["tgid"] == pid:
            failure = None
            if task["mm"] and not task["flags"] & PF_KTHREAD:
                yield from MappingReader(kernel).mappings(task["mm"])
    if failure is not None:
        raise failure


class MappingReader:
    """Describes the mappings of one kernel's processes."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._paths = PathReader(kernel)
        self._vma = remembered(kernel, _make_vma)
        self._file = remembered(kernel, _make_file)
        self._mm = remembered(kernel, _make_mm)
        types = kernel.types
        self._device = types.offset_of("struct super_block", "s_dev")
        self._name = types.offset_of("struct vm_operations_struct", "name")
        offsets = self._vma.offsets
        named = "anon_name" in offsets
        self._files_have_names = named and offsets["anon_name"] != offsets.get("shared")
        self._text = types.offset_of("struct anon_vma_name", "name") if named else 0
        self._special = kernel.symbols.find("special_mapping_vmops")

    def mappings(self, mm_address: int) -> Iterator[MemoryMapping]:
        """Yield the mappings of the mm_struct at `mm_address`. Raises ReadError, CorruptError at the end."""
        mm = self._mm.read(self._kernel, mm_address)
        failure: KvmDbgError | None = None
        previous = 0
        try:
            for vma in self._for_each_vma(mm):
                if not previous <= vma["start"] < vma["end"]:
                    where = f"from {vma['start']:#x} to {vma['end']:#x}"
                    raise CorruptError(vma.address, f"a mapping is {where}, after one that ends at {previous:#x}")
                previous = vma["end"]
                yield self._describe(vma, mm)
        except (ReadError, CorruptError) as error:
            failure = error
        gate = self._gate()
        if gate is not None:
            yield self._describe(gate, mm)
        if failure is not None:
            raise failure

    def _for_each_vma(self, mm: Record) -> Iterator[Record]:
        kernel = self._kernel
        if "tree" in mm:
            tree = MapleTree(kernel)
            for _, _, address in tree.for_each_entry(mm.at("tree")):
                yield self._vma.read(kernel, address)
            return
        guard = ListGuard(0, "mappings", MAX_MAPPINGS)
        before, address = mm.address, mm["mmap"]
        while address:
            guard.check(address, before)
            vma = self._vma.read(kernel, address)
            yield vma
            before, address = address, vma["next"]

    def _gate(self) -> Record | None:
        """Return the mapping of the vsyscall page, which belongs to no process; None if it is switched off."""
        symbols = self._kernel.symbols
        gate, mode = symbols.find("gate_vma"), symbols.find("vsyscall_mode")
        if gate is None or mode is None:
            return None
        try:
            if read_number(self._kernel, mode.address, 4) == VSYSCALL_NONE:
                return None
            vma = self._vma.read(self._kernel, gate.address)
            return vma if vma["start"] < vma["end"] else None
        except ReadError:
            return None

    def _describe(self, vma: Record, mm: Record) -> MemoryMapping:
        unread: list[str] = []
        device = inode = path = None
        flags, offset = vma["flags"], 0
        if vma["file"]:
            offset = vma["pgoff"] << self._kernel.arch.page_shift
            file = attempt(unread, ("path", "device", "inode"), lambda: self._file.read(self._kernel, vma["file"]))
            if file is not None:
                known = file
                node = attempt(unread, ("device", "inode"), lambda: self._paths.inode(known["inode"]))
                if node is not None:
                    inode = node["ino"]
                    sb = node["sb"]
                    device = attempt(unread, ("device",), lambda: read_number(self._kernel, sb + self._device, 4))
                path = attempt(unread, ("path",), lambda: self._file_name(vma, known))
        else:
            path = attempt(unread, ("path",), lambda: self._own_name(vma, mm))
        letters = "".join(letter if flags & bit else "-" for bit, letter in ACCESS)
        return MemoryMapping(
            start=vma["start"],
            end=vma["end"],
            permissions=letters + ("s" if flags & VM_MAYSHARE else "p"),
            offset=offset & (1 << 64) - 1,
            major=device >> MINOR_BITS if device is not None else None if unread else 0,
            minor=device & (1 << MINOR_BITS) - 1 if device is not None else None if unread else 0,
            inode=inode if vma["file"] else 0,
            path=path or None,
            is_file=bool(vma["file"]),
            address=vma.address,
            unread=tuple(unread),
        )

    def _file_name(self, vma: Record, file: Record) -> str:
        if self._files_have_names and vma["anon_name"]:
            return f"[anon_shmem:{self._given_name(vma)}]"
        return self._paths.path(file["mnt"], file["dentry"])

    def _own_name(self, vma: Record, mm: Record) -> str:
        """Return the name of a mapping that no file is behind, "" if it has none."""
        kernel = self._kernel
        operations = vma["ops"]
        if operations and self._special is not None and operations == self._special.address:
            return decode_text(read_string(kernel, read_pointer(kernel, vma["private"]), NAME_LIMIT))
        if operations and read_pointer(kernel, operations + self._name):
            symbol = kernel.symbols.find_at(read_pointer(kernel, operations + self._name))
            if symbol is not None and symbol.name == "gate_vma_name":
                return "[vsyscall]"
        if not vma["mm"]:
            return "[vdso]"
        if vma["start"] < mm["brk"] and vma["end"] > mm["start_brk"]:
            return "[heap]"
        if vma["start"] <= mm["start_stack"] <= vma["end"]:
            return "[stack]"
        return f"[anon:{self._given_name(vma)}]" if vma.get("anon_name") else ""

    def _given_name(self, vma: Record) -> str:
        return decode_text(read_string(self._kernel, vma["anon_name"] + self._text, NAME_LIMIT))


def _make_vma(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct vm_area_struct", VMA, kernel.arch.byteorder)


def _make_file(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct file", FILE, kernel.arch.byteorder)


def _make_mm(kernel: Kernel) -> Layout:
    layout = Layout(kernel.types, "struct mm_struct", MM, kernel.arch.byteorder)
    if "tree" not in layout.offsets and "mmap" not in layout.offsets:
        raise MemberNotFound("struct mm_struct", "mm_mt or mmap")
    return layout
