"""vmstat: the system's counters of memory and events."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.session import Session

COLUMNS = (
    Column("VALUE", "number"),
    Column("NAME", "text", "the kernel's own: of /proc/vmstat, struct uvmexp, vm_cnt"),
    Column("MEANING", "text", "as the system's own vmstat(8) says it"),
    Column("WHY", "text", "why there is no value", extra=True),
)


class VmStat(Command):
    """Counters of memory and events."""

    name = "vmstat"
    summary = "Print the counters of memory and events, as `vmstat -s` or /proc/vmstat does"
    columns = COLUMNS
    examples = ("vmstat", "vmstat 'nr_*' pgfault", "vmstat --json")

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pattern", nargs="*", help="only counters with such a name; * and ? stand for any text")

    def run(self, session: Session, args: Any) -> Table:
        notes: list[str] = []
        return Table(COLUMNS, self._rows(session, args.pattern, notes), notes=notes)

    def _rows(self, session: Session, patterns: list[str], notes: list[str]) -> Iterator[list[Cell]]:
        for counter in session.system.for_each_counter(session.kernel):
            if patterns and not any(fnmatchcase(counter.name, pattern) for pattern in patterns):
                continue
            if counter.why and counter.why not in notes:
                notes.append(counter.why)
            yield [counter.value, counter.name, counter.meaning, counter.why]
