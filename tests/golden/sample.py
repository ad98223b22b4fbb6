"""The shipped sample dump as something to damage: opened anew for each attempt, within bounds of time and memory."""

from __future__ import annotations

import gc
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from kvm_dbg.commands.run import run_line
from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.rsp.target import Target
from tests.sample import unpack_sample

SECONDS = 5.0  # of CPU time, for any one attempt
GROWTH = 160 << 20  # bytes of data, for any one attempt, mapped files apart; and what may stay after all of them

COMMANDS = (
    *("sys", "procs", "lwps", "bt --all", "args", "env", "files", "loadavg", "vmstat", "log"),
    *("mods", "nlist init_task take_back", "vtop init_task", "read init_task 64"),
)
THREADS = "(threads)"  # no command: what a debugger asks for when it connects


class TookTooLong(BaseException):
    """An attempt used more CPU time than it may; no KvmDbgError, and nothing that anybody catches."""


class Sample:
    """The files of the sample, in a directory of the test's own.

    Attributes:
        index: a directory for indexes, shared by all attempts.
    """

    def __init__(self, folder: Path) -> None:
        unpack_sample(folder)
        self.vmlinux = folder / "vmlinux"
        self.vmcore = folder / "vmcore"
        self.index = folder / "index"

    def open(self, *, vmcore: Path | None = None, vmlinux: Path | None = None, index: Path | None = None) -> Session:
        """Return a session that has the sample open, or files in place of its own. Raises KvmDbgError."""
        session = Session()
        paths = (str(vmcore or self.vmcore),)
        kernel_file, directory = str(vmlinux or self.vmlinux), str(index or self.index)
        session.open(OpenRequest(paths, kernel_file, index_directory=directory))
        return session


def run(session: Session, line: str) -> str:
    """Return what a command says as JSON, or nothing for THREADS. Raises KvmDbgError."""
    if line == THREADS:
        return str(len(Target(session.kernel, session.system).threads))
    return "".join(run_line(session, f"{line} --json"))


@contextmanager
def bounded() -> Iterator[None]:
    """Let a test's attempts have SECONDS and GROWTH bytes each (see `attempt`), more is a MemoryError.

    What other tests keep is set aside: Python collects the less often, the more objects its last collection saw. And
    what the attempts leave behind must stay below GROWTH, too.
    """
    gc.collect()
    gc.freeze()
    gc.collect()
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    before = signal.signal(signal.SIGVTALRM, _on_timer)
    size = data_size()
    try:
        yield
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        gc.collect()
        assert data_size() - size < GROWTH, "the attempts leave memory behind"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        gc.unfreeze()


def data_size() -> int:
    """Return the bytes that RLIMIT_DATA counts: this process's own, mapped files apart."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


@contextmanager
def attempt() -> Iterator[None]:
    """End what takes more than SECONDS of CPU time by TookTooLong, GROWTH bytes by MemoryError; within `bounded`."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data_size() + GROWTH, hard))
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _on_timer(_number: int, _frame: FrameType | None) -> None:
    raise TookTooLong
