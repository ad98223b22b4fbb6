"""Write what QEMU notes of a CPU in a dump of a guest: target/i386/arch_dump.c, struct QEMUCPUState, version 1."""

from __future__ import annotations

import struct
from collections.abc import Mapping

GENERAL = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")


def write_cpu_state(
    registers: Mapping[str, int],
    *,
    cr3: int = 0,
    cr4: int = 0,
    gs_base: int = 0,
    fs_base: int = 0,
    kernel_gs_base: int | None = None,
) -> bytes:
    """Return the descriptor of the note "QEMU", type 0; cs of registers is a selector like those of QEMU's guests."""
    data = struct.pack("<18Q", *(registers.get(name, 0) for name in GENERAL))
    for name in SEGMENTS:
        data += struct.pack(
            "<IIIIQ", registers.get(name, 0), 0xFFFFFFFF, 0, 0, {"gs": gs_base, "fs": fs_base}.get(name, 0)
        )
    data += struct.pack("<5Q", 0x80010033, 0, 0, cr3, cr4)
    if kernel_gs_base is not None:
        data += struct.pack("<Q", kernel_gs_base)
    return struct.pack("<II", 1, len(data) + 8) + data
