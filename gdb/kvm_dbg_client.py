"""The adapters' client of the kvm_dbg server: finding the Python that has the package, starting the server, asking it.

This file knows no debugger, no kernel and nothing of the package; it runs in whatever Python a debugger embeds.

The server's standard input and output are the control channel: JSON, one object a line (see rsp/control.py in the
package). Its standard input ends when the debugger does, however that ends, and then the server ends as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any, Callable, Generator, Iterator

from kvm_dbg_stub import QUESTIONS, Stub, StubGone

END_TIMEOUT = 3.0  # seconds that the server has to end by itself
POLL_SECONDS = 0.5  # between two looks for Ctrl-C while the server says nothing
HERE = os.path.dirname(os.path.realpath(os.path.abspath(__file__)))
NOT_OPEN = "no kernel image is open: use `kvm open [VMLINUX] IMAGE...` first"
OWN_COMMANDS = (
    "open",
    "close",
    "attach",
    "detach",
    "status",
    "geterr",
    "help",
    "thread",
)  # that work, or explain themselves, with nothing open
SOCKET_OPTION = "--socket"  # of the server: where to listen, named by the user
WRONG_PYTHON = ("No module named", "SyntaxError")  # last words of a Python that cannot run the package

OPEN_OPTIONS = """
  --vmlinux FILE   the kernel file
  --search DIR     look for vmlinux in DIR first
  --kernel N       which kernel, if the image holds several
  --force          use a kernel file that does not match
  --live           the memory of this machine, or of a guest that runs
  --write          let memory that is live be written to
  --qmp SOCKET     a virtual machine, by QEMU's monitor (a path, or HOST:PORT)
  --patch FILE     changes to make in the private copy
  --layout FILE    a layout file with types that the kernel file lacks
  --base ADDRESS   physical address of raw RAM
  --hole RANGE     hole in raw RAM
  --format NAME    take the image for this format
  --offset OFFSET  where the dump starts in a dump partition"""


class ServerError(Exception):
    """The server's answer is an error, or no server could be started; the text is for people."""


class ServerGone(Exception):  # noqa: N818 - no mistake: it happened
    """The server has ended; the text says how."""


def interpreters() -> Iterator[str]:
    """Yield the programs that may be the Python with the package, likeliest first."""
    named = os.environ.get("KVM_DBG_PYTHON")
    if named:
        yield named
        return
    with contextlib.suppress(OSError), open(os.path.join(HERE, "python-path"), encoding="utf-8") as file:
        yield file.readline().strip()
    yield os.path.join(os.path.dirname(HERE), ".venv", "bin", "python3")  # of a checkout
    prefix, share = os.path.dirname(os.path.dirname(os.path.dirname(HERE))), os.path.join("share", "kvm-dbg")
    if os.path.dirname(HERE) == os.path.join(prefix, share):
        yield os.path.join(prefix, "bin", "python3")
    program = shutil.which("kvm-dbg")
    if program:
        try:
            with open(program, "rb") as script:
                first = script.readline(256)
        except OSError:
            first = b""
        if first.startswith(b"#!/"):
            yield os.fsdecode(first[2:].strip())
    python = shutil.which("python3")
    if python:
        yield python


def server_environment() -> dict[str, str]:
    """Return the child's environment: without what a wrapped debugger sets for its own Python."""
    environment = dict(os.environ)
    for name in ("PYTHONHOME", "PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONSTARTUP"):
        environment.pop(name, None)
    root = os.path.dirname(HERE)
    if os.path.isfile(os.path.join(root, "kvm_dbg", "__init__.py")):
        environment["PYTHONPATH"] = root
    environment["PYTHONSAFEPATH"] = "1"  # the current directory is no place to import from
    return environment


class Server:
    """The child process, and the control channel to it.

    Args:
        python: the program to run it by.
        words: of its command line.
        warn: shows a person what the server says without being asked.
        stub: what the server asks for memory, None if it has an image of its own.

    What the debugger's own protocol has no words for, the server writes to our standard error.

    Attributes:
        look: called before each read and while the server says nothing; may raise KeyboardInterrupt, where signals do
            not.
    """

    def __init__(self, python: str, words: list[str], warn: Callable[[str], None], stub: Stub | None = None) -> None:
        self.ready: dict[str, Any] = {}
        self._stub = stub
        self._cut = False  # the last message sent may not be whole
        self._syncs = 0
        self.files: list[str] = []  # that the server made for us, each in a directory of its own
        self.look: Callable[[], None] = lambda: None
        self._buffer = b""
        self._named_socket = SOCKET_OPTION in words
        self._warn = warn
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        notices = []
        with contextlib.suppress(OSError):  # we have no standard error
            notices.append(os.dup(2))
        try:
            self._process = subprocess.Popen(
                [python, "-m", "kvm_dbg.cli", *words, *(f"--notices={descriptor}" for descriptor in notices)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=server_environment(),
                pass_fds=notices,
                start_new_session=True,  # the terminal's Ctrl-C is the debugger's
            )
        finally:
            for descriptor in notices:
                os.close(descriptor)

    def send(self, message: dict[str, Any]) -> None:
        """Send one message. Raises ServerGone.

        Ctrl-C may cut it off anywhere, without anybody's knowing where; the next one then begins on a line of its own.
        """
        data = memoryview((b"\n" if self._cut else b"") + json.dumps(message).encode() + b"\n")
        self._cut = True
        try:
            while data:
                data = data[os.write(self._process.stdin.fileno(), data) :]  # type: ignore[union-attr]
        except (OSError, ValueError):
            raise ServerGone(self._epitaph()) from None
        self._cut = False

    def receive(self) -> dict[str, Any]:
        """Return the next message, once what the server asks for it is answered.

        Raises ServerGone, KeyboardInterrupt (`_stop` must follow, for something may be lost).
        """
        while True:
            message = self._receive_line()
            if "warning" in message:
                self._warn(str(message["warning"]))
            elif self._stub is not None and any(name in message for name in QUESTIONS):
                self.send(self._stub.answer(message))
            else:
                return message

    def _receive_line(self) -> dict[str, Any]:
        """Return the next message, whatever it is. Raises as `receive`."""
        line = self._read_line()
        try:
            return dict(json.loads(line.decode()))
        except ValueError:
            raise ServerGone(f"the server said something that is no JSON: {line[:80]!r}") from None

    def _read_line(self) -> bytes:
        """Return the next line. Raises as `receive`."""
        while b"\n" not in self._buffer:
            try:
                descriptor = self._process.stdout.fileno()  # type: ignore[union-attr]
                while not select.select([descriptor], [], [], POLL_SECONDS)[0]:
                    self.look()  # Ctrl-C comes through here: a debugger's signal handler restarts a read that waits
                self.look()
                data = os.read(descriptor, 1 << 18)
            except (OSError, ValueError):
                data = b""
            if not data:
                raise ServerGone(self._epitaph())
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def end_reading(self) -> None:
        """Leave the stub as it was found, whatever interrupts. Raises KeyboardInterrupt after that."""
        if self._stub is not None:
            try:
                self._stub.end()
            except StubGone as gone:
                self._warn(str(gone))
            finally:
                self._stub.end()  # where the first time was cut off; nothing happens if it was not

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its one answer. Raises ServerGone, ServerError with the server's text."""
        answers = list(self.stream(message))
        return answers[-1] if answers else {}

    def stream(self, message: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Send a request and yield the answers; Ctrl-C stops what the server does, and the rest is dropped.

        Raises:
            ServerGone, ServerError with the server's text, KeyboardInterrupt once the server has stopped.
        """
        answer: dict[str, Any] = {}
        try:
            self.send(message)
            while True:
                answer = self.receive()
                if "error" in answer:
                    raise ServerError(str(answer["error"]))
                if "question" in answer:
                    yield from self._ask(message, str(answer["question"]))
                    return
                yield answer
                if "text" not in answer:
                    return
        except (KeyboardInterrupt, GeneratorExit):
            if "text" in answer or not answer:
                self._stop()
            raise
        finally:
            try:
                self.end_reading()
            finally:
                self.end_reading()

    def _ask(self, message: dict[str, Any], question: str) -> Generator[dict[str, Any], None, None]:
        """Ask the person at the terminal, and send the request again if the answer is yes. Raises ServerError."""
        sys.stderr.write(question + " [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise ServerError("not written: the answer was no")
        yield from self.stream({**message, "yes": True})

    def _stop(self) -> None:
        """Stop what the server does for us, and drop what it still says. A second Ctrl-C ends the server."""
        self._syncs += 1
        last = json.dumps({"sync": self._syncs}).encode()
        try:
            self.send({"interrupt": True})
            self.send({"sync": self._syncs})  # whose answer is the last that is dropped, whatever was lost before
            while self._read_line() != last:
                pass
        except KeyboardInterrupt:
            self.close()

    def close(self) -> None:
        """End the server and reap it: by the end of its input, and by force if it does not listen."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        for stop in (None, self._process.terminate, self._process.kill):
            if stop is not None:
                stop()
            try:
                self._process.wait(END_TIMEOUT)
                break
            except subprocess.TimeoutExpired:
                continue
        self._errors.close()
        address = str(self.ready.get("address", ""))
        for path in (address, *self.files):  # what a server that was killed could not remove
            if path.startswith("/"):
                with contextlib.suppress(OSError):
                    os.unlink(path)
                if path != address or not self._named_socket:  # else the directory is somebody's
                    with contextlib.suppress(OSError):
                        os.rmdir(os.path.dirname(path))

    def last_words(self) -> str:
        """Return the last line on the server's standard error."""
        try:
            self._errors.seek(0)
            lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        except (OSError, ValueError):
            return ""
        return str(lines[-1]) if lines else ""

    def _epitaph(self) -> str:
        try:
            status = self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            return "the server does not answer any more"
        if status < 0:
            try:
                how = f"was killed by {signal.Signals(-status).name}"
            except ValueError:
                how = f"was killed by signal {-status}"
        else:
            how = f"has ended with status {status}"
        words = self.last_words()
        return f"the server {how}: {words}" if words else f"the server {how}"


def is_batch(options: tuple[bytes, ...], end: tuple[bytes, ...] = ()) -> bool:
    """Return whether this program was started with one of the options, before any of those in `end`."""
    try:
        with open("/proc/self/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    for word in words[1:]:
        if word in end:
            return False
        if word in options:
            return True
    return False


def start_server(
    words: list[str], warn: Callable[[str], None], attended: bool = False, stub: Stub | None = None
) -> Server:
    """Start a server that has opened the image, or the stub's machine, with the first Python that has the package.

    attended: somebody is at the terminal who has to agree before a running kernel is written to.

    Raises:
        ServerError: there is no such Python, or the image could not be opened (the server's own text).
    """
    named = "KVM_DBG_PYTHON" in os.environ
    tried: list[str] = []
    for python in interpreters():
        if not python or python in tried:
            continue
        tried.append(python)
        try:
            words = ["serve", "--control", *(["--attended"] if attended else []), *words]
            server = Server(python, words, warn, stub)
        except OSError as error:
            if named:
                raise ServerError(f"KVM_DBG_PYTHON: {python}: {error.strerror}") from None
            continue
        try:
            first = server.receive()
        except ServerGone as gone:
            last = server.last_words()
            server.close()
            if not named and any(text in last for text in WRONG_PYTHON):
                continue
            raise ServerError(str(gone)) from None
        except BaseException:
            server.close()
            raise
        finally:
            server.end_reading()
        if "ready" not in first:
            server.close()
            raise ServerError(str(first.get("error", "the server could not start")))
        server.ready = first["ready"]
        return server
    raise ServerError(
        f"no Python with the kvm-dbg package was found (tried: {', '.join(tried) or 'nothing'});"
        " set the environment variable KVM_DBG_PYTHON to it"
    )
