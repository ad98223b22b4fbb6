"""Write the memory of a little NetBSD kernel: page tables, variables, processes, and its own symbol tables.

From the headers that `netbsd_layout` names; sys/kern/kern_ksyms.c and sys/sys/ksyms.h (struct ksyms_symtab, sorted
tables of symbols in section SHBSS); lib/libkvm/kvm_i386.c and kvm_i386pae.c (i386's page tables); sys/conf/newvers.sh
(`version`); sys/arch/amd64/stand/prekern/mm.c (a kernel whose sections are scattered).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.writers.netbsd_kcore import AMD64, I386, write_kcore
from tests.writers.netbsd_layout import make_structs, write_layout

PAGE = 4096
PRESENT, LARGE, PAE_FLAG = 0x63, 0x80, 0x200
VERSION = "NetBSD 10.1 (GENERIC) #0: Mon Dec 16 13:08:11 UTC 2024"
BUILT = "\n\tmkrepro@mkrepro.NetBSD.org:/usr/src/sys/arch/amd64/compile/GENERIC\n"
ROOT = 0x100000
OBJECT, FUNC, FILE = 1, 2, 4
SHBSS = 5
PARTS = ("text", "rodata", "data", "syms")
SIZE = 0x10000  # bytes of each part


class Part(NamedTuple):
    """A part of the kernel's memory."""

    vaddr: int
    paddr: int


class LittleNetbsd:
    """A kernel; `pages` is its memory, `made` the addresses of what a test wants to find again.

    Args:
        wide: amd64, else i386. pae: i386 with PAE. scattered: its sections are anywhere from KERNBASE on.
    """

    def __init__(self, *, wide: bool = True, pae: bool = False, scattered: bool = False) -> None:
        self.wide, self.pae = wide, pae
        self.word = 8 if wide else 4
        self.base = 0xFFFFFFFF80000000 if wide else 0xC0000000
        self.structs = make_structs(wide=wide, pae=pae)
        self.pages: dict[int, bytearray] = {}
        self.symbols: dict[str, tuple[int, int, int]] = {}
        self.made: dict[str, int] = {}
        self._next_table = ROOT + 4 * PAGE
        for number in range(4 if pae else 1):
            self.pages[ROOT + number * PAGE] = bytearray(PAGE)
        places = (0x12345000, 0x7ABCD000, 0x40001000, 0x40001000 + SIZE) if scattered else (None,) * 4
        self.parts = {}
        for number, (name, place) in enumerate(zip(PARTS, places, strict=True)):
            paddr = 0x200000 + number * SIZE
            self.parts[name] = Part(self.base + (paddr if place is None else place), paddr)
        self.parts["heap"] = Part(0xFFFFA00000000000 if wide else 0xD0000000, 0x300000)
        for part in self.parts.values():
            for at in range(0, SIZE, PAGE):
                self.pages[part.paddr + at] = bytearray(PAGE)
                self.map(ROOT, part.vaddr + at, part.paddr + at)
        self._used = dict.fromkeys(self.parts, 64)
        if wide:
            self.write(ROOT + 300 * 8, (ROOT | PRESENT).to_bytes(8, "little"))  # every top table leads to itself
        self.variable("version", (VERSION + BUILT).encode() + b"\0", "rodata")
        self.pointer("PDPpaddr", ROOT)

    # memory

    def map(self, root: int, vaddr: int, paddr: int) -> None:
        """Map a page in the tables at `root`."""
        entry = 4 if not self.wide and not self.pae else 8
        shifts = [39, 30, 21] if self.wide else [21] if self.pae else [22]
        table = root
        for shift in shifts:
            index = vaddr >> shift & (511 if self.wide else 2047 if self.pae else 1023)
            below = self.get(table + index * entry, entry)
            if not below:
                below = self._next_table | PRESENT
                self.pages[self._next_table] = bytearray(PAGE)
                self._next_table += PAGE
                self.write(table + index * entry, below.to_bytes(entry, "little"))
            table = below & 0x000FFFFFFFFFF000
        index = vaddr >> 12 & (PAGE // entry - 1)
        self.write(table + index * entry, (paddr | PRESENT).to_bytes(entry, "little"))

    def get(self, paddr: int, size: int) -> int:
        """Return a number in physical memory."""
        return int.from_bytes(self.pages[paddr & -PAGE][paddr % PAGE : paddr % PAGE + size], "little")

    def write(self, paddr: int, data: bytes) -> None:
        """Write into physical memory."""
        for at, byte in enumerate(data):
            self.pages[paddr + at & -PAGE][(paddr + at) % PAGE] = byte

    def put(self, data: bytes, part: str = "heap", align: int = 16) -> int:
        """Put bytes into a part of memory, and return their address."""
        at = self._used[part] + -self._used[part] % align
        self._used[part] = at + len(data)
        assert self._used[part] <= SIZE
        self.write(self.parts[part].paddr + at, data)
        return self.parts[part].vaddr + at

    def set(self, vaddr: int, data: bytes) -> None:
        """Overwrite kernel memory that `put` gave."""
        part = next(part for part in self.parts.values() if part.vaddr <= vaddr < part.vaddr + SIZE)
        self.write(vaddr - part.vaddr + part.paddr, data)

    def number(self, value: int) -> bytes:
        """Return a number as large as a pointer."""
        return (value & (1 << 8 * self.word) - 1).to_bytes(self.word, "little")

    def string(self, text: str) -> int:
        """Put a string, and return its address."""
        return self.put(text.encode() + b"\0", "rodata", 1)

    # variables and structs

    def variable(self, name: str, data: bytes, part: str = "data") -> int:
        """Put a variable, and return its address."""
        vaddr = self.put(data, part)
        self.symbols[name] = vaddr, len(data), OBJECT
        return vaddr

    def pointer(self, name: str, value: int) -> int:
        """Put a variable with a pointer, or a long."""
        return self.variable(name, self.number(value))

    def function(self, name: str, size: int = 64) -> int:
        """Put a function, and return its address."""
        vaddr = self.put(bytes(size), "text")
        self.symbols[name] = vaddr, size, FUNC
        return vaddr

    def make(self, tag: str, values: Mapping[str, int | bytes]) -> bytes:
        """Return a struct's bytes; numbers are cut to their members' sizes."""
        data = bytearray(self.structs[tag].size)
        for path, value in values.items():
            offset, size = self.place(tag, path)
            raw = value.ljust(size, b"\0") if isinstance(value, bytes) else None
            data[offset : offset + size] = raw or (int(value) & (1 << 8 * size) - 1).to_bytes(size, "little")
        return bytes(data)

    def place(self, tag: str, path: str) -> tuple[int, int]:
        """Return (offset, size) of a member, "outer.inner" of one inside of another."""
        name, _, rest = path.partition(".")
        offset, size, kind = self.structs[tag].members[name]
        if not rest:
            return offset, size
        inner, size = self.place(kind.split()[1], rest)
        return offset + inner, size

    def link(self, head: int, elements: Iterable[int], tag: str, member: str) -> None:
        """Make a list of structs through a member that begins with the pointer to the next one."""
        place = head
        for element in elements:
            self.set(place, self.number(element))
            place = element + self.place(tag, member)[0]

    # what comes out

    def add_ksyms(self, modules: Iterable[tuple[str, Mapping[str, int]]] = (), *, ctf: bytes = b"") -> int:
        """Put the kernel's symbol tables, and return the address of kernel_symtab."""
        place = self.put(bytes(self._symtab_size()), "data")
        self.symbols["kernel_symtab"] = place, self._symtab_size(), OBJECT
        unnamed = {"": (0, 0, FILE)}  # as kernels with KDTRACE_HOOKS keep it
        tables = [("netbsd", unnamed | dict(sorted(self.symbols.items())))]
        tables += [(name, {key: (at, 16, FUNC) for key, at in sorted(own.items())}) for name, own in modules]
        places = [place, *(self.put(bytes(self._symtab_size()), "heap") for _ in tables[1:])]
        offset = 0
        for (name, symbols), at, following in zip(tables, places, (*places[1:], 0), strict=True):
            strings, rows = b"\0", b""
            for key, (value, size, kind) in symbols.items():
                where, info = offset + (len(strings) if key else 0), 1 << 4 | kind
                if self.wide:
                    rows += struct.pack("<IBBHQQ", where, info, 0, SHBSS, value, size)
                else:
                    rows += struct.pack("<IIIBBH", where, value, size, info, 0, SHBSS)
                strings += key.encode() + b"\0" if key else b""
            values = [value for value, _, _ in symbols.values()]
            part = "syms" if at == place else "heap"
            starts = self.put(rows, part), self.put(strings, part)
            types = self.put(ctf, "syms") if ctf and at == place else 0
            self.set(
                at,
                struct.pack(
                    "<7Q4i?7xQi4x" if self.wide else "<7I4i?3xIi",
                    following, self.parts["data"].vaddr, self.string(name), starts[0], min(values), max(values),
                    starts[1], offset, len(rows), len(strings), len(symbols), False, types, len(ctf) if types else 0,
                ),
            )  # fmt: skip
            offset += len(strings)
        return place

    def _symtab_size(self) -> int:
        return 96 if self.wide else 56

    def memory(self) -> dict[int, bytes]:
        """Return memory by physical address, ascending."""
        return {paddr: bytes(page) for paddr, page in sorted(self.pages.items())}

    def write_core(self, path: Path) -> Path:
        """Write savecore's file."""
        root = ROOT | (PAE_FLAG if self.pae else 0)
        path.write_bytes(write_kcore(self.memory(), root, mid=AMD64 if self.wide else I386))
        return path

    def write_layout(self, path: Path) -> str:
        """Write the layout file, and return its path."""
        path.write_text(json.dumps(write_layout(self.structs)))
        return str(path)
