"""Records of what is used: the files of processes, and the system's counters."""

from __future__ import annotations

from typing import NamedTuple


class OpenFile(NamedTuple):
    """One open file of a process, or one of its directories. What is not known is None.

    fd: None for a directory. mode: st_mode. size: bytes. access: "r", "w" or "rw", "" for neither. device: (major,
    minor) of a special file. mount: where the file system that it is in is mounted. role: "" for a descriptor, "wd"
    for the working directory, "root" for the root directory.
    """

    pid: int
    fd: int | None
    address: int  # struct file; of a directory, what the system keeps of it
    kind: str  # "reg", "dir", "chr", "blk", "fifo", "sock", "anon"
    path: str | None
    flags: int | None = None
    offset: int | None = None
    inode: int | None = None
    unread: tuple[str, ...] = ()
    mode: int | None = None
    size: int | None = None
    access: str | None = None
    device: tuple[int, int] | None = None
    mount: str | None = None
    role: str = ""


class Counter(NamedTuple):
    """One of the system's counters of memory and events.

    name: the kernel's own. value: None where it cannot be told, then why says why. meaning: as the system's vmstat(8)
    says it, "" where it says nothing.
    """

    name: str
    value: int | None
    meaning: str = ""
    why: str = ""
