"""Open files.

Sources: sys/sys/filedesc.h (fd_files leads to the number of descriptors and the table of struct filedescent since 10;
before that, fd_ofiles led to pointers, and fd_nfiles was their number), sys/sys/file.h (struct file, DTYPE_*),
sys/sys/fcntl.h (f_flag is what open(2) was given plus 1, OFLAGS).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.errors import CorruptError, KvmDbgError, MemberNotFound, ReadError
from kvm_dbg.kernel.freebsd.offset import require_types
from kvm_dbg.kernel.freebsd.path import VnodeReader, find_path
from kvm_dbg.kernel.freebsd.proc import attempt, sorted_procs
from kvm_dbg.kernel.freebsd.state import PRS_ZOMBIE
from kvm_dbg.kernel.layout import Layout, Names, Record, read_number
from kvm_dbg.kernel.resource import OpenFile

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

DTYPE_VNODE, DTYPE_FIFO = 1, 4
KINDS = {2: "sock", 3: "fifo"}  # DTYPE_* -> kind; all others are "anon"
WORDS = {  # DTYPE_*, sys/sys/file.h
    2: "socket", 3: "pipe", 5: "kqueue", 6: "crypto", 7: "mqueue", 8: "shm", 9: "semaphore", 10: "pts", 11: "dev",
    12: "procdesc", 13: "eventfd", 14: "timerfd", 15: "inotify", 16: "jaildesc",
}  # fmt: skip
MAX_FILES = 1 << 22  # descriptors of one process
FILE: dict[str, Names] = {
    "offset": "f_offset",
    "data": "f_data",
    "vnode": ("f_vnode", None),
    "flag": "f_flag",
    "type": "f_type",
}


class Table(NamedTuple):
    """How a process's table of descriptors is laid out: bytes of an entry, and where the file's address is in it."""

    stride: int
    file: int


def for_each_file(kernel: Kernel, pid: int | None = None) -> Iterator[OpenFile]:
    """Yield the open files of one process or of all, ascending by PID and descriptor.

    Raises:
        ReadError, CorruptError: after the last that could be found.
    """
    reader = FileReader(kernel)
    procs, failure = sorted_procs(kernel)
    for proc in procs:
        if pid is None or proc.numbers.get("pid") == pid:
            try:
                yield from reader.files(proc)
            except (ReadError, CorruptError) as error:
                failure = failure or error
    if failure is not None:
        raise failure


class FileReader:
    """Reads the open files of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        require_types(kernel, "open files")
        types = kernel.types
        self._kernel = kernel
        self._file = Layout(types, "struct file", FILE, kernel.arch.byteorder)
        self._vnodes = VnodeReader(kernel)
        members: dict[str, Names] = {"files": ("fd_files", "fd_ofiles"), "count": ("fd_nfiles", None)}
        self._descriptors = Layout(types, "struct filedesc", members, kernel.arch.byteorder)
        if types.has_member("struct filedesc", "fd_files"):
            self._table = Table(types.size_of("struct filedescent"), types.offset_of("struct filedescent", "fde_file"))
        else:
            self._table = Table(kernel.arch.pointer_size, 0)

    def files(self, proc: Record) -> Iterator[OpenFile]:
        """Yield the open files of a process. Raises ReadError, CorruptError after those that could be found."""
        if not proc["fd"] or proc.numbers.get("state") == PRS_ZOMBIE:
            return
        kernel, stride = self._kernel, self._table.stride
        start, count = self._find_table(proc)
        failure: KvmDbgError | None = None
        first = 0
        while first < count:
            place = start + first * stride
            number = min(max(self._left_in_page(place) // stride, 1), count - first)
            try:
                rows = kernel.read(place, number * stride)
            except ReadError as error:  # a page of the table is missing: those on other pages count
                failure = failure or error
            else:
                for index in range(number):
                    address = self._pointer(rows, index * stride + self._table.file)
                    if address:
                        yield self._open_file(proc["pid"], first + index, address)
            first += number
        if failure is not None:
            raise failure

    def _left_in_page(self, address: int) -> int:
        """Return how many bytes of its page are from an address on."""
        size = 1 << self._kernel.arch.page_shift
        return size - address % size

    def _pointer(self, data: bytes, at: int) -> int:
        word = data[at : at + self._kernel.arch.pointer_size]
        return int.from_bytes(word, "little" if self._kernel.arch.byteorder == "little" else "big")

    def _find_table(self, proc: Record) -> tuple[int, int]:
        """Return where a process's descriptors are, and how many. Raises ReadError, CorruptError."""
        kernel = self._kernel
        descriptors = self._descriptors.read(kernel, proc["fd"])
        place = descriptors["files"]
        if "count" in descriptors:
            start, count = place, descriptors["count"]
        else:
            start = place + kernel.types.offset_of("struct fdescenttbl", "fdt_ofiles")
            at = place + kernel.types.offset_of("struct fdescenttbl", "fdt_nfiles")
            count = read_number(kernel, at, 4, signed=True)
        if not 0 <= count <= MAX_FILES:
            raise CorruptError(place, f"process {proc['pid']} has a table of {count} descriptors")
        return start, count

    def _open_file(self, pid: int, fd: int, address: int) -> OpenFile:
        try:
            file = self._file.read(self._kernel, address)
            type_ = file["type"]
        except ReadError:
            return OpenFile(pid, fd, address, "?", None, unread=("kind", "path", "flags", "offset", "inode"))
        unread: list[str] = []
        flags = attempt(unread, ("flags",), lambda: file["flag"] - 1)
        offset = attempt(unread, ("offset",), lambda: file["offset"])
        if type_ not in (DTYPE_VNODE, DTYPE_FIFO):
            word = WORDS.get(type_)
            path = f"{word}:[{file.numbers.get('data', 0):#x}]" if word is not None else None
            kind = KINDS.get(type_, "anon" if word is not None else "?")
            return OpenFile(pid, fd, address, kind, path, flags, None, unread=tuple(unread))
        try:
            vnode = self._vnodes.read(file.get("vnode") or file["data"])
            kind = self._vnodes.kind(vnode)
        except (ReadError, MemberNotFound):
            unread += ["kind", "path", "inode"]
            return OpenFile(pid, fd, address, "?", None, flags, offset, unread=tuple(unread))
        path, lost = find_path(self._vnodes, vnode)
        if lost:
            unread.append("path")
        node = attempt(unread, ("inode", "mode"), lambda: self._vnodes.node(vnode))
        inode, mode, size = (None, None, None) if node is None else node
        return OpenFile(pid, fd, address, kind, path, flags, offset, inode, tuple(unread), mode=mode, size=size)
