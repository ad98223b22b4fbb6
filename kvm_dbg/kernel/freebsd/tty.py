"""Terminals of sessions.

Sources: sys/sys/proc.h (struct session, struct pgrp), sys/sys/tty.h (t_dev, t_pgrp), sys/sys/conf.h and
sys/fs/devfs/devfs_int.h (struct cdev_priv begins with its struct cdev, whose si_name is the name in /dev; its number is
cdp_inode, dev2udev() in sys/kern/kern_conf.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.kernel.layout import Layout, decode_text, read_number, remembered

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

NAME_LIMIT = 256  # bytes; SPECNAMELEN is 255


class Terminal(NamedTuple):
    """A controlling terminal: its device number, its name in /dev, and its foreground process group."""

    device: int
    name: str
    pgid: int | None


class Device(NamedTuple):
    """A character device: its number, and its name in /dev."""

    number: int
    name: str


def _make_device(kernel: Kernel) -> Layout:
    members = {"name": "cdp_c.si_name", "number": "cdp_inode"}
    return Layout(kernel.types, "struct cdev_priv", members, kernel.arch.byteorder)


def read_device(kernel: Kernel, address: int) -> Device:
    """Return the device whose struct cdev is at `address`. Raises ReadError, TypeNotFound, MemberNotFound."""
    cdev = remembered(kernel, _make_device).read(kernel, address)
    if "name" in cdev.numbers:  # a pointer before 9
        return Device(cdev["number"], decode_text(read_string(kernel, cdev["name"], NAME_LIMIT)))
    return Device(cdev["number"], cdev.text("name"))


def split_number(number: int) -> tuple[int, int]:
    """Return (major, minor) of a device number, as sys/sys/types.h takes them out of one."""
    high = number >> 32
    return high & 0xFFFFFF00 | number >> 8 & 0xFF, (high & 0xFF) << 8 | number & 0xFFFF00FF


def _make_tty(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct tty", {"device": "t_dev", "group": "t_pgrp"}, kernel.arch.byteorder)


def read_terminal(kernel: Kernel, address: int) -> Terminal | None:
    """Return the terminal at `address`, None if its device is gone. Raises ReadError, TypeNotFound, MemberNotFound."""
    tty = remembered(kernel, _make_tty).read(kernel, address)
    if not tty["device"]:
        return None
    device = read_device(kernel, tty["device"])
    pgid = None
    if tty["group"]:
        pgid = read_number(kernel, tty["group"] + kernel.types.offset_of("struct pgrp", "pg_id"), 4, signed=True)
    return Terminal(device.number, device.name, pgid)
