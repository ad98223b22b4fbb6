"""Names of files as readlink(2) of /proc/PID/fd/N returns them.

Sources: fs/d_path.c (d_path(), prepend_path(): a path is followed up through dentries and mounts, a file that has no
name any more gets " (deleted)"), include/linux/dcache.h, fs/mount.h; and the d_dname() of the file systems without
paths: fs/pipe.c, net/socket.c, fs/anon_inodes.c, fs/nsfs.c, fs/pidfs.c, drivers/dma-buf/dma-buf.c, and simple_dname()
for all others (memfd, System V shared memory, ...). Which one it is, is told by the name of the file system's type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.layout import Layout, Names, Record, decode_text, read_pointer, remembered

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel

DEPTH_LIMIT = 4096  # directories or mounts on the way up; PATH_MAX has room for half as many
MAX_ERRNO = 4095  # include/linux/err.h
NAME_LIMIT = 4096  # bytes of one name; NAME_MAX is 255, pseudo file systems may have longer ones

DENTRY: dict[str, Names] = {
    "parent": "d_parent",
    "name": "d_name.name",
    "length": "d_name.len",
    "inode": "d_inode",
    "ops": "d_op",
    "sb": "d_sb",
    "fsdata": "d_fsdata",
    "hashed": "d_hash.pprev",
}
MOUNT: dict[str, Names] = {
    "parent": "mnt_parent",
    "mountpoint": "mnt_mountpoint",
    "root": "mnt.mnt_root",
    "mnt": "mnt",
    "ns": ("mnt_ns", None),
}
INODE: dict[str, Names] = {
    "ino": "i_ino",
    "mode": "i_mode",
    "sb": "i_sb",
    "private": "i_private",
    "size": ("i_size", None),
    "rdev": ("i_rdev", None),
}


class PathReader:
    """Names files; what they share (directories, mounts, file systems) is read once."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        types = kernel.types
        self._dentry = remembered(kernel, _make_dentry)
        self._mount = remembered(kernel, _make_mount)
        self._inode = remembered(kernel, _make_inode)
        self._dname = types.offset_of("struct dentry_operations", "d_dname")
        self._type = types.offset_of("struct super_block", "s_type")
        self._type_name = types.offset_of("struct file_system_type", "name")
        self._dentries: dict[int, Record] = {}
        self._mounts: dict[int, Record] = {}
        self._mount_points: dict[int, str | None] = {}
        self._has_dname: dict[int, bool] = {0: False}
        self._systems: dict[int, str] = {}

    def path(self, vfsmount: int, dentry: int) -> str:
        """Return the name of the file at a struct path's two pointers. Raises ReadError, CorruptError."""
        found = self._read_dentry(dentry)
        mount = self._read_mount(vfsmount)
        if self._names_itself(found["ops"]) and not (found["parent"] == dentry == mount["root"]):
            return self._own_name(found)
        deleted = " (deleted)" if not found["hashed"] and found["parent"] != dentry else ""
        return decode_text(self._join(found, mount)) + deleted

    def inode(self, address: int) -> Record:
        """Return ino, mode, sb, private, size and rdev of the inode at `address`. Raises ReadError."""
        return self._inode.read(self._kernel, address)

    def inode_of(self, dentry: int) -> int:
        """Return the address of a directory entry's inode. Raises ReadError."""
        return self._read_dentry(dentry)["inode"]

    def mount_point(self, vfsmount: int) -> str | None:
        """Return where a file system is mounted; None if it is not, or for the kernel's own use. Raises as `path`.

        What is in no namespace has no mnt_ns, or (fs/mount.h, MNT_NS_INTERNAL) an error number there.
        """
        if vfsmount not in self._mount_points:
            mount = self._read_mount(vfsmount)
            word = self._kernel.arch.pointer_size
            mounted = 0 < mount.get("ns") < (1 << 8 * word) - MAX_ERRNO
            path = decode_text(self._join(self._read_dentry(mount["root"]), mount)) if mounted else None
            self._mount_points[vfsmount] = path
        return self._mount_points[vfsmount]

    def file_system(self, sb: int) -> str:
        """Return the type of the file system whose super_block is at `sb` ("ext4"). Raises ReadError."""
        found = self._systems.get(sb)
        if found is None:
            kernel = self._kernel
            name = read_pointer(kernel, read_pointer(kernel, sb + self._type) + self._type_name)
            found = self._systems[sb] = decode_text(read_string(kernel, name, 64))
        return found

    def _join(self, dentry: Record, mount: Record) -> bytes:
        """Return the path up to the topmost mount."""
        parts: list[bytes] = []
        for _ in range(DEPTH_LIMIT):
            if dentry.address == mount["root"]:
                parent = mount["parent"]
                if parent == mount.address:
                    break
                dentry = self._read_dentry(mount["mountpoint"])
                mount = self._read_mount(parent + mount.layout.offsets["mnt"])
                continue
            if dentry["parent"] == dentry.address:  # outside of its mount: a lazily unmounted one
                break
            parts.append(self._name(dentry))
            dentry = self._read_dentry(dentry["parent"])
        else:
            raise CorruptError(dentry.address, f"a path has more than {DEPTH_LIMIT} directories")
        return b"/" + b"/".join(reversed(parts))

    def _own_name(self, dentry: Record) -> str:
        """Return the name that a file system without paths makes up."""
        system = self.file_system(dentry["sb"])
        name = decode_text(self._name(dentry))
        if system in ("pipefs", "sockfs"):
            kind = "pipe" if system == "pipefs" else "socket"
            return f"{kind}:[{self.inode(dentry['inode'])['ino']}]"
        if system == "anon_inodefs":
            return f"anon_inode:{name}"
        if system == "pidfs":
            return "anon_inode:[pidfd]"
        if system == "nsfs":
            return f"{self._namespace_name(dentry)}:[{self.inode(dentry['inode'])['ino']}]"
        if system == "dmabuf":
            return f"/{name}:{self._buffer_name(dentry['fsdata'])}"
        return f"/{name} (deleted)"

    def _namespace_name(self, dentry: Record) -> str:
        """Return "mnt", "pid", ...: the name in the operations of the inode's ns_common."""
        kernel, types = self._kernel, self._kernel.types
        namespace = self.inode(dentry["inode"])["private"]
        operations = read_pointer(kernel, namespace + types.offset_of("struct ns_common", "ops"))
        name = read_pointer(kernel, operations + types.offset_of("struct proc_ns_operations", "name"))
        return decode_text(read_string(kernel, name, 64))

    def _buffer_name(self, address: int) -> str:
        member = self._kernel.types.struct("struct dma_buf").find_member("name") if address else None
        name = read_pointer(self._kernel, address + member.offset) if member is not None else 0
        return decode_text(read_string(self._kernel, name, 64)) if name else ""

    def _names_itself(self, operations: int) -> bool:
        found = self._has_dname.get(operations)
        if found is None:
            found = self._has_dname[operations] = bool(read_pointer(self._kernel, operations + self._dname))
        return found

    def _name(self, dentry: Record) -> bytes:
        length = dentry["length"]
        if length > NAME_LIMIT:
            raise CorruptError(dentry.address, f"a file's name has {length} bytes")
        return self._kernel.read(dentry["name"], length)

    def _read_dentry(self, address: int) -> Record:
        found = self._dentries.get(address)
        if found is None:
            found = self._dentries[address] = self._dentry.read(self._kernel, address)
        return found

    def _read_mount(self, vfsmount: int) -> Record:
        found = self._mounts.get(vfsmount)
        if found is None:
            address = vfsmount - self._mount.offsets["mnt"]
            found = self._mounts[vfsmount] = self._mount.read(self._kernel, address)
        return found


def _make_dentry(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct dentry", DENTRY, kernel.arch.byteorder)


def _make_mount(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct mount", MOUNT, kernel.arch.byteorder)


def _make_inode(kernel: Kernel) -> Layout:
    return Layout(kernel.types, "struct inode", INODE, kernel.arch.byteorder)
