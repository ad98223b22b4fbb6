"""Physical memory through the kernel's own map of it, for whoever can read virtual addresses only.

x86_64 maps all RAM at `page_offset_base` (Documentation/arch/x86/x86_64/mm.rst: 0xffff888000000000 since 4.20, commit
d52888aa2753, 0xffff880000000000 before, 0xff11000000000000 with 5 levels; with CONFIG_RANDOMIZE_MEMORY at any multiple
of 1 GiB above that, arch/x86/mm/kaslr.c). What is tried proves itself: the kernel's top page table, which lies in its
image, must be found through the map as well, at the physical address that VMCOREINFO tells.

VMCOREINFO's text is a page of RAM that `vmcoreinfo_data` points to (kernel/vmcore_info.c), with an address of that
same map. The variable is found by a symbol, or by looking through the kernel's image from its end, where .bss is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from kvm_dbg.errors import KernelNotFoundError, ReadError
from kvm_dbg.image.base import MemoryImage
from kvm_dbg.kernel.linux import boot_x86_64
from kvm_dbg.kernel.linux.boot_x86_64 import KERNEL_IMAGE_SIZE, LARGE_PAGE, PAGE, START_KERNEL_MAP
from kvm_dbg.symbols.vmcoreinfo import START, VmcoreInfo

FindSymbol = Callable[[str], int | None]
SYMBOLS = ("linux_banner", "vmcoreinfo_data", "page_offset_base")
"""Those that are looked up."""
BANNER = b"Linux version "
USUAL_BASES = {4: (0xFFFF_8880_0000_0000, 0xFFFF_8800_0000_0000), 5: (0xFF11_0000_0000_0000,)}
BASE_STEP = 1 << 30
MAX_STEPS = 1024  # of BASE_STEP below a known address of the map that are tried: 1 TiB of RAM
MAX_GAP = 8  # large pages in a row that are not mapped, within the kernel's image: sections that were freed
MAX_PAGES = 64  # large pages of the kernel's image that are looked through
MAX_POINTERS = 4096  # that are followed
END_OF_MEMORY = 1 << 64
TABLE_HALF = PAGE // 2  # bytes: the kernel's half of a top table


class DirectMap(NamedTuple):
    """Where RAM is mapped: physical address 0 at `base`. `info` is VMCOREINFO's text."""

    base: int
    info: bytes


def find_direct_map(memory: MemoryImage, find_symbol: FindSymbol) -> DirectMap:
    """Return the kernel's map of RAM.

    Args:
        memory: readable by virtual address.
        find_symbol: returns the run-time address of a symbol; None if it is unknown.

    Raises:
        KernelNotFoundError: there is no kernel, or no map that proves itself.
    """
    for pointer in islice(_for_each_pointer(memory, find_symbol), MAX_POINTERS):
        text = _read(memory, pointer, PAGE) if _read(memory, pointer, len(START)) == START else None
        if text is not None:
            base = _find_base(memory, VmcoreInfo(text), pointer, find_symbol)
            if base is not None:
                return DirectMap(base, text)
    raise KernelNotFoundError(
        f"{memory.paths[0]}: no Linux kernel was found by its virtual addresses: nothing from {START_KERNEL_MAP:#x} on"
        " leads to VMCOREINFO. If a kernel is there (and not a process, or a machine that is still starting), name its"
        " vmlinux, or load it into the debugger at the right place"
    )


def find_image_start(memory: MemoryImage) -> int | None:
    """Return the address of the kernel's first large page, None if nothing is mapped there.

    That is where `_text` lies: what is below it is unmapped (arch/x86/mm/init_64.c, cleanup_highmap()).
    """
    for vaddr in range(START_KERNEL_MAP, START_KERNEL_MAP + KERNEL_IMAGE_SIZE, LARGE_PAGE):
        if _read(memory, vaddr, 8) is not None:
            return vaddr
    return None


def is_placed(memory: MemoryImage, find_symbol: FindSymbol) -> bool:
    """Tell whether symbols are where the kernel is: `linux_banner` must read like one."""
    banner = find_symbol("linux_banner")
    return banner is not None and _read(memory, banner, len(BANNER)) == BANNER


def _for_each_pointer(memory: MemoryImage, find_symbol: FindSymbol) -> Iterator[int]:
    """Yield what may be the address of VMCOREINFO's text."""
    if is_placed(memory, find_symbol):
        variable = find_symbol("vmcoreinfo_data")
        value = None if variable is None else _read(memory, variable, 8)
        if value is not None:
            yield int.from_bytes(value, "little")
    start = find_image_start(memory)
    if start is None:
        return
    seen: set[int] = set()
    for vaddr in reversed(list(_for_each_mapped(memory, start))):
        data = memory.read_partial(vaddr, LARGE_PAGE).data
        for offset in range(LARGE_PAGE - boot_x86_64.DATA_BLOCK, -1, -boot_x86_64.DATA_BLOCK):
            found = boot_x86_64.find_page_pointers(data[offset : offset + boot_x86_64.DATA_BLOCK]) - seen
            seen |= found
            yield from sorted(found)  # the map of RAM lies below all others


def _for_each_mapped(memory: MemoryImage, start: int) -> Iterator[int]:
    """Yield the large pages of the kernel's image of which something is mapped."""
    gap = 0
    for vaddr in range(start, min(start + MAX_PAGES * LARGE_PAGE, START_KERNEL_MAP + KERNEL_IMAGE_SIZE), LARGE_PAGE):
        if any(_read(memory, place, 8) is not None for place in (vaddr, vaddr + LARGE_PAGE - PAGE)):
            gap = 0
            yield vaddr
        else:
            gap += 1
            if gap > MAX_GAP:
                return


def _find_base(memory: MemoryImage, info: VmcoreInfo, pointer: int, find_symbol: FindSymbol) -> int | None:
    """Return the address of the map in which the kernel's top table is found again, None if there is none."""
    paging = boot_x86_64.paging_of(info)
    top = next((address for name in boot_x86_64.TOP_TABLES if (address := info.symbol(name)) is not None), None)
    if paging is None or top is None:
        return None
    table = _read(memory, top + TABLE_HALF, TABLE_HALF)
    if table is None or not any(table):
        return None
    for base in _for_each_base(memory, paging.levels, pointer, find_symbol):
        if _read(memory, base + paging.root + TABLE_HALF, TABLE_HALF) == table:
            return base
    return None


def _for_each_base(memory: MemoryImage, levels: int, pointer: int, find_symbol: FindSymbol) -> Iterable[int]:
    variable = find_symbol("page_offset_base")
    value = None if variable is None else _read(memory, variable, 8)
    if value is not None:
        yield int.from_bytes(value, "little")
    yield from USUAL_BASES[levels]
    highest = pointer & -BASE_STEP
    yield from range(highest, highest - MAX_STEPS * BASE_STEP, -BASE_STEP)


def _read(memory: MemoryImage, vaddr: int, size: int) -> bytes | None:
    """Return bytes, None if they cannot be read."""
    if not boot_x86_64.KERNEL_HALF <= vaddr <= END_OF_MEMORY - size:
        return None
    try:
        return memory.read(vaddr, size)
    except ReadError:
        return None
