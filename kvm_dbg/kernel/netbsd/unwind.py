"""Unwinding an LWP's kernel stack by frame pointers, and across trap frames.

Sources: the kernel is compiled with frame pointers (sys/arch/amd64/conf/Makefile.amd64); sys/arch/amd64/amd64/locore.S,
vector.S and spl.S: entries from user space and interrupted code save all registers in a struct trapframe on the stack
and call C without a frame of their own, so that it lies right behind the return address into them (that of system
calls is do_syscall, later handle_syscall; on i386, sys/arch/i386/i386/locore.S and vector.S push its address first); a
kernel LWP begins in lwp_trampoline, the first one in locore.S, with a frame pointer of 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from kvm_dbg.errors import ReadError
from kvm_dbg.kernel.base import Frame
from kvm_dbg.kernel.bsd.symbolize import find_symbol
from kvm_dbg.kernel.layout import read_pointer
from kvm_dbg.kernel.netbsd.register import MISSING, STACK_LIMIT, names_of, trap_layout

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel, Thread

FRAME_LIMIT = 512
USER_PRIVILEGE = 3  # in the low bits of cs
STARTS = ("lwp_trampoline", "longmode_hi", "start")
STACK, USER = "LWP", "USER"
NARROW = 4  # bytes of a word on i386
KERNEL_HALF = {NARROW: 0xC000_0000, 8: 1 << 63}
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
ENTRIES = ("X", "handle_syscall", "do_syscall", "calltrap", "alltraps", "doreti", "intr", "trap_return")
"""How the names of code begin that saves registers in a trap frame before it calls C."""


def unwind(kernel: Kernel, thread: Thread) -> Iterator[Frame]:
    """Yield the frames of an LWP, the innermost first; none if its registers are not known (`thread.why`)."""
    registers, names = thread.registers, names_of(kernel)
    if names.pc not in registers or names.sp not in registers:
        return
    yield from Walk(kernel, registers[names.sp]).frames(registers, exact=thread.on_cpu and "dumppcb" not in thread.why)


class Walk:
    """One walk over a stack that `sp` is on."""

    def __init__(self, kernel: Kernel, sp: int) -> None:
        self._kernel = kernel
        self._low, self._high = sp - STACK_LIMIT, sp + STACK_LIMIT
        self._word, self._names = kernel.arch.pointer_size, names_of(kernel)
        self._kernel_half = KERNEL_HALF[self._word]

    def frames(self, registers: Mapping[str, int], *, exact: bool) -> Iterator[Frame]:
        """Yield the frames from `registers` on; exact: whether rip is the next instruction."""
        names = self._names
        pc, sp, bp = registers[names.pc], registers[names.sp], registers.get(names.bp, 0)
        how, shown = "registers", None
        for _ in range(FRAME_LIMIT):
            if pc < self._kernel_half:
                yield Frame(pc, sp, USER, how, exact=True, registers=shown)
                return
            name, offset = self._name(pc, exact=exact)
            found = self._caller(name, sp, bp, exact=exact)
            why = found if isinstance(found, str) else ""
            yield Frame(pc, sp, STACK, how, name, offset, None, exact, shown, why)
            if isinstance(found, str):
                return
            how, exact, pc, sp, bp, shown = found

    def _name(self, pc: int, *, exact: bool) -> tuple[str | None, int]:
        symbol = find_symbol(self._kernel, pc if exact else pc - 1)
        return (None, 0) if symbol is None else (symbol.name, pc - symbol.address)

    def _caller(
        self, name: str | None, sp: int, bp: int, *, exact: bool
    ) -> str | tuple[str, bool, int, int, int, Mapping[str, int] | None]:
        """Return the caller (how, exact, pc, sp, bp, registers), "" at the stack's end, or why it is not known."""
        if name in STARTS:
            return ""
        try:
            if name is not None and name.startswith(ENTRIES) and not exact:
                return self._interrupted(sp)
            if not bp:
                return "the frame pointer is 0"
            if not self._low <= bp < self._high or bp < sp - self._word:
                return f"the frame pointer {bp:#x} is not on this stack"
            data = self._kernel.read(bp, 2 * self._word)
        except ReadError as error:
            return f"the stack cannot be read: {error}"
        except MISSING as error:
            return str(error)
        caller, pc = (int.from_bytes(data[at : at + self._word], "little") for at in (0, self._word))
        if pc < self._kernel_half or find_symbol(self._kernel, pc - 1) is None:
            return f"the return address {pc:#x} is in no code of the kernel"
        return "frame-pointer", False, pc, bp + 2 * self._word, caller, None

    def _interrupted(self, sp: int) -> str | tuple[str, bool, int, int, int, Mapping[str, int] | None]:
        """Return what the trap frame at `sp` says was interrupted. Raises ReadError, TypeNotFound, MemberNotFound."""
        layout, names, place = trap_layout(self._kernel), self._names, sp
        if self._word == NARROW and read_pointer(self._kernel, sp) == sp + NARROW:
            place = sp + NARROW  # behind its address, which is the called function's argument
        mask = (1 << 8 * self._word) - 1
        numbers = {name: value & mask for name, value in layout.read(self._kernel, place).numbers.items()}
        numbers |= {name: numbers[name] & 0xFFFF for name in numbers if self._word == NARROW and name in SEGMENTS}
        user = numbers["cs"] & USER_PRIVILEGE == USER_PRIVILEGE
        if user == (numbers[names.pc] >= self._kernel_half) or numbers["cs"] >> 16:
            return f"what is at {place:#x} is no trap frame"
        if self._word == NARROW and not user:  # the processor keeps the stack pointer only where it changes stacks
            numbers[names.sp] = place + layout.offsets[names.sp]
            numbers.pop("ss", None)
        return "exception", True, numbers[names.pc], numbers[names.sp], numbers[names.bp], numbers
