"""files: what processes have open."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from stat import filemode
from typing import Any

from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.process import for_each_selected
from kvm_dbg.commands.session import Session
from kvm_dbg.kernel.usage import OpenFile

COLUMNS = (
    Column("PID", "number"),
    Column("FD", "number", "the descriptor"),
    Column("ROLE", "text", "what else it is: `wd`, the working directory, or `root`, the root directory"),
    Column("KIND", "text", "reg, dir, chr, blk, fifo, sock or anon"),
    Column("MODE", "text", "type and permissions, as ls -l shows them"),
    Column("RW", "text", "r, w or rw: opened for reading, writing"),
    Column("FLAGS", "address", "as given to open(2)"),
    Column("OFFSET", "number"),
    Column("SIZE", "number", "bytes of the file"),
    Column("DEVICE", "text", "major,minor of a special file"),
    Column("INODE", "number"),
    Column("MOUNT", "text", "where its file system is mounted"),
    Column("PATH", "text", "as readlink of /proc/PID/fd/FD shows it"),
    Column("ADDRESS", "address", "of the file structure"),
    Column("UNREAD", "list", "fields whose memory is not in the image", extra=True),
)


class Files(Command):
    """Open files, and the directories of processes."""

    name = "files"
    summary = "List the open files of some processes, or of all"
    columns = COLUMNS
    watchable = True
    examples = ("files 1", "files --json")

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pid", metavar="PID", type=int, nargs="*", help="only the files of these processes")

    def run(self, session: Session, args: Any) -> Table:
        files = session.system.for_each_file
        if not args.pid:
            return Table(COLUMNS, self._rows(files(session.kernel)))
        processes = for_each_selected(session, args.pid)
        return Table(COLUMNS, self._rows(file for one in processes for file in files(session.kernel, one.pid)))

    def _rows(self, files: Iterator[OpenFile]) -> Iterator[list[Cell]]:
        for file in files:
            yield [
                file.pid,
                file.fd,
                file.role or None,
                file.kind,
                None if file.mode is None else filemode(file.mode),
                file.access,
                file.flags,
                file.offset,
                file.size,
                None if file.device is None else "{},{}".format(*file.device),
                file.inode,
                file.mount,
                file.path,
                file.address,
                list(file.unread),
            ]
