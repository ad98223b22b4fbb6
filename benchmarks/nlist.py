"""1000 names by `kvm_nlist` in a fresh process, on a kernel of 119,000 symbols, without and with the index.

The process says how long `kvm_nlist` took in it. The peer is drgn, asked for the same names one by one in
a fresh process.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import RUNS, installed_program
from kvm_dbg.symbols.elf import ElfSymbolTable
from tests.lab import build

SCENARIO = "deb12-4level"
COUNT = 1000

OURS = """
import sys, time
from kvm_dbg.kvm import Nlist, kvm_nlist, kvm_openfiles
vmlinux, image, names, index = sys.argv[1:]
errors = []
kd = kvm_openfiles(vmlinux, image, errbuf=errors, index_directory=index or None)
assert kd is not None, errors
entries = [Nlist(name) for name in open(names).read().split()]
start = time.perf_counter()
missing = kvm_nlist(kd, entries)
print(time.perf_counter() - start)
assert missing == 0 and all(entry.n_type for entry in entries)
"""
DRGN = """
import sys, time, drgn
vmlinux, image, names = sys.argv[1:]
program = drgn.Program()
program.set_core_dump(image)
program.load_debug_info([vmlinux])
words = open(names).read().split()
start = time.perf_counter()
for name in words:
    program.symbols(name)
print(time.perf_counter() - start)
"""


def inside(argv: Sequence[str]) -> float:
    """Run a program that prints its figure, in seconds."""
    return float(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    dump = build(SCENARIO)
    vmlinux, image = str(dump.vmlinux), str(dump.files["elf"].paths[0])
    table = ElfSymbolTable(vmlinux)
    names = random.Random(1).sample(sorted({symbol.name for symbol in table.for_each()}), COUNT)
    python = str(installed_program().parent / "python")
    with tempfile.TemporaryDirectory() as directory:
        listed, index = Path(directory) / "names", Path(directory) / "index"
        listed.write_text("\n".join(names))
        commands = {
            "kvm_nlist, no index": (python, "-c", OURS, vmlinux, image, str(listed), ""),
            "kvm_nlist, index": (python, "-c", OURS, vmlinux, image, str(listed), str(index)),
            "drgn, symbols()": (sys.executable, "-c", DRGN, vmlinux, image, str(listed)),
        }
        figures: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(RUNS + 1):
            for name, argv in commands.items():
                seconds = inside(argv)
                if number:  # the first round fills the index and the page cache
                    figures[name].append(seconds)
    print(f"{COUNT} of {len(table)} names, in the process, median of {RUNS}")
    for name, found in figures.items():
        print(f"  {name:<24} {statistics.median(found) * 1e3:8.1f} ms  {min(found) * 1e3:.1f}..{max(found) * 1e3:.1f}")


if __name__ == "__main__":
    main()
