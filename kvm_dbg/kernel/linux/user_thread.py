"""The threads of a process as user space left them: with their registers at the entry to the kernel.

Sources: arch/x86/include/asm/segment.h (__USER32_CS: the selector of 32-bit code), include/linux/mm_types.h
(saved_auxv: what binfmt_elf put onto the first stack, pairs of words up to AT_NULL's), fs/compat_binfmt_elf.c (words of
4 bytes for programs of 32 bits).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError, KvmDbgError, MemberNotFound, ReadError, SymbolNotFound, TypeNotFound
from kvm_dbg.kernel.base import UserThread
from kvm_dbg.kernel.layout import Layout, Record
from kvm_dbg.kernel.linux.register import read_cpu_states
from kvm_dbg.kernel.linux.task import read_threads, task_layout, thread_head_offset
from kvm_dbg.kernel.linux.user_register import COMPAT_CS, UserRegisterReader

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import CpuState, Kernel, Process

AT_NULL = 0
MISSING = (ReadError, CorruptError, SymbolNotFound, TypeNotFound, MemberNotFound)


def read_user_threads(kernel: Kernel, process: Process) -> tuple[list[UserThread], list[str]]:
    """Return the threads of `process`, its first one first, and what is missing from them, in sentences.

    Raises:
        ReadError: the process itself cannot be read.
        UnsupportedError: its processor is not known.
    """
    tasks, remarks = read_tasks(kernel, process)
    threads = []
    for task, found in for_each_user_registers(kernel, tasks):
        if isinstance(found, KvmDbgError):
            threads.append(UserThread(task["pid"], task.text("comm"), {}, False, str(found)))
        else:
            threads.append(UserThread(task["pid"], task.text("comm"), found, found["cs"] == COMPAT_CS))
    return threads, remarks


def read_tasks(kernel: Kernel, process: Process) -> tuple[list[Record], list[str]]:
    """Return the tasks of the threads of `process`, its first one first, and what is missing from them. See above."""
    leader = task_layout(kernel).read(kernel, process.address)
    tasks, failure = read_threads(kernel, leader, thread_head_offset(kernel))
    tasks.sort(key=lambda task: task.address != leader.address)
    return tasks, [f"some threads are missing: {failure}"] if failure is not None else []


def for_each_user_registers(
    kernel: Kernel, tasks: list[Record]
) -> Iterator[tuple[Record, dict[str, int] | KvmDbgError]]:
    """Yield each task with the registers of its user code, or with the reason why they are not known.

    Raises:
        UnsupportedError: of this processor, none are.
    """
    reader = UserRegisterReader(kernel)
    try:
        states: dict[int | None, CpuState] = {state.task_address: state for state in read_cpu_states(kernel)}
    except MISSING:
        states = {}
    for task in tasks:
        try:
            yield task, reader.read(task, states.get(task.address))
        except MISSING as error:
            yield task, error


def read_auxiliary_vector(kernel: Kernel, process: Process, word_size: int) -> bytes:
    """Return pairs of words up to AT_NULL's, of 8 bytes; 4 for 32-bit programs. Raises ReadError, MemberNotFound."""
    mm = task_layout(kernel).read(kernel, process.address)["mm"]
    data = Layout(kernel.types, "struct mm_struct", {"auxv": "saved_auxv"}).read(kernel, mm).bytes("auxv")
    for at in range(0, len(data) - 2 * word_size + 1, 2 * word_size):
        if int.from_bytes(data[at : at + word_size], "little") == AT_NULL:
            return data[: at + 2 * word_size]
    return data
