"""Open files.

Sources: sys/sys/filedesc.h (fd_files leads to the number of descriptors and the table of struct filedescent since 10;
before that, fd_ofiles led to pointers, and fd_nfiles was their number; since 13 the directories are in the struct pwd
that p_pd, a struct pwddesc, leads to, before that in struct filedesc), sys/sys/file.h (struct file, DTYPE_*),
sys/sys/fcntl.h (f_flag is what open(2) was given plus 1, OFLAGS; FREAD is 1, FWRITE 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.errors import CorruptError, KvmDbgError, MemberNotFound, ReadError, TypeNotFound
from kvm_dbg.kernel.freebsd.offset import require_types
from kvm_dbg.kernel.freebsd.path import Node, VnodeReader, find_path
from kvm_dbg.kernel.freebsd.proc import attempt, sorted_procs
from kvm_dbg.kernel.freebsd.state import PRS_ZOMBIE
from kvm_dbg.kernel.layout import Layout, Names, Record, read_number
from kvm_dbg.kernel.usage import OpenFile

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

DTYPE_VNODE, DTYPE_FIFO = 1, 4
KINDS = {2: "sock", 3: "fifo"}  # DTYPE_* -> kind; all others are "anon"
WORDS = {  # DTYPE_*, sys/sys/file.h
    2: "socket", 3: "pipe", 5: "kqueue", 6: "crypto", 7: "mqueue", 8: "shm", 9: "semaphore", 10: "pts", 11: "dev",
    12: "procdesc", 13: "eventfd", 14: "timerfd", 15: "inotify", 16: "jaildesc",
}  # fmt: skip
MAX_FILES = 1 << 22  # descriptors of one process
ACCESS = {0: "", 1: "r", 2: "w", 3: "rw"}
ROLES = {"root": ("pwd_rdir", "fd_rdir"), "wd": ("pwd_cdir", "fd_cdir")}  # directory -> its member since 13, and before
FIELDS = ("kind", "path", "mode", "size", "inode", "mount")  # of a vnode that cannot be read
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
    """Yield the directories and open files of one process or of all, ascending by PID and descriptor.

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
        self._place: Layout | None = None  # of struct pwddesc, where that leads to the directories
        self._directories = self._layout("struct filedesc", {role: names[1] for role, names in ROLES.items()})
        if self._directories is None:
            self._place = self._layout("struct pwddesc", {"pwd": ("pd_pwd.__ptr", "pd_pwd")})
            self._directories = self._layout("struct pwd", {role: names[0] for role, names in ROLES.items()})

    def _layout(self, name: str, members: dict[str, Names]) -> Layout | None:
        try:
            return Layout(self._kernel.types, name, members, self._kernel.arch.byteorder)
        except (TypeNotFound, MemberNotFound):
            return None  # of another release, or the types lack it: the directories are not known then

    def files(self, proc: Record) -> Iterator[OpenFile]:
        """Yield what a process has open, its directories first.

        Raises ReadError, CorruptError after those that could be found.
        """
        if proc.numbers.get("state") == PRS_ZOMBIE:
            return
        yield from self._for_each_directory(proc)
        if not proc["fd"]:
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

    def _for_each_directory(self, proc: Record) -> Iterator[OpenFile]:
        """Yield the root and the working directory of a process."""
        if self._directories is None:
            return
        pid, address = proc["pid"], proc["fd"] if self._place is None else proc.get("pd")
        try:
            if address and self._place is not None:
                address = self._place.read(self._kernel, address)["pwd"]
            if not address:
                return
            directories = self._directories.read(self._kernel, address)
        except ReadError:
            for role in ROLES:
                yield OpenFile(pid, None, address, "?", None, unread=FIELDS, role=role)
            return
        for role in ROLES:
            if vnode := directories.numbers.get(role):
                yield self._complete(OpenFile(pid, None, address, "?", None, access="r", role=role), vnode)

    def _open_file(self, pid: int, fd: int, address: int) -> OpenFile:
        try:
            file = self._file.read(self._kernel, address)
            type_ = file["type"]
        except ReadError:
            return OpenFile(pid, fd, address, "?", None, unread=("kind", "path", "flags", "offset", "inode"))
        unread: list[str] = []
        flags = attempt(unread, ("flags", "access"), lambda: file["flag"] - 1)
        access = None if flags is None else ACCESS[flags + 1 & 3]
        if type_ not in (DTYPE_VNODE, DTYPE_FIFO):
            word = WORDS.get(type_)
            path = f"{word}:[{file.numbers.get('data', 0):#x}]" if word is not None else None
            kind = KINDS.get(type_, "anon" if word is not None else "?")
            return OpenFile(pid, fd, address, kind, path, flags, None, unread=tuple(unread), access=access)
        offset = attempt(unread, ("offset",), lambda: file["offset"])
        made = OpenFile(pid, fd, address, "?", None, flags, offset, unread=tuple(unread), access=access)
        place = attempt(unread, FIELDS, lambda: file.get("vnode") or file["data"])
        return self._complete(made, place) if place else made._replace(unread=tuple(unread))

    def _complete(self, made: OpenFile, address: int) -> OpenFile:
        """Return an open file with what its vnode tells."""
        unread = list(made.unread)
        try:
            vnode = self._vnodes.read(address)
            kind = self._vnodes.kind(vnode)
        except (ReadError, MemberNotFound):
            return made._replace(unread=(*unread, *FIELDS))
        path, lost = find_path(self._vnodes, vnode)
        if lost:
            unread.append("path")
        node = attempt(unread, ("inode", "mode", "size"), lambda: self._vnodes.node(vnode)) or Node()
        mount = attempt(unread, ("mount",), lambda: self._vnodes.mounted_on(vnode))
        device = attempt(unread, ("device",), lambda: self._vnodes.device(vnode))
        return made._replace(
            kind=kind,
            path=path,
            inode=node.inode,
            mode=node.mode,
            size=node.size,
            device=device,
            mount=mount,
            unread=tuple(unread),
        )
