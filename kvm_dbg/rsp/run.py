"""A machine that a debugger lets run and halts: `continue` and Ctrl-C, where the image has something that can do it.

Facts: "Packets" (vCont, c, s), "Interrupts" and "Stop Reply Packets" of appendix "Gdb Remote Serial Protocol" in the
gdb manual. The machine runs or stands still as a whole. It is left as it was found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_dbg.errors import KvmDbgError
from kvm_dbg.image.base import MachineControl

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Thread
    from kvm_dbg.rsp.target import Target

LOOK_SECONDS = 0.5  # between two looks whether the machine has stopped by itself
SIGINT = 2
GONE = b"X09"  # the stop reply of what was killed

NOT_RUNNING = "this kernel is not running (it is a dump): it cannot be continued or stepped"
NO_MACHINE = (
    "nothing here can halt this machine or let it run on; of a virtual one QEMU's monitor can: kvm open --qmp SOCKET"
)
NO_STEPS = (
    "the machine can be continued and halted as a whole, but not stepped; for that connect the debugger to QEMU's"
    " gdbstub, and use `kvm attach` beside it"
)
NO_BREAKPOINTS = (
    "the machine stops at no breakpoint: delete them to continue; for breakpoints connect the debugger to QEMU's"
    " gdbstub, and use `kvm attach` beside it"
)


class Runner:
    """Whether the machine behind a target runs, and who waits for it to stop.

    Args:
        target: what a debugger sees of it.

    Attributes:
        waiting: the debugger has let it run and waits for a stop.
        breakpoints: what the debugger wants it to stop at, which it does not.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._control: MachineControl | None = target.control
        self._ran = self._control is not None and self._control.is_running()
        self.waiting = False
        self.breakpoints: set[bytes] = set()

    def refusal(self, packet: bytes) -> str:
        """Return why an order to run cannot be followed, "" if it can.

        A vCont has several actions; the machine knows one, to go on with everything.
        """
        if self._control is None:
            return NO_MACHINE if self._target.live else NOT_RUNNING
        actions = packet.split(b";")[1:] if packet.startswith(b"vCont") else [packet]
        if any(action[:1] not in (b"c", b"C") for action in actions):
            return NO_STEPS
        return NO_BREAKPOINTS if self.breakpoints else ""

    def resume(self) -> None:
        """Let the machine run on, and wait for it. Raises KvmDbgError: it cannot."""
        if self._control is not None:
            self._control.resume()
            self.waiting = True

    def halt(self) -> None:
        """Halt the machine, for the debugger that waits. Raises KvmDbgError: it is gone."""
        if self._control is not None:
            self._control.halt()
            self.waiting = False

    def has_stopped(self) -> bool:
        """Return whether the machine stands still that is waited for. Raises KvmDbgError: it is gone."""
        if not self.waiting or self._control is None or self._control.is_running():
            return False
        self.waiting = False
        return True

    def restore(self) -> None:
        """Leave the machine as it was found. Raises KvmDbgError: it is gone, or cannot run on."""
        self.waiting = False
        if self._control is None or self._control.is_running() == self._ran:
            return
        if self._ran:
            self._control.resume()
        else:
            self._control.halt()

    def stopped_thread(self) -> int:
        """Return the id of the thread that a stop is shown of: one that a CPU was busy with, else the first."""
        threads: dict[int, Thread] = self._target.threads
        busy = (tid for tid, thread in threads.items() if thread.on_cpu and thread.pid)
        return next(busy, next(iter(threads)))


def explain(error: KvmDbgError) -> str:
    """Return what a person is told when the machine is gone while it is waited for."""
    return f"kvm: {error}\n"
