"""The processes that are open beside the kernel: for each a socket, then a connection, of its own."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.errors import ProtocolError, UsageError
from kvm_dbg.rsp.server import Connection, Listener, ServeOptions
from kvm_dbg.rsp.stop import ClientGone
from kvm_dbg.rsp.user_target import UserSession, UserTarget

if TYPE_CHECKING:
    from kvm_dbg.commands.mapped_file import MappedFile
    from kvm_dbg.commands.session import Session
    from kvm_dbg.commands.user_process import UserProcess
    from kvm_dbg.rsp.session import DebuggerSession


class Waiting(NamedTuple):
    """A process that nobody has connected to yet."""

    listener: Listener
    session: UserSession

    def fileno(self) -> int:
        """Return the descriptor, for select."""
        return self.listener.fileno()


class UserProcesses:
    """What is served of processes."""

    def __init__(self) -> None:
        self._waiting: dict[int, Waiting] = {}
        self._connections: list[Connection] = []

    @property
    def sources(self) -> Sequence[Waiting | Connection]:
        """Return what to select on."""
        return [*self._waiting.values(), *self._connections]

    def open(self, session: Session, line: str, debugger: DebuggerSession) -> dict[str, object]:
        """Listen for a debugger of the process that the words of the command `user` name; return what to do with it.

        Raises:
            KvmDbgError: the process cannot be opened, as the command would say.
        """
        from kvm_dbg.commands import find_command
        from kvm_dbg.commands.parser import CommandParser
        from kvm_dbg.commands.user import open_named

        try:
            words = shlex.split(line)
        except ValueError as error:
            raise UsageError(f"{line!r}: {error}") from error
        user = open_named(session, CommandParser(find_command("user")).parse_args(words))
        target = UserTarget(user, session.system)
        pid = user.process.pid
        self.forget(pid)
        own = UserSession(target, debugger.run_line, notify=debugger.notify)
        waiting = self._waiting[pid] = Waiting(Listener(ServeOptions()), own)
        return {"address": waiting.listener.address, "triple": target.description.triple, **_facts(user)}

    def forget(self, pid: int) -> None:
        """Stop to wait for a debugger of the process `pid`."""
        waiting = self._waiting.pop(pid, None)
        if waiting is not None:
            waiting.listener.close()

    def serve(self, readable: Sequence[object]) -> Iterator[str]:
        """Take new debuggers, answer those that have asked something, and yield what went wrong.

        One that has gone costs its connection only.
        """
        for pid, waiting in list(self._waiting.items()):
            if waiting in readable:
                try:
                    self._connections.append(Connection(waiting.listener.accept(), waiting.session))
                except ClientGone:
                    continue
                del self._waiting[pid]
        for connection in [one for one in self._connections if one in readable]:
            try:
                connection.receive()
                connection.serve()
                if not connection.session.ended:
                    continue
            except ClientGone:
                pass
            except ProtocolError as error:
                yield str(error)
            self._connections.remove(connection)
            connection.socket.close()

    def close(self) -> None:
        """End everything."""
        for pid in list(self._waiting):
            self.forget(pid)
        while self._connections:
            self._connections.pop().socket.close()


def _facts(user: UserProcess) -> dict[str, object]:
    from kvm_dbg.commands.render import printable

    executable = user.executable
    return {
        "pid": user.process.pid,
        "command": printable(user.process.command),
        "executable": _file_facts(executable) if executable is not None and executable.path is not None else None,
        "libraries": [_file_facts(file) for file in user.files if file.path is not None and file is not executable],
    }


def _file_facts(file: MappedFile) -> dict[str, object]:
    return {"name": file.name, "file": file.path, "debug": file.debug, "bias": hex(file.bias)}
