"""What QEMU writes of a guest with dump-guest-memory: all of it into a private file, or its CPUs' notes alone.

Facts: QEMU's qapi/dump.json and dump/dump.c (the guest stands still meanwhile and runs on afterwards if it ran, also
if the dump fails; with `begin` and `length` memory outside of that is left out, and the notes are all there; ELF is
written from front to back, so that a pipe will do; `fd:` takes a file that getfd has brought, over a Unix socket only).
A pipe is also how a dump is stopped: nobody reads any more, QEMU's write fails, and with it the dump.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from kvm_dbg import elf
from kvm_dbg.errors import FileAccessError
from kvm_dbg.image.base import Note
from kvm_dbg.image.note import MAX_AREA, read_notes
from kvm_dbg.image.qmp import Qmp

Progress = Callable[[str], None]

PIECE = 1 << 20  # bytes of one read
BLOCK = 1 << 16  # bytes that are left out of the file if they are zero
ZEROS = bytes(BLOCK)
STEP = 1 << 28  # bytes between two reports
ROOM = 1 << 26  # bytes that a dump has beside the memory: headers, notes
SMALLEST = 4096  # bytes of memory that a dump of notes has
NAME = "kvm_dbg"  # of the pipe, for QEMU


class Pipe(NamedTuple):
    """A pipe to QEMU: our end, QEMU's end or None where it opens it by name, and what QEMU calls it."""

    reading: int
    writing: int | None
    protocol: str


@contextlib.contextmanager
def _make_pipe(qmp: Qmp) -> Iterator[Pipe]:
    """Yield a pipe; closing it, which leaving does as well, makes QEMU's next write fail."""
    if qmp.peer is not None:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        try:
            yield Pipe(reading, writing, f"fd:{NAME}")
        finally:
            os.close(reading)
            os.close(writing)
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="kvm-dbg-") as directory:
        path = os.path.join(directory, "pipe")
        os.mkfifo(path, 0o600)
        reading = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # a writer of our own: no end before QEMU's
        try:
            yield Pipe(reading, None, f"file:{path}")
        finally:
            os.unlink(path)  # first: QEMU would wait for ever if it opened a pipe that has no reader any more
            os.close(reading)


def dump(qmp: Qmp, write: Callable[[bytes], None], span: tuple[int, int] | None = None) -> None:
    """Have QEMU dump the guest as ELF, and hand what it writes to `write`, front to back.

    Args:
        qmp: the connection.
        write: takes the next bytes.
        span: (first physical address, size in bytes) of the memory to dump; None for all of it.

    Raises:
        CommandError: QEMU refuses.
        FileAccessError: it is gone, or says nothing for too long.
    """
    number = 0
    try:
        with _make_pipe(qmp) as pipe:
            if pipe.writing is not None:
                qmp.send_descriptor(NAME, pipe.writing)
            more = {} if span is None else {"begin": span[0], "length": span[1]}
            number = qmp.send("dump-guest-memory", paging=False, protocol=pipe.protocol, **more)
            answer = None
            while answer is None:
                if not select.select([pipe.reading, qmp.fileno()], [], [], qmp.timeout)[0]:
                    raise FileAccessError(qmp.address, f"QEMU has stopped to dump (nothing for {qmp.timeout:g} s)")
                _drain(pipe.reading, write)
                answer = qmp.find_answer(number)
            _drain(pipe.reading, write)  # what came between the two looks
            number = 0
        qmp.result("dump-guest-memory", answer)
    except BaseException:
        if number:  # the pipe is closed, so that the dump ends now
            qmp.await_answer(number)
        raise


def _drain(descriptor: int, write: Callable[[bytes], None]) -> None:
    """Hand over what is in a pipe."""
    with contextlib.suppress(BlockingIOError):
        while True:
            write(os.read(descriptor, PIECE))


def read_cpu_notes(qmp: Qmp, paddr: int) -> tuple[Note, ...]:
    """Return the notes of the guest's CPUs as they are now, with whatever else QEMU notes.

    paddr: the address of a page of RAM.

    Raises:
        CommandError: QEMU refuses.
        FormatError: it writes something else than an ELF core.
        FileAccessError: it is gone.
    """
    parts: list[bytes] = []
    dump(qmp, parts.append, (paddr, SMALLEST))
    data = b"".join(parts)
    file = elf.ElfFile(data, qmp.address)
    notes: tuple[Note, ...] = ()
    for segment in file.segments:
        if segment.type == elf.PT_NOTE:
            area = data[segment.offset : segment.offset + min(segment.filesz, MAX_AREA)]
            notes += read_notes(area, file.header.order, qmp.address, segment.offset)[0]
    return notes


def save(qmp: Qmp, size: int, directory: str | None, progress: Progress | None) -> BinaryIO:
    """Return an open file, which has no name any more, with a dump of all of the guest's memory.

    Args:
        qmp: the connection.
        size: bytes of memory that the guest has.
        directory: where the file is made, for its owner only; None for the usual one for temporary files.
        progress: called with a line of text now and then.

    Raises:
        FileAccessError: there is no room for it, or QEMU is gone.
        CommandError: QEMU refuses.
    """
    import tempfile

    place = directory or tempfile.gettempdir()
    try:
        free = os.statvfs(place)
        room = free.f_bavail * free.f_frsize
        if room < size + ROOM:
            raise FileAccessError(
                place,
                f"has {room >> 20} MiB free, and a snapshot of the guest takes {size + ROOM >> 20} MiB; TMPDIR names"
                " another place, and a guest with memory-backend-file,share=on needs none",
            )
        file = tempfile.TemporaryFile(prefix="kvm-dbg-", dir=place)  # noqa: SIM115 - the caller's
    except OSError as error:
        raise FileAccessError(place, error.strerror or str(error)) from error
    done = reported = 0

    def write(data: bytes) -> None:
        nonlocal done, reported
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            if block == ZEROS:
                file.seek(BLOCK, os.SEEK_CUR)
            else:
                file.write(block)
        done += len(data)
        if progress is not None and done - reported >= STEP:
            reported = done
            progress(f"{qmp.address}: {done >> 20} of {size >> 20} MiB of the guest's memory")

    try:
        try:
            dump(qmp, write)
            file.truncate(done)
            file.flush()
        except OSError as error:
            raise FileAccessError(place, error.strerror or str(error)) from error
    except BaseException:
        file.close()
        raise
    return file
