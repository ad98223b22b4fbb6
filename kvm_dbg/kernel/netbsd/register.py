"""Registers of LWPs: of sleeping ones from their stacks, of those on CPUs as far as anybody recorded them.

Sources: sys/arch/{amd64,i386}/include/pcb.h and frame.h (struct pcb at l_addr: pcb_rsp and pcb_rbp; struct switchframe,
which cpu_switchto() leaves at pcb_rsp; struct trapframe; members are ints on i386), sys/arch/amd64/amd64/locore.S
(dumpsys leaves the same at `dumppcb` for the CPU that dumps), sys/arch/x86/include/cpu.h (gs of a CPU in the kernel is
its cpu_info, on i386 fs; ci_ddb_regs: what the debugger saved of a CPU that it stopped). QEMU's notes have both bases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.arch.x86_64_register import parse_qemu_cpu_state
from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.layout import Layout, read_pointer, remembered
from kvm_dbg.kernel.netbsd.cpu import read_cpus

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MISSING = (ReadError, CorruptError, SymbolNotFound, TypeNotFound, MemberNotFound)
STACK_LIMIT = 1 << 16  # bytes: USPACE is 3 to 7 pages


class Names(NamedTuple):
    """What the registers are called that a walk over stacks goes by, and those that frames hold besides."""

    pc: str
    sp: str
    bp: str
    saved: tuple[str, ...]
    trapped: tuple[str, ...]
    flags: str


NAMES = {
    "x86_64": Names(
        "rip", "rsp", "rbp", ("r15", "r14", "r13", "r12", "rbx", "rip"),
        (
            "rdi", "rsi", "rdx", "r10", "r8", "r9", "rcx", "r11", "r12", "r13", "r14", "r15", "rbp", "rbx", "rax",
            "rip", "cs", "rsp", "ss",
        ),
        "rflags",
    ),
    "i386": Names(
        "eip", "esp", "ebp", ("edi", "esi", "ebx", "eip"),
        ("gs", "fs", "es", "ds", "edi", "esi", "ebp", "ebx", "edx", "ecx", "eax", "eip", "cs", "esp", "ss"),
        "eflags",
    ),
}  # fmt: skip
"""Members are called by the registers' names: pcb_rsp, sf_rip, tf_rax, ..."""


def names_of(kernel: Kernel) -> Names:
    """Return the names of the kernel's processor."""
    return NAMES[kernel.arch.name]


def pcb_layout(kernel: Kernel) -> Layout:
    """Return where a pcb has the stack and the frame pointer, "sp" and "bp"."""
    return remembered(kernel, _make_pcb)


def _make_pcb(kernel: Kernel) -> Layout:
    names = names_of(kernel)
    members = {"sp": f"pcb_{names.sp}", "bp": f"pcb_{names.bp}"}
    return Layout(kernel.types, "struct pcb", members, kernel.arch.byteorder)


def switch_layout(kernel: Kernel) -> Layout:
    """Return the registers in a switch frame."""
    return remembered(kernel, _make_switch)


def _make_switch(kernel: Kernel) -> Layout:
    return Layout(
        kernel.types,
        "struct switchframe",
        {name: f"sf_{name}" for name in names_of(kernel).saved},
        kernel.arch.byteorder,
    )


def trap_layout(kernel: Kernel) -> Layout:
    """Return the registers in a trap frame."""
    return remembered(kernel, _make_trap)


def _make_trap(kernel: Kernel) -> Layout:
    names = names_of(kernel)
    members = {name: f"tf_{name}" for name in names.trapped} | {"eflags": f"tf_{names.flags}"}
    return Layout(kernel.types, "struct trapframe", members, kernel.arch.byteorder)


def read_saved(kernel: Kernel, pcb: int) -> dict[str, int]:
    """Return the registers that the pcb at `pcb` and the switch frame on its stack hold. Raises ReadError."""
    names, place = names_of(kernel), pcb_layout(kernel).read(kernel, pcb)
    layout, mask = switch_layout(kernel), (1 << 8 * kernel.arch.pointer_size) - 1
    sp = place["sp"] & mask
    frame = {name: value & mask for name, value in layout.read(kernel, sp).numbers.items()}
    return {**frame, names.bp: place["bp"] & mask, names.sp: sp + layout.struct_size}


def read_dumping(kernel: Kernel) -> dict[str, int] | None:
    """Return the registers of the LWP that wrote the dump, None if none did or they are not known."""
    symbol = kernel.symbols.find("dumppcb")
    if symbol is None:
        return None
    try:
        if not pcb_layout(kernel).read(kernel, symbol.address)["sp"]:
            return None
        registers = read_saved(kernel, symbol.address)
    except MISSING:
        return None
    code = kernel.symbols.find_at(registers[names_of(kernel).pc])
    return registers if code is not None else None


def read_cpu_registers(kernel: Kernel) -> dict[int, tuple[Mapping[str, int], str]]:
    """Return number of a CPU -> (registers, where they are from), of those that somebody recorded."""
    try:
        cpus = read_cpus(kernel)
    except MISSING:
        cpus = {}
    found: dict[int, tuple[Mapping[str, int], str]] = {}
    known = {register.name for register in kernel.arch.registers}
    for number, note in enumerate(note for note in kernel.image.notes if note.name == "QEMU" and note.type == 0):
        try:
            state = parse_qemu_cpu_state(note.desc)
        except CorruptError:
            continue
        bases = (state.registers.get("gs_base"), state.kernel_gs_base, state.registers.get("fs_base"))
        cpu = next((cpus[base] for base in bases if base is not None and base in cpus), number)
        registers = dict(state.registers)
        if "eip" in known:  # QEMU has one note for both, with the names of 64 bits
            registers |= {
                "e" + name[1:]: value & 0xFFFF_FFFF for name, value in state.registers.items() if name[0] == "r"
            }
        found[cpu] = {name: value for name, value in registers.items() if name in known}, "QEMU's CPU state"
    if not found:
        found = _read_stopped(kernel, cpus, known)
    return found


def _read_stopped(kernel: Kernel, cpus: Mapping[int, int], known: set[str]) -> dict[int, tuple[Mapping[str, int], str]]:
    """Return the registers of CPUs that the kernel's debugger stopped."""
    found: dict[int, tuple[Mapping[str, int], str]] = {}
    try:
        offset = kernel.types.offset_of("struct cpu_info", "ci_ddb_regs")
        layout = trap_layout(kernel)
    except MISSING:
        return found
    for place, cpu in cpus.items():
        try:
            frame = read_pointer(kernel, place + offset)
            if frame:
                numbers = layout.read(kernel, frame).numbers
                found[cpu] = {name: numbers[name] for name in numbers if name in known}, "ci_ddb_regs"
        except MISSING:
            continue
    return found
