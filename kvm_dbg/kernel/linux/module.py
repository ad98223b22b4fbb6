"""Loadable modules, as lsmod(8) and /proc/modules show them.

Sources: include/linux/module.h, kernel/module/procfs.c, sysfs.c and main.c (kernel/module.c before v5.19). A module's
memory is one area since v4.5 (core_layout, and init_layout while it starts), several since v6.4 (mem[], commit
ac3b43283923). Names and addresses of its sections are in `sect_attrs`: an array of module_sect_attr whose name was a
member of its own before v5.8 (commit ed66f991bb19), since v6.14 a NULL-terminated array of bin_attribute pointers with
the address in `private`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.base import ArrayType, StructType, size_of
from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, TypeNotFound
from kvm_dbg.kernel.base import Module
from kvm_dbg.kernel.layout import Layout, Names, Record, decode_text, read_number, read_pointer, remembered
from kvm_dbg.kernel.linux.list import ListGuard, for_each_node

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MODULE_REF_BASE = 1
STATES = {0: "live", 1: "loading", 2: "unloading", 3: "unformed"}  # enum module_state: LIVE, COMING, GOING, UNFORMED
TAINT_LETTERS = "PFSRMBUDAWCIOELKXTNJ"  # by bit, Documentation/admin-guide/tainted-kernels.rst
MAX_MODULES = 1 << 16
MAX_SECTIONS = 1 << 12
NOTE_LIMIT = 256  # bytes of a build-id note

MODULE: dict[str, Names] = {
    "next": "list.next",
    "list": "list",
    "state": "state",
    "name": "name",
    "refcnt": ("refcnt", None),  # with CONFIG_MODULE_UNLOAD
    "source_list": ("source_list", None),
    "taints": "taints",
    "mem": ("mem", None),
    "core_base": ("core_layout.base", "mem"),
    "core_size": ("core_layout.size", "mem"),
    "init_base": ("init_layout.base", "mem"),
    "init_size": ("init_layout.size", "mem"),
    "sect_attrs": ("sect_attrs", None),  # with CONFIG_KALLSYMS and CONFIG_SYSFS
    "percpu": ("percpu", None),
    "kallsyms": ("kallsyms", None),
}


def module_layout(kernel: Kernel) -> Layout:
    """Return the members of struct module that are read of each."""
    return remembered(kernel, _make_layout)


def _make_layout(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct module", MODULE, kernel.arch.byteorder)


def for_each_module_record(kernel: Kernel) -> Iterator[Record]:
    """Yield the members of every struct module in the order of the kernel's list, newest first.

    Raises:
        ReadError, CorruptError: the list is broken; what comes before has been yielded.
    """
    head = kernel.symbols.address("modules")
    layout = module_layout(kernel)
    guard = ListGuard(head, "modules", MAX_MODULES)
    previous, node = head, read_pointer(kernel, head)
    while node != head:
        guard.check(node, previous)
        module = layout.read(kernel, node - layout.offsets["list"])
        yield module
        previous, node = node, module["next"]


def for_each_module(kernel: Kernel) -> Iterator[Module]:
    """Yield the modules in the order of the kernel's list, newest first; /proc/modules hides those that are unformed.

    Raises:
        ReadError, CorruptError: the list is broken; what comes before has been yielded.
    """
    reader = ModuleReader(kernel)
    for module in for_each_module_record(kernel):
        yield reader.module(module)


class ModuleReader:
    """Describes modules of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        types = kernel.types
        self._memory: Layout | None = None
        self._areas = 0
        if "mem" in module_layout(kernel).offsets:
            self._memory = Layout(
                types, "struct module_memory", {"base": "base", "size": "size"}, kernel.arch.byteorder
            )
            array = types.struct("struct module").member("mem").type.stripped()
            self._areas = array.count if isinstance(array, ArrayType) else 0

    def ranges(self, module: Record) -> tuple[tuple[int, int], ...]:
        """Return (address, size) of each area that the module occupies, its text first. Raises ReadError."""
        areas: list[tuple[int, int]] = []
        if self._memory is None:
            areas = [(module["core_base"], module["core_size"]), (module["init_base"], module["init_size"])]
        else:
            data, memory = module.bytes("mem"), self._memory
            for index in range(self._areas):
                start = index * memory.struct_size + memory.start
                area = memory.decode(0, data[start : start + memory.size])
                areas.append((area["base"], area["size"]))
        return tuple((base, size) for base, size in areas if base and size)

    def module(self, module: Record) -> Module:
        """Return what is known of a module. Raises ReadError if even its memory is not known."""
        ranges = self.ranges(module)
        unread: list[str] = []
        sections = self.sections(module, unread)
        count = module["refcnt"] - MODULE_REF_BASE if "refcnt" in module else None
        taints = module["taints"]
        return Module(
            name=module.text("name"),
            address=ranges[0][0] if ranges else 0,
            size=sum(size for _, size in ranges),
            users=self.users(module, unread),
            reference_count=count,
            state=STATES.get(module["state"], f"{module['state']}?"),
            taints="".join(letter for bit, letter in enumerate(TAINT_LETTERS) if taints >> bit & 1),
            struct_address=module.address,
            build_id=self.build_id(sections),
            ranges=ranges,
            sections=sections,
            unread=tuple(unread),
        )

    def users(self, module: Record, unread: list[str]) -> tuple[str, ...]:
        """Return the names of the modules that use this one; those that cannot be read are noted in `unread`."""
        if "source_list" not in module:
            return ()
        kernel = self._kernel
        use = kernel.types.struct("struct module_use")
        link, source = use.member("source_list").offset, use.member("source").offset
        name = module.layout.offsets["name"]
        users: list[str] = []
        try:
            for node in for_each_node(kernel, module.at("source_list"), f"users of {module.text('name')}", MAX_MODULES):
                user = read_pointer(kernel, node - link + source)
                users.append(decode_text(read_string(kernel, user + name, module.layout.sizes["name"])))
        except (ReadError, CorruptError):
            unread.append("users")
        return tuple(users)

    def sections(self, module: Record, unread: list[str]) -> Mapping[str, int]:
        """Return section name -> address; ".data..percpu" is the per-CPU area. A failure is noted in `unread`."""
        sections: dict[str, int] = {}
        try:
            attributes = module.get("sect_attrs")
            if attributes:
                for name, address in self._for_each_section(attributes):
                    sections[name] = address
        except (ReadError, CorruptError, TypeNotFound, MemberNotFound):
            unread.append("sections")
        if module.get("percpu"):
            sections.setdefault(".data..percpu", module["percpu"])
        return sections

    def _for_each_section(self, attributes: int) -> Iterator[tuple[str, int]]:
        kernel, types = self._kernel, self._kernel.types
        order = kernel.arch.byteorder
        table = types.struct("struct module_sect_attrs")
        count = table.find_member("nsections")
        if count is None:
            yield from self._for_each_attribute(attributes, table)
            return
        number = read_number(kernel, attributes + count.offset, size_of(count.type))
        if number > MAX_SECTIONS:
            raise CorruptError(attributes, f"a module has {number} sections")
        names: dict[str, Names] = {"name": ("battr.attr.name", "name"), "address": ("address", "battr.private")}
        layout = Layout(types, "struct module_sect_attr", names, order)
        first = attributes + table.member("attrs").offset
        data = kernel.read(first, number * layout.struct_size)
        for index in range(number):
            start = index * layout.struct_size
            section = layout.decode(first + start, data[start + layout.start :])
            yield decode_text(read_string(kernel, section["name"], 256)), section["address"]

    def _for_each_attribute(self, attributes: int, table: StructType) -> Iterator[tuple[str, int]]:
        kernel = self._kernel
        names: dict[str, Names] = {"name": "attr.name", "address": "private"}
        layout = Layout(kernel.types, "struct bin_attribute", names, kernel.arch.byteorder)
        member = table.find_member("grp.bin_attrs") or table.member("grp.bin_attrs_new")
        array = read_pointer(kernel, attributes + member.offset)
        for index in range(MAX_SECTIONS):
            pointer = read_pointer(kernel, array + index * kernel.arch.pointer_size)
            if not pointer:
                return
            section = layout.read(kernel, pointer)
            yield decode_text(read_string(kernel, section["name"], 256)), section["address"]
        raise CorruptError(array, f"a module has more than {MAX_SECTIONS} sections")

    def build_id(self, sections: Mapping[str, int]) -> str | None:
        """Return the build-id that the module's note holds, as hexadecimal digits; None if there is none."""
        address = sections.get(".note.gnu.build-id")
        if address is None:
            return None
        kernel = self._kernel
        try:
            name_size, size, kind = (read_number(kernel, address + 4 * index, 4) for index in range(3))
            if name_size != 4 or kind != 3 or not 0 < size <= NOTE_LIMIT:  # NT_GNU_BUILD_ID, include/uapi/linux/elf.h
                return None
            return kernel.read(address + 16, size).hex()
        except ReadError:
            return None
