"""Types of a kernel that has no others: the offsets that it tells debuggers in variables of its own.

sys/kern/kern_proc.c has them since 10.3 ("used by kernel debuggers to enumerate kernel threads and processes"):
proc_off_p_pid, thread_off_td_tid, ...; `proc_off_p_hash` came with 13. The message buffer's head is the same since 8
(sys/sys/msgbuf.h).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kvm_dbg.debuginfo.base import ArrayType, IntType, Member, PointerType, StructType, Type, TypeTable, VoidType
from kvm_dbg.errors import (
    CorruptError,
    KernelMismatchError,
    ReadError,
    TypeNotFound,
    UnknownFormatError,
    UnsupportedError,
)
from kvm_dbg.kernel.layout import read_number

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Kernel
    from kvm_dbg.kernel.freebsd.kernel import FreeBSDKernel
    from kvm_dbg.kernel.space import ImageSpace
    from kvm_dbg.symbols.elf import ElfSymbolTable

NAME_SIZE = 20  # bytes of p_comm and td_name: MAXCOMLEN + 1, sys/sys/param.h
OFFSET_LIMIT = 1 << 14  # bytes; struct proc has about 1300, struct thread 1700
REQUIRED = ("p_pid", "p_comm", "p_list", "p_threads", "td_tid", "td_name", "td_oncpu", "td_pcb", "td_plist")

PREFIXES = {"struct proc": "proc_off_", "struct thread": "thread_off_"}
MEMBERS: Mapping[str, Mapping[str, str]] = {  # struct -> member -> kind
    "struct proc": {
        "p_pid": "int",
        "p_comm": "name",
        "p_list": "list entry",
        "p_hash": "list entry",
        "p_threads": "queue head",
    },
    "struct thread": {
        "td_tid": "int",
        "td_name": "name",
        "td_oncpu": "int",
        "td_pcb": "pointer",
        "td_plist": "queue entry",
    },
}
MSGBUF = (("msg_ptr", "pointer"), ("msg_magic", "uint"), ("msg_size", "uint"), ("msg_wseq", "uint"))


class OffsetTypes(TypeTable):
    """The types that a kernel's own offsets make.

    Raises:
        TypeNotFound: the kernel has no such variables.
        ReadError, CorruptError: one of them cannot be read, or cannot be right.
    """

    source = "offsets that the kernel tells debuggers (proc_off_*, thread_off_*)"

    def __init__(self, kernel: FreeBSDKernel) -> None:
        self._kinds = _kinds(kernel.arch.pointer_size)
        found = {
            struct: {
                member: _read_offset(kernel, PREFIXES[struct] + member, OFFSET_LIMIT)
                for member in members
                if member in REQUIRED or PREFIXES[struct] + member in kernel.symbols
            }
            for struct, members in MEMBERS.items()
        }
        self._types: dict[str, Type] = {"int": self._kinds["int"], "unsigned int": self._kinds["uint"]}
        for struct, offsets in found.items():
            self._add(struct, [(name, MEMBERS[struct][name], at) for name, at in offsets.items()])
        at, rows = 0, []
        for name, kind in MSGBUF:
            rows.append((name, kind, at))
            at += self._kinds[kind].size
        self._add("struct msgbuf", rows)

    def _add(self, name: str, rows: Sequence[tuple[str, str, int]]) -> None:
        members = tuple(_member(member, at, self._kinds[kind]) for member, kind, at in rows)
        size = max(at + _size(self._kinds[kind]) for _, kind, at in rows)
        self._types[name] = StructType("struct", name.partition(" ")[2], size, lambda: members)

    def find_type(self, name: str) -> Type | None:
        return self._types.get(name)

    def find_enumerator(self, name: str) -> int | None:  # noqa: ARG002 - there are none
        return None


def require_types(kernel: Kernel, what: str) -> None:
    """Make sure that there are other types than these, without which nothing is known of `what`.

    Raises:
        UnsupportedError: there are none, naming what the user can do.
    """
    if isinstance(kernel.types, OffsetTypes):
        path = getattr(kernel, "vmlinux_path", None) or "the kernel file"
        raise UnsupportedError(
            f"{path} without types",
            f"{what} are read with more than {OffsetTypes.source}; name the kernel file that has debug information or"
            " CTF (kernel.debug, kernel.full), or a layout file: --layout FILE (`kvm-dbg layout` makes one)",
        )


def check_offsets(space: ImageSpace, symbols: ElfSymbolTable) -> None:
    """Make sure that the offsets which a kernel file tells of are in the image, where the file says.

    Raises:
        KernelMismatchError: they are not: the file is of another kernel.
        UnknownFormatError: the file tells of none: it is of no FreeBSD kernel.
    """
    wanted = {
        prefix + member for struct, prefix in PREFIXES.items() for member in MEMBERS[struct] if member in REQUIRED
    }
    found = symbols.find_many(wanted)
    if found.keys() != wanted:
        raise UnknownFormatError(
            symbols.path, f"has neither a symbol version nor {min(wanted - found.keys())}: not a FreeBSD kernel file"
        )
    known: set[tuple[str, int]] = set()
    for name, symbol in found.items():
        try:
            data = space.read(symbol.address, 4)
        except ReadError:
            continue  # memory that says nothing
        value = int.from_bytes(data, "little" if space.arch.byteorder == "little" else "big", signed=True)
        linked = symbols.read_linked(symbol.address - symbols.slide, 4)
        if linked is not None and linked != data:
            raise KernelMismatchError(symbols.path, f"the variable {name}", data.hex(), linked.hex())
        if not 0 <= value < OFFSET_LIMIT:
            raise KernelMismatchError(symbols.path, f"the variable {name}", f"{value}, no offset,", "there")
        place = name.partition("_")[0], value
        if place in known:
            raise KernelMismatchError(symbols.path, f"the variable {name}", f"{value} as another's,", "there")
        known.add(place)


def _read_offset(kernel: FreeBSDKernel, name: str, limit: int) -> int:
    """Return the value of an int: the image's, or if that lacks it the kernel file's."""
    symbol = kernel.symbols.find(name)
    if symbol is None:
        raise TypeNotFound(name, f"the kernel has no variable {name}, and no other types")
    try:
        value = read_number(kernel, symbol.address, 4, signed=True)
    except ReadError:
        data = kernel.read_file(symbol.address, 4)
        if data is None:
            raise
        value = int.from_bytes(data, "little" if kernel.arch.byteorder == "little" else "big", signed=True)
    if not 0 <= value < limit:
        raise CorruptError(symbol.address, f"{name} is {value}: no offset")
    return value


def _kinds(pointer_size: int) -> dict[str, Type]:
    void = VoidType()
    pointer = PointerType(pointer_size, lambda: void)
    char = IntType("char", 1, signed=True, is_char=True)

    def pair(first: str, second: str) -> StructType:
        return StructType(
            "struct", "", 2 * pointer_size, lambda: (_member(first, 0, pointer), _member(second, pointer_size, pointer))
        )

    return {
        "int": IntType("int", 4, signed=True),
        "uint": IntType("unsigned int", 4, signed=False),
        "pointer": pointer,
        "name": ArrayType(NAME_SIZE, lambda: char),
        "list entry": pair("le_next", "le_prev"),
        "queue head": pair("tqh_first", "tqh_last"),
        "queue entry": pair("tqe_next", "tqe_prev"),
    }


def _member(name: str, offset: int, type_: Type) -> Member:
    return Member(name, 8 * offset, 0, lambda: type_)


def _size(type_: Type) -> int:
    return type_.byte_size if isinstance(type_, ArrayType) else type_.size
