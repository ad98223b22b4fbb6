"""Arguments and environments of processes, read in their own memory.

Sources: sys/sys/exec.h (struct ps_strings), sys/sys/proc.h (p_psstrp: where it is in the process), libkvm's kvm_proc.c
for the limits: no more strings than ARG_MAX. Zombies and the kernel's own process have none. Every program has a
ps_strings that leads to its vectors (sys/kern/kern_exec.c): one of zeros alone is a page that is missing from an image
that cannot say so, like raw RAM. Programs of 32 bits have a struct ps_strings32 (sys/compat/netbsd32/netbsd32.h).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import CommandError, CorruptError
from kvm_dbg.kernel.layout import Layout
from kvm_dbg.kernel.netbsd.proc import find_proc
from kvm_dbg.kernel.netbsd.space import user_space
from kvm_dbg.kernel.netbsd.state import PK_32

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel, Process

ARG_MAX = 256 * 1024  # sys/sys/syslimits.h
PAGE = 4096
NARROW = 4  # bytes of a pointer in a program of 32 bits
USRSTACK = 0x7F80_0000_0000  # sys/arch/amd64/include/vmparam.h: where ps_strings ends in kernels without p_psstrp
STRINGS = {"argv": "ps_argvstr", "argc": "ps_nargvstr", "env": "ps_envstr", "envc": "ps_nenvstr"}


def read_arguments(kernel: Kernel, process: Process) -> list[bytes] | None:
    """Return argv; None for the kernel's process and for zombies. Raises ReadError, CorruptError."""
    return _read(kernel, process, "argv", "argc")


def read_environment(kernel: Kernel, process: Process) -> list[bytes] | None:
    """Return the environment; None for the kernel's process and for zombies. Raises ReadError, CorruptError."""
    return _read(kernel, process, "env", "envc")


def _read(kernel: Kernel, process: Process, vector: str, count: str) -> list[bytes] | None:
    proc = find_proc(kernel, process.address)
    if proc is None or process.kernel_thread or process.state == "Z":
        return None
    try:
        space = user_space(kernel, proc)
    except CommandError:
        return None
    order = kernel.arch.byteorder
    if proc["flag"] & PK_32 and kernel.arch.pointer_size > NARROW:
        word, place = NARROW, proc.get("psstrp")
        values = struct.unpack("<4I", space.read(place, NARROW * len(STRINGS)))
        strings = dict(zip(STRINGS, values, strict=True))
    else:
        word = kernel.arch.pointer_size
        layout = Layout(kernel.types, "struct ps_strings", STRINGS, order)
        place = proc["psstrp"] if "psstrp" in proc or word == NARROW else USRSTACK - layout.struct_size
        strings = layout.read(space, place).numbers
    number = strings[count]
    if not any(strings.values()):
        raise _blank(process, place, "ps_strings")
    if not 0 <= number <= ARG_MAX:
        raise CorruptError(place, f"process {process.pid} says that it has {number} strings")
    pointers = space.read(strings[vector], number * word) if number else b""
    if number and not any(pointers[:word]):
        raise _blank(process, strings[vector], "vector")
    found: list[bytes] = []
    size = 0
    for at in range(0, len(pointers), word):
        pointer = int.from_bytes(pointers[at : at + word], "little")
        if not pointer:
            break
        found.append(read_string(space, pointer, ARG_MAX))
        size += len(found[-1]) + 1
        if size > ARG_MAX:
            raise CorruptError(pointer, f"the strings of process {process.pid} have more than {ARG_MAX} bytes")
    first = int.from_bytes(pointers[:word], "little")
    if found and not found[0] and not any(space.read(first & -PAGE, PAGE)):
        raise _blank(process, first, "first string")
    return found


def _blank(process: Process, place: int, what: str) -> CorruptError:
    """Return the error for memory that no program has so."""
    return CorruptError(
        place, f"the {what} of process {process.pid} has nothing but zeros: they stand for a page that is missing"
    )
