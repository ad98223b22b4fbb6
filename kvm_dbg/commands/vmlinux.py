"""vmlinux: a file for debuggers, made from the image."""

from __future__ import annotations

import argparse
from typing import Any

from kvm_dbg.commands.base import Column, Command, Table
from kvm_dbg.commands.new_file import new_file
from kvm_dbg.commands.session import Session

COLUMNS = (
    Column("FILE"),
    Column("SIZE", "number", "bytes of the file"),
    Column("SYMBOLS", "number"),
    Column("MODULES", "number", "whose symbols and unwind rules are in it"),
    Column("SLIDE", "address", "that the kernel's addresses in the file are without"),
    Column("REMARKS", "lines", "what is missing"),
)
DESCRIPTION = """The file has the symbols of the kernel and its modules (from kallsyms), types (from BTF), unwind rules
(from ORC) and the build-id, at the addresses that they had in the image: `gdb FILE`, connected to whatever has this
memory, needs no offset. It has no text; a debugger reads that from its target. With --link-time it has the kernel's
part alone, at the addresses that the linker gave it: this serves every image of the same build, wherever the kernel was
placed, and can be named in the place of its vmlinux."""


class Vmlinux(Command):
    """A made kernel file."""

    name = "vmlinux"
    summary = "Write a kernel file for debuggers, made from the image itself"
    columns = COLUMNS
    description = DESCRIPTION
    examples = ("vmlinux -o made.elf", "vmlinux --link-time -o vmlinux-made")

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("-o", "--output", dest="file", metavar="FILE", required=True, help="the new file")
        parser.add_argument("--link-time", action="store_true", help="the kernel alone, where the linker put it")

    def run(self, session: Session, args: Any) -> Table:
        from kvm_dbg.kernel_file import make_kernel_file
        from kvm_dbg.kernel_file.debug_info import read_module_types

        kernel = session.kernel
        slide = (getattr(kernel, "slide", None) or 0) if args.link_time else 0
        with new_file(args.file) as file:
            if session.progress is not None:
                session.progress("making a kernel file")
            problems: list[str] = []
            types = {} if args.link_time else read_module_types(kernel, session.system, problems)
            made = make_kernel_file(kernel, session.system, slide=slide, modules=not args.link_time, module_types=types)
            file.writelines(made.pieces)
        row = (args.file, made.size, made.symbols, made.modules, slide, [*made.problems, *problems])
        return Table(COLUMNS, [row], single=True)
