"""What an operating system means: the only place that joins image, arch, symbols and debuginfo.

`SYSTEMS` is the registry: a new operating system is a package here and one more entry. A system's modules are
imported when one of its kernels is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from kvm_dbg.arch.base import Paging, Walk
from kvm_dbg.errors import CommandError, KernelNotFoundError, UnsupportedError
from kvm_dbg.image.base import MemoryImage
from kvm_dbg.kernel.base import Kernel, OperatingSystem
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.symbols.base import Symbol

Progress = Callable[[str], None]


class Identity(NamedTuple):
    """What an image tells of one kernel without any kernel file; None where it does not say."""

    system: str
    arch: str
    release: str | None
    version: str | None
    paging: Paging | None
    slide: int | None
    build_id: str | None
    verified: bool
    text: str
    quirks: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return one line for a list of candidates."""
        return self.text


class KernelOptions(NamedTuple):
    """What a user says of the kernel to open; see `open_kernel`."""

    candidate: int | None = None
    index_directory: str | None = None
    search: tuple[str, ...] = ()
    force: bool = False
    layout: str | None = None
    progress: Progress | None = None


class System(Protocol):
    """An operating system, as the registry knows it."""

    name: str

    def identify(self, image: MemoryImage, progress: Progress | None) -> list[Identity]:
        """Return its kernels in the image, verified ones first. Raises KernelNotFoundError if there is none."""

    def open(self, image: MemoryImage, path: str | None, options: KernelOptions) -> Kernel:
        """Return one of its kernels, with the kernel file `path`. Raises KernelNotFoundError if there is none."""

    def owns(self, kernel: Kernel) -> bool:
        """Return whether the kernel is one of this system."""

    def room(self) -> OperatingSystem:
        """Return the system's functions."""


class _Linux:
    """Linux."""

    name = "Linux"

    def identify(self, image: MemoryImage, progress: Progress | None) -> list[Identity]:
        from kvm_dbg.kernel.linux.discovery import find_boots

        return [
            Identity(
                self.name,
                boot.arch,
                boot.release,
                boot.version,
                boot.paging,
                boot.slide,
                boot.build_id,
                boot.verified,
                boot.describe(),
                boot.quirks,
            )
            for boot in find_boots(image, progress)
        ]

    def open(self, image: MemoryImage, path: str | None, options: KernelOptions) -> Kernel:
        from kvm_dbg.kernel.linux.discovery import find_boots
        from kvm_dbg.kernel.linux.kernel import open_linux

        return open_linux(
            image,
            find_boots(image, options.progress, all_of_memory=options.candidate is not None),
            path,
            candidate=options.candidate,
            index_directory=options.index_directory,
            search=options.search,
            force=options.force,
        )

    def owns(self, kernel: Kernel) -> bool:
        from kvm_dbg.kernel.linux.kernel import LinuxKernel

        return isinstance(kernel, LinuxKernel)

    def room(self) -> OperatingSystem:
        from kvm_dbg.kernel.linux import LINUX

        return LINUX


class _NetBSD:
    """NetBSD."""

    name = "NetBSD"

    def identify(self, image: MemoryImage, progress: Progress | None) -> list[Identity]:  # noqa: ARG002 - it is quick
        from kvm_dbg.kernel.netbsd.boot import find_boots

        return [
            Identity(
                self.name,
                boot.arch.name if boot.arch is not None else image.info.machine or "?",
                boot.release,
                boot.version,
                boot.paging,
                0,
                None,
                boot.verified,
                boot.describe(),
            )
            for boot in find_boots(image)
        ]

    def open(self, image: MemoryImage, path: str | None, options: KernelOptions) -> Kernel:
        from kvm_dbg.kernel.netbsd.kernel import open_netbsd

        return open_netbsd(
            image,
            path,
            candidate=options.candidate,
            index_directory=options.index_directory,
            search=options.search,
            force=options.force,
            layout=options.layout,
        )

    def owns(self, kernel: Kernel) -> bool:
        from kvm_dbg.kernel.netbsd.kernel import NetbsdKernel

        return isinstance(kernel, NetbsdKernel)

    def room(self) -> OperatingSystem:
        from kvm_dbg.kernel.netbsd import NETBSD

        return NETBSD


class _FreeBSD:
    """FreeBSD."""

    name = "FreeBSD"

    def identify(self, image: MemoryImage, progress: Progress | None) -> list[Identity]:  # noqa: ARG002 - it is quick
        from kvm_dbg.kernel.freebsd.kernel import identify_freebsd

        return identify_freebsd(image)

    def open(self, image: MemoryImage, path: str | None, options: KernelOptions) -> Kernel:
        from kvm_dbg.kernel.freebsd.kernel import open_freebsd

        return open_freebsd(image, path, options)

    def owns(self, kernel: Kernel) -> bool:
        from kvm_dbg.kernel.freebsd.kernel import FreeBSDKernel

        return isinstance(kernel, FreeBSDKernel)

    def room(self) -> OperatingSystem:
        from kvm_dbg.kernel.freebsd import FREEBSD

        return FREEBSD


SYSTEMS: tuple[System, ...] = (_Linux(), _NetBSD(), _FreeBSD())


def _systems_for(image: MemoryImage, path: str | None) -> tuple[System, ...]:
    """Return the one system that the image or the kernel file names, else all."""
    from kvm_dbg.kernel.recognise import name_system

    name = name_system(image, path)
    return tuple(system for system in SYSTEMS if system.name == name) or SYSTEMS


def identify_kernels(image: MemoryImage, progress: Progress | None = None) -> list[Identity]:
    """Return the kernels in the image, in the order of `--kernel N`.

    Raises:
        KernelNotFoundError: there is none.
        UnsupportedError, FormatError: one that is not handled; an image that is corrupt where it was read.
    """
    problem: KernelNotFoundError | UnsupportedError | None = None
    for system in _systems_for(image, None):
        try:
            return system.identify(image, progress)
        except (KernelNotFoundError, UnsupportedError) as error:  # another system may run on this processor
            problem = problem or error
    raise problem or KernelNotFoundError("no operating system is built in")


def open_kernel(
    image: MemoryImage,
    vmlinux: str | None = None,
    *,
    candidate: int | None = None,
    index_directory: str | None = None,
    search: tuple[str, ...] = (),
    force: bool = False,
    layout: str | None = None,
    progress: Progress | None = None,
) -> Kernel:
    """Find the kernel in the image and join it with its symbols and types.

    Args:
        image: an opened image.
        vmlinux: the kernel file, which may be compressed; None to look in `search`, then in the usual places.
        candidate: which of several kernels in the image, from 1.
        index_directory: where indexes are kept, None for no index.
        search: directories to look for a kernel file in.
        force: use a kernel file that does not match.
        layout: a layout file, whose types a BSD's kernel gets in the place of its file's.
        progress: called with a line of text now and then while memory is searched.

    Raises:
        KernelNotFoundError: no kernel, several and none chosen, or no kernel file.
        KernelMismatchError: the named kernel file is of another kernel.
        FileAccessError, UnknownFormatError, FormatError: the named kernel file cannot be used.
    """
    options = KernelOptions(candidate, index_directory, search, force, layout, progress)
    if vmlinux is not None:
        from kvm_dbg.kernel.packed import unpack_kernel_file

        vmlinux = unpack_kernel_file(vmlinux, index_directory, progress)
    problem: KernelNotFoundError | UnsupportedError | None = None
    for system in _systems_for(image, vmlinux):
        try:
            return system.open(image, vmlinux, options)
        except (KernelNotFoundError, UnsupportedError) as error:
            if problem is None or (_lists_kernels(error) and not _lists_kernels(problem)):
                problem = error  # of the first system, or of the first that has a kernel in the image
    raise problem or KernelNotFoundError("no operating system is built in")


def _lists_kernels(error: KernelNotFoundError | UnsupportedError) -> bool:
    return isinstance(error, KernelNotFoundError) and bool(error.candidates)


def system_of(kernel: Kernel) -> OperatingSystem:
    """Return the room of the kernel's operating system.

    Raises:
        UnsupportedError: it belongs to none that is built in.
    """
    if kernel.room is not None:
        return kernel.room
    for system in SYSTEMS:
        if system.owns(kernel):
            return system.room()
    raise UnsupportedError(f"the operating system of a {type(kernel).__name__}")


def find_symbols(kernel: Kernel, names: Iterable[str], system: OperatingSystem | None = None) -> dict[str, Symbol]:
    """Return the found ones of `names`: symbols of the kernel, and where it has none, of its modules."""
    wanted = set(names)
    found = kernel.symbols.find_many(wanted)
    missing = wanted - found.keys()
    if missing:
        found |= (system or system_of(kernel)).all_symbols(kernel).find_many(missing)
    return found


def walk_address(kernel: Kernel, vaddr: int, task: int | None = None) -> Walk:
    """Translate `vaddr` with every page-table entry, in the kernel's space or that of the task at address `task`.

    Raises:
        NotMappedError, ReadError: the walk ended early.
        CommandError: the task has no address space of its own.
    """
    system = system_of(kernel)
    space = system.kernel_space(kernel) if task is None else system.address_space(kernel, task)
    if not isinstance(space, ImageSpace):
        raise CommandError("this address space has no page tables to show")
    return space.walk(vaddr)
