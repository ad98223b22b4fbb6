"""A guest that lives: QEMU with the guest's RAM in a file, and a shell in the guest for whoever tests."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.lab import cache
from tests.lab.gdbstub import Gdbstub
from tests.lab.guest import find_program
from tests.lab.package import KernelFiles, obtain_kernel
from tests.lab.qemu import Machine
from tests.lab.scenario import LabError, find_kernel
from tests.live.root import obtain_root, write_initramfs

MEMORY = 1 << 30  # bytes
BOOT_TIMEOUT = 300


class Answer(NamedTuple):
    """What a command in the guest came to: its output, both streams together, and its exit status."""

    status: int
    text: str


class _WritingStub(Gdbstub):
    """QEMU's stub for gdb, as something that writes memory."""

    def write(self, address: int, data: bytes) -> None:
        """Write memory of the stopped guest, code too."""
        self._order(f"M{address:x},{len(data):x}:{data.hex()}")


class LiveGuest(Machine):
    """A running guest; a context manager.

    Attributes:
        ram: the file that is the guest's RAM.
        qmp: the socket where QEMU takes QMP commands of one client after the other.
        kernel: its kernel's files.
    """

    def __init__(
        self,
        kernel: str = "deb12",
        words: tuple[str, ...] = (),
        cpus: int = 2,
        *,
        shared: bool = True,
        vmcoreinfo: bool = False,
    ) -> None:
        """Start QEMU.

        Args:
            kernel: the lab's name of it.
            words: more words for the kernel's command line.
            cpus: how many.
            shared: its RAM is a file; else nobody but QEMU sees it.
            vmcoreinfo: QEMU has its vmcoreinfo device, and the guest the driver that fills it.
        """
        root = cache.find_root().absolute()
        self.kernel: KernelFiles = obtain_kernel(root, find_kernel(kernel))
        self._work = Path(tempfile.mkdtemp(prefix="kvm-dbg-live-", dir=root))
        initramfs = self._work / "initrd"
        write_initramfs(initramfs, self.kernel, ("qemu_fw_cfg",) if vmcoreinfo else ())
        self.ram = self._work / "ram"
        self.qmp = self._work / "qmp"
        self.console = self._work / "console.out"
        self.memory = MEMORY
        self._name, self._log = f"live {kernel}", self._work / "qemu.log"
        self._numbers = itertools.count(1)
        qmp, their_qmp = socket.socketpair()
        control, their_control = socket.socketpair()
        gdb, their_gdb = socket.socketpair()
        theirs = (their_qmp, their_control, their_gdb)
        command = [
            str(find_program("setpriv")), "--pdeathsig", "KILL", "--",
            str(find_program("qemu-system-x86_64")), "-accel", "tcg,thread=multi",
            "-machine", "q35,memory-backend=ram", "-smp", str(cpus), "-cpu", "max,la57=off",
            "-object", f"memory-backend-file,id=ram,size={MEMORY},mem-path={self.ram},share=on"
            if shared else f"memory-backend-ram,id=ram,size={MEMORY}",
            "-m", f"{MEMORY >> 20}M", "-nodefaults", "-display", "none", "-no-reboot",
            "-kernel", str(self.kernel.vmlinuz), "-initrd", str(initramfs),
            # no_timer_check: on a busy host the emulated timer can be too late for the kernel, which panics then
            "-append", " ".join(("console=ttyS0", "quiet", "no_timer_check", *words)),
            "-serial", f"file:{self.console}",
            "-chardev", f"socket,id=control,fd={their_control.fileno()}", "-serial", "chardev:control",
            "-chardev", f"socket,id=qmp,fd={their_qmp.fileno()}", "-mon", "chardev=qmp,mode=control",
            "-chardev", f"socket,id=gdb,fd={their_gdb.fileno()}",
            "-qmp", f"unix:{self.qmp},server=on,wait=off", "-qmp", "tcp:127.0.0.1:0,server=on,wait=off",
            "-drive", f"if=none,id=d0,file={obtain_root(root)},format=raw,snapshot=on,cache=unsafe",
            "-device", "virtio-blk-pci,drive=d0",
            *(("-device", "vmcoreinfo") if vmcoreinfo else ()),
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[end.fileno() for end in theirs]
            )
        for end in theirs:
            end.close()
        self._qmp_socket, self._control, self._gdb = qmp, control, gdb
        self._qmp = qmp.makefile("rb")
        self._pending = b""
        self.said = []

    def __enter__(self) -> Self:
        """Wait until the guest can be asked."""
        super().__enter__()
        try:
            self.wait_for("READY", BOOT_TIMEOUT)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def kill(self) -> None:
        """End QEMU without a word."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End QEMU and remove what it used."""
        super().close()
        shutil.rmtree(self._work, ignore_errors=True)

    def run(self, command: str, *, uid: int = 0, timeout: float = 120) -> Answer:
        """Run a shell command in the guest and return its answer.

        Raises LabError after `timeout` seconds.
        """
        number = next(self._numbers)
        first = len(self.said)
        self.send(f"{number} {uid} {base64.b64encode(command.encode()).decode()}")
        status = self.wait_for(f"END {number} ", timeout).split()[2]
        output = "".join(self.said[first:-1])
        del self.said[first:]
        return Answer(int(status), base64.b64decode(output).decode(errors="replace"))

    def find_tcp(self) -> str:
        """Return HOST:PORT where QEMU takes QMP commands as well."""
        places = [re.search(r"tcp:([\d.]+:\d+),server", row["filename"]) for row in self.execute("query-chardev")]
        return next(place[1] for place in places if place is not None)

    def is_running(self) -> bool:
        """Return whether the guest's CPUs run, by QEMU's word."""
        return bool(self.execute("query-status")["running"])

    def read_truth(self) -> dict[str, Any]:
        """Return what the guest's /proc says: guest/compare.py."""
        truth: dict[str, Any] = json.loads(self.check("python3 /live/compare.py --truth"))
        return truth

    def patch(self, address: int, code: bytes) -> None:
        """Put `code` at a virtual address of the kernel, through QEMU's stub for gdb; not more than once."""
        self.execute("human-monitor-command", **{"command-line": "gdbserver chardev:gdb"})
        stub = _WritingStub(self._gdb, self._name)
        stub.write(address, code)
        stub.leave()

    def check(self, command: str, *, uid: int = 0, timeout: float = 120) -> str:
        """Return the output of a command that must succeed. Raises LabError."""
        answer = self.run(command, uid=uid, timeout=timeout)
        if answer.status:
            raise LabError(f"{self._name}: {command}: exit status {answer.status}\n{answer.text}")
        return answer.text
