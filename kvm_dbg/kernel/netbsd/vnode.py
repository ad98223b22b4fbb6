"""What a vnode says of a file: its kind, size, mode, device, inode number, name, and where its file system is mounted.

Sources: sys/sys/vnode.h (struct vnode, enums vtype and vtagtype; v_specnode is v_un.vu_specnode), sys/sys/mount.h and
sys/sys/statvfs.h (mnt_stat.f_mntonname), sys/ufs/ufs/inode.h (struct inode: what fstat(1) shows of a file of UFS; other
file systems' nodes are not read), sys/miscfs/specfs/specdev.h (struct specnode), sys/sys/namei.h and
sys/kern/vfs_cache.c (struct namecache: recent names, on a list that begins at `nclruhead`; since February 2020 at
`cache_lru`, one list for active ones and one for the others).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from kvm_dbg.errors import CorruptError, KvmDbgError, MemberNotFound, ReadError, TypeNotFound
from kvm_dbg.kernel.bsd.queue import for_each_entry
from kvm_dbg.kernel.layout import Layout, Names, Record, decode_text, read_pointer
from kvm_dbg.kernel.netbsd.tty import major, minor

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

VNODE_KINDS = {1: "reg", 2: "dir", 3: "blk", 4: "chr", 5: "lnk", 6: "sock", 7: "fifo"}  # enum vtype
SPECIAL = ("blk", "chr")
VT_UFS = 1  # enum vtagtype
VV_ROOT = 1  # v_vflag: the root of its file system
MAX_NAMES = 1 << 22
MAX_NAME = 1024  # bytes
MAX_DEPTH = 1024  # directories of a path: PATH_MAX has room for half as many
VNODE: dict[str, Names] = {
    "type": "v_type",
    "tag": "v_tag",
    "size": "v_size",
    "data": "v_data",
    "mount": "v_mount",
    "vflag": ("v_vflag", None),
    "special": ("v_un.vu_specnode", "v_un"),
}
INODE: dict[str, Names] = {"number": "i_number", "mode": "i_mode", "size": "i_size"}
NAME: dict[str, Names] = {
    "lru": "nc_lru",
    "directory": "nc_dvp",
    "vnode": "nc_vp",
    "length": "nc_nlen",
    "name": "nc_name",
}
MOUNT: dict[str, Names] = {"on": "mnt_stat.f_mntonname"}
SPECNODE: dict[str, Names] = {"device": "sn_rdev"}


class CachedName(NamedTuple):
    """The directory's vnode, and the name in it."""

    directory: int
    name: str


class VnodeReader:
    """Describes the files behind vnodes of one kernel; structs that have no types cost the fields that need them."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._vnode = Layout(kernel.types, "struct vnode", VNODE, kernel.arch.byteorder)
        self._inode = self._optional("struct inode", INODE)
        self._mount = self._optional("struct mount", MOUNT)
        self._specnode = self._optional("struct specnode", SPECNODE)
        self._name = self._optional("struct namecache", NAME)
        self._mounts: dict[int, str] = {}
        self._names: Mapping[int, CachedName] | None = None

    def _optional(self, name: str, members: Mapping[str, Names]) -> Layout | None:
        with suppress(TypeNotFound, MemberNotFound):
            return Layout(self._kernel.types, name, members, self._kernel.arch.byteorder)
        return None

    def describe(self, address: int) -> dict[str, Any]:
        """Return the fields of an OpenFile that the vnode at `address` knows; "unread" names what is not in the image.

        Raises:
            ReadError: nothing of the vnode can be read.
        """
        vnode = self._vnode.read(self._kernel, address)
        kind = VNODE_KINDS.get(vnode["type"], "?")
        fields: dict[str, Any] = {"kind": kind}
        unread: list[str] = []
        jobs = (
            (("inode", "mode", "size"), partial(self._read_inode, vnode, kind)),
            (("device",), partial(self._read_device, vnode, kind)),
            (("mount",), partial(self._read_mount, vnode)),
            (("path",), partial(self._read_path, vnode)),
        )
        for names, read in jobs:
            try:
                fields |= read()
            except KvmDbgError:
                unread += names
        return {**fields, "unread": tuple(unread)}

    def _read_inode(self, vnode: Record, kind: str) -> dict[str, Any]:
        size = vnode["size"] if kind in ("reg", "dir") else None
        if self._inode is None or vnode["tag"] != VT_UFS:
            return {"size": size}
        inode = self._inode.read(self._kernel, vnode["data"])
        size = None if kind in SPECIAL else inode["size"]
        return {"inode": inode["number"], "mode": inode["mode"], "size": size}

    def _read_device(self, vnode: Record, kind: str) -> dict[str, Any]:
        if kind not in SPECIAL or self._specnode is None:
            return {}
        address = read_pointer(self._kernel, vnode.at("special"))
        device = self._specnode.read(self._kernel, address)["device"]
        return {"device": (major(device), minor(device))}

    def _read_mount(self, vnode: Record) -> dict[str, Any]:
        address = vnode["mount"]
        if self._mount is None or not address:
            return {}
        if address not in self._mounts:
            self._mounts[address] = self._mount.read(self._kernel, address).text("on")
        return {"mount": self._mounts[address]}

    def _read_path(self, vnode: Record) -> dict[str, Any]:
        """Return the path if all its names are still in the cache."""
        if self._name is None or self._mount is None:
            return {}
        if self._names is None:
            self._names = _read_names(self._kernel, self._name)
        parts: list[str] = []
        for _ in range(MAX_DEPTH):
            if vnode.get("vflag") & VV_ROOT:
                root = self._read_mount(vnode).get("mount")
                return {"path": "/".join(("" if root == "/" else root or "", *reversed(parts))) or "/"}
            found = self._names.get(vnode.address)
            if found is None:
                return {}
            parts.append(found.name)
            vnode = self._vnode.read(self._kernel, found.directory)
        raise CorruptError(vnode.address, f"a path has more than {MAX_DEPTH} directories")


def _read_names(kernel: Kernel, layout: Layout) -> Mapping[int, CachedName]:
    """Return vnode -> its newest name. Raises ReadError, CorruptError, SymbolNotFound."""
    heads = [symbol.address for symbol in (kernel.symbols.find("nclruhead"),) if symbol is not None]
    if not heads:
        first = kernel.symbols.address("cache_lru")  # its first member: list[LRU_COUNT]
        heads = [first, first + 2 * kernel.arch.pointer_size]
    found: dict[int, CachedName] = {}
    for head in heads:
        for address in for_each_entry(kernel, head, layout.offsets["lru"], "names", MAX_NAMES):
            try:
                entry = layout.read(kernel, address)
                if entry["vnode"] and entry["directory"] and 0 < entry["length"] <= MAX_NAME:
                    name = kernel.read(entry.at("name"), entry["length"])  # long ones go on behind the struct's array
                    if name not in (b".", b".."):
                        found[entry["vnode"]] = CachedName(entry["directory"], decode_text(name))
            except ReadError:
                continue  # the name of one file
    return found
