"""The memory of this machine while it runs: /proc/kcore, /dev/mem, /dev/crash.

Facts: fs/proc/kcore.c (an ELF core whose segments change with the machine; since 4.11, commit 464920104bf7, segments of
RAM and of the kernel's text have a physical address, the others -1; VMCOREINFO is in its notes since 4.19, commit
23c85094fe18; opening takes CAP_SYS_RAWIO, and no lockdown "confidentiality"), drivers/char/mem.c (an offset of /dev/mem
is a physical address; a refused page ends a read with EPERM), arch/x86/mm/init.c devmem_is_allowed() (with
CONFIG_STRICT_DEVMEM RAM is refused, and below 1 MiB shown as zeros), memory_driver/crash.c of the crash utility (an
offset of /dev/crash is a physical address; a read ends at a page's end), kernel/ksysfs.c (/sys/kernel/vmcoreinfo: the
physical address and the size of the note).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvm_dbg import elf
from kvm_dbg.errors import FileAccessError, NotInImageError, UnknownFormatError
from kvm_dbg.image.base import ImageInfo, Note, Piece, Presence
from kvm_dbg.image.extent import Extent, ExtentImage, arrange
from kvm_dbg.image.note import MAX_AREA, VMCOREINFO, find_vmcoreinfo_value, read_notes
from kvm_dbg.image.source import DeviceSource, Source

NAME = "live"
KCORE, DEV_MEM, DEV_CRASH = "/proc/kcore", "/dev/mem", "/dev/crash"
PATHS = (KCORE, DEV_MEM, DEV_CRASH)
"""In the order in which they are tried."""
IOMEM, VMCOREINFO_PLACE, LOCKDOWN = "/proc/iomem", "/sys/kernel/vmcoreinfo", "/sys/kernel/security/lockdown"

PAGE = 4096
HEAD = 1 << 16  # bytes of kcore that hold its headers and notes; more are read if it says so
LOW = 1 << 20  # what CONFIG_STRICT_DEVMEM shows as zeros
STEP = 1 << 27  # bytes of RAM of which one page is tried
NO_ADDRESS = (1 << 64) - 1
RAM_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) : System RAM", re.MULTILINE)
STRICT = (
    "the kernel was built with CONFIG_STRICT_DEVMEM: this memory can be read only through /proc/kcore"
    " (CONFIG_PROC_KCORE), or from a kernel built without CONFIG_STRICT_DEVMEM"
)
NO_WRITE = (
    "cannot be written to: the kernel has no such operation; /dev/mem can, of a kernel without CONFIG_STRICT_DEVMEM,"
    " and /dev/crash if its driver was built for it"
)
REFUSED = (
    "the kernel refuses this write (CONFIG_STRICT_DEVMEM, a lockdown, or a driver that only reads); the bytes are as"
    " they were"
)
PRIVILEGE = (
    "reading the memory of this machine takes root, or the capabilities CAP_SYS_RAWIO and CAP_DAC_READ_SEARCH"
    " (and CAP_SYS_ADMIN for /dev/mem): use sudo"
)


def is_live(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is one of this machine's memory devices."""
    try:
        return os.path.realpath(path) in PATHS
    except (OSError, ValueError):
        return False  # opening it will say what is wrong with it


class LiveSource(DeviceSource):
    """A memory device.

    Args:
        path: of the device.
        writable: open it for writing as well; the kernel may refuse that, or each write.

    Raises:
        FileAccessError: missing, no privilege, or locked down; says what it takes.
    """

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = False) -> None:
        if writable and os.path.realpath(path) == KCORE:
            raise FileAccessError(os.fspath(path), NO_WRITE)
        super().__init__(path, writable=writable)

    def why_closed(self, error: OSError | ValueError) -> str:
        return _why_closed(error)

    def write(self, offset: int, data: bytes) -> None:
        try:
            super().write(offset, data)
        except FileAccessError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in (errno.EPERM, errno.EINVAL, errno.EBADF):
                raise FileAccessError(self.path, f"offset {offset:#x}: {cause.strerror}: {REFUSED}") from cause
            raise


def _why_closed(error: OSError | ValueError) -> str:
    """Return why a device could not be opened, and what it takes."""
    text = getattr(error, "strerror", None) or str(error)
    number = getattr(error, "errno", None)
    if number not in (errno.EPERM, errno.EACCES):
        return text
    lockdown = find_lockdown()
    if lockdown is not None and os.geteuid() == 0:
        return f"{text}: the kernel is locked down ({lockdown}), which not even root can change before a restart"
    return f"{text}: {PRIVILEGE}"


def find_lockdown(path: str = LOCKDOWN) -> str | None:
    """Return the kernel's lockdown, "integrity" or "confidentiality"; None if there is none, or nothing tells."""
    match = re.search(r"\[(\w+)\]", _text_of(path))
    return match[1] if match is not None and match[1] != "none" else None


def _text_of(path: str) -> str:
    """Return the text of a file of the kernel's, "" if it cannot be read."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


class LiveImage(ExtentImage):
    """The memory of this machine.

    Args:
        source: the device.
        extents: where in it physical memory is.
        notes: VMCOREINFO, if there is one.
        quirks: what a careful reader wants to know.
    """

    live = True

    def __init__(
        self, source: Source, extents: list[Extent], notes: tuple[Note, ...], quirks: tuple[str, ...] = ()
    ) -> None:
        super().__init__(source, extents)
        self.notes = notes
        self._quirks = quirks

    @property
    def info(self) -> ImageInfo:
        release = find_vmcoreinfo_value(self.notes, "OSRELEASE")
        return ImageInfo(NAME, "the kernel that runs", os.uname().machine, release=release, quirks=self._quirks)

    def read(self, paddr: int, size: int) -> bytes:
        try:
            return super().read(paddr, size)
        except FileAccessError as error:  # the kernel refuses this page, or has taken it away
            raise NotInImageError(paddr, size, Presence.REFUSED.value, self.paths[0]) from error

    def pieces(self, paddr: int, size: int) -> Iterator[Piece]:
        end = paddr + size
        while paddr < end:
            stop = min((paddr | PAGE - 1) + 1, end)
            try:
                yield from list(super().pieces(paddr, stop - paddr))
            except FileAccessError:
                yield Piece(paddr, stop - paddr, Presence.REFUSED, None)
            paddr = stop


def open_device(source: Source) -> LiveImage:
    """Return the image of an opened device.

    Raises:
        FileAccessError: the kernel refuses to show its RAM; says which ranges.
        UnknownFormatError, FormatError: /proc/kcore is none that can be read.
    """
    return open_kcore(source) if os.path.realpath(source.path) == KCORE else open_physical(source)


def open_kcore(source: Source) -> LiveImage:
    """Return the image of /proc/kcore. Raises as `open_device`."""
    head = source.read(0, HEAD)
    header = elf.ElfFile(head, source.path).header
    needed = header.phoff + header.phnum * header.phentsize
    if needed > len(head):
        head = source.read(0, min(needed, MAX_AREA))
    extents: list[Extent] = []
    notes: tuple[Note, ...] = ()
    quirks: tuple[str, ...] = ()
    for segment in elf.ElfFile(head, source.path).segments:
        if segment.type == elf.PT_NOTE:
            data = source.read(segment.offset, min(segment.filesz, MAX_AREA))
            notes, quirks = read_notes(data, header.order, source.path, segment.offset)
        elif segment.type == elf.PT_LOAD and 0 <= segment.paddr < NO_ADDRESS - segment.filesz:
            start, end = segment.paddr, segment.paddr + segment.filesz
            extents.append(Extent(start, end, Presence.PRESENT, segment.offset - start))
    if len(extents) > 1 and all(extent.start == 0 for extent in extents):
        raise UnknownFormatError(source.path, "has no physical addresses: this takes Linux 4.11 or newer")
    # The notes of registers are empty, or this process's own: a CPU that runs has no recorded registers.
    kept = tuple(note for note in notes if note.name == VMCOREINFO)
    image = LiveImage(source, arrange(extents), kept, quirks)
    if not kept:
        image.notes = _read_placed_note(image)
    return image


class _Run(NamedTuple):
    """Physical addresses [start, end)."""

    start: int
    end: int


def open_physical(
    source: Source, iomem: Callable[[], str] = lambda: _text_of(IOMEM), place: str = VMCOREINFO_PLACE
) -> LiveImage:
    """Return the image of a device whose offsets are physical addresses: /dev/mem, /dev/crash.

    Args:
        source: the device.
        iomem: returns the text of /proc/iomem, which says where RAM is.
        place: the file that says where the note VMCOREINFO is.

    Raises:
        FileAccessError: the kernel refuses all of its RAM, or does not say where that is.
    """
    ram = [_Run(int(low, 16), int(high, 16) + 1) for low, high in RAM_LINE.findall(iomem())]
    if not any(run.end > LOW for run in ram):
        raise FileAccessError(source.path, f"{IOMEM} does not say where RAM is: {PRIVILEGE}")
    refused = {run: why for run in ram if run.end > LOW and (why := _try(source, run))}
    extents = []
    for run in ram:
        # a kernel that refuses RAM shows zeros for what lies below 1 MiB
        hidden = run in refused or (bool(refused) and run.end <= LOW)
        extents.append(Extent(run.start, run.end, Presence.REFUSED if hidden else Presence.PRESENT, 0))
    lines = [f"{source.path}: {run.start:#x}-{run.end - 1:#x} is refused ({why})" for run, why in refused.items()]
    if lines:
        lines.append(STRICT)
    if len(refused) == sum(run.end > LOW for run in ram):
        raise FileAccessError(source.path, "the kernel refuses to show its memory:\n  " + "\n  ".join(lines))
    image = LiveImage(source, arrange(extents), (), tuple(lines))
    image.notes = _read_placed_note(image, place)
    return image


def _try(source: Source, run: _Run) -> str:
    """Return why a range cannot be read, "" if its first page, its last and some between them can be."""
    last = max(run.start, (run.end - 1) & -PAGE)
    for paddr in (*range((run.start + PAGE - 1) & -PAGE, last, STEP), last):
        try:
            source.read(paddr, min(16, run.end - paddr))
        except FileAccessError as error:
            return str(error).rpartition(": ")[2]
    return ""


def _read_placed_note(image: LiveImage, place: str = VMCOREINFO_PLACE) -> tuple[Note, ...]:
    """Return the note VMCOREINFO of the kernel's memory, where the kernel says that it is; none if it does not."""
    match = re.fullmatch(r"(?:0x)?([0-9a-f]+) ([0-9a-f]+)\s*", _text_of(place))
    if match is None:
        return ()
    try:
        data = image.read(int(match[1], 16), min(int(match[2], 16), MAX_AREA))
    except NotInImageError:
        return ()
    notes, _ = read_notes(data, "<", image.paths[0], int(match[1], 16))
    return tuple(note for note in notes if note.name == VMCOREINFO)


def open_live(*, writable: bool = False) -> LiveImage:
    """Return the memory of this machine, by the first of its devices that shows it.

    writable: by the first that can be written to as well.

    Raises:
        FileAccessError: none does; says of each why.
    """
    problems: list[str] = []
    denied: FileAccessError | UnknownFormatError | None = None
    for path in PATHS:
        source: LiveSource | None = None
        try:
            source = LiveSource(path, writable=writable)
            return open_device(source)
        except (FileAccessError, UnknownFormatError) as error:
            if source is not None:
                source.close()
            text = str(error)
            if PRIVILEGE in text:  # said once
                denied = denied or error
                text = text.replace(f": {PRIVILEGE}", "")
            problems.append(text)
    if denied is not None:
        raise denied
    raise FileAccessError("the memory of this machine", "cannot be read:\n  " + "\n  ".join(problems))
