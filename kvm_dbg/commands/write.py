"""write: change memory, a dump's in the session's private copy, take changes back, keep them in a file."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Any

from kvm_dbg.commands.address import check_range, evaluate_address, parse_number
from kvm_dbg.commands.base import Cell, Column, Command, Table
from kvm_dbg.commands.new_file import new_file
from kvm_dbg.commands.process import address_space
from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError, ConfirmationError, UsageError
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.image.patch import make_patch
from kvm_dbg.image.through import WriteThroughImage
from kvm_dbg.image.writable import Change, WritableImage
from kvm_dbg.kernel.write import describe_place, undo_write, write_memory

COLUMNS = (
    Column("TIME", "text", "when it was written, UTC"),
    Column("ADDRESS", "address"),
    Column("SYMBOL", "text", "the symbol there, and how far behind it"),
    Column("SIZE", "number", "bytes"),
    Column("OLD", "text", 'the bytes before, in hexadecimal digits; "--" for each that the image does not hold'),
    Column("NEW", "text", "the bytes now, in hexadecimal digits"),
)
ALLOWED = (Column("IMAGE", "list"), Column("ALLOWED", "bool", "it may be written to"))
NOT_ASKED = "nobody can be asked here"
SAVED = (Column("FILE"), Column("SIZE", "number", "bytes that are changed"))
LIMIT = 1 << 20  # bytes
SIZES = (1, 2, 4, 8)  # bytes of a variable that a plain number can be for


class Write(Command):
    """Write memory, copy-on-write or live."""

    name = "write"
    summary = "Write memory: in a private copy of a dump, or in a kernel that runs"
    columns = COLUMNS
    description = (
        "A plain VALUE is a number, for a variable whose size the symbol tells, or --size.\n"
        "A dump's file never changes: writes go into a private copy, which lasts until the image is closed, and is\n"
        "seen by every later command and by the debugger. On the command line it ends with the command: there, write\n"
        "only tells what it would replace. `--save` keeps all changes in a file, to be applied by `open --patch`.\n"
        "A kernel that runs is written to only if it was opened with --write; in a terminal, the first write asks.\n"
        "What is not mapped, or no RAM, is never written; code, and what is mapped for reading only, takes --force.\n"
        "The debugger's own writes are logged, and taken back, as well; into a kernel that runs they follow the same\n"
        "rules, and in a terminal --allow has to come first."
    )
    examples = (
        "write panic_on_oops 1",
        "write 0xffff888000001000 --hex 90909090",
        "write --pid 1 0x7ffe0000 --text hello",
        "write jiffies 0 --size 4",
        "write --log",
        "write --undo",
        "write --save changes.json",
    )

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "address", metavar="ADDRESS", nargs="?", help="where to start: a number, SYMBOL or SYMBOL+OFFSET"
        )
        parser.add_argument("value", metavar="VALUE", nargs="?", type=parse_integer, help="a number")
        value = parser.add_mutually_exclusive_group()
        for bits in (8, 16, 32, 64):
            value.add_argument(f"--u{bits}", metavar="VALUE", type=parse_integer, help=f"an integer of {bits} bits")
        value.add_argument("--hex", "--bytes", metavar="BYTES", help="bytes in hexadecimal digits")
        value.add_argument("--text", "--string", metavar="STRING", help="the bytes of a string and a NUL")
        value.add_argument("--undo", action="store_true", help="take the last change back")
        value.add_argument("--log", action="store_true", help="list the changes, oldest first")
        value.add_argument("--save", metavar="FILE", help="keep all changes in a new file, for `open --patch`")
        value.add_argument("--allow", action="store_true", help="only agree to writes into a kernel that runs")
        parser.add_argument(
            "--size", metavar="BYTES", type=int, choices=SIZES, help="of a plain VALUE's variable: 1, 2, 4 or 8"
        )
        parser.add_argument("--pid", metavar="PID", type=int, help="in the address space of this process")
        parser.add_argument(
            "--force",
            action="store_true",
            help="code and read-only memory of a kernel that runs; with --undo, even if the bytes have changed since",
        )

    def run(self, session: Session, args: Any) -> Table:
        if args.undo or args.log or args.allow or args.save is not None:
            if args.address is not None:
                raise UsageError("--undo, --log, --save and --allow are about all writes: they take no ADDRESS")
            return self._look_back(session, args)
        if args.address is None:
            raise UsageError("what to write, and where? write ADDRESS VALUE, or one of --undo --log --save")
        data = parse_data(session, args)
        address = evaluate_address(session, args.address)
        check_range(address, len(data))
        space = address_space(session, args.pid)
        try:
            change = write_memory(session.kernel, space, address, data, force=args.force)
        except ConfirmationError as error:
            session.confirm(error)
            change = write_memory(session.kernel, space, address, data, force=args.force)
        if session.image.live:
            note = "written into the running kernel itself; while it is open, `write --undo` takes it back"
        else:
            note = "the image file is unchanged; this lasts until the image is closed"
        return Table(COLUMNS, [change_row(session, change)], single=True, notes=[note])

    def _look_back(self, session: Session, args: Any) -> Table:
        image = session.image
        if args.undo:
            change = undo_write(session.kernel, force=args.force)
            *row, old, new = change_row(session, change)
            return Table(COLUMNS, [(*row, new, old)], single=True, notes=["taken back"])
        if args.allow:
            return self._allow(session)
        if args.log:
            changes = image.changes if isinstance(image, WritableImage) else ()
            return Table(COLUMNS, [change_row(session, change) for change in changes])
        if not isinstance(image, OverlayImage):
            raise CommandError("only what was written into the private copy of a file can be kept")
        if not image.written:
            raise CommandError("nothing was written that could be kept")
        kernel = session.kernel
        data = make_patch(image, getattr(kernel, "release", None), getattr(kernel, "build_id", None))
        with new_file(args.save) as file:
            file.write(data)
        return Table(SAVED, [(args.save, image.written)], single=True)

    def _allow(self, session: Session) -> Table:
        image = session.image
        if not isinstance(image, WriteThroughImage):
            raise CommandError("--allow is for a kernel that runs and was opened with --write")
        if not image.confirmed:
            session.confirm(ConfirmationError(f"Let the running kernel in {image.paths[0]} be written to?", NOT_ASKED))
        return Table(ALLOWED, [(list(image.paths), image.confirmed)], single=True)


def change_row(session: Session, change: Change) -> list[Cell]:
    """Return the row of a change."""
    old = "".join(part.old.digits(part.paddr) for part in change.parts)
    when = datetime.fromtimestamp(change.time, UTC).isoformat(timespec="milliseconds")
    name = describe_place(session.kernel, change.vaddr)
    return [when, change.vaddr, name, change.size, old, b"".join(part.new for part in change.parts).hex()]


def parse_integer(text: str) -> int:
    """Return a number, which may be negative. Raises ArgumentTypeError."""
    return -parse_number(text[1:]) if text.startswith("-") else parse_number(text)


def parse_data(session: Session, args: Any) -> bytes:
    """Return the bytes that the arguments describe. Raises CommandError, SymbolNotFound."""
    byteorder = session.kernel.arch.byteorder
    values = {bits: value for bits in (8, 16, 32, 64) if (value := getattr(args, f"u{bits}")) is not None}
    if args.value is not None:
        if values or args.text is not None or args.hex is not None:
            raise UsageError("two values were given: VALUE, and an option")
        values = {8 * (args.size or variable_size(session, args.address)): args.value}
    elif args.size is not None:
        raise UsageError("--size is of a plain VALUE's variable")
    for bits, value in values.items():
        if not -(1 << (bits - 1)) <= value < 1 << bits:
            raise CommandError(f"{value:#x} does not fit into {bits} bits")
        number: int = value & ((1 << bits) - 1)
        return number.to_bytes(bits // 8, "big" if byteorder == "big" else "little")
    if args.text is not None:
        data: bytes = args.text.encode("utf-8", "surrogateescape") + b"\0"
    elif args.hex is not None:
        try:
            data = bytes.fromhex(args.hex)
        except ValueError:
            raise CommandError(f"--hex {args.hex!r}: not pairs of hexadecimal digits") from None
    else:
        raise UsageError("write what? VALUE, or one of --u8 --u16 --u32 --u64 --hex --text")
    if not 0 < len(data) <= LIMIT:
        raise CommandError(f"between 1 and {LIMIT} bytes can be written at a time, not {len(data)}")
    return data


def variable_size(session: Session, name: str) -> int:
    """Return the size in bytes of the variable that an address names, by its symbol.

    Raises:
        CommandError: it is not the name of a variable with the size of a number.
        SymbolNotFound: no such symbol.
    """
    how = "say how many bytes with --size 1, 2, 4 or 8"
    if name[:1].isdigit() or "+" in name or "-" in name:
        raise CommandError(f"{name} is not the name of a variable: {how}")
    size = session.find_symbol(name).size
    if size not in SIZES:
        raise CommandError(f"{name} has {size} bytes: {how}" if size else f"the size of {name} is not known: {how}")
    return size
