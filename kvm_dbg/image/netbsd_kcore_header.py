"""The headers of a NetBSD crash dump: in savecore's file, and on the dump partition that the kernel wrote.

Facts: NetBSD sys/sys/kcore.h (kcore_hdr_t, kcore_seg_t, phys_ram_seg_t, the midmag macros; c_midmag is in network byte
order, everything else in the machine's), sys/sys/aout_mids.h (MID_*), sys/arch/amd64/include/kcore.h and
sys/arch/i386/include/kcore.h (cpu_kcore_hdr_t), cpu_dump() in sys/arch/amd64/amd64/machdep.c and
sys/arch/i386/i386/machdep.c (the partition), kvm_dump_wrtheader() in lib/libkvm/kvm.c (the file).

    savecore's file                         the partition, where the dump starts
    kcore_hdr, padded to c_hdrsize          kcore_seg {KCORE_MAGIC, CORE_CPU, c_size}
    kcore_seg {CORE_CPU, c_size}            cpu_kcore_hdr and segments, c_size bytes
    cpu_kcore_hdr and segments              memory, packed
    kcore_seg {CORE_DATA, c_size mod 2^32}
    memory, packed
"""

from __future__ import annotations

import operator
import struct
import sys
from array import array
from itertools import pairwise
from typing import Final, NamedTuple

from kvm_dbg.errors import FormatError, UnsupportedError
from kvm_dbg.image.source import Source

KCORE_MAGIC: Final = 0x8FCA
KCORESEG_MAGIC: Final = 0x8FAC
CORE_CPU: Final = 1
CORE_DATA: Final = 2
KCORE_HDR_SIZE: Final = 12  # c_midmag, c_hdrsize, c_seghdrsize, c_nseg
KCORE_SEG_SIZE: Final = 8  # c_midmag, c_size
SEGMENT_SIZE: Final = 16  # phys_ram_seg_t: u64 start, u64 size
MAX_HDRSIZE: Final = 4096  # bytes of either header with its padding: 16 and 8 in practice
MAX_SEGMENTS: Final = 1 << 20  # a list of 16 MiB
PADDR_END: Final = 1 << 52  # x86_64 has no physical address from here on

MID_I386: Final = 134
MID_X86_64: Final = 157
MACHINES: Final = {
    MID_I386: "i386",
    135: "m68k",
    136: "m68k with 4 KiB pages",
    137: "ns32532",
    138: "sparc",
    139: "pmax",
    140: "vax with 1 KiB pages",
    141: "alpha",
    142: "mips",
    143: "arm",
    144: "m68k with 2 KiB pages",
    145: "sh3",
    148: "powerpc64",
    149: "powerpc",
    150: "vax",
    151: "mips1",
    152: "mips2",
    153: "m88k",
    154: "hppa",
    155: "sh5",
    156: "sparc64",
    MID_X86_64: "amd64",
    158: "sh5 with 32 bits",
    159: "ia64",
    183: "aarch64",
    184: "or1k",
    185: "riscv",
    200: "hp200",
    300: "hp300",
}
"""MID_* -> the machine."""


class Machine(NamedTuple):
    """A machine whose dumps are read: its name in kvm_dbg's registry of architectures, its cpu_kcore_hdr.

    layout: ptdpaddr (pdppaddr) and nmemsegs. align: ALIGN() of the machine, in bytes. flags: bits of pdppaddr that are
    no part of the address, of which `pae` says that the kernel uses PAE.
    """

    name: str
    word_bits: int
    layout: struct.Struct
    align: int
    flags: int
    pae: int


READ: Final = {
    MID_X86_64: Machine("x86_64", 64, struct.Struct("<QQ"), 8, 0, 0),
    MID_I386: Machine("i386", 32, struct.Struct("<II"), 4, 0xFFF, 0x200),  # I386_KCORE_PAE is PTE_AVL1
}


class Midmag(NamedTuple):
    """A c_midmag, taken apart."""

    flags: int
    mid: int
    magic: int


def split_midmag(data: bytes) -> Midmag:
    """Take the c_midmag that `data` starts with apart: magic in bits 0-15, machine id in 16-25, flags in 26-31."""
    value = int.from_bytes(data[:4], "big")
    return Midmag(value >> 26, value >> 16 & 0x3FF, value & 0xFFFF)


def join_midmag(flags: int, mid: int, magic: int) -> bytes:
    """Return a c_midmag."""
    return (flags << 26 | mid << 16 | magic).to_bytes(4, "big")


class KcoreHeader(NamedTuple):
    """What the headers say.

    Attributes:
        machine: whose dump it is.
        root: physical address of the kernel's top page table (ptdpaddr; pdppaddr without its flags on i386).
        pae: the root is that of i386's four page directories of PAE.
        cpu_data: the CORE_CPU segment as it stands: cpu_kcore_hdr, segments, padding.
        starts, sizes: the segments of memory, as parallel arrays, in the order of the file.
        offset: where the first segment's memory is in the file.
        said: bytes of memory that the CORE_DATA header tells, modulo 2^32; None on the partition, which has none.
    """

    mid: int
    machine: Machine
    root: int
    pae: bool
    cpu_data: bytes
    starts: array[int]
    sizes: array[int]
    offset: int
    said: int | None

    @property
    def size(self) -> int:
        """Return the bytes of memory that the segments amount to."""
        return sum(self.sizes)


def is_savecore_file(head: bytes) -> bool:
    """Tell whether a file that starts with `head` is savecore's, also if its machine is not known."""
    midmag = split_midmag(head)
    if len(head) < KCORE_HDR_SIZE or (midmag.magic, midmag.flags) != (KCORE_MAGIC, 0):
        return False
    either = (struct.unpack_from("<HH", head, 4), struct.unpack_from(">HH", head, 4))
    return midmag.mid in MACHINES or any(
        KCORE_HDR_SIZE <= hdrsize <= MAX_HDRSIZE and KCORE_SEG_SIZE <= seghdrsize <= MAX_HDRSIZE
        for hdrsize, seghdrsize in either
    )


def is_partition(head: bytes) -> bool:
    """Tell whether a dump as the kernel writes it starts with `head`."""
    midmag = split_midmag(head)
    return len(head) >= KCORE_SEG_SIZE and midmag[0::2] == (CORE_CPU, KCORE_MAGIC) and midmag.mid in MACHINES


def read_savecore_header(source: Source) -> KcoreHeader:
    """Return the headers of savecore's file.

    Raises:
        FormatError: a field is impossible, or the file ends inside the headers.
        UnsupportedError: the dump is of a machine whose dumps are not read.
    """
    path = source.path
    head = _take(source, 0, KCORE_HDR_SIZE, "kcore_hdr")
    mid = split_midmag(head).mid
    machine = _find_machine(path, mid)
    hdrsize, seghdrsize, nseg = struct.unpack_from("<HHI", head, 4)
    if not KCORE_HDR_SIZE <= hdrsize <= MAX_HDRSIZE:
        raise FormatError(path, 4, "c_hdrsize", f"{hdrsize} is not between {KCORE_HDR_SIZE} and {MAX_HDRSIZE}")
    if not KCORE_SEG_SIZE <= seghdrsize <= MAX_HDRSIZE:
        raise FormatError(path, 6, "c_seghdrsize", f"{seghdrsize} is not between {KCORE_SEG_SIZE} and {MAX_HDRSIZE}")
    if nseg != 2:
        raise FormatError(path, 8, "c_nseg", f"{nseg} is not 2: one of the CPU, one of memory")
    cpu_size = _read_segment(source, hdrsize, KCORESEG_MAGIC, CORE_CPU)
    place = hdrsize + seghdrsize
    root, pae, cpu_data, starts, sizes = _read_cpu(source, machine, place, cpu_size)
    said = _read_segment(source, place + cpu_size, KCORESEG_MAGIC, CORE_DATA)
    return KcoreHeader(mid, machine, root, pae, cpu_data, starts, sizes, place + cpu_size + seghdrsize, said)


def read_partition_header(source: Source, offset: int) -> KcoreHeader:
    """Return the header of a dump that starts at `offset` bytes of a partition. Raises as `read_savecore_header`."""
    head = _take(source, offset, KCORE_SEG_SIZE, "kcore_seg")
    cpu_size = _read_segment(source, offset, KCORE_MAGIC, CORE_CPU)
    mid = split_midmag(head).mid
    machine = _find_machine(source.path, mid)
    place = offset + KCORE_SEG_SIZE
    root, pae, cpu_data, starts, sizes = _read_cpu(source, machine, place, cpu_size)
    return KcoreHeader(mid, machine, root, pae, cpu_data, starts, sizes, place + cpu_size, None)


def _find_machine(path: str, mid: int) -> Machine:
    machine = READ.get(mid)
    if machine is None:
        name = MACHINES.get(mid, "a machine that is not known")
        known = ", ".join(MACHINES[number] for number in READ)
        raise UnsupportedError(f"a NetBSD dump of machine id {mid} ({name})", f"{path}: those of {known} are read")
    return machine


def _take(source: Source, offset: int, size: int, field: str) -> bytes:
    data = source.read(offset, size)
    if len(data) < size:
        raise FormatError(
            source.path, offset + len(data), field, f"the file ends inside it: {len(data)} of {size} bytes"
        )
    return data


def _read_segment(source: Source, offset: int, magic: int, flags: int) -> int:
    """Return c_size of the kcore_seg at `offset`, which must have this magic and these flags."""
    head = _take(source, offset, KCORE_SEG_SIZE, "kcore_seg")
    found = split_midmag(head)
    if found.magic != magic:
        raise FormatError(source.path, offset, "c_midmag", f"its magic is {found.magic:#x}, not {magic:#x}")
    if found.flags != flags:
        kind = "CORE_CPU" if flags == CORE_CPU else "CORE_DATA"
        raise FormatError(source.path, offset, "c_midmag", f"its flags are {found.flags}, not {flags} ({kind})")
    return int.from_bytes(head[4:8], "little")


def _read_cpu(
    source: Source, machine: Machine, place: int, size: int
) -> tuple[int, bool, bytes, array[int], array[int]]:
    """Return (root, whether it is PAE's, the segment's bytes, starts, sizes) of CORE_CPU, `size` bytes at `place`."""
    path, layout = source.path, machine.layout
    if size < layout.size:
        raise FormatError(path, place - KCORE_SEG_SIZE + 4, "c_size", f"{size} is less than a cpu_kcore_hdr")
    root, count = layout.unpack(_take(source, place, layout.size, "cpu_kcore_hdr"))
    count_at = place + layout.size // 2
    first = layout.size + -layout.size % machine.align
    if count > MAX_SEGMENTS:
        raise FormatError(path, count_at, "nmemsegs", f"{count} is more than {MAX_SEGMENTS}")
    if first + count * SEGMENT_SIZE > size:
        raise FormatError(path, count_at, "nmemsegs", f"{count} segments do not fit into {size} bytes (c_size)")
    if root & ~machine.flags >= PADDR_END:
        raise FormatError(path, place, "ptdpaddr", f"{root:#x} is no physical address")
    used = first + count * SEGMENT_SIZE
    cpu_data = _take(source, place, min(size, used + MAX_HDRSIZE), "memsegs")
    rows = array("Q", cpu_data[first:used])
    if sys.byteorder == "big":
        rows.byteswap()
    starts, sizes = rows[0::2], rows[1::2]
    _check_segments(path, place + first, starts, sizes)
    return root & ~machine.flags, bool(root & machine.pae), cpu_data, starts, sizes


def _check_segments(path: str, place: int, starts: array[int], sizes: array[int]) -> None:
    """Raise FormatError for the first segment that is impossible or overlaps another; `place` is the list's offset."""
    if len(starts) and max(map(operator.add, starts, sizes)) > PADDR_END:
        for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            if start + size > PADDR_END:
                raise FormatError(
                    path,
                    place + number * SEGMENT_SIZE,
                    f"memsegs[{number}]",
                    f"{size:#x} bytes from {start:#x} on end beyond the last physical address",
                )
    if all(map(operator.le, map(operator.add, starts, sizes), starts[1:])):
        return
    order = sorted(range(len(starts)), key=starts.__getitem__)
    for low, high in pairwise(number for number in order if sizes[number]):
        if starts[low] + sizes[low] > starts[high]:
            raise FormatError(
                path,
                place + high * SEGMENT_SIZE,
                f"memsegs[{high}]",
                f"its start {starts[high]:#x} is inside memsegs[{low}], {starts[low]:#x}-{starts[low] + sizes[low]:#x}",
            )
