"""The adapters' own channel: JSON, one object a line, on the server's standard input and output.

gdb prints what `monitor` says on its standard error and tells nobody whether a command failed; lldb shows it as
packets. So adapters send kvm commands here, get their output as it comes, and know how they ended.

    {"run": LINE, "thread": ID} {"text": TEXT}..., then {"done": true} or {"error": TEXT}; ID: the selected thread's;
                                with "color": true the text may have a terminal's colours; with "attended": true it
                                may end with {"question": TEXT}: nothing was done, and if somebody says yes to it, the
                                same again with "yes": true will be
    {"interrupt": true}         no answer; what runs ends with {"error": "interrupted"}
    {"complete": LINE}          {"words": [...]}
    {"symbol": NAME}            {"address": "0x..."} or {"error": TEXT}
    {"process": PID}            {"address": "0x..."} or {"error": TEXT}
    {"select": PID}             {"thread": ID} or {"error": TEXT}: the id that the debugger knows the task by
    {"modules": DIRECTORY}      {"modules": [{"name", "file", "sections": {NAME: "0x..."}, "problem"}, ...]}
    {"loaded": [PATH, ...]}     {"done": true}; the files whose symbols the debugger has, for what `mods` shows
    {"unwind": true}            {"file": PATH or null}: unwind rules to load without an offset, for entry code
    {"symbols": true}           {"file", "zero_based", "modules", "temporary", "problems"}: files made from the image
                                (`DebuggerFiles.make_symbols`); "without": [NAME...], modules that it need not have
    {"joined": true}            {"file": PATH}: vmlinux, or a copy without functions in several pieces, for old lldb
    {"lldb": true}              {"file": PATH, "trap_handlers": [NAME...]}: what lldb takes for the kernel; "made": PATH
                                of the file that was made from the image, if there is no vmlinux
    {"user": WORDS}             {"address", "triple", "pid", "command", "executable": FILE or null,
                                "libraries": [FILE, ...]} or {"error": TEXT}: a process, by the words of the command
                                `user`; a debugger may connect to the address.
                                FILE: {"name", "file", "debug": PATH or null, "bias": "0x..."}
    {"offsets": false}          {"done": true}: qOffsets stays unanswered, the adapter places symbols
    {"sync": NUMBER}            the same: an adapter that was interrupted, and has lost count, goes on from there

Every request but the interrupt has an answer, in order. A line that is no JSON is one that an interrupt has cut off.
When standard input ends, so does the server.

A server that is to look through the debugger's own connection (`attached.py`) asks in its turn, in the middle of what
it answers, and the adapter says {"answer": ...} or {"fault": TEXT}, or interrupts:

    {"machine": true}           {"name", "physical": BOOL, "arch": NAME}; physical: it reads physical addresses
    {"cpus": [NAME, ...]}       [{"thread": ID, "registers": {NAME: "0x..."}}, ...]: of these, those that there are
    {"addresses": [NAME, ...]}  {NAME: "0x..." or null}: symbols as the debugger has placed them
    {"read": [["0x...", SIZE], ...], "physical": BOOL}   [HEX or null, ...]: null where any byte cannot be read
    {"store": ["0x...", HEX], "physical": BOOL}          true
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from kvm_dbg.errors import CommandError, ConfirmationError, KvmDbgError
from kvm_dbg.rsp.stop import ClientGone, Interruptible

if TYPE_CHECKING:
    from kvm_dbg.commands.base import Command
    from kvm_dbg.commands.module_file import Plan
    from kvm_dbg.commands.session import Session
    from kvm_dbg.rsp.debugger_file import DebuggerFiles
    from kvm_dbg.rsp.session import DebuggerSession
    from kvm_dbg.rsp.user import UserProcesses

RECEIVE_SIZE = 1 << 16  # bytes
MAX_LINE = 1 << 21  # bytes of one request
REPLIES = ("answer", "fault")  # to what the server asks
CUT: dict[str, Any] = {"interrupt": "of a line"}
LOOK_AGAIN = (["refresh"], ["halt"], ["resume"])  # commands after which threads and registers are others


class ControlChannel:
    """Both directions of the channel.

    Args:
        receive_from, send_to: file descriptors.
    """

    def __init__(self, receive_from: int, send_to: int) -> None:
        self._receive_from = receive_from
        self._send_to = send_to
        self._buffer = bytearray()
        self._requests: list[dict[str, Any]] = []
        self._asking = False

    @classmethod
    def on_standard_streams(cls) -> ControlChannel:
        """Take standard input and output for the channel; a stray print goes to standard error from now on."""
        send_to = os.dup(1)
        os.dup2(2, 1)
        return cls(0, send_to)

    def fileno(self) -> int:
        """Return the descriptor to select on."""
        return self._receive_from

    @property
    def waiting(self) -> bool:
        """Return whether something has been read and not been answered."""
        return bool(self._requests)

    def receive(self) -> None:
        """Read what has come. Raises ClientGone at its end."""
        data = os.read(self._receive_from, RECEIVE_SIZE)
        if not data:
            raise ClientGone
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        for line in filter(None, lines):
            try:
                request = json.loads(line)
            except ValueError:
                request = CUT
            self._requests.append(request if isinstance(request, dict) else CUT)
        if len(rest) > MAX_LINE:
            raise ClientGone

    def poll(self) -> bool:
        """Read what has come without waiting, and return whether what runs shall stop. Raises ClientGone."""
        if self._asking:
            return False  # `ask` reads, and sees an interrupt at once
        while select.select([self._receive_from], [], [], 0)[0]:
            self.receive()
        for index, request in enumerate(self._requests):
            if "interrupt" in request:
                del self._requests[: index + 1]  # what was asked before it is not waited for any more
                return True
        return False

    def requests(self) -> Iterator[dict[str, Any]]:
        """Yield the requests that are waiting; an interrupt that finds nothing running is forgotten."""
        while self._requests:
            request = self._requests.pop(0)
            if "interrupt" not in request and not any(name in request for name in REPLIES):
                yield request

    def ask(self, question: dict[str, object]) -> Any:
        """Ask the adapter something while it waits for us, and return its answer.

        Raises:
            CommandError: with the adapter's text.
            KeyboardInterrupt: it interrupts instead.
            ClientGone: it has ended.
        """
        self._asking = True
        try:
            self.send(question)
            while not self._requests:
                self.receive()
            reply = self._requests.pop(0)
        finally:
            self._asking = False
        if "interrupt" in reply:
            raise KeyboardInterrupt
        if "answer" not in reply:
            raise CommandError(str(reply.get("fault", "the debugger did not answer what it was asked")))
        return reply["answer"]

    def send(self, message: dict[str, object]) -> None:
        """Send one message. Raises ClientGone."""
        data = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self._send_to, data) :]
        except OSError as error:
            raise ClientGone from error


def facts_of(session: Session, debugger: DebuggerSession) -> dict[str, object]:
    """Return what an adapter needs to know of the opened kernel."""
    from kvm_dbg.commands import COMMANDS
    from kvm_dbg.rsp.debugger_file import zero_based_sections

    kernel = session.kernel
    vmlinux = getattr(kernel, "vmlinux_path", None)
    return {
        "pid": os.getpid(),
        "system": session.system.name,
        "release": getattr(kernel, "release", None),
        "arch": kernel.arch.name,
        "byteorder": kernel.arch.byteorder,
        "triple": debugger.target.triple,
        "slide": hex(getattr(kernel, "slide", None) or 0),
        "vmlinux": str(vmlinux) if vmlinux is not None else None,
        "zero_based": zero_based_sections(str(vmlinux)) if vmlinux is not None else [],
        "threads": len(debugger.target.threads),
        "problem": debugger.target.problem,
        "images": [os.path.abspath(path) if os.path.lexists(path) else path for path in kernel.image.paths],
        "commands": [
            {
                "name": command.name,
                "summary": command.summary,
                "description": command.description,
                "examples": list(command.examples),
                "argument": _argument_of(command),
            }
            for command in COMMANDS
        ],
    }


def _argument_of(command: Command) -> str | None:
    """Return what a command's first argument is (PID, ADDRESS, NAME, ...), None if it has no arguments."""
    from kvm_dbg.commands.parser import CommandParser

    action = CommandParser(command).positional_at([])
    return action.metavar if action is not None and isinstance(action.metavar, str) else None


def answer(
    channel: ControlChannel,
    request: dict[str, Any],
    session: Session,
    debugger: DebuggerSession,
    interruptible: Interruptible,
    made: DebuggerFiles,
    users: UserProcesses,
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Answer one request; `prepare` is called first, and its errors are the request's. Raises ClientGone."""

    def messages() -> Iterator[dict[str, object]]:
        prepare()
        yield from _messages(request, session, debugger, made, users)

    try:
        for message in interruptible.running(messages()):
            channel.send(message)
    except KvmDbgError as error:
        channel.send({"error": str(error)})
    except KeyboardInterrupt:
        channel.send({"error": "interrupted"})


def _messages(
    request: dict[str, Any], session: Session, debugger: DebuggerSession, made: DebuggerFiles, users: UserProcesses
) -> Iterator[dict[str, object]]:
    match request:
        case {"run": str(line)}:
            from kvm_dbg.commands.run import run_line

            tid = request.get("thread")
            session.find_selected = lambda: debugger.target.find_thread(tid) if isinstance(tid, int) else None
            session.color = request.get("color") is True
            if request.get("yes") is True:
                session.allow_writes()
            try:
                for text in run_line(session, line):
                    yield {"text": text}
            except ConfirmationError as error:
                if request.get("attended") is not True:
                    raise
                yield {"question": error.question}
                return
            finally:
                session.find_selected = lambda: None
                session.color = False  # `monitor` has its output shown by whoever asks
            if line.split()[:1] in LOOK_AGAIN:
                debugger.forget()
            yield {"done": True}
        case {"complete": str(line)}:
            from kvm_dbg.commands.complete import complete_line

            yield {"words": complete_line(session, line)}
        case {"symbol": str(name)}:
            yield {"address": hex(session.find_symbol(name).address)}
        case {"process": int(pid)}:
            yield {"address": hex(_find_task(debugger, pid))}
        case {"select": int(pid)}:
            yield {"thread": debugger.target.find_tid(pid)}
        case {"modules": str() | None as directory}:
            from kvm_dbg.commands.module_file import plan_modules

            plans = [plan for _, plan in plan_modules(session, directory)]
            if session.loaded is not None:
                session.loaded.plan(plans)
            yield {"modules": [_planned(plan) for plan in plans]}
        case {"loaded": list(files)}:
            if session.loaded is not None:
                session.loaded.files = {os.path.realpath(str(path)) for path in files}
            yield {"done": True}
        case {"unwind": True}:
            yield {"file": made.make_unwind(session)}
        case {"symbols": True}:
            without = [str(name) for name in request.get("without", ())]
            yield made.make_symbols(session, without, for_lldb=request.get("for_lldb") is True)
        case {"joined": True}:
            from kvm_dbg.rsp.joined_file import make_joined_file

            path = str(getattr(session.kernel, "vmlinux_path", None))
            yield {"file": make_joined_file(path, session.index_directory)}
        case {"lldb": True}:
            from kvm_dbg.rsp.lldb_module import make_lldb_module

            module = make_lldb_module(session, request.get("made"))
            yield {"file": module.path, "trap_handlers": module.trap_handlers, "complete": module.complete}
        case {"user": str(words)}:
            yield users.open(session, words, debugger)
        case {"sync": int(number)}:
            yield {"sync": number}
        case {"offsets": False}:
            debugger.text_address = None
            yield {"done": True}
        case _:
            yield {"error": "the server does not know this request; adapter and package are of different versions"}


def _planned(plan: Plan) -> dict[str, object]:
    sections = {name: hex(address) for name, address in plan.sections.items()}
    return {"name": plan.name, "file": plan.file, "sections": sections, "problem": plan.problem}


def _find_task(debugger: DebuggerSession, pid: int) -> int:
    from kvm_dbg.errors import CommandError

    thread = debugger.target.threads.get(pid)
    if thread is None:
        raise CommandError(f"no process or thread {pid}")
    return thread.address
