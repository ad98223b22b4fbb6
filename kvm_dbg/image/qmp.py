"""QMP, the protocol by which QEMU is asked about a virtual machine, and told to halt it or to let it run.

Facts: QEMU's docs/interop/qmp-spec.rst (JSON objects, a line each; a greeting with the key "QMP"; nothing but
`qmp_capabilities` before that has been said; "return" or "error" with the "id" of the command, "event" at any time) and
qapi/run-state.json (query-status), qapi/misc.json (stop, cont, getfd), monitor/qmp.c and chardev/char-socket.c (one
client at a time: a second one is left to wait without a word). A connection is therefore made for what has to be asked
and closed again, so that others can have it in between.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

from kvm_dbg.errors import CommandError, FileAccessError, UnknownFormatError

TIMEOUT = 5.0  # seconds without a word from QEMU
MAX_LINE = 1 << 24  # bytes; the longest answer asked for, `info mtree -f`, has some 10 KiB for a large machine
RECEIVE_SIZE = 1 << 16
PEER = struct.Struct("3i")  # struct ucred of unix(7): PID, UID, GID

BUSY = (
    "accepts the connection and says nothing: QMP serves one client at a time, and perhaps another one has it (libvirt,"
    " a debugger); QEMU can be given a second socket (-qmp)"
)


class Qmp:
    """One connection, past its greeting; a context manager.

    Args:
        address: path of a Unix socket, or HOST:PORT.
        timeout: seconds without a word after which QEMU counts as stuck.

    Attributes:
        peer: the PID of whoever listens, None for a host and port.

    Raises:
        FileAccessError: nothing listens there, no permission, or no answer in time.
        UnknownFormatError: what answers does not speak QMP.
    """

    def __init__(self, address: str, timeout: float = TIMEOUT) -> None:
        self.address = address
        self.timeout = timeout
        self._buffer = bytearray()
        self._number = 0
        self.socket, self.peer = _connect(address, timeout)
        try:
            greeting = self.receive(BUSY)
            if not isinstance(greeting.get("QMP"), dict):
                raise self._stranger(json.dumps(greeting).encode())
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor, for select."""
        return self.socket.fileno()

    def close(self) -> None:
        """Let others have the monitor."""
        self.socket.close()

    def execute(self, command: str, **arguments: object) -> Any:
        """Run a command and return what QEMU returns; words of the protocol have `-` where Python has `_`.

        Raises:
            CommandError: QEMU refuses it; has QEMU's own words.
            FileAccessError, UnknownFormatError: as the constructor, or QEMU has ended.
        """
        number = self.send(command, **arguments)
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                return self.result(command, answer)

    def ask_human(self, line: str) -> str:
        """Return what the monitor for people answers to a line. Raises as `execute`."""
        return str(self.execute("human-monitor-command", command_line=line))

    def send(self, command: str, **arguments: object) -> int:
        """Send a command and return the "id" that its answer will have. Raises FileAccessError."""
        self._number += 1
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        message = {"execute": command, "arguments": words, "id": self._number}
        self._send(json.dumps(message).encode() + b"\n")
        return self._number

    def send_descriptor(self, name: str, descriptor: int) -> None:
        """Give QEMU a copy of an open file, which it knows by `name` from now on. Raises as `execute`."""
        self._number += 1
        message = {"execute": "getfd", "arguments": {"fdname": name}, "id": self._number}
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        try:
            self.socket.sendmsg([json.dumps(message).encode() + b"\n"], ancillary)
        except OSError as error:
            raise self._gone(error) from error
        while (answer := self.receive()).get("id") != self._number:
            continue
        self.result("getfd", answer)

    def result(self, command: str, answer: dict[str, Any]) -> Any:
        """Return what an answer returns. Raises CommandError, UnknownFormatError."""
        if "error" in answer:
            problem = answer["error"]
            text = problem.get("desc") if isinstance(problem, dict) else problem
            raise CommandError(f"{self.address}: QEMU refuses {command}: {text}")
        if "return" not in answer:
            raise self._stranger(json.dumps(answer).encode())
        return answer["return"]

    def receive(self, silence: str = "") -> dict[str, Any]:
        """Return the next message, an event too.

        Args:
            silence: what to say if nothing comes in time.

        Raises:
            FileAccessError, UnknownFormatError: as the constructor, or QEMU has ended.
        """
        deadline = time.monotonic() + self.timeout
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_LINE:
                raise self._stranger(bytes(self._buffer))
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.socket], [], [], left)[0]:
                if self._buffer:
                    raise self._stranger(bytes(self._buffer))
                text = silence or "does not answer: QEMU is stuck, or busy with something long"
                raise FileAccessError(self.address, f"{text} (after {self.timeout:g} s)")
            try:
                data = self.socket.recv(RECEIVE_SIZE)
            except OSError as error:
                raise self._gone(error) from error
            if not data:
                if self._buffer:
                    raise self._stranger(bytes(self._buffer))
                raise FileAccessError(self.address, "the connection was closed: QEMU has ended, or refuses another one")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise self._stranger(line)
        return message

    def find_answer(self, number: int) -> dict[str, Any] | None:
        """Return the answer with the "id" `number` if it is there, None if it is to come. Raises as `receive`."""
        while b"\n" in self._buffer or select.select([self.socket], [], [], 0)[0]:
            answer = self.receive()
            if answer.get("id") == number:
                return answer
        return None

    def await_answer(self, number: int) -> None:
        """Wait until the command `number` has come to an end, whatever that is; a second Ctrl-C does not wait."""
        with contextlib.suppress(FileAccessError, UnknownFormatError):
            while self.receive().get("id") != number:
                continue

    def _send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise self._gone(error) from error

    def _gone(self, error: OSError) -> FileAccessError:
        return FileAccessError(self.address, f"{error.strerror or error}: QEMU has ended")

    def _stranger(self, said: bytes) -> UnknownFormatError:
        return UnknownFormatError(self.address, f"does not speak QMP, QEMU's machine protocol: it said {said[:60]!r}")


def _connect(address: str, timeout: float) -> tuple[socket.socket, int | None]:
    """Return a connected socket, and the PID of the other side if that is known. Raises FileAccessError."""
    host, colon, port = address.rpartition(":")
    try:
        if colon and host and port.isdecimal() and not os.path.lexists(address):
            stream = socket.create_connection((host.strip("[]"), int(port)), timeout)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return stream, None
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(timeout)
        try:
            stream.connect(address)
        except BaseException:
            stream.close()
            raise
    except TimeoutError as error:  # the queue of those who wait is full
        raise FileAccessError(address, f"{BUSY} (after {timeout:g} s)") from error
    except (OSError, ValueError, OverflowError) as error:
        raise FileAccessError(address, _why_closed(address, error)) from error
    return stream, _peer_of(stream)


def _why_closed(address: str, error: OSError | ValueError | OverflowError) -> str:
    text = getattr(error, "strerror", None) or str(error)
    number = getattr(error, "errno", None)
    if number == errno.ECONNREFUSED:
        if os.path.lexists(address) and not _is_socket(address):
            return "is no socket"
        return f"{text}: nobody listens there; QEMU has ended, or was started without -qmp"
    if number in (errno.EACCES, errno.EPERM):
        return f"{text}: the socket takes the user that QEMU runs as, or root: use sudo"
    if number == errno.EAGAIN:
        return f"{BUSY} (others wait already)"
    return text


def _is_socket(path: str) -> bool:
    import stat

    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _peer_of(stream: socket.socket) -> int | None:
    """Return the PID of who listens at the other side of a Unix socket, None if the system does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    with contextlib.suppress(OSError):
        pid = int(PEER.unpack(stream.getsockopt(socket.SOL_SOCKET, option, PEER.size))[0])
        return pid if pid > 0 else None
    return None


def is_qemu(pid: int) -> bool:
    """Return whether a process is called as QEMU's programs are."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", "rb") as file:
        return file.read().startswith(b"qemu")
    return False


class Machine:
    """A virtual machine, as its monitor shows it; what `MachineControl` asks for.

    Connections are made when something has to be asked; within `connected` there is one for all of it.

    Args:
        address: as of `Qmp`.
        timeout: as of `Qmp`.
    """

    def __init__(self, address: str, timeout: float = TIMEOUT) -> None:
        self.address = address
        self.timeout = timeout
        self._qmp: Qmp | None = None
        self._process = -1  # a descriptor of QEMU's process (pidfd_open(2)), if it is known

    def watch(self) -> None:
        """Remember QEMU's process, so that its end is seen without a connection. Raises as `Qmp`."""
        with self.connected() as qmp:
            peer = qmp.peer
        if peer is not None and self._process < 0 and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # a kernel before 5.3
                self._process = os.pidfd_open(peer)
                if not is_qemu(peer):  # whoever has made the socket for QEMU (libvirt)
                    self.close()

    def close(self) -> None:
        """Forget QEMU's process."""
        if self._process >= 0:
            os.close(self._process)
            self._process = -1

    def check(self) -> None:
        """Raise FileAccessError if QEMU has ended."""
        if self._process < 0:
            self.is_running()
        elif select.select([self._process], [], [], 0)[0]:
            raise FileAccessError(self.address, "QEMU has ended")

    @contextlib.contextmanager
    def connected(self) -> Iterator[Qmp]:
        """Keep one connection for all that is asked within. Raises as `Qmp`."""
        if self._qmp is not None:
            yield self._qmp
            return
        with Qmp(self.address, self.timeout) as qmp:
            self._qmp = qmp
            try:
                yield qmp
            finally:
                self._qmp = None

    def execute(self, command: str, **arguments: object) -> Any:
        """Run a command; see `Qmp.execute`."""
        with self.connected() as qmp:
            return qmp.execute(command, **arguments)

    def is_running(self) -> bool:
        """Return whether its processors run. Raises FileAccessError: QEMU is gone."""
        status = self.execute("query-status")
        return isinstance(status, dict) and status.get("running") is True

    def halt(self) -> None:
        """Stop its processors; nothing happens if they are stopped. Raises FileAccessError: QEMU is gone."""
        self.execute("stop")

    def resume(self) -> None:
        """Let its processors run on; nothing happens if they do.

        Raises:
            FileAccessError: QEMU is gone.
            CommandError: this machine cannot run on (it has panicked or was shut down).
        """
        self.execute("cont")

    @contextlib.contextmanager
    def halted(self) -> Iterator[bool]:
        """Have it stand still, and let it run on afterwards if it ran, which is yielded. Raises as `resume`."""
        with self.connected():
            ran = self.is_running()
            try:
                if ran:
                    self.halt()
                yield ran
            finally:
                if ran:
                    self.make_run()

    def make_run(self) -> None:
        """Let it run on, by a new connection if the one that there is fails; Ctrl-C meanwhile is for afterwards.

        Raises as `resume`.
        """
        late: KeyboardInterrupt | None = None
        for last in (False, False, True):
            try:
                self.resume()
                break
            except KeyboardInterrupt as interrupt:
                late = interrupt
            except FileAccessError:
                if self._qmp is None or last:
                    raise
                self._qmp.close()
                self._qmp = None
        if late is not None:
            raise late
