"""Where one Linux kernel lies in memory: page tables, slide, and the proof that it is there.

A kernel proves itself by being read: its own page tables must lead to its `init_uts_ns`, and the release there must be
the one that was claimed. `struct uts_namespace` began with a `kref` until that moved into `ns_common`, so that `name`
is at offset 4 or 0: VMCOREINFO says where (OFFSET(uts_namespace.name)), and where it does not, the system's name is
looked for. `struct new_utsname` (include/uapi/linux/utsname.h): six fields of 65 bytes: sysname, nodename,
release, version, machine, domainname.
"""

from __future__ import annotations

from typing import NamedTuple

from kvm_dbg.arch.base import Paging
from kvm_dbg.errors import FormatError, ReadError
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.symbols.vmcoreinfo import VmcoreInfo

UTS_FIELD = 65  # bytes, __NEW_UTS_LEN + 1
UTS_SYSNAME = b"Linux\0"
UTS_SEARCH = 64  # bytes at the start of struct uts_namespace in which `name` begins


class Boot(NamedTuple):
    """One Linux kernel, as an image shows it.

    arch: its name. release, version: as uname(1) has them, None where memory lacks them. paging: None if the tables
    were not found without a kernel file. slide: KASLR's, in bytes. phys_base: what x86's kernel text mapping adds.
    source: how the kernel was found, for people. verified: its page tables lead to its own name. banner_vaddr,
    banner_paddrs: where `linux_banner` was found by its text.
    """

    arch: str
    release: str | None
    version: str | None
    paging: Paging | None
    slide: int | None
    phys_base: int | None
    build_id: str | None
    vmcoreinfo: VmcoreInfo | None
    source: str
    verified: bool
    quirks: tuple[str, ...] = ()
    banner_vaddr: int | None = None
    banner_paddrs: tuple[int, ...] = ()

    def describe(self) -> str:
        """Return one line for a list of candidates."""
        parts = [f"Linux {self.release or 'of unknown release'}, {self.arch}"]
        if self.paging is not None:
            parts.append(f"{self.paging.levels} levels of page tables at physical {self.paging.root:#x}")
        if self.slide is not None:
            parts.append(f"slide {self.slide:#x}")
        parts.append(self.source)
        parts.append("verified" if self.verified else "not verified")
        return ", ".join(parts)


class Utsname(NamedTuple):
    """What uname(1) shows."""

    sysname: str
    nodename: str
    release: str
    version: str
    machine: str


def read_utsname(space: ImageSpace, address: int, offset: int | None) -> Utsname | None:
    """Return the names in the `struct uts_namespace` at `address`, None if there are none.

    offset: of the member `name`, None to look for it.

    Raises:
        ReadError: the memory is not mapped or not in the image.
    """
    if offset is None or not 0 <= offset < UTS_SEARCH:
        offset = space.read(address, UTS_SEARCH + len(UTS_SYSNAME)).find(UTS_SYSNAME)
        if offset < 0:
            return None
    data = space.read(address + offset, 5 * UTS_FIELD)
    fields = [
        data[index * UTS_FIELD : (index + 1) * UTS_FIELD].partition(b"\0")[0].decode("utf-8", "replace")
        for index in range(5)
    ]
    return Utsname(*fields) if fields[0] == "Linux" else None


def verify(space: ImageSpace, info: VmcoreInfo) -> tuple[Utsname | None, str]:
    """Read the kernel's names through its own page tables.

    Returns the names, and "" if they prove the kernel of `info`, else what speaks against it or is missing.
    """
    address = info.symbol("init_uts_ns")
    if address is None:
        return None, "VMCOREINFO does not say where init_uts_ns is"
    try:
        names = read_utsname(space, address, info.offset("uts_namespace.name"))
    except (ReadError, FormatError) as error:  # FormatError: the file is damaged just there
        return None, f"init_uts_ns cannot be read: {error}"
    if names is None:
        return None, f"there is no utsname at init_uts_ns ({address:#x})"
    if names.release != info.release:
        return names, f"init_uts_ns says release {names.release}, VMCOREINFO says {info.release}"
    return names, ""
