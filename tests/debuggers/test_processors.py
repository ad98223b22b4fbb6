"""Debuggers take the description of every processor: registers by name, memory in its byte order."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kvm_dbg.arch.aarch64 import AARCH64
from kvm_dbg.arch.base import Arch
from kvm_dbg.arch.i386 import I386
from kvm_dbg.arch.ppc64 import PPC64, PPC64LE
from kvm_dbg.arch.riscv64 import RISCV64
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.kernel.base import Thread
from kvm_dbg.rsp.server import Connection
from kvm_dbg.rsp.session import DebuggerSession
from kvm_dbg.rsp.stop import ClientGone
from kvm_dbg.rsp.target import Target
from tests.debuggers.debugger import Missing, by_name, clean_environment, find
from tests.writers.stand_in import KERNEL_BYTES, KERNEL_PAGES, PAGE, Space, StandInKernel, StandInSystem

SECONDS = 60


class Machine(NamedTuple):
    """A processor, an address of its kernel's half, and names of registers: general ones, the last of 32 bits."""

    arch: Arch
    text: int
    names: tuple[str, ...]


MACHINES = {
    "aarch64": Machine(AARCH64, 0xFFFF000000100000, ("pc", "sp", "x0", "x5", "x29", "x30", "cpsr")),
    "riscv64": Machine(RISCV64, 0xFFFFFFC000100000, ("pc", "sp", "ra", "a0", "s1", "t6")),
    "i386": Machine(I386, 0xC0100000, ("eip", "esp", "ebp", "eax", "ebx", "eflags")),
    "ppc64": Machine(PPC64, 0xC000000000100000, ("pc", "r1", "r3", "r31", "lr", "ctr", "cr", "xer")),
    "ppc64le": Machine(PPC64LE, 0xC000000000100000, ("pc", "r1", "r3", "r31", "lr", "ctr", "cr", "xer")),
}
# Debian's gdb 13.1 knows x86 only
KNOWING = [(name, machine) for name in ("gdb-18.1", "lldb-19.1", "lldb-23.1") for machine in MACHINES]


def registers_of(machine: Machine) -> dict[str, int]:
    """Return values that tell the registers apart."""
    values = {name: machine.text + 0x1000 + 16 * number for number, name in enumerate(machine.names)}
    sizes = {register.name: register.bits for register in machine.arch.registers}
    return {name: value & (1 << sizes[name]) - 1 for name, value in values.items()}


class OneThread(StandInSystem):
    """A system with one thread."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def for_each_thread(self, kernel: StandInKernel) -> Iterator[Thread]:
        yield Thread(7, 7, "one", self._machine.text, 0, True, registers_of(self._machine), "note")


@pytest.fixture
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Serve a kernel of the processor that the test names; return the socket's path."""
    machine = MACHINES[request.getfixturevalue("machine")]
    kernel = StandInKernel()
    kernel.arch = machine.arch
    assert isinstance(kernel.image, OverlayImage)
    pages = {machine.text // PAGE + page: 0x100000 + page * PAGE for page in range(KERNEL_PAGES)}
    kernel.space = Space(kernel.image, pages)
    target = Target(kernel, OneThread(machine))  # type: ignore[arg-type]
    session = DebuggerSession(target, lambda _: iter(()), text_address=machine.text)
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(SECONDS)
        thread = threading.Thread(target=serve, args=(listener, session))
        thread.start()
        yield path
        thread.join(SECONDS)
    assert not thread.is_alive()


def serve(listener: socket.socket, session: DebuggerSession) -> None:
    client, _ = listener.accept()
    with client:
        connection = Connection(client, session)
        try:
            while not session.ended:
                connection.receive()
                connection.serve()
        except ClientGone:
            pass


def ask(name: str, path: str, machine: Machine) -> str:
    """Return what a debugger says of the registers and of 16 bytes of memory, and how it calls the architecture."""
    found = find(by_name(name))
    if isinstance(found, Missing):
        pytest.skip(found.reason)
    if name.startswith("gdb"):
        # a description does not tell the byte order: gdb has it from the kernel file, or else from the user
        lines = [f"set endian {machine.arch.byteorder}", f"target remote {path}", "show architecture"]
        lines += [f'printf "{register} = %#lx\\n", ${register}' for register in machine.names]
        lines += [f"x/4xw {machine.text + 0x40:#x}", "info threads"]
        words = ["-nx", "-batch", *(word for line in lines for word in ("-ex", line))]
    else:
        lines = [f"process connect --plugin gdb-remote unix-connect://{path}", "target list"]
        lines += [f"register read --format hex {register}" for register in machine.names]
        lines += [f"memory read --size 4 --format x --count 4 {machine.text + 0x40:#x}", "thread list"]
        words = ["--no-lldbinit", "-b", *(word for line in lines for word in ("-o", line))]
    done = subprocess.run(
        [found.program, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=clean_environment(),
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(("name", "machine"), KNOWING)
def test_registers_and_memory(name: str, machine: str, address: str) -> None:
    made = MACHINES[machine]
    text = ask(name, address, made)
    seen = dict(re.findall(r"^\s*(\w+) = (0x[0-9a-f]+)", text, re.MULTILINE))
    sizes = {register.name: register.bits for register in made.arch.registers}
    values = {register: int(seen.get(register, "-1"), 16) for register in made.names}
    # gdb's printf widens a signed register of 32 bits to 64
    assert {register: value & (1 << sizes[register]) - 1 for register, value in values.items()} == registers_of(made), (
        text
    )
    words = list(struct.unpack_from("<4I" if made.arch.byteorder == "little" else ">4I", KERNEL_BYTES, 0x40))
    memory = re.findall(r"^0x[0-9a-f]+[^:\n]*:(.*)$", text, re.MULTILINE)
    assert [int(word, 16) for line in memory for word in re.findall(r"0x[0-9a-f]{8}", line)] == words, text
