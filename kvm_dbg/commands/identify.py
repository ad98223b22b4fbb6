"""identify: what a file is, and how much of it can be used, without any kernel file."""

from __future__ import annotations

import argparse
from typing import Any

from kvm_dbg.commands.address import add_image_arguments
from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.coverage import count_coverage, describe_coverage
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import KvmDbgError
from kvm_dbg.image import open_image
from kvm_dbg.image.base import MemoryImage, Presence
from kvm_dbg.kernel import Identity, identify_kernels

COLUMNS = (
    Column("FILES", "list"),
    Column("FORMAT"),
    Column("PRODUCER"),
    Column("RELEASE", "text", "of the kernel"),
    Column("ARCH"),
    Column("PAGE_TABLES", "text", "levels and where the root is"),
    Column("SLIDE", "address", "KASLR"),
    Column("BUILD_ID", "text", "of the kernel"),
    Column("DUMP_LEVEL", "number", "makedumpfile's -d"),
    Column("COMPRESSION", "list"),
    Column("COMPLETE", "bool"),
    Column("COVERAGE"),
    Column("PRESENT", "number", "bytes", extra=True),
    Column("EXCLUDED", "number", "bytes", extra=True),
    Column("TRUNCATED", "number", "bytes", extra=True),
    Column("KERNELS", "lines", "if there is more than one, in the order of --kernel"),
    Column("DETAILS", "lines", "what else the file says of itself"),
    Column("QUIRKS", "lines", "what a careful reader wants to know"),
)


class Identify(Command):
    """Say what files are."""

    name = "identify"
    summary = "Say what an image file is: format, kernel, page tables, coverage, quirks"
    columns = COLUMNS
    examples = ("identify vmcore", "identify vmcore.1 vmcore.2 --json")
    needs_kernel = False

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", metavar="FILE", nargs="+", help="one image, or the parts of a split one")
        add_image_arguments(parser)

    def run(self, session: Session, args: Any) -> Table:
        image = open_image(
            tuple(args.files),
            base=args.base,
            hole=args.hole,
            format=args.format,
            offset=args.offset,
            cache_directory=session.index_directory,
            progress=session.progress,
        )
        with image:
            try:
                identities = identify_kernels(image, progress=session.progress)
                problem = None
            except KvmDbgError as error:
                identities, problem = [], f"no kernel identified: {error}"
            return Table(COLUMNS, [identity_row(image, identities, problem)], single=True)


def identity_row(image: MemoryImage, identities: list[Identity], problem: str | None) -> list[Cell]:
    """Return the row of an image and of the kernels found in it."""
    info = image.info
    first = identities[0] if identities else None
    sizes, _ = count_coverage(image)
    tables = None
    if first is not None and first.paging is not None:
        tables = f"{first.paging.levels} levels, root at physical {first.paging.root:#x}"
    return [
        list(image.paths),
        info.format,
        info.producer,
        first.release if first is not None else info.release,
        first.arch if first is not None else info.machine,
        tables,
        first.slide if first is not None else None,
        first.build_id if first is not None else None,
        info.dump_level,
        list(info.compression),
        info.complete,
        describe_coverage(image),
        sizes[Presence.PRESENT],
        sizes[Presence.EXCLUDED],
        sizes[Presence.TRUNCATED],
        [identity.describe() for identity in identities] if len(identities) > 1 else [],
        [f"{name}: {value}" for name, value in info.details],
        [*info.quirks, *(first.quirks if first is not None else ()), *([problem] if problem else [])],
    ]
