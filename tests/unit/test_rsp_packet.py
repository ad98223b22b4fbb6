"""Frames of the remote serial protocol, against the definition written out plainly."""

from __future__ import annotations

import random

import pytest

from kvm_dbg.errors import ProtocolError
from kvm_dbg.rsp.packet import MAX_QUEUED, Event, PacketReader, checksum, escape, frame, unescape


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512, 513, 4096, 70_001])
def test_checksum_is_the_sum_modulo_256(size: int) -> None:
    random_bytes = random.Random(size).randbytes(size)
    assert checksum(random_bytes) == sum(random_bytes) % 256
    assert checksum(b"\xff" * size) == 255 * size % 256


def test_frame_of_the_manual() -> None:
    assert frame(b"OK") == b"$OK#9a"
    assert frame(b"") == b"$#00"


def test_escape_round_trip_leaves_no_special_byte() -> None:
    data = bytes(range(256)) * 3
    escaped = escape(data)
    assert unescape(escaped) == data
    for special in b"#$*":
        assert special not in escaped
    assert escape(b"}#$*") == b"}]}\x03}\x04}\x0a"


@pytest.mark.parametrize("damaged", [b"abc}", b"a}}b"])
def test_unescape_refuses_an_escape_of_nothing(damaged: bytes) -> None:
    with pytest.raises(ProtocolError, match="escape"):
        unescape(damaged)


STREAM = b"+$qSupported:a+;b-#" + b"%02x" % (sum(b"qSupported:a+;b-") % 256) + b"-\x03$g#67$m1,2#00+"
EVENTS = [
    Event("ack"),
    Event("packet", b"qSupported:a+;b-"),
    Event("nack"),
    Event("interrupt"),
    Event("packet", b"g"),
    Event("damaged"),
    Event("ack"),
]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_reader_cuts_a_stream_wherever_it_is_split(step: int) -> None:
    reader = PacketReader()
    events = []
    for start in range(0, len(STREAM), step):
        events += reader.feed(STREAM[start : start + step])
    assert events == EVENTS


def test_interrupt_byte_inside_a_packet_is_data() -> None:
    payload = b"X0,1:\x03"
    assert PacketReader().feed(frame(payload)) == [Event("packet", payload)]


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.0\r\n", b"\0", b"}"])
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(ProtocolError, match="starts no packet"):
        PacketReader().feed(garbage)


def test_a_packet_without_end_is_refused() -> None:
    reader = PacketReader()
    assert reader.feed(b"$" + b"0" * (MAX_QUEUED - 1)) == []
    with pytest.raises(ProtocolError, match="has no end"):
        reader.feed(b"00")


def test_no_digits_for_a_checksum_is_damage() -> None:
    assert PacketReader().feed(b"$g#zz") == [Event("damaged")]
