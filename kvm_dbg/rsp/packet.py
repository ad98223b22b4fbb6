"""The frames of the gdb remote serial protocol: `$payload#checksum`, acknowledgements and the interrupt byte.

Facts: "Overview" and "Interrupts" of appendix "Gdb Remote Serial Protocol" in the gdb manual. The checksum is the
sum of the payload's bytes as sent, modulo 256, in two hexadecimal digits; `}` escapes the next byte (exclusive-or
0x20); 0x03 outside a packet interrupts. Run-length encoding is allowed in replies and never needed: none is sent,
and a literal `*` is escaped in binary replies. Bulk replies are made by C code only (replace, hexlify, adler32), for
a memory dump is nothing but frames.
"""

from __future__ import annotations

from typing import NamedTuple
from zlib import adler32

from kvm_dbg.errors import ProtocolError

INTERRUPT_BYTE = 0x03
PACKET_SIZE = 0x100000  # bytes that a packet may have on the wire, told to the client in qSupported
MAX_QUEUED = 2 * PACKET_SIZE + 64  # bytes held while a packet is incomplete (an escaped byte takes two)

# Up to so many bytes the low half of adler32, taken modulo 65521, is the exact sum of the bytes, plus one.
_STEP = 256  # 1 + 255 * 256 < 65521
_ASCII_STEP = 512  # 1 + 127 * 512 < 65521


class Event(NamedTuple):
    """What came from the client.

    kind: "packet" (payload as sent, still escaped), "ack", "nack", "interrupt", or "damaged": a packet whose
    checksum is wrong.
    """

    kind: str
    payload: bytes = b""


_ACK = Event("ack")
_NACK = Event("nack")
_INTERRUPT = Event("interrupt")
_DAMAGED = Event("damaged")


def checksum(payload: bytes) -> int:
    """Return the sum of all bytes modulo 256."""
    size = len(payload)
    if size <= _STEP:
        return (adler32(payload) - 1) & 0xFF
    step = _ASCII_STEP if payload.isascii() else _STEP
    view = memoryview(payload)
    total = 0
    for start in range(0, size, step):
        total += adler32(view[start : start + step])
    return (total - (size + step - 1) // step) & 0xFF


def frame(payload: bytes) -> bytes:
    """Return the payload as a packet."""
    return b"$%b#%02x" % (payload, checksum(payload))


def escape(data: bytes) -> bytes:
    """Return binary data with the protocol's four special bytes escaped."""
    return data.replace(b"}", b"}]").replace(b"#", b"}\x03").replace(b"$", b"}\x04").replace(b"*", b"}\x0a")


def unescape(data: bytes) -> bytes:
    """Return the bytes behind escaped binary data.

    Raises:
        ProtocolError: an escape character ends the data.
    """
    head, *rest = data.split(b"}")
    parts = [head]
    for part in rest:
        if not part:  # at the end, or "}}", which no client sends: an escaped brace is "}]"
            raise ProtocolError("an escape character in a binary packet is followed by nothing that it could escape")
        parts.append(bytes((part[0] ^ 0x20,)) + part[1:])
    return b"".join(parts)


class PacketReader:
    """Cuts the client's bytes into events. Bytes may arrive in pieces of any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Event]:
        """Add bytes and return what is complete now.

        Raises:
            ProtocolError: a byte that starts nothing, or a packet longer than was offered.
        """
        buffer = self._buffer
        buffer += data
        events: list[Event] = []
        position = 0
        size = len(buffer)
        while position < size:
            first = buffer[position]
            if first == 0x24:  # $
                end = buffer.find(b"#", position)
                if end < 0 or end + 3 > size:
                    break
                payload = bytes(buffer[position + 1 : end])
                digits = bytes(buffer[end + 1 : end + 3])
                position = end + 3
                events.append(Event("packet", payload) if _matches(payload, digits) else _DAMAGED)
                continue
            position += 1
            if first == 0x2B:  # +
                events.append(_ACK)
            elif first == 0x2D:  # -
                events.append(_NACK)
            elif first == INTERRUPT_BYTE:
                events.append(_INTERRUPT)
            else:
                raise ProtocolError(f"byte {first:#04x} starts no packet; is this a debugger's connection?")
        del buffer[:position]
        if len(buffer) > MAX_QUEUED:
            raise ProtocolError(f"a packet of more than {MAX_QUEUED} bytes has no end")
        return events


def _matches(payload: bytes, digits: bytes) -> bool:
    try:
        return int(digits, 16) == checksum(payload)
    except ValueError:
        return False
