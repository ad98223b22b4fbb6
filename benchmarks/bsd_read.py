"""Read the same memory as a FreeBSD minidump, a NetBSD crash dump and an ELF vmcore; open a sparse minidump of 64 GiB.

    python -m benchmarks.bsd_read IMAGE [RUNS [MIB]]

The first MIB (256) present MiB of IMAGE, any that kvm_dbg opens, are written in the three formats into a temporary
folder, and every present page is read: as chunks of 1 MiB (`for_each_chunk`), page by page in order, and 100,000 pages
at random. Figures are CPU microseconds per page of 4 KiB, of the reads alone, in a process for each, all formats
alternately: medians, and their ratio to ELF. The sparse minidump has memory in 1000 places of 4 MiB over 64 GiB and the
page map of such a machine; opening includes `import kvm_dbg`, and the peak (VmHWM) is that of the whole process.
"""

from __future__ import annotations

import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from kvm_dbg.image import open_image
from tests.writers.elfcore import Load, write_elfcore
from tests.writers.freebsd_minidump import write_minidump
from tests.writers.netbsd_kcore import write_kcore

HERE = Path(__file__).resolve().parent
PAGE = 4096
RANDOM_READS = 100_000
FORMATS = ("elf", "freebsd-minidump", "netbsd")
WAYS = ("chunks", "pages", "random")
SPARSE_BYTES, PLACES, PLACE_PAGES = 64 << 30, 1000, 1024
PMAP_BYTES = 8 << 20  # of amd64: an entry for each 2 MiB of 2 TiB

CHILD = """
import sys, time
began = time.perf_counter()
from kvm_dbg.image import open_image
with open_image(sys.argv[1]) as image:
    opened = time.perf_counter()
    image.read(0, 8)
    image.read(int(sys.argv[2]), 8)
    read = time.perf_counter()
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(opened - began, read - opened, int(peak.split()[1]) / 1024)
"""


def runs_of(path: str, limit: int) -> Iterator[tuple[int, bytes]]:
    """Yield (paddr, bytes) of present memory in whole pages, at most `limit` bytes; neighbours are joined."""
    place, parts, left = -1, [b""], limit
    with open_image(path) as image:
        for paddr, chunk in image.for_each_chunk():
            data = chunk[: min(len(chunk), left) // PAGE * PAGE]
            left -= len(data)
            if paddr != place and len(parts) > 1:
                data_before = b"".join(parts)
                yield place - len(data_before), data_before
                parts = [b""]
            parts.append(data)
            place = paddr + len(data)
            if left < PAGE:
                break
    if len(parts) > 1:
        data = b"".join(parts)
        yield place - len(data), data


def write_files(folder: Path, source: str, limit: int) -> dict[str, Path]:
    """Write the memory in each format."""
    memory = dict(runs_of(source, limit))
    pages = {
        (paddr + at) // PAGE: data[at : at + PAGE] for paddr, data in memory.items() for at in range(0, len(data), PAGE)
    }
    files = {name: folder / name for name in FORMATS}
    files["elf"].write_bytes(write_elfcore([Load(paddr, data) for paddr, data in memory.items()]))
    avail = [(paddr, paddr + len(data)) for paddr, data in memory.items()][:512]
    avail = avail if len(memory) <= len(avail) else [(0, max(paddr + len(data) for paddr, data in memory.items()))]
    files["freebsd-minidump"].write_bytes(write_minidump("amd64", pages, avail=avail))
    files["netbsd"].write_bytes(write_kcore(memory))
    return files


def addresses_of(path: Path, way: str) -> list[int]:
    """Return the pages to read."""
    with open_image(path) as image:
        found = [
            paddr
            for run in image.coverage()
            if run.presence.value == "present"
            for paddr in range(run.start, run.end, PAGE)
        ]
    return random.Random(1).choices(found, k=RANDOM_READS) if way == "random" else found


def measure(path: Path, way: str) -> tuple[float, int]:
    """Return (CPU seconds, pages) of reading; called in a process of its own."""
    addresses = [] if way == "chunks" else addresses_of(path, way)
    with open_image(path) as image:
        next(image.for_each_chunk())
        began = time.process_time()
        if way == "chunks":
            pages = sum(len(chunk) // PAGE for _, chunk in image.for_each_chunk())
        else:
            read = image.read
            for paddr in addresses:
                read(paddr, PAGE)
            pages = len(addresses)
        return time.process_time() - began, pages


def compare(files: dict[str, Path], runs: int) -> None:
    """Print a line for each way and format."""
    found: dict[tuple[str, str], list[float]] = {}
    for turn in range(runs + 1):
        for way in WAYS:
            for name, path in files.items():
                argv = [sys.executable, "-m", "benchmarks.bsd_read", "--one", str(path), way]
                done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=HERE.parent)
                seconds, pages = done.stdout.split()
                if turn:  # the first fills the page cache
                    found.setdefault((way, name), []).append(float(seconds) * 1e6 / int(pages))
    for way in WAYS:
        elf = statistics.median(found[way, "elf"])
        for name in files:
            mine = statistics.median(found[way, name])
            print(f"{way:<8} {name:<18} {mine:7.3f} us a page  ratio to elf {mine / elf:5.2f}", flush=True)


def write_sparse(path: Path) -> int:
    """Write a minidump with holes for its pages; return the address of the last page."""
    step = SPARSE_BYTES // PAGE // PLACES
    bits = bytearray(SPARSE_BYTES // PAGE // 8)
    for place in range(PLACES):
        start = place * step // 8
        bits[start : start + PLACE_PAGES // 8] = b"\xff" * (PLACE_PAGES // 8)
    avail = struct.pack("<4Q", 0, SPARSE_BYTES, 0, 0)
    head = bytearray(write_minidump("amd64", {0: b""})[:PAGE])
    struct.pack_into("<4I", head, 24, 3, PAGE, len(bits), PMAP_BYTES)
    struct.pack_into("<I", head, 64, len(avail))
    with path.open("wb") as file:
        file.write(head)
        file.seek(2 * PAGE)
        file.write(avail)
        file.seek(3 * PAGE)
        file.write(bits)
        file.truncate(3 * PAGE + len(bits) + PMAP_BYTES + PLACES * PLACE_PAGES * PAGE)
    return ((PLACES - 1) * step // 8 * 8 + PLACE_PAGES - 1) * PAGE


def open_sparse(folder: Path, runs: int) -> None:
    """Print how long it takes to open a sparse minidump, and how much memory."""
    path = folder / "sparse"
    last = write_sparse(path)
    rows = []
    for _ in range(runs + 1):
        argv = [sys.executable, "-c", CHILD, str(path), str(last)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=HERE.parent)
        rows.append([float(word) for word in done.stdout.split()])
    opened, read, peak = (statistics.median(column) for column in zip(*rows[1:], strict=True))
    print(
        f"minidump of {SPARSE_BYTES >> 30} GiB: open {opened:.3f} s, read both ends {read:.3f} s, peak {peak:.0f} MiB"
    )


def main(argv: list[str]) -> None:
    """Run the comparison, or one measurement in a child."""
    if not argv:
        sys.exit(__doc__)
    if argv[0] == "--one":
        print(*measure(Path(argv[1]), argv[2]))
        return
    runs = int(argv[1]) if len(argv) > 1 else 7
    limit = (int(argv[2]) if len(argv) > 2 else 256) << 20
    with tempfile.TemporaryDirectory() as folder:
        compare(write_files(Path(folder), argv[0], limit), runs)
        open_sparse(Path(folder), runs)


if __name__ == "__main__":
    main(sys.argv[1:])
