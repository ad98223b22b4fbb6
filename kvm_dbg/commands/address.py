"""Addresses and sizes as people type them, for every command that takes one."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError

from kvm_dbg.commands.session import Session
from kvm_dbg.errors import CommandError
from kvm_dbg.kernel.base import AddressSpaceReader, Process

EXPRESSION = re.compile(r"^(?P<name>[A-Za-z_.$][\w.$]*)(?:(?P<sign>[+-])(?P<offset>0[xX][0-9a-fA-F]+|\d+))?$")
UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_number(text: str) -> int:
    """Return a decimal number, or a hexadecimal one with 0x. Raises argparse's ArgumentTypeError."""
    try:
        return int(text, 0)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a number") from None


def parse_size(text: str) -> int:
    """Return a size in bytes: a number, perhaps with k, m, g or t for powers of 1024."""
    unit = UNITS.get(text[-1:].lower())
    size = parse_number(text[:-1] if unit else text) * (unit or 1)
    if size < 0:
        raise ArgumentTypeError(f"{text!r} is negative")
    return size


def parse_hole(text: str) -> tuple[int, int]:
    """Return (start, end) of START-END, physical addresses of a hole in raw RAM."""
    start, dash, end = text.partition("-")
    if not dash or parse_number(start) >= parse_number(end):
        raise ArgumentTypeError(f"{text!r} is not START-END")
    return parse_number(start), parse_number(end)


def evaluate_address(session: Session, text: str) -> int:
    """Return the address named: 0x..., decimal, 16 bare hex digits as the log prints them, SYMBOL[+OFFSET].

    Raises:
        CommandError: none of these.
        SymbolNotFound: no such symbol.
    """
    try:
        return int(text, 0)
    except ValueError:
        pass
    if re.fullmatch(r"[0-9a-fA-F]{16}", text):
        return int(text, 16)
    match = EXPRESSION.match(text)
    if match is None:
        raise CommandError(f"{text!r} is neither an address nor SYMBOL[+OFFSET]")
    address = session.kernel.symbols.address(match["name"])
    offset = int(match["offset"] or "0", 0)
    return address - offset if match["sign"] == "-" else address + offset


def find_process(session: Session, pid: int) -> Process:
    """Return the process `pid`. Raises CommandError if there is none."""
    for process in session.system.for_each_process(session.kernel):
        if process.pid == pid:
            return process
    raise CommandError(f"no process with PID {pid} in this image")


def address_space(session: Session, pid: int | None) -> AddressSpaceReader:
    """Return the address space of process `pid`, or the kernel's own for None."""
    if pid is None:
        return session.system.kernel_space(session.kernel)
    return session.system.address_space(session.kernel, find_process(session, pid).address)
