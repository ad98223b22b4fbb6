"""Crash dumps as kvm(3) opens them, and what savecore(8) does with a dump partition: kvm_dump(3).

Source: NetBSD share/man kvm_open(3), kvm_dump(3); lib/libkvm/kvm.c (texts, order of checks).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

from kvm_dbg.errors import CommandError, FormatError, KvmDbgError, SymbolNotFound, UnknownFormatError
from kvm_dbg.image import open_image
from kvm_dbg.image.base import MemoryImage
from kvm_dbg.image.netbsd_kcore import PARTITION, NetbsdImage, probe_partition
from kvm_dbg.image.netbsd_kcore_header import (
    CORE_CPU,
    CORE_DATA,
    KCORE_HDR_SIZE,
    KCORE_MAGIC,
    KCORE_SEG_SIZE,
    KCORESEG_MAGIC,
    join_midmag,
)
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.image.source import FileSource
from kvm_dbg.image.writable import WritableImage
from kvm_dbg.kernel import KernelOptions
from kvm_dbg.kvm.descriptor import Kvm, Partition, join_kernel
from kvm_dbg.kvm.message import NETBSD, NO_HEADER
from kvm_dbg.symbols.elf import ElfSymbolTable

DUMPMAG = "dumpmag"
DUMPMAG_SIZE = 4  # bytes; uint32_t in sys/arch/amd64/amd64/machdep.c
IMAGE_OPTIONS = ("base", "hole", "format", "offset")


def open_descriptor(corefile: str | Sequence[str], execfile: str | None, *, writable: bool, **options: Any) -> Kvm:
    """Open an image as the manual has it. Options are those of `open_kvm`.

    A crash dump of NetBSD opens although the kernel file has no symbols; a dump partition, before its dump is found.

    Raises:
        KvmDbgError: the image or the named kernel file cannot be used.
    """
    paths = (corefile,) if isinstance(corefile, str) else tuple(corefile)
    where = {name: options.pop(name, None) for name in IMAGE_OPTIONS}
    if "search" in options:
        options["search"] = tuple(options["search"])
    kernel_options = KernelOptions(**options)
    if where["format"] == PARTITION and where["offset"] is None and len(paths) == 1:
        partition = Partition(FileSource(paths[0]), execfile, kernel_options)
        return Kvm(CommandError(NO_HEADER), writable=writable, name=execfile or "", partition=partition)
    image = open_image(paths, **where, cache_directory=kernel_options.index_directory)
    return _open_kernel(image, execfile, kernel_options, writable=writable)


def _open_kernel(image: MemoryImage, execfile: str | None, options: KernelOptions, *, writable: bool) -> Kvm:
    problem = _find_problem(execfile) if image.info.system == NETBSD and execfile is not None else None
    if problem is None:
        return join_kernel(image, execfile, options, writable=writable)
    return Kvm(problem, writable=writable, name=execfile or "", image=OverlayImage(image) if writable else image)


def _find_problem(execfile: str | None) -> KvmDbgError | None:
    """Return why a kernel file, which is there, has no symbols; None if it has."""
    try:
        ElfSymbolTable(execfile or "").close()
    except (UnknownFormatError, FormatError) as error:
        return error
    except KvmDbgError:
        pass  # whoever opens it says the same
    return None


def make_header(kd: Kvm, offset: int) -> int:
    """Find the dump at `offset` of the descriptor's partition; return the size of its header, or 0 if there is none.

    Raises:
        CommandError: the descriptor has memory, the partition ends there.
        KvmDbgError: the dump is damaged, of another machine, or its kernel cannot be opened.
    """
    partition = kd.partition
    if partition is None:
        kd.check_open()
        raise CommandError("already has a dump header")
    source = partition.source
    head = source.read(offset, KCORE_SEG_SIZE) if offset >= 0 else b""
    if len(head) < KCORE_SEG_SIZE:
        raise CommandError(
            f"read {len(head):x} bytes at offset {offset:x} for cpu_hdr instead of requested {KCORE_SEG_SIZE}"
        )
    if not probe_partition(source, offset):
        kd.error = "invalid magic in cpu_hdr"
        return 0
    size = int.from_bytes(head[4:], "little")
    held = min(size, max(source.size - offset - KCORE_SEG_SIZE, 0))
    if held < size:
        raise CommandError(f"size {held} != cpu_hdr.csize {size}")
    image = NetbsdImage(FileSource(source.path), offset)  # one of its own: if this fails, the partition stays open
    try:
        opened = _open_kernel(image, partition.vmlinux, partition.options, writable=kd.writable)
    except BaseException:
        image.close()
        raise
    source.close()
    kd.attach(opened)
    return KCORE_SEG_SIZE + size


def write_header(kd: Kvm, file: BinaryIO, size: int) -> None:
    """Write what stands in front of the memory in savecore's file: kcore_hdr, CORE_CPU, and the head of CORE_DATA.

    Raises:
        CommandError: the descriptor has no dump of NetBSD.
        OSError: the file cannot be written.
    """
    header = _dump_of(kd, "no valid dump header(s)").header
    align = header.machine.align
    hdrsize = KCORE_HDR_SIZE + -KCORE_HDR_SIZE % align
    cpu_data = header.cpu_data + bytes(-len(header.cpu_data) % align)
    kcore_hdr = join_midmag(0, header.mid, KCORE_MAGIC) + struct.pack("<HHI", hdrsize, KCORE_SEG_SIZE, 2)
    file.write(kcore_hdr.ljust(hdrsize, b"\0"))
    file.write(join_midmag(CORE_CPU, 0, KCORESEG_MAGIC) + struct.pack("<I", len(cpu_data)) + cpu_data)
    file.write(join_midmag(CORE_DATA, 0, KCORESEG_MAGIC) + struct.pack("<I", size & 0xFFFFFFFF))


def invalidate_dump(kd: Kvm) -> None:
    """Clear the variable by which savecore(8) knows a dump; only in the private copy, the file never changes.

    Raises:
        CommandError: the descriptor has no dump of NetBSD, or was not opened for writing.
        SymbolNotFound, ReadError: the variable is not found, or not in the dump.
    """
    _dump_of(kd, NO_HEADER)
    symbol = kd.nlist([DUMPMAG]).get(DUMPMAG)
    if symbol is None:
        raise SymbolNotFound(DUMPMAG)
    if not kd.writable:
        raise CommandError(f"cannot invalidate dump: {os.strerror(9)}")  # EBADF, as pwrite(2) has it
    kd.write(symbol.address, bytes(DUMPMAG_SIZE))


def _dump_of(kd: Kvm, text: str) -> NetbsdImage:
    """Return the dump below a descriptor. Raises CommandError with `text` if it has none."""
    kd.check_open()
    image = kd.image if kd.partition is None else None
    image = image.image if isinstance(image, WritableImage) else image
    if not isinstance(image, NetbsdImage):
        raise CommandError(text)
    return image
