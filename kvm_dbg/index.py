"""Keep tables that are slow to build in files, one directory per kernel, named by build-id.

The layout is this project's own. Every file is written under a temporary name and renamed, so that any number of
processes may share the directory, and anyone may delete it at any time. A file is read whole (a few megabytes, less
than a millisecond) and checked: magic, version, byte order, the identity of what it was made from, its length and a
checksum over all of it. A file that fails any check is as good as absent: it is built again and replaced.

The numbers inside are as the host's processor has them. Whoever uses them still checks that they lie inside what
they point into: the checksum guards against accidents, not against malice.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import zlib
from collections.abc import Mapping

MAGIC = b"KVMDBGIX"
VERSION = 1
BYTE_ORDERS = {"little": 0, "big": 1}
MAX_SIZE = 1 << 30  # bytes; a larger file is not one of ours
MAX_PARTS = 64

# magic, version, byte order, bytes of identity, number of parts, bytes of the whole file, checksum of what follows
_HEADER = struct.Struct("<8sIIIIQII")
_PART = struct.Struct("<24sQQ")  # name, offset in the file, size in bytes
_ALIGNMENT = 8

Buffer = bytes | bytearray | memoryview


class Index:
    """The tables that are kept for one kernel.

    Args:
        directory: where all kernels' tables are kept; made when the first table is stored.
        build_id: the kernel's; the name of its own directory.

    Attributes:
        note: one line for the user if something could not be kept, else None. Nothing here ever fails a caller.
    """

    def __init__(self, directory: str | os.PathLike[str], build_id: bytes) -> None:
        self.directory = os.path.join(os.fspath(directory), build_id.hex())
        self.note: str | None = None

    def path(self, table: str) -> str:
        """Return the file that holds `table` ("symbols", "btf", ...)."""
        return os.path.join(self.directory, f"{table}.index")

    def find(self, table: str, identity: bytes) -> dict[str, memoryview] | None:
        """Return the parts of a table by name, None if it is absent, damaged, or made from something else.

        `identity` is whatever must be equal for the table to be valid: the version of its layout, sizes, checksums.
        """
        try:
            with open(self.path(table), "rb") as file:
                if os.fstat(file.fileno()).st_size > MAX_SIZE:
                    return None
                data = file.read()
        except OSError:
            return None
        return parse(data, identity)

    def store(self, table: str, identity: bytes, parts: Mapping[str, Buffer]) -> None:
        """Keep a table in place of the old one. A full disk or a read-only directory only sets `note`."""
        path = self.path(table)
        temporary = os.path.join(self.directory, f".{table}.index.{os.getpid()}")
        made = False
        try:
            os.makedirs(self.directory, exist_ok=True)
            # O_NOFOLLOW and O_EXCL: never write through a link that somebody left here
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)  # of a process of the same number that was killed
            with open(os.open(temporary, flags, 0o644), "wb") as file:
                made = True
                for piece in compose(identity, parts):
                    file.write(piece)
            os.replace(temporary, path)
        except OSError as error:
            if made:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            self.note = f"the index was not kept: {path}: {error.strerror or error}"


def compose(identity: bytes, parts: Mapping[str, Buffer]) -> list[Buffer]:
    """Return the pieces of a file that holds `parts`; names are at most 24 bytes of ASCII."""
    offset = _HEADER.size + len(identity) + _PART.size * len(parts)
    table = [identity]
    body: list[Buffer] = []
    for name, part in parts.items():
        size = memoryview(part).nbytes
        padding = -offset % _ALIGNMENT
        offset += padding
        body += (bytes(padding), part)
        table.append(_PART.pack(name.encode("ascii"), offset, size))
        offset += size
    pieces = [*table, *body]
    checksum = 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    order = BYTE_ORDERS[sys.byteorder]
    return [_HEADER.pack(MAGIC, VERSION, order, len(identity), len(parts), offset, checksum, 0), *pieces]


def parse(data: bytes, identity: bytes) -> dict[str, memoryview] | None:
    """Return the parts of a file, None if anything about it is wrong or it has another identity."""
    if len(data) < _HEADER.size:
        return None
    magic, version, order, identity_size, count, size, checksum, _ = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION or order != BYTE_ORDERS[sys.byteorder] or size != len(data):
        return None
    start = _HEADER.size
    if identity_size != len(identity) or data[start : start + identity_size] != identity or count > MAX_PARTS:
        return None
    view = memoryview(data)
    if zlib.crc32(view[start:]) != checksum:
        return None
    start += identity_size
    if start + count * _PART.size > size:
        return None
    parts = {}
    for number in range(count):
        name, offset, length = _PART.unpack_from(data, start + number * _PART.size)
        if offset + length > size:
            return None
        parts[name.rstrip(b"\0").decode("ascii", "replace")] = view[offset : offset + length]
    return parts
