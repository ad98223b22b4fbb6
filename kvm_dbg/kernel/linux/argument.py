"""Arguments and environments of processes, as /proc/PID/cmdline and /proc/PID/environ have them.

Source: fs/proc/base.c. mm_struct says where the strings are. If the last byte of the arguments is not NUL, the process
has written a title over them (setproctitle(3)), which may run on into the environment behind: then it is one string,
at most a page of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.linux.mm import read_own_mm, user_space
from kvm_dbg.kernel.linux.task import task_layout

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel, Process
    from kvm_dbg.kernel.layout import Record
    from kvm_dbg.kernel.space import ImageSpace

LIMIT = 1 << 26  # bytes; the kernel allows 3/4 of 8 MiB, include/uapi/linux/binfmts.h and fs/exec.c


def read_arguments(kernel: Kernel, process: Process) -> list[bytes] | None:
    """Return the arguments; None for kernel threads and zombies.

    Raises:
        ReadError: a page of them is swapped out or not in the image.
        CorruptError: mm_struct's addresses cannot be right.
    """
    mm = read_own_mm(kernel, task_layout(kernel).read(kernel, process.address))
    if mm is None:
        return None
    start, end = mm["arg_start"], mm["arg_end"]
    if start >= end:
        return []
    space = user_space(kernel, mm)
    data = _read_area(space, mm, start, end)
    if data[-1:] != b"\0":
        data = _read_title(space, mm, 1 << kernel.arch.page_shift)
    return split_strings(data)


def read_environment(kernel: Kernel, process: Process) -> list[bytes] | None:
    """Return the environment; None for kernel threads and zombies.

    Raises:
        ReadError: a page of it is swapped out or not in the image.
        CorruptError: mm_struct's addresses cannot be right.
    """
    mm = read_own_mm(kernel, task_layout(kernel).read(kernel, process.address))
    if mm is None:
        return None
    start, end = mm["env_start"], mm["env_end"]
    if start >= end:
        return []
    return split_strings(_read_area(user_space(kernel, mm), mm, start, end))


def split_strings(data: bytes) -> list[bytes]:
    """Return the strings that NULs end; what follows the last NUL is one more."""
    strings = data.split(b"\0")
    if not strings[-1]:
        strings.pop()
    return strings


def _read_area(space: ImageSpace, mm: Record, start: int, end: int) -> bytes:
    if end - start > LIMIT:
        raise CorruptError(mm.address, f"the strings of a process take {end - start} bytes")
    return space.read(start, end - start)


def _read_title(space: ImageSpace, mm: Record, page_size: int) -> bytes:
    """Return a title with its NUL, from the arguments and, right behind them, the environment."""
    start, end = mm["arg_start"], mm["arg_end"]
    if mm["env_start"] == end and mm["env_end"] > end:
        end = mm["env_end"]
    part = space.read_partial(start, min(page_size, end - start))
    data = part.data
    if part.missing:
        data = data[: part.missing[0].start - start]
    if not data:
        return space.read(start, 1)  # raises
    title, nul, _ = data.partition(b"\0")
    return title + nul
