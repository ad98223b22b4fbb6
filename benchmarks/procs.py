"""`kvm-dbg procs` on a kdump of a machine with 1 GiB, with vmlinux and without, against `ps` of drgn-crash with it.

Warm: the index of the kernel's symbols and types is there. Cold: it is removed before each run.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Command, compare, installed_program, run_once, show
from tests.lab import build

SCENARIO = "deb12-kdump"


def main() -> None:
    dump = build(SCENARIO)
    program = str(installed_program())
    drgn = str(Path(sys.executable).parent / "drgn-crash")
    vmlinux = str(dump.vmlinux)
    with tempfile.TemporaryDirectory() as directory:
        warm, cold = Path(directory) / "warm", Path(directory) / "cold"
        for name in ("zlib-d31", "lzo-d31"):
            image = str(dump.files[name].paths[0])
            commands = {}
            for what, files in (("with vmlinux", (vmlinux, image)), ("without", (image,))):
                ours = (program, "procs", *files)
                commands[f"kvm-dbg procs {what}, warm"] = Command(ours, environment={"XDG_CACHE_HOME": str(warm)})
                commands[f"kvm-dbg procs {what}, cold"] = Command(
                    ours,
                    environment={"XDG_CACHE_HOME": str(cold)},
                    before=lambda: shutil.rmtree(cold, ignore_errors=True),
                )
            commands["drgn-crash ps"] = Command((drgn, vmlinux, image), stdin="ps\n")
            lines = {key: len(run_once(command)[2].splitlines()) for key, command in commands.items()}
            show(f"{SCENARIO} {name}, lines printed {lines}", compare(commands), "drgn-crash ps")


if __name__ == "__main__":
    main()
