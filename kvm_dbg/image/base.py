"""What every reader of memory images has in common: reading, and knowing what can be read.

An image answers one question: which bytes are at a physical address? It knows of each address whether its bytes
are in the file, were left out on purpose, or are missing because the file ends too early, and it never invents
any. Readers derive from `MemoryImage` and implement `pieces`; those with a faster way override `read` as well.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from kvm_dbg.errors import CommandError, NotInImageError

ReadPhys = Callable[[int, int], bytes]  # (paddr, size in bytes) -> bytes; raises ReadError
CHUNK_SIZE = 1 << 20  # bytes that `for_each_chunk` yields at most at a time


class Presence(enum.Enum):
    """Where the bytes of a physical range are."""

    PRESENT = "present"  # in the file
    EXCLUDED = "excluded"  # memory, left out on purpose: dump level, or a hypervisor's filter
    TRUNCATED = "truncated"  # memory that the file should hold, but the file ends too early or is incomplete
    HOLE = "hole"  # not memory, as far as the image tells
    REFUSED = "refused"  # memory that the running kernel does not show


class Range(NamedTuple):
    """A run of physical addresses, all of one presence; `start` and `size` in bytes."""

    start: int
    size: int
    presence: Presence

    @property
    def end(self) -> int:
        """Return the first physical address after the run."""
        return self.start + self.size


class Piece(NamedTuple):
    """A part of a read: `data` has `size` bytes if present, else it is None."""

    paddr: int
    size: int
    presence: Presence
    data: bytes | None


class PartialRead(NamedTuple):
    """The answer of `read_partial`: zeros stand in `data` where `missing` says so, and nowhere else."""

    data: bytes
    missing: tuple[Range, ...]

    def digits(self, start: int) -> str:
        """Return two hexadecimal digits for each byte, "--" for missing ones; `start` is the address of the first."""
        digits = self.data.hex()
        for run in self.missing:
            at = 2 * (run.start - start)
            digits = digits[:at] + "--" * run.size + digits[at + 2 * run.size :]
        return digits


class Note(NamedTuple):
    """One ELF note, as it stands in the file: `type` is the number, `desc` the raw descriptor."""

    name: str
    type: int
    desc: bytes


class ImageInfo(NamedTuple):
    """What a file says of itself before any kernel is looked for; None or empty where it does not say.

    machine: the processor as kvm_dbg's registry of architectures names it ("x86_64"), None if the file has no word
    for it. dump_level: makedumpfile's -d bits. complete: False if the file is truncated or flagged incomplete.
    quirks: one sentence each, things a careful reader wants to know. system: the operating system that the format
    belongs to, by its name in `kernel.SYSTEMS`. root: physical address of the kernel's top page table. pae: that is the
    first of i386's four page directories of PAE, which follow one another.
    """

    format: str
    producer: str | None = None
    machine: str | None = None
    byteorder: str | None = None  # "little" or "big", of the containing file
    word_bits: int | None = None  # 32 or 64, of the containing file
    release: str | None = None
    dump_level: int | None = None
    compression: tuple[str, ...] = ()
    complete: bool = True
    quirks: tuple[str, ...] = ()
    details: tuple[tuple[str, str], ...] = ()  # anything else worth a line of `identify`: (name, value)
    system: str | None = None
    root: int | None = None
    pae: bool = False


class PageMap(Protocol):
    """The kernel's page tables, where a dump keeps them apart from memory (FreeBSD's minidumps)."""

    def translate_page(self, read_phys: ReadPhys, vaddr: int) -> tuple[int, int]:
        """Return (paddr of the page that holds `vaddr`, its size in bytes); `read_phys` reads lower tables.

        Raises:
            NotMappedError: nothing is mapped there.
            ReadError: a table is not in the image.
        """


class MachineControl(Protocol):
    """What can halt the machine whose memory an image shows, and let it go on."""

    def is_running(self) -> bool:
        """Return whether its processors run. Raises FileAccessError: it is gone."""

    def halt(self) -> None:
        """Stop its processors; nothing happens if they are stopped. Raises FileAccessError: it is gone."""

    def resume(self) -> None:
        """Let its processors run on; nothing happens if they do. Raises FileAccessError: it is gone."""


class MemoryImage(ABC):
    """A kernel memory image: bytes by physical address.

    Attributes:
        paths: the files it was opened from, in the order of the user.
        notes: ELF notes in file order (VMCOREINFO, one NT_PRSTATUS per CPU, QEMU's CPU state, ...).
        page_map: where kernel addresses are, if the dump has a part for that.
        live: the memory changes while it is read: nothing that was read from it holds for longer than a command.
        control: what halts the machine and lets it run, if there is a machine and something that can.
        ran_on: the CPUs that the notes are of have run on since.
    """

    paths: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    page_map: PageMap | None = None
    live: bool = False
    control: MachineControl | None = None
    ran_on: bool = False

    @property
    @abstractmethod
    def info(self) -> ImageInfo:
        """Return what the file says of itself."""

    @abstractmethod
    def coverage(self, start: int = 0, end: int | None = None) -> Iterator[Range]:
        """Yield the ranges of [start, end) in ascending order, without overlap, neighbours of one presence merged.

        Holes are not yielded; `end` None means up to the highest address that the image knows. Lazy: the cost is
        that of the part that is consumed.
        """

    @abstractmethod
    def pieces(self, paddr: int, size: int) -> Iterator[Piece]:
        """Yield pieces that cover [paddr, paddr + size) exactly, in order; holes included.

        Raises:
            FormatError: the file is corrupt where the bytes should be (which file, which offset).
        """

    def read(self, paddr: int, size: int) -> bytes:
        """Return `size` bytes from physical address `paddr`.

        Raises:
            NotInImageError: some byte is not in the image; names the first missing run.
            FormatError: the file is corrupt where the bytes should be.
        """
        parts: list[bytes] = []
        for piece in self.pieces(paddr, size):
            if piece.data is None:
                raise NotInImageError(
                    piece.paddr, piece.size, piece.presence.value, self.paths[0] if self.paths else ""
                )
            parts.append(piece.data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_partial(self, paddr: int, size: int) -> PartialRead:
        """Return what is there of [paddr, paddr + size), and which ranges are not."""
        parts: list[bytes] = []
        missing: list[Range] = []
        for piece in self.pieces(paddr, size):
            if piece.data is not None:
                parts.append(piece.data)
                continue
            parts.append(bytes(piece.size))
            last = missing[-1] if missing else None
            if last is not None and last.end == piece.paddr and last.presence is piece.presence:
                missing[-1] = Range(last.start, last.size + piece.size, last.presence)
            else:
                missing.append(Range(piece.paddr, piece.size, piece.presence))
        return PartialRead(b"".join(parts), tuple(missing))

    def for_each_chunk(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield (paddr, bytes) of all present memory in [start, end), ascending, at most CHUNK_SIZE bytes each."""
        for run in self.coverage(start, end):
            if run.presence is not Presence.PRESENT:
                continue
            for paddr in range(run.start, run.end, CHUNK_SIZE):
                yield paddr, self.read(paddr, min(CHUNK_SIZE, run.end - paddr))

    def put(self, paddr: int, data: bytes) -> None:
        """Write into the memory itself, not into a copy: what runs on it sees the new bytes.

        Raises:
            CommandError: this image cannot be written to; says why.
            NotInImageError: part of it is no memory; nothing is written then.
        """
        raise CommandError(
            f"the memory behind {self.paths[0] if self.paths else 'this image'} cannot be written to ({paddr:#x},"
            f" {len(data)} bytes)"
        )

    def find_note(self, name: str, note_type: int | None = None) -> Note | None:
        """Return the first note called `name` (and of that type, if given)."""
        for note in self.notes:
            if note.name == name and note_type in (None, note.type):
                return note
        return None

    def refresh(self) -> None:  # noqa: B027 - most images are of what does not change
        """Look again at the machine behind the image: forget what was read of it, its registers, or all of a snapshot.

        Raises:
            FileAccessError: the machine is gone.
        """

    def still(self) -> AbstractContextManager[None]:
        """Have the machine stand still for a moment, so that its memory and the notes of its CPUs fit together.

        Raises:
            FileAccessError: the machine is gone.
        """
        return nullcontext()

    def close(self) -> None:  # noqa: B027 - most images hold nothing that needs closing early
        """Release files and maps; the image cannot be read afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BytesImage(MemoryImage):
    """An image in memory, for tests and for programs that make their own.

    Args:
        segments: physical address -> bytes; they must not overlap.
        excluded: ranges (paddr, size) to report as excluded.
    """

    def __init__(
        self,
        segments: dict[int, bytes],
        *,
        excluded: tuple[tuple[int, int], ...] = (),
        notes: tuple[Note, ...] = (),
        info: ImageInfo | None = None,
    ) -> None:
        self.notes = notes
        self._info = info if info is not None else ImageInfo("bytes")
        runs = [(paddr, len(data), Presence.PRESENT, data) for paddr, data in segments.items() if data]
        runs += [(paddr, size, Presence.EXCLUDED, b"") for paddr, size in excluded if size]
        self._runs = sorted(runs, key=lambda run: run[0])
        for (start, size, _, _), (following, _, _, _) in zip(self._runs, self._runs[1:], strict=False):
            if start + size > following:
                raise ValueError(f"segments overlap at {following:#x}")

    @property
    def info(self) -> ImageInfo:
        return self._info

    def coverage(self, start: int = 0, end: int | None = None) -> Iterator[Range]:
        pending: Range | None = None
        for run_start, run_size, presence, _ in self._runs:
            low = max(start, run_start)
            high = run_start + run_size if end is None else min(end, run_start + run_size)
            if low >= high:
                continue
            if pending is not None and pending.end == low and pending.presence is presence:
                pending = Range(pending.start, high - pending.start, presence)
                continue
            if pending is not None:
                yield pending
            pending = Range(low, high - low, presence)
        if pending is not None:
            yield pending

    def pieces(self, paddr: int, size: int) -> Iterator[Piece]:
        end = paddr + size
        for start, length, presence, data in self._runs:
            if start + length <= paddr or paddr >= end:
                continue
            if start >= end:
                break
            if paddr < start:
                yield Piece(paddr, start - paddr, Presence.HOLE, None)
                paddr = start
            stop = min(end, start + length)
            part = data[paddr - start : stop - start] if presence is Presence.PRESENT else None
            yield Piece(paddr, stop - paddr, presence, part)
            paddr = stop
        if paddr < end:
            yield Piece(paddr, end - paddr, Presence.HOLE, None)
