"""Unwinding kernel stacks by frame pointers, and across the frames that traps and interrupts leave.

FreeBSD's kernels keep frame pointers. fork_trampoline() begins a stack with a frame pointer of 0; that frame is not
shown, nobody returns to it. Where a function of `Machine.trap_handlers` is the caller, the registers of what it
interrupted are at its stack pointer (struct trapframe): as FreeBSD's kgdb knows it. A kernel file without those names
leads past them by the frame pointer alone, which misses the function that was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, cast

from kvm_dbg.errors import ReadError
from kvm_dbg.kernel.base import Frame
from kvm_dbg.kernel.bsd.symbolize import find_symbol
from kvm_dbg.kernel.freebsd.proc import MISSING, thread_layout
from kvm_dbg.kernel.freebsd.saved import decode_registers, read_variable, saved_layout
from kvm_dbg.kernel.layout import read_pointer

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel, Thread
    from kvm_dbg.kernel.freebsd.kernel import FreeBSDKernel
    from kvm_dbg.kernel.freebsd.machine import Machine
    from kvm_dbg.symbols.base import Symbol

FRAME_LIMIT = 1024
STACK_LIMIT = 1 << 20  # bytes; a kernel stack has 16 KiB
REGISTERS, FRAME_POINTER, EXCEPTION = "registers", "frame-pointer", "exception"
USER, TASK, UNKNOWN = "USER", "TASK", "?"
FIRST = "fork_trampoline"
FRAME_ALIGNMENT = 16  # bytes, of arm64's struct trapframe


class State(NamedTuple):
    """What is known of the registers in one frame.

    fp: what leads to the frame of the caller, None if unknown. exact: pc is the next instruction, no return address.
    registers: all that were saved, in a frame that was interrupted.
    """

    pc: int
    sp: int
    fp: int | None
    exact: bool
    how: str
    registers: Mapping[str, int] | None = None


def unwind(kernel: Kernel, thread: Thread) -> Iterator[Frame]:
    """Yield the frames of a thread, the innermost first; none if its registers are not known (`thread.why`)."""
    unwinder = Unwinder(cast("FreeBSDKernel", kernel), thread.address)
    machine = unwinder.machine
    registers = thread.registers
    if machine.pc not in registers or machine.sp not in registers:
        return
    state = State(registers[machine.pc], registers[machine.sp], registers.get(machine.chain.register), False, REGISTERS)
    yield from unwinder.frames(state)


def is_trap_handler(machine: Machine, name: str) -> bool:
    """Return whether a function has the registers of what it interrupted at its stack pointer."""
    prefix = machine.interrupt_prefix
    return name in machine.trap_handlers or bool(prefix and name[:1] == prefix and name[1:2] not in ("_", ""))


class Unwinder:
    """Unwinds the stack of one thread."""

    def __init__(self, kernel: FreeBSDKernel, thread: int) -> None:
        self._kernel = kernel
        self.machine = kernel.machine
        self._stack = self._find_stack(thread)
        self._trapframe = saved_layout(kernel).trapframe
        self._copy = self._find_copy()

    def _find_copy(self) -> tuple[int, int, int]:
        """Return [start, end) of code that runs from a copy, and how far that is from the original; empty for none."""
        copied = self.machine.copied
        found = self._kernel.symbols.find_many(copied) if copied is not None else {}
        if copied is None or len(found) < len(copied):
            return 0, 0, 0
        distance = read_variable(self._kernel, copied.distance)
        if not distance:
            return 0, 0, 0
        mask = (1 << 8 * self._kernel.arch.pointer_size) - 1
        start = found[copied.start].address + distance & mask
        return start, start + found[copied.end].address - found[copied.start].address, distance

    def _symbol_of(self, state: State) -> Symbol | None:
        """Return the function that a frame is in, None if no symbol is near."""
        pc = state.pc if state.exact else state.pc - 1
        start, end, distance = self._copy
        mask = (1 << 8 * self._kernel.arch.pointer_size) - 1
        return find_symbol(self._kernel, pc - distance & mask if start <= pc < end else pc)

    def _find_stack(self, thread: int) -> tuple[int, int]:
        """Return [start, end) of the thread's own kernel stack; empty if that is not known."""
        try:
            record = thread_layout(self._kernel).read(self._kernel, thread)
            start, pages = record["kstack"], record["kstack_pages"]
        except MISSING:
            return 0, 0
        size = pages << self._kernel.arch.page_shift
        return (start, start + size) if 0 < size <= STACK_LIMIT else (0, 0)

    def frames(self, state: State) -> Iterator[Frame]:
        """Yield the frame of `state` and those of its callers."""
        for _ in range(FRAME_LIMIT):
            why = ""
            caller: State | None = None
            try:
                caller, why = self._caller(state)
            except ReadError as error:
                why = str(error)
            yield self._frame(state, why)
            if caller is None:
                return
            if caller.exact and self._is_user(caller.registers or {}):
                yield Frame(caller.pc, caller.sp, USER, EXCEPTION, exact=True, registers=caller.registers)
                return
            state = caller
        yield self._frame(state, f"more than {FRAME_LIMIT} frames")

    def _frame(self, state: State, why: str) -> Frame:
        low, high = self._stack
        symbol = self._symbol_of(state)
        name, offset, module = None, 0, None
        if symbol is not None and symbol.kind in "tTwWiI?":
            start, end, distance = self._copy
            offset = state.pc - symbol.address - (distance if start <= state.pc - 1 < end else 0)
            offset &= (1 << 8 * self._kernel.arch.pointer_size) - 1
            name, module = symbol.name, symbol.module
        stack = TASK if low <= state.sp < high else UNKNOWN
        return Frame(state.pc, state.sp, stack, state.how, name, offset, module, state.exact, state.registers, why)

    def _caller(self, state: State) -> tuple[State | None, str]:
        """Return the caller of a frame, None where there is none, and why if that is not as it should be.

        Raises:
            ReadError: the frame is not in the image.
        """
        kernel, chain = self._kernel, self.machine.chain
        if kernel.arch.is_user(state.pc):
            return None, f"{state.pc:#x} is no address of the kernel"
        name = self._name_of(state)
        if is_trap_handler(self.machine, name):
            return self._interrupted(state, name)
        if state.fp is None:
            return None, "the frame pointer is not known"
        if state.fp == 0 or kernel.arch.is_user(state.fp):
            return None, ""
        mask = (1 << 8 * kernel.arch.pointer_size) - 1
        link = read_pointer(kernel, state.fp + chain.link & mask)
        if not link:
            return None, ""
        back = read_pointer(kernel, (link if chain.back_in_caller else state.fp) + chain.back & mask)
        if not back:
            return None, "the return address is 0"
        if link == state.fp:
            return None, f"the frame at {link:#x} is its own caller's"
        sp = link if chain.back_in_caller else state.fp + chain.above & mask
        return State(back, sp, link, False, FRAME_POINTER), ""

    def _name_of(self, state: State) -> str:
        symbol = self._symbol_of(state)
        return "" if symbol is None else symbol.name

    def _interrupted(self, state: State, name: str) -> tuple[State | None, str]:
        """Return what the trap handler `name` interrupted. Raises ReadError."""
        kernel, machine = self._kernel, self.machine
        size = max(self._trapframe.values()) + kernel.arch.pointer_size
        place = state.sp + machine.trap_above
        if machine.trap_below_frame and state.fp:
            place = state.fp + -size // FRAME_ALIGNMENT * FRAME_ALIGNMENT
        data = kernel.read(place, size)
        saved = decode_registers(kernel, self._trapframe, data)
        pc = saved[machine.pc]
        if name == FIRST and not pc:
            return None, ""
        sp = saved.get(machine.sp, place + len(data))
        caller = State(pc, sp, saved.get(machine.chain.register), True, EXCEPTION, saved)
        if not self._is_user(saved) and kernel.arch.is_user(pc):
            return None, f"the trap frame at {place:#x} has {pc:#x} for an address of the kernel"
        return caller, ""

    def _is_user(self, saved: Mapping[str, int]) -> bool:
        """Return whether a trap frame is of code in user space."""
        if self.machine.trap_user is None:
            return self._kernel.arch.is_user(saved[self.machine.pc])
        register, mask, value = self.machine.trap_user
        return saved.get(register, 0) & mask == value
