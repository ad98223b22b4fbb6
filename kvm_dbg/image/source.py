"""Bytes of a dump by file offset: a plain file, or what stands in for one (see `flattened`, `compressed`).

A plain file is mapped for readers that want slices of it, and read with pread by those that read in larger batches.
A map is twice as fast for single pages, and reading ahead is the kernel's business in both cases. Its price: if
someone shortens the file while it is mapped, touching the lost part ends the process. Crash dumps are not written
to after they are made, so only `ExtentImage` uses the map; it looks at the file's size before each large chunk.
"""

from __future__ import annotations

import mmap
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

from kvm_dbg.errors import CommandError, FileAccessError, UnknownFormatError


class Stretch(NamedTuple):
    """A run of file offsets; `written` is False where the bytes never arrived."""

    offset: int
    size: int
    written: bool


class Source(ABC):
    """A file's bytes.

    Attributes:
        path: the file, as the user named it.
        size: bytes, from 0 to the last one that is there.
        ended: False if the file itself tells that it was cut off (a stream without its end marker).
        place: where its bytes start in the file, where they are a part of that.
        container: what is wrapped around the file, the innermost first ("flattened, gzip"), "" if nothing.
    """

    path: str
    size: int
    ended: bool = True
    place: int = 0
    container: str = ""

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes at [offset, offset + size), fewer at the end of the file.

        Raises:
            FileAccessError: the operating system reports an error.
        """

    def write(self, offset: int, data: bytes) -> None:
        """Write into the file itself.

        Raises:
            CommandError: it was opened for reading only, or is of a kind that cannot be written.
            FileAccessError: the operating system refuses it, or only a part was written; says how much.
        """
        raise CommandError(f"{self.path} cannot be written to ({len(data)} bytes at offset {offset:#x})")

    def describe(self) -> tuple[tuple[str, str], ...]:
        """Return the lines of `ImageInfo.details` that tell of the file itself."""
        return (("container", self.container),) if self.container else ()

    def for_each_stretch(self, offset: int, size: int) -> Iterator[Stretch]:
        """Yield what is and what is not there of [offset, offset + size), in order, covering it."""
        stop = min(offset + size, max(self.size, offset))
        if stop > offset:
            yield Stretch(offset, stop - offset, True)
        if stop < offset + size:
            yield Stretch(stop, offset + size - stop, False)

    def is_written(self, offset: int, size: int) -> bool:
        """Tell whether all bytes of [offset, offset + size) are there."""
        return offset + size <= self.size

    def map(self) -> mmap.mmap | None:
        """Return a map of the whole file, None where there cannot be one."""
        return None

    def check_size(self) -> None:  # noqa: B027 - what is not mapped needs no check
        """Raise FileAccessError if the file has become shorter since it was opened."""

    @abstractmethod
    def close(self) -> None:
        """Release the file."""


class FileSource(Source):
    """A plain file.

    Args:
        path: the file.
        writable: open it for writing as well. What is written is seen by reads, mapped or not: both are of the
            kernel's one page cache.

    Raises:
        FileAccessError: missing, a directory, a device, no permission.
        UnknownFormatError: empty.
    """

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = False) -> None:
        self.path = os.fspath(path)
        self._writable = writable
        self._map: mmap.mmap | None = None
        self._descriptor = -1
        try:
            flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not block
            descriptor = os.open(self.path, flags)
        except (OSError, ValueError) as error:
            raise FileAccessError(self.path, getattr(error, "strerror", None) or str(error)) from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise FileAccessError(self.path, f"is {_kind(status.st_mode)}, not a file: copy its bytes into one")
        if status.st_size == 0:
            os.close(descriptor)
            raise UnknownFormatError(self.path, "the file is empty")
        self._descriptor = descriptor
        self.size = status.st_size

    def read(self, offset: int, size: int) -> bytes:
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        try:
            data = os.pread(self._descriptor, size, offset)
            if len(data) < size:  # Linux reads at most 2 GiB at a time
                parts = [data]
                while data and (size := size - len(data)) > 0:
                    offset += len(data)
                    data = os.pread(self._descriptor, size, offset)
                    parts.append(data)
                return b"".join(parts)
        except OSError as error:
            raise FileAccessError(self.path, f"offset {offset:#x}: {error.strerror or error}") from error
        return data

    def write(self, offset: int, data: bytes) -> None:
        if not self._writable:
            super().write(offset, data)
        write_at(self._descriptor, self.path, offset, data)

    def map(self) -> mmap.mmap | None:
        if self._map is None:
            try:
                self._map = mmap.mmap(self._descriptor, self.size, prot=mmap.PROT_READ)
            except (OSError, ValueError):  # no room in the address space, or a file system without maps: pread does
                return None
        return self._map

    def check_size(self) -> None:
        now = os.fstat(self._descriptor).st_size
        if now < self.size:
            raise FileAccessError(self.path, f"was shortened from {self.size} to {now} bytes while it was open")

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class DeviceSource(Source):
    """What is read at offsets, never mapped, and without a size that would mean anything.

    Args:
        path: of the file.
        writable: open it for writing as well.

    Attributes:
        ended_text: what it means if nothing is at an offset.

    Raises:
        FileAccessError: it cannot be opened; derived classes say what it takes.
    """

    size = (1 << 63) - 1  # bytes: the last offset that pread(2) takes
    ended_text = "nothing is there"

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = False) -> None:
        self.path = os.fspath(path)
        self._descriptor = -1
        self._writable = writable
        try:
            self._descriptor = os.open(self.path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise FileAccessError(self.path, self.why_closed(error)) from error

    def why_closed(self, error: OSError | ValueError) -> str:
        """Return why it could not be opened."""
        return getattr(error, "strerror", None) or str(error)

    def read(self, offset: int, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0:
            try:
                data = os.pread(self._descriptor, size, offset)
            except OSError as error:
                raise FileAccessError(self.path, f"offset {offset:#x}: {error.strerror or error}") from error
            if not data:
                raise FileAccessError(self.path, f"offset {offset:#x}: {self.ended_text}")
            if len(data) == size and not parts:
                return data
            parts.append(data)
            offset += len(data)
            size -= len(data)
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        if not self._writable:
            super().write(offset, data)
        write_at(self._descriptor, self.path, offset, data)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def write_at(descriptor: int, path: str, offset: int, data: bytes) -> None:
    """Write all of `data` at a file's offset. Raises FileAccessError, which says how much was written before."""
    done = 0
    try:
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], offset + done)
    except OSError as error:
        part = f", after {done} of {len(data)} bytes" if done else ""
        raise FileAccessError(path, f"writing at offset {offset + done:#x}{part}: {error.strerror or error}") from error


def _kind(mode: int) -> str:
    """Name what a file of this st_mode is."""
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "a device"
    return "a pipe or socket"
