"""Names of files: up through directories and mounts, deleted ones, and directories that loop."""

from __future__ import annotations

import pytest

from kvm_dbg.errors import CorruptError
from kvm_dbg.kernel.linux.path import PathReader
from tests.writers.linux import World


class Files(World):
    """A root file system with a second one mounted on /mnt."""

    def __init__(self) -> None:
        super().__init__()
        self.struct("struct list_head", next="ptr", prev="ptr")
        self.struct("struct qstr", hash="u32", len="u32", name="ptr")
        self.struct("struct hlist_bl_node", next="ptr", pprev="ptr")
        self.struct(
            "struct dentry", d_hash="struct hlist_bl_node", d_parent="ptr", d_name="struct qstr", d_inode="ptr",
            d_op="ptr", d_sb="ptr", d_fsdata="ptr",
        )  # fmt: skip
        self.struct("struct vfsmount", mnt_root="ptr", mnt_sb="ptr")
        self.struct("struct mount", mnt_parent="ptr", mnt_mountpoint="ptr", mnt="struct vfsmount")
        self.struct("struct inode", i_mode="u16", i_sb="ptr", i_ino="u64", i_private="ptr")
        self.struct("struct dentry_operations", d_revalidate="ptr", d_dname="ptr")
        self.struct("struct super_block", s_type="ptr")
        self.struct("struct file_system_type", name="ptr")
        self.struct("struct ns_common", ops="ptr")
        self.struct("struct proc_ns_operations", name="ptr")
        self.root = self.dentry(b"/", 0)
        self.top = self.mount(self.root, 0, 0)
        self.mounted = self.dentry(b"/", 0)
        self.point = self.dentry(b"mnt", self.root)
        self.second = self.mount(self.mounted, self.top, self.point)
        self.allocate(4096)

    def dentry(self, name: bytes, parent: int, *, hashed: bool = True, **values: int) -> int:
        at = self.place("struct dentry")
        fields = {
            "d_parent": parent or at,
            "d_name.name": self.string(name),
            "d_name.len": len(name),
            "d_hash.pprev": int(hashed),
            **values,
        }
        for path, value in fields.items():
            self.put(at, "struct dentry", path, value)
        return at

    def mount(self, root: int, parent: int, point: int) -> int:
        at = self.place("struct mount", mnt__mnt_root=root, mnt_mountpoint=point)
        self.put(at, "struct mount", "mnt_parent", parent or at)
        return at

    def path(self, mount: int, dentry: int) -> str:
        return PathReader(self).path(mount + self.types.offset_of("struct mount", "mnt"), dentry)

    def pseudo(self, system: bytes, name: bytes, inode: int = 0, private: int = 0) -> str:
        kind = self.place("struct file_system_type", name=self.string(system))
        operations = self.place("struct dentry_operations", d_dname=0xFFFFFFFF81000000)
        node = self.place("struct inode", i_ino=inode, i_private=private)
        sb = self.place("struct super_block", s_type=kind)
        return self.path(self.top, self.dentry(name, 0, d_op=operations, d_sb=sb, d_inode=node))


@pytest.fixture
def files() -> Files:
    return Files()


def test_paths(files: Files) -> None:
    directory = files.dentry(b"etc", files.root)
    assert files.path(files.top, files.root) == "/"
    assert files.path(files.top, directory) == "/etc"
    assert files.path(files.top, files.dentry(b"caf\xc3\xa9 \xff", directory)) == "/etc/café \\xff"


def test_paths_through_a_mount(files: Files) -> None:
    assert files.path(files.second, files.mounted) == "/mnt"
    assert files.path(files.second, files.dentry(b"file", files.mounted)) == "/mnt/file"


def test_deleted(files: Files) -> None:
    assert files.path(files.top, files.dentry(b"gone", files.root, hashed=False)) == "/gone (deleted)"


@pytest.mark.parametrize(
    ("system", "name", "shown"),
    [
        (b"pipefs", b"", "pipe:[77]"),
        (b"sockfs", b"", "socket:[77]"),
        (b"anon_inodefs", b"[eventfd]", "anon_inode:[eventfd]"),
        (b"pidfs", b"", "anon_inode:[pidfd]"),
        (b"tmpfs", b"memfd:x", "/memfd:x (deleted)"),
    ],
)
def test_file_systems_without_paths(files: Files, system: bytes, name: bytes, shown: str) -> None:
    assert files.pseudo(system, name, 77) == shown


def test_namespaces(files: Files) -> None:
    operations = files.place("struct proc_ns_operations", name=files.string(b"mnt"))
    assert files.pseudo(b"nsfs", b"", 4026531841, files.place("struct ns_common", ops=operations)) == "mnt:[4026531841]"


def test_directories_that_loop(files: Files) -> None:
    first = files.dentry(b"a", files.root)
    second = files.dentry(b"b", first)
    files.put(first, "struct dentry", "d_parent", second)
    with pytest.raises(CorruptError, match="directories"):
        files.path(files.top, second)


def test_mounts_that_loop(files: Files) -> None:
    other = files.mount(files.point, files.second, files.mounted)
    files.put(files.second, "struct mount", "mnt_parent", other)
    with pytest.raises(CorruptError):
        files.path(files.second, files.mounted)


def test_a_name_that_cannot_be(files: Files) -> None:
    odd = files.dentry(b"x", files.root)
    files.put(odd, "struct dentry", "d_name.len", 1 << 30)
    with pytest.raises(CorruptError, match="name"):
        files.path(files.top, odd)
