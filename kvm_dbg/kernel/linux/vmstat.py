"""Counters of memory and events, as /proc/vmstat has them.

Sources: mm/vmstat.c (`vmstat_text`: their names, in the order of the groups below; vmstat_start(): where the values
are), include/linux/mmzone.h (enums zone_stat_item, numa_stat_item, node_stat_item), include/linux/vmstat.h (struct
vm_event_state, enum writeback_stat_item), include/linux/vm_event_item.h (no events without CONFIG_VM_EVENT_COUNTERS).

The global counters lack what CPUs have not yet handed in, here as in /proc/vmstat. Events of NUMA wait at the zones'
CPUs since 5.14 (commit f19298b9516c), until somebody reads /proc/vmstat: they are added here. Huge pages have been
counted in small ones since 5.12 (commits 69473e5de873 and after it; NR_SWAPCACHE, b6038942480e, came with them), and
/proc/vmstat divides.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import CorruptError, KvmDbgError, TypeNotFound
from kvm_dbg.kernel.layout import decode_text, read_number, read_pointer
from kvm_dbg.kernel.linux.cpu import read_per_cpu_offsets
from kvm_dbg.kernel.usage import Counter

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MAX_ITEMS = 4096  # of one group
MAX_NODES = 1 << 12
MAX_ZONES = 16  # of one node
NAME_SIZE = 64
THRESHOLDS = 2  # nr_dirty_threshold, nr_dirty_background_threshold
HUGE = ("NR_ANON_THPS", "NR_FILE_THPS", "NR_SHMEM_THPS", "NR_SHMEM_PMDMAPPED", "NR_FILE_PMDMAPPED")
WORKED_OUT = "/proc/vmstat works it out when it is read"


def for_each_counter(kernel: Kernel) -> Iterator[Counter]:
    """Yield the counters in the order of /proc/vmstat; of a group that cannot be read, each says why.

    Raises:
        SymbolNotFound: the kernel's symbols lack the names (`vmstat_text`): it was built without CONFIG_KALLSYMS_ALL.
        TypeNotFound, ReadError, CorruptError: the number of counters, or their names, cannot be read.
    """
    groups = (
        (_count(kernel, "NR_VM_ZONE_STAT_ITEMS"), _read_zone),
        (_count_numa(kernel), _read_numa),
        (_count(kernel, "NR_VM_NODE_STAT_ITEMS"), _read_node),
        (_count_other(kernel), _read_other),
        (_count(kernel, "NR_VM_EVENT_ITEMS") if "vm_event_states" in kernel.symbols else 0, _read_events),
    )
    names = iter(_read_names(kernel, sum(count for count, _ in groups)))
    for count, read in groups:
        try:
            values, why = read(kernel, count), ""
        except KvmDbgError as error:
            values, why = [None] * count, str(error)
        for value in values:
            yield Counter(next(names), value, "", why or ("" if value is not None else WORKED_OUT))


def _count(kernel: Kernel, *names: str) -> int:
    """Return how many counters a group has: the last enumerator of its enum, by the newest of its names."""
    for name in names:
        count = kernel.types.find_enumerator(name)
        if count is not None:
            if not 0 <= count <= MAX_ITEMS:
                raise CorruptError(0, f"{name} is {count}")
            return count
    raise TypeNotFound(names[0], f"the kernel's types have no {' or '.join(names)}")


def _count_numa(kernel: Kernel) -> int:
    """Return how many events of NUMA there are; none without CONFIG_NUMA, whose enum is empty then."""
    names = ("NR_VM_NUMA_EVENT_ITEMS", "NR_VM_NUMA_STAT_ITEMS")
    if all(kernel.types.find_enumerator(name) is None for name in names):
        return 0
    return _count(kernel, *names)


def _count_other(kernel: Kernel) -> int:
    """Return how many values have neither: the two thresholds, where debug information leaves an unused enum out."""
    names = ("NR_VM_STAT_ITEMS", "NR_VM_WRITEBACK_STAT_ITEMS")
    if all(kernel.types.find_enumerator(name) is None for name in names):
        return THRESHOLDS
    return _count(kernel, *names)


def _read_names(kernel: Kernel, count: int) -> list[str]:
    address, word = kernel.symbols.address("vmstat_text"), kernel.arch.pointer_size
    pointers = _words(kernel, kernel.read(address, count * word))
    return [decode_text(read_string(kernel, pointer, NAME_SIZE)) for pointer in pointers]


def _words(kernel: Kernel, data: bytes, signed: bool = False) -> tuple[int, ...]:
    """Return the longs in `data`."""
    word = kernel.arch.pointer_size
    code = {4: "i", 8: "q"}[word] if signed else {4: "I", 8: "Q"}[word]
    order = "<" if kernel.arch.byteorder == "little" else ">"
    return struct.unpack(f"{order}{len(data) // word}{code}", data)


def _read_global(kernel: Kernel, name: str, count: int) -> list[int]:
    """Return an array of atomic_long_t; what is below 0 is shown as 0, as CPUs owe each other."""
    data = kernel.read(kernel.symbols.address(name), count * kernel.arch.pointer_size)
    return [max(value, 0) for value in _words(kernel, data, signed=True)]


def _read_zone(kernel: Kernel, count: int) -> Sequence[int]:
    return _read_global(kernel, "vm_zone_stat", count)


def _read_node(kernel: Kernel, count: int) -> Sequence[int]:
    values = _read_global(kernel, "vm_node_stat", count)
    if kernel.types.find_enumerator("NR_SWAPCACHE") is not None:
        small = _pages_of_huge(kernel)
        for name in HUGE:
            index = kernel.types.find_enumerator(name)
            if index is not None and index < count:
                values[index] //= small
    return values


def _pages_of_huge(kernel: Kernel) -> int:
    """Return HPAGE_PMD_NR: a page table has as many entries as words fit on a page."""
    return (1 << kernel.arch.page_shift) // kernel.arch.pointer_size


def _read_numa(kernel: Kernel, count: int) -> Sequence[int]:
    if kernel.symbols.find("vm_numa_event") is None:
        return _read_global(kernel, "vm_numa_stat", count)
    values = _read_global(kernel, "vm_numa_event", count)
    types, word = kernel.types, kernel.arch.pointer_size
    member = types.offset_of("struct per_cpu_zonestat", "vm_numa_event")
    mask = (1 << 8 * word) - 1
    for zone in for_each_zone(kernel):
        area = read_pointer(kernel, zone + types.offset_of("struct zone", "per_cpu_zonestats"))
        for offset in read_per_cpu_offsets(kernel).values():
            data = kernel.read((area + offset & mask) + member, count * word)
            values = [value + more for value, more in zip(values, _words(kernel, data), strict=True)]
    return values


def for_each_zone(kernel: Kernel) -> Iterator[int]:
    """Yield the addresses of the zones that have memory."""
    types, word = kernel.types, kernel.arch.pointer_size
    nodes = read_number(kernel, kernel.symbols.address("nr_node_ids"), 4)
    if not 0 < nodes <= MAX_NODES:
        raise CorruptError(kernel.symbols.address("nr_node_ids"), f"the kernel has {nodes} nodes")
    table, size = kernel.symbols.address("node_data"), types.size_of("struct zone")
    first = types.offset_of("struct pglist_data", "node_zones")
    present = types.offset_of("struct zone", "present_pages")
    for number in range(nodes):
        node = read_pointer(kernel, table + number * word)
        if not node:
            continue
        zones = read_number(kernel, node + types.offset_of("struct pglist_data", "nr_zones"), 4)
        if not 0 <= zones <= MAX_ZONES:
            raise CorruptError(node, f"node {number} has {zones} zones")
        for place in range(node + first, node + first + zones * size, size):
            if read_pointer(kernel, place + present):
                yield place


def _read_other(kernel: Kernel, count: int) -> Sequence[int | None]:
    """Return what is worked out (None), or kept in a variable of its own, called as its enumerator (6.11)."""
    values: list[int | None] = [None] * count
    for name in ("nr_memmap_pages", "nr_memmap_boot_pages"):
        symbol, index = kernel.symbols.find(name), kernel.types.find_enumerator(name.upper())
        if symbol is not None and index is not None and index < count:
            values[index] = read_number(kernel, symbol.address, kernel.arch.pointer_size)
    return values


def _read_events(kernel: Kernel, count: int) -> Sequence[int]:
    place = kernel.symbols.address("vm_event_states") + kernel.types.offset_of("struct vm_event_state", "event")
    word = kernel.arch.pointer_size
    mask = (1 << 8 * word) - 1
    values = [0] * count
    for offset in read_per_cpu_offsets(kernel).values():
        data = kernel.read(place + offset & mask, count * word)
        values = [value + more & mask for value, more in zip(values, _words(kernel, data), strict=True)]
    for name in ("PGPGIN", "PGPGOUT"):  # sectors; /proc/vmstat has KiB
        index = kernel.types.find_enumerator(name)
        if index is not None and index < count:
            values[index] //= 2
    return values
