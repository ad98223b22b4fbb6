"""What the adapters do to a remote stub: packets by the remote serial protocol, and the mode that must not stay."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[2] / "gdb" / "kvm_dbg_stub.py"
MEMORY = bytes(range(256)) * 8


def load() -> Any:
    spec = importlib.util.spec_from_file_location("kvm_dbg_stub", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Remote:
    """A stub as QEMU has it, or without physical addresses; `sent` are the packets."""

    def __init__(self, *, physical: bool = True, packet: int | None = 64) -> None:
        self.mode: int | None = 0 if physical else None
        self.packet = packet
        self.memory = bytearray(MEMORY)
        self.sent: list[str] = []
        self.running = False
        self.mode_of_reads: set[int | None] = set()
        self.before: Callable[[str], str | None] = lambda _: None

    def send(self, packet: str) -> str:
        self.sent.append(packet)
        told = self.before(packet)
        if told is not None:
            return told
        if packet == "qSupported":
            return f"PacketSize={self.packet:x};vContSupported+" if self.packet else ""
        if "PhyMemMode" in packet:
            if self.mode is None:
                return ""
            if packet.startswith("q"):
                return str(self.mode)
            self.mode = int(packet[-1])
            return "OK"
        place, _, rest = packet[1:].partition(",")
        address, (size, _, data) = int(place, 16), rest.partition(":")
        if packet[0] == "m":
            self.mode_of_reads.add(self.mode)
            found = self.memory[address : address + int(size, 16)]
            return found.hex() if found else "E14"
        self.memory[address : address + int(size, 16)] = bytes.fromhex(data)
        return "OK"

    def check(self) -> None:
        if self.running:
            raise module.StubGone("it runs")

    def stub(self) -> Any:
        stub = module.Stub("here", "x86_64", self.send, lambda names: [names], {"a": "0x1"}.get, self.check)
        self.told = stub.answer({"machine": True})["answer"]
        self.sent.clear()
        return stub


module = load()


def read(*places: tuple[int, int], physical: bool = True) -> dict[str, Any]:
    return {"read": [[hex(address), size] for address, size in places], "physical": physical}


def test_addresses_are_physical_from_the_first_read_to_the_end() -> None:
    remote = Remote()
    stub = remote.stub()
    assert remote.told == {"name": "here", "physical": True, "arch": "x86_64"}
    assert stub.answer(read((3, 4))) == {"answer": [MEMORY[3:7].hex()]}
    assert stub.answer(read((0, 1), (255, 2))) == {"answer": ["00", "ff00"]}
    assert remote.sent[:2] == ["qqemu.PhyMemMode", "Qqemu.PhyMemMode:1"]
    assert remote.sent.count("Qqemu.PhyMemMode:1") == 1
    assert (remote.mode, remote.mode_of_reads) == (1, {1})
    stub.end()
    assert remote.mode == 0
    stub.end()
    assert remote.sent.count("Qqemu.PhyMemMode:0") == 1


def test_what_the_user_wanted_stays() -> None:
    remote = Remote()
    remote.mode = 1
    stub = remote.stub()
    assert stub.stuck
    stub.answer(read((0, 1)))
    stub.end()
    assert remote.mode == 1


def test_the_debugger_is_asked_with_its_own_addresses() -> None:
    remote = Remote()
    stub = remote.stub()
    stub.answer(read((0, 1)))
    assert stub.answer({"addresses": ["a", "b"]}) == {"answer": {"a": "0x1", "b": None}}
    assert remote.mode == 0
    stub.answer(read((0, 1)))
    assert stub.answer({"cpus": ["rip"]}) == {"answer": [["rip"]]}
    assert remote.mode == 0


def test_another_stub_has_no_mode() -> None:
    remote = Remote(physical=False, packet=None)
    stub = remote.stub()
    assert remote.told["physical"] is False
    assert stub.answer(read((0, 500), physical=False)) == {"answer": [MEMORY[:500].hex()]}
    assert remote.sent == ["m0,c8", "mc8,c8", "m190,64"]  # no more than gdb asks of a stub that tells no size
    stub.end()
    assert len(remote.sent) == 3


def test_reads_are_as_large_as_the_stub_takes() -> None:
    remote = Remote(packet=64)
    assert remote.stub().answer(read((0, 70))) == {"answer": [MEMORY[:70].hex()]}
    assert remote.sent[2:] == ["m0,20", "m20,20", "m40,6"]


def test_short_answers_are_asked_on() -> None:
    remote = Remote()
    stub = remote.stub()
    remote.before = lambda packet: (
        MEMORY[: int(packet[1:].partition(",")[0], 16) + 3][-3:].hex() if packet[0] == "m" else None
    )
    assert stub.answer(read((0, 8)))["answer"] == [None]  # more than was asked for
    assert stub.answer(read((0, 9)))["answer"] == [MEMORY[:9].hex()]


@pytest.mark.parametrize("reply", ["E14", "E.memory is gone", "", "123", "E.no"])
def test_what_cannot_be_read_costs_its_range(reply: str) -> None:
    remote = Remote()
    stub = remote.stub()
    remote.before = lambda packet: reply if packet.startswith("m40,") else None
    assert stub.answer(read((0x20, 4), (0x20, 0x40), (0x60, 4)))["answer"] == ["20212223", None, "60616263"]


def test_writes_are_cut_and_stop_at_a_refusal() -> None:
    remote = Remote(packet=80)
    stub = remote.stub()
    assert stub.answer({"store": ["0x10", bytes(20).hex()], "physical": True}) == {"answer": True}
    assert remote.memory == MEMORY[:16] + bytes(20) + MEMORY[36:]
    assert [packet.partition(":")[0] for packet in remote.sent[2:]] == ["M10,8", "M18,8", "M20,4"]
    remote.before = lambda packet: "E22" if packet.startswith("M18,") else None
    fault = stub.answer({"store": ["0x10", bytes(20).hex()], "physical": True})["fault"]
    assert fault == "here: the stub does not write 8 bytes at 0x18 (E22); 8 bytes before them were written"
    stub.end()
    assert remote.mode == 0


def test_a_machine_that_runs_is_not_asked() -> None:
    remote = Remote()
    stub = remote.stub()
    remote.running = True
    assert stub.answer(read((0, 1))) == {"fault": "it runs"}
    assert remote.sent == []


def gone(_: str) -> str | None:
    raise module.StubGone("the connection is closed")


def test_a_stub_that_ends() -> None:
    remote = Remote()
    stub = remote.stub()
    stub.answer(read((0, 1)))
    remote.before = gone
    assert stub.answer(read((0, 1))) == {"fault": "the connection is closed"}
    stub.end()
    stub.end()


@pytest.mark.parametrize("times", [1, 3])
def test_the_mode_goes_back_whatever_interrupts(times: int) -> None:
    remote = Remote()
    stub = remote.stub()
    stub.answer(read((0, 1)))
    left = [times]

    def interrupt(_: str) -> str | None:
        if left[0]:
            left[0] -= 1
            raise KeyboardInterrupt
        return None

    remote.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        stub.end()
    assert remote.mode == 0


def test_an_interrupt_before_the_answer_to_the_switch() -> None:
    remote = Remote()
    stub = remote.stub()
    plain = remote.send

    def send(packet: str) -> str:
        reply = plain(packet)
        if packet == "Qqemu.PhyMemMode:1":
            raise KeyboardInterrupt
        return reply

    stub._send = send
    with pytest.raises(KeyboardInterrupt):
        stub.answer(read((0, 1)))
    assert remote.mode == 1
    stub.end()
    assert remote.mode == 0


def test_a_stub_that_does_not_switch_back_is_told_of() -> None:
    remote = Remote()
    stub = remote.stub()
    stub.answer(read((0, 1)))
    remote.before = lambda packet: "E01" if packet == "Qqemu.PhyMemMode:0" else None
    with pytest.raises(module.StubGone, match=r"still takes addresses for physical ones \(E01\).*PhyMemMode:0"):
        stub.end()
