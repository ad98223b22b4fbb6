"""The real crash dump of NetBSD/amd64 and what NetBSD's own tools said of it, for the tests that compare with that.

Its layout file lacks some structs that fstat(1) and vmstat(8) were compiled with. FURTHER has them, as the headers of
NetBSD 6.99.16 (2013) lay them out on amd64; in the dump, pointers back and forth confirm each of them (see
`test_netbsd_tools.py`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from kvm_dbg.image import open_image
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.kernel import open_kernel
from kvm_dbg.kernel.base import Kernel
from tests.shared import shared_data, unpack

Members = dict[str, tuple[int, int, str]]
FURTHER: dict[str, Members] = {  # struct -> member -> (offset, size, type); no more than is read
    "cpu_data": {  # sys/sys/cpu_data.h 1.36
        "cpu_idlelwp": (232, 8, "struct lwp *"),
        "cpu_index": (248, 4, "u_int"),
        "cpu_nsyscall": (280, 8, "uint64_t"),
        "cpu_ntrap": (288, 8, "uint64_t"),
        "cpu_nswtch": (296, 8, "uint64_t"),
        "cpu_nintr": (304, 8, "uint64_t"),
        "cpu_nsoft": (312, 8, "uint64_t"),
        "cpu_nfault": (320, 8, "uint64_t"),
        "cpu_name": (432, 8, "char [8]"),
        "cpu_kcpuset": (440, 8, "void *"),
    },
    "inode": {  # sys/ufs/ufs/inode.h, behind 32 bytes of struct genfs_node
        "i_vnode": (56, 8, "struct vnode *"),
        "i_number": (96, 8, "uint64_t"),
        "i_mode": (200, 2, "uint16_t"),
        "i_nlink": (202, 2, "int16_t"),
        "i_size": (208, 8, "uint64_t"),
    },
    "specnode": {  # sys/miscfs/specfs/specdev.h
        "sn_next": (0, 8, "struct vnode *"),
        "sn_dev": (8, 8, "void *"),
        "sn_opencnt": (16, 4, "u_int"),
        "sn_rdev": (24, 8, "uint64_t"),
    },
    "namecache": {  # sys/sys/namei.src
        "nc_dvp": (32, 8, "struct vnode *"),
        "nc_vp": (40, 8, "struct vnode *"),
        "nc_flags": (48, 4, "int"),
        "nc_nlen": (52, 1, "unsigned char"),
        "nc_name": (53, 31, "char [31]"),
        "nc_lru": (96, 16, "struct {...}"),
    },
    "pipe": {"pipe_lock": (0, 8, "void *"), "pipe_peer": (296, 8, "struct pipe *")},  # sys/sys/pipe.h
}


class Dump:
    """The dump and what was said of it."""

    def __init__(self, folder: Path) -> None:
        data = shared_data("netbsd")
        self.truth = data / "truth"
        self.layout = str(data / "layout.json")
        self.core = unpack(data / "netbsd.0.core.zst", folder)
        self.names = unpack(data / "netbsd.0.zst", folder)
        self.further = str(folder / "further.json")
        Path(self.further).write_text(json.dumps(add_further(json.loads(Path(self.layout).read_text()))))
        self.kernel = self.open()

    def open(self, **options: Any) -> Kernel:
        """Return the kernel, opened anew."""
        image = OverlayImage(open_image((str(self.core),)))
        return open_kernel(image, **{"vmlinux": str(self.names), "layout": self.layout} | options)

    def lines(self, name: str, word: str) -> list[dict[str, str]]:
        """Return the fields of the lines of a libkvm file that begin with `word`."""
        found = []
        for line in (self.truth / name).read_text(encoding="latin-1").splitlines():
            if line.startswith(word + " "):
                found.append(dict(re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)', line)))
        return found


def add_further(layout: dict[str, Any]) -> dict[str, Any]:
    """Return a layout file's document with FURTHER in it."""
    found = dict(layout)
    for name, members in FURTHER.items():
        rows = {
            member: {"offset": at, "size": size, "type": kind} | ({"inside": ENTRY} if "..." in kind else {})
            for member, (at, size, kind) in members.items()
        }
        found[name] = {"size": max(at + size for at, size, _ in members.values()), "members": rows}
    return found


ENTRY = {  # of a TAILQ
    "size": 16,
    "members": {
        "tqe_next": {"offset": 0, "size": 8, "type": "void *"},
        "tqe_prev": {"offset": 8, "size": 8, "type": "void *"},
    },
}
