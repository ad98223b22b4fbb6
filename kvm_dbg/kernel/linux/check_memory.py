"""Addresses: page tables, VMCOREINFO and the image's own map of memory, each against the others.

Sources: arch/x86/kernel/head_64.S and arch/x86/include/asm/page_64.h (text is mapped at __START_KERNEL_map +
physical address - phys_base; all of RAM at page_offset_base), init/version.c (linux_banner), include/linux/utsname.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from kvm_dbg.errors import NotMappedError, ReadError
from kvm_dbg.image.base import Presence
from kvm_dbg.kernel.check import Finding
from kvm_dbg.kernel.layout import read_pointer
from kvm_dbg.kernel.linux.check_finding import compare
from kvm_dbg.symbols.vmcoreinfo import VmcoreInfo

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
BANNER = b"Linux version "
SAMPLES = 64  # ranges of memory that are looked at
RANGES = 4096  # of the image that are looked through for them
ARRAYS = ("SYMBOL(mem_section)",)  # the address of what the symbol points to, with CONFIG_SPARSEMEM_EXTREME
MIB = 1 << 20  # below it, firmware and trampolines have their say


def check_text_mapping(kernel: Kernel) -> Iterator[Finding]:
    """Compare where page tables put the kernel's text with phys_base."""
    phys_base = getattr(kernel, "phys_base", None)
    if phys_base is None or kernel.arch.name != "x86_64":
        return
    wrong = []
    names = ("_stext", "init_task", "linux_banner")
    symbols = [symbol for name in names if (symbol := kernel.symbols.find(name)) is not None]
    for symbol in symbols:
        paddr = kernel.translate(symbol.address)
        expected = symbol.address - START_KERNEL_MAP + phys_base
        if paddr != expected:
            wrong.append(f"{symbol.name} is at {paddr:#x} by page tables, at {expected:#x} by phys_base")
    yield from compare(f"page tables put {', '.join(symbol.name for symbol in symbols)} where phys_base does", wrong)


def check_direct_map(kernel: Kernel) -> Iterator[Finding]:
    """Translate the direct map's address of memory that the image has, and see whether it is that memory."""
    base = kernel.symbols.find("page_offset_base")
    if base is None:
        return
    start = read_pointer(kernel, base.address)
    mapped = 0
    wrong = []
    for paddr in islice(_for_each_sample(kernel), SAMPLES):
        try:
            found = kernel.translate(start + paddr)
        except NotMappedError:
            continue  # the firmware's, or reserved, such as the crash kernel's
        mapped += 1
        if found != paddr:
            wrong.append(f"{start + paddr:#x} leads to {found:#x}, not {paddr:#x}")
    if not mapped:
        wrong.append("the direct map maps none of the image's memory")
    yield from compare(f"{mapped} pages of the image's memory are where the direct map has them", wrong)


def _for_each_sample(kernel: Kernel) -> Iterator[int]:
    """Yield the physical addresses of some pages that the image has."""
    mask = -1 << kernel.arch.page_shift
    for run in islice(kernel.image.coverage(), RANGES):
        first = max(run.start, MIB)
        end = run.start + run.size
        if run.presence is Presence.PRESENT and first < end:
            yield from sorted({first & mask, (first + end) // 2 & mask, (end - 1) & mask})


def check_symbols(kernel: Kernel) -> Iterator[Finding]:
    """Read the kernel's banner where its symbol says it is, and compare addresses with VMCOREINFO's."""
    wrong = []
    banner = kernel.symbols.address("linux_banner")
    try:
        text = kernel.read(banner, len(BANNER))
        if text != BANNER:
            wrong.append(f"at linux_banner stands {text!r}")
    except ReadError as error:
        yield "partial", f"linux_banner: {error}"
    first, last = kernel.symbols.find("_stext"), kernel.symbols.find("_etext")
    if first is not None and last is not None and first.address >= last.address:
        wrong.append(f"text ends at {last.address:#x}, before it starts at {first.address:#x}")
    info: VmcoreInfo = getattr(kernel, "vmcoreinfo", None) or VmcoreInfo(b"")
    known = 0
    for key in info.values:
        if not key.startswith("SYMBOL(") or key in ARRAYS:
            continue
        name = key[len("SYMBOL(") : -1]
        address = info.symbol(name)
        symbol = kernel.symbols.find(name)
        if address is None or symbol is None:
            continue
        known += 1
        if all(each.address != address for each in kernel.symbols.find_all(name)):
            wrong.append(f"{name} is at {symbol.address:#x}, at {address:#x} by VMCOREINFO")
    yield from compare(f"the banner is in its place, and {known} symbols are where VMCOREINFO has them", wrong)
