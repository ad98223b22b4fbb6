"""Write an initramfs archive.

The format is cpio "newc", as Documentation/driver-api/early-userspace/buffer-format.rst of the kernel describes it: a
110-byte header of thirteen 8-digit hexadecimal fields, the name, the data, each padded to a multiple of four bytes.
"""

from __future__ import annotations

import stat
from typing import BinaryIO

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


class Archive:
    """An initramfs that grows file by file; parent directories are added on the way, each once."""

    def __init__(self, out: BinaryIO) -> None:
        """Start an archive that is written to `out`."""
        self._out = out
        self._inode = 0
        self._directories: set[str] = set()

    def add_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file at `path` (absolute, as the guest sees it)."""
        self._add_parents(path)
        self._put(path, stat.S_IFREG | mode, data)

    def add_link(self, path: str, target: str) -> None:
        """Add a symbolic link at `path` that points to `target`."""
        self._add_parents(path)
        self._put(path, stat.S_IFLNK | 0o777, target.encode())

    def add_directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory; a second time changes nothing."""
        if path in self._directories or path in ("", "/"):
            return
        self._add_parents(path)
        self._directories.add(path)
        self._put(path, stat.S_IFDIR | mode, b"")

    def add_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device."""
        self._add_parents(path)
        self._put(path, stat.S_IFCHR | mode, b"", major, minor)

    def close(self) -> None:
        """Write the trailer; `out` stays open."""
        self._put(_TRAILER, 0, b"")

    def _add_parents(self, path: str) -> None:
        self.add_directory(path.rpartition("/")[0])

    def _put(self, path: str, mode: int, data: bytes, major: int = 0, minor: int = 0) -> None:
        name = path.lstrip("/").encode() + b"\0"
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name), 0)
        head = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
        self._out.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))
