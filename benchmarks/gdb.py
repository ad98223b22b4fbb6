"""A whole `gdb -batch` that opens a dump and lists its processes, against drgn-crash's `ps`; and bulk reads.

Three parts: `kvm open --no-symbols` and `kvm procs`; the same with symbols, beside what the same gdb needs to load the
same vmlinux alone (its index cache warm in both); `dump binary memory` of 64 MiB, with the CPU time of the server.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT, Command, compare, installed_program, run_once, show
from tests.debuggers.debugger import Found, find, of_kind
from tests.lab import Dump, build

SCENARIO = "deb12-kdump"
ADAPTER = ROOT / "gdb" / "kvm_dbg_gdb.py"
BULK = 64 << 20  # bytes


def batch(gdb: str, *commands: str) -> tuple[str, ...]:
    """Return the words of a gdb -batch that runs the commands."""
    return (
        gdb,
        "-nx",
        "-batch",
        "-iex",
        "set debuginfod enabled off",
        *(word for c in commands for word in ("-ex", c)),
    )


def measure_opening(found: Found, dump: Dump, python: str, cache: Path) -> None:
    """Compare opening with and without symbols with drgn-crash and with gdb loading vmlinux alone."""
    image, vmlinux = str(dump.files["zlib-d31"].paths[0]), str(dump.vmlinux)
    environment = {"XDG_CACHE_HOME": str(cache), "KVM_DBG_PYTHON": python}
    own = str(cache / f"own-{found.debugger.version}")
    gdb = found.program
    drgn = str(Path(sys.executable).parent / "drgn-crash")
    figures = compare(
        {
            "kvm open --no-symbols, kvm procs": Command(
                batch(gdb, f"source {ADAPTER}", f"kvm open --no-symbols {vmlinux} {image}", "kvm procs"),
                environment=environment,
            ),
            "kvm open, kvm procs": Command(
                batch(gdb, f"source {ADAPTER}", f"kvm open {vmlinux} {image}", "kvm procs"), environment=environment
            ),
            "gdb loads vmlinux alone": Command(
                batch(gdb, f"set index-cache directory {own}", "set index-cache enabled on", f"file {vmlinux}")
            ),
            "drgn-crash ps": Command((drgn, vmlinux, image), stdin="ps\n"),
        }
    )
    show(f"{found.debugger.name}, {SCENARIO} zlib-d31", figures, "drgn-crash ps")
    drgn_time = figures["drgn-crash ps"].median
    alone = figures["gdb loads vmlinux alone"].median
    print(
        f"  without symbols: x{figures['kvm open --no-symbols, kvm procs'].median / drgn_time:.2f} of drgn-crash (1.2)"
    )
    allowed = 1.2 * drgn_time + 1.1 * alone
    with_symbols = figures["kvm open, kvm procs"].median
    print(f"  with symbols: x{with_symbols / allowed:.2f} of 1.2 drgn-crash + 1.1 gdb alone (1.0)")


def measure_bulk(found: Found, dump: Dump, python: str, cache: Path) -> None:
    """Read 64 MiB of the direct map through gdb and show what the server spent."""
    image, vmlinux = str(dump.files["elf"].paths[0]), str(dump.vmlinux)
    output = cache / "bulk.bin"
    environment = {"XDG_CACHE_HOME": str(cache), "KVM_DBG_PYTHON": python}
    commands = batch(
        found.program,
        f"source {ADAPTER}",
        f"kvm open {vmlinux} {image}",
        "python import os, time",
        "python child = open(f'/proc/self/task/{os.getpid()}/children').read().split()[0]",
        "set $start = *(unsigned long *)&page_offset_base + 0x1000000",
        "python spent = lambda: sum(map(int, open(f'/proc/{child}/stat').read().rpartition(')')[2].split()[11:13]))",
        "python before, clock = spent(), time.perf_counter()",
        f"dump binary memory {output} $start $start+{BULK}",
        "python print('server', (spent() - before) / os.sysconf('SC_CLK_TCK'), 'wall', time.perf_counter() - clock)",
    )
    servers, walls = [], []
    for _ in range(7):
        _, _, text = run_once(Command(commands, environment=environment))
        words = text.split()
        servers.append(float(words[words.index("server") + 1]))
        walls.append(float(words[words.index("wall") + 1]))
    servers.sort()
    walls.sort()
    print(f"  {BULK >> 20} MiB: the server spends {servers[3]:.2f} s of CPU (0.5), the whole takes {walls[3]:.2f} s")


def main() -> None:
    dump, healthy = build(SCENARIO), build("deb12-4level")
    python = str(installed_program("python"))
    with tempfile.TemporaryDirectory() as directory:
        for debugger in of_kind("gdb"):
            found = find(debugger)
            if not isinstance(found, Found):
                print(f"{debugger.name}: not here, left out: {found.reason}")
                continue
            measure_opening(found, dump, python, Path(directory))
            measure_bulk(found, healthy, python, Path(directory))


if __name__ == "__main__":
    main()
