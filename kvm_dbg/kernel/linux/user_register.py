"""Registers of threads as they entered the kernel: what their user code will resume with.

Sources: arch/x86/include/asm/ptrace.h (struct pt_regs), processor.h (task_pt_regs(): at the very end of the kernel
stack), thread_info.h (TOP_OF_KERNEL_STACK_PADDING: 16 bytes on x86_64 with CONFIG_X86_FRED, v6.9, commit 65c9cc9e2c14,
else none), process_64.c (thread.fsbase, gsbase and the selectors are those of the last switch away from the thread).
With FRED, cs and ss share their words with other bits. The stack's size is that of its area in vmalloc memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError, UnsupportedError
from kvm_dbg.kernel.layout import Layout, Names, Record, read_number

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import CpuState, Kernel

USUAL_STACK = 16384  # bytes, THREAD_SIZE without KASAN
STACK_LIMIT = 1 << 18  # bytes
FRED_PADDING = 16
USER_MODE = 3  # of the privilege level in cs
COMPAT_CS = 0x23  # __USER32_CS: 32-bit code
NO_SYSTEM_CALL = (1 << 64) - 1  # orig_rax outside of system calls

REGISTERS: dict[str, Names] = {
    **{name: name for name in ("r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8")},
    **{f"r{name}": name for name in ("bp", "bx", "ax", "cx", "dx", "si", "di", "ip", "sp")},
    "orig_rax": "orig_ax",
    "cs": "cs",
    "eflags": "flags",
    "ss": "ss",
}
THREAD: dict[str, Names] = {
    "stack": "stack",
    "area": ("stack_vm_area", None),  # with CONFIG_VMAP_STACK
    "fs_base": ("thread.fsbase", "thread.fs"),  # v4.7, commit 296f781a4b7801
    "gs_base": ("thread.gsbase", "thread.gs"),
    "ds": "thread.ds",
    "es": "thread.es",
    "fs": "thread.fsindex",
    "gs": "thread.gsindex",
}


class UserRegisterReader:
    """Reads registers of user code, as struct user_regs_struct names them.

    Raises:
        UnsupportedError: of this processor, they are not known.
    """

    def __init__(self, kernel: Kernel) -> None:
        if kernel.arch.name != "x86_64":
            raise UnsupportedError(f"reading registers of user code on {kernel.arch.name}")
        self._kernel = kernel
        self._thread = Layout(kernel.types, "struct task_struct", THREAD, kernel.arch.byteorder)
        self._regs = Layout(kernel.types, "struct pt_regs", REGISTERS, kernel.arch.byteorder)
        fred = kernel.symbols.find("fred_entry_from_user") or kernel.symbols.find("asm_fred_entrypoint_user")
        self._padding = FRED_PADDING if fred is not None else 0

    def read(self, task: Record, state: CpuState | None = None) -> dict[str, int]:
        """Return the registers of the thread `task`; `state` is that of the CPU that runs it.

        Raises:
            ReadError: the top of its stack is not in the image.
            CorruptError: no registers of user code are there.
        """
        thread = self._thread.read(self._kernel, task.address)
        kept = {name: thread[name] for name in ("fs_base", "gs_base", "ds", "es", "fs", "gs")}
        live = state.registers if state is not None else {}
        if live and live.get("cs", 0) & USER_MODE == USER_MODE:
            return {**kept, "orig_rax": NO_SYSTEM_CALL, **live}
        if not thread["stack"]:
            raise CorruptError(task.address, f"thread {task['pid']} has exited and its stack is gone")
        place = thread["stack"] + self._stack_size(thread) - self._padding - self._regs.struct_size
        found = self._regs.read(self._kernel, place).numbers
        found = {**found, "cs": found["cs"] & 0xFFFF, "ss": found["ss"] & 0xFFFF}
        if found["cs"] & USER_MODE != USER_MODE or found["ss"] & USER_MODE != USER_MODE:
            what = f"cs is {found['cs']:#x}, ss {found['ss']:#x}"
            raise CorruptError(place, f"thread {task['pid']} has no registers of user code on its kernel stack: {what}")
        if "fs_base" in live:  # that of the kernel is never loaded
            kept["fs_base"] = live["fs_base"]
        return {**kept, **found}

    def _stack_size(self, thread: Record) -> int:
        if not thread.get("area"):
            return USUAL_STACK
        member = self._kernel.types.struct("struct vm_struct").member("nr_pages")
        pages = read_number(self._kernel, thread["area"] + member.offset, 4)
        size = pages << self._kernel.arch.page_shift
        if not 0 < size <= STACK_LIMIT or size & (size - 1):
            raise CorruptError(thread["area"] + member.offset, f"a kernel stack has {size} bytes")
        return size
