"""Kernel memory by virtual address, against drgn: the same bytes, or both none.

The addresses are pointers found in the kernel's own memory, so that they lead everywhere: text, data, direct map,
vmalloc, vmemmap, per-CPU areas, modules; and some that are mapped nowhere.
"""

from __future__ import annotations

import random
import struct

import pytest

from kvm_dbg.errors import ReadError
from kvm_dbg.image import open_image
from kvm_dbg.kernel import open_kernel
from kvm_dbg.kernel.linux.kernel import LinuxKernel
from tests.lab import find

# files that drgn opens: ELF with VMCOREINFO, and kdump files of makedumpfile
FILES = [
    ("deb12-4level", "elf"),
    ("deb12-4level", "lzo-d31"),
    ("deb12-kdump", "vmcore"),
    ("deb12-kdump", "zlib-d31"),
    ("deb13-4level", "elf"),
    ("deb13-kdump", "vmcore"),  # 5 levels
    ("deb13-panic", "elf"),  # 5 levels
]
COUNT = 3000
SIZE = 64


def pointers(kernel: LinuxKernel, generator: random.Random) -> list[int]:
    """Return kernel addresses found by following pointers from init_task and the kernel's data."""
    found = [kernel.symbols.address(name) for name in ("init_task", "init_uts_ns", "linux_banner", "_stext")]
    at = 0
    seen = set(found)
    while at < len(found) and len(found) < 20 * COUNT:
        page = found[at] & -4096
        at += 1
        try:
            words = struct.unpack("<512Q", kernel.read(page, 4096))
        except ReadError:
            continue
        for word in words:
            if word >= 0xFF00000000000000 and word not in seen:
                seen.add(word)
                found.append(word)
    generator.shuffle(found)
    return found[:COUNT]


@pytest.mark.parametrize(("name", "kind"), FILES, ids=[f"{name}-{kind}" for name, kind in FILES])
def test_reads_agree_with_drgn(name: str, kind: str) -> None:
    drgn = pytest.importorskip("drgn")
    dump = find(name)
    if dump is None or kind not in dump.files:
        pytest.skip(f"the lab has no dump {name} with {kind}: python -m tests.lab build {name}")
    path = dump.files[kind].paths[0]
    kernel = open_kernel(open_image(path), str(dump.vmlinux))
    assert isinstance(kernel, LinuxKernel)
    program = drgn.Program()
    program.set_core_dump(str(path))
    generator = random.Random(f"{name} {kind}")
    addresses = pointers(kernel, generator)
    addresses += [generator.randrange(0xFF00000000000000, 1 << 64) for _ in range(200)]
    same = missing = 0
    regions = set()
    for address in addresses:
        try:
            ours: bytes | None = kernel.read(address, SIZE)
        except ReadError:
            ours = None
        try:
            theirs: bytes | None = program.read(address, SIZE)
        except (drgn.FaultError, OverflowError, ValueError):  # ValueError: an overflow of the address space
            theirs = None
        assert ours == theirs, f"{address:#x}"
        if ours is None:
            missing += 1
        else:
            same += 1
            regions.add(address >> 39)
    assert same > COUNT // 2
    assert missing > 100
    assert len(regions) >= 3  # text, direct map and at least one of vmalloc, vmemmap
