"""The real memory of a NetBSD/amd64 machine in every container that it may come in: all say the same of it.

The savecore file is compared with NetBSD's own words in test_netbsd.py; here all others are compared with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from kvm_dbg.commands.run import run_line
from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.errors import CorruptError, KernelNotFoundError, NotMappedError
from kvm_dbg.image import open_image
from kvm_dbg.kernel import identify_kernels, open_kernel, system_of
from kvm_dbg.kernel.base import Kernel
from kvm_dbg.kernel.netbsd.kernel import NetbsdKernel
from kvm_dbg.kernel.netbsd.register import read_saved
from kvm_dbg.symbols.ksyms import SOURCE
from tests.golden.rewrap import (
    PAGE,
    Memory,
    compress,
    write_dump_partition,
    write_full,
    write_lime_file,
    write_qemu_elf,
    write_qemu_kdump,
    write_raw,
)
from tests.shared import shared_data, unpack
from tests.writers.elfcore import write_note
from tests.writers.qemu import write_cpu_state

DUMPLO = 3 << 20
FORMS = (
    "raw", "raw.gz", "qemu-elf", "qemu-elf-cr3", "qemu-elf-user-cr3", "qemu-elf-cr3.gz", "qemu-kdump", "lime",
    "lime.gz", "partition", "partition.gz", "full", "full.gz", "core.gz",
)  # fmt: skip
REGISTERS = ("qemu-elf-cr3", "qemu-elf-user-cr3", "qemu-elf-cr3.gz", "qemu-kdump")
COMMANDS = ("procs", "lwps", "loadavg", "log", "nlist allproc lwp0 version", "sys", "bt --all", "args", "files")
WITHOUT = {"sys": ("image", "format", "coverage", "quirks"), "args": ("error",)}
"""What commands say of the file, and why something is missing: left out by the dump, zeros, or not in the file."""
ROOT = 0x4C6000  # PDPpaddr, in the truth files as well
NO_TABLE = 0x5000  # a page of this machine that is no page table: what CR3 may show of a CPU in user mode
IN_STACK = 0x2000  # bytes from a pcb on: inside of the LWP's stack


class Files(NamedTuple):
    """Where everything is."""

    folder: Path
    core: Path
    names: Path
    layout: str
    memory: Memory


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    data, folder = shared_data("netbsd"), tmp_path_factory.mktemp("form")
    core, names = unpack(data / "netbsd.0.core.zst", folder), unpack(data / "netbsd.0.zst", folder)
    with open_image(core) as image:
        return Files(folder, core, names, str(data / "layout.json"), Memory(image))


@pytest.fixture(scope="module")
def kernel(files: Files) -> Iterator[Kernel]:
    with open_image(files.core) as image:
        yield open_kernel(image, str(files.names), layout=files.layout)


@pytest.fixture(scope="module")
def expected(files: Files) -> dict[str, Any]:
    """Return what every command says of savecore's file."""
    return answers(files, files.core)


def session(files: Files, path: Path, *, names: Path | None = None, **options: Any) -> Session:
    opened = Session()
    opened.open(OpenRequest((str(path),), str(names or files.names), layout=files.layout, **options))
    return opened


def answers(files: Files, path: Path, **options: Any) -> dict[str, Any]:
    """Return what every command says, without what it says of the file itself."""
    opened = session(files, path, **options)
    try:
        found = {line: [json.loads(row) for row in rows(opened, line)] for line in COMMANDS}
    finally:
        opened.close()
    for line, names in WITHOUT.items():
        found[line] = [{name: value for name, value in one.items() if name not in names} for one in found[line]]
    return found


def rows(opened: Session, line: str) -> list[str]:
    found = json.loads("".join(run_line(opened, f"{line} --json")))
    return [json.dumps(one) for one in (found if isinstance(found, list) else [found])]


def notes(kernel: Kernel, form: str) -> bytes:
    """Return QEMU's notes of both CPUs, the second one's first, with the registers that CPU 0 dumped with."""
    symbols, types = kernel.symbols, kernel.types
    place, offset = symbols.address("cpu_infos"), types.offset_of("struct cpu_info", "ci_curlwp")
    array = int.from_bytes(kernel.read(place, 8), "little")
    cpus = [int.from_bytes(kernel.read(array + 8 * number, 8), "little") for number in range(2)]
    lwps = [int.from_bytes(kernel.read(cpu + offset, 8), "little") for cpu in cpus]
    pcb = int.from_bytes(kernel.read(lwps[1] + types.offset_of("struct lwp", "l_addr"), 8), "little")
    dumped = read_saved(kernel, symbols.address("dumppcb"))
    idle = {"rip": symbols.address("x86_cpu_idle_halt"), "rsp": pcb + IN_STACK, "rflags": 0x246}
    cr3 = NO_TABLE if form == "qemu-elf-user-cr3" else ROOT
    states = (
        write_cpu_state(idle, cr3=cr3, cr4=0x6F0, gs_base=cpus[1], kernel_gs_base=0),
        write_cpu_state(dumped, cr3=cr3, cr4=0x6F0, gs_base=0x7F7FF7FF, kernel_gs_base=cpus[0]),
    )
    return b"".join(write_note("QEMU", 0, state) for state in states)


def make(files: Files, kernel: Kernel, form: str) -> tuple[Path, dict[str, Any]]:
    """Return the file of a form, and the options that open it."""
    name = form.removesuffix(".gz")
    path = files.folder / f"form-{name}"
    options: dict[str, Any] = {"format": "netbsd-dump", "offset": DUMPLO} if name == "partition" else {}
    if name == "core":
        path = files.core
    elif not path.exists():
        if name == "raw":
            write_raw(files.memory, path)
        elif name.startswith("qemu-elf"):
            write_qemu_elf(files.memory, path, notes(kernel, name) if name in REGISTERS else b"")
        elif name == "qemu-kdump":
            write_qemu_kdump(files.memory, path, notes(kernel, name))
        elif name == "lime":
            write_lime_file(files.memory, path)
        elif name == "partition":
            write_dump_partition(files.memory, path, ROOT, DUMPLO)
        else:
            write_full(files.memory, path, ROOT)
    return (compress(path) if form.endswith(".gz") else path), options


@pytest.mark.parametrize("form", FORMS)
def test_every_container_says_the_same(files: Files, kernel: Kernel, expected: dict[str, Any], form: str) -> None:
    path, options = make(files, kernel, form)
    found = answers(files, path, **options)
    different = {"bt --all"} if form.removesuffix(".gz") in REGISTERS else set()  # what CPUs ran has other registers
    for line in set(COMMANDS) - different:
        assert found[line] == expected[line], line
    assert len(found["procs"]) == 22
    with open_image(path, **options) as image:
        (identity,) = identify_kernels(image)
        assert (identity.release, identity.arch, identity.verified) == ("6.99.16", "x86_64", True)
        again, version = open_kernel(image, str(files.names)), kernel.symbols.address("version")
        assert again.translate(version) == kernel.translate(version)
        assert cast(NetbsdKernel, again).paging.root == ROOT, "the kernel's own, not a process's"
        assert again.read(version, 14) == b"NetBSD 6.99.16"


@pytest.mark.parametrize("form", REGISTERS)
def test_cpus_have_the_registers_that_qemu_noted(files: Files, kernel: Kernel, form: str) -> None:
    path, _ = make(files, kernel, form)
    with open_image(path) as image:
        opened = open_kernel(image, str(files.names), layout=files.layout)
        system = system_of(opened)
        threads = list(system.for_each_thread(opened))
        by_label = {thread.label: thread for thread in threads}
        dumped = read_saved(kernel, kernel.symbols.address("dumppcb"))
        dumper = by_label["99.1"]
        assert threads[0] is dumper
        assert {name: dumper.registers[name] for name in dumped} == dumped
        assert (dumper.cpu, dumper.why) == (0, "QEMU's CPU state, CPU 0")
        frames = list(system.unwind(opened, dumper))
        assert [frame.name for frame in frames[:3]] == ["cpu_reboot", "sys_reboot", "syscall"]
        (idle,) = [thread for thread in threads if thread.on_cpu and thread is not dumper]
        assert (idle.cpu, idle.name, idle.why) == (1, "idle/1", "QEMU's CPU state, CPU 1")
        assert idle.registers["rip"] == kernel.symbols.address("x86_cpu_idle_halt")
        others = {thread.label: thread for thread in threads if not thread.on_cpu}
        for thread in system.for_each_thread(kernel):
            if not thread.on_cpu:
                assert others[thread.label].registers == thread.registers, thread.label


@pytest.mark.parametrize("form", ["core", "raw", "qemu-elf-cr3", "qemu-elf-user-cr3", "lime", "full"])
def test_without_a_kernel_file_the_kernel_s_own_symbols_do(
    files: Files, kernel: Kernel, expected: dict[str, Any], form: str, tmp_path: Path
) -> None:
    path, options = make(files, kernel, form)
    alone = tmp_path / "alone"  # no name list is beside it
    alone.symlink_to(path)
    with open_image(alone, **options) as image:
        opened = open_kernel(image, layout=files.layout)
        assert list(opened.symbols.for_each()) == list(kernel.symbols.for_each())
        assert getattr(opened, "vmlinux_path", None) is None
        assert system_of(opened).find_sources(opened).symbols == SOURCE
        assert any("ksyms" in quirk for quirk in getattr(opened, "quirks", ()))
    own = Session()
    own.open(OpenRequest((str(alone),), layout=files.layout))
    try:
        for line in ("procs", "lwps", "bt 19", "loadavg", "log"):
            found = [json.loads(row) for row in rows(own, line)]
            assert line == "bt 19" or found == expected[line]
            assert line != "bt 19" or [frame["function"] for frame in found[3:8]] == [
                "pipe_read", "dofileread", "sys_read", "syscall", "do_syscall",
            ]  # fmt: skip
    finally:
        own.close()


def test_raw_memory_cannot_say_what_it_lacks_and_zeros_are_no_arguments(files: Files, kernel: Kernel) -> None:
    path, _ = make(files, kernel, "raw")
    with open_image(path) as image:
        opened = open_kernel(image, str(files.names), layout=files.layout)
        system, blank = system_of(opened), []
        for process in system.for_each_process(opened):
            if process.kernel_thread or process.state == "Z":
                assert system.read_arguments(opened, process) is None
                continue
            with pytest.raises((CorruptError, NotMappedError)) as error:
                system.read_arguments(opened, process)
            blank.append("nothing but zeros" in str(error.value))
        assert len(blank) > 15
        assert blank.count(False) <= 2, "of a process, or of two, not even the page table's entry is there"


def test_symbols_that_are_not_all_in_the_image_are_refused(files: Files, kernel: Kernel, tmp_path: Path) -> None:
    place = kernel.symbols.address("kernel_symtab")
    symbols = int.from_bytes(kernel.read(place + 24, 8), "little")  # sd_symstart
    hole = kernel.translate(symbols + 0x5000) & -PAGE
    memory = Memory.__new__(Memory)
    memory.end, memory.runs = files.memory.end, {}
    for paddr, data in files.memory.runs.items():
        if paddr <= hole < paddr + len(data):
            memory.runs[paddr], memory.runs[hole + PAGE] = data[: hole - paddr], data[hole + PAGE - paddr :]
        else:
            memory.runs[paddr] = data
    with open_image(write_lime_file(memory, tmp_path / "holed")) as image:
        with pytest.raises(KernelNotFoundError, match="not all of them"):
            open_kernel(image)
        assert open_kernel(image, str(files.names)).read(kernel.symbols.address("version"), 6) == b"NetBSD"
