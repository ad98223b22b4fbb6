"""`kvm-dbg procs` on a guest that runs, by QEMU's monitor, against drgn's `--qemu` with its `ps`; whole processes.

Three ways to the guest's memory: its RAM file, with a thousand processes more as well; QEMU's own memory, of a guest
whose RAM is in no file; and over TCP a snapshot, which drgn has no counterpart of. Warm: the index of the kernel's
symbols and types is there. Cold: it is removed before each run.

The guest has QEMU's vmcoreinfo device, which drgn needs.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Command, compare, installed_program, run_once, show
from tests.live.machine import LiveGuest

SLEEPERS = 1000
PS = """
import drgn.cli
from drgn.commands._crash import _cmd_crash
_cmd_crash(prog, "crash", "ps", parser=None, globals=drgn.cli.default_globals(prog))
"""
OURS = "kvm-dbg procs, warm"
PEER = "drgn --qemu, ps"


def measure(guest: LiveGuest, program: str, title: str, address: str, directory: Path) -> None:
    """Compare on one guest by one address."""
    warm, cold = directory / "warm", directory / "cold"
    script = directory / "ps.py"
    script.write_text(PS)
    vmlinux = str(guest.kernel.vmlinux)
    ours = (program, "procs", "--qmp", address, vmlinux)
    drgn = (str(Path(sys.executable).parent / "drgn"), "--qemu", address, "-s", vmlinux, "--main-symbols", "-q")
    commands = {
        OURS: Command(ours, environment={"XDG_CACHE_HOME": str(warm)}),
        "kvm-dbg procs, cold": Command(
            ours,
            environment={"XDG_CACHE_HOME": str(cold)},
            before=lambda: shutil.rmtree(cold, ignore_errors=True),
        ),
    }
    local = address.startswith("/")
    if local:  # over TCP drgn does not find out which kernel it is
        commands[PEER] = Command((*drgn, str(script)))
    lines = {key: len(run_once(command)[2].splitlines()) for key, command in commands.items()}
    show(f"{title}; lines printed {lines}", compare(commands), PEER if local else OURS)


def main() -> None:
    program = str(installed_program())
    with tempfile.TemporaryDirectory() as directory:
        with LiveGuest(vmcoreinfo=True) as guest:
            measure(guest, program, "a RAM file", str(guest.qmp), Path(directory))
            guest.check(f"/live/crowd {SLEEPERS} 0 >/tmp/crowd & until grep -q ' ..*$' /tmp/crowd; do sleep 1; done")
            guest.check("until tail -c1 /tmp/crowd | grep -q '^$'; do sleep 0.2; done")
            measure(guest, program, f"a RAM file, {SLEEPERS} processes more", str(guest.qmp), Path(directory))
        with LiveGuest(vmcoreinfo=True, shared=False) as guest:
            measure(guest, program, "QEMU's own memory", str(guest.qmp), Path(directory))
            measure(guest, program, "a snapshot, by TCP", guest.find_tcp(), Path(directory))


if __name__ == "__main__":
    main()
