"""Registers of LWPs: of sleeping ones from their stacks, of those on CPUs as far as anybody recorded them.

Sources: sys/arch/amd64/include/pcb.h and frame.h (struct pcb at l_addr: pcb_rsp and pcb_rbp; struct switchframe, which
cpu_switchto() leaves at pcb_rsp; struct trapframe), sys/arch/amd64/amd64/locore.S (dumpsys leaves the same at `dumppcb`
for the CPU that dumps), sys/arch/x86/include/cpu.h (gs of a CPU in the kernel is its cpu_info; ci_ddb_regs: what the
debugger saved of a CPU that it stopped); QEMU's note of a CPU has the base of gs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kvm_dbg.arch.x86_64_register import parse_qemu_cpu_state
from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.layout import Layout, read_pointer, remembered
from kvm_dbg.kernel.netbsd.cpu import read_cpus

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MISSING = (ReadError, CorruptError, SymbolNotFound, TypeNotFound, MemberNotFound)
STACK_LIMIT = 1 << 16  # bytes: USPACE is 3 to 7 pages
WORD = 8
SAVED = {name: f"sf_{name}" for name in ("r15", "r14", "r13", "r12", "rbx", "rip")}
TRAPPED = {
    name: f"tf_{name}"
    for name in (
        "rdi", "rsi", "rdx", "r10", "r8", "r9", "rcx", "r11", "r12", "r13", "r14", "r15", "rbp", "rbx", "rax", "rip",
        "cs", "rsp", "ss",
    )
} | {"eflags": "tf_rflags"}  # fmt: skip


def pcb_layout(kernel: Kernel) -> Layout:
    """Return where a pcb has the stack and the frame pointer."""
    return remembered(kernel, _make_pcb)


def _make_pcb(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct pcb", {"rsp": "pcb_rsp", "rbp": "pcb_rbp"}, kernel.arch.byteorder)


def switch_layout(kernel: Kernel) -> Layout:
    """Return the registers in a switch frame."""
    return remembered(kernel, _make_switch)


def _make_switch(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct switchframe", SAVED, kernel.arch.byteorder)


def trap_layout(kernel: Kernel) -> Layout:
    """Return the registers in a trap frame."""
    return remembered(kernel, _make_trap)


def _make_trap(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct trapframe", TRAPPED, kernel.arch.byteorder)


def read_saved(kernel: Kernel, pcb: int) -> dict[str, int]:
    """Return the registers that the pcb at `pcb` and the switch frame on its stack hold. Raises ReadError."""
    place = pcb_layout(kernel).read(kernel, pcb)
    layout = switch_layout(kernel)
    frame = layout.read(kernel, place["rsp"])
    return {**frame.numbers, "rbp": place["rbp"], "rsp": place["rsp"] + layout.struct_size}


def read_dumping(kernel: Kernel) -> dict[str, int] | None:
    """Return the registers of the LWP that wrote the dump, None if none did or they are not known."""
    symbol = kernel.symbols.find("dumppcb")
    if symbol is None:
        return None
    try:
        if not pcb_layout(kernel).read(kernel, symbol.address)["rsp"]:
            return None
        registers = read_saved(kernel, symbol.address)
    except MISSING:
        return None
    code = kernel.symbols.find_at(registers["rip"])
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
        bases = (state.registers.get("gs_base"), state.kernel_gs_base)
        cpu = next((cpus[base] for base in bases if base is not None and base in cpus), number)
        found[cpu] = {name: value for name, value in state.registers.items() if name in known}, "QEMU's CPU state"
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
