"""Finding a NetBSD kernel of amd64 or i386 in an image: its page tables, and what it says of itself.

Sources: sys/arch/amd64/include/vmparam.h and sys/arch/i386/include/vmparam.h (KERNBASE), sys/arch/amd64/amd64/locore.S
(the boot loader puts the kernel at 1 MiB, and its image is mapped at KERNBASE plus its physical address; `PDPpaddr` is
the physical address of the kernel's top page table), sys/conf/newvers.sh (the text of `version`: a line, a tab, who
built it and where, the end of the line, NUL), sys/arch/x86/include/cpu.h and pmap.h (every process's top table has the
kernel's half, and an entry that leads to the table itself).

A kernel of the configuration GENERIC_KASLR (since 9.0) is scattered over the 2 GiB from KERNBASE on, each section to a
place of its own (sys/arch/amd64/stand/prekern/mm.c, KASLR_WINDOW_BASE): there its version is looked for by virtual
address. A CPU in user mode uses page tables that lack nearly all of the kernel where Meltdown is fended off (since 8.0,
sys/arch/amd64/amd64/amd64_trap.S and svs.c, `ci_svs_updirpa`): what CR3 says counts only if it leads to the kernel.
With PAE, i386's header and `PDPpaddr` say where the four page directories are, which follow one another
(lib/libkvm/kvm_i386pae.c); CR3 leads to the four entries above them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from kvm_dbg.arch.base import Arch, Paging
from kvm_dbg.arch.i386 import I386, I386_PAE, I386_PAE_DIRECTORIES
from kvm_dbg.arch.x86_64 import ADDRESS_MASK, PRESENT, X86_64
from kvm_dbg.arch.x86_64_register import parse_qemu_cpu_state
from kvm_dbg.errors import CorruptError, KernelNotFoundError, ReadError, UnsupportedError
from kvm_dbg.image.base import MemoryImage, Presence
from kvm_dbg.kernel.bsd.kernel_file import VERSION
from kvm_dbg.kernel.space import ImageSpace, header_space
from kvm_dbg.symbols.elf import ElfSymbolTable

NAME = "NetBSD"
KERNBASE = {X86_64.name: 0xFFFF_FFFF_8000_0000, I386.name: 0xC000_0000}
WINDOW = {X86_64.name: 2 << 30, I386.name: 256 << 20}  # bytes from KERNBASE on that a kernel's image lies in
LEVELS = {X86_64.name: 4, I386.name: 2}
LOW = 128 << 20  # bytes of physical memory that the kernel's image and its first page tables are in
MAX_IMAGE = 256 << 20  # bytes of a kernel's image that are looked at, or looked for; the largest have 50 MiB
MAX_TABLES = 64  # top tables whose kernel half is looked through; that of every process has the same
CHUNK_OVERLAP = 1024  # bytes: `version` is shorter
BANNER = re.compile(rb"NetBSD (\d[\w.]*)( \([^\n\0]{1,128}\)[^\n\0]{0,256})\n\t[^\n\0]{0,512}\n\0")
PAGE = 4096
TABLE = struct.Struct("<512Q")
CR4_PAE = 1 << 5


class Boot(NamedTuple):
    """One kernel in an image.

    release, version: as in its banner, None if that was not found. arch, paging: None if its page tables were not.
    source: where the page tables are known from. verified: they lead to the banner.
    """

    release: str | None
    version: str | None
    arch: Arch | None
    paging: Paging | None
    source: str
    verified: bool

    def describe(self) -> str:
        """Return one line for people."""
        root = f"page tables at {self.paging.root:#x} ({self.source})" if self.paging is not None else self.source
        return f"{self.version or NAME}, {root}"

    def space(self, image: MemoryImage) -> ImageSpace | None:
        """Return the kernel's address space, None if its page tables were not found."""
        return None if self.arch is None or self.paging is None else ImageSpace(self.arch, image, self.paging)


class _Way(NamedTuple):
    """Page tables that may be a kernel's, and where they are known from."""

    arch: Arch
    paging: Paging
    source: str


def find_boots(image: MemoryImage) -> list[Boot]:
    """Return the kernels in the image, verified ones first.

    Raises:
        KernelNotFoundError: nothing in the image looks like NetBSD.
        UnsupportedError: it is of a processor that is not handled.
    """
    machine = image.info.machine
    if machine is not None and machine not in KERNBASE:
        raise UnsupportedError(f"{NAME} on {machine}", f"only {' and '.join(KERNBASE)} are")
    banners = dict(_for_each_banner(image.for_each_chunk(0, LOW)))
    ways = list(_for_each_way(image))
    found = _verify(image, ways, banners)
    if not found and banners and image.info.root is None:
        found = _verify(image, islice(_for_each_top_table(image), MAX_TABLES), banners)
    if found:
        return found
    if image.info.system == NAME and ways:
        arch, paging, source = ways[0]
        return [Boot(None, None, arch, paging, source, verified=False)]
    if not banners:
        raise KernelNotFoundError(f"no {NAME} kernel found: neither its version nor its page tables are in the image")
    what = "its page tables were not found; a kernel file tells where they are"
    return [
        Boot(release, version, None, None, what, verified=False) for release, version in dict.fromkeys(banners.values())
    ]


def _verify(image: MemoryImage, ways: Iterator[_Way] | list[_Way], banners: dict[int, tuple[str, str]]) -> list[Boot]:
    """Return the kernels whose page tables lead to their version, one for each; banners are by physical address."""
    found: dict[str, Boot] = {}
    seen: set[Paging] = set()
    for way in ways:
        if way.paging in seen:
            continue
        seen.add(way.paging)
        space = ImageSpace(way.arch, image, way.paging)
        led = [banner for paddr, banner in banners.items() if _leads_to(space, paddr)]
        if not led and not found:
            blocks = for_each_block(space)
            led = [banner for _, banner in islice(_for_each_banner(blocks), 1)]
        for release, version in led:
            found.setdefault(version, Boot(release, version, *way, verified=True))
    return list(found.values())


def _for_each_banner(chunks: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield (address, (release, first line)) of the texts in (address, bytes) that look like `version`."""
    tail, tail_end = b"", -1
    for address, data in chunks:
        if address == tail_end:
            address, data = address - len(tail), tail + data
        for match in BANNER.finditer(data):
            line = f"{NAME} {match[1].decode()}{match[2].decode('utf-8', 'backslashreplace')}"
            yield address + match.start(), (match[1].decode(), line)
        tail, tail_end = data[-CHUNK_OVERLAP:], address + len(data)


def for_each_block(space: ImageSpace) -> Iterator[tuple[int, bytes]]:
    """Yield (virtual address, bytes) of what is there of the kernel's image, ascending, MAX_IMAGE bytes at most."""
    start = KERNBASE[space.arch.name]
    left = MAX_IMAGE
    for run in space.for_each_run(start, start + WINDOW[space.arch.name]):
        left -= run.size
        if left < 0:
            return
        if run.presence is Presence.PRESENT:
            yield run.start, space.read(run.start, run.size)


def _for_each_way(image: MemoryImage) -> Iterator[_Way]:
    """Yield the page tables that the image tells of: its header, and the CPUs' state that a hypervisor wrote down."""
    info = image.info
    space = header_space(image)
    if space is not None:
        yield _Way(space.arch, space.paging, "the dump's header")
    for number, note in enumerate(note for note in image.notes if note.name == "QEMU" and note.type == 0):
        try:
            control = parse_qemu_cpu_state(note.desc).control
        except CorruptError:
            continue
        source = f"CR3 of CPU {number}"
        if info.machine != I386.name:
            yield _Way(X86_64, Paging(control[3] & ADDRESS_MASK, LEVELS[X86_64.name]), source)
        elif control[4] & CR4_PAE:
            yield _Way(I386_PAE, Paging(control[3] & 0xFFFF_FFE0, 3), source)
        else:
            yield _Way(I386, Paging(control[3] & 0xFFFF_F000, 2), source)


def _for_each_top_table(image: MemoryImage) -> Iterator[_Way]:
    """Yield pages of low memory that are amd64's top tables: with an entry that leads to the page itself."""
    if image.info.machine == I386.name:
        return
    for paddr, data in image.for_each_chunk(0, LOW):
        for offset in range(-paddr % PAGE, len(data) - PAGE + 1, PAGE):
            own = paddr + offset
            entries = TABLE.unpack_from(data, offset)
            if entries[511] & PRESENT and any(entry & ADDRESS_MASK == own and entry & PRESENT for entry in entries):
                yield _Way(X86_64, Paging(own, LEVELS[X86_64.name]), "found in memory")


def _leads_to(space: ImageSpace, paddr: int) -> bool:
    """Return whether page tables map the kernel's image to where `paddr` is in it."""
    try:
        return space.translate(KERNBASE[space.arch.name] + paddr) == paddr
    except ReadError:
        return False


def _find_own(space: ImageSpace, symbols: ElfSymbolTable) -> ImageSpace:
    """Return the kernel's own address space, by one of a process; that one if there is no better one.

    A process has the kernel's half as well, but a top table that is out of use may lack what was mapped later.
    """
    top, banner = symbols.find("PDPpaddr"), symbols.find(VERSION)
    if top is None or banner is None:
        return space
    try:
        own = space.with_root(_read_long(space, top.address) & ADDRESS_MASK)
        return own if own.translate(banner.address) == space.translate(banner.address) else space
    except ReadError:
        return space


def _read_long(space: ImageSpace, vaddr: int) -> int:
    """Return the number at `vaddr`, as large as a pointer. Raises ReadError."""
    return int.from_bytes(space.read(vaddr, space.arch.pointer_size), "little")


def find_space(image: MemoryImage, boot: Boot, symbols: ElfSymbolTable) -> ImageSpace:
    """Return the address space of a kernel, by its file's symbols where the image does not tell its page tables.

    Raises:
        KernelNotFoundError: neither tells.
    """
    space = boot.space(image)
    if space is not None:
        return space if image.info.root is not None else _find_own(space, symbols)
    top, banner = symbols.find("PDPpaddr"), symbols.find(VERSION)
    base = KERNBASE.get(symbols.elf.machine or "")
    if top is not None and banner is not None and base is not None and min(top.address, banner.address) >= base:
        wide = base == KERNBASE[X86_64.name]
        try:
            root = int.from_bytes(image.read(top.address - base, 8 if wide else 4), "little") & ADDRESS_MASK
        except ReadError:
            root = 0
        for arch in (X86_64,) if wide else (I386, I386_PAE_DIRECTORIES):
            space = ImageSpace(arch, image, Paging(root, LEVELS[arch.name]))
            if _leads_to(space, banner.address - base):
                return space
    raise KernelNotFoundError(
        f"the page tables of {boot.version or NAME} were not found, nor does PDPpaddr lead to them"
    )
