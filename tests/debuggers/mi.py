"""A small client of gdb's machine interface (gdb manual, "GDB/MI Output Syntax").

A line is `[token]class-character body`: `^` ends a command, `*`, `+` and `=` are asynchronous records, `~`, `@` and
`&` streams of text. A body is a word followed by `,name=value`; values are C strings, `{tuples}` and `[lists]`.
"""

from __future__ import annotations

import re
import time
from typing import Any, NamedTuple

from tests.debuggers.child import TIMEOUT, Dialogue

STREAMS = {"~": "console", "@": "target", "&": "log"}
RECORDS = "^*+="
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "e": "\x1b"}
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)", re.DOTALL)
_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_-]*")


class MiError(AssertionError):
    """gdb answered `^error`; the text is gdb's."""


class Record(NamedTuple):
    """One record: its class character, its word (`done`, `stopped`), and its named results."""

    sort: str
    word: str
    results: dict[str, Any]


class Answer(NamedTuple):
    """What one command brought: its results, the asynchronous records before its end, and the text streams."""

    results: dict[str, Any]
    records: list[Record]
    console: str
    target: str
    log: str


class MiClient:
    """Speaks with a gdb that was started with `--interpreter=mi3`."""

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self._token = 0

    def command(self, text: str, timeout: float = TIMEOUT) -> Answer:
        """Send one MI command, such as `-thread-info`, and return its answer.

        Raises:
            MiError: gdb answered `^error`.
            ChildTimeoutError: no answer in `timeout` seconds.
            EOFError: gdb has ended.
        """
        self._token += 1
        deadline = time.monotonic() + timeout
        self.dialogue.send(f"{self._token}{text}\n".encode())
        streams = {"console": "", "target": "", "log": ""}
        records: list[Record] = []
        while True:
            line = self.dialogue.read_line(deadline).strip()
            sort = line[:1].decode(errors="replace")
            if sort in STREAMS:
                streams[STREAMS[sort]] += _Parser(line[1:]).string()
                continue
            token, record = parse_record(line)
            if record is None:
                continue
            if record.sort != "^":
                records.append(record)
            elif token == self._token:
                if record.word == "error":
                    raise MiError(record.results.get("msg", ""))
                return Answer(record.results, records, **streams)

    def console(self, text: str, timeout: float = TIMEOUT) -> Answer:
        """Run one command of gdb's command line. Raises as `command` does."""
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        return self.command(f'-interpreter-exec console "{quoted}"', timeout)

    def quit(self, timeout: float = TIMEOUT) -> int:
        """Let gdb end by itself and return its exit status."""
        self.dialogue.send(b"-gdb-exit\n")
        return self.dialogue.wait(timeout)


def parse_record(line: bytes) -> tuple[int | None, Record | None]:
    """Return the token and the record of a line; no record for the prompt and for text of other programs."""
    told = re.match(rb"(\d*)([\^*+=])([a-zA-Z-]+)", line)
    if told is None:
        return None, None
    parser = _Parser(line[told.end() :])
    results: dict[str, Any] = {}
    while parser.take(b","):
        name, value = parser.result()
        results[name] = value
    return int(told[1]) if told[1] else None, Record(told[2].decode(), told[3].decode(), results)


class _Parser:
    """Reads values from one line. Raises ValueError where the line breaks the syntax."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._at = 0

    def take(self, mark: bytes) -> bool:
        """Step over `mark` if it comes next."""
        if self._text.startswith(mark, self._at):
            self._at += len(mark)
            return True
        return False

    def result(self) -> tuple[str, Any]:
        """Read `name=value`."""
        told = _NAME.match(self._text, self._at)
        if told is None:
            raise self._wrong("a name")
        self._at = told.end()
        if not self.take(b"="):
            raise self._wrong("'='")
        return told[0].decode(), self.value()

    def value(self) -> Any:
        """Read a string, a tuple (as a dict) or a list; a list of results keeps their values only."""
        if self.take(b"{"):
            return dict(self._until(b"}", self.result))
        if self.take(b"["):
            named = _NAME.match(self._text, self._at) is not None
            return [pair[1] for pair in self._until(b"]", self.result)] if named else self._until(b"]", self.value)
        return self.string()

    def string(self) -> str:
        """Read a C string; its bytes are UTF-8."""
        told = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL).match(self._text, self._at)
        if told is None:
            raise self._wrong("a string")
        self._at = told.end()
        return _ESCAPE.sub(_unescape, told[1]).decode(errors="replace")

    def _until(self, end: bytes, read: Any) -> list[Any]:
        found: list[Any] = []
        while not self.take(end):
            if found and not self.take(b","):
                raise self._wrong(f"',' or {end.decode()!r}")
            found.append(read())
        return found

    def _wrong(self, wanted: str) -> ValueError:
        return ValueError(f"{wanted} expected at column {self._at} of {self._text!r}")


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1].decode("latin-1")
    if code[0] in "01234567":
        return bytes([int(code, 8) & 0xFF])
    return _ESCAPES.get(code, code).encode("latin-1")
