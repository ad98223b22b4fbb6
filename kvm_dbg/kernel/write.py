"""Writing into a kernel's memory: into the private copy of a dump, or into the kernel that runs.

A dump's copy takes every write. What is written into a running kernel is looked at first, as a whole: all of it must be
mapped, to RAM; where the page tables forbid writing, and in code, it takes `force`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from kvm_dbg.errors import CommandError, ConfirmationError, NotInImageError, ReadError
from kvm_dbg.image.attached import NAME as ATTACHED
from kvm_dbg.image.through import WriteThroughImage
from kvm_dbg.image.writable import Change, WritableImage
from kvm_dbg.kernel import system_of
from kvm_dbg.kernel.base import AddressSpaceReader, Kernel
from kvm_dbg.kernel.space import ImageSpace


def write_memory(kernel: Kernel, space: AddressSpaceReader, vaddr: int, data: bytes, *, force: bool = False) -> Change:
    """Write `data` at `vaddr` of `space`; every space of the image sees it.

    Args:
        kernel: whose image it is.
        space: the address space.
        vaddr: where to start.
        data: the bytes.
        force: into a running kernel: even where it is code, or mapped for reading only.

    Raises:
        NotMappedError, ReadError: an address is not mapped, or is no RAM; nothing is written then.
        ConfirmationError: somebody has to agree to the first write into a running kernel; nothing is written.
        CommandError: the image cannot be written to, or not without `force`, or has another kernel by now; nothing
            is written.
        FileAccessError: the operating system refuses it; nothing remains written.
    """
    image = _writable(kernel)
    if isinstance(image, WriteThroughImage):
        kernel.refresh()  # time has passed: it must still be this kernel, and mapped as it is now
    page_size = 1 << kernel.arch.page_shift
    pieces = []
    done = 0
    while done < len(data):
        length = min(page_size - (vaddr + done) % page_size, len(data) - done)
        pieces.append((space.translate(vaddr + done), data[done : done + length]))
        done += length
    if isinstance(image, WriteThroughImage):
        _check_memory(kernel, pieces)
        if not force:
            _check_permissions(kernel, space, vaddr, pieces)
        if not image.confirmed:
            raise _confirmation(kernel, vaddr, len(data))
    change = image.change(vaddr, pieces)
    if isinstance(space, ImageSpace):
        space.invalidate()
    return change


def undo_write(kernel: Kernel, *, force: bool = False) -> Change:
    """Take back what was written last, and return it.

    force: even if something else has been written there since.

    Raises:
        CommandError: there is nothing, or something else has been written there since, or the kernel is another one.
        FileAccessError: the operating system refuses it.
    """
    image = _writable(kernel)
    if isinstance(image, WriteThroughImage):
        kernel.refresh()
    change = image.undo(force=force)
    space = system_of(kernel).kernel_space(kernel)
    if isinstance(space, ImageSpace):
        space.invalidate()
    return change


def describe_place(kernel: Kernel, vaddr: int) -> str | None:
    """Return "NAME+0x0" of a kernel address, with the module if it is in one; None if no symbol is near."""
    symbol = system_of(kernel).all_symbols(kernel).find_at(vaddr)
    if symbol is None or kernel.arch.is_user(vaddr):
        return None
    return f"{symbol.name}+{vaddr - symbol.address:#x}" + (f" [{symbol.module}]" if symbol.module else "")


def _writable(kernel: Kernel) -> WritableImage:
    if not isinstance(kernel.image, WritableImage):
        if not kernel.image.live:
            raise CommandError("this image was opened for reading only")
        opener = "attach" if kernel.image.info.format == ATTACHED else "open"
        raise CommandError(f"a running kernel is opened for reading only: `{opener} --write` lets it be written to")
    return kernel.image


def _check_memory(kernel: Kernel, pieces: list[tuple[int, bytes]]) -> None:
    """Raise NotInImageError unless all of it is RAM by the kernel's own list of resources, if it has one."""
    memory = system_of(kernel).find_memory(kernel)
    if memory is None:
        return
    for paddr, data in pieces:
        if not any(start <= paddr and paddr + len(data) <= end for start, end in memory):
            raise NotInImageError(paddr, len(data), "device", kernel.image.paths[0] if kernel.image.paths else "")


def _check_permissions(kernel: Kernel, space: AddressSpaceReader, vaddr: int, pieces: list[tuple[int, bytes]]) -> None:
    """Raise CommandError if part of it is the kernel's code, or mapped for reading only."""
    code = list(_for_each_code(kernel))
    for paddr, data in pieces:
        user = kernel.arch.is_user(vaddr)
        allowed = kernel.arch.permissions(space.walk(vaddr)) if isinstance(space, ImageSpace) else None
        runs = allowed is not None and allowed.execute and not user
        if runs or any(start < paddr + len(data) and paddr < end for start, end in code):
            raise CommandError(
                f"{_place(kernel, vaddr)} is code of the running kernel: `kvm write --force` writes there"
            )
        if allowed is not None and not allowed.write:
            raise CommandError(
                f"{_place(kernel, vaddr)} is mapped for reading only by the running kernel: `kvm write --force` writes"
                " there"
            )
        vaddr += len(data)


def _for_each_code(kernel: Kernel) -> Iterator[tuple[int, int]]:
    """Yield the physical [start, end) of the kernel's own code, which may be mapped at several places.

    Modules have no place in one piece; their code is known by its page-table entries.
    """
    for area in system_of(kernel).for_each_area(kernel, modules=False):
        if area.executable:
            with suppress(ReadError):  # that of the start has been given back
                paddr = kernel.translate(area.start)
                yield paddr, paddr + area.end - area.start


def _place(kernel: Kernel, vaddr: int) -> str:
    name = describe_place(kernel, vaddr)
    return f"{name} ({vaddr:#x})" if name else f"{vaddr:#x}"


def _confirmation(kernel: Kernel, vaddr: int, size: int) -> ConfirmationError:
    """Return what asks for somebody's word."""
    release = getattr(kernel, "release", None)
    which = f" {release}" if release else ""
    path = f" in {kernel.image.paths[0]}" if kernel.image.paths else ""
    question = (
        f"Write {size} byte{'s' if size != 1 else ''} to the running kernel{which}{path} at {_place(kernel, vaddr)}?"
    )
    return ConfirmationError(
        question,
        f"not written: nobody has agreed yet to writes into the running kernel{which}{path}; `kvm write --allow` asks",
    )
