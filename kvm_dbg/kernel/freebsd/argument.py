"""Arguments of processes: the copy that the kernel keeps (struct pargs, sys/sys/proc.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.freebsd.proc import proc_layout
from kvm_dbg.kernel.layout import Layout

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel, Process

LENGTH_LIMIT = 1 << 20  # bytes; kern.ps_arg_cache_limit is 256 to a few thousand


def read_arguments(kernel: Kernel, process: Process) -> list[bytes] | None:
    """Return argv; None for kernel threads and zombies, and where the kernel keeps no copy: it was too long.

    Raises:
        ReadError, MemberNotFound: it cannot be read.
        CorruptError: its length is impossible.
    """
    if process.kernel_thread or process.state == "Z":
        return None
    address = proc_layout(kernel).read(kernel, process.address)["args"]
    if not address:
        return None
    names = {"length": "ar_length", "args": "ar_args"}
    pargs = Layout(kernel.types, "struct pargs", names, kernel.arch.byteorder).read(kernel, address)
    length = pargs["length"]
    if not 0 <= length <= LENGTH_LIMIT:
        raise CorruptError(address, f"process {process.pid} has arguments of {length} bytes")
    words = kernel.read(pargs.at("args"), length).split(b"\0")
    return words[:-1] if words and not words[-1] else words
