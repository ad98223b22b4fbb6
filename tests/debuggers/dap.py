"""A small client of the Debug Adapter Protocol: JSON bodies behind `Content-Length` headers."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.debuggers.child import TIMEOUT, Dialogue


class DapError(AssertionError):
    """The adapter answered a request with `success: false`; the text is the adapter's."""


class DapClient:
    """Speaks with a gdb that was started with `--interpreter=dap`; `events` keeps all events in order."""

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self.events: list[dict[str, Any]] = []
        self._responses: dict[int, dict[str, Any]] = {}
        self._sequence = 0

    def send(self, command: str, arguments: dict[str, Any] | None = None) -> int:
        """Send a request and return its number, for `response`; some are answered only after a later request."""
        self._sequence += 1
        body = {"seq": self._sequence, "type": "request", "command": command, "arguments": arguments or {}}
        data = json.dumps(body).encode()
        self.dialogue.send(b"Content-Length: %d\r\n\r\n" % len(data) + data)
        return self._sequence

    def response(self, sequence: int, timeout: float = TIMEOUT) -> dict[str, Any]:
        """Return the body of the response to request number `sequence`.

        Raises:
            DapError: the request failed.
            ChildTimeoutError: no response in `timeout` seconds.
            EOFError: gdb has ended.
        """
        deadline = time.monotonic() + timeout
        while sequence not in self._responses:
            self._receive(deadline)
        response = self._responses.pop(sequence)
        if not response["success"]:
            raise DapError(f"{response['command']}: {response.get('message', 'failed')}")
        body: dict[str, Any] = response.get("body") or {}
        return body

    def request(
        self, command: str, arguments: dict[str, Any] | None = None, timeout: float = TIMEOUT
    ) -> dict[str, Any]:
        """Send a request and return the body of its response. Raises as `response` does."""
        return self.response(self.send(command, arguments), timeout)

    def wait_event(self, name: str, timeout: float = TIMEOUT) -> dict[str, Any]:
        """Return the body of the first event called `name`, waiting for it if it has not come yet."""
        deadline = time.monotonic() + timeout
        while True:
            for event in self.events:
                if event["event"] == name:
                    body: dict[str, Any] = event.get("body") or {}
                    return body
            self._receive(deadline)

    def output(self) -> str:
        """Return the text of all output events so far."""
        return "".join(event["body"]["output"] for event in self.events if event["event"] == "output")

    def evaluate(self, text: str, timeout: float = TIMEOUT) -> str:
        """Run one command of gdb's command line and return its text. Raises as `response` does."""
        return str(self.request("evaluate", {"expression": text, "context": "repl"}, timeout)["result"])

    def _receive(self, deadline: float) -> None:
        size: int | None = None
        while (line := self.dialogue.read_line(deadline).strip()) or size is None:
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length":
                size = int(value)
        message = json.loads(self.dialogue.read_exactly(size, deadline))
        if message["type"] == "response":
            self._responses[message["request_seq"]] = message
        elif message["type"] == "event":
            self.events.append(message)
