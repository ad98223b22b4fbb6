"""Notes of a process's core file, with the bytes that Linux would have written itself.

Sources: include/uapi/linux/elfcore.h, include/linux/elfcore.h, elfcore-compat.h and fs/binfmt_elf.c (struct
elf_prstatus of 336 bytes, its registers a struct user_regs_struct at 112; struct elf_prpsinfo of 136 bytes; NT_FILE:
count, page size, for each file's mapping its start, end and offset in pages, then the names; NT_AUXV:
mm_struct.saved_auxv up to AT_NULL), include/uapi/linux/elf.h (types). All words are 64 bits: x86_64.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvm_dbg.arch.x86_64_register import USER_REGS, USER_REGS_FORMAT
from kvm_dbg.errors import KvmDbgError, UnsupportedError
from kvm_dbg.image.base import Note
from kvm_dbg.kernel.layout import Layout, Record
from kvm_dbg.kernel.linux.argument import read_arguments
from kvm_dbg.kernel.linux.task import LETTERS, task_layout
from kvm_dbg.kernel.linux.user_register import COMPAT_CS
from kvm_dbg.kernel.linux.user_thread import MISSING, for_each_user_registers, read_auxiliary_vector, read_tasks

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel, MemoryMapping, Process

NT_PRSTATUS, NT_PRPSINFO, NT_AUXV, NT_FILE = 1, 3, 6, 0x46494C45
PRSTATUS = struct.Struct("<3i H 2x 2Q 4i 8q 216s i 4x")
PRPSINFO = struct.Struct("<3c b 4x Q 2I 4i 16s 80s")


def read_core_notes(
    kernel: Kernel, process: Process, mappings: Sequence[MemoryMapping]
) -> tuple[list[Note], list[str]]:
    """Return the notes of a core file of `process`, and what is missing from them, in sentences.

    Raises:
        ReadError: the process itself cannot be read.
        UnsupportedError: it runs 32-bit code, or its processor is not known.
    """
    leader = task_layout(kernel).read(kernel, process.address)
    threads, remarks = read_tasks(kernel, process)
    statuses = _statuses(kernel, process, threads, remarks)
    notes = [*statuses[:1], _prpsinfo(kernel, process, leader, remarks)]
    try:
        notes.append(Note("CORE", NT_AUXV, read_auxiliary_vector(kernel, process, 8)))
    except MISSING as error:
        remarks.append(f"the auxiliary vector is missing: {error}")
    notes.append(Note("CORE", NT_FILE, _files(mappings, 1 << kernel.arch.page_shift)))
    return [*notes, *statuses[1:]], remarks


def _statuses(kernel: Kernel, process: Process, threads: list[Record], remarks: list[str]) -> list[Note]:
    signals = Layout(
        kernel.types, "struct task_struct", {"pending": "pending.signal", "blocked": "blocked"}, kernel.arch.byteorder
    )
    notes: list[Note] = []
    narrow = 0
    for task, registers in for_each_user_registers(kernel, threads):
        try:
            if isinstance(registers, KvmDbgError):
                raise registers
            masks = signals.read(kernel, task.address)
            waiting, blocked = (int.from_bytes(masks.bytes(name)[:8], "little") for name in ("pending", "blocked"))
        except MISSING as error:
            remarks.append(f"thread {task['pid']} is left out, its registers are not known: {error}")
            continue
        narrow += registers["cs"] == COMPAT_CS
        words = USER_REGS_FORMAT.pack(*(registers.get(name, 0) & (1 << 64) - 1 for name in USER_REGS))
        unknown = [name for name in USER_REGS if name not in registers]
        if unknown:
            remarks.append(f"thread {task['pid']}: {', '.join(unknown)} are not known and 0")
        ids = (task["pid"], process.ppid or 0, process.pgid or 0, process.sid or 0)
        times = (*_split(task["utime"]), *_split(task["stime"]), 0, 0, 0, 0)
        desc = PRSTATUS.pack(0, 0, 0, 0, waiting, blocked, *ids, *times, words, 0)
        notes.append(Note("CORE", NT_PRSTATUS, desc))
    if narrow and narrow == len(notes):
        raise UnsupportedError("a core file of a 32-bit process")
    return notes


def _split(nanoseconds: int) -> tuple[int, int]:
    """Return a struct timeval."""
    return nanoseconds // 10**9, nanoseconds % 10**9 // 1000


def _prpsinfo(kernel: Kernel, process: Process, leader: Record, remarks: list[str]) -> Note:
    try:
        arguments = read_arguments(kernel, process) or []
    except KvmDbgError as error:
        arguments = []
        remarks.append(f"the arguments are missing: {error}")
    words = b" ".join(arguments)[:79]
    letter = process.state if process.state in LETTERS else "."
    desc = PRPSINFO.pack(
        bytes([max(LETTERS.find(letter), 0)]),
        letter.encode(),
        b"\1" if letter == "Z" else b"\0",
        process.nice or 0,
        leader["flags"],
        process.ruid or 0,
        process.rgid or 0,
        process.pid,
        process.ppid or 0,
        process.pgid or 0,
        process.sid or 0,
        leader.bytes("comm")[:15],
        words,
    )
    return Note("CORE", NT_PRPSINFO, desc)


def _files(mappings: Sequence[MemoryMapping], page_size: int) -> bytes:
    known = [one for one in mappings if one.is_file and one.path is not None]
    head = struct.pack("<2Q", len(known), page_size)
    places = b"".join(struct.pack("<3Q", one.start, one.end, one.offset // page_size) for one in known)
    return head + places + b"".join((one.path or "").encode("utf-8", "surrogateescape") + b"\0" for one in known)
