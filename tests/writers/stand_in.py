"""A kernel that never was, for tests of what stands above `Kernel`: a few pages, five threads, two address spaces.

Run as a program (`python -m tests.writers.stand_in serve --control FILE...`) it is `kvm-dbg` with that kernel in
every image: what the tests of adapters put in the place of the interpreter that has the package. Images named
`refused` cannot be opened; behind those named `machine` is one that can be halted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kvm_dbg.arch.x86_64 import X86_64
from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.debuginfo.base import Type, TypeTable
from kvm_dbg.debuginfo.btf import BtfTypes
from kvm_dbg.errors import CommandError, FileAccessError, NotMappedError
from kvm_dbg.image.base import BytesImage, MemoryImage, PartialRead, Presence, Range
from kvm_dbg.image.overlay import OverlayImage
from kvm_dbg.kernel.base import Area, Check, Kernel, LoadAverage, Process, Sources, Thread
from kvm_dbg.kernel.unwind_rule import UnwindTable
from kvm_dbg.symbols.base import Symbol, SymbolTable

PAGE = 4096
TEXT = 0xFFFFFFFF_82000000  # run-time address of _text
SLIDE = 0x0100_0000
KERNEL_PAGES = 64
HALTED = ".halted"
BUSY = ".busy"  # behind the image's name: the file that tells that the endless log is being read
USER = 0x40_0000  # address that two processes have mapped, each to its own page
KERNEL_BYTES = bytes((7 * index + (index >> 8)) & 0xFF for index in range(KERNEL_PAGES * PAGE))
INIT_BYTES = b"init's page".ljust(PAGE, b"i")
SHELL_BYTES = b"shell's page".ljust(PAGE, b"s")
TASKS = {"init": TEXT + 0x1000, "shell": TEXT + 0x2000, "kthreadd": TEXT + 0x3000, "swapper/0": TEXT + 0x4000}

THREADS = (
    Thread(
        41,
        40,
        'sh"<ell>',
        TASKS["shell"],
        1,
        True,
        {"rip": TEXT + 0x100, "rsp": TEXT + 0x5000, "eflags": 0x246},
        "note",
    ),
    Thread(1, 1, "init", TASKS["init"], 0, False, {"rip": TEXT + 0x200, "rsp": TEXT + 0x6000, "rbp": 0x1234}, "frame"),
    Thread(2, 2, "kthreadd", TASKS["kthreadd"], 0, False, {"rip": TEXT + 0x300}, "frame"),
    Thread(0, 0, "swapper/0", TASKS["swapper/0"], 0, False, {}, "nothing was saved"),
    Thread(0, 0, "swapper/1", TASKS["swapper/0"] + 0x800, 1, False, {}, "nothing was saved"),
)


class Space:
    """Pages by virtual address."""

    def __init__(self, image: OverlayImage, pages: dict[int, int]) -> None:
        self._image = image
        self._pages = pages

    def translate(self, vaddr: int) -> int:
        try:
            return self._pages[vaddr // PAGE] + vaddr % PAGE
        except KeyError:
            raise NotMappedError(vaddr, "the entry is empty", level="PTE", entry=0, entry_paddr=0x1000) from None

    def read(self, vaddr: int, size: int) -> bytes:
        parts = []
        while size > 0:
            length = min(size, PAGE - vaddr % PAGE)
            parts.append(self._image.read(self.translate(vaddr), length))
            vaddr += length
            size -= length
        return b"".join(parts)

    def read_partial(self, vaddr: int, size: int) -> PartialRead:
        try:
            return PartialRead(self.read(vaddr, size), ())
        except NotMappedError:
            return PartialRead(bytes(size), (Range(vaddr, size, Presence.HOLE),))


class Symbols(SymbolTable):
    """A handful of names."""

    def __init__(self, symbols: Iterable[Symbol]) -> None:
        self._symbols = sorted(symbols, key=lambda symbol: symbol.address)

    def find(self, name: str) -> Symbol | None:
        return next((symbol for symbol in self._symbols if symbol.name == name), None)

    def find_all(self, name: str) -> tuple[Symbol, ...]:
        return tuple(symbol for symbol in self._symbols if symbol.name == name)

    def find_at(self, address: int) -> Symbol | None:
        return next((symbol for symbol in reversed(self._symbols) if symbol.address <= address), None)

    def for_each(self) -> Iterator[Symbol]:
        yield from self._symbols


class NoTypes(TypeTable):
    """No type at all."""

    source = "nothing"

    def find_type(self, name: str) -> Type | None:
        return None

    def find_enumerator(self, name: str) -> int | None:
        return None


class StandInMachine:
    """A machine that stands still while the file beside its image is there; it is gone if its image is."""

    def __init__(self, path: str) -> None:
        self._image, self._mark = Path(path), Path(path + HALTED)

    def is_running(self) -> bool:
        if not self._image.exists():
            raise FileAccessError(self._image, "the machine is gone")
        return not self._mark.exists()

    def halt(self) -> None:
        if self.is_running():
            self._mark.touch()

    def resume(self) -> None:
        if not self.is_running():
            self._mark.unlink()


class StandInKernel(Kernel):
    """The kernel: its text and data in one run of pages, at physical 1 MiB."""

    release = "6.6.6-stand-in"
    slide = SLIDE
    vmlinux_path: str | None = None

    def __init__(self, path: str = "stand-in") -> None:
        base = 1 << 20
        image = BytesImage({base: KERNEL_BYTES, base << 1: INIT_BYTES, base << 2: SHELL_BYTES})
        image.paths = (path,)
        if path.endswith("machine"):
            image.control = StandInMachine(path)
        self.image = OverlayImage(image)
        self.arch = X86_64
        self.symbols = Symbols([Symbol("_text", TEXT), Symbol("init_task", TASKS["swapper/0"])])
        self.types = NoTypes()
        self.space = Space(self.image, {TEXT // PAGE + page: base + page * PAGE for page in range(KERNEL_PAGES)})
        self.users = {
            TASKS["init"]: Space(self.image, {USER // PAGE: base << 1}),
            TASKS["shell"]: Space(self.image, {USER // PAGE: base << 2}),
        }

    def read(self, vaddr: int, size: int) -> bytes:
        return self.space.read(vaddr, size)

    def translate(self, vaddr: int) -> int:
        return self.space.translate(vaddr)


class StandInSystem:
    """The operating system: what it is asked for in tests, and nothing else."""

    name = "Stand-in"

    def for_each_thread(self, kernel: StandInKernel) -> Iterator[Thread]:
        yield from THREADS

    def for_each_process(self, kernel: StandInKernel) -> Iterator[Process]:
        yield Process(1, TASKS["init"], ppid=0, uid=0, state="S", command="init")
        yield Process(2, TASKS["kthreadd"], ppid=0, uid=0, state="S", command="kthreadd", kernel_thread=True)
        yield Process(40, TASKS["shell"], ppid=1, uid=1000, state="R", command='sh"<ell>')

    def read_load_average(self, kernel: StandInKernel) -> LoadAverage:
        return LoadAverage(0.5, 1.25, 2.0, 1, 5, 41)

    def for_each_log_record(self, kernel: StandInKernel) -> Iterator[Any]:
        """Never end: what Ctrl-C is tried on. A file beside the image tells that it has begun."""
        from kvm_dbg.kernel.base import LogRecord

        Path(kernel.image.paths[0] + BUSY).touch()
        sequence = 0
        while True:
            time.sleep(0.001)
            yield LogRecord(sequence, sequence / 1000, 0, 6, "and so on")
            sequence += 1

    def find_sources(self, kernel: StandInKernel) -> Sources:
        return Sources("a table of its own", kernel.types.source, None)

    def for_each_check(self, kernel: StandInKernel, command: str | None = None) -> Iterator[Check]:
        yield from ()

    def for_each_module_types(self, kernel: Kernel, types: BtfTypes) -> Iterator[tuple[str, BtfTypes]]:
        yield from ()

    def for_each_area(self, kernel: StandInKernel, *, modules: bool) -> Iterator[Area]:
        if not modules:
            yield Area(".data", TEXT, TEXT + KERNEL_PAGES * PAGE, writable=True)

    def for_each_unwind_table(self, kernel: StandInKernel, *, modules: bool) -> Iterator[UnwindTable]:
        yield from ()

    def all_symbols(self, kernel: StandInKernel) -> SymbolTable:
        return kernel.symbols

    def kernel_space(self, kernel: StandInKernel) -> Space:
        return kernel.space

    def address_space(self, kernel: StandInKernel, address: int) -> Space:
        try:
            return kernel.users[address]
        except KeyError:
            raise CommandError("a kernel thread has no user memory") from None


class StandInSession(Session):
    """A session whose every image holds the stand-in."""

    def open(self, request: OpenRequest, given: MemoryImage | None = None) -> Kernel:
        if any(image.endswith("refused") for image in request.images):
            raise FileAccessError(request.images[0], "refused, as its name says")
        kernel = StandInKernel(request.images[0])
        kernel.vmlinux_path = request.vmlinux
        self.close()
        self.request = request
        self._kernel = kernel
        return kernel

    @property
    def system(self) -> Any:
        return StandInSystem()


def main(words: list[str]) -> int:
    from kvm_dbg.rsp.program import run_program

    if words[:1] != ["serve"]:
        raise SystemExit(f"{words} is not what adapters ask for")
    return run_program(words[1:], StandInSession())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
