"""Where an x86_64 Linux has its page tables.

The kernel's image is mapped at __START_KERNEL_map (arch/x86/include/asm/page_64_types.h): physical = virtual -
__START_KERNEL_map + phys_base, with virtual addresses that include the KASLR slide. VMCOREINFO gives phys_base
(NUMBER, since 4.10; 0 is legal), the top table (SYMBOL(swapper_pg_dir) is init_top_pgt), pgtable_l5_enabled and
sme_mask (arch/x86/kernel/vmcore_info_64.c). A CPU's CR3 holds the current process's top table: bits 11:0 are PCID or
cache bits, and with page-table isolation bit 12 selects the user's half of a pair of tables
(arch/x86/mm/pti.c, PTI_PGTABLE_SWITCH_BIT): only the other half maps the kernel. CR4.LA57 (bit 12) means 5 levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from kvm_dbg.arch.base import Paging
from kvm_dbg.arch.x86_64 import ADDRESS_MASK, X86_64
from kvm_dbg.arch.x86_64_register import parse_qemu_cpu_state
from kvm_dbg.errors import CorruptError, NotMappedError, ReadError
from kvm_dbg.image.base import MemoryImage
from kvm_dbg.kernel.linux.boot import Boot
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.symbols.vmcoreinfo import VmcoreInfo

ARCH = X86_64
START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
KERNEL_IMAGE_SIZE = 1 << 30  # bytes: the kernel's image lies in this much from START_KERNEL_MAP, wherever KASLR puts it
KERNEL_HALF = 0xFF00_0000_0000_0000  # first kernel address, with 5 levels
PAGE = 4096  # bytes
LARGE_PAGE = 1 << 21  # bytes
DATA_BLOCK = 1 << 18  # bytes of variables that are looked at together
MAX_BLOCKS = 192  # of 2 MiB: a kernel's image has 30 to 100 MiB, with every debug option more
SLIDE_STEP = 1 << 21  # CONFIG_PHYSICAL_ALIGN is a multiple of 2 MiB
CR4_LA57 = 1 << 12
_PAGE_POINTER = (
    (0, bytes(byte == 0 for byte in range(256))),
    (1, bytes(byte & 0xF == 0 for byte in range(256))),
    (7, bytes(byte == 0xFF for byte in range(256))),
)
"""A kernel address of a page: (which byte of the word, 1 for each value that it may have)."""
TOP_TABLES = ("swapper_pg_dir", "init_top_pgt", "init_level4_pgt")  # newest name that every version answers to first


def recognise(info: VmcoreInfo) -> bool:
    """Return whether a VMCOREINFO block is of this architecture."""
    return info.number("phys_base") is not None and any(info.symbol(name) for name in TOP_TABLES)


def paging_of(info: VmcoreInfo) -> Paging | None:
    """Return the page tables that VMCOREINFO describes; None if what it says is missing or impossible."""
    phys_base = info.number("phys_base")
    top = next((address for name in TOP_TABLES if (address := info.symbol(name)) is not None), None)
    if phys_base is None or top is None:
        return None
    return make_paging(top, phys_base, bool(info.number("pgtable_l5_enabled")), info.number("sme_mask") or 0)


def make_paging(top: int, phys_base: int, five_levels: bool, encryption_mask: int = 0) -> Paging | None:
    """Return the page tables whose top table is at kernel address `top`; None if that is impossible."""
    root = top - START_KERNEL_MAP + phys_base
    if root & ~ADDRESS_MASK or encryption_mask & ~ADDRESS_MASK:
        return None
    return Paging(root, 5 if five_levels else 4, encryption_mask)


def pagings_of_cpus(image: MemoryImage, encryption_mask: int = 0) -> Iterator[Paging]:
    """Yield the page tables that CPUs were using, from QEMU's notes; each at most once."""
    seen: set[Paging] = set()
    for note in image.notes:
        if note.name != "QEMU" or note.type != 0:
            continue
        try:
            control = parse_qemu_cpu_state(note.desc).control
        except CorruptError:
            continue  # not a note that helps
        levels = 5 if control[4] & CR4_LA57 else 4
        root = control[3] & ADDRESS_MASK & ~encryption_mask
        for table in (root & ~0x1000, root):
            paging = Paging(table, levels, encryption_mask)
            if paging not in seen and table:
                seen.add(paging)
                yield paging


def find_phys_base(space: ImageSpace, address: int) -> int | None:
    """Return phys_base as the page tables have it, by translating an address of the kernel's image."""
    try:
        return space.translate(address) - (address - START_KERNEL_MAP)
    except ReadError:
        return None


def for_each_kernel_block(space: ImageSpace, size: int, overlap: int) -> Iterator[tuple[int, bytes]]:
    """Yield (vaddr, bytes) of the mapped parts of the kernel's image, in blocks of `size` (2 MiB) plus `overlap` bytes.

    Zeros stand for what is missing in a block. No more than MAX_BLOCKS are yielded, and none twice: page tables that
    are damaged may map one piece of memory everywhere.
    """
    seen: set[int] = set()
    count = 0
    for vaddr in range(START_KERNEL_MAP, START_KERNEL_MAP + KERNEL_IMAGE_SIZE, size):
        try:
            paddr = space.translate(vaddr)
            if paddr in seen:
                continue
            seen.add(paddr)
        except NotMappedError as error:
            if error.level != "PTE":
                continue  # nothing of the block is mapped
        except ReadError:
            pass  # a page table is missing: perhaps only one
        count += 1
        if count > MAX_BLOCKS:
            return
        yield vaddr, space.read_partial(vaddr, size + overlap).data


def for_each_data_block(space: ImageSpace) -> Iterator[bytes]:
    """Yield the parts of the kernel's image that can be written to and not executed, from the highest downwards.

    That is where a kernel's variables are; .bss, with those that are set while it starts, comes first. Zeros stand for
    what is missing. Bounded as `for_each_kernel_block`.
    """
    seen: set[int] = set()
    for vaddr in range(START_KERNEL_MAP + KERNEL_IMAGE_SIZE - LARGE_PAGE, START_KERNEL_MAP - 1, -LARGE_PAGE):
        first, last = (_flags_at(space, place) for place in (vaddr, vaddr + LARGE_PAGE - PAGE))
        if not any({"RW", "XD"} <= set(flags) for flags in (first, last)):
            continue
        with suppress(ReadError):
            paddr = space.translate(vaddr)
            if paddr in seen:
                continue
            seen.add(paddr)
        if len(seen) > MAX_BLOCKS:
            return
        for start in range(vaddr + LARGE_PAGE - DATA_BLOCK, vaddr - 1, -DATA_BLOCK):
            yield space.read_partial(start, DATA_BLOCK).data


def _flags_at(space: ImageSpace, vaddr: int) -> tuple[str, ...]:
    """Return the flags of the leaf that maps an address, none if nothing does."""
    try:
        return space.walk(vaddr).flags
    except ReadError:
        return ()


def find_page_pointers(data: bytes) -> set[int]:
    """Return the words in a kernel's memory that could be kernel addresses of pages outside its image.

    Most words are none, and are told by three of their bytes: all words at once, as digits of long numbers.
    """
    end = len(data) & ~7
    marks = [data[place:end:8].translate(table) for place, table in _PAGE_POINTER]
    both = int.from_bytes(marks[0], "little") & int.from_bytes(marks[1], "little")
    found = (both & int.from_bytes(marks[2], "little")).to_bytes(end // 8, "little")
    words: set[int] = set()
    at = found.find(1)
    while at >= 0:
        words.add(int.from_bytes(data[8 * at : 8 * at + 8], "little"))
        at = found.find(1, at + 1)
    return {word for word in words if word < START_KERNEL_MAP}


def locate(image: MemoryImage, boot: Boot, banner: int, top: int) -> Boot | None:
    """Return `boot` with page tables and slide, from where its banner lies and a kernel file's symbols.

    banner, top: addresses of `linux_banner` and of the top table as the kernel file has them. None if nothing fits.
    """
    if boot.paging is not None and boot.banner_vaddr is not None:
        slide = boot.banner_vaddr - banner
        if not 0 <= slide < KERNEL_IMAGE_SIZE:
            return None
        return boot._replace(slide=slide, paging=_own_paging(image, boot, top + slide))
    for paddr in boot.banner_paddrs:
        located = _locate_at(image, boot, paddr, banner, top)
        if located is not None:
            return located
    return None


def _locate_at(image: MemoryImage, boot: Boot, paddr: int, banner: int, top: int) -> Boot | None:
    """Return `boot` with the page tables that map some slid `banner` to `paddr`, None if there are none."""
    shift = paddr - (banner - START_KERNEL_MAP)  # slide + phys_base
    if shift % SLIDE_STEP:
        return None
    for five_levels in (False, True):
        paging = make_paging(top, shift, five_levels)
        if paging is None:
            return None
        space = ImageSpace(ARCH, image, paging)
        for slide in range(0, KERNEL_IMAGE_SIZE, SLIDE_STEP):
            try:
                if space.translate(banner + slide) != paddr:
                    continue
            except ReadError:
                continue
            return boot._replace(paging=paging, slide=slide, phys_base=shift - slide, verified=True)
    return None


def _own_paging(image: MemoryImage, boot: Boot, top: int) -> Paging | None:
    """Return the kernel's own page tables, whose top is at `top`, if they lead where a process's tables led."""
    if boot.paging is None or boot.phys_base is None or boot.banner_vaddr is None:
        return boot.paging
    own = make_paging(top, boot.phys_base, boot.paging.levels == 5, boot.paging.encryption_mask)
    if own is None:
        return boot.paging
    same = find_phys_base(ImageSpace(ARCH, image, own), boot.banner_vaddr) == boot.phys_base
    return own if same else boot.paging
