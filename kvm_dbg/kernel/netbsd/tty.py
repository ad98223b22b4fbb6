"""Terminals of sessions.

Sources: sys/sys/tty.h, sys/sys/proc.h (struct session, struct pgrp), sys/sys/types.h (major and minor in a dev_t),
sys/kern/subr_devsw.c (`cdevsw` leads to an array of pointers to struct cdevsw, by character major; a driver's own one
is called NAME_cdevsw), etc/MAKEDEV.tmpl (names of devices: com's unit 0 is tty00, pts' pts/0, wsdisplay's ttyE0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.errors import ReadError, SymbolNotFound
from kvm_dbg.kernel.layout import Layout, read_number, read_pointer

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

NODEV = 0xFFFFFFFF
CONSOLE = "cons"
SUFFIX = "_cdevsw"
FORMATS = {"com": "tty{:02}", "pts": "pts/{}", "wsdisplay": "ttyE{}", "pty": "ttyp{:x}", "ptsp": "ttyp{:x}"}


class Terminal(NamedTuple):
    """A controlling terminal: its device number, its name as far as one can be made up, and its foreground group."""

    device: int
    name: str
    pgid: int | None


def major(device: int) -> int:
    """Return the major number of a dev_t."""
    return device >> 8 & 0xFFF


def minor(device: int) -> int:
    """Return the minor number of a dev_t."""
    return device >> 12 & 0xFFF00 | device & 0xFF


class TerminalReader:
    """Reads terminals of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        types, order = kernel.types, kernel.arch.byteorder
        self._tty = Layout(types, "struct tty", {"dev": "t_dev", "pgrp": "t_pgrp"}, order)
        self._group = types.offset_of("struct pgrp", "pg_id")

    def read(self, address: int) -> Terminal | None:
        """Return the terminal at `address`, None if its device is gone. Raises ReadError."""
        tty = self._tty.read(self._kernel, address)
        device = tty["dev"] & 0xFFFFFFFF
        if device == NODEV:
            return None
        pgid = read_number(self._kernel, tty["pgrp"] + self._group, 4, signed=True) if tty["pgrp"] else None
        return Terminal(device, device_name(self._kernel, device), pgid)


def device_name(kernel: Kernel, device: int) -> str:
    """Return the name that a terminal's device has in /dev, or "MAJOR,MINOR" where that cannot be told."""
    driver = _find_driver(kernel, major(device))
    if driver == CONSOLE and not minor(device):
        return "console"
    form = FORMATS.get(driver)
    return form.format(minor(device)) if form is not None else f"{major(device)},{minor(device)}"


def _find_driver(kernel: Kernel, number: int) -> str:
    """Return the name of the driver with a character major, "" if it is not known."""
    try:
        table = read_pointer(kernel, kernel.symbols.address("cdevsw"))
        if number >= read_number(kernel, kernel.symbols.address("max_cdevsws"), 4):
            return ""
        place = read_pointer(kernel, table + number * kernel.arch.pointer_size)
    except (SymbolNotFound, ReadError):
        return ""
    symbol = kernel.symbols.find_at(place)
    if symbol is None or symbol.address != place or not symbol.name.endswith(SUFFIX):
        return ""
    return symbol.name.removesuffix(SUFFIX)
