"""Stop a guest where a CPU enters a function: a client of the stub for gdb that QEMU has.

Sources: gdb's manual, "The gdb Remote Serial Protocol"; QEMU's gdbstub.c and gdb-xml/i386-64bit.xml (the order of the
registers, threads are CPUs counted from 1).
"""

from __future__ import annotations

import re
import socket
import struct
import time

from tests.lab.scenario import Catch, LabError

REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip",
)  # fmt: skip
_TIMEOUT = 300
_STOP = re.compile(r"T05thread:([0-9a-f]+);")


class Gdbstub:
    """The connection to QEMU's stub; the guest is stopped whenever no method runs."""

    def __init__(self, stream: socket.socket, name: str) -> None:
        """Take a connected socket; `name` is the guest's, for errors."""
        self._stream, self._name = stream, name
        self._pending = b""
        self._stream.settimeout(_TIMEOUT)

    def run_to(self, catch: Catch, address: int) -> dict[str, int]:
        """Let the guest run until CPU 0 is at `address` as `catch` wants it, and return that CPU's registers.

        Raises LabError after five minutes.
        """
        deadline = time.monotonic() + _TIMEOUT
        while True:
            self._order(f"Z1,{address:x},1")
            cpu = self._resume("c")
            self._order(f"z1,{address:x},1")
            registers = self._read_registers()
            name, mask, value = catch.mask or ("rip", 0, 0)
            if registers["rip"] == address and cpu == 0 and registers[name] & mask == value:
                return registers
            if time.monotonic() > deadline:
                raise self._error(f"CPU 0 has not come to {catch.function} within {_TIMEOUT} s")
            self._resume("s")  # at a breakpoint QEMU would stop again at once

    def leave(self) -> None:
        """Let the guest run for good."""
        self._order("D")

    def _read_registers(self) -> dict[str, int]:
        data = bytes.fromhex(self._ask("g")[: len(REGISTERS) * 16])
        return dict(zip(REGISTERS, struct.unpack(f"<{len(REGISTERS)}Q", data), strict=True))

    def _resume(self, packet: str) -> int:
        """Send a packet that makes the guest run, wait until it stops, and return the CPU that stopped it."""
        answer = self._ask(packet)
        match = _STOP.match(answer)
        if not match:
            raise self._error(f"{packet}: {answer!r}")
        return int(match[1], 16) - 1

    def _order(self, packet: str) -> None:
        answer = self._ask(packet)
        if answer != "OK":
            raise self._error(f"{packet}: {answer!r}")

    def _ask(self, packet: str) -> str:
        """Send a packet and return the answer's payload."""
        self._stream.sendall(b"$%s#%02x" % (packet.encode(), sum(packet.encode()) & 0xFF))
        while True:
            start, hash_, rest = self._pending.partition(b"#")
            if hash_ and len(rest) >= 2:
                self._pending = rest[2:]
                self._stream.sendall(b"+")
                return start.rpartition(b"$")[2].decode()
            try:
                data = self._stream.recv(65536)
            except TimeoutError:
                raise self._error(f"no answer to {packet} within {_TIMEOUT} s") from None
            if not data:
                raise self._error("QEMU ended")
            self._pending += data

    def _error(self, what: str) -> LabError:
        return LabError(f"{self._name}: gdb's protocol: {what}")
