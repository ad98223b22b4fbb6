"""What FreeBSD keeps where on each processor: saved registers, frames, interrupted code, and its page tables.

Facts, all from FreeBSD's sys/ unless said otherwise:
- `struct pcb`, where a thread that does not run has its registers: amd64, arm64, i386, riscv, powerpc
  (include/pcb.h; "used by kernel debuggers, their ABI should be preserved"). The program counter there is the return
  address of cpu_switch() or savectx(). arm64's holds x19 to x30 since __FreeBSD_version 1400084 (commit 1c1f31a5e517),
  before that x0 to x30 and a word between x30 and the stack pointer. powerpc's cpu_switch() does not save r13, whose
  place in it is then of another time (powerpc/powerpc/swtch64.S).
- `struct trapframe`, what interrupted code had in its registers: include/frame.h of the same. arm64's has spsr and esr
  of 64 bits, and far, since 1400084; before that spsr and esr shared a word.
- Which functions have a trapframe at their stack pointer: amd64/amd64/exception.S, arm64/arm64/exception.S,
  riscv/riscv/exception.S, i386/i386/exception.S; those that end a system call or a trap have fixed names, and the
  handlers of interrupts begin with X and no underscore (IDTVEC). arm64's have it right below their frame pointer, which
  is all that is known there: a function's frame pointer does not tell how large its frame is. i386's run from a copy
  since 12, where `setidt_disp` says (i386/i386/machdep.c).
- Frames by the ABIs of the processors: the System V ABI for x86-64 and i386, AAPCS64, the RISC-V ELF psABI (the frame
  pointer is the end of the frame, its saved value two words below), the Power ELF ABI (the back chain).
- Page tables: amd64/amd64/pmap.c (KPML4phys), i386/i386/pmap_{nopae,pae}.c (IdlePTD, IdlePTD_nopae, IdlePDPT),
  arm64/arm64/locore.S (pagetable_l0_ttbr1), riscv/riscv/locore.S (pagetable_l1), lib/libkvm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kvm_dbg.errors import UnsupportedError


class Chain(NamedTuple):
    """How frames hang together.

    register: what points to a frame. link: offset in bytes from there of the caller's value of it, back: of the return
    address; back_in_caller: counted from the caller's frame, not from this one. above: offset of the caller's stack
    pointer.
    """

    register: str
    link: int
    back: int
    above: int
    back_in_caller: bool = False


class Root(NamedTuple):
    """A symbol that leads to the kernel's top page table.

    holds: it is a variable with the table's physical address; else it is the table. levels: of tables.
    """

    symbol: str
    levels: int
    holds: bool = True


class Copied(NamedTuple):
    """Code that runs from a copy: symbols of its start and end, and the variable that has the distance of the copy."""

    start: str
    end: str
    distance: str


class Saved(NamedTuple):
    """Where registers are: register -> offset in bytes in struct pcb and in struct trapframe."""

    pcb: Mapping[str, int]
    trapframe: Mapping[str, int]


class Machine(NamedTuple):
    """One processor.

    pcb: register -> offset in struct pcb, in bytes. pc, sp: the names of those registers. trapframe: register -> offset
    in struct trapframe. old: the two of kernels before `changed` (an osreldate), None if they never changed.
    trap_handlers: functions that have one at their stack pointer, plus `trap_above` bytes, or if `trap_below_frame`
    right below their frame pointer; interrupt_prefix: how others of the kind begin. copied: where code runs that was
    linked elsewhere. trap_user: (register, mask, value) that tell user code in a trapframe. roots: see `Root`, the
    likeliest first. alignment: of the kernel in physical memory, bytes.
    """

    name: str
    pcb: Mapping[str, int]
    pc: str
    sp: str
    chain: Chain
    trapframe: Mapping[str, int]
    trap_handlers: frozenset[str]
    interrupt_prefix: str = ""
    trap_above: int = 0
    trap_below_frame: bool = False
    copied: Copied | None = None
    trap_user: tuple[str, int, int] | None = None
    roots: tuple[Root, ...] = ()
    alignment: int = 1 << 21
    old: Saved | None = None
    changed: int = 0


def _words(names: str, size: int = 8, start: int = 0) -> dict[str, int]:
    """Return name -> offset of words that follow each other; "-" is left out."""
    return {name: start + size * index for index, name in enumerate(names.split()) if name != "-"}


def _numbered(prefix: str, first: int, last: int) -> str:
    return " ".join(f"{prefix}{number}" for number in range(first, last + 1))


AMD64 = Machine(
    "x86_64",
    pcb=_words("r15 r14 r13 r12 rbp rsp rbx rip"),
    pc="rip",
    sp="rsp",
    chain=Chain("rbp", 0, 8, 16),
    trapframe=_words("rdi rsi rdx rcx r8 r9 rax rbx rbp r10 r11 r12 r13 r14 r15 - - - - rip cs eflags rsp ss"),
    trap_handlers=frozenset(("calltrap", "fast_syscall_common", "fork_trampoline", "mchk_calltrap", "nmi_calltrap")),
    interrupt_prefix="X",
    trap_user=("cs", 3, 3),
    roots=(Root("KPML4phys", 4),),
)

I386 = Machine(
    "i386",
    pcb=_words("edi esi ebp esp ebx eip", 4),
    pc="eip",
    sp="esp",
    chain=Chain("ebp", 0, 4, 8),
    trapframe=_words("fs es ds edi esi ebp - ebx edx ecx eax - - eip cs eflags", 4),
    trap_handlers=frozenset(("calltrap", "fork_trampoline")),
    interrupt_prefix="X",
    copied=Copied("start_exceptions", "end_exceptions", "setidt_disp"),
    trap_above=4,  # the trap frame is passed by reference: a pointer to it lies below
    trap_user=("cs", 3, 3),
    roots=(Root("IdlePDPT", 3), Root("IdlePTD_nopae", 2), Root("IdlePTD", 2)),
    alignment=1 << 20,
)

ARM64 = Machine(
    "aarch64",
    pcb=_words(f"{_numbered('x', 19, 29)} pc sp"),
    pc="pc",
    sp="sp",
    chain=Chain("x29", 0, 8, 16),
    trapframe=_words(f"sp x30 pc cpsr - - {_numbered('x', 0, 29)}"),
    trap_handlers=frozenset(
        (
            "handle_el1h_sync",
            "handle_el1h_irq",
            "handle_el0_sync",
            "handle_el0_irq",
            "handle_el0_error",
            "fork_trampoline",
        )
    ),
    trap_below_frame=True,
    trap_user=("cpsr", 0xF, 0),
    roots=(Root("pagetable_l0_ttbr1", 4, holds=False), Root("pagetable_l0", 4, holds=False)),
    old=Saved(_words(f"{_numbered('x', 0, 29)} pc - sp"), _words(f"sp x30 pc cpsr {_numbered('x', 0, 29)}")),
    changed=1400084,
)

RISCV = Machine(
    "riscv64",
    pcb=_words(f"pc sp gp tp fp s1 {_numbered('s', 2, 11)}"),
    pc="pc",
    sp="sp",
    chain=Chain("fp", -16, -8, 0),
    trapframe=_words(
        f"ra sp gp tp t0 t1 t2 t3 t4 t5 t6 fp s1 {_numbered('s', 2, 11)} {_numbered('a', 0, 7)} pc sstatus"
    ),
    trap_handlers=frozenset(("cpu_exception_handler_user", "cpu_exception_handler_supervisor")),
    trap_user=("sstatus", 1 << 8, 0),  # SPP: the privilege that was interrupted
    roots=(Root("pagetable_l1", 3, holds=False), Root("pagetable_l0", 4, holds=False)),
)

POWERPC64 = Machine(
    "ppc64",
    pcb=_words(f"r12 - {_numbered('r', 14, 31)} cr r1 r2 pc"),
    pc="pc",
    sp="r1",
    chain=Chain("r1", 0, 16, 0, back_in_caller=True),
    trapframe=_words(f"{_numbered('r', 0, 31)} lr cr xer ctr pc msr"),
    trap_handlers=frozenset(("trapagain", "trapexit", "dbtrap")),
    trap_above=48,
    trap_user=("msr", 1 << 14, 1 << 14),  # PR
)

MACHINES = {machine.name: machine for machine in (AMD64, I386, ARM64, RISCV, POWERPC64)}


def find_machine(arch: str) -> Machine:
    """Return what FreeBSD does on the processor `arch`.

    Raises:
        UnsupportedError: nothing is known of it.
    """
    found = MACHINES.get(arch)
    if found is None:
        raise UnsupportedError(f"FreeBSD on {arch}", f"known are {', '.join(MACHINES)}")
    return found
