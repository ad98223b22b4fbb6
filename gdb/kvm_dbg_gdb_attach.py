"""The machine that gdb is attached to, by gdb's own remote connection: `kvm attach`."""

from __future__ import annotations

import contextlib
from typing import Any

from kvm_dbg_gdb_setting import Setup
from kvm_dbg_stub import Stub, StubGone

import gdb

ARCHS = {"i386:x86-64": "x86_64"}  # gdb's names, and the package's
NOT_ATTACHED = (
    "gdb is not attached to a machine: first `target remote`, to QEMU's stub for gdb or kgdb, or `kvm open` an image"
)
NO_MACHINE = "inferior {} is {}: there is no kernel to work on; `kvm attach` is for a remote connection to a machine"
RUNS = "the machine runs: interrupt it first (`interrupt`, or Ctrl-C)"


class Attachment:
    """gdb's selected inferior, with a remote connection to a whole machine. Raises gdb.GdbError: it has none.

    Attributes:
        name: what gdb calls the connection.
        stub: what the server asks through it.
    """

    def __init__(self) -> None:
        inferior = gdb.selected_inferior()
        if not inferior.pid:
            raise gdb.GdbError(NOT_ATTACHED)
        connection = inferior.connection
        if not isinstance(connection, gdb.RemoteTargetConnection):
            kinds = {"native": "a process of this machine", "core": "a core file"}
            kind = getattr(connection, "type", None)
            raise gdb.GdbError(NO_MACHINE.format(inferior.num, kinds.get(str(kind), f"of the kind {kind}")))
        self._inferior = inferior
        self._connection = connection
        arch = str(inferior.architecture().name())
        self.name = str(connection.details or connection.description or "the remote connection")
        self.stub = Stub(self.name, ARCHS.get(arch, arch), self._send, self._registers, self.address, self.check)
        self.check_command()

    def check_command(self) -> None:
        """Raise gdb.GdbError if the machine cannot be asked now."""
        try:
            self.check()
        except StubGone as gone:
            raise gdb.GdbError(str(gone)) from None

    @property
    def gone(self) -> bool:
        """Return whether gdb has lost or left the machine."""
        try:
            return not (self._connection.is_valid() and self._inferior.pid)
        except RuntimeError:
            return True  # the inferior has been removed

    def check(self) -> None:
        """Raise StubGone if the machine cannot be asked now."""
        if self.gone:
            raise StubGone("gdb is not attached to the machine any more: connect again, and `kvm attach`")
        try:
            running = any(thread.is_running() for thread in self._inferior.threads())
        except gdb.error as error:  # gdb looks for new threads
            running = "running" in str(error)
            if not running:
                raise StubGone(f"gdb could not ask the machine: {error}") from None
        if running:
            raise StubGone(RUNS)

    def _send(self, packet: str) -> str:
        try:
            reply = self._connection.send_packet(packet)
        except (gdb.error, ValueError) as error:
            raise StubGone(f"gdb could not ask the machine: {error}") from None
        return reply.decode("ascii", "replace") if reply else ""

    def _registers(self, names: list[str]) -> list[dict[str, Any]]:
        """Return the registers of all threads, by their ids."""
        selected, found = gdb.selected_thread(), []
        silence = Setup()
        silence.change("suppress-cli-notifications", "on")
        try:
            frame = gdb.selected_frame()
        except gdb.error:
            frame = None
        try:
            for thread in sorted(self._inferior.threads(), key=lambda thread: thread.ptid[1]):
                thread.switch()
                found.append({"thread": thread.ptid[1], "registers": read_registers(names)})
        except gdb.error as error:
            raise StubGone(f"gdb could not read the machine's registers: {error}") from None
        finally:
            with contextlib.suppress(gdb.error):
                if selected is not None:
                    selected.switch()
                    if frame is not None and frame.is_valid():
                        frame.select()
            silence.restore()
        return found

    def address(self, name: str) -> str | None:
        """Return where gdb's symbols have a variable."""
        try:
            return hex(int(gdb.parse_and_eval(f"(unsigned long long) &'{name}'")))
        except (gdb.error, gdb.MemoryError):
            return None


def read_registers(names: list[str]) -> dict[str, str]:
    """Return those of the registers that the selected thread has."""
    frame, found = gdb.newest_frame(), {}
    for name in names:
        with contextlib.suppress(ValueError, gdb.error):  # ValueError: there is none of that name
            found[name] = hex(int(frame.read_register(name)) & (1 << 64) - 1)
    return found
