"""What the tests of the lab's kernels ask a debugger about one dump, all in one run."""

from __future__ import annotations

import functools

from kvm_dbg.image import open_image
from kvm_dbg.image.base import Presence
from tests.debuggers.case import TYPES, Case
from tests.debuggers.neutral import Answers, Frame, Step, Subject, kvm, kvm_open, step

COMMANDS = ("procs --threads --json", "loadavg", "lwps --csv", "log --tail 5", "bt 2")
SYMBOLS = ("linux_banner", "init_task", "panic", "do_syscall_64", "vfs_write", "jiffies_64", "system_wq")
INSTRUCTIONS = 8
STRIDE = 16  # an expression with a type may take gdb 13 a tenth of a second
KERNEL_HOLE = 0xFFFF_FFFF_0000_0000  # between the module area's neighbours: never mapped (x86_64/mm.rst)


class Asked:
    """One dump in one debugger: the case, and all answers."""

    def __init__(self, case: Case, answers: Answers) -> None:
        self.case = case
        self.answers = answers

    def stack(self, thread: int) -> list[Frame]:
        """Return the frames of a thread in the kernel, as the machine has them."""
        return [frame for frame in self.answers.stacks("stacks")[thread] if frame.in_kernel and not frame.virtual]


def ask(subject: Subject, case: Case) -> Asked:
    """Open a case in a debugger, and ask everything; where the kernel file is hidden, what came from that."""
    return Asked(case, subject.ask(_of_symbols(case) if case.hidden else _of_symbols(case) | _of_the_rest(case)))


def _of_symbols(case: Case) -> dict[str, Step]:
    """Return the steps that ask for symbols, types, memory and stacks."""
    banner = len(case.truth.read("proc/version"))
    steps = {
        "open": kvm_open(*case.files),
        "threads": step("threads"),
        "selected": step("selected"),
        "sleeper": step("select", case.sleeper),
        "backtrace": step("backtrace"),
        "unselected": step("select_first"),
        "stacks": step("stacks"),
        "swapper": step("evaluate", "init_task.comm"),
        "banner": step("read_at", "(unsigned long) &linux_banner", banner),
        "code": step("disassemble", case.symbols["panic"][0], INSTRUCTIONS),
        "holder": step("symbol_at", case.symbols["panic"][0] + 1),
        **{f"symbol {name}": step("address", name) for name in SYMBOLS if name in case.symbols},
        **{f"size {name}": step("size", name) for name in TYPES},
        **{
            f"offset {name}.{member}": step("offset", name, member)
            for name, known in case.types.items()
            for member in known.offsets
        },
    }
    if case.hidden:
        for name, known in case.module_types.items():
            steps[f"size {name}"] = step("size", name)
            steps |= {f"offset {name}.{member}": step("offset", name, member) for member in known.offsets}
    return steps


def _of_the_rest(case: Case) -> dict[str, Step]:
    """Return the steps that need no asking twice, and those that change the target."""
    steps = {
        "tasks": step("tasks"),
        "comms": step("comms", STRIDE),
        "hole": step("read", KERNEL_HOLE, 16),
        "null": step("read", 0, 16),
        **{f"kvm {line}": kvm(line) for line in COMMANDS},
        "wrong": kvm("procs --nonsense"),
        "unwritten": step("evaluate", "panic_on_oops"),
        "write": step("write", case.symbols["panic_on_oops"][0], "4d000000"),
        "written": step("evaluate", "panic_on_oops"),
        "kvm read": kvm("read panic_on_oops 4 --json"),
        "kvm write": kvm("write panic_on_oops --u32 78"),
        "rewritten": step("evaluate", "panic_on_oops"),
    }
    missing = absent_page(case)
    if missing is not None:
        steps["missing"] = step("read_at", f"page_offset_base + {missing:#x}", 16)
    steps["resume"] = step("resume")
    steps["step"] = step("step")
    steps["after"] = step("evaluate", "init_task.comm")
    return steps


@functools.cache
def absent_page(case: Case) -> int | None:
    """Return the physical address of a page of RAM that the dump lacks, None if it has them all."""
    with open_image(case.images[0]) as image:
        runs = image.coverage(0, 1 << 36)
        return next((run.start for run in runs if run.presence is Presence.EXCLUDED), None)
