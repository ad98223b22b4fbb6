"""halt and resume: a machine that runs."""

from __future__ import annotations

from typing import Any

from kvm_dbg.commands.base import Column, Command, Table
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError
from kvm_dbg.image.base import MachineControl

COLUMNS = (Column("IMAGE", "list"), Column("RUNNING", "bool", "whether its processors run now"))


def control_of(session: Session) -> MachineControl:
    """Return what controls the machine. Raises CommandError if nothing does."""
    control = session.image.control
    if control is None:
        raise CommandError("there is no machine that could be halted: a virtual one can, opened by `open --qmp SOCKET`")
    return control


def state_of(session: Session, control: MachineControl) -> Table:
    """Return whether the machine runs; what was known of it is forgotten."""
    running = control.is_running()
    session.refresh()
    return Table(COLUMNS, [(list(session.image.paths), running)], single=True)


class Halt(Command):
    """Halt the machine."""

    name = "halt"
    summary = "Halt the virtual machine, so that its memory and registers stay as they are"
    description = (
        "It stays halted until `resume`, also after the command line has ended. A debugger that leaves has it\n"
        "run again if it ran when it was opened."
    )
    columns = COLUMNS
    examples = ("halt",)

    def run(self, session: Session, args: Any) -> Table:
        control = control_of(session)
        control.halt()
        return state_of(session, control)


class Resume(Command):
    """Let the machine run on."""

    name = "resume"
    summary = "Let a virtual machine that was halted run on"
    description = "A debugger does not wait for it to stop, as it does after its own `continue`."
    columns = COLUMNS
    examples = ("resume",)

    def run(self, session: Session, args: Any) -> Table:
        control = control_of(session)
        control.resume()
        return state_of(session, control)
