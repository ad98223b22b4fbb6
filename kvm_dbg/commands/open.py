"""open, close, status and geterr: the session itself."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from kvm_dbg.commands.address import add_image_arguments
from kvm_dbg.commands.base import Column, Command, Table
from kvm_dbg.commands.coverage import describe_coverage
from kvm_dbg.commands.render import printable
from kvm_dbg.commands.session import OpenRequest, Session, sort_files
from kvm_dbg.errors import UsageError
from kvm_dbg.image.base import MemoryImage
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.image.through import WriteThroughImage

COLUMNS = (
    Column("OPEN", "bool"),
    Column("IMAGE", "list"),
    Column("FORMAT"),
    Column("RUNNING", "bool", "whether the machine runs, of a virtual machine"),
    Column("KERNEL", "text", "the kernel file"),
    Column("RELEASE"),
    Column("ARCH"),
    Column("SLIDE", "address", "KASLR"),
    Column("SYMBOLS", "text", "where they come from"),
    Column("TYPES", "text", "where they come from"),
    Column("UNWIND", "text", "where the rules for backtraces come from"),
    Column("MISSING", "lines", "what is not there, and what that costs"),
    Column("COVERAGE"),
    Column("WRITTEN", "size", "changed in the private copy, in bytes in JSON"),
    Column("WRITES", "text", "where writes go: to the private copy, the memory itself, or nowhere"),
    Column("QUIRKS", "lines", "what a careful reader wants to know"),
)


def add_open_arguments(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Add the options that say how to open an image; the same wherever one can be opened.

    without: options that the command has itself: the directories of its `--search` count for vmlinux as well, its
    `--force` is not for a kernel file.
    """
    group = parser.add_argument_group("opening")
    group.add_argument("--vmlinux", metavar="FILE", help="the kernel file; without it the usual places are searched")
    if "--search" not in without:
        group.add_argument("--search", metavar="DIR", action="append", default=[], help="search for vmlinux here first")
    group.add_argument("--kernel", metavar="N", type=int, dest="candidate", help="which of several kernels, from 1")
    if "--force" not in without:
        group.add_argument("--force", action="store_true", help="use a kernel file that does not match")
    group.add_argument("--patch", metavar="FILE", help="changes to make in the private copy, from `write --save`")
    group.add_argument(
        "--layout", metavar="FILE", help="a layout file, used instead of the types of a BSD's kernel file"
    )
    group.add_argument(
        "--live", action="store_true", help="the memory of this machine; with an image, the RAM of a guest that runs"
    )
    group.add_argument("--write", action="store_true", help="let memory that is live be written to")
    group.add_argument(
        "--qmp", metavar="SOCKET", help="a virtual machine by QEMU's monitor: a Unix socket's path, or HOST:PORT"
    )
    add_image_arguments(group)


def request_of(args: Any, files: list[str], index_directory: str | None, search: tuple[str, ...] = ()) -> OpenRequest:
    """Return the request that options and files amount to; no file at all is the memory of this machine.

    Raises:
        UsageError: two kernel files, or nothing else.
    """
    vmlinux, images = (args.vmlinux, tuple(files)) if args.vmlinux is not None else sort_files(files)
    if not images and vmlinux is not None and not args.live and args.qmp is None:
        raise UsageError(
            f"no image given ({vmlinux} is a kernel file): open [VMLINUX] IMAGE..., --live or --qmp SOCKET"
        )
    return OpenRequest(
        images=images,
        vmlinux=vmlinux,
        base=args.base,
        hole=args.hole,
        format=args.format,
        offset=args.offset,
        candidate=args.candidate,
        force=getattr(args, "force", False),
        layout=args.layout,
        patch=args.patch,
        search=(*args.search, *search),
        index_directory=index_directory,
        live=args.live or (not images and args.qmp is None),
        qmp=args.qmp,
        write=args.write,
    )


def find_running(image: MemoryImage) -> bool | None:
    """Return whether the machine behind an image runs, None if there is none that would tell."""
    return None if image.control is None else image.control.is_running()


def status_table(session: Session) -> Table:
    """Return what is open, as one object."""
    if not session.is_open:
        return Table(COLUMNS, [(False, *[None] * (len(COLUMNS) - 1))], single=True)
    kernel = session.kernel
    image = kernel.image
    sources = session.system.find_sources(kernel)
    row = (
        True,
        list(image.paths),
        image.info.format,
        find_running(image),
        getattr(kernel, "vmlinux_path", None),
        getattr(kernel, "release", None),
        kernel.arch.name,
        getattr(kernel, "slide", None),
        sources.symbols,
        sources.types,
        sources.unwind,
        list(sources.missing),
        describe_coverage(image),
        image.written if isinstance(image, OverlayImage) else 0,
        where_writes_go(image),
        [*image.info.quirks, *getattr(kernel, "quirks", ())],
    )
    return Table(COLUMNS, [row], single=True)


def where_writes_go(image: MemoryImage) -> str:
    """Return what becomes of writes."""
    if isinstance(image, OverlayImage):
        return "a private copy"
    return "the memory itself" if isinstance(image, WriteThroughImage) else "refused"


class Open(Command):
    """Open an image."""

    name = "open"
    summary = "Open a kernel memory image, with its kernel file if there is one"
    columns = COLUMNS
    description = (
        "A named kernel file is checked against the image. Without one the usual places are searched.\n"
        "The parts of a split dump may be given in any order.\n"
        "Without any image it is the memory of this machine, which takes root: /proc/kcore, /dev/mem or /dev/crash.\n"
        "With --qmp it is that of a virtual machine, which goes on running.\n"
        "Live memory is read only, unless --write says that it may be written to as well: /dev/mem, or a guest's RAM."
    )
    examples = (
        "open vmlinux vmcore",
        "open vmcore",
        "open ram.bin --base 0x40000000",
        "open --live",
        "open --live --write vmlinux ram",
        "open --qmp /run/guest.qmp",
    )
    needs_kernel = False

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", metavar="FILE", nargs="*", help="the kernel file, if any, and the image")
        add_open_arguments(parser)

    def run(self, session: Session, args: Any) -> Table:
        session.open(request_of(args, args.files, session.index_directory, session.search))
        return status_table(session)


class Close(Command):
    """Close the image."""

    name = "close"
    summary = "Close the image; what was written is forgotten"
    columns = COLUMNS
    examples = ("close",)
    needs_kernel = False

    def run(self, session: Session, args: Any) -> Table:
        session.close()
        return status_table(session)


class Status(Command):
    """Say what is open."""

    name = "status"
    summary = "Show what is open, and where symbols and types come from"
    columns = COLUMNS
    examples = ("status", "status --json")
    needs_kernel = False

    def run(self, session: Session, args: Any) -> Table:
        return status_table(session)


class GetErr(Command):
    """Repeat the last error."""

    name = "geterr"
    summary = "Print the text of the last error, as kvm_geterr does"
    columns = (Column("ERROR"),)
    examples = ("geterr",)
    needs_kernel = False

    def run(self, session: Session, args: Any) -> Table:
        text = [printable(line) for line in session.last_error.splitlines()]
        return Table(self.columns, [(session.last_error or None,)], single=True, text=text)
