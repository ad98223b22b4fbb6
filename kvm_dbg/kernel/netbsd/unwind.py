"""Unwinding an LWP's kernel stack by frame pointers, and across trap frames.

Sources: the kernel is compiled with frame pointers (sys/arch/amd64/conf/Makefile.amd64); sys/arch/amd64/amd64/locore.S,
vector.S and spl.S: entries from user space and interrupted code save all registers in a struct trapframe on the stack
and call C without a frame of their own, so that it lies right behind the return address into them (that of system
calls is do_syscall, later handle_syscall); a kernel LWP begins
in lwp_trampoline, the first one in locore.S, with a frame pointer of 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from kvm_dbg.errors import ReadError
from kvm_dbg.kernel.base import Frame
from kvm_dbg.kernel.bsd.symbolize import find_symbol
from kvm_dbg.kernel.netbsd.register import MISSING, STACK_LIMIT, trap_layout

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel, Thread

FRAME_LIMIT = 512
WORD = 8
USER_PRIVILEGE = 3  # in the low bits of cs
KERNEL_HALF = 1 << 63
STARTS = ("lwp_trampoline", "longmode_hi", "start")
STACK, USER = "LWP", "USER"
ENTRIES = ("X", "handle_syscall", "do_syscall", "calltrap", "alltraps", "doreti", "intr", "trap_return")
"""How the names of code begin that saves registers in a trap frame before it calls C."""


def unwind(kernel: Kernel, thread: Thread) -> Iterator[Frame]:
    """Yield the frames of an LWP, the innermost first; none if its registers are not known (`thread.why`)."""
    registers = thread.registers
    if "rip" not in registers or "rsp" not in registers:
        return
    yield from Walk(kernel, registers["rsp"]).frames(registers, exact=thread.on_cpu and "dumppcb" not in thread.why)


class Walk:
    """One walk over a stack that `sp` is on."""

    def __init__(self, kernel: Kernel, sp: int) -> None:
        self._kernel = kernel
        self._low, self._high = sp - STACK_LIMIT, sp + STACK_LIMIT

    def frames(self, registers: Mapping[str, int], *, exact: bool) -> Iterator[Frame]:
        """Yield the frames from `registers` on; exact: whether rip is the next instruction."""
        pc, sp, bp = registers["rip"], registers["rsp"], registers.get("rbp", 0)
        how, shown = "registers", None
        for _ in range(FRAME_LIMIT):
            if pc < KERNEL_HALF:
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
            if not self._low <= bp < self._high or bp < sp - WORD:
                return f"the frame pointer {bp:#x} is not on this stack"
            data = self._kernel.read(bp, 2 * WORD)
        except ReadError as error:
            return f"the stack cannot be read: {error}"
        except MISSING as error:
            return str(error)
        caller, pc = int.from_bytes(data[:WORD], "little"), int.from_bytes(data[WORD:], "little")
        if pc < KERNEL_HALF or find_symbol(self._kernel, pc - 1) is None:
            return f"the return address {pc:#x} is in no code of the kernel"
        return "frame-pointer", False, pc, bp + 2 * WORD, caller, None

    def _interrupted(self, sp: int) -> str | tuple[str, bool, int, int, int, Mapping[str, int] | None]:
        """Return what the trap frame at `sp` says was interrupted. Raises ReadError, TypeNotFound, MemberNotFound."""
        numbers = trap_layout(self._kernel).read(self._kernel, sp).numbers
        user = numbers["cs"] & USER_PRIVILEGE == USER_PRIVILEGE
        if user == (numbers["rip"] >= KERNEL_HALF) or numbers["cs"] >> 16:
            return f"what is at {sp:#x} is no trap frame"
        return "exception", True, numbers["rip"], numbers["rsp"], numbers["rbp"], numbers
