"""gcore: a core file of a process."""

from __future__ import annotations

import argparse
from typing import Any

from kvm_dbg.commands.base import Column, Command, Table
from kvm_dbg.commands.core_file import CoreFile
from kvm_dbg.commands.new_file import new_file
from kvm_dbg.commands.process import find_process
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CorruptError, ReadError
from kvm_dbg.kernel.base import MemoryMapping

COLUMNS = (
    Column("PID", "number"),
    Column("FILE"),
    Column("SIZE", "number", "bytes of the file"),
    Column("THREADS", "number", "with registers"),
    Column("MAPPINGS", "number"),
    Column("PRESENT", "number", "bytes of memory in the file"),
    Column("LOST", "number", "bytes that the process has and the image lacks: filtered, cut off or swapped out"),
    Column("REMARKS", "lines", "what else is missing"),
)
NT_PRSTATUS = 1


class Gcore(Command):
    """A core file."""

    name = "gcore"
    summary = "Write an ELF core file of a process, for any debugger"
    columns = COLUMNS
    description = (
        "The threads have the registers with which they entered the kernel, or, where a CPU ran user code, those of\n"
        "the CPU. Pages that are not in the image have no segment in the file: a debugger says that it cannot access\n"
        "them, or takes files' contents from the disk."
    )
    examples = ("gcore 1 init.core",)

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pid", metavar="PID", type=int, help="the process")
        parser.add_argument("file", metavar="FILE", help="the new file")

    def run(self, session: Session, args: Any) -> Table:
        kernel, system = session.kernel, session.system
        process = find_process(session, args.pid)
        space = system.address_space(kernel, process.address)
        mappings: list[MemoryMapping] = []
        broken: list[str] = []
        try:
            for mapping in system.for_each_mapping(kernel, process.pid):
                mappings.append(mapping)
        except (ReadError, CorruptError) as error:
            broken.append(f"some mappings are missing: {error}")
        notes, remarks = system.read_core_notes(kernel, process, mappings)
        present = lost = 0
        with new_file(args.file) as file:
            core = CoreFile(file, kernel.arch.elf_machine, 1 << kernel.arch.page_shift)
            core.add_notes(notes)
            for mapping in mappings:
                here, away = core.add_mapping(mapping, space)
                present += here
                lost += away
            size = core.finish()
        threads = sum(note.type == NT_PRSTATUS for note in notes)
        row = (process.pid, args.file, size, threads, len(mappings), present, lost, [*broken, *remarks])
        return Table(COLUMNS, [row], single=True)
