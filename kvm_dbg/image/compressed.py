"""Dumps that are kept compressed: gzip (savecore -z), zstd, xz and bzip2 around a whole file.

None of these can be read at an arbitrary place, so the file is decompressed once: into the cache, under a name made
of the file's identity (path, device, inode, size, time of change), or without a cache into a temporary file that is
gone when it is closed. Blocks of zeros become holes, so that a sparse dump stays sparse. A file in the cache is whole:
it gets its name last. Those that were not used for `KEEP_DAYS` days go when the next one is made.

Facts: RFC 1952 (gzip), RFC 8878 (zstd; skippable frames, which pzstd puts first), the .xz file format 1.2.1 (stream
padding), bzip2's "BZh" and block size digit. All four may be several members in a row; zeros may follow.

A file that ends too early gives what it has, and `ended` is False. Damage is an error: what follows it cannot be told
from good bytes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Generator, Iterator
from itertools import chain
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

from kvm_dbg.errors import FileAccessError, FormatError, KvmDbgError, UnknownFormatError, UnsupportedError
from kvm_dbg.image.source import FileSource, Source

if TYPE_CHECKING:
    from pathlib import Path

PIECE = 1 << 20  # bytes decompressed at a time
HEAD = 1 << 20  # bytes that are looked at before all is decompressed
MAX_SIZE = 1 << 44  # bytes that a file may decompress to
MAX_MEMORY = 1 << 27  # bytes of history that a stream may ask for: xz -9 wants 65 MiB
SPARE = 1 << 26  # bytes of disk that are left free
KEEP_DAYS = 30
_HOLE = 1 << 16  # bytes of zeros that become a hole
_SPACE_CHECK = 1 << 24  # bytes written between two looks at the free space
_STEPS = 10  # lines of progress
_QUIET = 1 << 26  # bytes of compressed file below which nothing is said


class Decoder(Protocol):
    """What decompresses one member of a stream."""

    @property
    def eof(self) -> bool:
        """Return whether the member has ended."""

    @property
    def unused_data(self) -> bytes:
        """Return the bytes after the member's end."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the next pieces. Raises ValueError if the data are damaged."""


class _Gzip:
    def __init__(self) -> None:
        import zlib

        self._stream = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def feed(self, data: bytes) -> Iterator[bytes]:
        import zlib

        piece = b""
        while (data or len(piece) == PIECE) and not self._stream.eof:
            try:
                piece = self._stream.decompress(data, PIECE)
            except zlib.error as error:
                raise ValueError(str(error)) from error
            data = self._stream.unconsumed_tail
            yield piece


class _Buffered:
    """xz and bzip2, whose decoders keep what they were fed."""

    def __init__(self, name: str) -> None:
        import bz2
        import lzma

        self._stream = (
            bz2.BZ2Decompressor() if name == "bzip2" else lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY)
        )

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def feed(self, data: bytes) -> Iterator[bytes]:
        import lzma

        while True:
            try:
                piece = self._stream.decompress(data, PIECE)
            except (OSError, lzma.LZMAError) as error:
                raise ValueError(str(error)) from error
            yield piece
            data = b""
            if self._stream.eof or self._stream.needs_input:
                return


class _Zstd:
    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise UnsupportedError("zstd compression", f"install the package {error.name}") from error
        self._error = zstandard.ZstdError
        self._stream = zstandard.ZstdDecompressor(max_window_size=MAX_MEMORY).decompressobj()

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            yield self._stream.decompress(data)
        except self._error as error:
            raise ValueError(str(error)) from error


class Compression(NamedTuple):
    """A kind of compression.

    magics: how a member may start. slice_size: bytes to feed at a time; zstd's decoder gives all that they stand for
    at once, which are up to 32768 times as many.
    """

    name: str
    magics: tuple[bytes, ...]
    slice_size: int
    decoder: Callable[[], Decoder]

    def starts(self, head: bytes) -> bool:
        """Tell whether a member starts with `head`."""
        return head.startswith(self.magics)


COMPRESSIONS: tuple[Compression, ...] = (
    Compression("gzip", (b"\x1f\x8b\x08",), 1 << 16, _Gzip),
    Compression(
        "zstd", (b"\x28\xb5\x2f\xfd", *(bytes((0x50 + low, 0x2A, 0x4D, 0x18)) for low in range(16))), 1 << 12, _Zstd
    ),
    Compression("xz", (b"\xfd7zXZ\0",), 1 << 16, lambda: _Buffered("xz")),
    Compression("bzip2", tuple(b"BZh%d" % digit for digit in range(1, 10)), 1 << 16, lambda: _Buffered("bzip2")),
)
MAGIC_SIZE = max(len(magic) for entry in COMPRESSIONS for magic in entry.magics)


def find_compression(source: Source) -> Compression | None:
    """Return how the file is compressed, None if it is not."""
    head = source.read(0, MAGIC_SIZE)
    return next((entry for entry in COMPRESSIONS if entry.starts(head)), None)


def read_head(path: str, size: int) -> bytes:
    """Return the first bytes of a file, or of what is inside it if it is compressed. Raises KvmDbgError."""
    source = FileSource(path)
    try:
        compression = find_compression(source)
        if compression is None:
            return source.read(0, size)
        return _Pieces(decompress(source, compression)).take(size)[:size]
    finally:
        source.close()


def decompress(
    stream: Source, compression: Compression, progress: Callable[[str], None] | None = None
) -> Generator[bytes, None, bool]:
    """Yield the bytes inside `stream` in order; return False if it ends too early.

    Raises:
        FormatError: the stream is damaged, or what follows a member is not another one.
    """
    place = 0
    data = b""
    decoder: Decoder | None = None
    step = stream.size // _STEPS + 1
    mark = step if progress is not None and stream.size >= _QUIET else stream.size + 1
    while True:
        if not data:
            if progress is not None and place >= mark:
                progress(f"decompressing {stream.path}: {100 * place // stream.size} %")
                mark += step
            data = stream.read(place, compression.slice_size)
            place += len(data)
            if not data:
                return decoder is None
        if decoder is None:
            data = data.lstrip(b"\0")
            if not data:
                continue
            if len(data) < MAGIC_SIZE:
                more = stream.read(place, MAGIC_SIZE)
                place += len(more)
                data += more
            if not compression.starts(data):
                if any(magic.startswith(data) for magic in compression.magics):
                    return False
                raise FormatError(
                    stream.path,
                    place - len(data),
                    f"{compression.name} stream",
                    "what follows the end of a member is not another one",
                )
            decoder = compression.decoder()
        try:
            yield from decoder.feed(data)
        except ValueError as error:
            raise FormatError(stream.path, place - len(data), f"{compression.name} stream", str(error)) from error
        data = b""
        if decoder.eof:
            data = decoder.unused_data
            decoder = None


class HeadSource(Source):
    """The first bytes of a file, for a look at what it is."""

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        self.size = len(data)
        self._data = data

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def close(self) -> None:
        """Nothing is held."""


class CompressedSource(Source):
    """The file inside a compressed one.

    Args:
        stream: the compressed file; closed with this source.
        compression: from `find_compression`.
        directory: the cache, below which the decompressed file is kept; None for a temporary one.
        progress: called with a line of text now and then.
        check: called with the first HEAD bytes before all is decompressed; may raise.

    Attributes:
        kept: the path of the decompressed file in the cache; None if it is not kept.

    Raises:
        FormatError: the compressed file is damaged.
        UnknownFormatError: nothing is inside.
        UnsupportedError: more than MAX_SIZE bytes are inside.
        FileAccessError: the decompressed file cannot be written, or there is no room for it.
    """

    def __init__(
        self,
        stream: Source,
        compression: Compression,
        *,
        directory: str | None = None,
        progress: Callable[[str], None] | None = None,
        check: Callable[[Source], object] | None = None,
    ) -> None:
        from pathlib import Path

        self.path = stream.path
        self.container = f"{compression.name}, {stream.container}" if stream.container else compression.name
        self._stream = stream
        self._compression = compression
        self._progress = progress
        kept = None if directory is None else _kept_path(Path(directory) / "image", stream)
        self._file = (_open_kept(kept) if kept is not None else None) or self._make(kept, check)
        self.size = self._file.size
        self.kept = str(kept) if kept is not None and kept.is_file() else None

    def _make(self, kept: Path | None, check: Callable[[Source], object] | None) -> FileSource:
        """Decompress into a file; into `kept` if the stream is whole."""
        import tempfile

        pieces = _Pieces(decompress(self._stream, self._compression, self._progress))
        head = pieces.take(HEAD)
        if not head:
            raise UnknownFormatError(self.path, f"is a {self._compression.name} file with nothing inside")
        if check is not None:
            check(HeadSource(self.path, head[:HEAD]))
        if kept is not None:
            _forget_unused(kept.parent)
        try:
            with tempfile.NamedTemporaryFile(dir=kept and kept.parent, prefix=".part-") as file:  # its mode is 0600
                self._write(chain((head,), pieces), file)
                self.ended = pieces.ended
                if kept is not None and self.ended:
                    os.fsync(file.fileno())  # or a crash could leave a file of holes under the name
                    with contextlib.suppress(OSError):  # another process was faster; no links in this file system
                        os.link(file.name, kept)
                return FileSource(file.name)
        except OSError as error:
            raise FileAccessError(self.path, f"cannot be decompressed: {error.strerror or error}") from error

    def _write(self, pieces: Iterator[bytes], file: IO[bytes]) -> None:
        size = unchecked = 0
        descriptor = file.fileno()
        zeros = bytes(_HOLE)
        self._check_space(descriptor, file.name, size)
        for piece in pieces:
            for at in range(0, len(piece), _HOLE):
                block = piece[at : at + _HOLE]
                if block != zeros[: len(block)]:
                    file.seek(size)
                    file.write(block)
                    unchecked += len(block)
                size += len(block)
            if size > MAX_SIZE:
                raise UnsupportedError(
                    f"a {self._compression.name} file of more than {MAX_SIZE} bytes inside", self.path
                )
            if unchecked >= _SPACE_CHECK:
                self._check_space(descriptor, file.name, size)
                unchecked = 0
        file.truncate(size)
        file.flush()

    def _check_space(self, descriptor: int, name: str, done: int) -> None:
        """Raise FileAccessError if less than SPARE bytes of disk are free."""
        status = os.fstatvfs(descriptor)
        if status.f_bavail * status.f_frsize < SPARE:
            raise FileAccessError(
                self.path,
                f"no room to decompress it: {os.path.dirname(name)} has less than {SPARE >> 20} MiB left after"
                f" {done >> 20} MiB; decompress it elsewhere, and open that",
            )

    def describe(self) -> tuple[tuple[str, str], ...]:
        outer = dict(self._stream.describe())
        return (*super().describe(), *((name, value) for name, value in outer.items() if name != "container"))

    def read(self, offset: int, size: int) -> bytes:
        return self._file.read(offset, size)

    def map(self) -> mmap.mmap | None:
        return self._file.map()

    def check_size(self) -> None:
        self._file.check_size()

    def close(self) -> None:
        self._file.close()
        self._stream.close()


class _Pieces:
    """The pieces of `decompress`, some of which can be taken before the others; `ended` once there are no more."""

    def __init__(self, pieces: Generator[bytes, None, bool]) -> None:
        self._pieces = pieces
        self.ended = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._pieces)
        except StopIteration as stop:
            self.ended = self.ended or bool(stop.value)  # asked again, a generator returns None
            raise

    def take(self, size: int) -> bytes:
        """Return at least `size` bytes, fewer only if there are no more."""
        parts = []
        for piece in self:
            parts.append(piece)
            size -= len(piece)
            if size <= 0:
                break
        return b"".join(parts)


def _kept_path(directory: Path, stream: Source) -> Path | None:
    """Return the place in the cache of what is inside a file, or a part of one; None if there can be none."""
    import hashlib

    try:
        directory.mkdir(parents=True, exist_ok=True)
        status = os.stat(stream.path)
    except OSError:
        return None
    identity: tuple[str | int, ...] = (
        os.path.realpath(stream.path),
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
    )
    if stream.place:
        identity = (*identity, stream.place, stream.size)
    return directory / hashlib.sha256(repr(identity).encode()).hexdigest()[:32]


def _open_kept(path: Path) -> FileSource | None:
    """Open a file in the cache, and note that it was used; None if it is not there."""
    try:
        file = FileSource(path)
    except KvmDbgError:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return file


def _forget_unused(directory: Path) -> None:
    """Remove what was not used for KEEP_DAYS days. Whoever has it open keeps what they have."""
    oldest = time.time() - KEEP_DAYS * 86400
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(entry.path)
