"""Credentials: struct cred and its supplementary groups.

Source: include/linux/cred.h. ps(1) and /proc/PID/status show `task->real_cred`. The numbers are those of the initial
user namespace.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.layout import Layout, Names, read_number, remembered

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

NGROUPS_MAX = 65536  # include/uapi/linux/limits.h

MEMBERS: dict[str, Names] = {name: f"{name}.val" for name in ("uid", "gid", "suid", "sgid", "euid", "egid")}
MEMBERS["group_info"] = "group_info"


class Credentials(NamedTuple):
    """Who a process acts as: effective, real and saved."""

    uid: int
    ruid: int
    svuid: int
    gid: int
    rgid: int
    svgid: int
    groups: tuple[int, ...]


class CredentialReader:
    """Reads struct cred, each once: most processes share a few."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._layout = remembered(kernel, _make_layout)
        types = kernel.types
        self._ngroups = types.offset_of("struct group_info", "ngroups")
        self._gid = types.offset_of("struct group_info", "gid")
        self._known: dict[int, Credentials] = {}
        self._groups: dict[int, tuple[int, ...]] = {0: ()}

    def forget(self) -> None:
        """Forget what was read: memory changes."""
        self._known = {}
        self._groups = {0: ()}

    def read(self, address: int) -> Credentials:
        """Return the credentials at `address`. Raises ReadError, CorruptError."""
        found = self._known.get(address)
        if found is None:
            found = self._known[address] = self._read(address)
        return found

    def _read(self, address: int) -> Credentials:
        cred = self._layout.read(self._kernel, address)
        groups = self._read_groups(cred["group_info"])
        return Credentials(cred["euid"], cred["uid"], cred["suid"], cred["egid"], cred["gid"], cred["sgid"], groups)

    def _read_groups(self, address: int) -> tuple[int, ...]:
        found = self._groups.get(address)
        if found is None:
            count = read_number(self._kernel, address + self._ngroups, 4)
            if count > NGROUPS_MAX:
                raise CorruptError(address, f"a process has {count} supplementary groups, more than {NGROUPS_MAX}")
            order = "<" if self._layout.byteorder == "little" else ">"
            data = self._kernel.read(address + self._gid, 4 * count) if count else b""
            found = struct.unpack(f"{order}{count}I", data)
            self._groups[address] = found
        return found


def _make_layout(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct cred", MEMBERS, kernel.arch.byteorder)
