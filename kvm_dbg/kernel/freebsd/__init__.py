"""FreeBSD, in its own words: `FREEBSD` is what the floors above see of it.

Each function's module is imported when it is first used, so that a short command pays for nothing else.
"""

# ruff: noqa: ARG002 - what is not read of FreeBSD needs no arguments
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from kvm_dbg.errors import UnsupportedError

if TYPE_CHECKING:
    from kvm_dbg.debuginfo.btf import BtfTypes
    from kvm_dbg.image.base import Note
    from kvm_dbg.kernel.base import (
        AddressSpaceReader,
        Area,
        Check,
        Frame,
        Kernel,
        LoadAverage,
        LogRecord,
        Lwp,
        MemoryMapping,
        Module,
        OperatingSystem,
        Process,
        SourceReader,
        Sources,
        SystemSummary,
        Thread,
        UserThread,
    )
    from kvm_dbg.kernel.unwind_rule import UnwindTable
    from kvm_dbg.kernel.usage import Counter, OpenFile
    from kvm_dbg.symbols.base import SymbolTable


class _FreeBSD:
    """FreeBSD as an `OperatingSystem`."""

    name = "FreeBSD"

    def for_each_process(self, kernel: Kernel) -> Iterator[Process]:
        from kvm_dbg.kernel.freebsd.process import for_each_process

        return for_each_process(kernel)

    def for_each_lwp(self, kernel: Kernel, pid: int | None = None) -> Iterator[Lwp]:
        from kvm_dbg.kernel.freebsd.process import for_each_lwp

        return for_each_lwp(kernel, pid)

    def read_arguments(self, kernel: Kernel, process: Process) -> list[bytes] | None:
        from kvm_dbg.kernel.freebsd.argument import read_arguments

        return read_arguments(kernel, process)

    def read_environment(self, kernel: Kernel, process: Process) -> list[bytes] | None:
        from kvm_dbg.kernel.freebsd.argument import read_environment

        return read_environment(kernel, process)

    def for_each_file(self, kernel: Kernel, pid: int | None = None) -> Iterator[OpenFile]:
        from kvm_dbg.kernel.freebsd.file import for_each_file

        return for_each_file(kernel, pid)

    def for_each_counter(self, kernel: Kernel) -> Iterator[Counter]:
        raise UnsupportedError("FreeBSD's counters of memory and events")

    def for_each_mapping(self, kernel: Kernel, pid: int) -> Iterator[MemoryMapping]:
        from kvm_dbg.kernel.freebsd.vm import for_each_mapping

        return for_each_mapping(kernel, pid)

    def read_core_notes(
        self, kernel: Kernel, process: Process, mappings: Sequence[MemoryMapping]
    ) -> tuple[list[Note], list[str]]:
        raise UnsupportedError("core files of FreeBSD's processes")

    def read_user_threads(self, kernel: Kernel, process: Process) -> tuple[list[UserThread], list[str]]:
        raise UnsupportedError("the user's side of FreeBSD's processes")

    def read_auxiliary_vector(self, kernel: Kernel, process: Process, word_size: int) -> bytes:
        raise UnsupportedError("the auxiliary vector of FreeBSD's processes")

    def read_load_average(self, kernel: Kernel) -> LoadAverage:
        from kvm_dbg.kernel.bsd.loadavg import read_load_average

        return read_load_average(kernel)

    def for_each_log_record(self, kernel: Kernel) -> Iterator[LogRecord]:
        from kvm_dbg.kernel.freebsd.summary import for_each_log_record

        return for_each_log_record(kernel)

    def for_each_module(self, kernel: Kernel) -> Iterator[Module]:
        from kvm_dbg.kernel.freebsd.module import for_each_module

        return for_each_module(kernel)

    def read_summary(self, kernel: Kernel) -> SystemSummary:
        from kvm_dbg.kernel.freebsd.summary import read_summary

        return read_summary(kernel)

    def for_each_thread(self, kernel: Kernel) -> Iterator[Thread]:
        from kvm_dbg.kernel.freebsd.thread import for_each_thread

        return for_each_thread(kernel)

    def address_space(self, kernel: Kernel, address: int) -> AddressSpaceReader:
        from kvm_dbg.kernel.freebsd.user import address_space

        return address_space(kernel, address)

    def kernel_space(self, kernel: Kernel) -> AddressSpaceReader:
        from kvm_dbg.kernel.space import kernel_space

        return kernel_space(kernel)

    def all_symbols(self, kernel: Kernel) -> SymbolTable:
        from kvm_dbg.kernel.freebsd.module import all_symbols

        return all_symbols(kernel)

    def symbolize(self, kernel: Kernel, address: int) -> str | None:
        from kvm_dbg.kernel.bsd.symbolize import symbolize

        return symbolize(kernel, address)

    def for_each_unwind_gap(self, kernel: Kernel, covered: Sequence[tuple[int, int]]) -> Iterator[UnwindTable]:
        from kvm_dbg.kernel.freebsd.chain import for_each_unwind_gap

        return for_each_unwind_gap(kernel, covered)

    def for_each_unwind_table(self, kernel: Kernel, *, modules: bool) -> Iterator[UnwindTable]:
        yield from ()

    def for_each_module_types(self, kernel: Kernel, types: BtfTypes) -> Iterator[tuple[str, BtfTypes]]:
        yield from ()

    def find_memory(self, kernel: Kernel) -> Sequence[tuple[int, int]] | None:
        return None

    def for_each_area(self, kernel: Kernel, *, modules: bool) -> Iterator[Area]:
        yield from ()

    def unwind(self, kernel: Kernel, thread: Thread) -> Iterator[Frame]:
        from kvm_dbg.kernel.freebsd.unwind import unwind

        return unwind(kernel, thread)

    def find_sources(self, kernel: Kernel) -> Sources:
        from kvm_dbg.kernel.bsd.source import find_sources

        return find_sources(kernel)

    def for_each_check(self, kernel: Kernel, command: str | None = None) -> Iterator[Check]:
        from kvm_dbg.kernel.freebsd.check import for_each_check

        return for_each_check(kernel, command)

    def open_source_reader(self, kernel: Kernel, find_file: Callable[[Module], str | None]) -> SourceReader | None:
        return None


FREEBSD: OperatingSystem = _FreeBSD()
