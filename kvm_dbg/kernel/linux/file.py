"""Open files of processes, and their directories.

Sources: include/linux/fdtable.h (struct files_struct, fdtable), include/linux/fs_struct.h (struct fs_struct: what
/proc/PID/cwd and root lead to), include/linux/fs.h (struct file, inode; FMODE_READ, FMODE_WRITE),
include/linux/kdev_t.h, include/uapi/linux/stat.h. Flags are those of /proc/PID/fdinfo: f_flags, and O_CLOEXEC from
the table's bitmap.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError, NotMappedError, ReadError
from kvm_dbg.kernel.layout import Layout, Names, Record, read_pointer, remembered
from kvm_dbg.kernel.linux.path import PathReader
from kvm_dbg.kernel.linux.process import attempt
from kvm_dbg.kernel.linux.task import read_leaders
from kvm_dbg.kernel.usage import OpenFile

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MAX_FDS = 1 << 24  # fs.nr_open is 1 Mi by default
MAX_NONSENSE = 64  # entries of one table that lead to unmapped memory, before the table itself is not believed
O_CLOEXEC = 0o2000000  # include/uapi/asm-generic/fcntl.h, x86

FMODE = {0: "", 1: "r", 2: "w", 3: "rw"}  # FMODE_READ 1, FMODE_WRITE 2
DIRECTORIES = {"root": "root", "wd": "pwd"}  # role -> member of struct fs_struct
SPECIAL = ("chr", "blk")
MINOR_BITS = 20
KINDS = {0o14: "sock", 0o12: "lnk", 0o10: "reg", 0o6: "blk", 0o4: "dir", 0o2: "chr", 0o1: "fifo"}  # S_IFMT >> 12

UNREAD = ("kind", "path", "inode", "mode", "size", "device", "mount")

TABLE: dict[str, Names] = {"max_fds": "max_fds", "fd": "fd", "close_on_exec": "close_on_exec"}
FILE: dict[str, Names] = {
    "mnt": "f_path.mnt",
    "dentry": "f_path.dentry",
    "inode": "f_inode",
    "flags": "f_flags",
    "pos": "f_pos",
    "mode": "f_mode",
}


def for_each_file(kernel: Kernel, pid: int | None = None) -> Iterator[OpenFile]:
    """Yield the open files of one process or of all, ascending by PID and descriptor.

    Raises:
        ReadError, CorruptError: after the last that could be found: a table, or the list of tasks, is broken.
    """
    reader = FileReader(kernel)
    leaders, failure = read_leaders(kernel)
    for task in leaders:
        if pid is not None and task["tgid"] != pid:
            continue
        try:
            yield from reader.files(task)
        except (ReadError, CorruptError) as error:
            failure = failure or error
    if failure is not None:
        raise failure


class FileReader:
    """Describes the open files of one kernel's processes."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._paths = PathReader(kernel)
        self._fdt = kernel.types.offset_of("struct files_struct", "fdt")
        self._table = remembered(kernel, _make_table)
        self._file = remembered(kernel, _make_file)
        self._fs = kernel.types.offset_of("struct task_struct", "fs")
        self._directories = remembered(kernel, _make_directories)
        self._order = "<" if kernel.arch.byteorder == "little" else ">"

    def files(self, task: Record) -> Iterator[OpenFile]:
        """Yield the directories and the open files of a task that has not exited. Raises ReadError, CorruptError."""
        yield from self._for_each_directory(task)
        files = task["files"]
        if not files:
            return
        kernel = self._kernel
        table = self._table.read(kernel, read_pointer(kernel, files + self._fdt))
        count = table["max_fds"]
        if not 0 <= count <= MAX_FDS:
            raise CorruptError(table.address, f"the file table of process {task['tgid']} has {count} entries")
        nonsense = 0
        for first in range(0, count, 512):
            size = min(512, count - first)
            data = kernel.read(table["fd"] + 8 * first, 8 * size)
            if not any(data):
                continue
            words = (size + 63) // 64
            bitmap = kernel.read(table["close_on_exec"] + first // 8, 8 * words)
            closing = struct.unpack(f"{self._order}{words}Q", bitmap)
            for index, address in enumerate(struct.unpack(f"{self._order}{size}Q", data)):
                if address:
                    closes = closing[index // 64] >> index % 64 & 1
                    file = self._describe(task["tgid"], first + index, address, bool(closes))
                    nonsense += file.kind == "?" and self._is_nonsense(address)
                    if nonsense > MAX_NONSENSE:
                        where = f"the file table of process {task['tgid']}"
                        raise CorruptError(table.address, f"{where} has entries that are no files")
                    yield file

    def _describe(self, pid: int, fd: int, address: int, closes: bool) -> OpenFile:
        unread: list[str] = []
        file = attempt(unread, ("flags", "offset", "access"), lambda: self._file.read(self._kernel, address))
        if file is None:
            return OpenFile(pid, fd, address, "?", None, unread=("kind", "path", *unread, *UNREAD[2:]))
        flags = (file["flags"] & ~O_CLOEXEC) | (O_CLOEXEC if closes else 0)
        made = OpenFile(pid, fd, address, "?", None, flags, file["pos"], access=FMODE[file["mode"] & 3])
        return self._complete(made, file["mnt"], file["dentry"], file["inode"])

    def _for_each_directory(self, task: Record) -> Iterator[OpenFile]:
        """Yield the root directory and the working directory; none of a task that has exited."""
        pid, kernel = task["tgid"], self._kernel
        try:
            address = read_pointer(kernel, task.address + self._fs)
        except ReadError:
            return  # the task's members on this page are missing, too
        for role in DIRECTORIES if address else ():
            made = OpenFile(pid, None, address, "?", None, access="r", role=role)
            unread: list[str] = []
            fs = attempt(unread, UNREAD, lambda: self._directories.read(kernel, address))
            member = DIRECTORIES[role]
            place = None if fs is None else attempt(unread, UNREAD, partial(_place, fs, member))
            inode = None if place is None else attempt(unread, UNREAD, partial(self._paths.inode_of, place[1]))
            if place is None or inode is None:
                yield made._replace(unread=tuple(unread))
            else:
                yield self._complete(made, *place, inode)

    def _complete(self, file: OpenFile, mnt: int, dentry: int, inode: int) -> OpenFile:
        """Return a file with what its path and its inode tell."""
        unread = list(file.unread)
        path = attempt(unread, ("path",), lambda: self._paths.path(mnt, dentry))
        mount = attempt(unread, ("mount",), lambda: self._paths.mount_point(mnt))
        found = attempt(unread, ("kind", "inode", "mode", "size", "device"), lambda: self._paths.inode(inode))
        if found is None:
            return file._replace(path=path, mount=mount, unread=tuple(unread))
        kind = self._kind(found, path)
        device = found.get("rdev") if kind in SPECIAL else None
        return file._replace(
            kind=kind,
            path=path,
            inode=found["ino"],
            mode=found["mode"],
            size=found["size"] if "size" in found and kind not in SPECIAL else None,
            device=None if device is None else (device >> MINOR_BITS, device & (1 << MINOR_BITS) - 1),
            mount=mount,
            unread=tuple(unread),
        )

    def _is_nonsense(self, address: int) -> bool:
        """Return whether a struct file, or its inode, is at an address that the kernel does not map."""
        try:
            self._kernel.translate(address)
            self._kernel.translate(self._file.read(self._kernel, address)["inode"])
        except NotMappedError:
            return True
        except ReadError:  # filtered, truncated: the table may be right
            return False
        return False

    def _kind(self, inode: Record, path: str | None) -> str:
        """Return the kind by the inode's mode; files of no file system ("anon_inode:...") are "anon"."""
        if path is not None and path.startswith("anon_inode:"):
            return "anon"
        return KINDS.get(inode["mode"] >> 12, "anon")


def _make_table(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct fdtable", TABLE, kernel.arch.byteorder)


def _make_file(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct file", FILE, kernel.arch.byteorder)


def _make_directories(kernel: Kernel) -> Layout:
    members = [f"{member}.{part}" for member in DIRECTORIES.values() for part in ("mnt", "dentry")]
    return Layout(kernel.types, "struct fs_struct", {name: name for name in members}, kernel.arch.byteorder)


def _place(fs: Record, member: str) -> tuple[int, int]:
    """Return the mount and the directory entry of a struct path."""
    return fs[f"{member}.mnt"], fs[f"{member}.dentry"]
