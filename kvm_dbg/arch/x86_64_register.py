"""x86_64's registers: gdb's order, the kernel's note of a CPU, QEMU's note of a CPU.

Sources: gdb's features/i386/64bit-core.xml and 64bit-segments.xml (names and order); Linux
include/uapi/linux/elfcore.h and arch/x86/include/asm/user_64.h (struct elf_prstatus: pr_pid at 32, pr_reg, a struct
user_regs_struct, at 112, 336 bytes in all); QEMU target/i386/arch_dump.c (struct QEMUCPUState, version 1:
u32 version and size, 18 general registers, ten segments of 24 bytes, cr[5], and since QEMU 3.0 kernel_gs_base).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from kvm_dbg.arch.base import Register
from kvm_dbg.errors import CorruptError

# fmt: off
REGISTERS = (
    *(Register(name, 64) for name in (
        "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
        "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip",
    )),
    *(Register(name, 32) for name in ("eflags", "cs", "ss", "ds", "es", "fs", "gs")),
    Register("fs_base", 64),
    Register("gs_base", 64),
)

PRSTATUS_PID_OFFSET = 32
PRSTATUS_REGS_OFFSET = 112
USER_REGS = (  # struct user_regs_struct
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)
QEMU_GENERAL = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "eflags",
)
QEMU_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")
# fmt: on

USER_REGS_FORMAT = struct.Struct(f"<{len(USER_REGS)}Q")
QEMU_FORMAT = struct.Struct("<II18Q" + "IIIIQ" * len(QEMU_SEGMENTS) + "5Q")
QEMU_VERSION = 1


class QemuCpuState(NamedTuple):
    """One CPU as QEMU's note has it.

    registers: by gdb's names, segments' selectors and the bases of fs and gs among them. control: cr0..cr4.
    kernel_gs_base: MSR_KERNEL_GS_BASE, None if the note is of an older QEMU.
    """

    registers: Mapping[str, int]
    control: tuple[int, ...]
    kernel_gs_base: int | None


def parse_prstatus(desc: bytes) -> tuple[int, dict[str, int]]:
    """Return (pr_pid, registers by name) of an NT_PRSTATUS descriptor.

    Raises:
        CorruptError: it is too short.
    """
    end = PRSTATUS_REGS_OFFSET + USER_REGS_FORMAT.size
    if len(desc) < end:
        raise CorruptError(0, f"an NT_PRSTATUS note of {len(desc)} bytes is too short for x86_64: {end} are needed")
    values = USER_REGS_FORMAT.unpack_from(desc, PRSTATUS_REGS_OFFSET)
    pid = int.from_bytes(desc[PRSTATUS_PID_OFFSET : PRSTATUS_PID_OFFSET + 4], "little", signed=True)
    return pid, dict(zip(USER_REGS, values, strict=True))


def parse_qemu_cpu_state(desc: bytes) -> QemuCpuState:
    """Return what a note called "QEMU" of type 0 says.

    Raises:
        CorruptError: it is too short, or of a version that is not known.
    """
    if len(desc) < QEMU_FORMAT.size:
        raise CorruptError(0, f"a QEMU note of {len(desc)} bytes is too short: {QEMU_FORMAT.size} are needed")
    values = QEMU_FORMAT.unpack_from(desc)
    if values[0] != QEMU_VERSION:
        raise CorruptError(0, f"a QEMU note has version {values[0]}: {QEMU_VERSION} is known")
    registers: dict[str, int] = dict(zip(QEMU_GENERAL, values[2:20], strict=True))
    for index, name in enumerate(QEMU_SEGMENTS[:6]):
        selector, _, _, _, base = values[20 + 5 * index : 25 + 5 * index]
        registers[name] = selector
        if name in ("fs", "gs"):
            registers[f"{name}_base"] = base
    control = tuple(values[20 + 5 * len(QEMU_SEGMENTS) :])
    kernel_gs_base = None
    if len(desc) >= QEMU_FORMAT.size + 8:
        kernel_gs_base = int.from_bytes(desc[QEMU_FORMAT.size : QEMU_FORMAT.size + 8], "little")
    return QemuCpuState(registers, control, kernel_gs_base)


def make_qemu_cpu_state(registers: Mapping[str, int]) -> bytes:
    """Return the descriptor that QEMU would write of a CPU with these registers; those that are missing are zeros.

    registers: by gdb's names, control registers as "cr0" to "cr4" and MSR_KERNEL_GS_BASE as "k_gs_base" among them.
    """
    mask = (1 << 64) - 1
    segments: list[int] = []
    for name in QEMU_SEGMENTS:
        segments += (registers.get(name, 0) & 0xFFFF, 0, 0, 0, registers.get(f"{name}_base", 0) & mask)
    general = [registers.get(name, 0) & mask for name in QEMU_GENERAL]
    control = [registers.get(f"cr{number}", 0) & mask for number in range(5)]
    kernel_base = (registers.get("k_gs_base", 0) & mask).to_bytes(8, "little")
    return QEMU_FORMAT.pack(QEMU_VERSION, QEMU_FORMAT.size + 8, *general, *segments, *control) + kernel_base
