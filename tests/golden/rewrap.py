"""The memory of a dump in other containers: raw RAM, what QEMU writes, LiME, a dump partition, a full dump.

Memory that the dump lacks is a hole of zeros where the container has all of the machine's RAM (raw, QEMU's), and
missing where the container says which memory it has.
"""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path

from kvm_dbg.image.base import MemoryImage
from tests.writers.elfcore import Load, write_elfcore
from tests.writers.kdump import write_kdump
from tests.writers.lime import write_lime
from tests.writers.netbsd_kcore import write_kcore, write_partition

PAGE = 4096
VIDEO = (0xA0000, 0x100000)  # a PC has no RAM there
HEADER, ROW = 64, 56  # bytes of ELF's header and of a program header


class Memory:
    """What a dump has: {physical address: bytes}, runs that follow one another joined; and where its memory ends."""

    def __init__(self, image: MemoryImage) -> None:
        self.runs: dict[int, bytes] = {}
        start, end = 0, -1
        for paddr, data in image.for_each_chunk():
            if paddr != end:
                start = paddr
            self.runs[start] = self.runs.get(start, b"") + data
            end = paddr + len(data)
        self.end = end

    def put(self, path: Path, blocks: Iterable[tuple[int, int, int]]) -> None:
        """Write the memory of blocks, (physical address, end, place in the file), into an existing file, sparsely."""
        with path.open("r+b") as file:
            for start, end, place in blocks:
                file.truncate(max(path.stat().st_size, place + end - start))
                for paddr, data in self.runs.items():
                    low, high = max(start, paddr), min(end, paddr + len(data))
                    if low < high:
                        file.seek(place + low - start)
                        file.write(data[low - paddr : high - paddr])
                file.flush()

    @property
    def ram(self) -> list[tuple[int, int]]:
        """Return the (start, end) of the machine's RAM."""
        return [(0, VIDEO[0]), (VIDEO[1], self.end)]


def write_raw(memory: Memory, path: Path) -> Path:
    """Write raw RAM, as a file that backs a guest's memory is."""
    path.write_bytes(b"")
    memory.put(path, [(0, memory.end, 0)])
    return path


def write_qemu_elf(memory: Memory, path: Path, notes: bytes) -> Path:
    """Write what QEMU's dump-guest-memory does: a segment for each block of RAM."""
    blocks = memory.ram
    data = bytearray(write_elfcore([Load(start, b"") for start, _ in blocks], notes))
    place, places = len(data), []
    for number, (start, end) in enumerate(blocks, 1):  # the first program header is the notes'
        struct.pack_into("<Q", data, HEADER + ROW * number + 8, place)  # p_offset
        struct.pack_into("<QQ", data, HEADER + ROW * number + 32, end - start, end - start)  # p_filesz, p_memsz
        places.append((start, end, place))
        place += end - start
    path.write_bytes(data)
    memory.put(path, places)
    return path


def write_qemu_kdump(memory: Memory, path: Path, notes: bytes) -> Path:
    """Write what QEMU's dump-guest-memory -z does; it names the machine and no system."""
    pages = {pfn: bytes(PAGE) for start, end in memory.ram for pfn in range(start // PAGE, end // PAGE)}
    for paddr, data in memory.runs.items():
        pages |= {(paddr + at) // PAGE: data[at : at + PAGE] for at in range(0, len(data), PAGE)}
    path.write_bytes(write_kdump(pages, notes=notes, level=1, uts=("", "", "", "", "x86_64", "")))
    return path


def write_lime_file(memory: Memory, path: Path) -> Path:
    """Write a LiME image of the memory that is there."""
    path.write_bytes(write_lime(memory.runs.items()))
    return path


def write_dump_partition(memory: Memory, path: Path, root: int, offset: int) -> Path:
    """Write a swap partition with the dump at `offset` bytes, before savecore has seen it."""
    path.write_bytes(b"swapped " * (offset // 8) + write_partition(memory.runs, root) + b"swapped " * 512)
    return path


def write_full(memory: Memory, path: Path, root: int) -> Path:
    """Write savecore's file of a dump that is not sparse: the kernel's mem_clusters are its segments."""
    segments = [(0, VIDEO[0] - PAGE), (VIDEO[1], memory.end - VIDEO[1])]
    size = sum(length for _, length in segments)
    path.write_bytes(write_kcore({}, root, segments=segments, data_size=size))
    place = path.stat().st_size
    memory.put(path, [(0, segments[0][1], place), (VIDEO[1], memory.end, place + segments[0][1])])
    return path


def compress(path: Path) -> Path:
    """Write a file's gzip beside it, and return its path."""
    packed = path.with_name(f"{path.name}.gz")
    with path.open("rb") as source, gzip.open(packed, "wb", compresslevel=1) as out:
        shutil.copyfileobj(source, out, 1 << 20)
    return packed
