"""Addresses, sizes and the like as people type them, for every command that takes one."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError, _ActionsContainer

from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError

NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")
EXPRESSION = re.compile(r"(?P<name>[A-Za-z_.$][\w.$]*)(?:(?P<sign>[+-])(?P<offset>0[xX][0-9a-fA-F]+|[0-9]+))?")
BARE = re.compile(r"[0-9a-fA-F]{16}")
UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
END = 1 << 64  # of every address space


def add_image_arguments(parser: _ActionsContainer) -> None:
    """Add the options that describe an image which does not describe itself."""
    parser.add_argument("--base", metavar="PADDR", type=parse_number, help="physical address of raw RAM's first byte")
    parser.add_argument("--hole", metavar="START-END", type=parse_hole, help="addresses that raw RAM leaves out")
    parser.add_argument("--format", metavar="FORMAT", help="take the image for this format")
    parser.add_argument(
        "--offset", metavar="OFFSET", type=parse_number, help="where the dump starts in a dump partition, in bytes"
    )


def parse_number(text: str) -> int:
    """Return a number that is not negative: decimal, or hexadecimal with 0x. Raises ArgumentTypeError."""
    if NUMBER.fullmatch(text) is None:
        raise ArgumentTypeError(f"{text!r} is not a number")
    value = int(text, 16) if text[:2] in ("0x", "0X") else int(text)
    if value >= END:
        raise ArgumentTypeError(f"{text} does not fit into 64 bits")
    return value


def parse_size(text: str) -> int:
    """Return a size in bytes: a number, perhaps with k, m, g or t for powers of 1024. Raises ArgumentTypeError."""
    unit = UNITS.get(text[-1:].lower())
    return parse_number(text[:-1] if unit else text) * (unit or 1)


def parse_hole(text: str) -> tuple[int, int]:
    """Return (start, end) of START-END, physical addresses of a hole in raw RAM. Raises ArgumentTypeError."""
    start, dash, end = text.partition("-")
    if not dash or parse_number(start) >= parse_number(end):
        raise ArgumentTypeError(f"{text!r} is not START-END")
    return parse_number(start), parse_number(end)


def evaluate_address(session: Session, text: str) -> int:
    """Return the address named: 0x..., decimal, 16 bare hex digits as the log prints them, SYMBOL[+OFFSET].

    Raises:
        CommandError: none of these, or outside of 64 bits.
        SymbolNotFound: no such symbol.
    """
    if BARE.fullmatch(text):
        return int(text, 16)
    if NUMBER.fullmatch(text):
        return _checked(int(text, 16) if text[:2] in ("0x", "0X") else int(text), text)
    match = EXPRESSION.fullmatch(text)
    if match is None:
        raise CommandError(f"{text!r} is neither an address nor SYMBOL[+OFFSET]")
    address = session.find_symbol(match["name"]).address
    digits = match["offset"] or "0"
    offset = int(digits, 16) if digits[:2] in ("0x", "0X") else int(digits)
    return _checked(address - offset if match["sign"] == "-" else address + offset, text)


def check_range(address: int, size: int) -> None:
    """Raise CommandError if `size` bytes from `address` on do not end within 64 bits."""
    if address + size > END:
        raise CommandError(f"{size} bytes at {address:#x} end beyond the last address, {END - 1:#x}")


def _checked(address: int, text: str) -> int:
    if not 0 <= address < END:
        raise CommandError(f"{text} is no address: it does not fit into 64 bits")
    return address
