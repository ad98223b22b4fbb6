"""The debuggers that the tests run against: one list, each found on this machine or skipped with the reason.

Every debugger is pinned to one version, so that a test's name (`test_x[gdb-13.1]`) says what it ran in. A debugger
is looked for where its environment variable says, else at its usual places; `{cache}` stands for the cache directory
that `./test` fills. Run as a program, this prints the versions of Python that a pytest is needed for.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
PROBE_SECONDS = 60


class Debugger(NamedTuple):
    """One debugger of one version; `dap` tells whether it, or lldb's program for that, is a debug adapter."""

    kind: str
    version: str
    variable: str
    places: tuple[str, ...]
    dap: bool

    @property
    def name(self) -> str:
        """The name as it stands in a test's id."""
        return f"{self.kind}-{self.version}"


class Found(NamedTuple):
    """A debugger that runs on this machine: its program, and the version (`3.11`) of the Python it embeds."""

    debugger: Debugger
    program: str
    python: str


class Missing(NamedTuple):
    """A debugger that does not run on this machine, and what to do about it."""

    debugger: Debugger
    reason: str


DEBUGGERS: tuple[Debugger, ...] = (
    Debugger("gdb", "13.1", "KVM_DBG_GDB13", ("/usr/bin/gdb",), dap=False),
    Debugger("gdb", "18.1", "KVM_DBG_GDB18", ("{cache}/gdb-18.1/bin/gdb",), dap=True),
    Debugger("lldb", "19.1", "KVM_DBG_LLDB19", ("/usr/bin/lldb-19",), dap=True),
    Debugger("lldb", "23.1", "KVM_DBG_LLDB23", ("{cache}/lldb-23.1/bin/lldb",), dap=False),
)
"""All debuggers that the tests know, in the order in which they run."""


_PYTHON = "'%d.%d' % sys.version_info[:2]"
_LLDB = "re.search('version ([0-9.]+)', lldb.SBDebugger.GetVersionString())[1]"
PROBES = {
    "gdb": ("-nx", "-batch", "-ex", f"python import sys, gdb; print('probe', gdb.VERSION, {_PYTHON})"),
    "lldb": ("--no-lldbinit", "-Q", "-b", "-o", f"script import re, sys; print('probe', {_LLDB}, {_PYTHON})"),
}
"""For each kind, the arguments with which it prints `probe`, its version and its Python's."""


def cache_directory() -> Path:
    """Return the directory that `./test` keeps debuggers, their pytest and the lab's dumps in."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "kvm-dbg"


def of_kind(kind: str, *, dap: bool = False) -> tuple[Debugger, ...]:
    """Return the debuggers of one kind; with `dap`, only those that speak that protocol."""
    return tuple(debugger for debugger in DEBUGGERS if debugger.kind == kind and (debugger.dap or not dap))


def by_name(name: str) -> Debugger:
    """Return the debugger whose test id is `name`. Raises KeyError."""
    return {debugger.name: debugger for debugger in DEBUGGERS}[name]


def find_site(python: str) -> Path | None:
    """Return the folder that holds a pytest for the embedded Python `python` ("3.11"), if there is one."""
    site = cache_directory() / f"site-{python}"
    return site if (site / "pytest" / "__init__.py").is_file() else None


@functools.cache
def find(debugger: Debugger) -> Found | Missing:
    """Look for `debugger` on this machine and ask it for its version and its Python's."""
    override = os.environ.get(debugger.variable)
    places = (override,) if override else debugger.places
    reasons = []
    for place in places:
        program = shutil.which(place.replace("{cache}", str(cache_directory())))
        if program is None:
            reasons.append(f"{place.replace('{cache}', str(cache_directory()))} is not there")
            continue
        answer = _probe(debugger, program)
        if isinstance(answer, Found):
            return answer
        reasons.append(answer)
    advice = f"run ./test, or name it in {debugger.variable}"
    return Missing(debugger, f"{debugger.kind} {debugger.version} not found: {'; '.join(reasons)}; {advice}")


def _probe(debugger: Debugger, program: str) -> Found | str:
    """Run `program` once; return why it is not `debugger` if it is another version or does not run."""
    try:
        done = subprocess.run(
            [program, *PROBES[debugger.kind]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            env=clean_environment(),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{program} does not run: {error}"
    told = re.search(r"^probe (?:.*?)(\d+\.\d+)\S* (\d+\.\d+)$", done.stdout, re.MULTILINE)
    if told is None:
        return f"{program} has no usable Python: {(done.stderr or done.stdout).strip()[-300:]}"
    if told.group(1) != debugger.version:
        return f"{program} is version {told.group(1)}"
    return Found(debugger, program, told.group(2))


def clean_environment(home: Path | None = None, cache: Path | None = None) -> dict[str, str]:
    """Return an environment for a debugger that does not depend on who runs the tests.

    Without the Python variables of the caller (the debugger embeds another Python) and without debuginfod's servers;
    with `home`, every place where a program keeps a person's files lies below it, caches in `cache` if that is given.
    """
    dropped = ("PYTHON", "DEBUGINFOD", "VIRTUAL_ENV", "PYTEST", "COV_", "LC_", "LANG")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    environment.update(LC_ALL="C.UTF-8", TERM="dumb", PYTHONDONTWRITEBYTECODE="1")
    if home is not None:
        environment["HOME"] = str(home)
        for variable, folder in (
            ("XDG_CACHE_HOME", ".cache"),
            ("XDG_CONFIG_HOME", ".config"),
            ("XDG_DATA_HOME", ".local/share"),
            ("XDG_STATE_HOME", ".local/state"),
        ):
            environment[variable] = str(home / folder)
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache)
    return environment


if __name__ == "__main__":
    print("\n".join(sorted({found.python for found in map(find, of_kind("gdb")) if isinstance(found, Found)})))
