"""Linux, in its own words: `LINUX` is what the floors above see of it.

Each function's module is imported when it is first used, so that a short command pays for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

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


class Linux:
    """Linux as an `OperatingSystem`."""

    name = "Linux"

    def for_each_process(self, kernel: Kernel) -> Iterator[Process]:
        from kvm_dbg.kernel.linux.process import for_each_process

        return for_each_process(kernel)

    def for_each_lwp(self, kernel: Kernel, pid: int | None = None) -> Iterator[Lwp]:
        from kvm_dbg.kernel.linux.process import for_each_lwp

        return for_each_lwp(kernel, pid)

    def read_arguments(self, kernel: Kernel, process: Process) -> list[bytes] | None:
        from kvm_dbg.kernel.linux.argument import read_arguments

        return read_arguments(kernel, process)

    def read_environment(self, kernel: Kernel, process: Process) -> list[bytes] | None:
        from kvm_dbg.kernel.linux.argument import read_environment

        return read_environment(kernel, process)

    def for_each_file(self, kernel: Kernel, pid: int | None = None) -> Iterator[OpenFile]:
        from kvm_dbg.kernel.linux.file import for_each_file

        return for_each_file(kernel, pid)

    def for_each_counter(self, kernel: Kernel) -> Iterator[Counter]:
        from kvm_dbg.kernel.linux.vmstat import for_each_counter

        return for_each_counter(kernel)

    def for_each_mapping(self, kernel: Kernel, pid: int) -> Iterator[MemoryMapping]:
        from kvm_dbg.kernel.linux.vma import for_each_mapping

        return for_each_mapping(kernel, pid)

    def read_core_notes(
        self, kernel: Kernel, process: Process, mappings: Sequence[MemoryMapping]
    ) -> tuple[list[Note], list[str]]:
        from kvm_dbg.kernel.linux.core_note import read_core_notes

        return read_core_notes(kernel, process, mappings)

    def read_user_threads(self, kernel: Kernel, process: Process) -> tuple[list[UserThread], list[str]]:
        from kvm_dbg.kernel.linux.user_thread import read_user_threads

        return read_user_threads(kernel, process)

    def read_auxiliary_vector(self, kernel: Kernel, process: Process, word_size: int) -> bytes:
        from kvm_dbg.kernel.linux.user_thread import read_auxiliary_vector

        return read_auxiliary_vector(kernel, process, word_size)

    def read_load_average(self, kernel: Kernel) -> LoadAverage:
        from kvm_dbg.kernel.linux.loadavg import read_load_average

        return read_load_average(kernel)

    def for_each_log_record(self, kernel: Kernel) -> Iterator[LogRecord]:
        from kvm_dbg.kernel.linux.printk import for_each_log_record

        return for_each_log_record(kernel)

    def for_each_module(self, kernel: Kernel) -> Iterator[Module]:
        from kvm_dbg.kernel.linux.module import for_each_module

        return for_each_module(kernel)

    def read_summary(self, kernel: Kernel) -> SystemSummary:
        from kvm_dbg.kernel.linux.summary import read_summary

        return read_summary(kernel)

    def for_each_thread(self, kernel: Kernel) -> Iterator[Thread]:
        from kvm_dbg.kernel.linux.thread import for_each_thread

        return for_each_thread(kernel)

    def address_space(self, kernel: Kernel, address: int) -> AddressSpaceReader:
        from kvm_dbg.kernel.linux.mm import address_space

        return address_space(kernel, address)

    def kernel_space(self, kernel: Kernel) -> AddressSpaceReader:
        from kvm_dbg.kernel.space import kernel_space

        return kernel_space(kernel)

    def all_symbols(self, kernel: Kernel) -> SymbolTable:
        from kvm_dbg.kernel.layout import observed
        from kvm_dbg.kernel.linux.symbolize import read_all_symbols

        return observed(kernel, read_all_symbols)

    def symbolize(self, kernel: Kernel, address: int) -> str | None:
        from kvm_dbg.kernel.linux.symbolize import symbolize

        return symbolize(kernel, address)

    def for_each_unwind_gap(self, kernel: Kernel, covered: Sequence[tuple[int, int]]) -> Iterator[UnwindTable]:
        from kvm_dbg.kernel.linux.orc_table import for_each_unwind_gap

        return for_each_unwind_gap(kernel, covered)

    def for_each_unwind_table(self, kernel: Kernel, *, modules: bool) -> Iterator[UnwindTable]:
        from kvm_dbg.kernel.linux.orc_table import for_each_unwind_table

        return for_each_unwind_table(kernel, modules=modules)

    def for_each_module_types(self, kernel: Kernel, types: BtfTypes) -> Iterator[tuple[str, BtfTypes]]:
        from kvm_dbg.kernel.linux.module_types import for_each_module_types

        return for_each_module_types(kernel, types)

    def find_memory(self, kernel: Kernel) -> Sequence[tuple[int, int]] | None:
        from kvm_dbg.kernel.linux.resource import find_memory

        return find_memory(kernel)

    def for_each_area(self, kernel: Kernel, *, modules: bool) -> Iterator[Area]:
        from kvm_dbg.kernel.linux.area import for_each_area, for_each_module_area

        return for_each_module_area(kernel) if modules else for_each_area(kernel)

    def unwind(self, kernel: Kernel, thread: Thread) -> Iterator[Frame]:
        from kvm_dbg.kernel.linux.unwind import unwind

        return unwind(kernel, thread)

    def find_sources(self, kernel: Kernel) -> Sources:
        from kvm_dbg.kernel.linux.source import find_sources

        return find_sources(kernel)

    def for_each_check(self, kernel: Kernel, command: str | None = None) -> Iterator[Check]:
        from kvm_dbg.kernel.linux.check import for_each_check

        return for_each_check(kernel, command)

    def open_source_reader(self, kernel: Kernel, find_file: Callable[[Module], str | None]) -> SourceReader | None:
        from kvm_dbg.kernel.linux.source_line import open_source_reader

        return open_source_reader(kernel, find_file)


LINUX: OperatingSystem = Linux()
