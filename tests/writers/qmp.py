"""A stand-in for QEMU's monitor: what kvm_dbg asks, answered as QEMU's QMP specification and its schema have it.

Greeting, capabilities, ids, events and errors: docs/interop/qmp-spec.rst; commands: qapi/*.json; the text of
`info mtree -f`, `xp` and `gpa2hva`: softmmu/memory.c, monitor/hmp-cmds.c.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from tests.writers.elfcore import Load, write_elfcore

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}'
)


class Backend(NamedTuple):
    """A memory backend: its bytes, and the file that QEMU says they are in, from `offset` on."""

    data: bytearray
    path: str | None = None
    share: bool = True
    offset: int | None = None
    host_address: int | None = None


class Place(NamedTuple):
    """Guest-physical [start, end) is memory of a backend from `offset` on."""

    start: int
    end: int
    backend: str
    offset: int = 0
    kind: str = "ram"


class Refused(Exception):  # noqa: N818 - QEMU's word for no
    """A command that fails, with the text of its error."""


class FakeQemu:
    """A monitor at a Unix socket, or at a port of this machine if `path` is None; one client at a time.

    Attributes:
        running: whether the guest runs.
        log: the commands that came, with "stop" and "cont" as the machine's own too.
        answers: command -> what answers it in place of QEMU.
        notes: of the dump, as ELF has them.
    """

    def __init__(self, path: str | None, backends: dict[str, Backend], places: list[Place]) -> None:
        self.backends, self.places = backends, places
        self.running = True
        self.log: list[str] = []
        self.answers: dict[str, Callable[[dict[str, Any]], object]] = {}
        self.notes = b""
        self._listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self._listener.bind(path or ("127.0.0.1", 0))
        self._listener.listen(8)
        self.address = path or f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._client: socket.socket | None = None
        self._descriptors: dict[str, int] = {}
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End, as a process that is killed."""
        for end in (self._client, self._listener):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                self._client, _ = self._listener.accept()
            except OSError:
                return
            with self._client, contextlib.suppress(OSError):
                self._client.sendall(GREETING + b"\r\n")
                self._talk(self._client)
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def _talk(self, client: socket.socket) -> None:
        pending, brought = b"", array.array("i")
        while True:
            data, ancillary, _, _ = client.recvmsg(1 << 16, 64)
            for _, _, more in ancillary:
                brought.frombytes(more)
            if not data:
                return
            pending += data
            *lines, pending = pending.split(b"\n")
            for line in lines:
                message = json.loads(line)
                command, arguments = message["execute"], message.get("arguments", {})
                self.log.append(command)
                if command == "getfd":
                    self._descriptors[arguments["fdname"]] = brought.pop()
                self._say(client, {"event": "SOMETHING", "timestamp": {"seconds": 1, "microseconds": 2}})
                try:
                    answer: dict[str, Any] = {"return": self._answer(command, arguments)}
                except Refused as error:
                    answer = {"error": {"class": "GenericError", "desc": str(error)}}
                self._say(client, {**answer, "id": message.get("id")})

    @staticmethod
    def _say(client: socket.socket, message: dict[str, Any]) -> None:
        client.sendall(json.dumps(message).encode() + b"\r\n")

    def _answer(self, command: str, arguments: dict[str, Any]) -> object:
        if command in self.answers:
            return self.answers[command](arguments)
        match command:
            case "query-target":
                return {"arch": "x86_64"}
            case "query-status":
                return {"running": self.running, "status": "running" if self.running else "paused"}
            case "query-memory-size-summary":
                return {"base-memory": sum(len(one.data) for one in self.backends.values())}
            case "stop" | "cont":
                self.running = command == "cont"
            case "query-memdev":
                return [{"id": name, "size": len(one.data)} for name, one in self.backends.items()]
            case "qom-list":
                return [{"name": name, "type": "str"} for name in self._properties(arguments["path"])]
            case "qom-get":
                return self._properties(arguments["path"])[arguments["property"]]
            case "human-monitor-command":
                return self._human(arguments["command-line"])
            case "dump-guest-memory":
                return self._dump(arguments)
        return {}

    def _properties(self, path: str) -> dict[str, object]:
        backend = self.backends[path.removeprefix("/objects/")]
        found: dict[str, object] = {"type": "memory-backend", "share": backend.share}
        if backend.path is not None:
            found["mem-path"] = backend.path
        if backend.offset is not None:
            found["offset"] = backend.offset
        return found

    def _human(self, line: str) -> str:
        if line == "info mtree -f":
            return self.write_mtree()
        word, *rest = line.split()
        paddr = int(rest[-1], 16)
        place = next((one for one in self.places if one.start <= paddr < one.end), None)
        if place is None:
            return "Cannot access memory\r\n"
        backend, offset = self.backends[place.backend], place.offset + paddr - place.start
        if word == "gpa2hva":
            if backend.host_address is None:
                return f"Memory at address {paddr:#x} is not RAM\r\n"
            return f"Host virtual address for {paddr:#x} (ram) is {backend.host_address + offset:#x}\r\n"
        words = [int.from_bytes(backend.data[offset + at : offset + at + 8], "little") for at in (0, 8)]
        return f"{paddr:016x}: 0x{words[0]:016x} 0x{words[1]:016x}\r\n"

    def write_mtree(self) -> str:
        """Return what `info mtree -f` prints."""
        lines = ["FlatView #0", ' AS "I/O", root: io', " Root memory region: io"]
        lines += ["  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan", "", "FlatView #1"]
        lines += [' AS "memory", root: system', ' AS "cpu-memory-0", root: system', " Root memory region: system"]
        for place in self.places:
            offset = f" @{place.offset:016x}" if place.offset else ""
            lines.append(f"  {place.start:016x}-{place.end - 1:016x} (prio 0, {place.kind}): {place.backend}{offset}")
        lines += ["  00000000febc0000-00000000febdffff (prio 1, i/o): e1000-mmio", "", ""]
        return "\r\n".join(lines)

    def _dump(self, arguments: dict[str, Any]) -> object:
        begin, length = arguments.get("begin", 0), arguments.get("length", 1 << 63)
        loads = []
        for place in self.places:
            low, high = max(place.start, begin), min(place.end, begin + length)
            if low < high:
                offset = place.offset + low - place.start
                data = bytes(self.backends[place.backend].data[offset : offset + high - low])
                loads.append(Load(low, data))
        match = re.fullmatch(r"(fd|file):(.*)", arguments["protocol"])
        if match is None:
            raise Refused("Invalid parameter 'protocol'")
        descriptor = self._descriptors.pop(match[2]) if match[1] == "fd" else os.open(match[2], os.O_WRONLY)
        try:
            data = write_elfcore(loads, self.notes)
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError as error:
            raise Refused(f"dump: failed to save memory: {error.strerror}") from error
        finally:
            os.close(descriptor)
        return {}
