"""A machine behind the stub that can be halted: continue, interrupt, and how it is left."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvm_dbg.rsp.packet import frame
from kvm_dbg.rsp.session import DebuggerSession, Reply
from kvm_dbg.rsp.target import Target
from tests.unit.test_rsp_server import Served, ask, receive, served
from tests.writers.stand_in import HALTED, SLIDE, TEXT, StandInKernel, StandInSystem

GDB = b"qSupported:swbreak+;qRelocInsn+;error-message+"
LLDB = b"qSupported:xmlRegisters=i386,arm,mips,arc;multiprocess+"
SECONDS = 10


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image with a machine behind it, which runs."""
    path = tmp_path / "machine"
    path.touch()
    return path


@pytest.fixture
def mark(image: Path) -> Path:
    """The file that is there while the machine stands still."""
    return Path(f"{image}{HALTED}")


def make(image: Path, handshake: bytes = GDB) -> DebuggerSession:
    stub = DebuggerSession(
        Target(StandInKernel(str(image)), StandInSystem()),  # type: ignore[arg-type]
        lambda _: iter(()),
        text_address=TEXT,
        slide=SLIDE,
    )
    if handshake == LLDB:
        stub.reply(b"QStartNoAckMode")
    stub.reply(handshake)
    return stub


def payloads(reply: Reply) -> list[bytes]:
    assert isinstance(reply, Iterator)
    return list(reply)


@pytest.mark.parametrize("packet", [b"c", b"C02", b"vCont;c", b"vCont;c:-1", b"vCont;C02:1;c"])
def test_it_runs_until_it_is_interrupted(image: Path, mark: Path, packet: bytes) -> None:
    mark.touch()
    stub = make(image)
    assert stub.interrupt() is None  # nobody waits
    assert stub.reply(packet) is None
    assert not mark.exists()
    assert stub.look() is None
    assert stub.interrupt() == b"T02thread:29;core:1;"  # 41, which CPU 1 is busy with
    assert mark.exists()
    assert stub.interrupt() is None
    assert stub.look() is None


def test_lldb_has_a_signal_for_it(image: Path) -> None:
    stub = make(image, LLDB)
    assert stub.reply(b"vCont;c") is None
    reply = stub.interrupt()
    assert isinstance(reply, bytes)
    assert reply.startswith(b"T02thread:29;")


def test_a_machine_that_stops_by_itself(image: Path, mark: Path) -> None:
    stub = make(image)
    assert stub.reply(b"vCont;c") is None
    mark.touch()
    assert stub.look() == b"T02thread:29;core:1;"
    assert stub.look() is None


@pytest.mark.parametrize("packet", [b"s", b"S05", b"vCont;s:1;c", b"vCont;r1,2:1;c", b"vCont;c:1;s"])
def test_it_is_not_stepped(image: Path, packet: bytes) -> None:
    for handshake in (GDB, LLDB):
        stub = make(image, handshake)
        reply = stub.reply(packet)
        assert isinstance(reply, bytes)
        text = reply.decode()
        if handshake == LLDB:
            text = bytes.fromhex(text.partition("description:")[2].partition(";")[0]).decode()
        assert "not stepped; for that connect the debugger to QEMU's gdbstub, and use `kvm attach` beside it" in text
        assert not stub.runner.waiting


def test_it_stops_at_no_breakpoint(image: Path, mark: Path) -> None:
    stub = make(image)
    mark.touch()
    assert stub.reply(b"Z0,%x,1" % TEXT) == b"OK"
    reply = stub.reply(b"vCont;c")
    assert isinstance(reply, bytes)
    assert reply.startswith(b"E.the machine stops at no breakpoint")
    assert mark.exists()
    assert stub.reply(b"z0,%x,1" % TEXT) == b"OK"
    assert stub.reply(b"vCont;c") is None


@pytest.mark.parametrize("how", ["look", "interrupt"])
def test_a_machine_that_is_gone(image: Path, how: str) -> None:
    stub = make(image)
    assert stub.reply(b"vCont;c") is None
    image.unlink()
    text, end = payloads(stub.look() if how == "look" else stub.interrupt())
    assert b"the machine is gone" in bytes.fromhex(text[1:].decode())
    assert end == b"X09"
    assert stub.ended


def test_a_machine_that_cannot_run_on(image: Path) -> None:
    stub = make(image)
    image.unlink()
    reply = stub.reply(b"c")
    assert isinstance(reply, bytes)
    assert reply.startswith(b"E.")
    assert reply.endswith(b"the machine is gone")


@pytest.mark.parametrize("ran", [True, False])
def test_it_is_left_as_it_was_found(image: Path, mark: Path, ran: bool) -> None:
    if not ran:
        mark.touch()
    stub = make(image)
    assert stub.reply(b"c") is None
    stub.interrupt()
    assert mark.exists()
    stub.runner.restore()
    assert mark.exists() is not ran
    stub.reply(b"c")
    stub.runner.restore()
    assert mark.exists() is not ran


def wait_for(mark: Path, there: bool) -> None:
    deadline = time.monotonic() + SECONDS
    while mark.exists() is not there:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def running(image: Path, mark: Path) -> Iterator[tuple[Served, socket.socket]]:
    """A server and gdb's end of its connection, by which the machine was let run."""
    mark.touch()
    with served(image.parent, "--control", str(image)) as server:
        client = server.connect()
        assert ask(client, b"QStartNoAckMode", no_ack=False) == b"OK"
        ask(client, GDB)
        client.sendall(frame(b"vCont;c"))
        wait_for(mark, False)
        yield server, client


def test_the_server_runs_and_halts_it(image: Path, mark: Path) -> None:
    """Byte 0x03 halts it, commands of the adapter go on meanwhile, and whoever else halts it is seen."""
    with running(image, mark) as (server, client):
        server.say({"run": "loadavg"})
        assert b"0.50" in server.read_line()
        assert b"done" in server.read_line()
        client.sendall(b"\x03")
        assert receive(client, 1) == [b"T02thread:29;core:1;"]
        assert mark.exists()
        client.sendall(frame(b"vCont;c"))
        wait_for(mark, False)
        mark.touch()
        assert receive(client, 1) == [b"T02thread:29;core:1;"]
        mark.unlink()
        client.close()
        wait_for(mark, True)  # as it was found


def test_a_halt_by_command_stops_the_debugger_too(image: Path, mark: Path) -> None:
    with running(image, mark) as (server, client):
        server.say({"run": "halt --json"})
        assert b'\\"running\\": false' in server.read_line()
        assert b"done" in server.read_line()
        assert receive(client, 1) == [b"T02thread:29;core:1;"]
        client.close()
