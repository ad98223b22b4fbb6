"""Read every present page of a dump in every format, and pages at random, against libkdumpfile's C interface.

    python -m benchmarks.image_read ELF KDUMP [RUNS]

ELF is an ELF vmcore, KDUMP a kdump-compressed dump of the same memory (flattened will do), which is written again with
every compression into a temporary folder first. Figures are CPU microseconds per page of 4 KiB, of the reads alone,
without opening: of one thread, in a process of its own, both sides alternately. libkdumpfile is called from C; it
reads sequentially 1 MiB a call, as kvm_dbg does in `for_each_chunk`, and page by page; the faster of the two counts.
Pages of zeros are cheap in every format, so those that are not zeros are measured apart as well. `random` reads pages
at random by physical address, `kernel` the same ones by their address in the kernel's direct map, page tables and all.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from kvm_dbg.errors import ReadError
from kvm_dbg.image import open_image
from kvm_dbg.kernel import open_kernel

HERE = Path(__file__).resolve().parent
PAGE = 4096
RANDOM_READS = 100_000
METHODS = ("raw", "zlib", "lzo", "snappy", "zstd")
WAYS = ("chunks", "pages", "nonzero", "random", "kernel")


def random_pages(path: Path) -> list[int]:
    """Return addresses of present pages, the same for both sides."""
    with open_image(path) as image:
        runs = [run for run in image.coverage() if run.presence.value == "present"]
    chance = random.Random(1)
    picked = chance.choices(runs, [run.size for run in runs], k=RANDOM_READS)
    return [run.start + chance.randrange(run.size // PAGE) * PAGE for run in picked]


def in_direct_map(path: Path, addresses: list[int]) -> list[int]:
    """Return where the kernel in the image maps the physical addresses, those left out that it does not map."""
    found = []
    with open_image(path) as image:
        kernel = open_kernel(image)
        start = int.from_bytes(kernel.read(kernel.symbols.address("page_offset_base"), 8), "little")
        for paddr in addresses:
            with suppress(ReadError):
                kernel.translate(start + paddr)
                found.append(start + paddr)
    return found


def present(path: Path, step: int) -> list[int]:
    """Return the addresses of all present memory that is there in whole steps."""
    with open_image(path) as image:
        runs = [run for run in image.coverage() if run.presence.value == "present"]
    return [paddr for run in runs for paddr in range(run.start, run.end - step + 1, step)]


def nonzero(path: Path) -> list[int]:
    """Return the addresses of the present pages that are not all zeros, which cost nearly nothing to decompress."""
    zeros = bytes(PAGE)
    with open_image(path) as image:
        return [
            paddr + at
            for paddr, chunk in image.for_each_chunk()
            for at in range(0, len(chunk) - PAGE + 1, PAGE)
            if chunk[at : at + PAGE] != zeros
        ]


def ours(path: Path, way: str) -> tuple[float, int]:
    """Return (CPU seconds, pages) of kvm_dbg; called in a process of its own, addresses on its standard input."""
    addresses = [int(line, 16) for line in sys.stdin]
    with open_image(path) as image:
        list(islice(image.for_each_chunk(), 1))  # codecs are loaded, as opening is not measured
        began = time.process_time()
        pages = 0
        if way == "chunks":
            for _, chunk in image.for_each_chunk():
                pages += len(chunk) // PAGE
        else:
            read: Callable[[int, int], bytes] = open_kernel(image).read if way == "kernel" else image.read
            began = time.process_time()
            for paddr in addresses:
                read(paddr, PAGE)
            pages = len(addresses)
        return time.process_time() - began, pages


def run_ours(path: Path, way: str, addresses: str) -> float:
    """Return CPU microseconds per page of kvm_dbg."""
    argv = [sys.executable, "-m", "benchmarks.image_read", "--one", str(path), way]
    done = subprocess.run(argv, input=addresses, capture_output=True, text=True, check=True, cwd=HERE.parent)
    seconds, pages = done.stdout.split()
    return float(seconds) * 1e6 / int(pages)


def run_peer(program: Path, path: Path, addresses: str, size: int, *system: str) -> float:
    """Return CPU microseconds per page of libkdumpfile."""
    argv = [str(program), str(path), str(size), *system]
    done = subprocess.run(argv, input=addresses, capture_output=True, text=True, check=True)
    nanoseconds, good, _ = map(int, done.stdout.split())
    if good != len(addresses.split()):
        raise RuntimeError(f"{path}: libkdumpfile read {good} of {len(addresses.split())}")
    return nanoseconds / 1e3 / (good * size / PAGE)


def compare(program: Path, name: str, path: Path, runs: int, ways: tuple[str, ...] = WAYS) -> None:
    """Print a line for each way of reading one file."""
    places = {
        "chunks": present(path, 1 << 20), "pages": present(path, PAGE),
        "nonzero": nonzero(path), "random": random_pages(path),
    }  # fmt: skip
    places["kernel"] = in_direct_map(path, places["random"])
    texts = {way: "\n".join(f"{paddr:x}" for paddr in found) for way, found in places.items()}
    found: dict[tuple[str, str], list[float]] = {}
    for turn in range(runs + 1):
        for way in ways:
            mine = run_ours(path, way, texts[way])
            system = ("linux",) if way == "kernel" else ()
            peer = run_peer(program, path, texts[way], 1 << 20 if way == "chunks" else PAGE, *system)
            if turn:  # the first fills the page cache
                found.setdefault(("kvm_dbg", way), []).append(mine)
                found.setdefault(("libkdumpfile", way), []).append(peer)
    median = {key: statistics.median(values) for key, values in found.items()}
    sequential = min(median["libkdumpfile", "chunks"], median["libkdumpfile", "pages"])
    for way in WAYS:
        mine = median["kvm_dbg", way]
        peer = sequential if way in ("chunks", "pages") else median["libkdumpfile", way]
        print(
            f"{name:<8} {way:<8} kvm_dbg {mine:7.2f} us  libkdumpfile {peer:7.2f} us  ratio {mine / peer:5.2f}",
            flush=True,
        )


def main(argv: list[str]) -> None:
    """Run the comparison, or one measurement in a child."""
    if argv[0] == "--one":
        print(*ours(Path(argv[1]), argv[2]))
        return
    from benchmarks.transcode import transcode

    elf, kdump = Path(argv[0]), Path(argv[1])
    runs = int(argv[2]) if len(argv) > 2 else 7
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "libkdumpfile_read"
        source = HERE / "libkdumpfile_read.c"
        subprocess.run(["cc", "-O2", "-o", program, source, "-l:libkdumpfile.so.10"], check=True)
        compare(program, "elf", elf, runs)
        for method in METHODS:
            path = Path(folder) / method
            with open_image(kdump) as image:
                transcode(kdump, image, method, path)
            compare(program, method, path, runs)
            path.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
