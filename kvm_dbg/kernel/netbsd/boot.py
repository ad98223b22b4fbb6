"""Finding a NetBSD kernel of amd64 in an image: its page tables, and what it says of itself.

Sources: sys/arch/amd64/include/vmparam.h (KERNBASE), sys/arch/amd64/amd64/locore.S (the boot loader puts the kernel
at 1 MiB, and its image is mapped at KERNBASE plus its physical address; `PDPpaddr` is the physical address of the
kernel's top page table), sys/conf/newvers.sh (the text of `version`: a line, a tab, who built it and where, the end of
the line, NUL), sys/arch/x86/include/cpu.h and pmap.h (every process's top table has the kernel's half, and an entry
that leads to the table itself).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from kvm_dbg.arch.base import Paging
from kvm_dbg.arch.x86_64 import ADDRESS_MASK, PRESENT, X86_64
from kvm_dbg.arch.x86_64_register import parse_qemu_cpu_state
from kvm_dbg.errors import CorruptError, KernelNotFoundError, ReadError, UnsupportedError
from kvm_dbg.image.base import MemoryImage
from kvm_dbg.kernel.bsd.kernel_file import VERSION
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.symbols.base import SymbolTable

NAME = "NetBSD"
KERNBASE = 0xFFFFFFFF_80000000
LEVELS = 4
LOW = 128 << 20  # bytes of physical memory that the kernel's image and its first page tables are in
CHUNK_OVERLAP = 1024  # bytes: `version` is shorter
BANNER = re.compile(rb"NetBSD (\d[\w.]*)( \([^\n\0]{1,128}\)[^\n\0]{0,256})\n\t[^\n\0]{0,512}\n\0")
PAGE = 4096
TABLE = struct.Struct("<512Q")


class Boot(NamedTuple):
    """One kernel in an image.

    release, version: as in its banner, None if that was not found. paging: None if its page tables were not.
    source: where the page tables are known from. verified: they lead to the banner.
    """

    release: str | None
    version: str | None
    paging: Paging | None
    source: str
    verified: bool

    def describe(self) -> str:
        """Return one line for people."""
        root = f"page tables at {self.paging.root:#x} ({self.source})" if self.paging is not None else self.source
        return f"{self.version or NAME}, {root}"


def find_boots(image: MemoryImage) -> list[Boot]:
    """Return the kernels in the image, verified ones first.

    Raises:
        KernelNotFoundError: nothing in the image looks like NetBSD.
        UnsupportedError: it is of a processor that is not handled.
    """
    machine = image.info.machine
    if machine is not None and machine != X86_64.name:
        raise UnsupportedError(f"{NAME} on {machine}", f"only {X86_64.name} (amd64) is")
    banners = dict(_for_each_banner(image))
    pagings = list(_for_each_paging(image, banners))
    found: dict[str, Boot] = {}
    for paddr, (release, version) in banners.items():
        for paging, source in pagings:
            if _leads_to(image, paging, paddr):
                found.setdefault(version, Boot(release, version, paging, source, verified=True))
    if found:
        return list(found.values())
    if image.info.system == NAME and pagings:
        paging, source = pagings[0]
        return [Boot(None, None, paging, source, verified=False)]
    if not banners:
        raise KernelNotFoundError(f"no {NAME} kernel found: neither its version nor its page tables are in the image")
    what = "its page tables were not found; a kernel file tells where they are"
    return [Boot(release, version, None, what, verified=False) for release, version in dict.fromkeys(banners.values())]


def _for_each_banner(image: MemoryImage) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield (physical address, (release, first line)) of the texts in low memory that look like `version`."""
    tail, tail_end = b"", -1
    for paddr, data in image.for_each_chunk(0, LOW):
        if paddr == tail_end:
            paddr, data = paddr - len(tail), tail + data
        for match in BANNER.finditer(data):
            line = f"{NAME} {match[1].decode()}{match[2].decode('utf-8', 'backslashreplace')}"
            yield paddr + match.start(), (match[1].decode(), line)
        tail, tail_end = data[-CHUNK_OVERLAP:], paddr + len(data)


def _for_each_paging(image: MemoryImage, banners: dict[int, tuple[str, str]]) -> Iterator[tuple[Paging, str]]:
    """Yield possible page tables, the surest first; memory is searched only if nothing says where they are."""
    known = False
    if image.info.root is not None:
        known = True
        yield Paging(image.info.root, LEVELS), "the dump's header"
    for number, note in enumerate(note for note in image.notes if note.name == "QEMU" and note.type == 0):
        try:
            root = parse_qemu_cpu_state(note.desc).control[3] & ADDRESS_MASK
        except CorruptError:
            continue
        known = True
        yield Paging(root, LEVELS), f"CR3 of CPU {number}"
    if not known and banners:
        for root in _for_each_top_table(image):
            yield Paging(root, LEVELS), "found in memory"


def _for_each_top_table(image: MemoryImage) -> Iterator[int]:
    """Yield the physical addresses of pages of low memory with an entry that leads to the page itself."""
    for paddr, data in image.for_each_chunk(0, LOW):
        for offset in range(-paddr % PAGE, len(data) - PAGE + 1, PAGE):
            own = paddr + offset
            entries = TABLE.unpack_from(data, offset)
            if entries[511] & PRESENT and any(entry & ADDRESS_MASK == own and entry & PRESENT for entry in entries):
                yield own


def _leads_to(image: MemoryImage, paging: Paging, paddr: int) -> bool:
    """Return whether page tables map the kernel's image to where `paddr` is in it."""
    try:
        return ImageSpace(X86_64, image, paging).translate(KERNBASE + paddr) == paddr
    except ReadError:
        return False


def find_paging(image: MemoryImage, boot: Boot, symbols: SymbolTable) -> Paging:
    """Return the page tables of a kernel, by its file's symbols where the image does not tell them.

    Raises:
        KernelNotFoundError: neither tells.
    """
    if boot.paging is not None:
        return boot.paging
    symbol = symbols.find("PDPpaddr")
    if symbol is not None and symbol.address >= KERNBASE:
        try:
            root = int.from_bytes(image.read(symbol.address - KERNBASE, 8), "little")
        except ReadError:
            root = 0
        paging = Paging(root & ADDRESS_MASK, LEVELS)
        banner = symbols.find(VERSION)
        if banner is not None and _leads_to(image, paging, banner.address - KERNBASE):
            return paging
    raise KernelNotFoundError(
        f"the page tables of {boot.version or NAME} were not found, nor does PDPpaddr lead to them"
    )
