"""Memory by the packets of a remote stub that the debugger is attached to: what both adapters answer the server.

This file knows neither debugger; they hand in how a packet is sent. Sources: appendix "Remote Serial Protocol" of gdb's
manual (`m`, `M`, PacketSize); QEMU's docs/system/gdb.rst (`qqemu.PhyMemMode`, `Qqemu.PhyMemMode`: whether `m` and `M`
mean physical addresses).

The debugger's own reads must never be taken for physical ones. So that mode lasts from the first read of one request of
ours to its end, however that comes, and `Stub.end` is the only way out.
"""

from __future__ import annotations

import re
from typing import Any, Callable

STUCK = (
    "the stub takes addresses for physical ones, as it did before `kvm attach`: the debugger's own reads are wrong"
    " until it is sent the packet Qqemu.PhyMemMode:0"
)
QUESTIONS = ("machine", "cpus", "addresses", "read", "store")  # of the server, in rsp/control.py of the package
DEFAULT_PACKET = 400  # characters, as gdb assumes of a stub that does not say (kgdb does not, and has 1024)
LARGEST_PACKET = 1 << 17  # characters
RETRIES = 5  # of what must not be left undone


class StubGone(Exception):  # noqa: N818 - it happened
    """The debugger cannot ask the machine now; the text says why, and what to do."""


class Stub:
    """One remote stub.

    Args:
        name: what people call it.
        arch: the package's name of the processor.
        send: sends a packet and returns the reply. Raises StubGone.
        registers: (names) -> [{"thread": ID, "registers": {NAME: "0x..."}}, ...], by ids. Raises StubGone.
        address: (name) -> "0x..." or None: a symbol as the debugger has placed it.
        check: raises StubGone if the machine runs, or is not the debugger's any more.

    Attributes:
        stuck: it took addresses for physical ones before anything was asked.
    """

    def __init__(
        self,
        name: str,
        arch: str,
        send: Callable[[str], str],
        registers: Callable[[Any], Any],
        address: Callable[[str], Any],
        check: Callable[[], None],
    ) -> None:
        self._name = name
        self._arch = arch
        self._send = send
        self._registers = registers
        self._address = address
        self._check = check
        self._before = ""  # the mode that is to be put back, "" if it is as it was
        self._physical = False
        self._size = 0
        self.stuck = False

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one of QUESTIONS, as a message for the server."""
        try:
            self._check()
            if "machine" in question:
                return {"answer": self._machine()}
            if "cpus" in question:
                self.end()  # the debugger reads memory of its own to tell them
                return {"answer": self._registers(question["cpus"])}
            if "addresses" in question:
                self.end()
                return {"answer": {name: self._address(name) for name in question["addresses"]}}
            if question.get("physical"):
                self._begin()
            if "read" in question:
                return {"answer": [self._read(int(place, 16), size) for place, size in question["read"]]}
            place, data = question["store"]
            return {"answer": self._store(int(place, 16), data)}
        except StubGone as gone:
            return {"fault": str(gone)}

    def _machine(self) -> dict[str, Any]:
        found = re.search(r"\bPacketSize=([0-9a-fA-F]+)", self._send("qSupported"))
        packet = min(int(found.group(1), 16), LARGEST_PACKET) if found else DEFAULT_PACKET
        self._size = max(packet // 2, 1)
        mode = self._send("qqemu.PhyMemMode")
        self._physical = mode in ("0", "1")
        self.stuck = mode == "1"
        return {"name": self._name, "physical": self._physical, "arch": self._arch}

    def _begin(self) -> None:
        """Let addresses be physical."""
        if self._before or not self._physical:
            return
        self._before = "0"  # before anything is sent: an interrupt may come at any time
        if self._send("qqemu.PhyMemMode") == "1":
            self._before = "1"  # the user wanted it so
        elif self._send("Qqemu.PhyMemMode:1") != "OK":
            raise StubGone(f"{self._name}: the stub does not read physical addresses any more")

    def end(self) -> None:
        """Let addresses be what they were, as often as it takes.

        Raises KeyboardInterrupt after that; StubGone if the stub does not do it, with the remedy.
        """
        interrupted, reply = False, ""
        for _ in range(RETRIES):
            if not self._before:
                break
            try:
                reply = "OK" if self._before == "1" else self._send("Qqemu.PhyMemMode:0")
                if reply == "OK":
                    self._before = ""
            except KeyboardInterrupt:
                interrupted = True
            except StubGone:
                self._before = ""  # with the connection the mode is gone
        if self._before:
            raise StubGone(
                f"{self._name}: the stub still takes addresses for physical ones ({reply or 'no answer'}): send it"
                " the packet Qqemu.PhyMemMode:0"
            )
        if interrupted:
            raise KeyboardInterrupt

    def _read(self, address: int, size: int) -> Any:
        """Return the bytes as hexadecimal digits, None if any of them cannot be read."""
        parts = []
        while size > 0:
            reply = self._send(f"m{address:x},{min(size, self._size):x}")
            count = len(reply) // 2
            if not count or len(reply) % 2 or count > size or reply.startswith("E."):
                return None  # E and two digits are three characters
            parts.append(reply)
            address += count  # a stub may tell less than was asked for
            size -= count
        return "".join(parts)

    def _store(self, address: int, data: str) -> bool:
        """Write bytes, given as hexadecimal digits. Raises StubGone: which were not written."""
        step = max(self._size - 32, 1) * 2  # characters; the packet has an address and a length as well
        for start in range(0, len(data), step):
            part = data[start : start + step]
            reply = self._send(f"M{address + start // 2:x},{len(part) // 2:x}:{part}")
            if reply != "OK":
                raise StubGone(
                    "{}: the stub does not write {} bytes at {:#x} ({}); {} bytes before them were written".format(
                        self._name, len(part) // 2, address + start // 2, reply or "no answer", start // 2
                    )
                )
        return True
