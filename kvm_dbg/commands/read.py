"""read: memory as a hexadecimal dump, or into a file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from kvm_dbg.commands.address import check_range, evaluate_address, parse_number, parse_size
from kvm_dbg.commands.base import Column, Command, Table
from kvm_dbg.commands.new_file import new_file
from kvm_dbg.commands.process import address_space
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError
from kvm_dbg.image.base import PartialRead

COLUMNS = (
    Column("ADDRESS", "address"),
    Column("SIZE", "number", "bytes"),
    Column("DATA", "text", "hexadecimal digits, two for each byte; -- where the image has none"),
)
LINE = 16  # bytes in a line of text
CHUNK = 1 << 20  # bytes read at a time


class Read(Command):
    """Read memory."""

    name = "read"
    summary = "Read memory by virtual or physical address"
    columns = COLUMNS
    description = (
        "ADDRESS is a number, SYMBOL or SYMBOL+OFFSET; in the kernel's address space, in a process's with --pid, or\n"
        "physical (a number) with --phys. Bytes that the image does not have are shown as -- and make the command fail."
    )
    watchable = True
    examples = ("read linux_banner 128", "read --phys 0x1000 64 --json", "read init_task 64 --raw init_task.bin")

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("address", metavar="ADDRESS", help="where to start")
        parser.add_argument(
            "size", metavar="SIZE", type=parse_size, nargs="?", default=64, help="bytes (default 64; 4k, 1m)"
        )
        space = parser.add_mutually_exclusive_group()
        space.add_argument("--pid", metavar="PID", type=int, help="in the address space of this process")
        space.add_argument("--phys", action="store_true", help="a physical address")
        parser.add_argument("--raw", metavar="FILE", help="write the bytes into a new FILE; none may be missing")

    def run(self, session: Session, args: Any) -> Table:
        address = physical_address(args.address) if args.phys else evaluate_address(session, args.address)
        check_range(address, args.size)
        reader = session.image if args.phys else address_space(session, args.pid)
        if args.raw is not None:
            save(args.raw, reader.read, address, args.size)
            return Table(COLUMNS[:2], [(address, args.size)], single=True)
        rows = self._rows(reader.read_partial, address, args.size)
        text = (line for row_address, _, digits in rows for line in hex_lines(row_address, digits))
        return Table(COLUMNS, rows, text=text)

    def _rows(self, read: Callable[[int, int], PartialRead], address: int, size: int) -> Iterator[tuple[int, int, str]]:
        lost = 0
        first: int | None = None
        for at in range(address, address + size, CHUNK):
            part = read(at, min(CHUNK, address + size - at))
            for run in part.missing:
                lost += run.size
                first = run.start if first is None else first
            yield at, len(part.data), part.digits(at)
        if first is not None:
            raise CommandError(f"{lost} of {size} bytes are not in the image or not mapped, the first at {first:#x}")


def physical_address(text: str) -> int:
    """Return a physical address given by number. Raises CommandError."""
    try:
        return parse_number(text)
    except argparse.ArgumentTypeError as error:
        raise CommandError(f"--phys: {error}") from None


def save(path: str, read: Callable[[int, int], bytes], address: int, size: int) -> None:
    """Write memory into the new file `path`; if that fails, there is no file.

    Raises:
        FileAccessError: the file exists, or cannot be made or written.
        ReadError: some byte is missing.
    """
    with new_file(path) as file:
        for at in range(address, address + size, CHUNK):
            file.write(read(at, min(CHUNK, address + size - at)))


def hex_lines(address: int, digits: str) -> Iterator[str]:
    """Yield lines of 16 bytes: address, bytes, and the characters that they are in ASCII."""
    for at in range(0, len(digits), 2 * LINE):
        pairs = [digits[index : index + 2] for index in range(at, min(at + 2 * LINE, len(digits)), 2)]
        shown = "".join(
            "-" if pair == "--" else chr(int(pair, 16)) if 32 <= int(pair, 16) < 127 else "." for pair in pairs
        )
        left, right = " ".join(pairs[: LINE // 2]), " ".join(pairs[LINE // 2 :])
        yield f"{address + at // 2:016x}  {left:<23}  {right:<23}  |{shown}|"
