"""A virtual machine by QEMU's QMP socket: its memory while it runs, or a snapshot of it, and its CPUs' registers.

The memory is read where QEMU keeps it, if that can be seen from here (`qmp_memory`); else QEMU dumps it, and what is
shown is a snapshot of that moment. The notes with the registers are QEMU's, as in a dump (`qmp_dump`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kvm_dbg.errors import CommandError, FormatError
from kvm_dbg.image.base import ImageInfo, MemoryImage, Note, Piece, Range
from kvm_dbg.image.elfcore import ElfCoreImage
from kvm_dbg.image.extent import ExtentImage
from kvm_dbg.image.qmp import TIMEOUT, Machine
from kvm_dbg.image.qmp_dump import Progress, read_cpu_notes, save
from kvm_dbg.image.qmp_memory import Memory, open_memory, read_regions
from kvm_dbg.image.source import FileSource

NAME = "qmp"


def open_guest(
    address: str,
    *,
    writable: bool = False,
    timeout: float = TIMEOUT,
    directory: str | None = None,
    progress: Progress | None = None,
) -> MemoryImage:
    """Open the memory of the virtual machine whose monitor listens at `address`.

    Args:
        address: path of a Unix socket, or HOST:PORT.
        writable: so that `MemoryImage.put` can change it; a snapshot cannot be changed.
        timeout: seconds without a word after which QEMU counts as stuck.
        directory: where a snapshot is kept, if there must be one; None for the usual place of temporary files.
        progress: called with a line of text now and then.

    Raises:
        FileAccessError: nothing listens there, no permission, no answer, or no room for a snapshot.
        UnknownFormatError: what answers does not speak QMP.
        CommandError: QEMU refuses to show the guest's memory, or to let it be written to from here.
    """
    machine = Machine(address, timeout)
    with machine.connected() as qmp:
        arch = qmp.execute("query-target").get("arch")
        memory: Memory | None = None
        problems: tuple[str, ...]
        try:
            memory, problems = open_memory(qmp, read_regions(qmp), writable=writable)
        except (CommandError, FormatError) as error:
            problems = (str(error),)
        if memory is not None:
            return GuestImage(machine, memory, arch, problems)
        if writable:
            raise CommandError(f"{address}: the guest's memory cannot be written to: {'; '.join(problems)}")
        return SnapshotImage(machine, arch, problems, directory, progress)


class GuestImage(ExtentImage):
    """The memory of a virtual machine while it changes.

    Args:
        machine: its monitor.
        memory: where its memory is.
        arch: QEMU's word for its processor.
        problems: why it cannot be read in better ways.
    """

    live = True

    def __init__(self, machine: Machine, memory: Memory, arch: str | None, problems: tuple[str, ...]) -> None:
        super().__init__(memory.source, memory.extents)
        machine.watch()
        self.paths = (machine.address,)
        self.control = machine
        self._machine = machine
        self._memory = memory
        self._arch = arch
        self._problems = problems
        self._notes: tuple[Note, ...] | None = None
        self._no_notes = ""

    @property
    def info(self) -> ImageInfo:
        quirks = list(self._memory.quirks)
        if self._problems:
            quirks.append(f"read from {self._memory.how}: {'; '.join(self._problems)}")
        if self._no_notes:
            quirks.append(f"registers of CPUs are not known: {self._no_notes}")
        details = (("memory", self._memory.how),)
        return ImageInfo(NAME, "QEMU", self._arch, quirks=tuple(quirks), details=details)

    @property
    def notes(self) -> tuple[Note, ...]:
        """QEMU's notes of the CPUs, taken when they are first asked for, and again after a refresh."""
        if self._notes is None:
            with self._machine.connected() as qmp:
                self.ran_on = self._machine.is_running()
                self._no_notes = ""
                try:
                    self._notes = read_cpu_notes(qmp, self._extents[0].start)
                except (CommandError, FormatError) as error:
                    self._notes, self._no_notes = (), str(error)
        return self._notes

    @notes.setter
    def notes(self, notes: tuple[Note, ...]) -> None:
        self._notes = notes

    def refresh(self) -> None:
        self._machine.check()
        self._notes = None

    def close(self) -> None:
        self._machine.close()
        super().close()

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        ran = False
        try:
            with self._machine.halted() as ran:
                if ran:
                    self._notes = None
                _ = self.notes
                yield
        finally:
            self.ran_on = self.ran_on or ran


class SnapshotImage(MemoryImage):
    """The memory of a virtual machine as it was at one moment, in a private file without a name.

    Args:
        machine: its monitor.
        arch: QEMU's word for its processor.
        problems: why its memory cannot be read while it changes.
        directory, progress: as of `open_guest`.
    """

    def __init__(
        self,
        machine: Machine,
        arch: str | None,
        problems: tuple[str, ...],
        directory: str | None,
        progress: Progress | None,
    ) -> None:
        self.paths = (machine.address,)
        self.control = machine
        self._machine = machine
        self._arch = arch
        self._problems = problems
        self._directory = directory
        self._progress = progress
        self._image = self._take()
        self.notes = self._image.notes

    def _take(self) -> ElfCoreImage:
        with self._machine.connected() as qmp:
            summary = qmp.execute("query-memory-size-summary")
            size = int(summary["base-memory"]) + int(summary.get("plugged-memory", 0))
            with save(qmp, size, self._directory, self._progress) as file:
                source = FileSource(f"/dev/fd/{file.fileno()}")
        source.path = self._machine.address
        try:
            return ElfCoreImage(source)
        except BaseException:
            source.close()
            raise

    @property
    def info(self) -> ImageInfo:
        inner = self._image.info
        why = f": {'; '.join(self._problems)}" if self._problems else ""
        quirk = f"a snapshot: what the guest does afterwards shows after `refresh` only{why}"
        return inner._replace(format=NAME, machine=inner.machine or self._arch, quirks=(quirk, *inner.quirks))

    def refresh(self) -> None:
        taken = self._take()
        self._image.close()
        self._image = taken
        self.notes = taken.notes

    def coverage(self, start: int = 0, end: int | None = None) -> Iterator[Range]:
        return self._image.coverage(start, end)

    def pieces(self, paddr: int, size: int) -> Iterator[Piece]:
        return self._image.pieces(paddr, size)

    def read(self, paddr: int, size: int) -> bytes:
        return self._image.read(paddr, size)

    def for_each_chunk(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        return self._image.for_each_chunk(start, end)

    def close(self) -> None:
        self._image.close()
