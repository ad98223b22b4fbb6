"""From starting a debugger to the first backtrace of a panic with the full vmlinux, against loading that file alone.

Alone, the debugger has its index cache warm as well, and looks one function up. The server runs from this tree, its
modules compiled, as an installed package has them. Target: 1.15 of the time that the debugger needs alone.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.gdb import ADAPTER as GDB_ADAPTER
from benchmarks.gdb import batch
from benchmarks.measure import ROOT, Command, compare, show
from tests.debuggers.debugger import Found, find, of_kind
from tests.lab import build

SCENARIO = "deb12-panic"
LLDB_ADAPTER = ROOT / "lldb" / "kvm_dbg_lldb.py"
RUNS = 5
TARGET = 1.15
ALONE, OPEN = "vmlinux alone, look up schedule", "kvm open, bt"


def lldb_batch(lldb: str, *commands: str) -> tuple[str, ...]:
    """Return the words of an lldb that runs the commands and ends."""
    return (lldb, "--no-lldbinit", "-Q", "-b", *(word for command in commands for word in ("-o", command)))


def commands_of(found: Found, vmlinux: str, image: str, own: Path) -> dict[str, tuple[str, ...]]:
    """Return the command lines to compare; `own` is a directory for the index of the debugger alone."""
    opening = f"kvm open {vmlinux} {image}"
    if found.debugger.kind == "gdb":
        cache = (f"set index-cache directory {own}", "set index-cache enabled on")
        return {
            ALONE: batch(found.program, *cache, f"file {vmlinux}", "info line schedule"),
            OPEN: batch(found.program, f"source {GDB_ADAPTER}", opening, "bt"),
        }
    cache = (
        "settings set symbols.enable-lldb-index-cache true",
        f"settings set symbols.lldb-index-cache-path {own}",
    )
    return {
        ALONE: lldb_batch(found.program, *cache, f"target create {vmlinux}", "image lookup -n schedule"),
        OPEN: lldb_batch(found.program, f"command script import {LLDB_ADAPTER}", opening, "bt"),
    }


def main() -> None:
    dump = build(SCENARIO)
    with tempfile.TemporaryDirectory() as directory:
        for debugger in (*of_kind("gdb"), *of_kind("lldb")):
            found = find(debugger)
            if not isinstance(found, Found):
                print(f"{debugger.name}: not here, left out: {found.reason}")
                continue
            own = Path(directory) / f"own-{debugger.name}"
            own.mkdir()
            environment = {
                "XDG_CACHE_HOME": directory,
                "KVM_DBG_PYTHON": sys.executable,
                "PYTHONDONTWRITEBYTECODE": "",
            }
            words = commands_of(found, str(dump.vmlinux), str(dump.files["elf"].paths[0]), own)
            figures = compare({name: Command(argv, environment=environment) for name, argv in words.items()}, RUNS)
            show(f"{debugger.name}, {SCENARIO}", figures, ALONE)
            ratio = figures[OPEN].median / figures[ALONE].median
            cpu = figures[OPEN].median_cpu / figures[ALONE].median_cpu
            print(f"  x{ratio:.2f} of the debugger alone ({TARGET}), x{cpu:.2f} in CPU time")


if __name__ == "__main__":
    main()
