"""What a person wants to know first of a Linux kernel.

Sources: include/uapi/linux/utsname.h (struct new_utsname in `init_uts_ns.name`), mm/ (`_totalram_pages` since v5.0,
commit ca79b0c211af, before that `totalram_pages`), kernel/panic.c (`tainted_mask`), init/main.c (`saved_command_line`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.base import Process, SystemSummary
from kvm_dbg.kernel.layout import Layout, decode_text, read_number, read_pointer
from kvm_dbg.kernel.linux.cpu import read_current_tasks, read_per_cpu_offsets
from kvm_dbg.kernel.linux.loadavg import read_load_average, read_thread_count
from kvm_dbg.kernel.linux.module import TAINT_LETTERS
from kvm_dbg.kernel.linux.panic import read_panic_cpu, read_panic_message
from kvm_dbg.kernel.linux.process import ProcessReader
from kvm_dbg.kernel.linux.task import task_layout
from kvm_dbg.kernel.linux.time import NSEC_PER_SEC, Clock, read_clock

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

Result = TypeVar("Result")

MISSING = (ReadError, CorruptError, SymbolNotFound, TypeNotFound, MemberNotFound)
NAMES = ("sysname", "nodename", "release", "version", "machine")
COMMAND_LINE_LIMIT = 1 << 16  # bytes, COMMAND_LINE_SIZE is 2048 on x86


def read_summary(kernel: Kernel) -> SystemSummary:
    """Return what `sys` shows; fields that the image lacks are None or empty."""
    names = _or_none(kernel, read_utsname) or {}
    clock: Clock | None = _or_none(kernel, read_clock)
    panic_cpu = read_panic_cpu(kernel)
    panicked = panic_cpu is not None
    task = _or_none(kernel, _read_panic_task) if panicked else None
    cpus = _or_none(kernel, read_per_cpu_offsets)
    return SystemSummary(
        system=names.get("sysname", "Linux"),
        release=names.get("release", ""),
        version=names.get("version", ""),
        machine=names.get("machine", ""),
        nodename=names.get("nodename", ""),
        cpus=len(cpus) if cpus is not None else None,
        date=clock.realtime / NSEC_PER_SEC if clock is not None else None,
        uptime=clock.boottime / NSEC_PER_SEC if clock is not None else None,
        load_average=_or_none(kernel, read_load_average),
        tasks=_or_none(kernel, read_thread_count),
        memory=_or_none(kernel, _read_memory),
        free_memory=_or_none(kernel, lambda kernel: _read_counter(kernel, "vm_zone_stat", "NR_FREE_PAGES")),
        file_cache=_or_none(kernel, lambda kernel: _read_counter(kernel, "vm_node_stat", "NR_FILE_PAGES")),
        page_size=1 << kernel.arch.page_shift,
        slide=getattr(kernel, "slide", None),
        panic_message=read_panic_message(kernel) if panicked else None,
        panic_cpu=panic_cpu,
        panic_task=task[0] if task is not None else None,
        panic_lid=task[1] if task is not None else None,
        taints=_or_none(kernel, read_taints),
        command_line=_or_none(kernel, _read_command_line),
    )


def read_utsname(kernel: Kernel) -> dict[str, str]:
    """Return uname(2)'s strings by their members' names. Raises ReadError, SymbolNotFound."""
    names = Layout(kernel.types, "struct new_utsname", {name: name for name in NAMES}, kernel.arch.byteorder)
    offset = kernel.types.offset_of("struct uts_namespace", "name")
    uts = names.read(kernel, kernel.symbols.address("init_uts_ns") + offset)
    return {name: uts.text(name) for name in NAMES}


def read_taints(kernel: Kernel) -> str:
    """Return the letters of what taints the kernel, "" if nothing does. Raises ReadError, SymbolNotFound."""
    mask = read_pointer(kernel, kernel.symbols.address("tainted_mask"))
    return "".join(letter for bit, letter in enumerate(TAINT_LETTERS) if mask >> bit & 1)


def _read_memory(kernel: Kernel) -> int:
    symbol = kernel.symbols.find("_totalram_pages")
    address = symbol.address if symbol is not None else kernel.symbols.address("totalram_pages")
    return read_pointer(kernel, address) << kernel.arch.page_shift


def _read_counter(kernel: Kernel, array: str, name: str) -> int:
    """Return one of the machine's counters of pages, in bytes; of several nodes and zones the sum.

    Source: mm/vmstat.c (atomic_long_t vm_zone_stat[], vm_node_stat[] since v4.8, commit 75ef71840539; negative for a
    moment where processors have yet to hand in their parts), fs/proc/meminfo.c.
    """
    index = kernel.types.find_enumerator(name)
    if index is None:
        raise MemberNotFound("enum", name)
    size = kernel.arch.pointer_size
    value = read_number(kernel, kernel.symbols.address(array) + index * size, size, signed=True)
    return max(value, 0) << kernel.arch.page_shift


def _read_command_line(kernel: Kernel) -> str:
    pointer = read_pointer(kernel, kernel.symbols.address("saved_command_line"))
    return decode_text(read_string(kernel, pointer, COMMAND_LINE_LIMIT))


def _read_panic_task(kernel: Kernel) -> tuple[Process, int] | None:
    """Return the process and the thread id that the panicking CPU ran; PID 0 is its idle task. Raises ReadError."""
    cpu = read_panic_cpu(kernel)
    address = read_current_tasks(kernel).get(cpu) if cpu is not None else None
    if address is None:
        return None
    layout = task_layout(kernel)
    task = layout.read(kernel, address)
    leader = task if task["pid"] == task["tgid"] else layout.read(kernel, task["group_leader"])
    return ProcessReader(kernel).process(leader), task["pid"]


def _or_none(kernel: Kernel, read: Callable[[Kernel], Result]) -> Result | None:
    try:
        return read(kernel)
    except MISSING:
        return None
