"""Arguments and environments of processes, read in their own memory.

Sources: sys/sys/exec.h (struct ps_strings), sys/sys/proc.h (p_psstrp: where it is in the process), libkvm's kvm_proc.c
for the limits: no more strings than ARG_MAX. Zombies and the kernel's own process have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import CommandError, CorruptError
from kvm_dbg.kernel.layout import Layout
from kvm_dbg.kernel.netbsd.proc import find_proc
from kvm_dbg.kernel.netbsd.space import user_space

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel, Process

ARG_MAX = 256 * 1024  # sys/sys/syslimits.h
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
    layout = Layout(kernel.types, "struct ps_strings", STRINGS, kernel.arch.byteorder)
    place = proc.get("psstrp") or USRSTACK - layout.struct_size
    strings = layout.read(space, place)
    number, word = strings[count], kernel.arch.pointer_size
    if not 0 <= number <= ARG_MAX:
        raise CorruptError(place, f"process {process.pid} says that it has {number} strings")
    pointers = space.read(strings[vector], number * word) if number else b""
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
    return found
