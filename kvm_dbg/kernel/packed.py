"""Kernel files that are kept compressed: decompressed once, into the cache, where debuggers can read them as well."""

from __future__ import annotations

from collections.abc import Callable

from kvm_dbg.errors import FileAccessError, UnknownFormatError, UnsupportedError
from kvm_dbg.image.compressed import CompressedSource, find_compression
from kvm_dbg.image.source import FileSource, Source

ELF_MAGIC = b"\x7fELF"
SUFFIXES = ("", ".gz", ".xz", ".zst")  # of kernel files that are looked for


def unpack_kernel_file(path: str, directory: str | None, progress: Callable[[str], None] | None = None) -> str:
    """Return the path of a kernel file that can be read at any place: its own, or of what is inside it.

    Args:
        path: the file, as the user named it.
        directory: the cache, None for none.
        progress: called with a line of text now and then.

    Raises:
        FileAccessError: it cannot be read to its end, or there is no room for what is inside.
        UnknownFormatError: what is inside is no ELF file.
        FormatError: it is damaged, or cut off.
        UnsupportedError: it is compressed, and there is no cache.
    """
    try:
        source = FileSource(path)
    except (FileAccessError, UnknownFormatError):
        return path  # whoever opens it as a kernel file says what is wrong with it
    compression = find_compression(source)
    if compression is None:
        source.close()
        return path
    if directory is None:
        source.close()
        raise UnsupportedError(
            f"a kernel file compressed by {compression.name} without a cache directory",
            f"decompress {path} first, and name that",
        )
    try:
        inside = CompressedSource(source, compression, directory=directory, progress=progress, check=_check)
    except BaseException:
        source.close()
        raise
    kept = inside.kept
    inside.close()
    if kept is None:
        raise UnknownFormatError(path, f"the {compression.name} file ends too early")
    return kept


def _check(head: Source) -> None:
    """Raise UnknownFormatError if what is inside is no ELF file."""
    if head.read(0, len(ELF_MAGIC)) != ELF_MAGIC:
        raise UnknownFormatError(head.path, "is compressed, and what is inside is no ELF file")
