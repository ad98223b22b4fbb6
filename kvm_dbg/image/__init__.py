"""Which bytes are at a physical address: readers of memory images.

from kvm_dbg.image import open_image

with open_image("vmcore") as image:
    image.read(0x1000, 16)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvm_dbg.errors import CommandError, UnknownFormatError
from kvm_dbg.image.base import MemoryImage
from kvm_dbg.image.source import FileSource, Source

__all__ = ["FORMATS", "ImageFormat", "MemoryImage", "open_image"]


Progress = Callable[[str], None]


class Options(NamedTuple):
    """What the user said about a file that cannot say it itself, and how to open it."""

    base: int | None
    hole: tuple[int, int] | None
    format: str | None
    offset: int | None = None
    cache_directory: str | None = None
    progress: Progress | None = None
    live: bool = False
    write: bool = False


class ImageFormat(NamedTuple):
    """A format: `probe` is True (ours), False (not ours), or raises (ours, but broken: at which offset)."""

    name: str
    title: str
    probe: Callable[[Source], bool]
    open: Callable[[Sequence[Source], Options], MemoryImage]


def _probe_live(source: Source) -> bool:
    from kvm_dbg.image import live

    return live.is_live(source.path)


def _open_live(sources: Sequence[Source], options: Options) -> MemoryImage:
    from kvm_dbg.image import live

    return live.open_device(_only(sources, options))


def _probe_elf(source: Source) -> bool:
    from kvm_dbg.image import elfcore

    return elfcore.probe(source)


def _open_elf(sources: Sequence[Source], options: Options) -> MemoryImage:
    from kvm_dbg.image.elfcore import ElfCoreImage

    return ElfCoreImage(_only(sources, options))


def _probe_kdump(source: Source) -> bool:
    from kvm_dbg.image import kdump

    return kdump.probe(source)


def _open_kdump(sources: Sequence[Source], options: Options) -> MemoryImage:
    from kvm_dbg.image.kdump import KdumpImage

    for source in sources:
        _no_addresses(source, options)
        if not _probe_kdump(source):
            raise CommandError(f"{source.path} is not part of a split kdump: open it alone")
    return KdumpImage(sources)


def _probe_freebsd_minidump(source: Source) -> bool:
    from kvm_dbg.image import freebsd_minidump

    return freebsd_minidump.probe(source)


def _open_freebsd_minidump(sources: Sequence[Source], options: Options) -> MemoryImage:
    from kvm_dbg.image.freebsd_minidump import FreebsdMinidumpImage

    return FreebsdMinidumpImage(_only(sources, options))


def _probe_lime(source: Source) -> bool:
    from kvm_dbg.image import lime

    return lime.probe(source)


def _open_lime(sources: Sequence[Source], options: Options) -> MemoryImage:
    from kvm_dbg.image.lime import LimeImage

    return LimeImage(_only(sources, options))


def _probe_netbsd(source: Source) -> bool:
    from kvm_dbg.image import netbsd_kcore

    return netbsd_kcore.probe(source)


def _open_netbsd(sources: Sequence[Source], options: Options) -> MemoryImage:
    from kvm_dbg.image.netbsd_kcore import NetbsdImage

    return NetbsdImage(_only(sources, options))


def _probe_netbsd_dump(source: Source) -> bool:
    from kvm_dbg.image import netbsd_kcore

    return netbsd_kcore.probe_partition(source)


def _open_netbsd_dump(sources: Sequence[Source], options: Options) -> MemoryImage:
    from kvm_dbg.image.netbsd_kcore import NetbsdImage, find_dump

    source = _only(sources, options._replace(offset=None))
    return NetbsdImage(source, find_dump(source) if options.offset is None else options.offset)


def _probe_freebsd_dump(source: Source) -> bool:
    from kvm_dbg.image import freebsd_dump

    return freebsd_dump.probe(source)


def _open_freebsd_dump(sources: Sequence[Source], options: Options) -> MemoryImage:
    """Open what is inside a dump partition."""
    from kvm_dbg.image.freebsd_dump import DumpSource, find_header

    partition = _only(sources, options._replace(offset=None))
    header = find_header(partition, options.offset, anywhere=options.format is not None)
    inside = options._replace(format=None, offset=None)
    source = _look_through(DumpSource(partition, header), inside)
    return _find_format(source, inside).open([source], inside)


def _probe_raw(source: Source) -> bool:
    from kvm_dbg.image import raw
    from kvm_dbg.image.foreign import name_foreign

    return name_foreign(source) is None and raw.probe(source)


def _open_raw(sources: Sequence[Source], options: Options) -> MemoryImage:
    from kvm_dbg.image.raw import RawImage

    source = _single(sources)
    _no_offset(source, options)
    if options.live and not isinstance(source, FileSource):
        raise CommandError(f"{source.path} is {source.container}: no guest has that for its RAM")
    assumed = options.format is None and options.base is None and not options.live
    image = RawImage(source, options.base or 0, options.hole, assumed=assumed)
    image.live = options.live
    return image


FORMATS: tuple[ImageFormat, ...] = (
    ImageFormat("live", "memory of this machine", _probe_live, _open_live),
    ImageFormat("elf", "ELF vmcore", _probe_elf, _open_elf),
    ImageFormat("kdump", "kdump-compressed", _probe_kdump, _open_kdump),
    ImageFormat("freebsd-minidump", "FreeBSD minidump", _probe_freebsd_minidump, _open_freebsd_minidump),
    ImageFormat("lime", "LiME", _probe_lime, _open_lime),
    ImageFormat("netbsd", "NetBSD crash dump", _probe_netbsd, _open_netbsd),
    ImageFormat("netbsd-dump", "NetBSD dump partition", _probe_netbsd_dump, _open_netbsd_dump),
    ImageFormat("freebsd-dump", "FreeBSD dump partition", _probe_freebsd_dump, _open_freebsd_dump),
    ImageFormat("raw", "raw RAM", _probe_raw, _open_raw),
)
NOT_PROBED = ("raw", "netbsd-dump", "freebsd-dump")
"""Formats whose files need not look like them at their start, if the user names them."""


def open_image(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    base: int | None = None,
    hole: tuple[int, int] | None = None,
    format: str | None = None,  # noqa: A002 - the word of the field
    offset: int | None = None,
    live: bool = False,
    write: bool = False,
    qmp: str | None = None,
    cache_directory: str | None = None,
    progress: Progress | None = None,
) -> MemoryImage:
    """Open a memory image, whatever its format.

    Args:
        paths: the file, or all files of a split dump in any order; none, with `live`, for the memory of this machine.
        base: physical address of the first byte of raw RAM.
        hole: (start, end) of the physical addresses that raw RAM leaves out.
        format: the name of one of FORMATS, if it is not to be found out.
        offset: where the dump starts in a dump partition, in bytes (of FreeBSD's: one of its two headers); without it,
            it is searched for.
        live: memory that changes while it is read: this machine's, or raw RAM that a running guest has as a file.
        write: open it so that `MemoryImage.put` can change it; for memory that is live.
        qmp: where the monitor of a virtual machine listens, a socket's path or HOST:PORT; no paths then.
        cache_directory: where compressed files are kept decompressed; None for temporary files.
        progress: called with a line of text now and then while a file is decompressed.

    Raises:
        FileAccessError: a file cannot be read.
        UnknownFormatError: a file is no memory image; says what it is, where that is known.
        FormatError: a file is a memory image, but damaged where it cannot be read without.
        CommandError: the arguments contradict each other or the file.
    """
    from kvm_dbg.image.live import is_live, open_live

    names = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if qmp is not None:
        if names or live or format is not None or base is not None or hole is not None or offset is not None:
            raise CommandError(
                f"{qmp}: QEMU says what the guest's memory is; nothing else can be named beside its socket"
            )
        from kvm_dbg.image.qmp_image import open_guest

        return open_guest(qmp, writable=write, progress=progress)
    if not names and live:
        return open_live(writable=write)
    if not names:
        raise CommandError("no file to open was given")
    known = [entry.name for entry in FORMATS]
    if format is not None and format not in known:
        raise CommandError(f"no format is called {format!r}: one of {', '.join(known)}")
    options = Options(base, hole, format, offset, cache_directory, progress, live, write)
    if write and not live and not is_live(names[0]):
        raise CommandError(
            f"{os.fspath(names[0])}: --write is for memory that is live (--live); what is written into a dump goes into"
            " a private copy, without any option"
        )
    sources: list[Source] = []
    try:
        for name in names:
            sources.append(_open_source(name, options))
        image = _find_format(sources[0], options).open(sources, options)
        if live and not image.live:
            raise CommandError(f"{sources[0].path} is a dump, which does not change: --live is for the RAM of a guest")
        return image
    except BaseException:
        for source in sources:
            source.close()
        raise


def _open_source(path: str | os.PathLike[str], options: Options) -> Source:
    """Open a file, and look through compression, and through a flattened stream unless it was said to be raw."""
    from kvm_dbg.image.live import LiveSource, is_live

    if is_live(path):
        return LiveSource(path, writable=options.write)
    return _look_through(FileSource(path, writable=options.write), options)


def _look_through(source: Source, options: Options) -> Source:
    """Return the source of what is inside compression and a flattened stream; closes what it is given if that fails."""
    from kvm_dbg.image import compressed, flattened

    try:
        compression = compressed.find_compression(source)
        if compression is not None:
            source = compressed.CompressedSource(
                source,
                compression,
                directory=options.cache_directory,
                progress=options.progress,
                check=None if options.format is not None else lambda head: _check_head(head, options),
            )
        if options.format != "raw" and _is_flattened(source):
            source = flattened.FlattenedSource(source)
    except BaseException:
        source.close()
        raise
    return source


def _is_flattened(source: Source) -> bool:
    from kvm_dbg.image import flattened

    return source.read(0, len(flattened.SIGNATURE)) == flattened.SIGNATURE


def _check_head(head: Source, options: Options) -> None:
    """Raise UnknownFormatError if the first bytes of a compressed file tell that no memory image is inside."""
    if not _is_flattened(head):
        _find_format(head, options)


def _find_format(source: Source, options: Options) -> ImageFormat:
    """Return the format that the user named, else the first that calls the file its own."""
    named = options.format
    if named is None and options.offset is not None:
        from kvm_dbg.image.freebsd_dump import is_header

        named = "freebsd-dump" if is_header(source, options.offset) else None
    if named in NOT_PROBED:
        return next(entry for entry in FORMATS if entry.name == named)
    for entry in FORMATS:
        if options.format in (None, entry.name) and entry.probe(source):
            return entry
    from kvm_dbg.image.foreign import name_foreign

    what = name_foreign(source)
    if options.format is not None:
        text = f"is not of the format {options.format!r}" + (f": it is {what}" if what else "")
    elif what is not None:
        text = f"is {what}"
    else:
        names = ", ".join(entry.title for entry in FORMATS[:-1])
        text = f"is no memory image that is known ({names}); if it is raw RAM, say so: --format raw"
    raise UnknownFormatError(source.path, text)


def _single(sources: Sequence[Source]) -> Source:
    """Return the only source; only kdump-compressed dumps are split."""
    if len(sources) != 1:
        raise CommandError(f"{sources[0].path} is not part of a split dump: open it alone")
    return sources[0]


def _only(sources: Sequence[Source], options: Options) -> Source:
    """Return the only source of a format that knows its addresses."""
    _no_addresses(sources[0], options)
    return _single(sources)


def _no_addresses(source: Source, options: Options) -> None:
    if options.base is not None or options.hole is not None:
        raise CommandError(f"{source.path} says itself where its memory is: base and hole are for raw RAM")
    _no_offset(source, options)


def _no_offset(source: Source, options: Options) -> None:
    if options.offset is not None:
        raise CommandError(f"{source.path}: an offset is for a dump partition: --format netbsd-dump or freebsd-dump")
