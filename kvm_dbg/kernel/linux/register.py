"""Registers of CPUs, from the image's notes or the kernel's own memory, and of sleeping tasks, from their stacks.

Sources: kernel/crash_core.c and kexec_core.c (`crash_notes`: per CPU a buffer with its NT_PRSTATUS note, empty if it
never saved one; /proc/vmcore shows them in the order of CPUs, empty ones left out; of segment registers only cs and ss
are saved, arch/x86/include/asm/elf.h ELF_CORE_COPY_KERNEL_REGS); QEMU dump/dump.c and target/i386/arch_dump.c (for each
CPU in order a note NT_PRSTATUS, pr_pid = index + 1, and a note "QEMU" with the base of gs, which in the kernel is the
CPU's per-CPU offset, and while user code runs is swapped away to MSR_KERNEL_GS_BASE); arch/x86/include/asm/switch_to.h
(struct inactive_task_frame: what __switch_to_asm leaves at thread.sp, the return address last).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kvm_dbg.arch.x86_64_register import parse_qemu_cpu_state
from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.base import CpuState
from kvm_dbg.kernel.layout import Layout, Names, read_number, read_pointer, remembered
from kvm_dbg.kernel.linux.cpu import read_current_tasks, read_per_cpu_offsets

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

NT_PRSTATUS = 1
NOTE_SIZE_LIMIT = 4096  # bytes of one note in crash_notes; a note_buf_t has about 400
NOT_SAVED = frozenset(("fs_base", "gs_base", "ds", "es", "fs", "gs"))  # by the kernel; its notes have zeros there

# The frame of a sleeping task by architecture: register -> member of struct inactive_task_frame.
SWITCH_FRAMES: Mapping[str, dict[str, Names]] = {
    "x86_64": {"rbx": "bx", "rbp": "bp", "rip": "ret_addr", "r12": "r12", "r13": "r13", "r14": "r14", "r15": "r15"},
}
STACK_POINTERS = {"x86_64": "rsp"}


def read_cpu_states(kernel: Kernel) -> list[CpuState]:
    """Return one state per online CPU, ascending; `registers` is empty where nothing recorded them.

    The kernel's own crash notes come first, for they say which CPU they are of; then QEMU's, then the image's.

    Raises:
        ReadError, CorruptError: not even the CPUs are known.
    """
    cpus = read_per_cpu_offsets(kernel)
    with kernel.image.still():  # of a machine that runs, registers and tasks of one moment
        try:
            tasks = read_current_tasks(kernel)
        except (ReadError, SymbolNotFound, TypeNotFound, MemberNotFound):
            tasks = {}
        found = _read_crash_notes(kernel, cpus)
        source = "NT_PRSTATUS note that the kernel saved"
        if not found:
            found, source = _read_qemu_notes(kernel, cpus), "QEMU's CPU state"
        if not found:
            found, source = _read_image_notes(kernel, cpus, tasks), "NT_PRSTATUS note of the image"
    if kernel.image.ran_on:
        source += " of a moment, of a CPU that ran on"
    return [CpuState(cpu, found.get(cpu, {}), tasks.get(cpu), source if found.get(cpu) else "") for cpu in cpus]


def read_noted_states(kernel: Kernel) -> list[CpuState]:
    """Return one state per CPU that the image's notes have registers of, numbered in the order of the notes.

    For images whose memory does not tell which CPUs there are: what they ran is not known then.
    """
    for reader, name, source in (
        (_read_qemu_notes, "QEMU", "QEMU's CPU state"),
        (_read_unpaired_notes, "CORE", "NT_PRSTATUS note of the image"),
    ):
        places = {cpu: ~cpu for cpu in range(sum(note.name == name for note in kernel.image.notes))}  # no offset is < 0
        found = reader(kernel, places)
        if any(found.values()):
            return [CpuState(cpu, found[cpu], None, source) for cpu in sorted(found) if found[cpu]]
    return []


def _read_unpaired_notes(kernel: Kernel, cpus: Mapping[int, int]) -> dict[int, Mapping[str, int]]:
    return _read_image_notes(kernel, cpus, {})


def _read_crash_notes(kernel: Kernel, cpus: Mapping[int, int]) -> dict[int, Mapping[str, int]]:
    """Return CPU -> registers of the notes in `crash_notes`, which only a crash fills."""
    symbol = kernel.symbols.find("crash_notes")
    if symbol is None:
        return {}
    mask = (1 << 8 * kernel.arch.pointer_size) - 1
    found: dict[int, Mapping[str, int]] = {}
    try:
        buffer = read_pointer(kernel, symbol.address)
        for cpu, offset in cpus.items():
            address = (buffer + offset) & mask
            name_size, size, kind = (read_number(kernel, address + 4 * index, 4) for index in range(3))
            if not name_size or kind != NT_PRSTATUS or size > NOTE_SIZE_LIMIT or name_size > 16:
                continue
            _, registers = kernel.arch.parse_prstatus(kernel.read(address + 12 + (name_size + 3 & ~3), size))
            found[cpu] = _keep_known(kernel, registers, NOT_SAVED)
    except (ReadError, CorruptError):
        pass  # then the image's notes must do
    return {cpu: registers for cpu, registers in found.items() if registers}


def _read_qemu_notes(kernel: Kernel, cpus: Mapping[int, int]) -> dict[int, Mapping[str, int]]:
    """Return CPU -> registers of QEMU's notes; each CPU is known by its per-CPU offset, else by its place."""
    if kernel.arch.name != "x86_64":
        return {}
    by_offset = {offset: cpu for cpu, offset in cpus.items()}
    found: dict[int, Mapping[str, int]] = {}
    rest: list[Mapping[str, int]] = []
    for note in kernel.image.notes:
        if note.name != "QEMU" or note.type != 0:
            continue
        try:
            state = parse_qemu_cpu_state(note.desc)
        except CorruptError:
            rest.append({})
            continue
        bases = (state.registers.get("gs_base"), state.kernel_gs_base)
        cpu = next((by_offset[base] for base in bases if base in by_offset), None)
        if cpu is None or cpu in found:
            rest.append(dict(state.registers))
        else:
            found[cpu] = state.registers
    found.update(zip([cpu for cpu in cpus if cpu not in found], rest, strict=False))
    return {cpu: _keep_known(kernel, registers, frozenset()) for cpu, registers in found.items()}


def _read_image_notes(
    kernel: Kernel, cpus: Mapping[int, int], tasks: Mapping[int, int]
) -> dict[int, Mapping[str, int]]:
    """Return CPU -> registers of the image's NT_PRSTATUS notes.

    A kernel's note has the PID of the task that the CPU ran: it tells which CPU it is of. Where that does not, as
    for idle CPUs (PID 0), notes and remaining CPUs are paired in order.
    """
    notes = []
    for note in kernel.image.notes:
        if note.name == "CORE" and note.type == NT_PRSTATUS:
            try:
                notes.append(kernel.arch.parse_prstatus(note.desc))
            except CorruptError:
                notes.append((0, {}))
    found: dict[int, Mapping[str, int]] = {}
    rest: list[Mapping[str, int]] = []
    pids = {} if len(notes) == len(cpus) else _pids_of(kernel, tasks)
    for pid, registers in notes:
        cpu = pids.get(pid) if pid else None
        if cpu is None or cpu in found:
            rest.append(registers)
        else:
            found[cpu] = registers
    found.update(zip([cpu for cpu in cpus if cpu not in found], rest, strict=False))
    return {cpu: _keep_known(kernel, registers, NOT_SAVED) for cpu, registers in found.items()}


def _pids_of(kernel: Kernel, tasks: Mapping[int, int]) -> dict[int, int]:
    """Return PID -> CPU of the tasks that CPUs run."""
    pids: dict[int, int] = {}
    offset = kernel.types.offset_of("struct task_struct", "pid")
    for cpu, address in tasks.items():
        try:
            pids[read_number(kernel, address + offset, 4, signed=True)] = cpu
        except ReadError:
            continue
    return pids


def _keep_known(kernel: Kernel, registers: Mapping[str, int], unknown: frozenset[str]) -> Mapping[str, int]:
    """Return the registers that debuggers know and that were recorded; none if the whole note is zeros."""
    if not any(registers.values()):
        return {}
    names = {register.name for register in kernel.arch.registers}
    return {name: value for name, value in registers.items() if name in names and name not in unknown}


class SwitchFrame:
    """Reads the registers that a sleeping task will have when __switch_to_asm returns to it."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._layout = remembered(kernel, _make_frame)
        self._pointer = STACK_POINTERS.get(kernel.arch.name, "")

    def read(self, sp: int) -> dict[str, int]:
        """Return the saved registers at `sp`, the task's thread.sp; all others are unknown. Raises ReadError."""
        if self._layout is None:
            return {}
        frame = self._layout.read(self._kernel, sp)
        return {**frame.numbers, self._pointer: sp + self._layout.struct_size}


def _make_frame(kernel: Kernel) -> Layout | None:
    members = SWITCH_FRAMES.get(kernel.arch.name)
    if members is None or kernel.types.find_type("struct inactive_task_frame") is None:
        return None
    return Layout(kernel.types, "struct inactive_task_frame", members, kernel.arch.byteorder)
