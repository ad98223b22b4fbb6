"""Types, against what the running kernel says of its own layout.

Sources: kernel/vmcore_info.c (SIZE and OFFSET lines are compiled into the kernel); mm/slab.h (struct kmem_cache:
`object_size`; these caches are made for exactly the named struct). SLUB merges caches of similar objects, and a merged
one keeps the first one's name and the largest object_size (mm/slab_common.c find_mergeable(): it differs by less than
the alignment): a cache that is not found under its name says nothing, and one that is may hold a little more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.value import read_string
from kvm_dbg.kernel.check import Finding
from kvm_dbg.kernel.layout import Layout, decode_text
from kvm_dbg.kernel.linux.check_finding import compare
from kvm_dbg.kernel.linux.list import for_each_node

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel
    from kvm_dbg.symbols.vmcoreinfo import VmcoreInfo

MAX_CACHES = 1 << 14
CACHE_NAME = 64  # bytes read of a name

ALIGNMENT = 64  # bytes: SLAB_HWCACHE_ALIGN

OBJECTS = (  # cache, struct
    ("signal_cache", "struct signal_struct"),  # kernel/fork.c
    ("sighand_cache", "struct sighand_struct"),
    ("files_cache", "struct files_struct"),
    ("fs_cache", "struct fs_struct"),
    ("vm_area_struct", "struct vm_area_struct"),
    ("cred_jar", "struct cred"),  # kernel/cred.c
    ("cred", "struct cred"),
    ("dentry", "struct dentry"),  # fs/dcache.c
    ("inode_cache", "struct inode"),  # fs/inode.c
    ("filp", "struct file"),  # fs/file_table.c
    ("anon_vma", "struct anon_vma"),  # mm/rmap.c
    ("anon_vma_chain", "struct anon_vma_chain"),
    ("mnt_cache", "struct mount"),  # fs/namespace.c
    ("radix_tree_node", "struct xa_node"),  # lib/radix-tree.c
    ("maple_node", "struct maple_node"),  # lib/maple_tree.c
    ("shmem_inode_cache", "struct shmem_inode_info"),  # mm/shmem.c
    ("proc_inode_cache", "struct proc_inode"),  # fs/proc/inode.c
    ("kernfs_node_cache", "struct kernfs_node"),  # fs/kernfs/mount.c
    ("nsproxy", "struct nsproxy"),  # kernel/nsproxy.c
    ("uts_namespace", "struct uts_namespace"),
)


def check_slabs(kernel: Kernel) -> Iterator[Finding]:
    """Compare the sizes of structs with the sizes of the objects that the kernel allocates for them."""
    layout = Layout(
        kernel.types,
        "struct kmem_cache",
        {"name": "name", "object_size": "object_size", "list": "list"},
        kernel.arch.byteorder,
    )
    sizes: dict[str, int] = {}
    for node in for_each_node(kernel, kernel.symbols.address("slab_caches"), "slab caches", MAX_CACHES):
        cache = layout.read(kernel, node - layout.offsets["list"])
        sizes[decode_text(read_string(kernel, cache["name"], CACHE_NAME))] = cache["object_size"]
    compared = 0
    wrong = []
    for name, struct in OBJECTS:
        size = sizes.get(name)
        if size is None or kernel.types.find_type(struct) is None:
            continue
        compared += 1
        expected = kernel.types.size_of(struct)
        if not expected <= size <= -(-expected // ALIGNMENT) * ALIGNMENT:
            wrong.append(f"{struct} has {expected} bytes, objects of the cache {name} {size}")
    if compared:
        yield from compare(f"{compared} structs are as large as their slab objects", wrong)
    else:
        yield "partial", "none of the kernel's slab caches has a name that is known here"


def check_vmcoreinfo(kernel: Kernel) -> Iterator[Finding]:
    """Compare sizes and offsets with those that the kernel wrote into VMCOREINFO."""
    info: VmcoreInfo | None = getattr(kernel, "vmcoreinfo", None)
    if info is None:
        return
    compared = 0
    wrong = []
    for key, text in info.values.items():
        match = re.fullmatch(r"(SIZE|OFFSET)\((\w+)(?:\.(\w+))?\)", key)
        if match is None or not text.isdigit():
            continue
        struct = f"struct {match[2]}"
        if kernel.types.find_type(struct) is None:
            continue
        if match[3] is None:
            found = kernel.types.size_of(struct)
        elif kernel.types.has_member(struct, match[3]):
            found = kernel.types.offset_of(struct, match[3])
        else:
            continue
        compared += 1
        if found != int(text):
            wrong.append(f"{key} is {text} in the kernel's VMCOREINFO, {found} by {kernel.types.source}")
    yield from compare(f"{compared} sizes and offsets are as VMCOREINFO says", wrong)
