"""Run one guest: start QEMU, wait for words on the guest's control port, stop it, let QEMU write its memory.

QEMU's sockets (QMP, the guest's second serial port, gdb's protocol) are socket pairs that it inherits, so nothing is
left on disk and nobody else can connect.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from tests.lab.gdbstub import Gdbstub
from tests.lab.guest import find_program
from tests.lab.scenario import GuestDiedError, LabError, Scenario

MEGABYTE = 1 << 20
FOUR_GIB = 4 << 30
_LOW_LIMIT = 0xB0000000
_LOW_SPLIT = 0x80000000
_BLOCK = 1 << 16
_PIPE_SIZE = 1 << 20
_LOOK = 2.0  # seconds between two looks at the console
_PANIC = b"end Kernel panic"  # the last words of a guest that does not jump into a crash kernel


def split_memory(size: int) -> tuple[int, int]:
    """Return how many bytes of RAM a q35 machine has below 4 GiB and from 4 GiB on (QEMU's hw/i386/pc_q35.c)."""
    low = size if size < _LOW_LIMIT else _LOW_SPLIT
    return low, size - low


def copy_sparse(source: BinaryIO, out: BinaryIO) -> int:
    """Copy a stream, leaving holes where it is zero; return its size in bytes."""
    size = 0
    while block := source.read(_BLOCK):
        size += len(block)
        if block.count(0) == len(block):
            out.seek(len(block), 1)
        else:
            out.write(block)
    out.truncate(size)
    return size


def dig_holes(path: Path) -> None:
    """Make a file sparse in place."""
    subprocess.run([str(find_program("fallocate")), "--dig-holes", str(path)], check=True)


class Machine:
    """A running guest; a context manager that leaves no process behind, even if we are killed."""

    def __init__(
        self, scenario: Scenario, kernel: Path, initramfs: Path, words: list[str], disks: list[Path], work: Path
    ) -> None:
        """Start QEMU.

        Args:
            scenario: memory, CPUs, paging levels and the vmcoreinfo device come from here.
            kernel: the bzImage.
            initramfs: the initramfs.
            words: the kernel's command line.
            disks: raw images, /dev/vda first.
            work: a directory for console.out and qemu.log.
        """
        self.console, self._keyboard = work / "console.out", work / "console.in"  # the names are QEMU's
        self.console.touch()
        os.mkfifo(self._keyboard)
        self.memory = scenario.memory * MEGABYTE
        self._name = scenario.name
        self._log = work / "qemu.log"
        qmp, their_qmp = socket.socketpair()
        control, their_control = socket.socketpair()
        gdb, their_gdb = socket.socketpair()
        theirs = (their_qmp, their_control, their_gdb)
        cpu = "max" if scenario.levels == 5 else "max,la57=off"
        command = [
            str(find_program("setpriv")), "--pdeathsig", "KILL", "--",
            str(find_program("qemu-system-x86_64")), "-accel", "tcg,thread=multi", "-machine", "q35",
            "-m", str(scenario.memory), "-smp", str(scenario.cpus), "-cpu", cpu,
            "-nodefaults", "-display", "none", "-no-reboot",
            "-kernel", str(kernel), "-initrd", str(initramfs), "-append", " ".join(words),
            "-chardev", f"pipe,id=console,path={self.console.with_suffix('')}",
            "-serial", "chardev:console",
            "-chardev", f"socket,id=control,fd={their_control.fileno()}", "-serial", "chardev:control",
            "-chardev", f"socket,id=qmp,fd={their_qmp.fileno()}", "-mon", "chardev=qmp,mode=control",
            "-chardev", f"socket,id=gdb,fd={their_gdb.fileno()}",
        ]  # fmt: skip
        for number, disk in enumerate(disks):
            command += ["-drive", f"if=none,id=d{number},file={disk},format=raw,cache=unsafe",
                        "-device", f"virtio-blk-pci,drive=d{number}"]  # fmt: skip
        if scenario.vmcoreinfo:
            command += ["-device", "vmcoreinfo"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=[end.fileno() for end in theirs],
            )  # fmt: skip
        for end in theirs:
            end.close()
        self._qmp_socket, self._control, self._gdb = qmp, control, gdb
        self._qmp = qmp.makefile("rb")
        self._pending = b""
        self.said: list[str] = []
        """Lines from the control port, all of them so far."""

    def __enter__(self) -> Self:
        """Wait until QEMU answers."""
        self._qmp_socket.settimeout(60)
        try:
            self._read_qmp()
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End QEMU."""
        self.close()

    def close(self) -> None:
        """End QEMU at once."""
        self._process.kill()
        self._process.wait()
        self._qmp.close()
        self._qmp_socket.close()
        self._control.close()
        self._gdb.close()

    def send(self, word: str) -> None:
        """Send a line to the guest's control port."""
        self._control.sendall(word.encode() + b"\n")

    def wait_for(self, word: str, timeout: float) -> str:
        """Wait for a line on the control port that starts with `word`, and return it.

        Raises GuestDiedError when the guest panics instead, LabError after `timeout` seconds, when the guest says
        FAIL, and when QEMU ends.
        """
        deadline = time.monotonic() + timeout
        expected = _PANIC in self.console.read_bytes()
        while True:
            line, newline, rest = self._pending.partition(b"\n")
            if newline:
                self._pending = rest
                text = line.decode(errors="replace").strip()
                self.said.append(text)
                if text.startswith("FAIL"):
                    raise self._error(f"the guest said: {text}")
                if text.startswith(word):
                    return text
                continue
            self._control.settimeout(_LOOK)
            try:
                data = self._control.recv(4096)
            except TimeoutError:
                if not expected and _PANIC in self.console.read_bytes():
                    raise GuestDiedError(f"{self._name}: the guest panicked before it said {word}") from None
                if time.monotonic() > deadline:
                    raise self._error(f"the guest did not say {word} within {timeout:.0f} s") from None
                continue
            if not data:
                raise self._error("QEMU ended")
            self._pending += data

    def wait_for_console(self, text: bytes, timeout: float) -> None:
        """Wait until `text` is on the guest's console.

        Raises LabError after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while text not in self.console.read_bytes():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise self._error(f"the console did not show {text!r} within {timeout:.0f} s")
            time.sleep(0.1)

    def execute(self, command: str, **arguments: object) -> Any:
        """Run a QMP command and return its answer; events on the way are dropped.

        Raises LabError with QEMU's own words.
        """
        self._qmp_socket.settimeout(600)
        self._qmp_socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            message = self._read_qmp()
            if "error" in message:
                raise self._error(f"QMP {command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]

    def attach(self) -> Gdbstub:
        """Stop the guest and return QEMU's stub for gdb, which from now on says when it runs; not more than once."""
        self.execute("human-monitor-command", **{"command-line": "gdbserver chardev:gdb"})
        return Gdbstub(self._gdb, self._name)

    def press_sysrq(self, key: str) -> None:
        """Send a break and a key to the guest's console."""
        self.execute("chardev-send-break", id="console")
        self._keyboard.write_text(key)

    def find_formats(self) -> list[str]:
        """Return the formats that dump-guest-memory of this QEMU writes."""
        formats: list[str] = self.execute("query-dump-guest-memory-capability")["formats"]
        return formats

    def dump(self, path: Path, form: str = "elf", paging: bool = False) -> None:
        """Write the guest's memory with dump-guest-memory, sparsely."""
        if form == "elf":
            command = "dump-guest-memory"
            self._through_pipe(path, lambda pipe: self.execute(command, paging=paging, protocol=f"file:{pipe}"))
        else:
            self.execute("dump-guest-memory", paging=paging, protocol=f"file:{path}", format=form)
            path.chmod(0o644)

    def save_memory(self, path: Path, paddr: int, size: int) -> None:
        """Write `size` bytes of guest physical memory with pmemsave, sparsely."""
        self._through_pipe(path, lambda pipe: self.execute("pmemsave", val=paddr, size=size, filename=str(pipe)))

    def _through_pipe(self, path: Path, write: Callable[[Path], object]) -> None:
        """Let QEMU write into a pipe, and put what comes out into a sparse file."""
        pipe = path.with_name(path.name + ".pipe")
        os.mkfifo(pipe)

        def drain() -> None:
            with pipe.open("rb") as source, path.open("wb") as out:
                fcntl.fcntl(source, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
                copy_sparse(source, out)

        reader = threading.Thread(target=drain)
        reader.start()
        try:
            write(pipe)
        except LabError:
            os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))  # let a reader go that still waits for its writer
            raise
        finally:
            reader.join()
            pipe.unlink()

    def _read_qmp(self) -> dict[str, Any]:
        try:
            line = self._qmp.readline()
        except TimeoutError:
            raise self._error("QEMU does not answer on QMP") from None
        if not line:
            raise self._error("QEMU ended")
        message: dict[str, Any] = json.loads(line)
        return message

    def _error(self, what: str) -> LabError:
        tails = [path.read_text(errors="replace")[-1500:] for path in (self._log, self.console) if path.exists()]
        return LabError("\n---\n".join((f"{self._name}: {what}", *tails)))
