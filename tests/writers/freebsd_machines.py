"""Write whole small FreeBSD systems: a minidump, and a kernel file that has symbols and nothing else.

By sys/kern/kern_proc.c (the offsets that a kernel tells debuggers), sys/kern/kern_shutdown.c (dumppcb, dumptid),
sys/*/include/pcb.h (struct pcb) and frame.h (struct trapframe), sys/*/include/vmparam.h (address spaces), and the ABIs
of the processors for frames. Three processes have five threads: one crashed, one was interrupted on its CPU, three do
not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tests.writers.freebsd_minidump import NEWEST, Kernel, write_minidump
from tests.writers.freebsd_page_map import flat_map, hashed_map, radix_map
from tests.writers.kernel_file import ABS, ALLOC, EXEC, NOBITS, OBJECT, WRITE, Entry, Part, write_kernel_file

HZ, CPUS, PCB_SIZE, STACK = 1000, 4, 1408, 0x4000
PLACES = {"text": 0x10000, "rodata": 0x20000, "bss": 0x24000, "heap": 0x40000, "stacks": 0x60000, "trampoline": 0x90000}
PROC = {"p_list": 0x10, "p_threads": 0x20, "p_pid": 0x0B8, "p_comm": 0x3C8}
THREAD = {"td_plist": 0x10, "td_tid": 0x9C, "td_oncpu": 0x1B4, "td_name": 0x2A4, "td_pcb": 0x3A0}
INSIDE = 0x24  # bytes: where functions call others
EXACT = 8  # bytes: where in cpu_idle() the interrupt came


def _numbered(prefix: str, first: int, last: int) -> str:
    return " ".join(f"{prefix}{number}" for number in range(first, last + 1))


class Machine(NamedTuple):
    """One processor and one kind of kernel for it.

    base: where the kernel's image is at run time; kva: where the page map begins; dmap: the direct map, 0 for none.
    pcb, trapframe: the registers in the order of the structs, "-" for others; fp, sp, pc: their names in these. link,
    back: offsets in words from a frame pointer to the caller's and to the return address; back_in_caller: the latter
    from the caller's. handler: a function that has a trap frame at its stack pointer plus `above` bytes, and runs in
    the kernel or, with `trampoline`, in a copy; frame_above: bytes from the trap frame to the handler's frame pointer,
    0 if it leaves that as it was.
    """

    platform: str
    elf: int
    bits: int
    base: int
    kva: int
    dmap: int
    pcb: str
    trapframe: str
    fp: str
    sp: str
    pc: str
    handler: str
    link: int = 0
    back: int = 1
    back_in_caller: bool = False
    above: int = 0
    frame_above: int = 0
    trampoline: bool = False
    order: str = "<"
    page: int = 4096
    pae: int = 0
    mmu: bytes = b""
    linked: int = 0


ARM64 = Machine(
    "arm64", 183, 64, 0xFFFF000000000000, 0xFFFF000000000000, 0xFFFFA00000000000,
    f"{_numbered('x', 19, 29)} pc sp",
    f"sp x30 pc cpsr - - {_numbered('x', 0, 29)}",
    "x29", "sp", "pc", "handle_el1h_irq", frame_above=288,
)  # fmt: skip
RISCV = Machine(
    "riscv", 243, 64, 0xFFFFFFC000000000, 0xFFFFFFC000000000, 0xFFFFFFD000000000,
    f"pc sp gp tp fp s1 {_numbered('s', 2, 11)}",
    f"ra sp gp tp {_numbered('t', 0, 6)} fp s1 {_numbered('s', 2, 11)} {_numbered('a', 0, 7)} pc sstatus - -",
    "fp", "sp", "pc", "cpu_exception_handler_supervisor", link=-2, back=-1,
)  # fmt: skip
I386 = Machine(
    "i386", 3, 32, 0x00800000, 0x00800000, 0,
    "edi esi ebp esp ebx eip",
    "fs es ds edi esi ebp - ebx edx ecx eax - - eip cs eflags",
    "ebp", "esp", "eip", "calltrap", above=4, trampoline=True,
)  # fmt: skip
POWERPC64 = Machine(
    "powerpc64", 21, 64, 0xC000000002000000, 0xE000000000000000, 0xC000000000000000,
    f"{_numbered('r', 12, 31)} cr r1 r2 pc",
    f"{_numbered('r', 0, 31)} lr cr xer ctr pc msr - - - -",
    "r1", "r1", "pc", "trapexit", back=2, back_in_caller=True, above=48, order=">", mmu=b"mmu_phyp", linked=0x100000,
)  # fmt: skip
AMD64 = Machine(
    "amd64", 62, 64, 0xFFFFFFFF80000000, 0xFFFFFFFF80000000, 0xFFFFF80000000000,
    "r15 r14 r13 r12 rbp rsp rbx rip",
    "rdi rsi rdx rcx r8 r9 rax rbx rbp r10 r11 r12 r13 r14 r15 - - - - rip cs eflags rsp ss",
    "rbp", "rsp", "rip", "Xtimerint",
)  # fmt: skip
MACHINES = {
    "amd64": AMD64,
    "arm64": ARM64,
    "arm64-13": ARM64._replace(
        pcb=f"{_numbered('x', 0, 29)} pc - sp", trapframe=f"sp x30 pc cpsr {_numbered('x', 0, 29)}", frame_above=272
    ),
    "arm64-16k": ARM64._replace(page=16384),
    "riscv64": RISCV,
    "i386": I386,
    "i386-pae": I386._replace(pae=1),
    "i386-11": I386._replace(base=0xC0800000, kva=0xC0000000, trampoline=False),
    "powerpc64": POWERPC64,
    "powerpc64le": POWERPC64._replace(order="<", mmu=b"mmu_radix", linked=0x100100),
}
USER_MODE = {"cs": 0x20, "cpsr": 5, "sstatus": 1 << 8, "msr": 0x8000000000001032}  # in traps from the kernel


class Thread(NamedTuple):
    """What a debugger shows of a thread: `pcs` by frame pointers alone, `trapped` with trap frames crossed."""

    tid: int
    pid: int
    name: str
    registers: Mapping[str, int]
    pcs: list[int]
    trapped: list[int]


class System(NamedTuple):
    """Files, and the threads in the order in which they are shown; `functions` is name -> run-time address."""

    machine: Machine
    dump: bytes
    kernel: bytes
    threads: list[Thread]
    slide: int
    functions: dict[str, int]
    symbols: dict[str, int]


class _Writer:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.word = machine.bits // 8
        self.order = "little" if machine.order == "<" else "big"
        self.frames: dict[int, bytearray] = {}
        self.mapped: dict[int, int] = {}  # page of kernel memory -> its physical address
        self.next_frame = 0x3000

    def place(self, vaddr: int) -> int:
        """Return the physical address of an address that is being written to, mapping its page if need be."""
        machine = self.machine
        if machine.dmap and machine.dmap <= vaddr < machine.dmap + (1 << 36):
            return vaddr - machine.dmap
        page = vaddr & -machine.page
        if page not in self.mapped:
            self.mapped[page] = self.next_frame * machine.page
            self.next_frame += 3  # neither in order nor side by side
        return self.mapped[page] + vaddr % machine.page

    def put(self, vaddr: int, data: bytes) -> None:
        for at, byte in enumerate(data):
            paddr = self.place(vaddr + at)
            frame = self.frames.setdefault(paddr // self.machine.page, bytearray(self.machine.page))
            frame[paddr % self.machine.page] = byte

    def number(self, vaddr: int, value: int, size: int) -> None:
        value &= (1 << 8 * size) - 1
        self.put(vaddr, value.to_bytes(size, "little" if self.order == "little" else "big"))

    def pointer(self, vaddr: int, value: int) -> None:
        self.number(vaddr, value, self.word)

    def words(self, vaddr: int, names: str, values: Mapping[str, int]) -> None:
        for at, name in enumerate(names.split()):
            self.pointer(vaddr + at * self.word, values.get(name, 0xDEAD0000 + at))


def write_system(
    machine: Machine,
    *,
    functions: bool = False,
    osreldate: int | None = None,
    stopped_by_pointer: bool = False,
    with_sleepers: bool = True,
) -> System:
    """Return a system.

    functions: the kernel file names functions, so that trap frames can be crossed. osreldate: with that variable.
    stopped_by_pointer: `stoppcbs` is a pointer to the array, as since 14. with_sleepers: with threads that do not run.
    """
    out = _Writer(machine)
    place = {name: machine.base + at for name, at in PLACES.items()}
    if machine.kva != machine.base:
        place["stacks"] = machine.kva + 0x10000
    if machine.dmap:
        place["heap"] = machine.dmap + 0x1800000
    if machine.trampoline:
        place["trampoline"] = 0xFFC00000  # PMAP_TRM_MIN_ADDRESS, i386/include/vmparam.h
    text, bss = place["text"], place["bss"]
    slide = machine.base - (machine.linked & -0x1000) if machine.linked else 0
    code = {name: text + 0x1000 * at for at, name in enumerate(
        ("savectx", "doadump", "vpanic", "sysctl_handler", "cpustop_handler", "trap", "cpu_idle", "sched_idletd",
         "fork_exit", "mi_switch", "sleepq_wait", "start_exceptions"), 1)}  # fmt: skip
    code[machine.handler] = code["start_exceptions"] + 0x100
    code["end_exceptions"] = code["start_exceptions"] + 0x800
    distance = place["trampoline"] - code["start_exceptions"] if machine.trampoline else 0

    def inside(name: str) -> int:
        return code[name] + INSIDE + (distance if name == machine.handler else 0)

    names = {name: bss + 0x40 * at for at, name in enumerate(
        ("hz", "dumptid", "allproc", "osreldate", "setidt_disp", "mp_ncpus", "version_"))}  # fmt: skip
    names["dumppcb"] = bss + 0x400
    names["stoppcbs"] = bss + 0x1000
    array = place["heap"] + 0x8000 if stopped_by_pointer else names["stoppcbs"]
    if stopped_by_pointer:
        out.pointer(names["stoppcbs"], array)
    offsets = {f"proc_off_{name}": at for name, at in PROC.items()}
    offsets |= {f"thread_off_{name}": at for name, at in THREAD.items()}
    constants = {**offsets, "pcb_size": PCB_SIZE}
    symbols = {name: place["rodata"] + 4 * at for at, name in enumerate(constants)}
    for name, value in constants.items():
        out.number(symbols[name], value, 4)
    out.number(names["hz"], HZ, 4)
    out.number(names["dumptid"], 100200, 4)
    out.number(names["setidt_disp"], distance, 4)
    if osreldate is not None:
        out.number(names["osreldate"], osreldate, 4)

    spec = [  # (pid, command, [(tid, name, CPU, functions of the stack, innermost first)]), newest process first
        (800, "sysctl", [(100200, "sysctl", 1, ["doadump", "vpanic", "sysctl_handler", "fork_exit"])]),
        (11, "idle", [
            (100003, "idle: cpu0", 0,
             ["cpustop_handler", "trap", machine.handler, "cpu_idle", "sched_idletd", "fork_exit"]),
            (100004, "idle: cpu1", -1, ["mi_switch", "sched_idletd", "fork_exit"]),
        ]),
        (0, "kernel", [
            (100000, "swapper", -1, ["mi_switch", "sleepq_wait", "fork_exit"]),
            (100090, "kernel", -1, ["mi_switch", "sleepq_wait", "sched_idletd", "fork_exit"]),
        ]),
    ]  # fmt: skip
    if not with_sleepers:
        spec = [(pid, name, [one for one in members if one[2] >= 0]) for pid, name, members in spec]
    threads: list[Thread] = []
    heap, number = place["heap"], 0
    previous = names["allproc"]
    for pid, command, members in spec:
        proc = heap
        heap += 0x800
        out.pointer(previous, proc)
        out.pointer(proc + PROC["p_list"], 0)
        previous = proc + PROC["p_list"]
        out.number(proc + PROC["p_pid"], pid, 4)
        out.put(proc + PROC["p_comm"], command.encode().ljust(20, b"\0"))
        link = proc + PROC["p_threads"]
        for tid, name, cpu, stack in members:
            one = heap
            heap += 0x800
            out.pointer(link, one)
            out.pointer(one + THREAD["td_plist"], 0)
            link = one + THREAD["td_plist"]
            out.number(one + THREAD["td_tid"], tid, 4)
            out.number(one + THREAD["td_oncpu"], cpu, 4)
            out.put(one + THREAD["td_name"], name.encode().ljust(20, b"\0"))
            low = place["stacks"] + number * STACK
            top = low + STACK
            td_pcb = top - PCB_SIZE
            out.pointer(one + THREAD["td_pcb"], td_pcb)
            pcs = [inside(function) for function in stack]
            fp, sp = _write_stack(out, low + 0x1000, pcs, stack)
            registers = {
                register: machine.base + 0x5000 + tid % 1000 * 0x100 + at
                for at, register in enumerate(machine.pcb.split())
            }
            registers |= {machine.fp: fp, machine.sp: sp, machine.pc: pcs[0]}
            if "cr" in registers:
                registers["cr"] = 0x24002848
            registers.pop("-", None)
            where = td_pcb
            suffix = ""
            if tid == 100200:
                where, suffix = names["dumppcb"], " (crashed)"
            elif cpu >= 0:
                where, suffix = array + cpu * PCB_SIZE, f" (on CPU {cpu})"
            out.words(where, machine.pcb, registers)
            if where != td_pcb:  # what was saved when it last did not run
                out.words(td_pcb, machine.pcb, {register: 0x1111 * at for at, register in enumerate(registers, 1)})
            registers.pop("r13", None) if machine.platform == "powerpc64" else None
            title = f"(pid {pid}) {command}" + (f"/{name}" if name != command else "") + suffix
            plain, trapped = list(pcs), list(pcs)
            if machine.handler in stack:
                at = stack.index(machine.handler) + 1
                trapped[at] = code["cpu_idle"] + EXACT
                if not machine.frame_above:
                    plain.pop(at) if machine.fp != machine.sp else None
                else:
                    del plain[at:]
            threads.append(Thread(tid, pid, title, registers, plain, trapped))
            number += 1
    return System(
        machine,
        _write_dump(out, place),
        _write_kernel(machine, place, code, {**names, **symbols}, slide, functions, osreldate, stopped_by_pointer),
        threads,
        slide,
        code,
        {**names, **symbols},
    )


def _write_stack(out: _Writer, start: int, pcs: list[int], stack: list[str]) -> tuple[int, int]:
    """Write the frames of the functions in `stack`; return the innermost frame pointer and stack pointer.

    `pcs` are the addresses that they return to. The handler has a trap frame of the function behind it, which tells
    where that was interrupted.
    """
    machine, word = out.machine, out.word
    frames = [start + 0x200 * at + 0x140 for at in range(len(stack))]
    sps = [frame - 0x100 for frame in frames]
    if machine.fp == machine.sp:
        sps = frames
    for at, function in enumerate(stack):
        bare = function == machine.handler and not machine.frame_above and machine.fp != machine.sp
        if function == machine.handler:
            # where the stack pointer is in a function that has no frame: where its callee's frame ends
            sp = sps[at] if not bare else frames[at - 1] + (0 if machine.link else 2 * word)
            values = {name: machine.base + 0x7000 + index for index, name in enumerate(machine.trapframe.split())}
            values |= USER_MODE
            values |= {machine.fp: frames[at + 1], machine.sp: sps[at + 1], machine.pc: pcs[at + 1] - INSIDE + EXACT}
            trap = frames[at] - machine.frame_above if machine.frame_above else sp + machine.above
            out.words(trap, machine.trapframe, values)
        if bare or at == len(stack) - 1:
            continue
        if function == machine.handler and machine.frame_above:
            out.words(frames[at], "fp pc", {"fp": 0, "pc": 0})  # its frame pointer leads nowhere
            continue
        skipped = stack[at + 1] == machine.handler and not machine.frame_above and machine.fp != machine.sp
        caller = frames[at + 2 if skipped else at + 1]
        out.pointer(frames[at] + machine.link * word, caller)
        out.pointer((caller if machine.back_in_caller else frames[at]) + machine.back * word, pcs[at + 1])
    out.pointer(frames[-1] + machine.link * word, 0)
    return frames[0], sps[0]


def _write_dump(out: _Writer, place: dict[str, int]) -> bytes:
    machine = out.machine
    frames = {pfn: bytes(data) for pfn, data in out.frames.items()}
    if machine.mmu == b"mmu_radix":
        pmap, tables = radix_map(out.mapped, max(frames) + 1)
        frames |= tables
    elif machine.mmu:
        pmap = hashed_map(out.mapped)
    else:
        pmap = flat_map(
            machine.platform, machine.kva, out.mapped, machine.page, 4 if machine.bits == 32 and not machine.pae else 8
        )
    dmapend = machine.dmap + (1 << 36) - (1 if machine.mmu else 0) if machine.dmap else 0
    start = machine.base + (machine.linked & 0xFFF)
    kernel = Kernel(
        machine.kva,
        machine.dmap,
        dmapend,
        0,
        machine.kva + 0x7FFFFFFFF,
        machine.pae,
        machine.mmu,
        start,
        start + 0x2000000,
    )
    return write_minidump(
        machine.platform,
        frames,
        version=1 if machine.platform == "amd64" else NEWEST[machine.platform],
        kernel=kernel,
        pmap=pmap,
        order=machine.order,
        page=machine.page,
        avail=[(0, (max(frames) + 1) * machine.page)],
    )


def _write_kernel(
    machine: Machine,
    place: dict[str, int],
    code: dict[str, int],
    names: dict[str, int],
    slide: int,
    functions: bool,
    osreldate: int | None,
    stopped_by_pointer: bool,
) -> bytes:
    word = machine.bits // 8
    sizes = {"dumppcb": PCB_SIZE, "stoppcbs": word if stopped_by_pointer else CPUS * PCB_SIZE, "allproc": word}
    hidden = {"version_", "mp_ncpus"} | (set() if osreldate is not None else {"osreldate"})
    entries = [Entry("kernbase", machine.linked or machine.kva, 0, ABS, type=0)]
    for name, address in names.items():
        if name not in hidden and (functions or name != "setidt_disp"):
            section = ".rodata" if address < place["bss"] else ".bss"
            entries.append(Entry(name, address - slide, sizes.get(name, 4), section, type=OBJECT))
    if functions:
        entries += [Entry(name, address - slide, 0x100, ".text") for name, address in code.items()]
    parts = [
        Part(".text", NOBITS, ALLOC | EXEC, place["text"] - slide, size=0x10000),
        Part(".rodata", NOBITS, ALLOC, place["rodata"] - slide, size=0x4000),
        Part(".bss", NOBITS, ALLOC | WRITE, place["bss"] - slide, size=0x10000),
    ]
    kind = 3 if machine.platform == "powerpc64" else 2  # powerpc64's kernels relocate themselves: ET_DYN
    return write_kernel_file(parts, entries, bits=machine.bits, order=machine.order, kind=kind, machine=machine.elf)
