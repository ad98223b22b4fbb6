"""A kernel by the reads of a debugger that is attached to its machine: by physical addresses, and by virtual ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from kvm_dbg.arch.base import Paging
from kvm_dbg.arch.paging import AddressSpace
from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.arch.x86_64_register import make_qemu_cpu_state, parse_qemu_cpu_state
from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.errors import (
    CommandError,
    KernelMismatchError,
    KernelNotFoundError,
    NotInImageError,
    ProtocolError,
    ReadError,
    UnsupportedError,
)
from kvm_dbg.kernel.linux.kernel import LinuxKernel
from kvm_dbg.rsp.attached import Machine, open_attached
from kvm_dbg.rsp.control import ControlChannel
from kvm_dbg.rsp.stop import ClientGone
from tests.writers.linux_memory import DIRECT, E820_POINTER, TEXT, VMCOREINFO_POINTER, LinuxMemory

RAM = ((0, 0x9FC00, 1), (0x100000, 0x1FF00000, 1), (0xFEC00000, 0x1000, 2))
DEVICE = 0xFEE00000


class Adapter:
    """A machine with a little Linux, as an adapter would tell of it; stands in for the channel."""

    def __init__(self, memory: LinuxMemory, *, physical: bool) -> None:
        self.memory = memory
        memory.tables.page(memory.paddr_of(TEXT))  # the first page of its text
        self.image = memory.image()
        self.physical = physical
        self.space = AddressSpace(X86_64, self.image, Paging(memory.root, memory.levels))
        self.symbols: dict[str, int] = {}
        self.asked: list[tuple[int, int]] = []
        self.stored: list[tuple[int, bytes]] = []
        self.arch = "x86_64"
        self.efer = 0xD01
        self.fault = ""
        self.runs = 0

    def ask(self, question: dict[str, object]) -> Any:
        if self.fault:
            raise CommandError(self.fault)
        match question:
            case {"machine": True}:
                return {"name": "stub", "physical": self.physical, "arch": self.arch}
            case {"cpus": list()}:
                registers = {"cr3": hex(self.memory.root | 5), "efer": hex(self.efer), "rip": hex(TEXT + self.runs)}
                registers["cr4"] = "0x1000" if self.memory.levels == 5 else "0x20"
                return [{"thread": 1, "registers": registers}]
            case {"addresses": list(names)}:
                return {str(name): hex(self.symbols[name]) if name in self.symbols else None for name in names}
            case {"read": list(places), "physical": bool(physical)}:
                assert physical is self.physical
                return [self.read(int(place, 16), size) for place, size in places]
            case {"store": [str(place), str(data)], "physical": bool()}:
                self.stored.append((int(place, 16), bytes.fromhex(data)))
                return True
        raise AssertionError(question)

    def read(self, address: int, size: int) -> str | None:
        self.asked.append((address, size))
        try:
            return (self.image if self.physical else self.space).read(address, size).hex()
        except ReadError:
            return None

    def machine(self) -> Machine:
        return Machine(cast(ControlChannel, self))


def open_kernel(adapter: Adapter, tmp_path: Path, *, named: bool = True, writable: bool = False) -> LinuxKernel:
    path = tmp_path / "vmlinux"
    path.write_bytes(adapter.memory.vmlinux())
    session = Session()
    request = OpenRequest((), str(path) if named else None, live=True, write=writable, search=(str(tmp_path),))
    kernel = open_attached(adapter.machine(), session, request)
    assert isinstance(kernel, LinuxKernel)
    return kernel


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("slide", [0, 0x3E00000])
def test_physical_addresses(tmp_path: Path, levels: int, slide: int) -> None:
    adapter = Adapter(LinuxMemory(levels=levels, slide=slide, e820=RAM), physical=True)
    kernel = open_kernel(adapter, tmp_path)
    assert (kernel.release, kernel.slide, kernel.boot.verified) == ("6.1.0-test", slide, True)
    assert kernel.image.live
    assert (kernel.paging.root, kernel.levels) == (adapter.memory.root, levels)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("known", ["", "vmlinux", "debugger", "wrong"])
def test_virtual_addresses(tmp_path: Path, levels: int, known: str) -> None:
    memory = LinuxMemory(levels=levels, e820=RAM)
    adapter = Adapter(memory, physical=False)
    if known in ("debugger", "wrong"):
        moved = memory.slide if known == "debugger" else 0
        adapter.symbols = {name: address + moved for name, address in memory.symbols().items()}
    kernel = open_kernel(adapter, tmp_path, named=known == "vmlinux")
    assert (kernel.slide, kernel.paging.root) == (memory.slide, memory.root)
    assert kernel.boot.verified
    assert f"through the kernel's map of it at {DIRECT[levels]:#x}" in kernel.image.info.quirks[0]
    assert kernel.image.read(memory.paddr_of(E820_POINTER), 8) == adapter.image.read(memory.paddr_of(E820_POINTER), 8)
    if known in ("vmlinux", "debugger"):  # then the kernel's image is not searched
        assert sum(size for _, size in adapter.asked) < 1 << 20


@pytest.mark.parametrize("gigabytes", [1, 3])
def test_a_map_that_was_moved(tmp_path: Path, gigabytes: int) -> None:
    """CONFIG_RANDOMIZE_MEMORY: nothing says where it is."""
    memory = LinuxMemory(e820=RAM)
    base = DIRECT[4] + (37 << 40) + (gigabytes << 30)
    for gigabyte in range(4):
        memory.tables.map(base + (gigabyte << 30), gigabyte << 30, level=3)
    memory.write(VMCOREINFO_POINTER, (base + 0x7654000).to_bytes(8, "little"))
    memory.tables.put(memory.root + (DIRECT[4] >> 39 & 511) * 8, 0)
    adapter = Adapter(memory, physical=False)
    kernel = open_kernel(adapter, tmp_path)
    assert f"at {base:#x}" in kernel.image.info.quirks[0]


@pytest.mark.parametrize("physical", [True, False])
def test_no_device_is_read(tmp_path: Path, physical: bool) -> None:
    adapter = Adapter(LinuxMemory(e820=RAM), physical=physical)
    kernel = open_kernel(adapter, tmp_path)
    with pytest.raises(NotInImageError):
        kernel.image.read(DEVICE, 4)
    base = 0 if physical else DIRECT[4]
    assert all(not base + 0x20000000 <= address < base + (1 << 40) for address, _ in adapter.asked)
    assert [(run.start, run.end) for run in kernel.image.coverage()] == [(0, 0xA0000), (0x100000, 0x20000000)]


def test_registers_are_those_of_now(tmp_path: Path) -> None:
    adapter = Adapter(LinuxMemory(e820=RAM), physical=True)
    kernel = open_kernel(adapter, tmp_path)
    adapter.runs = 0x123
    assert parse_qemu_cpu_state(kernel.image.notes[0].desc).registers["rip"] == TEXT
    kernel.image.refresh()
    assert parse_qemu_cpu_state(kernel.image.notes[0].desc).registers["rip"] == TEXT + 0x123


def test_a_state_is_read_as_it_was_written() -> None:
    registers = {"rax": 1, "rip": (1 << 64) - 1, "cs": 0x10, "gs_base": 5, "k_gs_base": 6, "cr3": 7, "cr4": 8}
    state = parse_qemu_cpu_state(make_qemu_cpu_state(registers))
    assert {name: state.registers[name] for name in ("rax", "rip", "cs", "gs_base")} == {
        "rax": 1,
        "rip": (1 << 64) - 1,
        "cs": 0x10,
        "gs_base": 5,
    }
    assert (state.control[3:], state.kernel_gs_base) == ((7, 8), 6)


@pytest.mark.parametrize("physical", [True, False])
def test_writes_go_to_the_machine(tmp_path: Path, physical: bool) -> None:
    adapter = Adapter(LinuxMemory(e820=RAM), physical=physical)
    kernel = open_kernel(adapter, tmp_path, writable=True)
    paddr = adapter.memory.paddr_of(E820_POINTER) + 0x100
    kernel.image.put(paddr, b"new")
    assert adapter.stored == [(paddr + (0 if physical else DIRECT[4]), b"new")]
    with pytest.raises(NotInImageError):
        kernel.image.put(DEVICE, b"new")
    assert len(adapter.stored) == 1
    with pytest.raises(CommandError, match="kvm attach --write"):
        open_kernel(adapter, tmp_path).image.put(paddr, b"new")


def test_a_machine_without_a_kernel(tmp_path: Path) -> None:
    memory = LinuxMemory(e820=RAM)
    adapter = Adapter(memory, physical=True)
    memory.tables.put(memory.root + 511 * 8, 0)  # nothing is mapped where kernels are
    adapter.image = memory.image()
    with pytest.raises(KernelNotFoundError, match="still in its firmware or boot loader"):
        open_kernel(adapter, tmp_path, named=False)
    adapter = Adapter(memory, physical=False)
    with pytest.raises(KernelNotFoundError, match=r"not a process.*name its vmlinux"):
        open_kernel(adapter, tmp_path, named=False)
    assert len(adapter.asked) < 1000


def test_machines_that_are_not_for_us(tmp_path: Path) -> None:
    adapter = Adapter(LinuxMemory(), physical=True)
    adapter.efer = 0
    with pytest.raises(UnsupportedError, match=r"none of whose CPUs is in 64-bit mode.*a kernel of 32 bits"):
        open_kernel(adapter, tmp_path)
    adapter.arch = "i386"
    with pytest.raises(UnsupportedError, match="a machine of type i386"):
        open_kernel(adapter, tmp_path)


def test_another_kernels_file(tmp_path: Path) -> None:
    adapter = Adapter(LinuxMemory(e820=RAM), physical=True)
    path = tmp_path / "other"
    path.write_bytes(LinuxMemory(build_id=bytes(20), release="5.0").vmlinux())
    with pytest.raises(KernelMismatchError):
        open_attached(adapter.machine(), Session(), OpenRequest((), str(path), live=True))


def test_a_connection_that_ends(tmp_path: Path) -> None:
    adapter = Adapter(LinuxMemory(e820=RAM), physical=True)
    kernel = open_kernel(adapter, tmp_path)
    adapter.fault = "gdb is not attached any more"
    kernel.image.refresh()
    kernel.space.invalidate()
    with pytest.raises(CommandError, match="not attached any more"):
        kernel.read(TEXT + kernel.slide, 8)


@pytest.mark.parametrize("reply", [["zz"], [1], ["00", "00"], [], "00", None])
def test_answers_that_are_none(reply: object) -> None:
    adapter = Adapter(LinuxMemory(), physical=True)
    machine = adapter.machine()
    adapter.ask = lambda _: reply  # type: ignore[method-assign,assignment]
    with pytest.raises(ProtocolError):
        machine.fetch([(0, 1)])


def test_fewer_bytes_than_asked_for_are_none() -> None:
    adapter = Adapter(LinuxMemory(), physical=True)
    machine = adapter.machine()
    adapter.ask = lambda _: ["00", None, "0102"]  # type: ignore[method-assign,assignment]
    assert machine.fetch([(0, 2), (8, 2), (16, 2)]) == [None, None, b"\1\2"]


# The channel


@pytest.fixture
def ends() -> Iterator[tuple[ControlChannel, int, int]]:
    """Return a channel, and the adapter's ends: to write to, and to read from."""
    theirs, ours = os.pipe(), os.pipe()
    yield ControlChannel(theirs[0], ours[1]), theirs[1], ours[0]
    for descriptor in (theirs[0], ours[1], ours[0]):
        os.close(descriptor)


def test_a_question_is_answered(ends: tuple[ControlChannel, int, int]) -> None:
    channel, to_channel, from_channel = ends
    os.write(to_channel, b'{"answer": [1]}\n{"run": "x"}\n')
    assert channel.ask({"read": []}) == [1]
    assert json.loads(os.read(from_channel, 100)) == {"read": []}
    assert list(channel.requests()) == [{"run": "x"}]
    os.write(to_channel, b'{"fault": "no"}\n')
    with pytest.raises(CommandError, match=r"^no$"):
        channel.ask({"read": []})
    os.close(to_channel)
    with pytest.raises(ClientGone):
        channel.ask({"read": []})


@pytest.mark.parametrize("line", [b'{"interrupt": true}\n', b'{"answer": ["00\n{"interrupt": true}\n'])
def test_an_interrupt_in_the_place_of_an_answer(ends: tuple[ControlChannel, int, int], line: bytes) -> None:
    channel, to_channel, _ = ends
    os.write(to_channel, line + b'\n{"sync": 1}\n')
    with pytest.raises(KeyboardInterrupt):
        channel.ask({"read": []})
    assert list(channel.requests()) == [{"sync": 1}]
    os.close(to_channel)


def test_answers_that_nobody_waits_for_are_dropped(ends: tuple[ControlChannel, int, int]) -> None:
    channel, to_channel, _ = ends
    os.write(to_channel, b'{"answer": 1}\n{"interrupt": true}\n{"fault": "x"}\n\n{"sync": 1}\n')
    assert channel.poll()
    assert not channel.poll()
    assert list(channel.requests()) == [{"sync": 1}]
    os.close(to_channel)
