"""Numbers of variable length, as DWARF has them. Fact: DWARF 5 section 7.6."""

from __future__ import annotations


def encode_unsigned(value: int) -> bytes:
    """Return an unsigned number, of as few bytes as it needs."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_signed(value: int) -> bytes:
    """Return a signed number, of as few bytes as it needs."""
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)
