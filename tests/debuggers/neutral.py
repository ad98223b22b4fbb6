"""A debugger as the neutral tests see it: whichever it is, it is asked the same, and answers in the same words.

    answers = subject.ask({"threads": step("threads"), "banner": step("address", "linux_banner")})
    answers["threads"], answers.error("banner")

To start a debugger on a real kernel takes seconds, so a test module asks everything at once, in one batch run, and its
tests look at the answers. What the steps can be is in `probe.py`. `Talk` is for what must be seen from outside while
it goes on: interrupts, and processes that are killed.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from tests.debuggers.child import Dialogue, Result, run
from tests.debuggers.debugger import ROOT, Found, clean_environment

TIMEOUT = 600.0  # seconds for one run, on a machine that has much else to do
HERE = Path(__file__).resolve().parent


class Step(NamedTuple):
    """One method of `Probe`, and its arguments."""

    name: str
    arguments: tuple[Any, ...]


def step(name: str, *arguments: Any) -> Step:
    """Return a step."""
    return Step(name, arguments)


def kvm_open(*words: str | Path) -> Step:
    """Return the step that opens something."""
    return kvm(shlex.join(["open", *map(str, words)]))


def kvm(line: str) -> Step:
    """Return the step that runs a `kvm` command."""
    return Step("kvm", (line,))


class Thread(NamedTuple):
    """One thread in the debugger's list."""

    number: int
    name: str | None
    id: int


class Frame(NamedTuple):
    """One frame of a backtrace; `file` and `line` are those of the source, `virtual` ones are not in the machine."""

    function: str | None
    pc: int
    virtual: bool
    file: str | None
    line: int | None

    @property
    def in_kernel(self) -> bool:
        """Whether it is code of the kernel's."""
        return bool(self.pc >> 63)


class Answers:
    """What one run brought, by the names of the steps."""

    def __init__(self, found: dict[str, dict[str, Any]], result: Result) -> None:
        self._found = found
        self.result = result

    def __getitem__(self, name: str) -> Any:
        answer = self._found[name]
        assert "error" not in answer, f"{name}: {answer}"
        return answer["value"]

    def error(self, name: str) -> str:
        """Return the text with which a step failed."""
        answer = self._found[name]
        assert "error" in answer, f"{name} did not fail: {answer}"
        return str(answer["error"])

    def threads(self, name: str) -> list[Thread]:
        """Return the answer to `threads`."""
        return [Thread(*row) for row in self[name]]

    def frames(self, name: str) -> list[Frame]:
        """Return the answer to `backtrace`."""
        return [Frame(*row) for row in self[name]]

    def stacks(self, name: str) -> dict[int, list[Frame]]:
        """Return the answer to `stacks`."""
        return {int(thread): [Frame(*row) for row in rows] for thread, rows in self[name].items()}


class Spelling(NamedTuple):
    """How a kind of debugger is started and spoken with.

    Attributes:
        program: options before everything else.
        batch: options that make it end after its commands.
        option: what stands before a command.
        adapter: the command that loads the adapter.
        load: the command that loads the probe.
        python: the word before a line of Python.
        session: the adapter's session, in its Python.
    """

    program: tuple[str, ...]
    batch: tuple[str, ...]
    option: str
    adapter: str
    load: str
    call: str
    python: str
    session: str


SPELLINGS = {
    "gdb": Spelling(
        ("-nx", "-q"),
        ("-batch",),
        "-ex",
        f"source {ROOT / 'gdb' / 'kvm_dbg_gdb.py'}",
        f"source {HERE / 'probe_gdb.py'}",
        "probe",
        "python",
        "gdb.kvm_dbg_session",
    ),
    "lldb": Spelling(
        ("--no-lldbinit", "-Q", "-O", "settings set auto-confirm true"),
        ("-b",),
        "-o",
        f"command script import {ROOT / 'lldb' / 'kvm_dbg_lldb.py'}",
        f"command script import {HERE / 'probe_lldb.py'}",
        "probe_lldb.probe",
        "script",
        "lldb.kvm_dbg_sessions[lldb.debugger.GetID()]",
    ),
}


class Subject:
    """One debugger; `env` is the environment that it gets, and may be changed by the test."""

    def __init__(self, found: Found, folder: Path, cache: Path) -> None:
        self.name = found.debugger.name
        self.kind = found.debugger.kind
        self.program = found.program
        self.spelling = SPELLINGS[self.kind]
        self.folder = folder
        home = folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        self.env = clean_environment(home, cache)
        self.env["KVM_DBG_PYTHON"] = sys.executable
        self._runs = 0
        self.talks: list[Talk] = []

    def ask(self, steps: Mapping[str, Step], timeout: float = TIMEOUT) -> Answers:
        """Take all steps in one batch run; one that fails does not stop the others.

        Raises:
            ChildTimeoutError: after `timeout` seconds.
        """
        self._runs += 1
        orders, answers = (self.folder / f"{name}-{self._runs}" for name in ("orders", "answers"))
        orders.write_text(json.dumps([[one.name, one.arguments] for one in steps.values()]))
        call = f"{self.spelling.python} {self.spelling.call}({str(orders)!r}, {str(answers)!r})"
        result = self.batch([self.spelling.load, call], timeout=timeout)
        lines = answers.read_text().splitlines() if answers.exists() else []
        said = f"{result.stdout}\n{result.stderr}"
        assert len(lines) == len(steps), f"{self.name} ended with status {result.returncode}: {said}"
        assert "Traceback" not in said, said
        found = {name: json.loads(line) for name, line in zip(steps, lines, strict=True)}
        return Answers(found, result)

    def batch(self, commands: Sequence[str], *, timeout: float = TIMEOUT) -> Result:
        """Run commands in batch mode, the adapter's loading before them."""
        words = [self.program, *self.spelling.program, *self.spelling.batch]
        for command in (self.spelling.adapter, *commands):
            words += [self.spelling.option, command]
        return run(words, env=self.env, timeout=timeout)

    def talk(self) -> Talk:
        """Start a conversation, with the adapter loaded; it ends with the test."""
        talk = Talk(self)
        self.talks.append(talk)
        talk.do(self.spelling.adapter)
        return talk

    def __enter__(self) -> Subject:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for talk in self.talks:
            talk.dialogue.close()


class Talk:
    """A debugger that reads commands from a pipe; its standard error is put between its output, in order."""

    def __init__(self, subject: Subject) -> None:
        words = [subject.program, *subject.spelling.program]
        self.dialogue = Dialogue(["/bin/sh", "-c", 'exec "$0" "$@" 2>&1', *words], env=subject.env)
        self.pid = self.dialogue.process.pid
        self._spelling = subject.spelling
        self._marks = 0

    def begin(self, line: str) -> None:
        """Send a command, and do not wait."""
        self.dialogue.send(line.encode() + b"\n")

    def finish(self, timeout: float = TIMEOUT) -> str:
        """Return what has been said until all commands that were sent are done."""
        self._marks += 1
        mark = f"mark-{self._marks}-here"
        self.begin(f"{self._spelling.python} print('mark-%d-here' % {self._marks})")
        said = []
        deadline = time.monotonic() + timeout
        while mark not in (text := self.dialogue.read_line(deadline).decode(errors="replace")):
            said.append(text)
        return "".join(said)

    def do(self, line: str) -> str:
        """Run a command to its end and return what is said."""
        self.begin(line)
        return self.finish()

    def value(self, expression: str) -> str:
        """Return what an expression of Python prints."""
        return (
            self.do(f"{self._spelling.python} print('<<' + str({expression}) + '>>')")
            .rpartition("<<")[2]
            .partition(">>")[0]
        )

    def server(self) -> int:
        """Return the process id of the server."""
        return int(self.value(f"{self._spelling.session}.server.ready['pid']"))

    def leave(self) -> int:
        """Let it end by itself, and return its exit status."""
        self.begin("quit")
        return self.dialogue.wait(TIMEOUT)
