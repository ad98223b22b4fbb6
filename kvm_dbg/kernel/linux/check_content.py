"""What commands read of processes, modules, the log and the system: how much of it is there, and whether it agrees.

Sources: include/linux/mm_types.h (mm_struct.map_count), kernel/printk/printk_ringbuffer.h (sequence numbers count
records), include/linux/module.h (a module's symbols lie in its own areas), init/version.c and kernel/vmcore_info.c
(the release stands in the banner, in init_uts_ns and in VMCOREINFO).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import KvmDbgError, ReadError
from kvm_dbg.kernel.check import Finding
from kvm_dbg.kernel.layout import decode_text
from kvm_dbg.kernel.linux.check_finding import compare, count_lost, count_unread, enumerate_some

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel, Process

STACKS = 64  # tasks whose stacks are unwound
PROCESSES = 256  # whose memory is looked at
BACKWARDS = 10.0  # seconds: records are stamped before they are put in order, by clocks that differ between CPUs


def check_arguments(kernel: Kernel) -> Iterator[Finding]:
    """Count the processes whose arguments can be read."""
    from kvm_dbg.kernel.linux.argument import read_arguments

    yield from _check_strings(kernel, "arguments", read_arguments)


def check_environments(kernel: Kernel) -> Iterator[Finding]:
    """Count the processes whose environment can be read."""
    from kvm_dbg.kernel.linux.argument import read_environment

    yield from _check_strings(kernel, "environments", read_environment)


def _check_strings(
    kernel: Kernel, what: str, read: Callable[[Kernel, Process], list[bytes] | None]
) -> Iterator[Finding]:
    total = 0
    lost = []
    for process in _with_memory(kernel):
        total += 1
        try:
            read(kernel, process)
        except KvmDbgError as error:
            lost.append(f"{process.command}/{process.pid} ({error})")
    yield from count_lost(what, total, lost)


def _with_memory(kernel: Kernel) -> Iterator[Process]:
    from kvm_dbg.kernel.linux.process import for_each_process

    having = (process for process in for_each_process(kernel) if not process.kernel_thread and process.state != "Z")
    return islice(having, PROCESSES)


def check_files(kernel: Kernel) -> Iterator[Finding]:
    """Count the open files that cannot be described."""
    from kvm_dbg.kernel.linux.file import for_each_file

    records = ((f"descriptor {file.fd} of {file.pid}", file.unread) for file in for_each_file(kernel))
    yield from count_unread("open files", records)


def check_mappings(kernel: Kernel) -> Iterator[Finding]:
    """Compare the number of mappings that are found with the one that each process counts."""
    from kvm_dbg.kernel.layout import read_number
    from kvm_dbg.kernel.linux.task import task_layout
    from kvm_dbg.kernel.linux.vma import for_each_mapping

    offset = kernel.types.offset_of("struct mm_struct", "map_count")
    layout = task_layout(kernel)
    total = 0
    wrong, lost = [], []
    for process in _with_memory(kernel):
        mm = layout.read(kernel, process.address).get("mm")
        if not mm:
            continue
        total += 1
        try:
            expected = read_number(kernel, mm + offset, 4)
            found = sum(1 for mapping in for_each_mapping(kernel, process.pid) if mapping.path != "[vsyscall]")
        except ReadError as error:
            lost.append(f"{process.command}/{process.pid} ({error})")
            continue
        if found != expected:
            wrong.append(f"{process.command}/{process.pid} has {found} mappings and counts {expected}")
    if wrong:
        yield "suspect", enumerate_some(wrong)
    yield from count_lost("processes' mappings", total, lost)


def check_stacks(kernel: Kernel) -> Iterator[Finding]:
    """Unwind some stacks, and count those that do not end as a stack ends."""
    from kvm_dbg.kernel.linux.task import task_layout
    from kvm_dbg.kernel.linux.thread import for_each_thread
    from kvm_dbg.kernel.linux.unwind import unwind

    layout = task_layout(kernel)
    total = 0
    whys: Counter[str] = Counter()
    for thread in islice(for_each_thread(kernel), STACKS):
        if layout.read(kernel, thread.address).get("exit_state"):
            continue  # its stack has been freed
        total += 1
        frames = list(unwind(kernel, thread))
        if not frames:
            whys[f"no frames: {thread.why}"] += 1
            continue
        why = next((frame.why for frame in frames if frame.why), None)
        if why is not None:
            whys[why.partition(":")[0]] += 1
    if whys:
        yield "partial", enumerate_some([f"{count} of {total} stacks: {why}" for why, count in whys.most_common()])
    else:
        yield "ok", f"{total} stacks end at user space, or where the task was made"


def check_log(kernel: Kernel) -> Iterator[Finding]:
    """Look whether the log's records follow each other."""
    from kvm_dbg.kernel.linux.printk import for_each_log_record

    wrong, lost = [], []
    total = 0
    sequence: int | None = None
    latest = 0.0
    for record in for_each_log_record(kernel):
        total += 1
        if sequence is not None and record.sequence != sequence + 1:
            wrong.append(f"record {record.sequence} follows {sequence}")
        seconds = latest if record.seconds is None else record.seconds
        if seconds < latest - BACKWARDS:
            wrong.append(f"record {record.sequence} is {latest - seconds:.0f} s older than one before it")
        sequence, latest = record.sequence, max(latest, seconds)
        if record.unread:
            lost.append(f"record {record.sequence} ({', '.join(record.unread)})")
    if not total:
        yield "partial", "the log is empty"
        return
    yield from compare(f"{total} records in sequence", wrong)
    if lost:
        yield from count_lost("records", total, lost)


def check_modules(kernel: Kernel) -> Iterator[Finding]:
    """Compare each module's areas with its own symbols, and with the other modules' areas."""
    from kvm_dbg.kernel.linux.module import ModuleReader, for_each_module_record
    from kvm_dbg.kernel.linux.symbolize import read_module_symbols

    reader = ModuleReader(kernel)
    wrong, lost = [], []
    areas: list[tuple[int, int, str]] = []
    total = symbols = 0
    for record in for_each_module_record(kernel):
        total += 1
        module = reader.module(record)
        if module.unread:
            lost.append(f"{module.name} ({', '.join(module.unread)})")
        areas += [(start, start + size, module.name) for start, size in module.ranges]
        try:
            found = read_module_symbols(kernel, record)
        except ReadError as error:
            lost.append(f"{module.name}: symbols ({error})")
            continue
        symbols += len(found)
        outside = [
            symbol.name
            for symbol in found
            if symbol.kind not in "aA"
            and not any(start <= symbol.address <= start + size for start, size in module.ranges)
            and symbol.kind.lower() in "tdrb"
        ]
        if len(outside) > len(found) // 2:
            wrong.append(f"{len(outside)} of {len(found)} symbols of {module.name} are outside of it")
    areas.sort()
    wrong += [
        f"{name} overlaps {other}"
        for (_, end, name), (start, _, other) in pairwise(areas)
        if start < end and name != other
    ]
    yield from compare(f"{total} modules with {symbols} symbols", wrong)
    if lost:
        yield from count_lost("modules", total, lost)


def check_release(kernel: Kernel) -> Iterator[Finding]:
    """Compare the release in the banner, in init_uts_ns and in VMCOREINFO."""
    from kvm_dbg.kernel.linux.check_memory import BANNER
    from kvm_dbg.kernel.linux.summary import read_utsname

    places = {"init_uts_ns": read_utsname(kernel)["release"]}
    banner = read_string(kernel, kernel.symbols.address("linux_banner"), 512)
    places["the banner"] = decode_text(banner.removeprefix(BANNER).partition(b" ")[0])
    info = getattr(kernel, "vmcoreinfo", None)
    if info is not None and info.release:
        places["VMCOREINFO"] = info.release
    if len(set(places.values())) == 1:
        yield "ok", f"{next(iter(places.values()))} in {', '.join(places)}"
    else:
        yield "suspect", "; ".join(f"{release} in {place}" for place, release in places.items())
