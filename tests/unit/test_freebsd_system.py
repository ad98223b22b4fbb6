"""FreeBSD systems of every processor, written from definitions: threads, registers, stacks, without any types."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import NamedTuple

import pytest

from kvm_dbg.arch import find_arch
from kvm_dbg.commands.session import sort_files
from kvm_dbg.errors import KernelMismatchError
from kvm_dbg.image import open_image
from kvm_dbg.image.base import BytesImage
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.kernel import open_kernel, system_of
from kvm_dbg.kernel.base import Kernel, Thread
from kvm_dbg.kernel.bsd.kernel_file import open_symbols
from kvm_dbg.kernel.freebsd.boot import find_boot
from kvm_dbg.kernel.freebsd.machine import find_machine
from kvm_dbg.kernel.layout import read_number
from tests.writers.freebsd_machines import HZ, MACHINES, System, write_system
from tests.writers.kernel_file import ABS, ALLOC, NOBITS, OBJECT, WRITE, Entry, Part, write_kernel_file


class Opened(NamedTuple):
    """A system, as it was written and as it is read."""

    system: System
    kernel: Kernel
    threads: list[Thread]


def opened(tmp_path: Path, system: System) -> Opened:
    dump, file = tmp_path / "vmcore.0", tmp_path / "kernel"
    dump.write_bytes(system.dump)
    file.write_bytes(system.kernel)
    kernel = open_kernel(OverlayImage(open_image(dump)), str(file))
    return Opened(system, kernel, list(system_of(kernel).for_each_thread(kernel)))


def pcs(found: Opened, thread: Thread) -> list[int]:
    return [frame.pc for frame in system_of(found.kernel).unwind(found.kernel, thread)]


@pytest.mark.parametrize("name", MACHINES)
def test_threads_registers_and_stacks(name: str, tmp_path: Path) -> None:
    found = opened(tmp_path, write_system(MACHINES[name]))
    kernel = found.kernel
    assert read_number(kernel, kernel.symbols.address("hz"), 4) == HZ
    assert [(one.lid, one.pid, one.name) for one in found.threads] == [
        (one.tid, one.pid, one.name) for one in found.system.threads
    ]
    assert [dict(one.registers) for one in found.threads] == [dict(one.registers) for one in found.system.threads]
    assert [pcs(found, one) for one in found.threads] == [one.pcs for one in found.system.threads]


@pytest.mark.parametrize("name", MACHINES)
def test_trap_frames_are_crossed_by_the_names_of_their_handlers(name: str, tmp_path: Path) -> None:
    found = opened(tmp_path, write_system(MACHINES[name], functions=True, stopped_by_pointer=True))
    assert [pcs(found, one) for one in found.threads] == [one.trapped for one in found.system.threads]
    frames = list(system_of(found.kernel).unwind(found.kernel, found.threads[1]))
    handler = MACHINES[name].handler
    assert [frame.name for frame in frames] == [
        "cpustop_handler", "trap", handler, "cpu_idle", "sched_idletd", "fork_exit",
    ]  # fmt: skip
    assert [frame.exact for frame in frames] == [False, False, False, True, False, False]


def test_arm64_layout_is_told_by_the_stacks_whatever_the_kernels_version(tmp_path: Path) -> None:
    for name, osreldate in (("arm64", 1300139), ("arm64-13", 1500000)):
        found = opened(tmp_path, write_system(MACHINES[name], osreldate=osreldate))
        assert [dict(one.registers) for one in found.threads] == [dict(one.registers) for one in found.system.threads]


def test_arm64_layout_is_that_of_the_version_where_no_thread_tells(tmp_path: Path) -> None:
    for name, osreldate in (("arm64", 1400084), ("arm64-13", 1400083), ("arm64", None)):
        system = write_system(MACHINES[name], osreldate=osreldate, with_sleepers=False)
        found = opened(tmp_path, system)
        assert len(found.threads) == 2
        assert [dict(one.registers) for one in found.threads] == [dict(one.registers) for one in system.threads]


def test_i386_has_kernels_with_and_without_an_address_space_of_their_own(tmp_path: Path) -> None:
    for name, first in (("i386", 0x800000), ("i386-11", 0xC0000000)):
        arch = opened(tmp_path, write_system(MACHINES[name])).kernel.arch
        assert not arch.is_user(first)
        assert arch.is_user(first - 1)
    assert find_arch("i386").is_user(0xBFFFFFFF)  # others' kernels are as they were


@pytest.mark.parametrize("name", ["amd64", "arm64", "riscv64", "i386"])
def test_return_address_that_is_none_of_the_kernel_is_the_last_frame(name: str, tmp_path: Path) -> None:
    system = write_system(MACHINES[name])
    found = opened(tmp_path, system)
    thread = found.threads[0]
    machine = system.machine
    word = machine.bits // 8
    place = thread.registers[machine.fp] + machine.back * word
    image = found.kernel.image
    assert isinstance(image, OverlayImage)
    for address, shown in ((0x28, [0x28]), (0, [])):
        image.write(found.kernel.translate(place), address.to_bytes(word, "little"))
        frames = list(system_of(found.kernel).unwind(found.kernel, thread))
        assert [frame.pc for frame in frames] == [thread.registers[machine.pc], *shown]
        assert f"{address:#x} is no address" in frames[-1].why if shown else "is 0" in frames[-1].why


def test_kernel_file_of_another_processor_is_refused(tmp_path: Path) -> None:
    arm, riscv = write_system(MACHINES["arm64"]), write_system(MACHINES["riscv64"])
    with pytest.raises(KernelMismatchError, match="aarch64"):
        opened(tmp_path, arm._replace(kernel=riscv.kernel))


def test_compressed_kernel_file_is_told_from_an_image(tmp_path: Path) -> None:
    system = write_system(MACHINES["arm64"])
    for name, data in (("vmcore.0", gzip.compress(system.dump)), ("kernel.gz", gzip.compress(system.kernel))):
        (tmp_path / name).write_bytes(data)
    dump, kernel, broken = str(tmp_path / "vmcore.0"), str(tmp_path / "kernel.gz"), str(tmp_path / "broken.gz")
    Path(broken).write_bytes(gzip.compress(system.kernel)[:12])
    assert sort_files([dump, kernel, broken]) == (kernel, (dump, broken))


@pytest.mark.parametrize(
    ("name", "levels", "base", "distance"),
    [("IdlePTD", 2, 0xC0400000, 0xC0000000), ("IdlePTD_nopae", 2, 0x800000, 0), ("IdlePDPT", 3, 0x800000, 0)],
)
def test_i386_page_tables_in_physical_memory(tmp_path: Path, name: str, levels: int, base: int, distance: int) -> None:
    """Intel SDM volume 3, 4.3 and 4.4; sys/i386/i386/pmap_base.c: the variable has a physical address."""
    variable, root, directory, table = base + 0x1040, 0x3000, 0x3000 if levels == 2 else 0x4000, 0x5000
    place = variable - distance
    size, form, bits = (4, "<I", 10) if levels == 2 else (8, "<Q", 9)
    pages = {paddr: bytearray(4096) for paddr in (root, directory, table, place & -4096)}
    struct.pack_into("<I", pages[place & -4096], place % 4096, root)
    if levels == 3:
        struct.pack_into("<Q", pages[root], (variable >> 30) * 8, directory | 1)
    struct.pack_into(form, pages[directory], (variable >> 12 + bits & (1 << bits) - 1) * size, table | 0x63)
    struct.pack_into(form, pages[table], (variable >> 12 & (1 << bits) - 1) * size, place & -4096 | 0x63)
    first = 0xC0000000 if distance else base
    entries = [Entry("kernbase", first, 0, ABS, type=0), Entry(name, variable, 4, ".bss", type=OBJECT)]
    if levels == 2:
        entries.append(Entry("IdlePDPT", variable + 4, 4, ".bss", type=OBJECT))  # a kernel of both kinds, without PAE
    file = tmp_path / "kernel"
    file.write_bytes(write_kernel_file([Part(".bss", NOBITS, ALLOC | WRITE, base, size=0x2000)], entries, bits=32))
    image = BytesImage({paddr: bytes(data) for paddr, data in pages.items()})
    boot = find_boot(image, find_arch("i386"), find_machine("i386"), open_symbols(str(file), None))
    assert boot is not None
    assert (boot.space.paging.root, boot.space.paging.levels, boot.quirks) == (root, levels, ())
    assert boot.space.translate(variable) == place
    assert not boot.space.arch.is_user(first)
    assert boot.space.arch.is_user(first - 1)
