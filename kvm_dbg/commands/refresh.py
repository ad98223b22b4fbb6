"""refresh: forget everything that was read so far."""

from __future__ import annotations

from typing import Any

from kvm_dbg.commands.base import Column, Command, Table
from kvm_dbg.commands.session import Session


class Refresh(Command):
    """Forget what was read."""

    name = "refresh"
    summary = "Forget what was read so far: memory, threads, registers"
    description = (
        "Of memory that changes while it is read every command looks afresh by itself; this makes the debugger do so\n"
        "too. An image of a dead kernel does not change: nothing is lost by a refresh."
    )
    columns = (Column("IMAGE", "list"), Column("LIVE", "bool", "its memory changes while it is read"))
    examples = ("refresh",)

    def run(self, session: Session, args: Any) -> Table:
        session.refresh()
        image = session.image
        return Table(self.columns, [(list(image.paths), image.live)], single=True)
