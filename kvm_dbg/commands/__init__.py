"""The commands: one list for the command line, gdb and lldb."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import cast

from kvm_dbg.commands.base import Command
from kvm_dbg.errors import UsageError

ENTRIES = (
    ("open", "open", "Open"),
    ("close", "open", "Close"),
    ("attach", "attach", "Attach"),
    ("detach", "attach", "Detach"),
    ("status", "open", "Status"),
    ("geterr", "open", "GetErr"),
    ("identify", "identify", "Identify"),
    ("sys", "sys", "Sys"),
    ("procs", "procs", "Procs"),
    ("lwps", "lwps", "Lwps"),
    ("bt", "bt", "Bt"),
    ("thread", "thread", "Thread"),
    ("args", "args", "Args"),
    ("env", "args", "Env"),
    ("files", "files", "Files"),
    ("vm", "vm", "Vm"),
    ("user", "user", "User"),
    ("gcore", "gcore", "Gcore"),
    ("vmlinux", "vmlinux", "Vmlinux"),
    ("layout", "layout", "LayoutCommand"),
    ("loadavg", "loadavg", "LoadAvg"),
    ("vmstat", "vmstat", "VmStat"),
    ("top", "top", "Top"),
    ("log", "log", "Log"),
    ("mods", "mods", "Mods"),
    ("nlist", "nlist", "Nlist"),
    ("read", "read", "Read"),
    ("write", "write", "Write"),
    ("vtop", "vtop", "Vtop"),
    ("selftest", "selftest", "SelfTest"),
    ("refresh", "refresh", "Refresh"),
    ("halt", "halt", "Halt"),
    ("resume", "halt", "Resume"),
    ("help", "help", "Help"),
)
"""The registry, in the order of the help: a command's name, its module here, and its class there.

A command's module is imported when the command is asked for: most runs need one of them.
"""

COMMANDS: tuple[Command, ...]
"""All commands, in that order; made when it is first asked for."""


def __getattr__(name: str) -> tuple[Command, ...]:
    if name != "COMMANDS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return tuple(_load(module, kind) for _, module, kind in ENTRIES)


@cache
def _load(module: str, kind: str) -> Command:
    return cast("Command", getattr(import_module(f"{__name__}.{module}"), kind)())


def find_command(name: str) -> Command:
    """Return the command called `name`.

    Raises:
        UsageError: there is none; names those that come near.
    """
    for known, module, kind in ENTRIES:
        if known == name:
            return _load(module, kind)
    from difflib import get_close_matches

    names = [known for known, _, _ in ENTRIES]
    near = [known for known in names if name and known.startswith(name)] or get_close_matches(name, names, 2)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `help` lists the commands"
    raise UsageError(f"no command {name!r}{hint}")
