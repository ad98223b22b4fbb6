"""`kvm-dbg procs` on a guest that runs, by QEMU's monitor, against drgn's `--qemu` with its `ps`; whole processes.

Three ways to the guest's memory: its RAM file, QEMU's own memory (of a guest whose RAM is in no file), and over TCP,
where kvm-dbg has QEMU dump it and drgn asks for it piece by piece. Warm: the index of the kernel's symbols and types is
there. Cold: it is removed before each run. Then the same with a thousand processes more.

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
        "kvm-dbg procs, warm": Command(ours, environment={"XDG_CACHE_HOME": str(warm)}),
        "kvm-dbg procs, cold": Command(
            ours,
            environment={"XDG_CACHE_HOME": str(cold)},
            before=lambda: shutil.rmtree(cold, ignore_errors=True),
        ),
        "kvm-dbg --version": Command((program, "--version")),
        PEER: Command((*drgn, str(script))),
        "drgn --qemu, nothing": Command((*drgn, "-e", "0")),
    }
    lines = {key: len(run_once(command)[2].splitlines()) for key, command in commands.items()}
    show(f"{title}; lines printed {lines}", compare(commands), PEER)


def main() -> None:
    program = str(installed_program())
    with tempfile.TemporaryDirectory() as directory:
        for shared in (True, False):
            with LiveGuest(shared=shared, vmcoreinfo=True) as guest:
                where = "a RAM file" if shared else "RAM in no file"
                for more in (0, SLEEPERS):
                    if more:
                        guest.check(
                            f"/live/crowd {more} 0 >/tmp/crowd & until grep -q ' ..*$' /tmp/crowd; do sleep 1; done"
                        )
                        guest.check("until tail -c1 /tmp/crowd | grep -q '^$'; do sleep 0.2; done")
                    what = f"{where}, {more} processes more"
                    measure(guest, program, what, str(guest.qmp), Path(directory))
                    if not shared:
                        measure(guest, program, f"{what}, over TCP", guest.find_tcp(), Path(directory))


if __name__ == "__main__":
    main()
