"""The machine that lldb is attached to, by lldb's own remote connection: `kvm attach`."""

from __future__ import annotations

import re
from typing import Any, Callable

from kvm_dbg_lldb_symbols import CommandFailed, Symbols, add_symbols, place, unplace
from kvm_dbg_stub import Stub, StubGone

import lldb

RESPONSE = re.compile(r"^response: (.*)$", re.MULTILINE)
REMOTE = "gdb-remote"  # lldb's plugin for remote stubs
NOT_ATTACHED = (
    "lldb is not attached to a machine: first `gdb-remote`, to QEMU's stub for gdb or kgdb, or `kvm open` an image"
)
RUNS = "the machine runs: interrupt it first (`process interrupt`)"


class Attachment:
    """lldb's selected target, with a remote connection to a whole machine.

    Args:
        debugger: lldb's.
        execute: executes one of lldb's commands on a target, and returns its result.

    Attributes:
        name: what people call the connection.
        target: lldb's target.
        stub: what the server asks through it.

    Raises:
        CommandFailed: there is no such connection.
    """

    def __init__(self, debugger: Any, execute: Callable[[str, Any], Any]) -> None:
        self._debugger = debugger
        self._execute = execute
        self.target = debugger.GetSelectedTarget()
        self._process = self.target.GetProcess()
        if not self._process.IsValid() or self.gone:
            raise CommandFailed(NOT_ATTACHED)
        kind = self._process.GetPluginName()
        if kind != REMOTE:
            raise CommandFailed(
                f"lldb has a process of the kind {kind}: there is no kernel to work on; `kvm attach` is for a remote"
                " connection to a machine"
            )
        self.name = "the remote connection"
        arch = str(self.target.GetTriple()).partition("-")[0]
        self.stub = Stub(self.name, arch, self._send, self._registers, self.address, self.check)
        self._added: list[Any] = []
        self._placed: list[Any] = []
        self._uncached = False
        self.check_command()

    @property
    def gone(self) -> bool:
        """Return whether lldb has lost or left the machine."""
        states = (lldb.eStateInvalid, lldb.eStateDetached, lldb.eStateExited, lldb.eStateUnloaded)
        return not self.target.IsValid() or self._process.GetState() in states

    def check(self) -> None:
        """Raise StubGone if the machine cannot be asked now."""
        if self.gone:
            raise StubGone("lldb is not attached to the machine any more: connect again, and `kvm attach`")
        if self._process.GetState() not in (lldb.eStateStopped, lldb.eStateSuspended, lldb.eStateCrashed):
            raise StubGone(RUNS)

    def check_command(self) -> None:
        """Raise CommandFailed if the machine cannot be asked now."""
        try:
            self.check()
        except StubGone as gone:
            raise CommandFailed(str(gone)) from None

    def _send(self, packet: str) -> str:
        command = f"process plugin packet send {packet}"
        result = self._execute(command, self.target)
        found = RESPONSE.search(result.GetOutput() or "")
        if found is None and self._debugger.GetCommandInterpreter().WasInterrupted():
            result = self._execute_elsewhere(command)
            found = RESPONSE.search(result.GetOutput() or "")
        if found is None:
            raise StubGone(f"lldb could not ask the machine: {str(result.GetError()).strip() or 'no answer'}")
        return str(found.group(1))

    def _execute_elsewhere(self, command: str) -> Any:
        """Execute a command by another interpreter: after Ctrl-C the first one begins none before it has ended ours."""
        result = lldb.SBCommandReturnObject()
        other = lldb.SBDebugger.Create(False)
        other.GetCommandInterpreter().HandleCommand(command, lldb.SBExecutionContext(self.target), result)
        lldb.SBDebugger.Destroy(other)
        return result

    def _registers(self, names: list[str]) -> list[dict[str, Any]]:
        """Return the registers of all threads, by their ids."""
        found = []
        for thread in sorted(self._process, key=lambda thread: int(thread.GetThreadID())):
            frame = thread.GetFrameAtIndex(0)
            values = {name: frame.FindRegister(name) for name in names}
            told = {name: hex(value.GetValueAsUnsigned()) for name, value in values.items() if value.IsValid()}
            found.append({"thread": thread.GetThreadID(), "registers": told})
        return found

    def address(self, name: str) -> str | None:
        """Return where lldb's symbols have a variable."""
        for context in self.target.FindSymbols(name):
            address = context.GetSymbol().GetStartAddress().GetLoadAddress(self.target)
            if address != lldb.LLDB_INVALID_ADDRESS:
                return hex(address)
        return None

    def cache_nothing(self) -> None:
        """Let lldb see at once what `kvm write` changes; until the end."""
        self._execute("settings set target.process.disable-memory-cache true", self.target)
        self._uncached = True

    def load(self, symbols: Symbols, slide: int) -> None:
        """Place the kernel's symbols: those that the target has of that file, else added to it."""
        module = self._find(symbols)
        if module is None:
            module = add_symbols(self.target, symbols, self._execute)
            if module is None:
                return
            self._added.append(module)
        place(self.target, slide, symbols, module)
        self._placed.append(module)

    def _find(self, symbols: Symbols) -> Any:
        """Return the target's module of vmlinux, None if it has none."""
        for module in self.target.module_iter():
            if module.GetFileSpec().fullpath in (symbols.object, symbols.debug):
                return module
        return None

    def unload(self) -> None:
        """Take symbols back, and where they were placed."""
        if self.target.IsValid():
            for module in self._placed:
                unplace(self.target, module)
            for module in self._added:
                self.target.RemoveModule(module)
            if self._uncached:
                self._execute("settings set target.process.disable-memory-cache false", self.target)
        self._added, self._placed = [], []
