"""One process as a debugger of programs sees it: threads, files and memory, and what of them the image lacks."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvm_dbg.commands.mapped_file import MappedFile, find_mapped_files
from kvm_dbg.commands.process import find_process
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError, CorruptError, MemberNotFound, ReadError, UnsupportedError
from kvm_dbg.image.base import Presence
from kvm_dbg.kernel.base import AddressSpaceReader, Kernel, MemoryMapping, Process, UserThread

AT_PHDR, AT_ENTRY = 3, 9  # getauxval(3): addresses in the executable
AUXV_ENTRIES = {4: struct.Struct("<2I"), 8: struct.Struct("<2Q")}  # by the size of a word
MAX_STACK = 64 << 20  # bytes of one thread's stack that are looked at


class StackPages(NamedTuple):
    """The pages of a stack from the stack pointer up: how many the process has, and [start, end) runs that are lost."""

    mapping: MemoryMapping | None
    present: int
    lost: tuple[tuple[int, int], ...]
    page_size: int

    @property
    def lost_pages(self) -> int:
        """Return the number of pages that the image lacks."""
        return sum((end - start) // self.page_size for start, end in self.lost)


@dataclass(frozen=True)
class UserProcess:
    """What is known of a process.

    auxv: as in /proc/PID/auxv, empty if unknown. word_size: in bytes, 4 for programs of 32 bits. remarks: what is
    missing, in sentences.
    """

    kernel: Kernel
    process: Process
    threads: tuple[UserThread, ...]
    mappings: tuple[MemoryMapping, ...]
    files: tuple[MappedFile, ...]
    auxv: bytes
    word_size: int
    memory: UserMemory
    remarks: tuple[str, ...]

    @property
    def executable(self) -> MappedFile | None:
        """Return the program's own file; None where that cannot be told."""
        entry = AUXV_ENTRIES[self.word_size]
        entries = dict(entry.iter_unpack(self.auxv[: len(self.auxv) // entry.size * entry.size]))
        for kind in (AT_ENTRY, AT_PHDR):
            for file in self.files:
                if file.start <= entries.get(kind, 0) < file.end:
                    return file
        return None

    def find_mapping(self, vaddr: int) -> MemoryMapping | None:
        """Return the mapping of an address."""
        return next((one for one in self.mappings if one.start <= vaddr < one.end), None)

    def stack_pages(self, thread: UserThread) -> StackPages:
        """Return which pages of a thread's stack are there."""
        page_size = 1 << self.kernel.arch.page_shift
        pointer = thread.registers.get("rsp", 0)
        mapping = self.find_mapping(pointer)
        if mapping is None:
            return StackPages(None, 0, (), page_size)
        start = pointer & -page_size
        present = 0
        lost: list[tuple[int, int]] = []
        for run in self.memory.space.for_each_run(start, min(mapping.end, start + MAX_STACK)):
            if run.presence is Presence.PRESENT:
                present += run.size // page_size
            elif lost and lost[-1][1] == run.start:
                lost[-1] = (lost[-1][0], run.end)
            else:
                lost.append((run.start, run.end))
        return StackPages(mapping, present, tuple(lost), page_size)


class UserMemory:
    """The memory of one process, and nothing else.

    Code and constants whose page the image lacks are read from the same file on this machine, as the kernel would have
    read them anew; that may be only files that are proven to be the same.
    """

    def __init__(self, kernel: Kernel, space: AddressSpaceReader, files: Sequence[MappedFile]) -> None:
        self.space = space
        self._kernel = kernel
        self._files = files

    def read(self, vaddr: int, size: int) -> bytes:
        """Return the bytes at `vaddr` that can be read: all of them, or those before the first missing page.

        Raises:
            ReadError: not even the first byte can be read, or it is no address of user space.
        """
        if not self._kernel.arch.is_user(vaddr):
            raise ReadError(vaddr, f"{vaddr:#x} is an address of the kernel's, and no memory of this process")
        try:
            return self.space.read(vaddr, size)
        except ReadError:
            pass  # something is missing: look page by page
        page_size = 1 << self._kernel.arch.page_shift
        parts: list[bytes] = []
        end = vaddr + size
        while vaddr < end:
            length = min(page_size - vaddr % page_size, end - vaddr)
            try:
                part = self._read_page(vaddr, length)
            except ReadError:
                if not parts:
                    raise
                break
            parts.append(part)
            vaddr += len(part)
            if len(part) < length:
                break
        return b"".join(parts)

    def _read_page(self, vaddr: int, size: int) -> bytes:
        try:
            return self.space.read(vaddr, size)
        except ReadError as error:
            data = self._from_file(vaddr, size)
            if not data:
                raise ReadError(vaddr, f"the page of {vaddr:#x} is not in the image: {error}") from error
            return data

    def _from_file(self, vaddr: int, size: int) -> bytes:
        for file in self._files:
            offset, length = file.span_of(vaddr, size) if file.proven else (0, 0)
            if length and file.path is not None:
                try:
                    with open(file.path, "rb") as stream:
                        return os.pread(stream.fileno(), length, offset)
                except OSError:
                    return b""
        return b""


def open_process(session: Session, pid: int, sysroots: Sequence[str] = (), search: Sequence[str] = ()) -> UserProcess:
    """Return a process with everything that can be found of it.

    Args:
        session: with an open image.
        pid: of the process.
        sysroots: see `mapped_file.find_mapped_files`.
        search: as well; the directories that are searched for vmlinux come after.

    Raises:
        CommandError: there is no such process, or it has no memory of its own.
        UnsupportedError: some of its threads run 32-bit code, others 64-bit code.
        FileAccessError: a directory cannot be read.
        ReadError: the process cannot be read.
    """
    kernel, system = session.kernel, session.system
    process = find_process(session, pid)
    space = system.address_space(kernel, process.address)
    threads, remarks = system.read_user_threads(kernel, process)
    narrow = {thread.narrow for thread in threads if thread.registers}
    if len(narrow) > 1:
        raise UnsupportedError("opening a process that runs 32-bit and 64-bit code", f"{pid} ({process.command}) does")
    if not narrow:
        why = next((thread.problem for thread in threads if thread.problem), "it has no threads")
        raise CommandError(f"no registers of process {pid} ({process.command}) are known: {why}")
    word_size = 4 if True in narrow else kernel.arch.pointer_size
    mappings: list[MemoryMapping] = []
    try:
        mappings += system.for_each_mapping(kernel, pid)
    except (ReadError, CorruptError) as error:
        remarks.append(f"some mappings are missing: {error}")
    try:
        auxv = system.read_auxiliary_vector(kernel, process, word_size)
    except (ReadError, MemberNotFound) as error:
        auxv = b""
        remarks.append(f"the auxiliary vector is missing, so the executable is not known: {error}")
    request = session.request
    known = [path for path in (request.search if request is not None else ()) if os.path.isdir(path)]
    files = find_mapped_files(mappings, space, sysroots, [*search, *known])
    return UserProcess(
        kernel,
        process,
        tuple(threads),
        tuple(mappings),
        tuple(files),
        auxv,
        word_size,
        UserMemory(kernel, space, files),
        tuple(remarks),
    )
