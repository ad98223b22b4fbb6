"""The kernel in an image, and the records that every operating system's rooms fill in.

`Kernel` joins the four rooms below it and stays at six members. Knowledge about an operating system is free
functions in `kernel/<os>/`, and its door is one `OperatingSystem` (see `kernel/__init__.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from kvm_dbg.arch.base import Arch
from kvm_dbg.debuginfo.base import TypeTable
from kvm_dbg.debuginfo.value import Value
from kvm_dbg.image.base import MemoryImage, Note, PartialRead, Range
from kvm_dbg.symbols.base import SymbolTable

if TYPE_CHECKING:
    from kvm_dbg.debuginfo.btf import BtfTypes
    from kvm_dbg.kernel.unwind_rule import UnwindTable
    from kvm_dbg.kernel.usage import Counter, OpenFile


class Kernel(ABC):
    """One kernel, found in one image.

    Attributes:
        image, arch, symbols, types: the four rooms, joined. symbols are at run-time addresses.
        room: the functions for this kernel, None for those of its operating system.
    """

    image: MemoryImage
    arch: Arch
    symbols: SymbolTable
    types: TypeTable
    room: OperatingSystem | None = None

    @abstractmethod
    def read(self, vaddr: int, size: int) -> bytes:
        """Return `size` bytes at the kernel virtual address `vaddr`. Raises NotMappedError, NotInImageError."""

    @abstractmethod
    def translate(self, vaddr: int) -> int:
        """Return the physical address of the kernel virtual address `vaddr`. Raises NotMappedError, ReadError."""

    def refresh(self) -> None:  # noqa: B027 - the memory of a dump never changes
        """Forget all that was read from memory, and check that it is still this kernel's: time has passed.

        Raises:
            CommandError: it is not; the machine has restarted.
        """

    def note_change(self, text: str) -> None:  # noqa: B027 - as above
        """Remember, for whoever shows the output, that memory changed while it was read; `text` says what it cost."""

    @property
    def changes(self) -> Sequence[str]:
        """Return what has changed while it was read since the last refresh, a sentence each."""
        return ()


class AddressSpaceReader(Protocol):
    """What reads memory by virtual address: the kernel's own space, or a process's."""

    def read(self, vaddr: int, size: int) -> bytes:
        """Return `size` bytes at `vaddr`; raises ReadError."""

    def read_partial(self, vaddr: int, size: int) -> PartialRead:
        """Return what is there; the missing ranges are virtual."""

    def translate(self, vaddr: int) -> int:
        """Return the physical address; raises ReadError."""

    def for_each_run(self, start: int, end: int) -> Iterator[Range]:
        """Yield the runs of [start, end) that exist, ascending: PRESENT ones, and those whose bytes are lost."""


class Process(NamedTuple):
    """One process (thread group). Fields are None where the system has no such thing or the image lacks the bytes.

    state: ps(1)'s letter (R S D T t Z X I W P; of BSDs O U L as well). cpu: the CPU it last ran on. rss, vsize: bytes.
    user_time, system_time: seconds of CPU of all its threads, start_time: seconds since the epoch. tty: device name
    without /dev ("pts/0", "ttyS0"). flags: ps's extra letters ("s" session leader, "l" threads, "+" foreground,
    "<" high priority, "N" nice). unread: names of fields whose memory is not in the image. run_time: seconds of CPU
    where that is not the sum of the two. kinfo: what only kvm(3) asks for, by the members of struct kinfo_proc2.
    """

    pid: int
    address: int
    ppid: int | None = None
    pgid: int | None = None
    sid: int | None = None
    uid: int | None = None  # effective
    ruid: int | None = None
    svuid: int | None = None
    gid: int | None = None  # effective
    rgid: int | None = None
    svgid: int | None = None
    groups: tuple[int, ...] = ()
    state: str = "?"
    flags: str = ""
    nice: int | None = None
    priority: int | None = None
    cpu: int | None = None
    threads: int = 1
    rss: int | None = None
    vsize: int | None = None
    user_time: float | None = None
    system_time: float | None = None
    start_time: float | None = None
    tty: str | None = None
    tty_device: int | None = None  # dev_t as the kernel encodes it for user space; None without a terminal
    tty_pgid: int | None = None  # foreground process group of its terminal
    command: str = ""  # the kernel's short name, "comm"
    kernel_thread: bool = False
    unread: tuple[str, ...] = ()
    run_time: float | None = None
    kinfo: Mapping[str, Any] = MappingProxyType({})

    @property
    def time(self) -> float | None:
        """Return the CPU time in seconds."""
        return self.run_time if self.run_time is not None else sum_times(self.user_time, self.system_time)


class Lwp(NamedTuple):
    """One thread.

    wait_channel: the name of the kernel function that it sleeps in, or the kernel's word for what it waits for, if
    known. run_time, kinfo: as in `Process`, the latter of struct kinfo_lwp.
    """

    lid: int
    pid: int
    address: int
    state: str = "?"
    cpu: int | None = None
    on_cpu: bool = False
    priority: int | None = None
    user_time: float | None = None
    system_time: float | None = None
    wait_channel: str | None = None
    name: str = ""
    kernel_thread: bool = False
    unread: tuple[str, ...] = ()
    run_time: float | None = None
    kinfo: Mapping[str, Any] = MappingProxyType({})

    @property
    def time(self) -> float | None:
        """Return the CPU time in seconds."""
        return self.run_time if self.run_time is not None else sum_times(self.user_time, self.system_time)


def sum_times(user: float | None, system: float | None) -> float | None:
    """Return the sum of two times in seconds, to the microsecond; of the one that is known, None if neither is."""
    if user is None and system is None:
        return None
    return round((user or 0.0) + (system or 0.0), 6)


class Module(NamedTuple):
    """A loadable module. `sections` maps a section's name to its run-time address, where the kernel keeps them."""

    name: str
    address: int  # of its text
    size: int  # bytes, as lsmod shows
    users: tuple[str, ...] = ()  # names of the modules that use it
    reference_count: int | None = None
    state: str = "live"
    taints: str = ""  # letters as in /proc/modules: "O", "E", ...
    struct_address: int = 0
    build_id: str | None = None
    ranges: tuple[tuple[int, int], ...] = ()  # (address, size) of each area that it occupies
    sections: Mapping[str, int] = MappingProxyType({})
    unread: tuple[str, ...] = ()


class LoadAverage(NamedTuple):
    """The load averages of 1, 5 and 15 minutes, and what /proc/loadavg shows beside them."""

    one: float
    five: float
    fifteen: float
    running: int | None = None
    threads: int | None = None
    last_pid: int | None = None


class LogRecord(NamedTuple):
    """One record of the kernel's log. `seconds` since boot; `text` as logged, lines joined by newlines.

    seconds, facility, level: None where the system does not keep them.
    """

    sequence: int
    seconds: float | None
    facility: int | None
    level: int | None
    text: str
    caller: str | None = None  # "T123" or "C4", as dmesg shows it
    dictionary: tuple[tuple[str, str], ...] = ()
    unread: tuple[str, ...] = ()


class MemoryMapping(NamedTuple):
    """One mapping of a process: [start, end) of its addresses.

    permissions: as "rw-p" ("s": shared). offset: bytes into the file. major, minor, inode: of the file; 0 without one.
    path: the file's name, or what the system calls the mapping ("[heap]"), None if nothing. is_file: whether a file is
    behind it. address: of the system's record of it.
    """

    start: int
    end: int
    permissions: str
    offset: int
    major: int | None
    minor: int | None
    inode: int | None
    path: str | None
    is_file: bool
    address: int
    unread: tuple[str, ...] = ()


class CpuState(NamedTuple):
    """One CPU when the image was taken. `registers` is empty where nothing recorded them."""

    cpu: int
    registers: Mapping[str, int]
    task_address: int | None = None
    source: str = ""  # "NT_PRSTATUS", "QEMU", ...


class Thread(NamedTuple):
    """A task as the debugger's thread: who it is, and the registers it would resume with.

    registers: name -> value; registers that nobody saved are absent, not zero. why: where the registers are from
    ("NT_PRSTATUS of CPU 0", "inactive_task_frame"), or why there are none. tid: a number above 0 that is the thread's
    alone, where `lid` is so only within its process; None where `lid` is enough. plain: debuggers add the label to
    the name; False where the name says it all.
    """

    lid: int
    pid: int
    name: str
    address: int
    cpu: int | None
    on_cpu: bool
    registers: Mapping[str, int]
    why: str = ""
    tid: int | None = None
    plain: bool = True

    @property
    def label(self) -> str:
        """Return what tells the thread from all others: "4711", or PID and thread id, "13.2"."""
        return str(self.lid) if self.tid is None else f"{self.pid}.{self.lid}"


class UserThread(NamedTuple):
    """A thread of a process as it entered the kernel: what its user code would go on with.

    registers: as in `Thread`. narrow: it runs code of the processor's 32-bit mode. problem: why no registers are known.
    """

    lid: int
    name: str
    registers: Mapping[str, int]
    narrow: bool = False
    problem: str = ""


class SystemSummary(NamedTuple):
    """What a person wants to know first. Times in seconds; sizes in bytes; None where the image lacks it."""

    system: str
    release: str
    version: str
    machine: str
    nodename: str
    cpus: int | None = None
    date: float | None = None  # since the epoch, when the image was taken
    uptime: float | None = None
    load_average: LoadAverage | None = None
    tasks: int | None = None
    memory: int | None = None
    free_memory: int | None = None
    file_cache: int | None = None
    page_size: int | None = None
    slide: int | None = None
    panic_message: str | None = None
    panic_cpu: int | None = None
    panic_task: Process | None = None
    panic_lid: int | None = None
    taints: str | None = None
    command_line: str | None = None


class Area(NamedTuple):
    """A part of a kernel's or of a module's memory as a linker would call it: [start, end) of run-time addresses.

    name: ".text", ".data", ... fixed: its addresses are offsets into each CPU's own area, which no slide moves.
    """

    name: str
    start: int
    end: int
    executable: bool = False
    writable: bool = False
    module: str | None = None
    fixed: bool = False


class Frame(NamedTuple):
    """One frame of a task's kernel stack.

    pc: the address of the next instruction (`exact`), or a return address: the call is the instruction before it.
    sp: the stack pointer there. stack: the name of the stack that sp is on, as the kernel prints it ("TASK", "IRQ",
    "NMI", "#DF", ...); "USER" where user space was left, which is the last frame; "?" if unknown. how: "registers"
    (of the CPU, or saved when the task was switched away), "orc" (the kernel's unwind tables), "frame-pointer",
    "exception" (saved when it was interrupted), "scan" (a guess). name, offset, module: the function, and bytes from
    its start. registers: where it was interrupted, those that were saved. why: if the next frame is a guess or
    missing, the reason; "" otherwise, and where the stack ends as it should.
    """

    pc: int
    sp: int
    stack: str
    how: str
    name: str | None = None
    offset: int = 0
    module: str | None = None
    exact: bool = False
    registers: Mapping[str, int] | None = None
    why: str = ""


GRADES = ("ok", "partial", "suspect")
"""How far the data behind a command can be believed, the best first."""


class Check(NamedTuple):
    """What one look at an image found of the data behind one command.

    subject: what was compared ("tasks and the allocator of PIDs"). grade: "ok", "partial" (something is not in the
    image: `text` says what) or "suspect" (two witnesses contradict each other: `text` says how). text: of "ok", what
    was found to agree.
    """

    command: str
    subject: str
    grade: str
    text: str


class Sources(NamedTuple):
    """Where the knowledge about a kernel comes from, each a phrase for people, None if there is none.

    missing: a sentence for each thing that is not there, and what that costs.
    """

    symbols: str | None
    types: str | None
    unwind: str | None
    missing: tuple[str, ...] = ()


class SourcePlace(NamedTuple):
    """Where a frame is in the source: its function, or one that the compiler inlined there.

    function: None if debug information does not name it. file: below the root of the kernel's sources, where that is
    known; None if unknown. path: the file's path as the compiler had it. line, column: from 1; 0 if unknown. For a
    function that another was inlined into: the place of that call. inlined: whether this function is inlined.
    """

    function: str | None
    file: str | None
    path: str | None
    line: int
    column: int
    inlined: bool


class Variable(NamedTuple):
    """A parameter or variable of a function; if its value is not known for sure, value is None and why says why."""

    name: str
    value: Value | None
    why: str = ""


class SourceReader(Protocol):
    """What debug information says of frames; one is kept as long as its kernel is open."""

    def places(self, frame: Frame) -> Sequence[SourcePlace]:
        """Return where a frame is, the innermost function first; none if that is not known. Raises KvmDbgError."""

    def variables(self, thread: Thread, frames: Sequence[Frame], number: int) -> Sequence[Sequence[Variable]]:
        """Return the variables in scope at each place of a frame of a task, as `places` has them, parameters first.

        frames: all of the task's. number: of the frame among them. Raises KvmDbgError.
        """


class OperatingSystem(Protocol):
    """What one operating system's room offers to the floors above; `kernel/linux/__init__.py` is the first.

    Every function takes the kernel first, reads lazily, and lets a missing page cost only the field or the line
    that needed it.
    """

    name: str

    def for_each_process(self, kernel: Kernel) -> Iterator[Process]:
        """Yield all processes in ascending order of PID, zombies included (PID 0 last of all is not yielded)."""

    def for_each_lwp(self, kernel: Kernel, pid: int | None = None) -> Iterator[Lwp]:
        """Yield the threads of one process or of all, ascending by PID then thread id."""

    def read_arguments(self, kernel: Kernel, process: Process) -> list[bytes] | None:
        """Return argv as in /proc/PID/cmdline; None for kernel threads and zombies. Raises ReadError."""

    def read_environment(self, kernel: Kernel, process: Process) -> list[bytes] | None:
        """Return the environment as in /proc/PID/environ; None for kernel threads and zombies. Raises ReadError."""

    def for_each_file(self, kernel: Kernel, pid: int | None = None) -> Iterator[OpenFile]:
        """Yield the open files of one process or of all, each process's directories before its descriptors."""

    def for_each_counter(self, kernel: Kernel) -> Iterator[Counter]:
        """Yield the counters of memory and events in the system's own order. Raises UnsupportedError, ReadError, ..."""

    def for_each_mapping(self, kernel: Kernel, pid: int) -> Iterator[MemoryMapping]:
        """Yield the mappings of a process, ascending; none for kernel threads and zombies."""

    def read_core_notes(
        self, kernel: Kernel, process: Process, mappings: Sequence[MemoryMapping]
    ) -> tuple[list[Note], list[str]]:
        """Return the notes of a core file of the process, and sentences on what they lack. Raises KvmDbgError."""

    def read_user_threads(self, kernel: Kernel, process: Process) -> tuple[list[UserThread], list[str]]:
        """Return the threads of a process, the leader first, and sentences on what is missing. Raises KvmDbgError."""

    def read_auxiliary_vector(self, kernel: Kernel, process: Process, word_size: int) -> bytes:
        """Return the vector as in /proc/PID/auxv, up to AT_NULL: pairs of words of so many bytes.

        Raises ReadError, MemberNotFound.
        """

    def read_load_average(self, kernel: Kernel) -> LoadAverage:
        """Return the load averages. Raises SymbolNotFound, ReadError."""

    def for_each_log_record(self, kernel: Kernel) -> Iterator[LogRecord]:
        """Yield the kernel's log, oldest first."""

    def for_each_module(self, kernel: Kernel) -> Iterator[Module]:
        """Yield the loaded modules in the order of the kernel's list."""

    def read_summary(self, kernel: Kernel) -> SystemSummary:
        """Return what `sys` shows."""

    def for_each_thread(self, kernel: Kernel) -> Iterator[Thread]:
        """Yield all tasks as a debugger's threads: the panicking one first, then those on CPUs, then the rest."""

    def address_space(self, kernel: Kernel, address: int) -> AddressSpaceReader:
        """Return the user address space of the task or process at `address`. Raises ReadError, CommandError if none."""

    def kernel_space(self, kernel: Kernel) -> AddressSpaceReader:
        """Return the kernel's own address space."""

    def all_symbols(self, kernel: Kernel) -> SymbolTable:
        """Return the kernel's symbols joined with those of its loaded modules, as far as these can be read."""

    def symbolize(self, kernel: Kernel, address: int) -> str | None:
        """Return "name+0x12" or "name+0x12 [module]" for a kernel address, None if nothing is near."""

    def for_each_unwind_gap(self, kernel: Kernel, covered: Sequence[tuple[int, int]]) -> Iterator[UnwindTable]:
        """Yield rules for the kernel's text that is not `covered` by debug information, or wrongly so.

        covered: [start, end) runs of run-time addresses, ascending. Code that runs on a stack that it was not called
        on is never covered rightly.

        Raises KvmDbgError if the image lacks them.
        """

    def for_each_unwind_table(self, kernel: Kernel, *, modules: bool) -> Iterator[UnwindTable]:
        """Yield the rules for the kernel's own code, or for that of its modules; none where there are no such tables.

        What the image lacks is no error: a table says what is missing of it.
        """

    def for_each_module_types(self, kernel: Kernel, types: BtfTypes) -> Iterator[tuple[str, BtfTypes]]:
        """Yield (name, types of its own) of each module that has such; `types` are the kernel's.

        Modules whose types cannot be read are passed over. Raises KvmDbgError if not all modules can be listed; those
        before have been yielded.
        """

    def find_memory(self, kernel: Kernel) -> Sequence[tuple[int, int]] | None:
        """Return the physical [start, end) of all RAM by the kernel's own account; None if that is not known."""

    def for_each_area(self, kernel: Kernel, *, modules: bool) -> Iterator[Area]:
        """Yield the parts of the kernel's own memory, ascending and without gaps, or those of its modules.

        Raises KvmDbgError if not all modules can be listed; those before have been yielded.
        """

    def unwind(self, kernel: Kernel, thread: Thread) -> Iterator[Frame]:
        """Yield the frames of a task's kernel stack, the innermost first; none if nobody knows its registers.

        What cannot be unwound is no error: the last frame says why.
        """

    def find_sources(self, kernel: Kernel) -> Sources:
        """Return where symbols, types and unwind rules come from. Nothing is raised."""

    def for_each_check(self, kernel: Kernel, command: str | None = None) -> Iterator[Check]:
        """Yield what independent structures of the image say of the data behind each command, or behind one.

        Nothing is raised: what cannot be looked at is a finding too.
        """

    def open_source_reader(self, kernel: Kernel, find_file: Callable[[Module], str | None]) -> SourceReader | None:
        """Return what tells source lines, None if there is no debug information at all.

        find_file: returns the path of a module's file, which may have debug information; None if there is none.

        Raises KvmDbgError if the debug information is damaged.
        """
