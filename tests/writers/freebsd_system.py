"""Make a little FreeBSD/amd64 that has crashed: compile its memory from C, and write it as dumps and as a kernel file.

`freebsd/kernel.h` has the structures as FreeBSD's headers order them, `freebsd/kernel.c` a system's memory as
initialisers. The compiler lays both out and writes down the layout as DWARF; a linker puts them where FreeBSD's kernels
are. Types come as DWARF, as CTF made of it, or not at all (then the kernel's own offset variables are all there is).
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from kvm_dbg.debuginfo.base import (
    ArrayType,
    EnumType,
    IntType,
    PointerType,
    StructType,
    Type,
    TypedefType,
    TypeTable,
)
from kvm_dbg.debuginfo.dwarf import DwarfTypes
from kvm_dbg.elf import ElfFile, open_elf
from kvm_dbg.symbols.elf import ElfSymbolTable
from tests.writers.ctf import FORWARD, POINTER, SIGNED, STRUCT, TYPEDEF, UNION, CtfWriter
from tests.writers.elfcore import Load, write_elfcore
from tests.writers.freebsd_minidump import KERNELS, write_minidump
from tests.writers.kernel_file import EXEC, OBJECT, WRITE, Entry, Part, write_kernel_file
from tests.writers.page_table import PAGE, PageTables

SOURCES = Path(__file__).with_name("freebsd")
BASE = 0xFFFFFFFF80200000  # where amd64's kernels are linked, sys/conf/ldscript.amd64
KERNBASE = 0xFFFFFFFF80000000
TOY, PLAIN = 0xFFFFFFFF80400000, 0xFFFFFFFF80402000  # modules: behind the kernel, where what is loaded later goes
DMAP = 0xFFFFF80000000000  # where all physical memory is mapped, sys/amd64/include/vmparam.h
USER = 0x7FFFFFFFE000  # the page below the usual top of a process's stack
ROOTS = {"KERNEL_ROOT": 0x1000, "MAKE_ROOT": 0x2000, "LOST_ROOT": 0x3000, "EMPTY_ROOT": 0x4000}
PHYSICAL = 0x200000  # of BASE
OSABI_AT, ELFOSABI_FREEBSD = 7, 9
SHF_ALLOC, SHT_NOBITS = 2, 8
STRUCTS = (
    "proc", "thread", "ucred", "pgrp", "session", "tty", "cdev", "cdev_priv", "pargs", "ps_strings",
    "sysentvec", "pstats", "vmspace", "vm_map_entry", "vm_object", "pmap", "filedesc", "fdescenttbl",
    "filedescent", "file", "vnode", "namecache", "mount", "inode", "devfs_dirent", "linker_file", "elf_file",
    "msgbuf", "prison", "timehands", "timecounter", "pcb", "trapframe",
)  # fmt: skip
SINCE_13 = ("pwd", "pwddesc")


class FreebsdSystem:
    """One made system.

    Attributes:
        kernel: the path of its kernel file. module: of toy.ko. symbols: name -> address. types: the compiler's.
    """

    def __init__(self, folder: Path, release: int = 14, types: str = "dwarf") -> None:
        self.folder = folder
        self.release = release
        self.kernel = folder / "kernel"
        full = folder / "kernel.full"
        _build(full, release)
        self._elf = open_elf(full)
        self.types: TypeTable = DwarfTypes(self._elf)
        self.symbols = ElfSymbolTable(self._elf)
        with open_elf(full.with_suffix(".user")) as user:
            self._memory = _load(self._elf) | _load(user)
        self._memory |= {TOY + PAGE * number: b"\x90" * PAGE for number in range(3)}
        _strip(full, self.kernel, self.types if types == "ctf" else None, keep=types == "dwarf")
        self.module = folder / "toy.ko"
        self.module.write_bytes(_module())

    def address(self, name: str, member: str = "") -> int:
        """Return the address of a variable, or of a member of it: "proc.p_list" of the variable that is one."""
        place = self.symbols.address(name)
        keyword, _, path = member.partition(".")
        return place + (self.types.offset_of(f"struct {keyword}", path) if path else 0)

    def write(
        self,
        name: str = "vmcore",
        *,
        patch: Mapping[int, bytes] | None = None,
        without: Collection[int] = (),
        minidump: bool = False,
    ) -> Path:
        """Write a dump and return its path.

        patch: bytes to put at kernel addresses. without: kernel addresses whose pages the dump lacks.
        """
        memory = {vaddr: bytearray(page) for vaddr, page in self._memory.items()}
        for place, data in (patch or {}).items():
            for offset, byte in enumerate(data):
                memory[place + offset & -PAGE][(place + offset) % PAGE] = byte
        tables = PageTables(root=ROOTS["KERNEL_ROOT"], first_table=0x10000)
        user = PageTables(root=ROOTS["MAKE_ROOT"], first_table=0x40000)
        user.map(USER, 0x100000, flags=0x67)
        for root in ROOTS.values():
            tables.map(DMAP + root, root)
        lost = {_physical(vaddr & -PAGE) for vaddr in without}
        pages = {}
        for vaddr, content in memory.items():
            paddr = _physical(vaddr)
            if paddr not in lost:
                pages[paddr] = bytes(content)
            if vaddr >= KERNBASE:
                tables.map(vaddr, paddr)
        path = self.folder / name
        if minidump:
            path.write_bytes(_minidump(memory, {paddr: page for paddr, page in pages.items() if paddr >= PHYSICAL}))
            return path
        every = {**tables.segments(), **user.segments(), ROOTS["EMPTY_ROOT"]: bytes(PAGE), **pages}
        loads = [Load(paddr, data, vaddr=0) for paddr, data in sorted(every.items())]
        path.write_bytes(write_elfcore(loads))
        return path


def _build(target: Path, release: int) -> None:
    """Compile and link the system. The test is skipped where there is no compiler."""
    if shutil.which("gcc") is None or shutil.which("objcopy") is None:
        pytest.skip("gcc and objcopy (binutils) are missing: they lay the made FreeBSD out")
    options = ["-g", "-O0", "-ffreestanding", "-fno-pic", "-fno-asynchronous-unwind-tables", "-mcmodel=kernel"]
    options += ["-Wall", "-Wno-unused", "-Werror", "-nostdlib", "-static", "-no-pie"]
    words = [f"-DRELEASE={release}", f'-DVERSION="{release}.1"', *(f"-D{name}={at:#x}" for name, at in ROOTS.items())]
    places = {"kernbase": KERNBASE, "toy_text": TOY, "plain_text": PLAIN}
    link = [f"-Wl,-Ttext-segment={BASE:#x}", "-Wl,-e,btext", "-Wl,-z,norelro", "-Wl,--build-id=sha1"]
    link += [f"-Wl,--defsym={name}={place:#x}" for name, place in places.items()]
    decoy = ["decoy.c"] if release % 2 == 0 else []  # which `struct elf_file` debug information shows is chance
    files = [str(SOURCES / name) for name in (*decoy, "kernel.c")]
    subprocess.run(["gcc", *options, *words, *link, *files, "-o", str(target)], check=True)
    link = [f"-Wl,-Tdata={USER:#x}", "-Wl,-e,0", "-Wl,--build-id=none"]
    files = [str(SOURCES / "user.c"), "-o", str(target.with_suffix(".user"))]
    subprocess.run(["gcc", *options, *words, *link, *files], check=True)


def _load(elf: ElfFile) -> dict[int, bytes]:
    """Return address -> page of everything that a loader would put into memory."""
    pages: dict[int, bytearray] = {}
    for section in elf.sections:
        if not section.flags & SHF_ALLOC or not section.addr:
            continue
        data = bytes(section.size) if section.type == SHT_NOBITS else bytes(elf.section_data(section))
        for offset in range(section.size):
            place = section.addr + offset
            pages.setdefault(place & -PAGE, bytearray(PAGE))[place % PAGE] = data[offset]
    return {vaddr: bytes(page) for vaddr, page in pages.items()}


def _physical(vaddr: int) -> int:
    return vaddr - BASE + PHYSICAL if vaddr >= KERNBASE else vaddr - USER + 0x100000


def _strip(source: Path, target: Path, types: TypeTable | None, *, keep: bool) -> None:
    words = [] if keep else ["--strip-debug"]
    if types is not None:
        ctf = target.with_suffix(".ctf")
        ctf.write_bytes(_ctf(types))
        words += ["--add-section", f".SUNW_ctf={ctf}"]
    subprocess.run(["objcopy", *words, "-N", "toy_text", "-N", "plain_text", str(source), str(target)], check=True)
    data = bytearray(target.read_bytes())
    data[OSABI_AT] = ELFOSABI_FREEBSD
    target.write_bytes(data)


def _minidump(memory: Mapping[int, bytes | bytearray], pages: Mapping[int, bytes]) -> bytes:
    """Return a minidump of version 1, whose page map is the kernel's page table entries from `kernbase` on."""
    kernel = KERNELS["amd64"]._replace(kernbase=BASE)
    last = max(vaddr for vaddr in memory)
    entries = [_physical(vaddr) | 0x163 if vaddr in memory else 0 for vaddr in range(BASE, last + PAGE, PAGE)]
    pmap = struct.pack(f"<{len(entries)}Q", *entries)
    numbered = {paddr // PAGE: page for paddr, page in pages.items()}
    return write_minidump("amd64", numbered, version=1, kernel=kernel, pmap=pmap)


def _module() -> bytes:
    """Return toy.ko as its compiler would have left it: relocatable, with the symbols that the kernel has of it."""
    parts = [
        Part(".text", flags=2 | EXEC, data=b"\x90" * 256),
        Part(".comment", flags=0, data=b"made"),
        Part(".data", flags=2 | WRITE, data=bytes(64)),
    ]
    symbols = [Entry("toy_ioctl", 0x10, 0x40), Entry("toy_count", 8, 8, ".data", type=OBJECT)]
    return write_kernel_file(parts, symbols, kind=1)


class _Converter:
    """Says in CTF what DWARF says."""

    def __init__(self) -> None:
        self.writer = CtfWriter(3)
        self._known: dict[object, int] = {}
        self._index = self.writer.integer("unsigned long", 8)

    def number(self, type_: Type) -> int:
        """Return the number of a type, added if need be; structs that pointers lead to are forwards."""
        key: object = (type(type_), type_.name, type_.size) if type_.name else id(type_)
        if key not in self._known:
            self._known[key] = self._add(type_)
        return self._known[key]

    def _add(self, type_: Type) -> int:
        writer = self.writer
        if isinstance(type_, TypedefType):
            return writer.alias(TYPEDEF, self.number(type_.target), type_.name)
        if isinstance(type_, PointerType):
            target = type_.target
            named = isinstance(target, StructType) and target.name
            return writer.alias(POINTER, writer.alias(FORWARD, STRUCT, target.name) if named else 0)
        if isinstance(type_, ArrayType):
            return writer.array(self.number(type_.element), self._index, type_.count)
        if isinstance(type_, IntType):
            return writer.integer(type_.name, type_.size, SIGNED if type_.signed else 0)
        if isinstance(type_, EnumType):
            values = [(one.name, one.value) for one in type_.enumerators]
            return writer.enum(type_.name.removeprefix("enum "), values, type_.size)
        assert isinstance(type_, StructType), type_
        members = []
        for member in type_.members:
            inner = member.type.stripped()
            if member.bit_size:  # a slice of its own, as ctfconvert makes one
                number = writer.integer(inner.name, inner.size, bits=member.bit_size)
            else:
                number = self.number(member.type)
            members.append((member.name, number, member.bit_offset))
        kind = UNION if type_.keyword == "union" else STRUCT
        return writer.struct(type_.name.partition(" ")[2] or type_.name, type_.size, members, kind)


def _ctf(types: TypeTable) -> bytes:
    converter = _Converter()
    newer = SINCE_13 if types.has_member("struct proc", "p_pd") else ()
    for name in (*STRUCTS, *newer):
        converter.number(types.type(f"struct {name}"))
    converter.number(types.type("enum obj_type"))
    return converter.writer.section(compressed=True)
