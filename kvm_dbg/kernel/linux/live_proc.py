"""The Linux that runs here, by its own word: /proc, without a look into its memory (KVM_NO_FILES).

Facts: proc(5); fs/proc/array.c (the fields of /proc/PID/stat, times in ticks of sysconf(_SC_CLK_TCK)); devices of
terminals: Documentation/admin-guide/devices.txt (major 4: tty0 to tty63, then ttyS0; 5: tty, console, ptmx; 136 to 143:
pts).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from kvm_dbg.arch import find_arch
from kvm_dbg.debuginfo.base import Type, TypeTable
from kvm_dbg.errors import CommandError, FileAccessError
from kvm_dbg.image.base import BytesImage, ImageInfo
from kvm_dbg.kernel.base import AddressSpaceReader, Kernel, LoadAverage, Lwp, Process
from kvm_dbg.kernel.linux import Linux
from kvm_dbg.kernel.linux.argument import split_strings
from kvm_dbg.kernel.linux.task import MAX_RT_PRIO, PF_KTHREAD
from kvm_dbg.symbols.base import Symbol, SymbolTable

PROC = Path("/proc")
NO_FILES = "opened without files: processes, threads, arguments, environments and load averages are all there is"
NO_TTY = 0
VT_MAJOR, SERIAL_MINOR, PTS_MAJORS = 4, 64, range(136, 144)


class ProcKernel(Kernel):
    """The kernel that runs here, of which no memory is read.

    Args:
        root: where proc is mounted.
    """

    def __init__(self, root: Path = PROC) -> None:
        self.root = root
        self.release = os.uname().release
        self.image = BytesImage({}, info=ImageInfo("proc"))
        self.arch = find_arch(os.uname().machine)
        self.symbols = _NoSymbols()
        self.types = _NoTypes()
        self.room = PROC_LINUX

    def read(self, vaddr: int, size: int) -> bytes:
        _refuse(f"{size} bytes at {vaddr:#x}")

    def translate(self, vaddr: int) -> int:
        _refuse(f"address {vaddr:#x}")


def _refuse(what: str) -> NoReturn:
    raise CommandError(f"{what}: {NO_FILES}")


class _NoSymbols(SymbolTable):
    """No symbols."""

    def find(self, name: str) -> Symbol | None:
        _refuse(f"symbol {name}")

    def find_all(self, name: str) -> tuple[Symbol, ...]:
        _refuse(f"symbol {name}")

    def find_at(self, address: int) -> Symbol | None:
        _refuse(f"address {address:#x}")

    def for_each(self) -> Iterator[Symbol]:
        _refuse("symbols")

    def __len__(self) -> int:
        return 0


class _NoTypes(TypeTable):
    """No types."""

    source = "none"

    def find_type(self, name: str) -> Type | None:
        _refuse(f"type {name}")

    def find_enumerator(self, name: str) -> int | None:
        _refuse(f"enumerator {name}")


class _ProcLinux(Linux):
    """Linux as an `OperatingSystem`, by /proc."""

    def for_each_process(self, kernel: Kernel) -> Iterator[Process]:
        root = _root_of(kernel)
        boot = _read_boot_time(root)
        for pid in _numbers(root):
            with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
                yield _read_process(root / str(pid), boot)

    def for_each_lwp(self, kernel: Kernel, pid: int | None = None) -> Iterator[Lwp]:
        root = _root_of(kernel)
        for process in _numbers(root) if pid is None else [pid]:
            tasks = root / str(process) / "task"
            with contextlib.suppress(OSError):
                for tid in _numbers(tasks):
                    with contextlib.suppress(OSError, ValueError):
                        yield _read_lwp(tasks / str(tid), process)

    def read_arguments(self, kernel: Kernel, process: Process) -> list[bytes] | None:
        return _read_strings(_root_of(kernel) / str(process.pid) / "cmdline", process)

    def read_environment(self, kernel: Kernel, process: Process) -> list[bytes] | None:
        return _read_strings(_root_of(kernel) / str(process.pid) / "environ", process)

    def read_load_average(self, kernel: Kernel) -> LoadAverage:
        path = _root_of(kernel) / "loadavg"
        try:
            one, five, fifteen, tasks, last = path.read_text("ascii").split()
        except (OSError, ValueError) as error:
            raise FileAccessError(path, f"is not what proc(5) says: {error}") from error
        running, _, threads = tasks.partition("/")
        return LoadAverage(float(one), float(five), float(fifteen), int(running), int(threads), int(last))

    def kernel_space(self, kernel: Kernel) -> AddressSpaceReader:
        _refuse(f"memory of a {kernel.arch.name} kernel")

    def address_space(self, kernel: Kernel, address: int) -> AddressSpaceReader:
        _refuse(f"memory of the task at {address:#x} of a {kernel.arch.name} kernel")


PROC_LINUX = _ProcLinux()


def _root_of(kernel: Kernel) -> Path:
    return kernel.root if isinstance(kernel, ProcKernel) else PROC


def _numbers(directory: Path) -> list[int]:
    """Return the names that are numbers, ascending. Raises OSError."""
    return sorted(int(name) for name in os.listdir(directory) if name.isdecimal())


class _Stat:
    """The fields of a `stat` file, by their number in proc(5), from 1."""

    def __init__(self, path: Path) -> None:
        head, _, rest = path.read_bytes().rpartition(b")")
        self.name = head.partition(b"(")[2].decode("utf-8", "backslashreplace")
        self._fields = rest.split()

    def text(self, number: int) -> str:
        return self._fields[number - 3].decode("ascii")

    def __getitem__(self, number: int) -> int:
        return int(self._fields[number - 3])


def _read_boot_time(root: Path) -> float | None:
    """Return the moment of boot in seconds since the epoch, None if proc does not say."""
    try:
        for line in (root / "stat").read_text("ascii").splitlines():
            if line.startswith("btime "):
                return float(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


def _read_process(path: Path, boot: float | None) -> Process:
    """Return the process that a directory of proc describes. Raises OSError, ValueError if it has ended."""
    stat = _Stat(path / "stat")
    status = dict(line.partition(":")[::2] for line in (path / "status").read_text("utf-8", "replace").splitlines())
    users, groups = ([int(word) for word in status[name].split()] for name in ("Uid", "Gid"))
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    pid, pgid, sid, device, foreground, nice, threads = int(path.name), *(stat[n] for n in (5, 6, 7, 8, 19, 20))
    locked = int(status.get("VmLck", "0").split()[0])
    flags = "" if not nice else "<" if nice < 0 else "N"
    flags += "L" if locked else ""
    flags += "s" if sid == pid else ""
    flags += "l" if threads > 1 else ""
    flags += "+" if device != NO_TTY and pgid == foreground else ""
    return Process(
        pid=pid,
        address=0,
        ppid=stat[4],
        pgid=pgid,
        sid=sid,
        uid=users[1],
        ruid=users[0],
        svuid=users[2],
        gid=groups[1],
        rgid=groups[0],
        svgid=groups[2],
        groups=tuple(int(word) for word in status.get("Groups", "").split()),
        state=stat.text(3),
        flags=flags,
        nice=nice,
        priority=stat[18],
        cpu=stat[39],
        threads=threads,
        rss=stat[24] * page,
        vsize=stat[23],
        user_time=stat[14] / ticks,
        system_time=stat[15] / ticks,
        start_time=boot + stat[22] / ticks if boot is not None else None,
        tty=_name_tty(device),
        tty_device=device or None,
        tty_pgid=foreground if device != NO_TTY else None,
        command=stat.name,
        kernel_thread=bool(stat[9] & PF_KTHREAD),
    )


def _read_lwp(path: Path, pid: int) -> Lwp:
    """Return the thread that a directory of proc describes. Raises OSError, ValueError if it has ended."""
    stat = _Stat(path / "stat")
    ticks = os.sysconf("SC_CLK_TCK")
    try:
        channel = (path / "wchan").read_text("ascii")
    except OSError:  # takes ptrace's permission
        channel = ""
    return Lwp(
        lid=int(path.name),
        pid=pid,
        address=0,
        state=stat.text(3),
        cpu=stat[39],
        on_cpu=stat.text(3) == "R",
        priority=stat[18] if stat[18] >= -MAX_RT_PRIO else None,
        user_time=stat[14] / ticks,
        system_time=stat[15] / ticks,
        wait_channel=channel if channel not in ("", "0") else None,
        name=stat.name,
        kernel_thread=bool(stat[9] & PF_KTHREAD),
    )


def _name_tty(device: int) -> str | None:
    """Return a terminal's name without /dev, None if there is none or it has an unusual number."""
    major, minor = os.major(device), os.minor(device)
    if major in PTS_MAJORS:
        return f"pts/{(major - PTS_MAJORS.start) * 256 + minor}"
    if major == VT_MAJOR:
        return f"tty{minor}" if minor < SERIAL_MINOR else f"ttyS{minor - SERIAL_MINOR}"
    return None


def _read_strings(path: Path, process: Process) -> list[bytes] | None:
    """Return the strings of `cmdline` or `environ`; None for kernel threads, and for those that have ended.

    Raises:
        CommandError: they are another user's.
    """
    if process.kernel_thread:
        return None
    try:
        data = path.read_bytes()
    except PermissionError as error:
        raise CommandError(f"{path}: {error.strerror}: these are another user's") from error
    except OSError:
        return None
    return None if not data and process.state == "Z" else split_strings(data)
