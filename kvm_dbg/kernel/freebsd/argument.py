"""Arguments and environments of processes.

Sources: struct pargs in sys/sys/proc.h: the kernel's own copy of the arguments, unless they are longer than
kern.ps_arg_cache_limit; sys/sys/exec.h, struct ps_strings: where both are in the process's memory;
sys/kern/kern_proc.c, proc_getargv(), get_ps_strings(). ps_strings is at the end of the stack: sv_psstringssz bytes
below vm_stacktop since 13.1, at sv_psstrings before that. A process of 32 bits (SV_ILP32) has it in words of 32 bits.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import CommandError, CorruptError, MemberNotFound, TypeNotFound, UnsupportedError
from kvm_dbg.kernel.freebsd.offset import require_types
from kvm_dbg.kernel.freebsd.proc import proc_layout
from kvm_dbg.kernel.freebsd.user import has_memory, user_space
from kvm_dbg.kernel.layout import Layout, Names, Record

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel, Process

LENGTH_LIMIT = 1 << 20  # bytes; kern.ps_arg_cache_limit is 256 to a few thousand
ARG_MAX = 512 * 1024  # bytes of all strings, sys/sys/syslimits.h; as many strings at most
SV_ILP32 = 0x100  # sys/sys/sysent.h
SYSENT: dict[str, Names] = {
    "flags": "sv_flags",
    "size": ("sv_psstringssz", None),
    "place": ("sv_psstrings", None),
}
ARGUMENTS, ENVIRONMENT = 0, 2  # where ps_strings has the address of each; the number of strings is behind it


def read_arguments(kernel: Kernel, process: Process) -> list[bytes] | None:
    """Return argv; None for processes of the kernel and for zombies.

    Raises:
        ReadError, MemberNotFound: it cannot be read.
        CorruptError: its length is impossible.
    """
    require_types(kernel, "arguments")
    proc = proc_layout(kernel).read(kernel, process.address)
    if not has_memory(proc):
        return None
    if not proc["args"]:
        return _read_strings(kernel, proc, ARGUMENTS)
    names = {"length": "ar_length", "args": "ar_args"}
    pargs = Layout(kernel.types, "struct pargs", names, kernel.arch.byteorder).read(kernel, proc["args"])
    length = pargs["length"]
    if not 0 <= length <= LENGTH_LIMIT:
        raise CorruptError(proc["args"], f"process {process.pid} has arguments of {length} bytes")
    words = kernel.read(pargs.at("args"), length).split(b"\0")
    return words[:-1] if words and not words[-1] else words


def read_environment(kernel: Kernel, process: Process) -> list[bytes] | None:
    """Return the environment; None for processes of the kernel and for zombies. Raises as `read_arguments`."""
    require_types(kernel, "environments")
    proc = proc_layout(kernel).read(kernel, process.address)
    return _read_strings(kernel, proc, ENVIRONMENT) if has_memory(proc) else None


def _read_strings(kernel: Kernel, proc: Record, vector: int) -> list[bytes]:
    """Return strings out of a process's memory. Raises ReadError, CorruptError, MemberNotFound, UnsupportedError."""
    try:
        space = user_space(kernel, proc)
    except CommandError as error:
        raise UnsupportedError(str(error)) from error
    sysent = Layout(kernel.types, "struct sysentvec", SYSENT, kernel.arch.byteorder).read(kernel, proc["sysent"])
    word = 4 if sysent["flags"] & SV_ILP32 else kernel.arch.pointer_size
    order = "<" if kernel.arch.byteorder == "little" else ">"
    code = "I" if word == 4 else "Q"
    form = f"{order}{code}I" if word == 4 else f"{order}{code}I4x"
    size = struct.calcsize(form)
    place = _find_strings(kernel, proc, sysent)
    start, count = struct.unpack(form, space.read(place + size * (vector // 2), size))
    if count > ARG_MAX:
        raise CorruptError(place, f"process {proc['pid']} says that it has {count} strings")
    pointers = struct.unpack(f"{order}{count}{code}", space.read(start, count * word)) if count else ()
    found: list[bytes] = []
    total = 0
    for pointer in pointers:
        if not pointer:
            break
        found.append(read_string(space, pointer, ARG_MAX))
        total += len(found[-1]) + 1
        if total > ARG_MAX:
            raise CorruptError(pointer, f"the strings of process {proc['pid']} have more than {ARG_MAX} bytes")
    return found


def _find_strings(kernel: Kernel, proc: Record, sysent: Record) -> int:
    """Return the address of a process's ps_strings. Raises ReadError, MemberNotFound."""
    try:
        layout = Layout(kernel.types, "struct vmspace", {"top": "vm_stacktop"}, kernel.arch.byteorder)
    except (MemberNotFound, TypeNotFound):
        return sysent["place"]
    return layout.read(kernel, proc["vmspace"])["top"] - sysent["size"]
