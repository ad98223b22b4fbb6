"""layout: the layouts of a kernel's structs, kept in a file for kernels without debug information."""

from __future__ import annotations

import argparse
from typing import Any

from kvm_dbg.commands.base import Column, Command, Table
from kvm_dbg.commands.new_file import new_file
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError, TypeNotFound

COLUMNS = (
    Column("FILE"),
    Column("SIZE", "number", "bytes of the file"),
    Column("STRUCTS", "number"),
    Column("SOURCE", "text", "where the types are from"),
    Column("REMARKS", "lines", "what is missing"),
)
STRUCTS = (  # what the BSD kernels' rooms read; those that a kernel does not have are left out
    *("bintime", "cdev", "cdev_priv", "enum cpu_count", "cpu_info", "cwdinfo", "devfs_dirent", "elf_file"),
    *("fdescenttbl", "fdfile", "fdtab", "file", "filedesc", "filedescent", "inode", "kauth_cred", "kern_msgbuf"),
    *("linker_file", "loadavg", "lwp", "module", "mount", "msgbuf", "namecache", "namecache_ts", "pargs", "pcb"),
    *("pgrp", "pipe", "plimit", "pmap", "prison", "proc", "ps_strings", "pstats", "pwd", "pwddesc", "rusage"),
    *("session", "sigctx", "sigpend", "socket", "specnode", "switchframe", "sysentvec", "thread"),
    *("timecounter", "timehands", "timespec", "timeval", "tmpfs_node", "trapframe", "tty", "ucred", "uvmexp"),
    *("vm_amap", "vm_anon", "vm_map", "vm_map_entry", "vm_object", "vm_page", "vmspace", "vnode", "znode"),
)


class LayoutCommand(Command):
    """A layout file of a kernel file."""

    name = "layout"
    summary = "Write a layout file from a kernel file with debug information"
    columns = COLUMNS
    description = (
        "The file has the sizes, offsets and types of structs, for dumps whose kernel file has no types: give it to\n"
        "`open --layout`. Without --struct it has those that the commands need, as far as the kernel has them."
    )
    examples = ("layout netbsd.gdb -o layout.json", "layout vmlinux --struct task_struct -o task.json")
    needs_kernel = False

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("kernel_file", metavar="KERNEL", help="the kernel file with DWARF, CTF or BTF")
        parser.add_argument("-o", "--output", dest="file", metavar="FILE", required=True, help="the new file")
        parser.add_argument(
            "--struct",
            metavar="NAME",
            action="append",
            default=[],
            help="this struct and what is in it; repeatable",
        )

    def run(self, session: Session, args: Any) -> Table:
        from kvm_dbg.debuginfo.kernel_types import open_kernel_types
        from kvm_dbg.debuginfo.layout_writer import make_layout
        from kvm_dbg.symbols.elf import open_kernel_file

        with open_kernel_file(args.kernel_file) as elf:
            types = open_kernel_types(elf)
            if types is None:
                raise CommandError(f"{args.kernel_file} has no debug information: no BTF, DWARF or CTF")
            if session.progress is not None:
                session.progress("reading types")
            names = [_full(name) for name in args.struct]
            for name in names:
                if types.find_type(name) is None:
                    raise TypeNotFound(name, f"no type {name!r} in {types.source}")
            data, problems, structs = make_layout(types, names or [_full(name) for name in STRUCTS], elf, "kvm_dbg")
            if not structs:
                raise CommandError(f"{types.source} has none of the structs: name some with --struct")
            source = types.source
        with new_file(args.file) as file:
            file.write(data)
        return Table(COLUMNS, [(args.file, len(data), structs, source, problems)], single=True)


def _full(name: str) -> str:
    return name if " " in name else f"struct {name}"
