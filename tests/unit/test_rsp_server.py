"""The server as a process: where it listens, whom it lets in, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvm_dbg.rsp.packet import frame
from tests.writers.stand_in import KERNEL_BYTES, TEXT

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20


class Served:
    """A server process and what it said first."""

    def __init__(self, folder: Path, *words: str) -> None:
        temporary = folder / "tmp"
        temporary.mkdir()
        self.folder = temporary
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.writers.stand_in", "serve", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,  # where its image seems to be, and what it writes beside that
            env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        )
        self.first: dict[str, Any] = json.loads(self.read_line())

    def read_line(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def say(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def connect(self) -> socket.socket:
        address = self.first["ready"]["address"]
        if address.startswith("/"):
            client = socket.socket(socket.AF_UNIX)
            client.connect(address)
        else:
            host, port = address.split(":")
            client = socket.create_connection((host, int(port)))
        client.settimeout(SECONDS)
        return client

    def ended(self) -> int:
        """Return the exit status of the server once it has ended by itself, having left nothing behind."""
        status = self.process.wait(SECONDS)
        assert list(self.folder.iterdir()) == []
        return status


@contextmanager
def served(folder: Path, *words: str) -> Iterator[Served]:
    server = Served(folder, *words)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        for pipe in (server.process.stdin, server.process.stdout, server.process.stderr):
            if pipe is not None:
                pipe.close()


def ask(client: socket.socket, packet: bytes, *, no_ack: bool = True) -> bytes:
    client.sendall(frame(packet))
    return receive(client, 1, no_ack=no_ack)[0]


def receive(client: socket.socket, count: int, *, no_ack: bool = True) -> list[bytes]:
    """Return the payloads of the next `count` packets."""
    data = b""
    while data.count(b"#") < count or len(data) < data.rindex(b"#") + 3:
        part = client.recv(1 << 20)
        assert part, data
        data += part
    if not no_ack:
        data = data.replace(b"+", b"", data.count(b"+"))
    return [part.partition(b"#")[0] for part in data.split(b"$")[1:]]


def test_it_is_ready_when_it_says_so(tmp_path: Path) -> None:
    with served(tmp_path, "image") as server:
        address = Path(server.first["ready"]["address"])
        assert stat.S_ISSOCK(address.stat().st_mode)
        assert stat.S_IMODE(address.parent.stat().st_mode) == 0o700
        with server.connect() as client:
            assert ask(client, b"QStartNoAckMode", no_ack=False) == b"OK"
            assert not address.parent.exists()  # the one client is in
            client.sendall(b"+")
            assert ask(client, b"m%x,4" % TEXT) == KERNEL_BYTES[:4].hex().encode()
        assert server.ended() == 0


def test_the_facts_of_the_kernel(tmp_path: Path) -> None:
    with served(tmp_path, "image") as server:
        ready = server.first["ready"]
        assert (ready["release"], ready["arch"], ready["slide"]) == ("6.6.6-stand-in", "x86_64", "0x1000000")
        assert ready["pid"] == server.process.pid
        assert {"procs", "loadavg", "log"} <= {command["name"] for command in ready["commands"]}


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with served(tmp_path, "--control", "refused") as server:
        assert server.first == {"error": "refused: refused, as its name says"}
        assert server.ended() == 1


def test_wrong_use_is_told_to_an_adapter(tmp_path: Path) -> None:
    with served(tmp_path, "--control", "--tcp", "77777", "image") as server:
        assert "77777 is no port" in server.first["error"]
        assert server.ended() == 1


def test_a_socket_where_the_user_wants_it(tmp_path: Path) -> None:
    place = tmp_path / "place"
    with served(tmp_path, "--control", "--socket", str(place), "image") as server:
        assert server.first["ready"]["address"] == str(place)
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
        with server.connect() as client:
            assert ask(client, b"qAttached", no_ack=False) == b"1"
            assert not place.exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--socket", "{tmp}/place"], "{tmp}/place: a socket is to be made here; remove what is there"),
        (["--socket", "{tmp}/" + "long" * 30], "the path of a socket has at most 100 bytes"),
        (["--socket", "{tmp}/nowhere/place"], "{tmp}/nowhere/place: cannot make a socket: No such file or directory"),
        (["--socket", "{tmp}/other", "--tcp", "0"], "--tcp and --socket exclude each other"),
    ],
)
def test_no_socket_can_be_there(tmp_path: Path, words: list[str], text: str) -> None:
    (tmp_path / "place").write_text("somebody's")
    with served(tmp_path, "--control", *(word.format(tmp=tmp_path) for word in words), "image") as server:
        assert text.format(tmp=tmp_path) in server.first["error"]
        assert server.ended() == 1
    assert (tmp_path / "place").read_text() == "somebody's"


def test_threads_by_process(tmp_path: Path) -> None:
    with served(tmp_path, "--control", "image") as server:
        answers = []
        for pid in (1, 41, 40, 10_000_001, 77, 0):
            server.say({"select": pid})
            answers.append(json.loads(server.read_line()))
    found = [{"thread": tid} for tid in (1, 41, 41, 10_000_001)]
    assert answers[:5] == [*found, {"error": "no process or thread 77"}]
    assert "select one of 10000000, 10000001" in answers[5]["error"]


def test_tcp_is_loopback_and_warned_of(tmp_path: Path) -> None:
    with served(tmp_path, "--tcp", "0", "image") as server:
        assert server.first["ready"]["address"].startswith("127.0.0.1:")
        with server.connect() as client:
            assert ask(client, b"qAttached", no_ack=False) == b"1"
            client.sendall(b"+" + frame(b"D"))
            assert receive(client, 1, no_ack=False) == [b"OK"]
        assert server.ended() == 0
        assert server.process.stderr is not None
        assert b"warning: every user of this machine can connect" in server.process.stderr.read()


def test_copies_of_an_unanswered_packet_have_one_answer(tmp_path: Path) -> None:
    with served(tmp_path, "image") as server, server.connect() as client:
        supported = frame(b"qSupported:multiprocess+;qRelocInsn+")
        client.sendall(supported * 4 + frame(b"qAttached"))
        first, second = receive(client, 2, no_ack=False)
        assert first.startswith(b"PacketSize=")
        assert second == b"1"


def test_a_damaged_packet_is_asked_for_again(tmp_path: Path) -> None:
    with served(tmp_path, "image") as server, server.connect() as client:
        client.sendall(b"$qAttached#00")
        assert client.recv(100) == b"-"
        assert ask(client, b"qAttached", no_ack=False) == b"1"
        client.sendall(b"-")
        assert receive(client, 1) == [b"1"]


def test_garbage_ends_the_connection(tmp_path: Path) -> None:
    with served(tmp_path, "image") as server:
        with server.connect() as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(100) == b""
        assert server.ended() == 1


def test_the_control_channel(tmp_path: Path) -> None:
    with served(tmp_path, "--control", "image") as server:
        server.say({"run": "loadavg"})
        assert json.loads(server.read_line()) == {"text": "0.50 1.25 2.00\n"}
        assert json.loads(server.read_line()) == {"done": True}
        server.say({"run": "bogus"})
        assert "no command 'bogus'" in json.loads(server.read_line())["error"]
        server.say({"symbol": "init_task"})
        assert json.loads(server.read_line()) == {"address": f"{TEXT + 0x4000:#x}"}
        server.say({"nonsense": 1})
        assert "different versions" in json.loads(server.read_line())["error"]
        assert server.process.stdin is not None
        server.process.stdin.close()
        assert server.ended() == 0


def test_an_endless_command_is_interrupted_and_the_next_one_runs(tmp_path: Path) -> None:
    with served(tmp_path, "--control", "image") as server:
        server.say({"run": "log"})
        assert "and so on" in json.loads(server.read_line())["text"]
        server.say({"interrupt": True})
        while "text" in (message := json.loads(server.read_line())):
            pass
        assert message == {"error": "interrupted"}
        server.say({"interrupt": True})  # too late: nothing runs
        server.say({"run": "loadavg"})
        assert json.loads(server.read_line()) == {"text": "0.50 1.25 2.00\n"}


def test_ctrl_c_of_the_protocol_interrupts_too(tmp_path: Path) -> None:
    with served(tmp_path, "image") as server, server.connect() as client:
        assert ask(client, b"QStartNoAckMode", no_ack=False) == b"OK"
        client.sendall(b"+" + frame(b"qRcmd," + b"log".hex().encode()))
        assert b"$O" in client.recv(1 << 16)
        client.sendall(b"\x03")
        data = b""
        while b"$E" not in data:
            data = data[-100:] + client.recv(1 << 16)
        assert ask(client, b"qAttached") == b"1"


def test_packets_that_arrive_while_a_command_ends_are_answered(tmp_path: Path) -> None:
    """What a timer's look has read is not forgotten: nobody would send it again."""
    with served(tmp_path, "--control", "image") as server, server.connect() as client:
        assert ask(client, b"QStartNoAckMode", no_ack=False) == b"OK"
        server.say({"run": "log"})
        server.read_line()
        client.sendall(b"+" + frame(b"qAttached"))
        time.sleep(0.3)  # several looks
        server.say({"interrupt": True})
        assert receive(client, 1) == [b"1"]


@pytest.mark.parametrize("command", ["", "log"])
def test_it_ends_with_the_adapter(tmp_path: Path, command: str) -> None:
    with served(tmp_path, "--control", "image") as server:
        if command:
            server.say({"run": command})
            server.read_line()
        assert server.process.stdin is not None
        server.process.stdin.close()
        assert server.ended() == 0


def test_ctrl_c_in_its_own_terminal_ends_it(tmp_path: Path) -> None:
    with served(tmp_path, "image") as server:
        server.process.send_signal(signal.SIGINT)
        server.process.wait(SECONDS)
        assert list(server.folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: int) -> None:
    with served(tmp_path, "image") as server:
        server.process.send_signal(number)
        assert server.ended() == 0
