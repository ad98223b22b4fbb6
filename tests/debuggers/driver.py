"""One gdb or lldb as a test sees it from outside: batch runs, gdb's MI and DAP, in a home directory of its own.

The caches below XDG_CACHE_HOME are shared by all debuggers of a run, since some indexes take long to build; a test that
wants them cold changes that variable in `env`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.debuggers.child import TIMEOUT, Dialogue, Result, run
from tests.debuggers.dap import DapClient
from tests.debuggers.debugger import Found, clean_environment
from tests.debuggers.mi import MiClient


class Gdb:
    """A gdb of one version; `env` is the environment that it gets, and may be changed by the test."""

    def __init__(self, found: Found, home: Path, cache: Path) -> None:
        self.name = found.debugger.name
        self.version = found.debugger.version
        self.python = found.python
        self.program = found.program
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.env = clean_environment(home, cache)
        self._dialogues: list[Dialogue] = []

    def run(
        self, commands: Sequence[str], args: Sequence[str] = (), *, stdin: str = "", timeout: float = TIMEOUT
    ) -> Result:
        """Run `gdb -nx -batch` with an `-ex` for each of `commands`, then `args`, and return what it left.

        Raises:
            ChildTimeoutError: after `timeout` seconds, with the output so far.
        """
        command = [self.program, "-nx", "-batch"]
        for text in commands:
            command += ["-ex", text]
        return run([*command, *args], env=self.env, timeout=timeout, stdin=stdin)

    def mi(self, args: Sequence[str] = ()) -> MiClient:
        """Start gdb with its machine interface, version 3; it ends with the test."""
        return MiClient(self._start("--interpreter=mi3", args))

    def dap(self, args: Sequence[str] = ()) -> DapClient:
        """Start gdb as a debug adapter; it ends with the test."""
        return DapClient(self._start("--interpreter=dap", args))

    def __enter__(self) -> Gdb:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for dialogue in self._dialogues:
            dialogue.close()

    def _start(self, interpreter: str, args: Sequence[str]) -> Dialogue:
        dialogue = Dialogue([self.program, "-nx", "-q", interpreter, *args], env=self.env)
        self._dialogues.append(dialogue)
        return dialogue


class Lldb:
    """An lldb of one version; `env` is the environment that it gets, and may be changed by the test."""

    def __init__(self, found: Found, home: Path, cache: Path) -> None:
        self.name = found.debugger.name
        self.version = found.debugger.version
        self.program = found.program
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.env = clean_environment(home, cache)

    def run(
        self, commands: Sequence[str], args: Sequence[str] = (), *, stdin: str = "", timeout: float = TIMEOUT
    ) -> Result:
        """Run `lldb --no-lldbinit -Q -b` with a `-o` for each of `commands`, then `args`, and return what it left.

        Raises:
            ChildTimeoutError: after `timeout` seconds, with the output so far.
        """
        command = [self.program, "--no-lldbinit", "-Q", "-b"]
        for text in commands:
            command += ["-o", text]
        return run([*command, *args], env=self.env, timeout=timeout, stdin=stdin)
