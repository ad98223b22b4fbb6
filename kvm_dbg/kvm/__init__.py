"""kvm(3): the manual's functions, with its return values, on any image.

Nothing here raises for what an image lacks and nothing prints: a function returns -1 or None as the manual says,
and `kvm_geterr` has the text. C's out-parameters are mutable Python objects (a bytearray, a list of Nlist) where
the manual counts what was filled, and return values where it returns pointers; counts are len().

Sources: NetBSD share/man: kvm(3), kvm_open(3), kvm_read(3), kvm_nlist(3), kvm_getprocs(3), kvm_getloadavg(3),
kvm_getfiles(3), kvm_geterr(3), kvm_getkernelname(3), kvm_dump(3). Where the genuine library breaks the manual's
promises, these functions keep them; docs/libkvm-differences.md has the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, TypeVar

from kvm_dbg.errors import CommandError, KvmDbgError
from kvm_dbg.image.live import is_live
from kvm_dbg.kernel.base import Process
from kvm_dbg.kvm.constant import (
    ELF_TYPES,
    KERN_FILE_BYFILE,
    KERN_FILE_BYPID,
    KERN_PROC_ALL,
    KERN_PROC_GID,
    KERN_PROC_PGRP,
    KERN_PROC_PID,
    KERN_PROC_RGID,
    KERN_PROC_RUID,
    KERN_PROC_SESSION,
    KERN_PROC_TTY,
    KERN_PROC_TTY_NODEV,
    KERN_PROC_TTY_REVOKE,
    KERN_PROC_UID,
    KVM_NO_FILES,
    N_EXT,
    N_UNDF,
    NM_TYPES,
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
)
from kvm_dbg.kvm.descriptor import Kvm, open_kvm, open_without_files
from kvm_dbg.kvm.dump import invalidate_dump, make_header, open_descriptor, write_header
from kvm_dbg.kvm.fill import fill_file, fill_lwp, fill_proc, fill_proc2
from kvm_dbg.kvm.message import NETBSD, explain
from kvm_dbg.kvm.record import KinfoFile, KinfoLwp, KinfoProc, KinfoProc2, Nlist
from kvm_dbg.symbols.base import Symbol

__all__ = [
    "KERN_FILE_BYFILE",
    "KERN_FILE_BYPID",
    "KERN_PROC_ALL",
    "KERN_PROC_GID",
    "KERN_PROC_PGRP",
    "KERN_PROC_PID",
    "KERN_PROC_RGID",
    "KERN_PROC_RUID",
    "KERN_PROC_SESSION",
    "KERN_PROC_TTY",
    "KERN_PROC_TTY_NODEV",
    "KERN_PROC_TTY_REVOKE",
    "KERN_PROC_UID",
    "KVM_NO_FILES",
    "O_RDONLY",
    "O_RDWR",
    "O_WRONLY",
    "KinfoFile",
    "KinfoLwp",
    "KinfoProc",
    "KinfoProc2",
    "Kvm",
    "Nlist",
    "kvm_close",
    "kvm_dump_inval",
    "kvm_dump_mkheader",
    "kvm_dump_wrtheader",
    "kvm_getargv",
    "kvm_getargv2",
    "kvm_getenvv",
    "kvm_getenvv2",
    "kvm_geterr",
    "kvm_getfiles",
    "kvm_getkernelname",
    "kvm_getloadavg",
    "kvm_getlwps",
    "kvm_getproc2",
    "kvm_getprocs",
    "kvm_nlist",
    "kvm_open",
    "kvm_openfiles",
    "kvm_read",
    "kvm_write",
    "open_kvm",
]

Answer = TypeVar("Answer")


def kvm_openfiles(
    execfile: str | None,
    corefile: str | Sequence[str] | None,
    swapfile: str | None = None,
    flags: int = O_RDONLY,
    errbuf: list[str] | None = None,
    **options: Any,
) -> Kvm | None:
    """Open an image; None on failure, with the text appended to `errbuf`.

    Args:
        execfile: the kernel file; None to search the usual places. A crash dump of NetBSD opens with one that has no
            symbols too, and can be read; only kvm_nlist fails then, and what needs it.
        corefile: the image, or the parts of a split one; with the option format="netbsd-dump" a dump partition, on
            which `kvm_dump_mkheader` finds the dump. None for the memory of this machine, or with the option qmp=SOCKET
            for that of a virtual one.
        swapfile: accepted for the manual's sake; None.
        flags: O_RDONLY, O_RDWR or O_WRONLY. Writes go into a private copy of a dump's memory, and into live memory
            itself, as kvm(3) has it: for that /dev/mem is opened, since /proc/kcore is read-only. Or KVM_NO_FILES: all
            files are ignored, and /proc tells of processes and load averages.
        errbuf: takes the error's text.
        **options: those of `kvm_dbg.open`, such as index_directory.
    """
    try:
        if flags == KVM_NO_FILES:
            return open_without_files()
        if flags not in (O_RDONLY, O_RDWR, O_WRONLY):
            raise CommandError("bad flags arg: O_RDONLY, O_WRONLY and O_RDWR are the flags for an image")
        if swapfile is not None:
            raise CommandError(f"{swapfile}: swap files are not read")
        if corefile is None:
            live = options.get("qmp") is None
            return open_kvm((), execfile, writable=flags != O_RDONLY, live=live, **options)
        if options.get("live") or (isinstance(corefile, str) and is_live(corefile)):
            return open_kvm(corefile, execfile, writable=flags != O_RDONLY, **options)
        return open_descriptor(corefile, execfile, writable=flags != O_RDONLY, **options)
    except KvmDbgError as error:
        if errbuf is not None:
            errbuf.append(str(error))
        return None


def kvm_open(
    execfile: str | None,
    corefile: str | Sequence[str] | None,
    swapfile: str | None = None,
    flags: int = O_RDONLY,
    errstr: str | None = None,
    errbuf: list[str] | None = None,
    **options: Any,
) -> Kvm | None:
    """Open an image as `kvm_openfiles` does; with `errstr`, the text is prefixed by it and ": ", as C prints it."""
    texts: list[str] = []
    kd = kvm_openfiles(execfile, corefile, swapfile, flags, texts, **options)
    if errbuf is not None:
        errbuf.extend(text if errstr is None else f"{errstr}: {text}" for text in texts)
    return kd


def kvm_close(kd: Kvm) -> int:
    """Close a descriptor; 0, or -1 if a file could not be closed."""
    try:
        kd.close()
    except OSError as error:
        kd.error = str(error)
        return -1
    return 0


def kvm_geterr(kd: Kvm) -> str:
    """Return the text of the descriptor's last error; "" before any. Success does not clear it."""
    return kd.error


def kvm_getkernelname(kd: Kvm) -> str:
    """Return the path of the kernel file."""
    return kd.name


def kvm_read(kd: Kvm, addr: int, buf: bytearray | memoryview, nbytes: int | None = None) -> int:
    """Read kernel memory into `buf`; the number of bytes, fewer if the rest is not there, -1 if none is.

    Args:
        kd: the descriptor.
        addr: kernel virtual address.
        buf: filled from its start, up to `nbytes` (all of it by default); the rest is left as it was.
        nbytes: how many bytes to read.
    """
    size = len(buf) if nbytes is None else nbytes
    if not 0 <= size <= len(buf):
        return _fail(kd, CommandError(f"kvm_read: {size} bytes do not fit into a buffer of {len(buf)}"))
    if size == 0:
        return 0
    try:
        part = kd.read_partial(addr, size)
    except KvmDbgError as error:
        return _fail(kd, error)
    count = part.missing[0].start - addr if part.missing else size
    if count < size:
        try:
            kd.read(addr + count, 1)
        except KvmDbgError as error:
            kd.error = explain(error, kd.system)
    buf[:count] = part.data[:count]
    return count or -1


def kvm_write(kd: Kvm, addr: int, buf: bytes | bytearray | memoryview, nbytes: int | None = None) -> int:
    """Write kernel memory in the private copy; the number of bytes, or -1. The file never changes."""
    size = len(buf) if nbytes is None else nbytes
    if not 0 <= size <= len(buf):
        return _fail(kd, CommandError(f"kvm_write: a buffer of {len(buf)} bytes does not have {size}"))
    data = bytes(buf[:size])
    try:
        kd.write(addr, data)
    except KvmDbgError as error:
        return _fail(kd, error)
    return len(data)


def kvm_dump_mkheader(kd: Kvm, dump_off: int) -> int:
    """Find a crash dump of NetBSD at `dump_off` bytes of a dump partition, and read from it from then on.

    Returns:
        The size of the headers in front of memory, in bytes; 0 if no dump is there; -1 if it is damaged, or the
        descriptor has memory already.
    """
    try:
        return make_header(kd, dump_off)
    except KvmDbgError as error:
        return _fail(kd, error)


def kvm_dump_wrtheader(kd: Kvm, fp: BinaryIO, dumpsize: int) -> int:
    """Write the headers of savecore's file to `fp`, for `dumpsize` bytes of memory; 0, or -1."""
    try:
        write_header(kd, fp, dumpsize)
    except (KvmDbgError, OSError) as error:
        kd.error = f"kvm_dump_header: {error.strerror}" if isinstance(error, OSError) else explain(error, kd.system)
        return -1
    return 0


def kvm_dump_inval(kd: Kvm) -> int:
    """Clear the dump's magic number, in the private copy of a descriptor that may write; 0, or -1."""
    try:
        invalidate_dump(kd)
    except KvmDbgError as error:
        return _fail(kd, error)
    return 0


def kvm_nlist(kd: Kvm, nl: Sequence[Nlist]) -> int:
    """Fill in a name list; the number of names NOT found (0: all), -1 if there are no symbols.

    The list ends at an entry whose `n_name` is None or "". A name with a leading underscore is looked for as it stands
    and without it, as in C: on NetBSD first without. Every entry is filled, also where a name is listed twice.
    """
    entries: list[Nlist] = []
    for entry in nl:
        if not entry.n_name:
            break
        entries.append(entry)
    for entry in entries:
        entry.n_value = entry.n_type = entry.n_other = entry.n_desc = 0
    try:
        names = {name for entry in entries if (name := entry.n_name)}
        found = kd.nlist(names | {name[1:] for name in names if name.startswith("_")})
    except KvmDbgError as error:
        return _fail(kd, error)
    missing = 0
    for entry in entries:
        name = entry.n_name or ""
        spellings = [name, name[1:]] if name.startswith("_") else [name]
        if kd.system == NETBSD:
            spellings.reverse()
        symbol = next((found[spelling] for spelling in spellings if spelling in found), None)
        if symbol is None:
            missing += 1
            continue
        entry.n_value = symbol.address
        entry.n_type = _symbol_type(kd, symbol) | (N_EXT if symbol.kind.isupper() else 0)
    return missing


def _symbol_type(kd: Kvm, symbol: Symbol) -> int:
    """Return n_type without N_EXT: on NetBSD by the symbol's own type, as there, else by its section."""
    elf_type = kd.kernel.symbols.find_type(symbol.name) if kd.system == NETBSD else None
    return NM_TYPES.get(symbol.kind.upper(), N_UNDF) if elf_type is None else ELF_TYPES.get(elf_type, N_UNDF)


def kvm_getprocs(kd: Kvm, op: int = KERN_PROC_ALL, arg: int = 0) -> list[KinfoProc] | None:
    """Return the processes that the filter keeps, as struct kinfo_proc; None on failure. No match is []."""
    return _attempt(kd, lambda: [fill_proc(process) for process in kd.processes(op, arg)])


def kvm_getproc2(kd: Kvm, op: int = KERN_PROC_ALL, arg: int = 0) -> list[KinfoProc2] | None:
    """Return the processes that the filter keeps, as struct kinfo_proc2; None on failure. No match is []."""
    return _attempt(kd, lambda: [fill_proc2(process, kd.page_size) for process in kd.processes(op, arg)])


def kvm_getlwps(kd: Kvm, pid: int, procaddr: int = 0) -> list[KinfoLwp] | None:
    """Return the threads of a process, given by its pid or, if that is -1, by its address; None on failure."""

    def collect() -> list[KinfoLwp]:
        number = pid
        if pid == -1:
            number = next((process.pid for process in kd.processes() if process.address == procaddr), -1)
        lwps = [fill_lwp(lwp) for lwp in kd.lwps(number)]
        if not lwps:
            raise CommandError(f"no process with PID {pid}" if pid != -1 else f"no process at {procaddr:#x}")
        return lwps

    return _attempt(kd, collect)


def kvm_getargv(kd: Kvm, p: KinfoProc, nchr: int = 0) -> list[bytes] | None:
    """Return the process's argv, at most `nchr` bytes of it with the NULs (0: no limit); None if there is none."""
    return _strings(kd, p.kp_proc.p_pid, kd.arguments, nchr)


def kvm_getenvv(kd: Kvm, p: KinfoProc, nchr: int = 0) -> list[bytes] | None:
    """Return the process's environment as `kvm_getargv` returns argv."""
    return _strings(kd, p.kp_proc.p_pid, kd.environment, nchr)


def kvm_getargv2(kd: Kvm, p: KinfoProc2, nchr: int = 0) -> list[bytes] | None:
    """Return the process's argv as `kvm_getargv` does: of the image, never of the running system."""
    return _strings(kd, p.p_pid, kd.arguments, nchr)


def kvm_getenvv2(kd: Kvm, p: KinfoProc2, nchr: int = 0) -> list[bytes] | None:
    """Return the process's environment as `kvm_getargv2` returns argv."""
    return _strings(kd, p.p_pid, kd.environment, nchr)


def kvm_getloadavg(kd: Kvm, loadavg: list[float], nelem: int) -> int:
    """Put up to `nelem` load averages (1, 5 and 15 minutes) into `loadavg`; how many, or -1."""
    try:
        load = kd.load_average()
    except KvmDbgError as error:
        return _fail(kd, error)
    values = [load.one, load.five, load.fifteen][: max(nelem, 0)]
    loadavg[: len(values)] = values
    return len(values)


def kvm_getfiles(kd: Kvm, op: int = KERN_FILE_BYFILE, arg: int = 0) -> list[KinfoFile] | None:
    """Return the open files; None on failure.

    KERN_FILE_BYFILE gives each file that a process has open once, KERN_FILE_BYPID one record for each descriptor of
    process `arg`, or of all processes if that is -1.
    """

    def collect() -> list[KinfoFile]:
        if op == KERN_FILE_BYPID:
            return [fill_file(file, by_pid=True) for file in kd.files(None if arg == -1 else arg)]
        if op != KERN_FILE_BYFILE:
            raise CommandError(f"no file filter {op}; the filters are KERN_FILE_BYFILE and KERN_FILE_BYPID")
        files: dict[int, KinfoFile] = {}
        for file in kd.files():
            files.setdefault(file.address, fill_file(file, by_pid=False))
        return list(files.values())

    return _attempt(kd, collect)


def _strings(kd: Kvm, pid: int, read: Callable[[Process], list[bytes] | None], nchr: int) -> list[bytes] | None:
    try:
        strings = read(kd.process(pid))
    except KvmDbgError as error:
        _fail(kd, error)
        return None
    if strings is None:
        _fail(kd, CommandError(f"process {pid} has none: it is a kernel thread or has exited"))
        return None
    return strings if nchr <= 0 else cut_strings(strings, nchr)


def cut_strings(strings: Sequence[bytes], nchr: int) -> list[bytes]:
    """Return as many strings as fit into `nchr` bytes with a NUL after each, the last one cut to fit."""
    kept: list[bytes] = []
    for string in strings:
        if nchr <= 0:
            break
        kept.append(string[: nchr - 1])
        nchr -= len(string) + 1
    return kept


def _attempt(kd: Kvm, ask: Callable[[], Answer]) -> Answer | None:
    try:
        return ask()
    except KvmDbgError as error:
        _fail(kd, error)
        return None


def _fail(kd: Kvm, error: KvmDbgError) -> int:
    kd.error = explain(error, kd.system)
    return -1
