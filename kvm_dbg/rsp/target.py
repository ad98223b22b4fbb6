"""A kernel as a debugger sees it: threads, their registers, and memory in the address space of a thread.

Thread ids: a debugger wants unique numbers above 0. Where a system's thread ids are not, its threads bring numbers of
their own (`Thread.tid`). Else a task's id is its thread id: on Linux, the TID in the initial PID namespace, which the
kernel keeps below 4194304 (PID_MAX_LIMIT, include/linux/threads.h). The idle tasks, one per
CPU, all have PID 0: the one of CPU n has the id IDLE_BASE + n. Should a damaged image show one id twice, the second
bearer has the first free one from DUPLICATE_BASE on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from time import monotonic

from kvm_dbg.errors import CommandError, KvmDbgError, ReadError
from kvm_dbg.image.base import MachineControl
from kvm_dbg.kernel.base import AddressSpaceReader, Kernel, OperatingSystem, Thread
from kvm_dbg.kernel.space import ImageSpace
from kvm_dbg.kernel.write import write_memory
from kvm_dbg.rsp.target_xml import TargetDescription, find_description

IDLE_BASE = 10_000_000
DUPLICATE_BASE = 20_000_000
MAX_SPACES = 64  # user address spaces that are kept, each with its own translations
MAX_AGE = 1.0  # seconds after which registers of a kernel that runs are read again


class Target:
    """The debugger's view of one kernel.

    Attributes:
        problem: why the list of threads is not complete, "" if it is.
        one_space: all threads see the same user memory.
    """

    one_space = False

    def __init__(self, kernel: Kernel, system: OperatingSystem) -> None:
        self.kernel = kernel
        self.system = system
        self.description: TargetDescription = find_description(kernel.arch)
        self.problem = ""
        self._spaces: dict[int, AddressSpaceReader | KvmDbgError] = {}
        self._read_at = monotonic()

    @property
    def control(self) -> MachineControl | None:
        """Return what halts the machine and lets it run, None if nothing does."""
        return self.kernel.image.control

    @property
    def live(self) -> bool:
        """Return whether the kernel runs while it is looked at."""
        return self.kernel.image.live

    def refresh(self, keep: Collection[int] = ()) -> None:
        """Forget all that was read; threads that have ended go, those with an id in `keep` stay without registers.

        Raises:
            CommandError: the kernel is not the one that was opened any more.
            FileAccessError: the machine is gone.
        """
        self.kernel.image.refresh()
        self.kernel.refresh()
        self.forget(keep)

    def forget(self, keep: Collection[int] = ()) -> None:
        """Forget what is known of the kernel here; as `refresh` otherwise."""
        before = self.threads
        self.problem = ""
        self._spaces.clear()
        self._read_at = monotonic()
        del self.__dict__["threads"]
        for tid in keep:
            if tid not in self.threads and tid in before:
                self.threads[tid] = before[tid]._replace(registers={}, on_cpu=False, why="it has ended")

    def registers_of(self, tid: int) -> Mapping[str, int]:
        """Return the registers of a thread that are known."""
        if self.live and monotonic() - self._read_at > MAX_AGE:
            self.refresh([tid])
        return self.threads[tid].registers

    @property
    def triple(self) -> str:
        """Return what lldb calls the processor and the operating system.

        Its FreeBSD has neither RISC-V nor little-endian Power (Platform/FreeBSD/PlatformFreeBSD.cpp); nothing that
        matters here depends on the system.
        """
        triple = self.description.triple
        named = self.system.name == "FreeBSD" and not triple.startswith(("riscv64", "powerpc64le"))
        return triple.replace("linux-gnu", "freebsd") if named else triple

    @cached_property
    def threads(self) -> dict[int, Thread]:
        """Return all threads by id, in the order in which a debugger should number them: the panicking one first.

        Where the image shows no task at all there is one nameless thread, for a debugger needs one to read memory.
        """
        found: dict[int, Thread] = {}
        try:
            for thread in self.system.for_each_thread(self.kernel):
                tid = thread.tid or (thread.lid if thread.lid > 0 else IDLE_BASE + (thread.cpu or 0))
                if tid in found:
                    tid = DUPLICATE_BASE + len(found)
                    while tid in found:
                        tid += 1
                found[tid] = thread
        except KvmDbgError as error:
            self.problem = f"the list of threads is not complete: {error}"
        if self.live:  # a debugger begins at the first one, and wants registers there: no thread on a CPU has any
            found = dict(sorted(found.items(), key=lambda item: not item[1].registers))
        if not found:
            found[1] = Thread(0, 0, "", 0, None, False, {}, "no task was found in the image")
        return found

    @cached_property
    def kernel_space(self) -> AddressSpaceReader:
        """Return the kernel's own address space."""
        return self.system.kernel_space(self.kernel)

    def find_thread(self, tid: int) -> Thread | None:
        """Return the thread that the debugger knows by `tid`, None if there is none."""
        return self.threads.get(tid)

    def find_tid(self, pid: int) -> int:
        """Return the id of the thread of a process or thread id. Raises CommandError: there is none, or several.

        A process whose first thread has gone is shown by its next one. The idle tasks all have PID 0; they are told
        apart by the ids that a debugger shows.
        """
        if pid in self.threads:
            return pid
        found = [tid for tid, thread in self.threads.items() if thread.pid == pid]
        if not found:
            raise CommandError(f"no process or thread {pid}")
        if pid == 0 and len(found) > 1:
            raise CommandError(f"PID 0 is the idle task of every CPU: select one of {', '.join(map(str, found))}")
        return found[0]

    def describe(self, thread: Thread) -> str:
        """Return what a debugger shows behind a thread's name."""
        parts = [f"pid {thread.pid}" if thread.pid == thread.lid else f"pid {thread.pid} tid {thread.lid}"]
        if thread.on_cpu and thread.cpu is not None:
            parts.append(f"on CPU {thread.cpu}" + (", which ran on" if self.kernel.image.ran_on else ""))
        if thread.address:
            parts.append(f"task {thread.address:#x}")
        return ", ".join(parts)

    def space(self, tid: int, vaddr: int) -> AddressSpaceReader:
        """Return the address space that holds `vaddr` for the thread `tid`.

        Raises:
            ReadError: the address is a user's, and the thread has no user memory (a kernel thread).
        """
        if self.live:
            self._spaces.clear()
            if isinstance(self.kernel_space, ImageSpace):
                self.kernel_space.invalidate()  # page tables change as well
        if not self.kernel.arch.is_user(vaddr):
            return self.kernel_space
        thread = self.threads[tid]
        space = self._spaces.get(thread.address)
        if space is None:
            try:
                space = self.system.address_space(self.kernel, thread.address)
            except (CommandError, ReadError) as error:
                space = error
            if len(self._spaces) >= MAX_SPACES:
                self._spaces.clear()
            self._spaces[thread.address] = space
        if isinstance(space, KvmDbgError):
            raise ReadError(vaddr, f"thread {thread.name or tid} has no readable user memory: {space}")
        return space

    def read(self, tid: int, vaddr: int, size: int) -> bytes:
        """Return the bytes at `vaddr` that can be read: all of them, or those before the first missing page.

        Raises:
            ReadError: not even the first byte can be read.
        """
        space = self.space(tid, vaddr)
        try:
            return space.read(vaddr, size)
        except ReadError:
            page_size = 1 << self.kernel.arch.page_shift
            first = min(size, page_size - vaddr % page_size)
            parts = [space.read(vaddr, first)] if first < size else []
            if not parts:
                raise
            size -= first
            while size > 0:
                vaddr += len(parts[-1])
                try:
                    parts.append(space.read(vaddr, min(size, page_size)))
                except ReadError:
                    break
                size -= page_size
            return b"".join(parts)

    def write(self, tid: int, vaddr: int, data: bytes) -> None:
        """Write into the private copy of the image, or into a kernel that runs, if it was opened for that.

        Raises:
            ReadError, CommandError, FileAccessError: as `write_memory`.
        """
        write_memory(self.kernel, self.space(tid, vaddr), vaddr, data)
