"""A kernel by the memory reads of a debugger that is attached to its machine: QEMU's stub, kgdb, or another one.

No connection for debuggers is served then, and no file is open. Whatever an image is asked for, the adapter is asked
for on the control channel, while it waits for the answer to its own request (`control.py`). The machine stands still as
long as that takes, and may run in between: each request begins by forgetting what was read for the one before.

A stub that reads physical addresses (QEMU's, docs/system/gdb.rst: `Qqemu.PhyMemMode`) shows RAM as it is, and has a
thread for each CPU, whose control registers lead to the page tables. Any other one reads virtual addresses, through
which the kernel's own map of RAM is looked for (`kernel.linux.direct_map`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from kvm_dbg.arch.x86_64_register import QEMU_GENERAL, QEMU_SEGMENTS, make_qemu_cpu_state
from kvm_dbg.errors import CommandError, KernelNotFoundError, KvmDbgError, ProtocolError, UnsupportedError
from kvm_dbg.image.attached import NAME, AttachedImage
from kvm_dbg.image.base import ImageInfo, Note
from kvm_dbg.image.note import VMCOREINFO
from kvm_dbg.rsp.control import ControlChannel, answer, facts_of
from kvm_dbg.rsp.debugger_file import DebuggerFiles
from kvm_dbg.rsp.session import DebuggerSession
from kvm_dbg.rsp.stop import ClientGone, Interruptible
from kvm_dbg.rsp.target import Target
from kvm_dbg.rsp.user import UserProcesses

if TYPE_CHECKING:
    from kvm_dbg.commands.session import OpenRequest, Session
    from kvm_dbg.kernel.base import Kernel, OperatingSystem, Thread

ARCH = "x86_64"
REGISTERS = (
    *QEMU_GENERAL, *QEMU_SEGMENTS[:6], "fs_base", "gs_base", "k_gs_base", "cr0", "cr2", "cr3", "cr4", "efer",
)  # fmt: skip
"""What is asked for, by gdb's names (QEMU's gdb-xml/i386-64bit.xml)."""
UNREAD = frozenset(("run", "sync", "loaded", "offsets"))
"""Requests that read no memory, and `run`, which refreshes by itself."""
EFER_LMA = 1 << 10  # long mode is active (SDM volume 3, 2.2.1)
MAX_PHYSICAL = 1 << 46  # bytes: no more is looked for through the kernel's map of RAM


class Machine:
    """The machine that the debugger is attached to.

    Attributes:
        name: what the debugger calls the connection.
        physical: its stub reads physical addresses, and its threads are CPUs.
    """

    def __init__(self, channel: ControlChannel) -> None:
        """Ask the adapter what there is. Raises CommandError, UnsupportedError."""
        self._channel = channel
        told = self._ask({"machine": True}, dict)
        self.name = str(told.get("name"))
        self.physical = told.get("physical") is True
        arch = str(told.get("arch"))
        if arch != ARCH:
            raise UnsupportedError(f"a machine of type {arch} that is attached to", f"only {ARCH} is")

    def _ask(self, question: dict[str, object], kind: type) -> Any:
        reply = self._channel.ask(question)
        if not isinstance(reply, kind):
            raise ProtocolError(f"the adapter answered {reply!r:.80} to {question!r:.80}")
        return reply

    def fetch(self, runs: Sequence[tuple[int, int]], base: int = 0) -> list[bytes | None]:
        """Return the bytes of each (address, size), None where any cannot be read; `base` is added to addresses."""
        places = [[hex(address + base), size] for address, size in runs]
        replies = self._ask({"read": places, "physical": self.physical}, list)
        if len(replies) != len(runs):
            raise ProtocolError(f"the adapter read {len(replies)} ranges instead of {len(runs)}")
        return [_bytes_of(reply, size) for reply, (_, size) in zip(replies, runs, strict=True)]

    def fetch_mapped(self, base: int, runs: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """Return the bytes at physical addresses, which are mapped from `base` on; as `fetch`."""
        inside = [run for run in runs if sum(run) <= MAX_PHYSICAL]
        found = dict(zip(inside, self.fetch(inside, base) if inside else (), strict=True))
        return [found.get(run) for run in runs]

    def store(self, base: int, address: int, data: bytes) -> None:
        """Write bytes. Raises CommandError: the stub did not take them, or not all."""
        self._ask({"store": [hex(address + base), data.hex()], "physical": self.physical}, bool)

    def read_cpus(self) -> list[dict[str, int]]:
        """Return the registers of each of the debugger's threads, in the order of their ids."""
        replies = self._ask({"cpus": list(REGISTERS)}, list)
        try:
            return [{name: int(value, 16) for name, value in reply["registers"].items()} for reply in replies]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"the adapter told registers that are none: {error}") from error

    def read_notes(self) -> tuple[Note, ...]:
        """Return the state of each CPU, in the form in which QEMU's dumps have it."""
        return tuple(Note("QEMU", 0, make_qemu_cpu_state(registers)) for registers in self.read_cpus())

    def find_addresses(self, names: Sequence[str]) -> dict[str, int]:
        """Return the addresses of symbols that the debugger knows."""
        replies = self._ask({"addresses": list(names)}, dict)
        return {name: int(value, 16) for name, value in replies.items() if isinstance(value, str)}


def _bytes_of(reply: object, size: int) -> bytes | None:
    """Return the bytes of a range; fewer than were asked for are none."""
    if reply is None:
        return None
    try:
        data = bytes.fromhex(reply if isinstance(reply, str) else "?")
    except ValueError as error:
        raise ProtocolError(f"the stub's memory is no hexadecimal text: {error}") from error
    return data if len(data) == size else None


def open_attached(machine: Machine, session: Session, request: OpenRequest) -> Kernel:
    """Open the kernel of a machine.

    Raises:
        KernelNotFoundError: there is none that proves itself; says what to do.
        UnsupportedError: it is of 32 bits.
        KvmDbgError: as `Session.open`.
    """
    image = _open_physical(machine, request) if machine.physical else _open_virtual(machine, request)
    try:
        kernel = session.open(request, image)
    except KernelNotFoundError as error:
        raise KernelNotFoundError(
            f"{machine.name}: no kernel that is known was found by the page tables of its CPUs: is it still in its"
            f" firmware or boot loader? Let it run on, interrupt it and try again ({error})"
        ) from error
    _limit_to_ram(image, kernel)
    return kernel


def _open_physical(machine: Machine, request: OpenRequest) -> AttachedImage:
    modes = [registers["efer"] & EFER_LMA for registers in machine.read_cpus() if "efer" in registers]
    if modes and not any(modes):
        raise UnsupportedError(
            f"{machine.name}: a machine none of whose CPUs is in 64-bit mode",
            "it runs a kernel of 32 bits, or is still in its firmware or boot loader",
        )
    store = partial(machine.store, 0) if request.write else None
    info = ImageInfo(NAME, "a debugger's connection", ARCH, details=(("addresses", "physical"),))
    return AttachedImage(machine.name, machine.fetch, store, info, machine.read_notes)


def _open_virtual(machine: Machine, request: OpenRequest) -> AttachedImage:
    from kvm_dbg.kernel.linux.direct_map import find_direct_map

    info = ImageInfo(NAME, "a debugger's connection", ARCH, system="Linux", details=(("addresses", "virtual"),))
    virtual = AttachedImage(machine.name, machine.fetch, None, info)
    found = find_direct_map(virtual, _symbol_finder(machine, virtual, request.vmlinux))
    store = partial(machine.store, found.base) if request.write else None
    notes = (Note(VMCOREINFO, 0, found.info),)
    quirk = f"physical memory is read through the kernel's map of it at {found.base:#x}"
    return AttachedImage(
        machine.name, partial(machine.fetch_mapped, found.base), store, info._replace(quirks=(quirk,)), lambda: notes
    )


def _symbol_finder(machine: Machine, virtual: AttachedImage, path: str | None) -> Callable[[str], int | None]:
    """Return what tells symbols' run-time addresses: the debugger's, if they are in place, else the kernel file's."""
    from kvm_dbg.kernel.linux.boot_x86_64 import LARGE_PAGE
    from kvm_dbg.kernel.linux.direct_map import SYMBOLS, find_image_start, is_placed

    find = machine.find_addresses(SYMBOLS).get
    if path is None or is_placed(virtual, find):
        return find
    from kvm_dbg.kernel.linux.vmlinux import open_symbols

    table = open_symbols(path, None)
    start, text = find_image_start(virtual), table.find("_text") or table.find("_stext")
    slide = start - (text.address & -LARGE_PAGE) if start is not None and text is not None else 0
    addresses = {name: symbol.address + slide for name, symbol in table.find_many(SYMBOLS).items()}
    table.close()
    return addresses.get


def _limit_to_ram(image: AttachedImage, kernel: Kernel) -> None:
    """Tell the image where RAM is, as the kernel knows it, so that no device is ever read."""
    from kvm_dbg.kernel.linux.kernel import LinuxKernel
    from kvm_dbg.kernel.linux.memory_map import read_ram

    ram = sorted(read_ram(kernel.space, kernel.symbols)) if isinstance(kernel, LinuxKernel) else []
    if ram:
        image.set_ram(ram)
    elif isinstance(kernel, LinuxKernel):
        kernel.quirks += ("the kernel does not say where RAM is: memory of devices is read if it is asked for",)


class AttachedTarget(Target):
    """The kernel, for a debugger that has threads of its own: CPUs, or tasks by their PIDs."""

    def __init__(self, kernel: Kernel, system: OperatingSystem, *, threads_are_cpus: bool) -> None:
        super().__init__(kernel, system)
        self._threads_are_cpus = threads_are_cpus

    def forget(self, keep: Collection[int] = ()) -> None:  # noqa: ARG002 - no task is the debugger's thread
        """Forget all tasks: the machine may have run."""
        self.__dict__.pop("threads", None)
        self._spaces.clear()
        self.problem = ""

    def find_thread(self, tid: int) -> Thread | None:
        if not self._threads_are_cpus:
            return self.threads.get(tid)
        for thread in self.system.for_each_thread(self.kernel):
            if not thread.on_cpu:
                break  # those on CPUs come first
            if thread.cpu == tid - 1:
                return thread
        return None

    def find_tid(self, pid: int) -> int:
        tid = super().find_tid(pid)
        if not self._threads_are_cpus:
            return tid
        thread = self.threads[tid]
        if not thread.on_cpu or thread.cpu is None:
            raise CommandError(
                f"no CPU runs {pid} now, and the debugger's threads are CPUs: `kvm bt {pid}` shows its stack"
            )
        return thread.cpu + 1


class _NoUserProcesses(UserProcesses):
    """Processes cannot be served: the debugger that would ask for their memory is the one that has to read it."""

    def open(self, session: Session, line: str, debugger: DebuggerSession) -> NoReturn:  # noqa: ARG002 - it never works
        raise CommandError(
            "`kvm user` needs memory that is read without the debugger's help, which `kvm attach` has not:"
            " `kvm gcore PID` writes a core file that any debugger opens"
        )


def serve_attached(session: Session, make_request: Callable[[], OpenRequest]) -> int:
    """Open the kernel of the machine that the debugger is attached to, and answer the adapter until it leaves.

    Args:
        session: where the kernel will be open.
        make_request: returns what the user wants; raises KvmDbgError.
    """
    channel = ControlChannel.on_standard_streams()
    files, users = DebuggerFiles(), _NoUserProcesses()

    def poll() -> None:
        if channel.poll():
            interruptible.interrupt()

    interruptible = Interruptible(poll)
    try:
        with interruptible:
            machine = Machine(channel)
            kernel = open_attached(machine, session, make_request())
            target = AttachedTarget(kernel, session.system, threads_are_cpus=machine.physical)
            debugger = DebuggerSession(target, lambda _: iter(()))
            ready = facts_of(session, debugger)
            from kvm_dbg.commands.module_file import LoadedSymbols

            session.loaded = LoadedSymbols()
        channel.send({"ready": {"address": None, **ready}})

        def prepare(request: dict[str, Any]) -> None:
            target.forget()
            if not UNREAD & request.keys():
                session.refresh()

        while True:
            if not channel.waiting:
                channel.receive()
            for request in channel.requests():
                answer(channel, request, session, debugger, interruptible, files, users, partial(prepare, request))
    except (ClientGone, KeyboardInterrupt):
        return 0
    except KvmDbgError as error:
        channel.send({"error": str(error)})
        return 1
    except MemoryError:
        channel.send({"error": "opening the kernel needs more memory than there is"})
        return 1
    finally:
        files.close()
        session.close()
