"""Where a kernel's page tables are in an image that holds physical memory.

A kernel file has the variable that leads to the top table at a virtual address; which physical address that is depends
on where the loader put the kernel: at its link address minus `kernbase`, or since 13.1 anywhere, so that every place
with the right alignment is tried (sys/amd64/amd64/machdep.c, `kernphys`; stand/efi/loader/copy.c), first the one that
the page tables of CPUs lead to, if the image has their state. A place is right if the page tables found there lead from
the variable's virtual address back to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kvm_dbg.arch import ARCHES
from kvm_dbg.arch.base import Arch, Paging
from kvm_dbg.arch.i386 import I386Arch
from kvm_dbg.arch.x86_64_register import parse_qemu_cpu_state
from kvm_dbg.errors import CorruptError, ReadError
from kvm_dbg.image.base import MemoryImage, Presence
from kvm_dbg.kernel.freebsd.machine import Machine, Root
from kvm_dbg.kernel.freebsd.space import MinidumpSpace
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.symbols.elf import ElfSymbolTable

CR3_ADDRESS = 0x000F_FFFF_FFFF_F000
I386_OWN_SPACE = 0x80_0000  # KERNBASE and KERNLOAD of i386 since 12
MAX_PLACES = 1 << 22  # tries; with 2 MiB between them that is 8 TiB of memory


class Boot(NamedTuple):
    """A kernel's page tables, and a sentence on how they were found that a careful reader wants to know."""

    space: ImageSpace
    quirks: tuple[str, ...] = ()


def find_boot(image: MemoryImage, arch: Arch, machine: Machine, symbols: ElfSymbolTable) -> Boot | None:
    """Return the kernel's address space, None if no page tables prove to be this kernel's."""
    if image.page_map is not None:
        return Boot(MinidumpSpace(_split(arch, symbols), image, Paging(0, len(arch.levels)), image.page_map))
    for root in machine.roots:
        symbol = symbols.find(root.symbol)
        if symbol is None:
            continue
        usual = _usual_place(symbols, symbol.address)
        for paging in _variants(arch):
            variant = _split(paging, symbols)
            if root.levels > len(variant.levels):
                continue
            for place in _places(image, variant, root, symbol.address, usual, machine.alignment):
                space = _try(image, variant, root, symbol.address, place)
                if space is not None:
                    moved = usual is not None and place != usual
                    quirk = f"the kernel was loaded at an unusual place: {root.symbol} is at physical {place:#x}"
                    return Boot(space, (quirk,) if moved else ())
    return None


def _variants(arch: Arch) -> Iterator[Arch]:
    """Yield the ways in which the processor can page, that of `arch` first."""
    yield arch
    yield from (
        other for other in ARCHES if other is not arch and (other.name, other.byteorder) == (arch.name, arch.byteorder)
    )


def _split(arch: Arch, symbols: ElfSymbolTable) -> Arch:
    """Return the processor as the kernel divides its addresses.

    i386 alone has kernels of two kinds: since 12 (commit d86c1f0dc1b1) the kernel has an address space of its own, from
    8 MiB on, before that it had the uppermost GiB. KERNBASE tells (sys/i386/include/vmparam.h).
    """
    base = symbols.find("kernbase")
    return arch.split_at(base.address) if isinstance(arch, I386Arch) and base is not None else arch


def _usual_place(symbols: ElfSymbolTable, vaddr: int) -> int | None:
    """Return where `vaddr` is in physical memory if the kernel was loaded where it was linked, None if unknown.

    i386's kernels with a space of their own are at the same address in both.
    """
    base = symbols.find("kernbase")
    if base is None or base.address > vaddr:
        return None
    return vaddr if base.address == I386_OWN_SPACE else vaddr - base.address


def _places(image: MemoryImage, arch: Arch, root: Root, vaddr: int, usual: int | None, alignment: int) -> Iterator[int]:
    """Yield the physical addresses that `vaddr` can have, the likeliest first."""
    if usual is not None:
        yield usual
    for table in _tables_of_cpus(image):
        try:
            yield ImageSpace(arch, image, Paging(table, root.levels)).translate(vaddr)
        except ReadError:
            continue
    within, tries = vaddr % alignment, 0
    for run in image.coverage():
        if run.presence is not Presence.PRESENT:
            continue
        first = run.start - run.start % alignment + within
        for place in range(first if first >= run.start else first + alignment, run.end, alignment):
            tries += 1
            if tries > MAX_PLACES:
                return
            yield place


def _try(image: MemoryImage, arch: Arch, root: Root, vaddr: int, place: int) -> ImageSpace | None:
    """Return the space whose root is known at the physical address `place`, if it maps `vaddr` to there."""
    table = place
    if root.holds:
        try:
            data = image.read(place, arch.pointer_size)
        except ReadError:
            return None
        table = int.from_bytes(data, "little" if arch.byteorder == "little" else "big")
    if not table or table % 32:
        return None
    space = ImageSpace(arch, image, Paging(table, root.levels))
    try:
        return space if space.translate(vaddr) == place else None
    except ReadError:
        return None


def _tables_of_cpus(image: MemoryImage) -> Iterator[int]:
    """Yield the page tables that CPUs used, as a hypervisor wrote them down."""
    seen: set[int] = set()
    for note in image.notes:
        if note.name == "QEMU" and note.type == 0:
            try:
                table = parse_qemu_cpu_state(note.desc).control[3] & CR3_ADDRESS
            except (CorruptError, IndexError):
                continue
            if table and table not in seen:
                seen.add(table)
                yield table
