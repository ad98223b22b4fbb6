"""A whole little operating system, for tests of the commands, the command line and kvm(3).

It stands in the place of the registry `kvm_dbg.kernel.SYSTEMS` (see `installed`), so that everything above runs as
it does on a real image: a file is opened by its reader, memory is read through real page tables, and only what the
operating system says of itself is made up here. Some of its strings try to drive the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvm_dbg.arch.base import Paging
from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.debuginfo.btf import BtfTypes
from kvm_dbg.errors import CommandError, CorruptError, KernelNotFoundError, NotInImageError
from kvm_dbg.image.base import MemoryImage, Note
from kvm_dbg.kernel import Identity, KernelOptions
from kvm_dbg.kernel.base import (
    Area,
    Check,
    Frame,
    Kernel,
    LoadAverage,
    LogRecord,
    Lwp,
    MemoryMapping,
    Module,
    Process,
    SourceReader,
    Sources,
    SystemSummary,
    Thread,
    UserThread,
)
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.kernel.unwind_rule import UnwindRow, UnwindTable
from kvm_dbg.kernel.usage import Counter, OpenFile
from kvm_dbg.symbols.base import Symbol, SymbolTable
from kvm_dbg.symbols.kallsyms import JoinedSymbols, ListedSymbols
from tests.writers.lime import write_lime
from tests.writers.page_table import PAGE_FLAGS, PageTables
from tests.writers.stand_in import NoTypes, Symbols

PAGE = 4096
WRITABLE, NO_EXECUTE = 1 << 1, 1 << 63
TEXT = 0xFFFFFFFF_81000000
DATA = TEXT + PAGE
GONE = TEXT + 2 * PAGE  # mapped, but its page is not in the image; nothing is mapped after it
USER = 0x40_0000
SPARE = TEXT + 4 * PAGE  # in RAM alone, as the two after it; may be written
CONSTANT = TEXT + 5 * PAGE  # mapped for reading only
DEVICE = TEXT + 6 * PAGE  # what lies in the file there is no RAM
DEVICE_PADDR = 0x205000
TEXT_BYTES = bytes(index * 3 & 0xFF for index in range(PAGE))
DATA_BYTES = (b"Little version 1.0 (nobody@nowhere)\n\0" + bytes(64)).ljust(PAGE, b"\x5a")
USER_BYTES = b"user memory of init".ljust(PAGE, b"\0")
ESCAPE = "\x1b]0;owned\x07\u202e"  # sets the title of a terminal, and turns what follows around
TTY = 0x8801  # device number of pts/1
BIG_ID = 4_000_000_000

INIT = Process(
    1,
    TEXT + 0x100,
    ppid=0,
    pgid=1,
    sid=1,
    uid=0,
    ruid=0,
    svuid=0,
    gid=0,
    rgid=0,
    svgid=0,
    state="S",
    flags="s",
    nice=0,
    priority=20,
    cpu=0,
    rss=3 << 20,
    vsize=8 << 20,
    user_time=1.25,
    system_time=2.5,
    start_time=1700000000.25,
    command="init",
)
KTHREAD = Process(
    2, TEXT + 0x200, ppid=0, pgid=0, sid=0, uid=0, gid=0, state="I", command="kthreadd", kernel_thread=True
)
SHELL = Process(
    40,
    TEXT + 0x300,
    ppid=1,
    pgid=40,
    sid=40,
    uid=1000,
    ruid=1001,
    svuid=1002,
    gid=100,
    rgid=101,
    svgid=102,
    groups=(100, 27),
    state="S",
    flags="sl",
    nice=-5,
    priority=15,
    cpu=1,
    threads=2,
    rss=1 << 20,
    vsize=2 << 20,
    user_time=90061.0,
    system_time=0.0,
    start_time=1700000001.0,
    tty="pts/1",
    tty_device=TTY,
    tty_pgid=41,
    command=f"sh{ESCAPE}",
)
JOB = Process(
    41,
    TEXT + 0x400,
    ppid=40,
    pgid=41,
    sid=40,
    uid=BIG_ID,
    ruid=1001,
    gid=100,
    rgid=BIG_ID,
    state="R",
    flags="+",
    nice=0,
    priority=20,
    tty="pts/1",
    tty_device=TTY,
    tty_pgid=41,
    command='job, "quoted"',
)
ZOMBIE = Process(
    42, TEXT + 0x500, ppid=40, pgid=40, sid=40, uid=1000, ruid=1001, gid=100, rgid=101, state="Z", command="dead"
)
LOST = Process(
    50, TEXT + 0x600, ppid=1, pgid=50, sid=50, state="S", command="lost", unread=("uid", "gid", "rss", "tty_device")
)
PROCESSES = (INIT, KTHREAD, SHELL, JOB, ZOMBIE, LOST)
LWPS = {
    1: (
        Lwp(
            1,
            1,
            INIT.address,
            "S",
            0,
            priority=20,
            user_time=1.25,
            system_time=2.5,
            wait_channel="do_epoll",
            name="init",
        ),
    ),
    40: (
        Lwp(40, 40, SHELL.address, "S", 1, priority=15, user_time=1.0, system_time=0.5, name="sh"),
        Lwp(
            45, 40, SHELL.address + 8, "R", 0, True, priority=15, user_time=0.0, name="worker", unread=("system_time",)
        ),
    ),
}
ARGUMENTS: dict[int, list[bytes]] = {
    1: [b"/sbin/init", b"--flag=a b", b""],
    40: [b"-sh", b"\xff\x1b[2J", b"it's"],
    41: [b"job"],
}
ENVIRONMENT: dict[int, list[bytes]] = {1: [b"HOME=/", b"TERM=linux"], 40: [], 41: [b"PATH=/bin:/usr/bin"]}
FILES = (
    OpenFile(
        1, None, TEXT + 0x6F0, "dir", "/", None, None, 2, mode=0o40755, size=512, access="r", mount="/", role="wd"
    ),
    OpenFile(
        *(1, 0, TEXT + 0x700, "chr", "/dev/null", 0x2, 0, 4),
        mode=0o20666,
        access="rw",
        device=(1, 3),
        mount="/dev",
    ),
    OpenFile(
        *(1, 1, TEXT + 0x708, "reg", f"/tmp/{ESCAPE}", 0x8001, 4096, 12),
        mode=0o100644,
        size=5000,
        access="w",
        mount=f"/tmp{ESCAPE}",
    ),
    OpenFile(40, 0, TEXT + 0x700, "chr", "/dev/null", 0x2, 0, 4),
    OpenFile(40, 3, TEXT + 0x710, "sock", "socket:[77]", 0x2, 0, 77),
    OpenFile(40, 4, TEXT + 0x718, "fifo", "pipe:[78]", 0, 0, 78),
    OpenFile(40, 5, TEXT + 0x720, "anon", None, 0, None, None, unread=("path",)),
)
COUNTERS = (
    Counter("nr_free_pages", 88, "pages free"),
    Counter(f"pgfault{ESCAPE}", 1 << 63),
    Counter("pglost", None, "", "its page is gone"),
    Counter("pglost2", None, "", "its page is gone"),
)
MAPPINGS = (
    MemoryMapping(0x400000, 0x402000, "r-xp", 0x1000, 8, 1, 12, f"/bin/{ESCAPE}", True, TEXT + 0x730),
    MemoryMapping(0x402000, 0x403000, "rw-s", 0, None, None, None, None, True, TEXT + 0x738, ("path", "device")),
    MemoryMapping(0x7FFE0000, 0x80000000, "rw-p", 0, 0, 0, 0, "[stack]", False, TEXT + 0x740),
)
LOG = (
    LogRecord(0, 0.0, 0, 5, "Little version 1.0"),
    LogRecord(1, 1.5, 0, 3, "disk\ton fire\nsecond line", "T40"),
    LogRecord(2, 12345.678901, 3, 6, f"user says {ESCAPE}", "C1"),
)
MODULES = (
    Module("ext9", TEXT + 0x100000, 8192, (), 0, "live", "OE", TEXT + 0x800, "abcd"),
    Module("core9", TEXT + 0x200000, 4096, ("ext9",), 1, "live", "", TEXT + 0x900),
)
EXT_INIT = Symbol("ext_init", TEXT + 0x100000, 16, "t", "ext9")  # in a module, not among the kernel's own
LOAD = LoadAverage(0.5, 1.25, 12.004, 1, 7, 50)
CHECKS = (
    Check("loadavg", "its range", "ok", "0.5 can be"),
    Check("loadavg", "the count of tasks", "partial", "7 of 9 can be read"),
    Check("sys", "memory", "ok", "all 3 end"),
    Check("sys", "run queues", "suspect", f"CPU 1 runs 0x10, which is no task{ESCAPE}"),
    Check("vtop", "page tables", "ok", "_stext is where it should be"),
)
SUMMARY = SystemSummary(
    "Little",
    "1.0-little",
    "#1 for tests",
    "x86_64",
    "box",
    cpus=2,
    date=1700000100.0,
    uptime=100.0,
    load_average=LOAD,
    tasks=8,
    memory=64 << 20,
    page_size=PAGE,
    slide=0x1000000,
    panic_message="Oops: not on purpose",
    panic_cpu=1,
    panic_task=JOB,
    panic_lid=41,
    taints="",
    command_line="quiet",
)


THREADS = (
    Thread(41, 41, "job", JOB.address, 0, True, {"rip": TEXT + 0x40}, "registers of CPU 0"),
    Thread(0, 0, "idle", TEXT + 0x900, 1, True, {"rip": TEXT + 0x80}, "registers of CPU 1"),
    Thread(1, 1, "init", INIT.address, 0, False, {"rip": TEXT + 0x60}, "its stack"),
    Thread(2, 2, "kthreadd", KTHREAD.address, 0, False, {"rip": TEXT + 0x60}, "its stack"),
    Thread(40, 40, SHELL.command, SHELL.address, 1, False, {"rip": TEXT + 0x60}, "its stack"),
    Thread(43, 40, "helper", SHELL.address + 8, 1, False, {}, f"its registers are lost{ESCAPE}"),
)
SLEEP = Frame(TEXT + 0x60, DATA + 0x100, "TASK", "registers", "schedule", 0x20)
ENTERED = {"rip": USER, "rsp": USER + 0x100, "cs": 0x33}
STACKS: dict[int, tuple[Frame, ...]] = {
    41: (
        Frame(TEXT + 0x40, DATA + 0x300, "IRQ", "registers", "handle", 0x10, "ext", True),
        Frame(TEXT + 0x50, DATA + 0x380, "TASK", "exception", "work", 0x4, None, True, {"rip": TEXT + 0x50, "cs": 16}),
        Frame(TEXT + 0x58, DATA + 0x390, "TASK", "orc", "call", 8, None, False, None, f"no row{ESCAPE}"),
        Frame(TEXT + 0x70, DATA + 0x3A0, "TASK", "scan", "perhaps", 0x30),
    ),
    0: (Frame(TEXT + 0x80, DATA + 0x500, "TASK", "registers", "idle_loop", 0, None, True),),
    1: (SLEEP, Frame(USER, USER + 0x100, "USER", "exception", None, 0, None, True, ENTERED)),
    2: (SLEEP, Frame(TEXT + 0x90, DATA + 0x700, "TASK", "orc", f"odd{ESCAPE}", 1)),
    40: (SLEEP, Frame(USER + 8, USER + 0x200, "USER", "exception", None, 0, None, True, ENTERED)),
}
"""By thread id. Stacks of 1 and 40 differ only in user space."""


class LittleKernel(Kernel):
    """The kernel in every image."""

    release = "1.0-little"
    slide = 0x1000000

    def __init__(self, image: MemoryImage, vmlinux: str | None) -> None:
        self.image = image
        self.arch = X86_64
        self.types = NoTypes()
        self.symbols = Symbols(
            [
                Symbol("_text", TEXT, 0, "T"),
                Symbol("start", TEXT, 64, "t"),
                Symbol("text", TEXT + 8, 8, "T"),
                Symbol("banner", DATA, 37, "R"),
                Symbol("counter", DATA + 64, 8, "b"),
                Symbol("absolute", 0x100, 0, "A"),
                Symbol("odd", DATA + 72),
            ]
        )
        self.vmlinux_path = vmlinux
        self.quirks = ("its kernel was made up",)
        self.space = ImageSpace(self.arch, image, Paging(0x1000, 4))

    def read(self, vaddr: int, size: int) -> bytes:
        return self.space.read(vaddr, size)

    def translate(self, vaddr: int) -> int:
        return self.space.translate(vaddr)


class LittleSystem:
    """The operating system. `broken` names the lists that end in an error: "processes", "mappings", "log", ..."""

    name = "Little"

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.processes: tuple[Process, ...] = PROCESSES
        self.threads: tuple[Thread, ...] = THREADS
        self.source: SourceReader | None = None
        self.memory: tuple[tuple[int, int], ...] | None = None

    def _end(self, what: str) -> None:
        if what in self.broken:
            raise CorruptError(0xDEAD0000, f"the list of {what} leads nowhere{ESCAPE}")

    def for_each_process(self, kernel: Kernel) -> Iterator[Process]:
        yield from self.processes
        self._end("processes")

    def for_each_lwp(self, kernel: Kernel, pid: int | None = None) -> Iterator[Lwp]:
        for owner, lwps in LWPS.items():
            if pid in (None, owner):
                yield from lwps

    def read_arguments(self, kernel: Kernel, process: Process) -> list[bytes] | None:
        if process is LOST:
            raise NotInImageError(0x5000, PAGE, "excluded", "little")
        return ARGUMENTS.get(process.pid)

    def read_environment(self, kernel: Kernel, process: Process) -> list[bytes] | None:
        if process is LOST:
            raise NotInImageError(0x5000, PAGE, "excluded", "little")
        return ENVIRONMENT.get(process.pid)

    def for_each_file(self, kernel: Kernel, pid: int | None = None) -> Iterator[OpenFile]:
        yield from (file for file in FILES if pid in (None, file.pid))

    def for_each_counter(self, kernel: Kernel) -> Iterator[Counter]:
        yield from COUNTERS
        self._end("counters")

    def for_each_mapping(self, kernel: Kernel, pid: int) -> Iterator[MemoryMapping]:
        yield from MAPPINGS if pid == 1 else ()
        self._end("mappings")

    def read_core_notes(
        self, kernel: Kernel, process: Process, mappings: Sequence[MemoryMapping]
    ) -> tuple[list[Note], list[str]]:
        return [Note("CORE", 1, process.pid.to_bytes(4, "little") * 84)], [f"its name is {process.command}"]

    def read_user_threads(self, kernel: Kernel, process: Process) -> tuple[list[UserThread], list[str]]:
        registers = {"rip": USER + 4, "rsp": USER + 8}
        return [
            UserThread(process.pid, f"{process.command}{ESCAPE}", registers),
            UserThread(process.pid + 5000, "lost", {}, False, "its stack is gone"),
        ], [f"its name is {process.command}"]

    def read_auxiliary_vector(self, kernel: Kernel, process: Process, word_size: int) -> bytes:
        return bytes(2 * word_size)

    def read_load_average(self, kernel: Kernel) -> LoadAverage:
        self._end("load")
        return LOAD

    def for_each_log_record(self, kernel: Kernel) -> Iterator[LogRecord]:
        yield from LOG
        self._end("log")

    def for_each_module(self, kernel: Kernel) -> Iterator[Module]:
        yield from MODULES
        self._end("modules")

    def read_summary(self, kernel: Kernel) -> SystemSummary:
        return SUMMARY

    def for_each_thread(self, kernel: Kernel) -> Iterator[Thread]:
        yield from self.threads

    def for_each_unwind_table(self, kernel: Kernel, *, modules: bool) -> Iterator[UnwindTable]:
        if not modules:
            yield UnwindTable([TEXT, TEXT + 4], TEXT + 64, [8, 16], lambda size: UnwindRow(0, 0, "call", "rsp", size))

    def for_each_module_types(self, kernel: Kernel, types: BtfTypes) -> Iterator[tuple[str, BtfTypes]]:
        yield from ()

    def find_memory(self, kernel: Kernel) -> Sequence[tuple[int, int]] | None:
        return self.memory

    def for_each_area(self, kernel: Kernel, *, modules: bool) -> Iterator[Area]:
        if modules:
            for module in MODULES:
                yield Area(
                    f".text.{module.name}", module.address, module.address + module.size, True, False, module.name
                )
            self._end("modules")
        elif "areas" not in self.broken:
            yield Area(".text", TEXT, DATA, executable=True)
            yield Area(".data", DATA, GONE, writable=True)

    def unwind(self, kernel: Kernel, thread: Thread) -> Iterator[Frame]:
        yield from STACKS.get(thread.lid, ())

    def find_sources(self, kernel: Kernel) -> Sources:
        return Sources("a table of its own", kernel.types.source, None, ("no unwind rules",))

    def for_each_check(self, kernel: Kernel, command: str | None = None) -> Iterator[Check]:
        yield from (check for check in CHECKS if command in (None, check.command))

    def address_space(self, kernel: LittleKernel, address: int) -> ImageSpace:
        if address != INIT.address:
            raise CommandError("it has no user memory")
        return kernel.space

    def kernel_space(self, kernel: LittleKernel) -> ImageSpace:
        return kernel.space

    def all_symbols(self, kernel: Kernel) -> SymbolTable:
        ranges = [(module.address, module.address + module.size, module.name) for module in MODULES]
        return JoinedSymbols(kernel.symbols, {"ext9": ListedSymbols([EXT_INIT])}, ranges)

    def symbolize(self, kernel: Kernel, address: int) -> str | None:
        return None

    def open_source_reader(self, kernel: Kernel, find_file: object) -> SourceReader | None:
        return self.source


class EndlessSystem(LittleSystem):
    """The same, with a log that never ends."""

    def for_each_log_record(self, kernel: Kernel) -> Iterator[LogRecord]:
        sequence = 0
        while True:
            yield LogRecord(sequence, sequence / 1000, 0, 6, "and so on")
            sequence += 1


class MovingSystem(LittleSystem):
    """The same, running: with each look more is averaged, and init has used a second more of processors."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def for_each_process(self, kernel: Kernel) -> Iterator[Process]:
        self.looks += 1
        self.processes = (INIT._replace(user_time=float(self.looks)), *PROCESSES[1:])
        return super().for_each_process(kernel)

    def read_load_average(self, kernel: Kernel) -> LoadAverage:
        self.looks += 1
        return LOAD._replace(one=float(self.looks))


class Registered:
    """The entry in the registry."""

    name = "Little"

    def __init__(self, system: LittleSystem) -> None:
        self.system = system
        self.opened: list[dict[str, Any]] = []

    def identify(self, image: MemoryImage, progress: object) -> list[Identity]:
        if Path(image.paths[0]).name == "nothing":
            raise KernelNotFoundError("no kernel is in it")
        paging = Paging(0x1000, 4)
        return [Identity("Little", "x86_64", "1.0-little", "#1", paging, 0x1000000, "c0ffee", True, "Little 1.0")]

    def open(self, image: MemoryImage, path: str | None, options: KernelOptions) -> Kernel:
        self.identify(image, None)
        self.opened.append(options._asdict())
        return LittleKernel(image, path)

    def owns(self, kernel: Kernel) -> bool:
        return isinstance(kernel, LittleKernel)

    def room(self) -> LittleSystem:
        return self.system


def install(monkeypatch: pytest.MonkeyPatch) -> Registered:
    """Make the little system the only one, for one test."""
    entry = Registered(LittleSystem())
    monkeypatch.setattr("kvm_dbg.kernel.SYSTEMS", (entry,))
    return entry


def main(words: list[str]) -> int:
    """Run `kvm-dbg` with the little system in every image; the first word may be "--endless" or "--moving"."""
    import kvm_dbg.kernel
    from kvm_dbg.cli import main as run

    kinds = {"--endless": EndlessSystem, "--moving": MovingSystem}
    kind = kinds.get(words[0] if words else "")
    entry = Registered((kind or LittleSystem)())
    kvm_dbg.kernel.SYSTEMS = (entry,)  # type: ignore[assignment]
    return run(words[1:] if kind else words)


def write_image(path: Path) -> str:
    """Write the image of a machine that runs it, and return its path."""
    tables = PageTables()
    for vaddr, paddr, data in (
        (TEXT, 0x200000, TEXT_BYTES),
        (DATA, 0x201000, DATA_BYTES),
        (USER, 0x300000, USER_BYTES),
    ):
        tables.page(paddr, data)
        tables.map(vaddr, paddr)
    tables.map(GONE, 0x400000)
    path.write_bytes(write_lime(sorted(tables.segments().items())))
    return str(path)


def write_ram(path: Path) -> str:
    """Write the RAM of a guest that runs it, with protected pages, and return its path."""
    tables = PageTables()
    for vaddr, paddr, data, flags in (
        (TEXT, 0x200000, TEXT_BYTES, PAGE_FLAGS & ~WRITABLE),
        (DATA, 0x201000, DATA_BYTES, PAGE_FLAGS | NO_EXECUTE),
        (SPARE, 0x203000, b"spare", PAGE_FLAGS | NO_EXECUTE),
        (CONSTANT, 0x202000, b"constant", PAGE_FLAGS & ~WRITABLE | NO_EXECUTE),
        (DEVICE, DEVICE_PADDR, b"device", PAGE_FLAGS | NO_EXECUTE),
        (USER, 0x300000, USER_BYTES, PAGE_FLAGS),
    ):
        tables.page(paddr, data)
        tables.map(vaddr, paddr, flags=flags)
    tables.map(GONE, 0x400000)  # behind the end of the RAM
    ram = bytearray(0x301000)
    for paddr, data in tables.segments().items():
        ram[paddr : paddr + PAGE] = data
    path.write_bytes(ram)
    return str(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
