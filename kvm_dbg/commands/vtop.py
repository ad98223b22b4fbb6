"""vtop: how an address is translated."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from kvm_dbg.arch.base import Walk
from kvm_dbg.commands.address import evaluate_address
from kvm_dbg.commands.base import Column, Command, Table
from kvm_dbg.commands.process import find_process
from kvm_dbg.commands.session import Session
from kvm_dbg.kernel import walk_address

COLUMNS = (
    Column("VADDR", "address"),
    Column("PADDR", "address"),
    Column("PAGE_SIZE", "number", "bytes that the last entry maps"),
    Column("FLAGS", "list", "of the last entry, as in the vendor's manual"),
    Column("STEPS", "list", "the entries: name, physical address, value"),
    Column("PRESENT", "bool", "the byte is in the image"),
)


class Vtop(Command):
    """Translate a virtual address."""

    name = "vtop"
    summary = "Translate a virtual address, showing every page-table entry"
    columns = COLUMNS
    examples = ("vtop init_task", "vtop --pid 1 0x400000 --json")

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("address", metavar="ADDRESS", help="a number, SYMBOL or SYMBOL+OFFSET")
        parser.add_argument("--pid", metavar="PID", type=int, help="in the address space of this process")

    def run(self, session: Session, args: Any) -> Table:
        address = evaluate_address(session, args.address)
        task = None if args.pid is None else find_process(session, args.pid).address
        walk = walk_address(session.kernel, address, task)
        present = not session.image.read_partial(walk.paddr, 1).missing
        steps = [f"{step.name} {step.entry_paddr:#x} {step.entry:#x}" for step in walk.steps]
        row = (walk.vaddr, walk.paddr, walk.page_size, list(walk.flags), steps, present)
        return Table(COLUMNS, [row], single=True, text=self._lines(walk, present))

    def _lines(self, walk: Walk, present: bool) -> Iterator[str]:
        yield f"virtual   {walk.vaddr:#018x}"
        for step in walk.steps:
            yield f"  {step.name:<5} at {step.entry_paddr:#014x}: {step.entry:#018x}"
        where = "" if present else "  (not in the image)"
        yield f"physical  {walk.paddr:#018x}  {walk.page_size >> 10} KiB page  {' '.join(walk.flags)}{where}"
