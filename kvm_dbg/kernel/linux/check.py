"""What an image says of itself twice: independent structures compared, command by command.

A dump may be cut, filtered, overwritten, or paired with a kernel file that is not its own, and a wrong answer looks
like a right one. The kernel keeps many facts in two places that nothing but the kernel itself keeps equal; where both
are in the image and agree, what the commands show is believed with reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.kernel.check import Subject, check_subjects
from kvm_dbg.kernel.linux import check_content, check_layout, check_memory, check_task

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Check, Kernel

TASKS = ("procs", "lwps", "args", "env", "files", "vm", "user", "gcore", "bt")
TYPED = (*TASKS, "mods", "log", "sys", "loadavg")

SUBJECTS: tuple[Subject, ...] = (
    Subject("page tables and VMCOREINFO", (*TYPED, "nlist", "read", "vtop"), check_memory.check_text_mapping),
    Subject("the direct map and the image's memory", (*TYPED, "read", "vtop"), check_memory.check_direct_map),
    Subject("symbols and what they name", (*TYPED, "nlist"), check_memory.check_symbols),
    Subject("types and VMCOREINFO", TYPED, check_layout.check_vmcoreinfo),
    Subject("types and slab object sizes", TYPED, check_layout.check_slabs),
    Subject("tasks and the allocator of PIDs", TASKS, check_task.check_pids),
    Subject("tasks and the kernel's count of them", (*TASKS, "loadavg"), check_task.check_count),
    Subject("tasks and run queues", ("procs", "lwps", "bt"), check_task.check_run_queues),
    Subject("processes' fields", ("procs",), check_task.check_processes),
    Subject("threads' fields", ("lwps",), check_task.check_lwps),
    Subject("the load averages' range", ("loadavg",), check_task.check_load_average),
    Subject("arguments in processes' memory", ("args",), check_content.check_arguments),
    Subject("environments in processes' memory", ("env",), check_content.check_environments),
    Subject("open files", ("files",), check_content.check_files),
    Subject("mappings and their count", ("vm", "user", "gcore"), check_content.check_mappings),
    Subject("stacks", ("bt",), check_content.check_stacks),
    Subject("the log's sequence and times", ("log",), check_content.check_log),
    Subject("modules, their areas and kallsyms", ("mods",), check_content.check_modules),
    Subject("the release's three places", ("sys",), check_content.check_release),
)


def for_each_check(kernel: Kernel, command: str | None = None) -> Iterator[Check]:
    """Yield the findings for every command, or for one."""
    return check_subjects(SUBJECTS, kernel, command)
