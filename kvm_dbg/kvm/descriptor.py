"""`Kvm`: one opened image with all that kvm(3) can ask of it, as methods that raise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import NamedTuple, Self

from kvm_dbg.errors import CommandError, KvmDbgError, SymbolNotFound
from kvm_dbg.image import open_image
from kvm_dbg.image.base import MemoryImage, PartialRead
from kvm_dbg.image.live import is_live
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.image.source import Source
from kvm_dbg.image.through import WriteThroughImage
from kvm_dbg.kernel import KernelOptions, find_symbols, open_kernel, system_of
from kvm_dbg.kernel.base import (
    AddressSpaceReader,
    Kernel,
    LoadAverage,
    LogRecord,
    Lwp,
    Module,
    OperatingSystem,
    Process,
    SystemSummary,
)
from kvm_dbg.kernel.space import ImageSpace, header_space
from kvm_dbg.kernel.usage import OpenFile
from kvm_dbg.kernel.write import write_memory
from kvm_dbg.kvm.constant import (
    KERN_PROC_ALL,
    KERN_PROC_GID,
    KERN_PROC_PGRP,
    KERN_PROC_PID,
    KERN_PROC_RGID,
    KERN_PROC_RUID,
    KERN_PROC_SESSION,
    KERN_PROC_TTY,
    KERN_PROC_UID,
)
from kvm_dbg.kvm.fill import terminal
from kvm_dbg.kvm.message import BAD_NAMELIST, NETBSD, NO_HEADER, read_only
from kvm_dbg.symbols.base import Symbol

FILTERS: dict[int, Callable[[Process], int | None]] = {
    KERN_PROC_PID: lambda process: process.pid,
    KERN_PROC_PGRP: lambda process: process.pgid,
    KERN_PROC_SESSION: lambda process: process.sid,
    KERN_PROC_TTY: terminal,
    KERN_PROC_UID: lambda process: process.uid,
    KERN_PROC_RUID: lambda process: process.ruid,
    KERN_PROC_GID: lambda process: process.gid,
    KERN_PROC_RGID: lambda process: process.rgid,
}
UNSIGNED = (KERN_PROC_TTY, KERN_PROC_UID, KERN_PROC_RUID, KERN_PROC_GID, KERN_PROC_RGID)
"""Filters by a 32-bit number without a sign, which C programs hand over in an int."""


class Partition(NamedTuple):
    """A dump partition on which no dump has been looked for: the file, and how to open the kernel then."""

    source: Source
    vmlinux: str | None
    options: KernelOptions


class Kvm:
    """A kernel memory image and its kernel. Use it in a `with` statement, or call `close`.

    Args:
        kernel: the kernel; or why there is none, which is then said wherever one is needed.
        writable: whether `write` may be used.
        name: path of the kernel file, "" without one.
        image: the image, if there is no kernel: read through the page tables that it names.

    Attributes:
        writable, name: see above.
        error: the text of the last error of the kvm(3) functions on this descriptor, "" before any.
        partition: the dump partition on which `kvm_dump_mkheader` has yet to find a dump, None for all others.
    """

    def __init__(
        self,
        kernel: Kernel | KvmDbgError,
        *,
        writable: bool = False,
        name: str = "",
        image: MemoryImage | None = None,
        partition: Partition | None = None,
    ) -> None:
        self.writable = writable
        self.name = name
        self.error = ""
        self.partition = partition
        self._closed = False
        self._join(kernel, image)

    def _join(self, kernel: Kernel | KvmDbgError, image: MemoryImage | None) -> None:
        self._kernel = kernel
        self._image = image if isinstance(kernel, KvmDbgError) else kernel.image
        self._room = None if isinstance(kernel, KvmDbgError) else system_of(kernel)
        self._space: ImageSpace | None = None  # of an image without a kernel
        self._known: tuple[Process, ...] | None = None  # all processes, once they were all found

    def attach(self, other: Kvm) -> None:
        """Become what `other` is, which must not be used any more; for a partition on which a dump was found."""
        self.partition = None
        self._join(other._kernel, other._image)

    @property
    def kernel(self) -> Kernel:
        """Return the kernel that the methods ask; for everything that kvm(3) has no name for.

        Raises:
            KvmDbgError: there is none.
        """
        if isinstance(self._kernel, KvmDbgError):
            raise self._kernel
        return self._kernel

    @property
    def system(self) -> str | None:
        """Return the name of the operating system in the image."""
        if self._room is not None:
            return self._room.name
        return self._image.info.system if self._image is not None else NETBSD

    @property
    def _system(self) -> OperatingSystem:
        self.check_open()
        if self._room is None:
            _ = self.kernel
            raise CommandError(NO_HEADER)
        return self._room

    def check_open(self) -> None:
        """Raise CommandError if the descriptor has been closed, FileAccessError if the machine is gone."""
        if self._closed:
            raise CommandError("this image has been closed")
        if not isinstance(self._kernel, KvmDbgError) and self._kernel.image.live:
            self._kernel.image.refresh()
            self._kernel.refresh()

    @property
    def image(self) -> MemoryImage:
        """Return the image. Raises CommandError if there is none yet."""
        if self._image is None:
            raise CommandError(NO_HEADER)
        return self._image

    @property
    def page_size(self) -> int:
        """Return the size of a page in bytes."""
        return 1 << self.kernel.arch.page_shift

    def close(self) -> None:
        """Close the image; what was written is forgotten. A second time, nothing happens."""
        if not self._closed:
            self._closed = True
            self._known = None
            if self._image is not None:
                self._image.close()
            if self.partition is not None:
                self.partition.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def space(self, pid: int | None = None) -> AddressSpaceReader:
        """Return the address space of process `pid`, or the kernel's for None. Raises CommandError, ReadError."""
        if pid is None and isinstance(self._kernel, KvmDbgError):
            return self._bare_space()
        if pid is None:
            return self._system.kernel_space(self.kernel)
        return self._system.address_space(self.kernel, self.process(pid).address)

    def _bare_space(self) -> AddressSpaceReader:
        """Return the kernel's address space by what the image alone tells."""
        self.check_open()
        if self._space is None:
            self._space = header_space(self.image)
        if self._space is None:
            raise self._kernel if isinstance(self._kernel, KvmDbgError) else CommandError(NO_HEADER)
        return self._space

    def read(self, address: int, size: int, *, pid: int | None = None) -> bytes:
        """Return `size` bytes at the virtual address, in the kernel or in process `pid`. Raises ReadError."""
        return self.space(pid).read(address, size)

    def read_partial(self, address: int, size: int, *, pid: int | None = None) -> PartialRead:
        """Return what is there of the bytes, and which virtual ranges are not."""
        return self.space(pid).read_partial(address, size)

    def write(self, address: int, data: bytes, *, pid: int | None = None) -> None:
        """Write into the private copy of a dump's memory, whose file never changes, or into live memory itself.

        Raises:
            CommandError, ReadError, FileAccessError: as `write_memory`.
        """
        if not self.writable:
            raise CommandError(read_only(self.system))
        write_memory(self.kernel, self.space(pid), address, data)
        self._known = None

    def nlist(self, names: Iterable[str]) -> dict[str, Symbol]:
        """Return the found ones of `names`, in the kernel and in its modules. Raises CommandError without a kernel."""
        if isinstance(self._kernel, KvmDbgError):
            self.check_open()
            raise CommandError(NO_HEADER if self._image is None else BAD_NAMELIST)
        return find_symbols(self.kernel, names, self._system)

    def processes(self, op: int = KERN_PROC_ALL, argument: int = 0) -> Iterator[Process]:
        """Yield the processes that the filter keeps: KERN_PROC_* and its argument, as for kvm_getprocs.

        Raises:
            CommandError: no such filter.
            ReadError, CorruptError: after the last that could be found.
        """
        if isinstance(self._kernel, KvmDbgError):
            raise self._without("nprocs")
        if op != KERN_PROC_ALL and op not in FILTERS:
            raise CommandError(f"no process filter {op}; the filters are KERN_PROC_ALL to KERN_PROC_RGID, 0 to 8")
        key = FILTERS.get(op)
        wanted = argument & 0xFFFFFFFF if op in UNSIGNED else argument
        for process in self._everyone():
            if key is None or key(process) == wanted:
                yield process

    def _everyone(self) -> Iterator[Process]:
        system = self._system
        if self._known is not None:
            yield from self._known
            return
        found: list[Process] = []
        for process in system.for_each_process(self.kernel):
            found.append(process)
            yield process
        if not self.kernel.image.live and self.kernel.room is None:
            self._known = tuple(found)

    def _without(self, symbol: str) -> KvmDbgError:
        """Return what to raise without a kernel: that a symbol is unknown, or that there is no memory at all."""
        self.check_open()
        return CommandError(NO_HEADER) if self._image is None else SymbolNotFound(symbol)

    def process(self, pid: int) -> Process:
        """Return the process `pid`. Raises CommandError if there is none."""
        for process in self.processes(KERN_PROC_PID, pid):
            return process
        raise CommandError(f"no process with PID {pid} in this image")

    def lwps(self, pid: int | None = None) -> Iterator[Lwp]:
        """Yield the threads of one process or of all."""
        return self._system.for_each_lwp(self.kernel, pid)

    def arguments(self, process: Process) -> list[bytes] | None:
        """Return a process's argv; None for kernel threads and zombies. Raises ReadError."""
        return self._system.read_arguments(self.kernel, process)

    def environment(self, process: Process) -> list[bytes] | None:
        """Return a process's environment; None for kernel threads and zombies. Raises ReadError."""
        return self._system.read_environment(self.kernel, process)

    def files(self, pid: int | None = None) -> Iterator[OpenFile]:
        """Yield the open files of one process or of all: what has a descriptor."""
        return (file for file in self._system.for_each_file(self.kernel, pid) if not file.role)

    def load_average(self) -> LoadAverage:
        """Return the load averages. Raises SymbolNotFound, ReadError."""
        if isinstance(self._kernel, KvmDbgError):
            raise self._without("averunnable")
        return self._system.read_load_average(self.kernel)

    def log(self) -> Iterator[LogRecord]:
        """Yield the kernel's log, oldest first."""
        return self._system.for_each_log_record(self.kernel)

    def modules(self) -> Iterator[Module]:
        """Yield the loaded modules."""
        return self._system.for_each_module(self.kernel)

    def summary(self) -> SystemSummary:
        """Return what the command `sys` shows."""
        return self._system.read_summary(self.kernel)


def open_kvm(
    images: str | Iterable[str],
    vmlinux: str | None = None,
    *,
    writable: bool = False,
    base: int | None = None,
    hole: tuple[int, int] | None = None,
    format: str | None = None,  # noqa: A002 - the name users know from the command line
    offset: int | None = None,
    candidate: int | None = None,
    force: bool = False,
    layout: str | None = None,
    search: Iterable[str] = (),
    index_directory: str | None = None,
    live: bool = False,
    qmp: str | None = None,
) -> Kvm:
    """Open an image, or the parts of a split one, with the kernel in it.

    Args:
        images: the path of the image, or the paths of a split image's parts.
        vmlinux: the kernel file; without one the usual places and `search` are searched.
        writable: allow `write`, into a private copy of a dump's memory; into live memory itself.
        base: physical address of raw RAM's first byte.
        hole: (start, end) of the hole in raw RAM.
        format: a reader's name, for a file that is not recognised.
        offset: where the dump starts in a dump partition, in bytes.
        candidate: which of several kernels in the image, from 1.
        force: use a vmlinux that does not match.
        layout: a layout file, whose types a BSD's kernel gets in the place of its file's.
        search: directories to look for vmlinux in, before the usual ones.
        index_directory: where indexes of symbols and types, and decompressed files, are kept; None for nowhere.
        live: memory changes while it is read; without images, that of this machine.
        qmp: where the monitor of a virtual machine listens, a socket's path or HOST:PORT; no images then.

    Raises:
        KvmDbgError: the image or the named kernel file cannot be used.
    """
    paths = (images,) if isinstance(images, str) else tuple(images)
    image = open_image(
        paths,
        base=base,
        hole=hole,
        format=format,
        offset=offset,
        live=live,
        qmp=qmp,
        write=writable and (live or qmp is not None or (len(paths) == 1 and is_live(paths[0]))),
        cache_directory=index_directory,
    )
    options = KernelOptions(candidate, index_directory, tuple(search), force, layout)
    return join_kernel(image, vmlinux, options, writable=writable)


def join_kernel(image: MemoryImage, vmlinux: str | None, options: KernelOptions, *, writable: bool) -> Kvm:
    """Find the kernel in an opened image; the image is closed if there is none. Raises as `open_kvm`."""
    try:
        kernel = open_kernel(
            image if not writable else WriteThroughImage(image) if image.live else OverlayImage(image),
            vmlinux,
            candidate=options.candidate,
            force=options.force,
            layout=options.layout,
            search=options.search,
            index_directory=options.index_directory,
        )
    except KvmDbgError:
        image.close()
        raise
    return Kvm(kernel, writable=writable, name=vmlinux or getattr(kernel, "vmlinux_path", None) or "")


def open_without_files() -> Kvm:
    """Open the running kernel by /proc alone, which needs no privilege."""
    from kvm_dbg.kernel.linux.live_proc import ProcKernel

    return Kvm(ProcKernel())
