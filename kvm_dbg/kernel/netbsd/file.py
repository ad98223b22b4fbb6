"""Open files.

Sources: sys/sys/filedesc.h (struct filedesc: fd_dt leads to a table of pointers to struct fdfile, the first NDFDFILE of
which are in the filedesc itself), sys/sys/file.h (struct file, DTYPE_*), sys/sys/fcntl.h (f_flag is what open(2) was
given plus 1), sys/sys/vnode.h (enum vtype), sys/ufs/ufs/inode.h (struct inode: what fstat(1) shows of a file of UFS).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError, KvmDbgError, MemberNotFound, ReadError, TypeNotFound
from kvm_dbg.kernel.base import OpenFile
from kvm_dbg.kernel.layout import Layout, Names, Record
from kvm_dbg.kernel.netbsd.proc import read_procs
from kvm_dbg.kernel.netbsd.state import SDEAD, SZOMB

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

DTYPE_VNODE = 1
KINDS = {2: "sock", 3: "fifo", 4: "anon", 5: "anon", 6: "anon", 7: "anon", 8: "anon"}  # DTYPE_* -> kind
WORDS = {2: "socket", 3: "pipe", 4: "kqueue", 5: "misc", 6: "crypto", 7: "mqueue", 8: "semaphore"}
VNODE_KINDS = {1: "reg", 2: "dir", 3: "blk", 4: "chr", 5: "lnk", 6: "sock", 7: "fifo"}  # enum vtype
VREG, VDIR = 1, 2
VT_UFS = 1  # enum vtagtype
MAX_FILES = 1 << 20
FILE: dict[str, Names] = {"offset": "f_offset", "data": "f_data", "flag": "f_flag", "type": "f_type"}
VNODE: dict[str, Names] = {"type": "v_type", "tag": "v_tag", "size": "v_size", "data": "v_data"}
INODE: dict[str, Names] = {"number": "i_number", "mode": "i_mode", "size": "i_size"}


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
        self._vnode = Layout(types, "struct vnode", VNODE, order)
        self._table = Layout(types, "struct filedesc", {"table": "fd_dt", "last": "fd_lastfile"}, order)
        self._count = types.offset_of("struct fdtab", "dt_nfiles")
        self._first = types.offset_of("struct fdtab", "dt_ff")
        self._entry = types.offset_of("struct fdfile", "ff_file")
        self._inode: Layout | None = None
        with suppress(TypeNotFound, MemberNotFound):  # inode numbers and modes are not known then
            self._inode = Layout(types, "struct inode", INODE, order)

    def files(self, proc: Record) -> Iterator[OpenFile]:
        """Yield the open files of a process. Raises ReadError, CorruptError."""
        kernel, word = self._kernel, self._kernel.arch.pointer_size
        if not proc["fd"] or proc["stat"] in (SZOMB, SDEAD):  # a zombie's is given back, p_fd is not cleared
            return
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

    def _open_file(self, pid: int, fd: int, address: int) -> OpenFile:
        try:
            file = self._file.read(self._kernel, address)
            if file["type"] != DTYPE_VNODE:
                word = WORDS.get(file["type"])
                path = f"{word}:[{file['data']:#x}]" if word is not None else None
                return OpenFile(pid, fd, address, KINDS.get(file["type"], "?"), path, file["flag"] - 1, None)
            vnode = self._vnode.read(self._kernel, file["data"])
            kind = VNODE_KINDS.get(vnode["type"], "?")
            size = vnode["size"] if vnode["type"] in (VREG, VDIR) else None
        except ReadError:
            return OpenFile(pid, fd, address, "?", None, unread=("kind", "path", "flags", "offset", "inode"))
        inode: int | None = None
        mode: int | None = None
        unread: tuple[str, ...] = ()
        if self._inode is not None and vnode["tag"] == VT_UFS:
            try:
                found = self._inode.read(self._kernel, vnode["data"])
                inode, mode = found["number"], found["mode"]
            except KvmDbgError:
                unread = ("inode", "mode")
        return OpenFile(
            pid, fd, address, kind, None, file["flag"] - 1, file["offset"], inode, unread, mode=mode, size=size
        )
