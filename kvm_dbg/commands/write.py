"""write: change memory in the session's private copy."""

from __future__ import annotations

import argparse
from typing import Any

from kvm_dbg.commands.address import check_range, evaluate_address, parse_number
from kvm_dbg.commands.base import Column, Command, Table
from kvm_dbg.commands.process import address_space
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError
from kvm_dbg.kernel import write_memory

COLUMNS = (
    Column("ADDRESS", "address"),
    Column("SIZE", "number", "bytes"),
    Column("OLD", "text", "the bytes before, in hexadecimal digits"),
    Column("NEW", "text", "the bytes now, in hexadecimal digits"),
)
LIMIT = 1 << 20  # bytes


class Write(Command):
    """Write memory, copy-on-write."""

    name = "write"
    summary = "Write memory in a private copy; the image file never changes"
    columns = COLUMNS
    description = (
        "The change lasts until the image is closed, and is seen by every later command and by the debugger. On the\n"
        "command line that is the end of the command itself: there, write only tells what it would replace."
    )
    examples = (
        "write panic_on_oops --u32 0",
        "write 0xffff888000001000 --hex 90909090",
        "write --pid 1 0x7ffe0000 --text hello",
    )

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("address", metavar="ADDRESS", help="where to start: a number, SYMBOL or SYMBOL+OFFSET")
        value = parser.add_mutually_exclusive_group(required=True)
        for bits in (8, 16, 32, 64):
            value.add_argument(f"--u{bits}", metavar="VALUE", type=parse_integer, help=f"an integer of {bits} bits")
        value.add_argument("--hex", metavar="BYTES", help="bytes in hexadecimal digits")
        value.add_argument("--text", metavar="STRING", help="the bytes of a string and a NUL")
        parser.add_argument("--pid", metavar="PID", type=int, help="in the address space of this process")

    def run(self, session: Session, args: Any) -> Table:
        data = parse_data(args, session.kernel.arch.byteorder)
        address = evaluate_address(session, args.address)
        check_range(address, len(data))
        space = address_space(session, args.pid)
        old = space.read(address, len(data))
        write_memory(session.kernel, space, address, data)
        note = "the image file is unchanged; this lasts until the image is closed"
        return Table(COLUMNS, [(address, len(data), old.hex(), data.hex())], single=True, notes=[note])


def parse_integer(text: str) -> int:
    """Return a number, which may be negative. Raises ArgumentTypeError."""
    return -parse_number(text[1:]) if text.startswith("-") else parse_number(text)


def parse_data(args: Any, byteorder: str) -> bytes:
    """Return the bytes that the options describe. Raises CommandError."""
    for bits in (8, 16, 32, 64):
        value = getattr(args, f"u{bits}")
        if value is not None:
            if not -(1 << (bits - 1)) <= value < 1 << bits:
                raise CommandError(f"{value:#x} does not fit into {bits} bits")
            number: int = value & ((1 << bits) - 1)
            return number.to_bytes(bits // 8, "big" if byteorder == "big" else "little")
    if args.text is not None:
        data: bytes = args.text.encode("utf-8", "surrogateescape") + b"\0"
    else:
        try:
            data = bytes.fromhex(args.hex)
        except ValueError:
            raise CommandError(f"--hex {args.hex!r}: not pairs of hexadecimal digits") from None
    if not 0 < len(data) <= LIMIT:
        raise CommandError(f"between 1 and {LIMIT} bytes can be written at a time, not {len(data)}")
    return data
