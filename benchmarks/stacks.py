"""`kvm-dbg bt --all` with vmlinux on a kdump of a machine with 1 GiB, against `foreach bt` of drgn-crash.

The limit: half of the time that drgn-crash needs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Command, compare, installed_program, run_once, show
from tests.lab import build

SCENARIO = "deb12-kdump"
RUNS = 5
LIMIT = 0.5


def main() -> None:
    dump = build(SCENARIO)
    program = str(installed_program())
    drgn = str(Path(sys.executable).parent / "drgn-crash")
    vmlinux = str(dump.vmlinux)
    with tempfile.TemporaryDirectory() as cache:
        for name in ("zlib-d31", "lzo-d31"):
            image = str(dump.files[name].paths[0])
            commands = {
                "kvm-dbg bt --all": Command(
                    (program, "bt", "--all", vmlinux, image), environment={"XDG_CACHE_HOME": cache}
                ),
                "drgn-crash foreach bt": Command((drgn, vmlinux, image), stdin="foreach bt\n"),
            }
            lines = {key: len(run_once(command)[2].splitlines()) for key, command in commands.items()}
            figures = compare(commands, RUNS)
            show(f"{SCENARIO} {name}, lines printed {lines}", figures, "drgn-crash foreach bt")
            ratio = figures["kvm-dbg bt --all"].median / figures["drgn-crash foreach bt"].median
            print(f"  bt --all: x{ratio:.2f} of drgn-crash (limit {LIMIT})")


if __name__ == "__main__":
    main()
