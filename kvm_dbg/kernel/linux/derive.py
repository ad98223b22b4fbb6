"""Symbols of data, for a kernel whose kallsyms has functions only (CONFIG_KALLSYMS_ALL is off).

Every source is a structure that proves itself:
- the table of exports (`symbols.ksymtab`), checked against kallsyms;
- VMCOREINFO's SYMBOL lines (kernel/vmcore_info.c);
- BTF begins with its header and ends where that says (include/uapi/linux/btf.h); its .data..percpu has the offset of
  every per-CPU variable, and exported ones say where the section begins (at 0 on x86_64 before 6.15);
- `modules` is the list_head outside of the modules whose list leads through modules with proper names, in both
  directions, and back to it (include/linux/module.h);
- the ORC tables: ascending addresses relative to their own places, the first that of the kernel's first code, and
  behind the last as many rows (include/asm-generic/vmlinux.lds.h ORC_UNWIND_TABLE);
- init_task, where it is not exported, is the first CPU's idle task.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.btf import BtfTypes
from kvm_dbg.errors import KvmDbgError, ReadError
from kvm_dbg.symbols.base import Symbol, SymbolTable
from kvm_dbg.symbols.ksymtab import search_exports

if TYPE_CHECKING:
    from kvm_dbg.kernel.space import ImageSpace
    from kvm_dbg.symbols.vmcoreinfo import VmcoreInfo

Blocks = Callable[[], Iterable[tuple[int, bytes]]]

BTF_HEADER = struct.Struct("<HBBIIIII")
BTF_MAGIC = b"\x9f\xeb\x01\x00"  # version 1, no flags
BTF_HEADER_SIZE = 24
MAX_BTF = 1 << 28  # bytes
FEWEST_TYPES = 1 << 18  # bytes of a kernel's type records; other BTF, of programs and tests, is smaller

BANNER = b"Linux version "
MAX_BANNER = 1024  # bytes
ARRAYS = ("mem_section",)  # VMCOREINFO has the address of what it points to

MODULES_START, MODULES_END = 0xFFFF_FFFF_A000_0000, 0xFFFF_FFFF_FF00_0000
MAX_MODULES = 1 << 14
MODULE_NAME_SIZE = 56  # bytes: MODULE_NAME_LEN, 64 less a word
MODULE_NAME = re.compile(rb"[\w-]+\0")
FEWEST_ORC_ROWS = 1 << 12
ORC_TAIL = 1 << 20  # bytes at the end of text that may have no rows
ORC_EXIT = 1 << 25  # bytes behind the code of initialisation, where .exit.text is
MAX_ORC_ROWS = 1 << 23
ORC_ROW_SIZE = 6  # bytes of struct orc_entry: sp_offset, bp_offset, then sp_reg in the lowest four bits
ORC_SAMPLE = 256  # rows looked at
LAST_ORC_REGISTER = 9  # ORC_REG_SP_INDIRECT, arch/x86/include/asm/orc_types.h
ORC_CHUNK = 1 << 20  # bytes
MASK = (1 << 64) - 1


def derive_data_symbols(
    space: ImageSpace, functions: SymbolTable, info: VmcoreInfo, blocks: Blocks
) -> tuple[list[Symbol], tuple[str, ...]]:
    """Return symbols of data, and a sentence on what they are and which were not found.

    Args:
        space: the kernel's address space.
        functions: kallsyms.
        info: VMCOREINFO.
        blocks: yields (address, bytes) of the kernel's image, in ascending order.
    """
    end = functions.find("_etext")

    def data_blocks() -> Iterator[tuple[int, bytes]]:
        for vaddr, block in blocks():
            if end is None or vaddr + len(block) > end.address:
                yield vaddr, block

    found = dict(search_exports(space, data_blocks(), functions))
    exported = len(found)
    for key in info.values:
        name = key.removeprefix("SYMBOL(").removesuffix(")")
        address = info.symbol(name) if name != key and name not in ARRAYS else None
        if address:
            found.setdefault(name, address)
    found |= _find_btf(data_blocks)
    sizes: dict[str, int] = {}
    types: BtfTypes | None = None
    if "__start_BTF" in found:
        try:
            start = found["__start_BTF"]
            types = BtfTypes(space.read(start, found["__stop_BTF"] - start), source="BTF in the image")
            sizes = _add_per_cpu(types, found)
        except KvmDbgError:
            types = None
    before = found.get("__start_BTF", MASK)  # constants; behind them, the log holds copies
    banner = _find_banner(data_blocks(), before, BANNER + (info.release or "").encode() + b" ")
    if banner is not None:
        found.setdefault("linux_banner", banner)
    if types is not None:
        found |= _find_modules(space, types, data_blocks)
        _add_init_task(space, types, found)
    found |= _find_orc(space, functions, data_blocks)
    kept = [
        Symbol(name, address, sizes.get(name, 0), "d")
        for name, address in found.items()
        if functions.find(name) is None
    ]
    lost = [name for name in ("init_task", "__start_BTF", "__start_orc_unwind_ip", "modules") if name not in found]
    quirk = f"kallsyms has functions only; {len(kept)} symbols are of {exported} exports, VMCOREINFO, BTF and searches"
    return kept, (quirk + (f", without {', '.join(lost)}" if lost else ""),)


def _find_banner(blocks: Iterable[tuple[int, bytes]], before: int, start: bytes) -> int | None:
    """Return the address of the longest line that begins so; a weak copy lacks the build's number and date."""
    found: list[tuple[int, int]] = []
    for vaddr, block in blocks:
        at = block.find(b"\0" + start)
        while at >= 0:
            line = block[at + 1 : at + 1 + MAX_BANNER].partition(b"\0")[0]
            if line.endswith(b"\n") and b"\n" not in line[:-1] and vaddr + at < before:
                found.append((len(line), vaddr + at + 1))
            at = block.find(b"\0" + start, at + 1)
    return max(found)[1] if found else None


def _find_btf(blocks: Blocks) -> dict[str, int]:
    for vaddr, block in blocks():
        at = block.find(BTF_MAGIC)
        while at >= 0:
            if at + BTF_HEADER.size <= len(block):
                _, _, _, size, type_offset, types, string_offset, strings = BTF_HEADER.unpack_from(block, at)
                whole = size + string_offset + strings
                fits = size == BTF_HEADER_SIZE and not type_offset and string_offset == types
                if fits and types >= FEWEST_TYPES and whole <= MAX_BTF:
                    return {"__start_BTF": vaddr + at, "__stop_BTF": vaddr + at + whole}
            at = block.find(BTF_MAGIC, at + 1)
    return {}


def _add_per_cpu(types: BtfTypes, found: dict[str, int]) -> dict[str, int]:
    """Add the per-CPU variables to `found`, and return their sizes in bytes. Raises FormatError."""
    variables = list(types.for_each_variable_of(".data..percpu"))
    bases = [found[name] - offset & MASK for name, offset, _ in variables if name in found]
    if not bases:
        return {}
    base = max(set(bases), key=bases.count)
    found["__per_cpu_start"] = base
    for name, offset, _ in variables:
        found.setdefault(name, base + offset)
    return {name: size for name, _, size in variables}


def _add_init_task(space: ImageSpace, types: BtfTypes, found: dict[str, int]) -> None:
    if "init_task" in found or "runqueues" not in found or "__per_cpu_offset" not in found:
        return
    try:
        offset = types.offset_of("struct rq", "idle")
        area = int.from_bytes(space.read(found["__per_cpu_offset"], 8), "little")
        found["init_task"] = int.from_bytes(space.read(area + found["runqueues"] + offset & MASK, 8), "little")
    except KvmDbgError:
        return


def _find_modules(space: ImageSpace, types: BtfTypes, blocks: Blocks) -> dict[str, int]:
    try:
        link = types.offset_of("struct module", "list")
        name = types.offset_of("struct module", "name")
    except KvmDbgError:
        return {}
    for vaddr, block in blocks():
        words = array("Q", block[: len(block) & ~7])
        pointers = [(at, word) for at, word in enumerate(words) if MODULES_START <= word < MODULES_END]
        for number, word in pointers:
            place = vaddr + 8 * number
            if not vaddr <= word < vaddr + len(block) and _is_list_of_modules(space, place, word, name - link):
                return {"modules": place}
    return {}


def _is_list_of_modules(space: ImageSpace, head: int, node: int, name: int) -> bool:
    """Return whether a list leads through modules, and back; `name` is how far a module's name is from its node."""
    before = head
    try:
        for _ in range(MAX_MODULES):
            if node == head:
                return before != head
            if node & 7 or not MODULES_START <= node < MODULES_END:
                return False
            following, previous = struct.unpack("<QQ", space.read(node, 16))
            if previous != before or MODULE_NAME.match(space.read(node + name, MODULE_NAME_SIZE)) is None:
                return False
            before, node = node, following
    except ReadError:
        pass
    return False


def _find_orc(space: ImageSpace, functions: SymbolTable, blocks: Blocks) -> dict[str, int]:
    starts = {symbol.address for name in ("_text", "_stext", "startup_64") if (symbol := functions.find(name))}
    end, init_end = functions.find("_etext"), functions.find("_einittext")
    if not starts or end is None:
        return {}
    limits = end.address - ORC_TAIL, max(end.address, init_end.address if init_end is not None else 0) + ORC_EXIT
    for vaddr, block in blocks():
        words = array("i", block[: len(block) & ~3])
        places = range(vaddr, vaddr + 4 * len(words), 4)
        for place, start in [
            (place, place + word) for place, word in zip(places, words, strict=True) if place + word in starts
        ]:
            count = _count_orc_rows(space, place, start, limits)
            if count is not None:
                last = place + 4 * count
                return {
                    "__start_orc_unwind_ip": place,
                    "__stop_orc_unwind_ip": last,
                    "__start_orc_unwind": last,
                    "__stop_orc_unwind": last + ORC_ROW_SIZE * count,
                }
    return {}


def _count_orc_rows(space: ImageSpace, place: int, start: int, limits: tuple[int, int]) -> int | None:
    """Return the number of addresses from `place` on that ascend from `start` beyond the first of `limits`.

    None if they end before, or what follows cannot be as many rows.
    """
    previous = start
    for count, address in enumerate(_for_each_orc_address(space, place)):
        if not previous <= address < limits[1]:
            complete = count >= FEWEST_ORC_ROWS and previous >= limits[0]
            return count if complete and _are_orc_rows(space, place + 4 * count, count) else None
        previous = address
    return None


def _are_orc_rows(space: ImageSpace, rows: int, count: int) -> bool:
    """Return whether a sample of rows names registers that there are, and offsets that are aligned."""
    try:
        for number in range(0, count, max(1, count // ORC_SAMPLE)):
            offset, _, flags = struct.unpack("<hhH", space.read(rows + ORC_ROW_SIZE * number, ORC_ROW_SIZE))
            if offset % 8 or flags & 15 > LAST_ORC_REGISTER:
                return False
    except ReadError:
        return False
    return True


def _for_each_orc_address(space: ImageSpace, place: int) -> Iterator[int]:
    for start in range(place, place + 4 * MAX_ORC_ROWS, ORC_CHUNK):
        try:
            words = array("i", space.read(start, ORC_CHUNK))
        except ReadError:
            return
        yield from (word + start + 4 * at for at, word in enumerate(words))
