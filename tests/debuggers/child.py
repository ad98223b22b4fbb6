"""A child process that cannot outlive or hang its test: bounded waits, and its whole process group is ended with it."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, NamedTuple

TIMEOUT = 120.0
LAST_WORDS = 2.0  # seconds that a child which has ended may still need for its standard error
"""Seconds that a debugger may take for one thing, unless the test says otherwise."""


class ChildTimeoutError(AssertionError):
    """A child took longer than it may; its process group has been killed."""


class Result(NamedTuple):
    """What a finished child left: `returncode` is negative for a signal; `seconds` is wall time."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End `process` and everything in its process group, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(
    command: Sequence[str], *, env: Mapping[str, str], cwd: str | None = None, timeout: float = TIMEOUT, stdin: str = ""
) -> Result:
    """Run `command` to its end in a process group of its own.

    Raises:
        ChildTimeoutError: after `timeout` seconds; its text has the output so far.
    """
    started = time.monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(env),
        cwd=cwd,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(stdin.encode(), timeout=timeout)
        except subprocess.TimeoutExpired as error:
            kill_group(process)
            stdout, stderr = process.communicate()
            raise ChildTimeoutError(
                f"not done after {timeout:g} s: {' '.join(command)}\n"
                f"stdout: {stdout.decode(errors='replace')}\nstderr: {stderr.decode(errors='replace')}"
            ) from error
        except BaseException:
            kill_group(process)
            raise
    return Result(
        process.returncode,
        stdout.decode(errors="replace"),
        stderr.decode(errors="replace"),
        time.monotonic() - started,
    )


class Dialogue:
    """A child that is spoken with over its standard input and output.

    Threads drain both of its outputs, so that it never blocks on a full pipe; `receive` hands out stdout's bytes with a
    time limit, `stderr_text` is what the other one has said so far.
    """

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], cwd: str | None = None) -> None:
        self.command = tuple(command)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._stdin = self.process.stdin
        self._received: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._pending = bytearray()
        self._ended = False
        self._errors: list[bytes] = []
        self._threads = [
            threading.Thread(target=_drain, args=(self.process.stdout, self._received.put), daemon=True),
            threading.Thread(target=_drain, args=(self.process.stderr, self._errors.append), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def send(self, data: bytes) -> None:
        """Write `data` to the child."""
        self._stdin.write(data)
        self._stdin.flush()

    def read_line(self, deadline: float) -> bytes:
        """Return the next line with its line feed. Raises ChildTimeoutError, or EOFError when the child has ended."""
        while (end := self._pending.find(b"\n")) < 0:
            self._receive(deadline)
        return self._take(end + 1)

    def read_exactly(self, size: int, deadline: float) -> bytes:
        """Return the next `size` bytes. Raises as `read_line` does."""
        while len(self._pending) < size:
            self._receive(deadline)
        return self._take(size)

    def stderr_text(self) -> str:
        """Return what the child has written to its standard error so far."""
        return b"".join(self._errors).decode(errors="replace")

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Return the exit status of the child once it has ended by itself. Raises ChildTimeoutError."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise self._too_late() from error

    def close(self) -> None:
        """End the child's process group; harmless when it has ended already."""
        kill_group(self.process)
        for thread in self._threads:
            thread.join(TIMEOUT)
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Dialogue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self, deadline: float) -> None:
        if self._ended:
            self._threads[1].join(LAST_WORDS)  # the other pipe may have been slower
            raise EOFError(f"{self.command[0]} ended; stderr: {self.stderr_text()}")
        try:
            data = self._received.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty as error:
            raise self._too_late() from error
        if not data:
            self._ended = True
        self._pending += data

    def _take(self, size: int) -> bytes:
        data = bytes(self._pending[:size])
        del self._pending[:size]
        return data

    def _too_late(self) -> ChildTimeoutError:
        kill_group(self.process)
        return ChildTimeoutError(
            f"no answer in time from {' '.join(self.command)}\n"
            f"unread: {bytes(self._pending[-2000:])!r}\nstderr: {self.stderr_text()}"
        )


def _drain(pipe: IO[bytes], sink: Callable[[bytes], None]) -> None:
    """Hand everything that comes from `pipe` to `sink`, and an empty piece at its end."""
    while data := os.read(pipe.fileno(), 1 << 16):
        sink(data)
    sink(b"")
