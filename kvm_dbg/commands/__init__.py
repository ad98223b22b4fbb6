"""The commands: one list for the command line, gdb and lldb."""

from __future__ import annotations

from kvm_dbg.commands.args import Args, Env
from kvm_dbg.commands.attach import Attach, Detach
from kvm_dbg.commands.base import Command
from kvm_dbg.commands.bt import Bt
from kvm_dbg.commands.files import Files
from kvm_dbg.commands.gcore import Gcore
from kvm_dbg.commands.halt import Halt, Resume
from kvm_dbg.commands.help import Help
from kvm_dbg.commands.identify import Identify
from kvm_dbg.commands.layout import LayoutCommand
from kvm_dbg.commands.loadavg import LoadAvg
from kvm_dbg.commands.log import Log
from kvm_dbg.commands.lwps import Lwps
from kvm_dbg.commands.mods import Mods
from kvm_dbg.commands.nlist import Nlist
from kvm_dbg.commands.open import Close, GetErr, Open, Status
from kvm_dbg.commands.procs import Procs
from kvm_dbg.commands.read import Read
from kvm_dbg.commands.refresh import Refresh
from kvm_dbg.commands.selftest import SelfTest
from kvm_dbg.commands.sys import Sys
from kvm_dbg.commands.thread import Thread
from kvm_dbg.commands.top import Top
from kvm_dbg.commands.user import User
from kvm_dbg.commands.vm import Vm
from kvm_dbg.commands.vmlinux import Vmlinux
from kvm_dbg.commands.vmstat import VmStat
from kvm_dbg.commands.vtop import Vtop
from kvm_dbg.commands.write import Write
from kvm_dbg.errors import UsageError

COMMANDS: tuple[Command, ...] = (
    Open(),
    Close(),
    Attach(),
    Detach(),
    Status(),
    GetErr(),
    Identify(),
    Sys(),
    Procs(),
    Lwps(),
    Bt(),
    Thread(),
    Args(),
    Env(),
    Files(),
    Vm(),
    User(),
    Gcore(),
    Vmlinux(),
    LayoutCommand(),
    LoadAvg(),
    VmStat(),
    Top(),
    Log(),
    Mods(),
    Nlist(),
    Read(),
    Write(),
    Vtop(),
    SelfTest(),
    Refresh(),
    Halt(),
    Resume(),
    Help(),
)


def find_command(name: str) -> Command:
    """Return the command called `name`.

    Raises:
        UsageError: there is none; names those that come near.
    """
    for command in COMMANDS:
        if command.name == name:
            return command
    from difflib import get_close_matches

    names = [command.name for command in COMMANDS]
    near = [known for known in names if name and known.startswith(name)] or get_close_matches(name, names, 2)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `help` lists the commands"
    raise UsageError(f"no command {name!r}{hint}")
