"""One image, one debugger: a socket for gdb's protocol and, for the adapters, a control channel on standard streams.

The socket is a Unix socket in a directory that only its owner can enter, made by the server and removed as soon as the
one client is connected; or, if asked, a Unix socket at a path of the user's, or TCP on 127.0.0.1. Nothing listens
before the image is open and its threads are known, for gdb gives a silent stub two seconds. The first line on standard
output is JSON: `{"ready": ...}` with what an adapter needs to know, or `{"error": text}` with exit status 1.
Processes that an adapter asks for have connections of their own (see `user.py`).

The server ends when its client goes away, and when standard input ends if that is the control channel: a debugger
that is killed leaves no orphan. Everything runs in one thread; while a command or the opening runs, a timer looks at
the connections ten times a second, so that Ctrl-C (byte 0x03, or "interrupt" on the control channel) and a vanished
debugger are noticed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.commands.module_file import LoadedSymbols
from kvm_dbg.errors import FileAccessError, KvmDbgError, ProtocolError
from kvm_dbg.rsp.control import ControlChannel, answer, facts_of
from kvm_dbg.rsp.debugger_file import DebuggerFiles
from kvm_dbg.rsp.packet import Event, PacketReader, frame
from kvm_dbg.rsp.run import LOOK_SECONDS
from kvm_dbg.rsp.session import DebuggerSession, Reply
from kvm_dbg.rsp.stop import ClientGone, Interruptible

if TYPE_CHECKING:
    from kvm_dbg.commands.session import Session

RECEIVE_SIZE = 1 << 20  # bytes
SOCKET_PATH_LIMIT = 100  # bytes; sun_path has 108 on Linux, 104 on the BSDs
LOOPBACK = "127.0.0.1"


class ServeOptions(NamedTuple):
    """How to serve.

    control: speak with an adapter over standard input and output. tcp: listen on a port of 127.0.0.1 instead of on a
    Unix socket. port: that port, 0 for any free one. path: where the Unix socket is to be, None for a directory of its
    own. notices: a descriptor to write lines to that debuggers do not show, None for nowhere.
    """

    control: bool = False
    tcp: bool = False
    port: int = 0
    path: str | None = None
    notices: int | None = None


class Connection:
    """The debugger's end of the socket: frames in and out, acknowledgements, repeated packets."""

    def __init__(self, connection: socket.socket, session: DebuggerSession) -> None:
        self.socket = connection
        self.session = session
        self._reader = PacketReader()
        self._events: list[Event] = []
        self._last = b""

    def fileno(self) -> int:
        """Return the descriptor, for select."""
        return self.socket.fileno()

    @property
    def waiting(self) -> bool:
        """Return whether something has been read and not been answered."""
        return bool(self._events) and not self.session.ended

    def receive(self) -> None:
        """Read what has come. Raises ClientGone, ProtocolError."""
        try:
            data = self.socket.recv(RECEIVE_SIZE)
        except OSError as error:
            raise ClientGone from error
        if not data:
            raise ClientGone
        self._events += self._reader.feed(data)

    def poll(self) -> bool:
        """Read what has come without waiting, and return whether an interrupt is among it. Raises as `receive`.

        While the debugger waits for the machine, an interrupt is for that.
        """
        while select.select([self.socket], [], [], 0)[0]:
            self.receive()
        if self.session.runner.waiting:
            return False
        found = [event for event in self._events if event.kind != "interrupt"]
        interrupted = len(found) < len(self._events)
        self._events[:] = found
        return interrupted

    def serve(self) -> None:
        """Answer everything that has come. Raises ClientGone."""
        while self._events and not self.session.ended:
            event = self._events.pop(0)
            if event.kind == "packet":
                self._answer(event)
            elif event.kind == "interrupt":
                self._reply(self.session.interrupt())
            elif event.kind == "nack":
                self._send(self._last)
            elif event.kind == "damaged":
                if self.session.no_ack:
                    raise ProtocolError("a packet's checksum is wrong, and this connection has no way to ask again")
                self._send(b"-")

    def _answer(self, event: Event) -> None:
        acknowledged = not self.session.no_ack
        if acknowledged:
            self._send(b"+")
            self._drop_repeats(event)
        self._reply(self.session.reply(event.payload), acknowledged)

    def look(self) -> None:
        """Tell the debugger if the machine that it waits for has stopped by itself. Raises ClientGone."""
        self._reply(self.session.look())

    def _reply(self, reply: Reply, acknowledged: bool | None = None) -> None:
        if reply is None:
            return
        for payload in (reply,) if isinstance(reply, bytes) else reply:
            packet = frame(payload)
            if acknowledged if acknowledged is not None else not self.session.no_ack:
                self._last = packet
            self._send(packet)

    def _drop_repeats(self, event: Event) -> None:
        """Acknowledge and forget copies of a packet that a client sent again since no answer came in its time."""
        while self._events and self._events[0] == event:
            self._events.pop(0)
            self._send(b"+")

    def _send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise ClientGone from error


class Listener:
    """The place where the one client connects; a context manager that leaves nothing behind."""

    def __init__(self, options: ServeOptions) -> None:
        self._directory: Path | None = None
        self._path: Path | None = None  # of a Unix socket, while it is there
        if options.tcp:
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                self.socket.bind((LOOPBACK, options.port))
            except (OSError, OverflowError) as error:
                self.socket.close()
                raise FileAccessError(f"{LOOPBACK}:{options.port}", f"cannot listen there: {error}") from error
            self.address = f"{LOOPBACK}:{self.socket.getsockname()[1]}"
        else:
            if options.path is not None:
                path = _free_path(options.path)
            else:
                self._directory = _private_directory()
                path = self._directory / "gdb"
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.address = str(path)
            try:
                self.socket.bind(self.address)
            except OSError as error:
                self.socket.close()
                raise FileAccessError(self.address, f"cannot make a socket: {error.strerror}") from error
            self._path = path
            path.chmod(0o600)  # before anybody can connect
        self.socket.listen(1)

    def fileno(self) -> int:
        """Return the descriptor, for select."""
        return self.socket.fileno()

    def accept(self) -> socket.socket:
        """Return the client's socket; nobody else can connect from now on. Raises ClientGone."""
        try:
            connection, _ = self.socket.accept()
        except OSError as error:
            raise ClientGone from error
        self.close()
        if connection.family == socket.AF_INET:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def close(self) -> None:
        """Stop listening, and remove the socket and its directory."""
        self.socket.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._path = None
        if self._directory is not None:
            with contextlib.suppress(OSError):
                self._directory.rmdir()
            self._directory = None


def _private_directory() -> Path:
    """Make a directory that only this user can enter, at a path that a socket and gdb can bear."""
    base = tempfile.gettempdir()
    if len(base.encode()) + 24 > SOCKET_PATH_LIMIT or ":" in base:  # gdb takes a colon for HOST:PORT
        base = "/tmp"
    try:
        return Path(tempfile.mkdtemp(prefix="kvm-dbg-", dir=base))
    except OSError as error:
        raise FileAccessError(base, f"cannot make a directory for the socket: {error.strerror}") from error


def _free_path(name: str) -> Path:
    """Return the path of the socket that the user names, where nothing may be yet. Raises FileAccessError.

    A socket that is there is not tried: whoever connects to a server that waits has taken it from its debugger.
    """
    path = Path(name).absolute()
    if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
        raise FileAccessError(path, f"the path of a socket has at most {SOCKET_PATH_LIMIT} bytes")
    if os.path.lexists(path):
        raise FileAccessError(path, "a socket is to be made here; remove what is there if no server waits for it")
    return path


def serve(session: Session, open_image: Callable[[], object], options: ServeOptions) -> int:
    """Open an image and serve it to one debugger until that leaves; return the exit status.

    Args:
        session: where the image will be open.
        open_image: opens it; raises KvmDbgError.
        options: where to listen, and whether an adapter is on the standard streams.
    """
    from kvm_dbg.rsp.user import UserProcesses

    channel = ControlChannel.on_standard_streams() if options.control else None
    connection: Connection | None = None
    debugger: DebuggerSession | None = None
    files = DebuggerFiles()
    users = UserProcesses()

    def poll() -> None:
        if channel is not None and channel.poll():
            interruptible.interrupt()
        if connection is not None and not connection.session.ended and connection.poll():
            interruptible.interrupt()

    interruptible = Interruptible(poll)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _on_end)
    try:
        with interruptible:
            open_image()
            debugger = _debugger_session(session, interruptible, options.notices)
            ready = facts_of(session, debugger)
            if channel is not None:
                session.loaded = LoadedSymbols()
        with contextlib.closing(Listener(options)) as listener:
            _announce(channel, {"ready": {"address": listener.address, **ready}})
            while True:
                # What a timer's look has read already is announced by no select.
                if not any(item.waiting for item in (channel, connection) if item is not None):
                    own = None if debugger.ended else connection or listener
                    sources = [item for item in (channel, own, *users.sources) if item is not None]
                    readable, _, _ = select.select(sources, [], [], LOOK_SECONDS if debugger.runner.waiting else None)
                    for problem in users.serve(readable):
                        _report(channel, problem)
                    if channel is not None and channel in readable:
                        channel.receive()
                    if connection is not None and connection in readable:
                        connection.receive()
                    elif listener in readable:
                        connection = Connection(listener.accept(), debugger)
                if channel is not None:
                    for request in channel.requests():
                        answer(channel, request, session, debugger, interruptible, files, users)
                if connection is not None:
                    connection.serve()
                    connection.look()
                if debugger.ended and not users.sources:  # a debugger that quits leaves one connection after the other
                    return 0
    except ClientGone:
        return 0
    except ProtocolError as error:
        _report(channel, str(error))
        return 1
    except KvmDbgError as error:
        _announce(channel, {"error": str(error)})
        return 1
    except MemoryError:
        _announce(channel, {"error": "opening the image needs more memory than there is"})
        return 1
    finally:
        if connection is not None:
            connection.socket.close()
        users.close()
        files.close()
        if debugger is not None:
            _restore(channel, debugger)
        session.close()


def _restore(channel: ControlChannel | None, debugger: DebuggerSession) -> None:
    """Leave the machine as it was found; what is gone needs no word, for its debugger has had one."""
    try:
        debugger.runner.restore()
    except FileAccessError:
        pass
    except KvmDbgError as error:
        with contextlib.suppress(ClientGone):
            _report(channel, str(error))


def _on_end(_number: int, _frame: FrameType | None) -> None:
    """End as if the debugger had left, so that nothing stays behind."""
    raise ClientGone


def _debugger_session(session: Session, interruptible: Interruptible, notices: int | None = None) -> DebuggerSession:
    from kvm_dbg.commands.run import run_line
    from kvm_dbg.rsp.target import Target

    kernel = session.kernel
    target = Target(kernel, session.system)
    _ = target.threads  # read now: gdb asks for them first of all, and an error is best told before anybody connects
    text = kernel.symbols.find("_text")
    return DebuggerSession(
        target,
        lambda line: interruptible.running(run_line(session, line)),
        text_address=text.address if text is not None else None,
        slide=getattr(kernel, "slide", None) or 0,
        notify=partial(_notify, notices) if notices is not None else None,
    )


def _notify(descriptor: int, text: str) -> None:
    """Write a line where the debugger's user sees it; if that place has gone, nobody misses it."""
    from kvm_dbg.commands.render import printable

    with contextlib.suppress(OSError):
        os.write(descriptor, f"kvm: {printable(text)}\n".encode("utf-8", "backslashreplace"))


def _announce(channel: ControlChannel | None, message: dict[str, object]) -> None:
    if channel is not None:
        channel.send(message)
        return
    import json

    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _report(channel: ControlChannel | None, text: str) -> None:
    """Tell of an error after the start, where nobody waits for JSON on standard output any more."""
    if channel is not None:
        channel.send({"warning": text})
    else:
        sys.stderr.write(f"{text}\n")
