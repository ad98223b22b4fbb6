"""The probe in lldb: `command script import` this file, then `script probe_lldb.probe(orders, answers)`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lldb

ROOT = str(Path(__file__).resolve().parents[2])
sys.path.insert(0, ROOT)
try:
    from tests.debuggers.probe import MAX_FRAMES, Probe, ProbeError, run_steps
finally:
    sys.path.remove(ROOT)

SETTINGS = ("target.process.disable-memory-cache", "symbols.enable-lldb-index-cache", "symbols.lldb-index-cache-path")


def target() -> Any:
    """Return the selected target."""
    return lldb.debugger.GetSelectedTarget()


def process() -> Any:
    """Return the selected target's process. Raises ProbeError."""
    found = target().GetProcess()
    if not found.IsValid():
        raise ProbeError("there is no process")
    return found


def checked(error: Any) -> None:
    """Raise ProbeError for what failed."""
    if error.Fail():
        raise ProbeError(error.GetCString())


def execute(line: str) -> str:
    """Execute a command on the selected thread and return its output. Raises ProbeError."""
    result = lldb.SBCommandReturnObject()
    context = lldb.SBExecutionContext(target().GetProcess().GetSelectedThread())
    lldb.debugger.GetCommandInterpreter().HandleCommand(line, context, result)
    if not result.Succeeded():
        raise ProbeError(str(result.GetError()))
    return str(result.GetOutput())


def plain(value: Any) -> Any:
    """Return a number, or the string in an array of char."""
    checked(value.GetError())
    if not value.IsValid():
        raise ProbeError("no such value")
    kind = value.GetType().GetCanonicalType()
    error = lldb.SBError()
    if kind.IsArrayType():
        data = value.GetData().ReadRawData(error, 0, kind.GetByteSize())
        checked(error)
        return bytes(data).partition(b"\0")[0].decode("latin-1")
    signed = kind.GetTypeFlags() & lldb.eTypeIsSigned
    number = value.GetValueAsSigned(error) if signed else value.GetValueAsUnsigned(error)
    checked(error)
    return number


def find_type(name: str) -> Any:
    """Return a type, which lldb knows without the word `struct`. Raises ProbeError."""
    found = target().FindFirstType(name.split(" ")[-1])
    if not found.IsValid():
        raise ProbeError(f"no type {name}")
    return found


def machine_frames(frames: list[Any]) -> list[list[Any]]:
    """Return groups of frames that are one in the machine: inlined functions, and the function that holds them."""
    groups: list[list[Any]] = []
    for frame in frames:
        if groups and groups[-1][-1].IsInlined() and groups[-1][-1].GetCFA() == frame.GetCFA():
            groups[-1].append(frame)
        else:
            groups.append([frame])
    return groups


class LldbProbe(Probe):
    """The operations in lldb's words."""

    def kvm(self, line: str) -> str:
        return execute(f"kvm {line}")

    def resume(self) -> str:
        return execute("process continue")

    def step(self) -> str:
        return execute("thread step-inst")

    def server(self) -> int:
        return int(lldb.kvm_dbg_sessions[lldb.debugger.GetID()].server.ready["pid"])

    def state(self) -> Any:
        instance = lldb.debugger.GetInstanceName()
        values = [lldb.SBDebugger.GetInternalVariableValue(name, instance) for name in SETTINGS]
        return [[value.GetStringAtIndex(0) for value in values], lldb.debugger.GetNumTargets()]

    def threads(self) -> list[list[Any]]:
        return [[thread.GetIndexID(), thread.GetName(), thread.GetThreadID()] for thread in process()]

    def selected(self) -> int:
        return int(process().GetSelectedThread().GetThreadID())

    def select(self, thread: int) -> None:
        if not process().SetSelectedThreadByID(thread):
            raise ProbeError(f"no thread {thread}")

    def frames(self, with_lines: bool) -> list[list[Any]]:
        found: list[list[Any]] = []
        if self.registers(["rip"]) == [None]:
            return found
        thread = process().GetSelectedThread()
        frames = [thread.GetFrameAtIndex(index) for index in range(min(thread.GetNumFrames(), MAX_FRAMES))]
        for group in machine_frames([frame for frame in frames if not frame.IsArtificial()]):
            for frame in group:
                name, virtual = frame.GetFunctionName(), frame is not group[-1]
                if not virtual and frame.IsInlined():
                    name = None  # lldb has lost the function around it
                # One address for what is one frame in the machine: to what holds an inlined one lldb gives its call's.
                row = [name, group[0].GetPC(), virtual, None, None]
                if with_lines:
                    place = frame.GetLineEntry()
                    row[3:] = [place.GetFileSpec().fullpath, place.GetLine()]
                found.append(row)
        return found

    def registers(self, names: list[str]) -> list[int | None]:
        frame = process().GetSelectedThread().GetFrameAtIndex(0)
        values = [frame.FindRegister(name) for name in names]
        return [None if value.GetValue() is None else value.GetValueAsUnsigned() for value in values]

    def evaluate(self, text: str) -> Any:
        return plain(target().EvaluateExpression(text))

    def fields(self, address: int, type_name: str, paths: list[str]) -> list[Any]:
        whole = target().CreateValueFromAddress("whole", lldb.SBAddress(address, target()), find_type(type_name))
        return [plain(whole.GetValueForExpressionPath("." + path)) for path in paths]

    def size(self, type_name: str) -> int:
        return int(find_type(type_name).GetByteSize())

    def offset(self, type_name: str, member: str) -> int:
        for field in find_type(type_name).fields:
            if field.GetName() == member:
                return int(field.GetOffsetInBytes())
        raise ProbeError(f"{type_name} has no member {member}")

    def address(self, symbol: str) -> int:
        places = [context.GetSymbol().GetStartAddress() for context in target().FindSymbols(symbol)]
        for place in places:
            address = place.GetLoadAddress(target())
            if address != lldb.LLDB_INVALID_ADDRESS:
                return int(address)
        raise ProbeError(f"no symbol {symbol}")

    def symbol_at(self, address: int) -> str:
        return str(target().ResolveLoadAddress(address).GetSymbol().GetName() or "")

    def read(self, address: int, size: int) -> str:
        error = lldb.SBError()
        data = process().ReadMemory(address, size, error)
        checked(error)
        return str(bytes(data).hex())

    def write(self, address: int, data: str) -> None:
        error = lldb.SBError()
        process().WriteMemory(address, bytes.fromhex(data), error)
        checked(error)

    def disassemble(self, address: int, count: int) -> list[list[Any]]:
        found = target().ReadInstructions(lldb.SBAddress(address, target()), count)
        return [[one.GetAddress().GetLoadAddress(target()), one.GetMnemonic(target())] for one in found]


def probe(orders: str, answers: str) -> None:
    """Take the steps of a list; what makes the target run returns when it has stopped."""
    lldb.debugger.SetAsync(False)
    run_steps(LldbProbe(), orders, answers)
