"""vm: the mappings of a process."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.process import find_selected
from kvm_dbg.commands.session import Session
from kvm_dbg.kernel.base import Process

COLUMNS = (
    Column("START", "address"),
    Column("END", "address", "of the first byte behind it"),
    Column("PERMS", "text", "r, w, x; p private, s shared"),
    Column("OFFSET", "address", "in the file"),
    Column("DEV", "text", "major:minor of the file's file system, in hexadecimal digits"),
    Column("INODE", "number"),
    Column("PATH", "text", "of the file, or the kernel's name in brackets"),
    Column("ADDRESS", "address", "of the kernel's record of the mapping"),
    Column("SIZE", "number", "bytes", extra=True),
    Column("UNREAD", "list", "fields whose memory is not in the image", extra=True),
)


class Vm(Command):
    """Mappings."""

    name = "vm"
    summary = "List the mappings of a process, as /proc/PID/maps does"
    columns = COLUMNS
    watchable = True
    examples = ("vm 1", "vm 1 --json")

    def configure(self, parser: argparse.ArgumentParser) -> None:
        what = "the process; in gdb and lldb, without it, that of the selected thread"
        parser.add_argument("pid", metavar="PID", type=int, nargs="?", help=what)

    def run(self, session: Session, args: Any) -> Table:
        process = find_selected(session, args.pid)
        notes: list[str] = []
        return Table(COLUMNS, self._rows(session, process, notes), notes=notes)

    def _rows(self, session: Session, process: Process, notes: list[str]) -> Iterator[list[Cell]]:
        count = size = 0
        for mapping in session.system.for_each_mapping(session.kernel, process.pid):
            count += 1
            size += mapping.end - mapping.start
            known = mapping.major is not None and mapping.minor is not None
            yield [
                mapping.start,
                mapping.end,
                mapping.permissions,
                mapping.offset,
                f"{mapping.major:02x}:{mapping.minor:02x}" if known else None,
                mapping.inode,
                mapping.path,
                mapping.address,
                mapping.end - mapping.start,
                list(mapping.unread),
            ]
        if count:
            resident = f", {process.rss >> 10} KiB resident" if process.rss is not None else ""
            notes.append(f"{count} mappings, {size >> 10} KiB{resident}")
        else:
            what = "it is a kernel thread" if process.kernel_thread else "it has exited"
            notes.append(f"process {process.pid} has no memory of its own: {what}")
