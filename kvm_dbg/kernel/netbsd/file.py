"""Open files, and the directories of processes.

Sources: sys/sys/filedesc.h (struct filedesc: fd_dt leads to a table of pointers to struct fdfile, the first NDFDFILE of
which are in the filedesc itself), sys/sys/file.h (struct file, DTYPE_*), sys/sys/fcntl.h (f_flag is what open(2) was
given plus 1: FREAD is 1, FWRITE 2), struct cwdinfo (cwdi_rdir is NULL for who has the system's root directory). What a
file of a file system is, its vnode says (`vnode.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError, MemberNotFound, ReadError, TypeNotFound
from kvm_dbg.kernel.layout import Layout, Names, Record, read_pointer
from kvm_dbg.kernel.netbsd.proc import read_procs
from kvm_dbg.kernel.netbsd.state import SDEAD, SZOMB
from kvm_dbg.kernel.netbsd.vnode import VnodeReader
from kvm_dbg.kernel.usage import OpenFile

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

DTYPE_VNODE, DTYPE_PIPE = 1, 3
FWRITE = 2
KINDS = {2: "sock", 3: "fifo", 4: "anon", 5: "anon", 6: "anon", 7: "anon", 8: "anon"}  # DTYPE_* -> kind
WORDS = {2: "socket", 3: "pipe", 4: "kqueue", 5: "misc", 6: "crypto", 7: "mqueue", 8: "semaphore"}
ACCESS = {0: "", 1: "r", 2: "w", 3: "rw"}
DIRECTORIES: dict[str, Names] = {"root": "cwdi_rdir", "wd": "cwdi_cdir"}  # role -> its vnode
FIELDS = ("kind", "path", "inode", "mode", "size", "device", "mount")  # what the vnode says
MAX_FILES = 1 << 20
FILE: dict[str, Names] = {"offset": "f_offset", "data": "f_data", "flag": "f_flag", "type": "f_type"}


def for_each_file(kernel: Kernel, pid: int | None = None) -> Iterator[OpenFile]:
    """Yield the open files of one process or of all, ascending by PID and descriptor.

    Raises:
        ReadError, CorruptError: after the last that could be found.
    """
    reader = FileReader(kernel)
    procs, failure = read_procs(kernel)
    for proc in procs:
        if pid is None or proc["pid"] == pid:
            try:
                yield from reader.files(proc)
            except (ReadError, CorruptError) as error:
                failure = failure or error
    if failure is not None:
        raise failure


class FileReader:
    """Reads the open files of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        types, order = kernel.types, kernel.arch.byteorder
        self._kernel = kernel
        self._file = Layout(types, "struct file", FILE, order)
        self._vnodes = VnodeReader(kernel)
        self._directories = Layout(types, "struct cwdinfo", DIRECTORIES, order)
        self._table = Layout(types, "struct filedesc", {"table": "fd_dt", "last": "fd_lastfile"}, order)
        self._count = types.offset_of("struct fdtab", "dt_nfiles")
        self._first = types.offset_of("struct fdtab", "dt_ff")
        self._entry = types.offset_of("struct fdfile", "ff_file")

    def files(self, proc: Record) -> Iterator[OpenFile]:
        """Yield the directories and the open files of a process. Raises ReadError, CorruptError."""
        kernel, word = self._kernel, self._kernel.arch.pointer_size
        if not proc["fd"] or proc["stat"] in (SZOMB, SDEAD):  # a zombie's is given back, p_fd is not cleared
            return
        yield from self._for_each_directory(proc)
        table = self._table.read(kernel, proc["fd"])
        count = int.from_bytes(kernel.read(table["table"] + self._count, 4), "little")
        if not 0 <= count <= MAX_FILES:
            raise CorruptError(table["table"], f"process {proc['pid']} has a table of {count} descriptors")
        last = table["last"] - (1 << 32) if table["last"] >> 31 else table["last"]
        pointers = kernel.read(table["table"] + self._first, word * min(count, max(last + 1, 0)))
        for fd in range(len(pointers) // word):
            entry = int.from_bytes(pointers[fd * word : (fd + 1) * word], "little")
            if not entry:
                continue
            address = int.from_bytes(kernel.read(entry + self._entry, word), "little")
            if address:
                yield self._open_file(proc["pid"], fd, address)

    def _for_each_directory(self, proc: Record) -> Iterator[OpenFile]:
        """Yield the root directory, if the process has one of its own, and the working directory."""
        pid, address = proc["pid"], proc["cwdi"]
        if not address:
            return
        try:
            directories = self._directories.read(self._kernel, address)
        except ReadError:
            for role in DIRECTORIES:
                yield OpenFile(pid, None, address, "?", None, unread=FIELDS, role=role)
            return
        for role in DIRECTORIES:
            if vnode := directories[role]:
                yield self._complete(OpenFile(pid, None, address, "?", None, access="r", role=role), vnode)

    def _open_file(self, pid: int, fd: int, address: int) -> OpenFile:
        try:
            file = self._file.read(self._kernel, address)
            kind, flags = file["type"], file["flag"]
            made = OpenFile(pid, fd, address, KINDS.get(kind, "?"), None, flags - 1, access=ACCESS[flags & 3])
            if kind != DTYPE_VNODE:
                word = WORDS.get(kind)
                path = f"{word}:[{file['data']:#x}]" if word is not None else None
                return made._replace(path=f"{path}{self._peer(file)}" if kind == DTYPE_PIPE else path)
            return self._complete(made._replace(offset=file["offset"]), file["data"])
        except ReadError:
            return OpenFile(pid, fd, address, "?", None, unread=("flags", "offset", "access", *FIELDS))

    def _peer(self, file: Record) -> str:
        """Return fstat's arrow from or to the other end of a pipe, nothing where that is not known."""
        with suppress(TypeNotFound, MemberNotFound, ReadError):
            peer = read_pointer(self._kernel, file["data"] + self._kernel.types.offset_of("struct pipe", "pipe_peer"))
            return f" {'->' if file['flag'] & FWRITE else '<-'} [{peer:#x}]"
        return ""

    def _complete(self, file: OpenFile, vnode: int) -> OpenFile:
        try:
            return file._replace(**self._vnodes.describe(vnode))
        except ReadError:
            return file._replace(unread=FIELDS)
