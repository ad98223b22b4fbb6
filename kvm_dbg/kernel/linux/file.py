"""Open files of processes.

Sources: include/linux/fdtable.h (struct files_struct, fdtable), include/linux/fs.h (struct file, inode),
include/uapi/linux/stat.h. Flags are those of /proc/PID/fdinfo: f_flags, and O_CLOEXEC from the table's bitmap.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.errors import CorruptError, NotMappedError, ReadError
from kvm_dbg.kernel.base import OpenFile
from kvm_dbg.kernel.layout import Layout, Names, Record, read_pointer, remembered
from kvm_dbg.kernel.linux.path import PathReader
from kvm_dbg.kernel.linux.process import attempt
from kvm_dbg.kernel.linux.task import read_leaders

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

MAX_FDS = 1 << 24  # fs.nr_open is 1 Mi by default
MAX_NONSENSE = 64  # entries of one table that lead to unmapped memory, before the table itself is not believed
O_CLOEXEC = 0o2000000  # include/uapi/asm-generic/fcntl.h, x86

KINDS = {0o14: "sock", 0o12: "lnk", 0o10: "reg", 0o6: "blk", 0o4: "dir", 0o2: "chr", 0o1: "fifo"}  # S_IFMT >> 12

TABLE: dict[str, Names] = {"max_fds": "max_fds", "fd": "fd", "close_on_exec": "close_on_exec"}
FILE: dict[str, Names] = {
    "mnt": "f_path.mnt",
    "dentry": "f_path.dentry",
    "inode": "f_inode",
    "flags": "f_flags",
    "pos": "f_pos",
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
        self._order = "<" if kernel.arch.byteorder == "little" else ">"

    def files(self, task: Record) -> Iterator[OpenFile]:
        """Yield the open files of a task; none for one that has exited. Raises ReadError, CorruptError."""
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
        file = attempt(unread, ("flags", "offset"), lambda: self._file.read(self._kernel, address))
        if file is None:
            return OpenFile(pid, fd, address, "?", None, unread=("kind", "path", *unread, "inode"))
        known = file
        path = attempt(unread, ("path",), lambda: self._paths.path(known["mnt"], known["dentry"]))
        inode = attempt(unread, ("kind", "inode"), lambda: self._paths.inode(known["inode"]))
        flags = (known["flags"] & ~O_CLOEXEC) | (O_CLOEXEC if closes else 0)
        return OpenFile(
            pid=pid,
            fd=fd,
            address=address,
            kind=self._kind(inode, path) if inode is not None else "?",
            path=path,
            flags=flags,
            offset=known["pos"],
            inode=inode["ino"] if inode is not None else None,
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
