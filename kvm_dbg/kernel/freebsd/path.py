"""Vnodes: what kind of file each is, and its path as far as the name cache knows it.

Sources: sys/sys/vnode.h (enum vtype; v_type became a bit-field with 13, and an enum of one byte with 14; VV_ROOT), sys/
kern/vfs_cache.c (struct namecache; vn_fullpath(): v_cache_dst has the names of a vnode, those for ".." apart, nc_dvp is
the directory; before 12, entries with times, NCF_TS, had their name elsewhere), sys/sys/mount.h (f_mntonname: where a
file system is mounted), sys/ufs/ufs/inode.h, sys/fs/devfs/devfs.h, sys/fs/tmpfs/tmpfs.h, zfs's sys/zfs_znode.h (what
v_data leads to, by the file system's name).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg.errors import KvmDbgError, ReadError
from kvm_dbg.kernel.bsd.queue import for_each_entry
from kvm_dbg.kernel.freebsd.proc import MISSING
from kvm_dbg.kernel.freebsd.tty import read_device, split_number
from kvm_dbg.kernel.layout import Layout, Names, Record, decode_text

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

KINDS = {1: "reg", 2: "dir", 3: "blk", 4: "chr", 5: "lnk", 6: "sock", 7: "fifo"}  # enum vtype
FORMATS = {"reg": 0o100000, "dir": 0o40000, "blk": 0o60000, "chr": 0o20000, "lnk": 0o120000, "sock": 0o140000}
FORMATS |= {"fifo": 0o10000}  # S_IFMT, sys/sys/stat.h
PERMISSIONS = 0o7777
VV_ROOT = 0x1
NCF_ISDOTDOT, NCF_TS = 0x02, 0x04
MAX_DEPTH = 1024  # PATH_MAX
MAX_NAMES = 1 << 16  # of one vnode

VNODE: dict[str, Names] = {
    "type": "v_type",
    "data": "v_data",
    "mount": "v_mount",
    "device": ("v_rdev", "v_un.vu_cdev", None),
    "names": "v_cache_dst",
    "flags": "v_vflag",
}
NAME: dict[str, Names] = {
    "link": "nc_dst",
    "parent": "nc_dvp",
    "flag": "nc_flag",
    "length": "nc_nlen",
    "name": "nc_name",
}
MOUNT: dict[str, Names] = {"kind": "mnt_stat.f_fstypename", "place": "mnt_stat.f_mntonname"}
NODES: dict[str, tuple[str, dict[str, Names]]] = {  # by file system
    "ufs": ("struct inode", {"inode": "i_number", "mode": "i_mode", "size": "i_size"}),
    "devfs": ("struct devfs_dirent", {"inode": "de_inode", "mode": "de_mode"}),
    "tmpfs": ("struct tmpfs_node", {"inode": "tn_id", "mode": "tn_mode", "size": "tn_size"}),
    "zfs": ("struct znode", {"inode": "z_id", "mode": "z_mode", "size": "z_size"}),
}


class Node(NamedTuple):
    """What a file system keeps of a file; None where that is not known. mode: st_mode. size: bytes."""

    inode: int | None = None
    mode: int | None = None
    size: int | None = None


class VnodeReader:
    """Reads vnodes of one kernel. Raises TypeNotFound, MemberNotFound if it has no types of them."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._vnode = Layout(kernel.types, "struct vnode", VNODE, kernel.arch.byteorder)
        self._name = self._layout("struct namecache", NAME)
        self._old_name = self._layout("struct namecache_ts", {"name": "nc_name"})
        self._mount = self._layout("struct mount", MOUNT)
        self._paths: dict[int, str | None] = {}  # of vnodes that were asked for: files are open many times
        self._nodes = {system: self._layout(*node) for system, node in NODES.items()}

    def _layout(self, name: str, members: dict[str, Names]) -> Layout | None:
        try:
            return Layout(self._kernel.types, name, members, self._kernel.arch.byteorder)
        except KvmDbgError:
            return None  # the cells that it would fill stay empty

    def read(self, address: int) -> Record:
        """Return a vnode. Raises ReadError."""
        return self._vnode.read(self._kernel, address)

    def kind(self, vnode: Record) -> str:
        """Return "reg", "dir", "chr", ..., "?" for what is none. Raises ReadError."""
        number = vnode.numbers.get("type")
        return KINDS.get(vnode.bytes("type")[0] if number is None else number, "?")

    def node(self, vnode: Record) -> Node:
        """Return what the file system keeps of a file. Raises ReadError."""
        layout = self._nodes.get(self._mounted(vnode)[0])
        if layout is None or not vnode["data"]:
            return Node()
        found = layout.read(self._kernel, vnode["data"])
        mode = found["mode"] & PERMISSIONS | FORMATS.get(self.kind(vnode), 0)
        return Node(found["inode"], mode, found.numbers.get("size"))

    def mounted_on(self, vnode: Record) -> str | None:
        """Return where the file system of a file is mounted, None if that is not known. Raises ReadError."""
        return self._mounted(vnode)[1] or None

    def device(self, vnode: Record) -> tuple[int, int] | None:
        """Return the numbers of a special file, None of other files. Raises ReadError, TypeNotFound, MemberNotFound."""
        if self.kind(vnode) not in ("chr", "blk") or not vnode.numbers.get("device"):
            return None
        return split_number(read_device(self._kernel, vnode["device"]).number)

    def _mounted(self, vnode: Record) -> tuple[str, str]:
        """Return the kind of a vnode's file system and where it is mounted. Raises ReadError."""
        if self._mount is None or not vnode["mount"]:
            return "", ""
        mount = self._mount.read(self._kernel, vnode["mount"])
        return mount.text("kind"), mount.text("place")

    def path(self, vnode: Record) -> str | None:
        """Return a file's path, None if the name cache does not know it.

        Raises:
            ReadError, CorruptError: it cannot be read.
        """
        if vnode.address not in self._paths:
            self._paths[vnode.address] = self._find_path(vnode)
        return self._paths[vnode.address]

    def _find_path(self, vnode: Record) -> str | None:
        kind, place = self._mounted(vnode)
        if kind == "devfs" and vnode.numbers.get("device"):
            return f"{place}/{read_device(self._kernel, vnode['device']).name}"
        parts: list[str] = []
        for _ in range(MAX_DEPTH):
            if vnode["flags"] & VV_ROOT:
                place = self._mounted(vnode)[1]
                return (place.rstrip("/") + "/" + "/".join(reversed(parts))).rstrip("/") or "/" if place else None
            found = self._find_name(vnode)
            if found is None:
                return None
            text, parent = found
            parts.append(text)
            vnode = self.read(parent)
        return None

    def _find_name(self, vnode: Record) -> tuple[str, int] | None:
        """Return a name of a vnode and its directory, None if the cache has none. Raises ReadError, CorruptError."""
        if self._name is None:
            return None
        head, offset = vnode.at("names"), self._name.offsets["link"]
        for address in for_each_entry(self._kernel, head, offset, "names of a file", MAX_NAMES):
            name = self._name.read(self._kernel, address)
            if name["flag"] & NCF_ISDOTDOT or not name["parent"]:
                continue
            layout = self._old_name if name["flag"] & NCF_TS and self._old_name is not None else self._name
            place = address + layout.offsets["name"]
            return decode_text(self._kernel.read(place, name["length"])), name["parent"]
        return None


def find_path(reader: VnodeReader, vnode: Record) -> tuple[str | None, bool]:
    """Return a file's path, None if it is not known, and whether that is for memory that is not in the image."""
    try:
        return reader.path(vnode), False
    except ReadError:
        return None, True
    except MISSING:
        return None, False
