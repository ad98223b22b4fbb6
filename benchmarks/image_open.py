"""Open sparse dumps of 1 TiB, read at both ends and list what they cover; time and memory, against libkdumpfile.

    python -m benchmarks.image_open [RUNS]

The files take a few hundred KiB of disk. The kdump has memory in 1000 places of 4 MiB over the whole terabyte, so that
its bitmap has to be counted through to find the last page. Each run is a process of its own: wall time from before
`import kvm_dbg` on, and the process's peak of memory. libkdumpfile opens and reads the same two pages.
"""

from __future__ import annotations

import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.writers.elfcore import Load, write_elfcore
from tests.writers.kdump import write_kdump

HERE = Path(__file__).resolve().parent
PAGE = 4096
SIZE = 1 << 40
RUNS = 7
PLACES = 1000
RUN_PAGES = 1024

CHILD = """
import sys, time
began = time.perf_counter()
from kvm_dbg.image import open_image
with open_image(sys.argv[1]) as image:
    opened = time.perf_counter()
    image.read(0, 8)
    image.read((1 << 40) - 4096, 8)
    read = time.perf_counter()
    runs = sum(1 for _ in image.coverage())
    covered = time.perf_counter()
import resource
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(opened - began, read - opened, covered - read, peak / 1024, runs)
"""


def write_sparse_elf(path: Path) -> None:
    """Write an ELF vmcore with one segment of 1 TiB."""
    head = bytearray(write_elfcore([Load(0, b"x")]))
    struct.pack_into("<QQ", head, 64 + 56 + 32, SIZE, SIZE)
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(len(head) - 1 + SIZE)


def write_sparse_kdump(path: Path) -> None:
    """Write a kdump of 1 TiB in which PLACES runs of RUN_PAGES pages are dumped, all sharing one page of data."""
    frames = SIZE // PAGE
    head = bytearray(write_kdump({0: b"x" * PAGE}, max_mapnr=16, method="raw")[: 2 * PAGE])
    half = frames // 8
    struct.pack_into("<I", head, 436, 2 * half // PAGE)
    struct.pack_into("<Q", head, PAGE + 96, frames)
    descriptors = 2 * PAGE + 2 * half
    count = PLACES * RUN_PAGES
    data = descriptors + 24 * count
    with path.open("wb") as file:
        file.write(head)
        for bitmap in (0, half):
            for place in range(PLACES):
                first = (frames - RUN_PAGES) * place // (PLACES - 1) // 8
                file.seek(2 * PAGE + bitmap + first)
                file.write(b"\xff" * (RUN_PAGES // 8))
        file.seek(descriptors)
        file.write(struct.pack("<QIIQ", data, PAGE, 0, 0) * count)
        file.write(b"x" * PAGE)


def main(argv: list[str]) -> None:
    """Measure both files."""
    runs = int(argv[0]) if argv else RUNS
    with tempfile.TemporaryDirectory() as folder:
        peer = Path(folder) / "peer"
        source = HERE / "libkdumpfile_read.c"
        subprocess.run(["cc", "-O2", "-o", peer, source, "-l:libkdumpfile.so.10"], check=True)
        for name, write in (("elf", write_sparse_elf), ("kdump", write_sparse_kdump)):
            path = Path(folder) / name
            write(path)
            rows, theirs = [], []
            for _ in range(runs):
                out = subprocess.run(
                    [sys.executable, "-c", CHILD, path], capture_output=True, text=True, check=True, cwd=HERE.parent
                ).stdout.split()
                rows.append([float(field) for field in out])
                argv_peer = ["/usr/bin/time", "-f", "%e %M", str(peer), str(path), "4096"]
                done = subprocess.run(
                    argv_peer, input=f"0\n{SIZE - PAGE:x}\n", capture_output=True, text=True, check=False
                )
                theirs.append([float(field) for field in done.stderr.split()[-2:]])
            opened, read, covered, peak, count = (statistics.median(column) for column in zip(*rows, strict=True))
            wall, memory = (statistics.median(column) for column in zip(*theirs, strict=True))
            print(
                f"{name:<6} kvm_dbg: import and open {opened * 1e3:.1f} ms, two pages {read * 1e3:.1f} ms, coverage of"
                f" {count:.0f} runs {covered * 1e3:.1f} ms, peak {peak:.0f} MiB"
                f"  |  libkdumpfile: open and two pages {wall * 1e3:.0f} ms, peak {memory / 1024:.0f} MiB"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
