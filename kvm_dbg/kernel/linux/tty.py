"""Terminals: the controlling terminal of a session.

Sources: include/linux/tty.h, tty_driver.h; fs/proc/array.c do_task_stat() (tty_nr is new_encode_dev() of the device
number, include/linux/kdev_t.h); drivers/tty/tty_io.c tty_line_name() and pty.c (a Unix98 slave is "pts/N" in /dev,
its driver's subtype PTY_TYPE_SLAVE). The foreground process group moved from `pgrp` to `ctrl.pgrp` in v5.14
(commit 64d608db38ff).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.kernel.layout import Layout, Names, decode_text, remembered

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel
    from kvm_dbg.kernel.linux.pid import PidReader

TTY_DRIVER_TYPE_PTY = 4
PTY_TYPE_SLAVE = 2
TTY_DRIVER_UNNUMBERED_NODE = 0x80

TTY: dict[str, Names] = {"driver": "driver", "index": "index", "pgrp": ("ctrl.pgrp", "pgrp")}
DRIVER: dict[str, Names] = {
    name: name for name in ("name", "name_base", "major", "minor_start", "type", "subtype", "flags")
}


class Terminal(NamedTuple):
    """A terminal: its name without /dev, its device number as user space encodes it, its foreground group."""

    name: str
    device: int
    pgid: int


class TerminalReader:
    """Reads struct tty_struct, each once."""

    def __init__(self, kernel: Kernel, pids: PidReader) -> None:
        self._kernel = kernel
        self._pids = pids
        self._tty = remembered(kernel, _make_tty)
        self._driver = remembered(kernel, _make_driver)
        self._known: dict[int, Terminal] = {}

    def forget(self) -> None:
        """Forget what was read: memory changes."""
        self._known = {}

    def read(self, address: int) -> Terminal:
        """Return the terminal at `address`. Raises ReadError."""
        found = self._known.get(address)
        if found is None:
            found = self._known[address] = self._read(address)
        return found

    def _read(self, address: int) -> Terminal:
        tty = self._tty.read(self._kernel, address)
        driver = self._driver.read(self._kernel, tty["driver"])
        name = decode_text(read_string(self._kernel, driver["name"], 64))
        index = tty["index"]
        if driver["type"] == TTY_DRIVER_TYPE_PTY and driver["subtype"] == PTY_TYPE_SLAVE and name == "pts":
            name = f"pts/{index}"
        elif not driver["flags"] & TTY_DRIVER_UNNUMBERED_NODE:
            name = f"{name}{index + driver['name_base']}"
        minor = driver["minor_start"] + index
        return Terminal(name, encode_device(driver["major"], minor), self._pids.number(tty["pgrp"]))


def encode_device(major: int, minor: int) -> int:
    """Return the dev_t that user space sees: new_encode_dev() of include/linux/kdev_t.h.

    A minor number of more than 20 bits carries into the major one, as in the kernel's own MKDEV() + index.
    """
    major += minor >> 20
    minor &= 0xFFFFF
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def _make_tty(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct tty_struct", TTY, kernel.arch.byteorder)


def _make_driver(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct tty_driver", DRIVER, kernel.arch.byteorder)
