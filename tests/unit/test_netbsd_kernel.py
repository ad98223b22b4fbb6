"""NetBSD kernels written by definition: 10's structs, sections that are scattered, i386 with and without PAE."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from kvm_dbg.elf import ET_REL
from kvm_dbg.errors import (
    CorruptError,
    KernelMismatchError,
    KernelNotFoundError,
    NotInImageError,
    NotMappedError,
    UnsupportedError,
)
from kvm_dbg.image import open_image
from kvm_dbg.kernel import identify_kernels, open_kernel, system_of, walk_address
from kvm_dbg.kernel.base import Kernel
from kvm_dbg.kernel.netbsd.boot import find_boots
from kvm_dbg.rsp.target import Target
from tests.writers import dwarf
from tests.writers.dwarf import Die, DwarfWriter
from tests.writers.elfcore import Load, write_elfcore, write_note
from tests.writers.kernel_file import Entry, Part, write_kernel_file
from tests.writers.lime import write_lime
from tests.writers.netbsd_kernel import PAGE, ROOT, VERSION, LittleNetbsd
from tests.writers.qemu import write_cpu_state

SACTIVE, SZOMB = 2, 5
LSSLEEP, LSONPROC = 3, 7
PK_SYSTEM, PK_32, PK_MARKER = 0x2, 0x40000, 0x80000000
LW_SINTR, LW_SYSTEM = 0x80, 0x200
NZERO = 20
STACK = 0x7F0000000000
LOG = b"NetBSD boots\npanic: kernel on fire, unit 3\ncpu0: end\n"
KINDS = {
    "amd64": {"wide": True},
    "scattered": {"wide": True, "scattered": True},
    "i386": {"wide": False},
    "i386-pae": {"wide": False, "pae": True},
}


class Machine(NamedTuple):
    """A little kernel with processes: addresses of what is in it."""

    kernel: LittleNetbsd
    procs: dict[int, int]
    lwps: dict[tuple[int, int], int]
    cpu: int


def build(kind: str = "amd64") -> Machine:
    """Return a kernel with four processes and a marker: the kernel, init, one of two LWPs, and a zombie."""
    kernel = LittleNetbsd(**KINDS[kind])
    for name in (
        "proc_alloc_lwpid",
        "mi_switch",
        "sleepq_block",
        "lwp_trampoline",
        "Xsyscall",
        *(f"fn{n}" for n in range(12)),
    ):
        kernel.function(name)
    kernel.variable("time__second", struct.pack("<q", 1734354491))
    kernel.variable("time__uptime", struct.pack("<q", 4242))
    kernel.variable(
        "averunnable", struct.pack("<3I", 2048, 1024, 512) + bytes(4 if kernel.wide else 0) + kernel.number(2048)
    )
    kernel.variable("fscale", struct.pack("<i", 2048))
    kernel.variable("nprocs", struct.pack("<I", 4))
    kernel.variable("physmem", struct.pack("<q", 0x1F000))
    for name, data in (("ostype", b"NetBSD\0"), ("osrelease", b"10.1\0"), ("machine", b"amd64\0")):
        kernel.variable(name, data, "rodata")
    kernel.variable("hostname", b"little\0".ljust(256, b"\0"))
    ring = kernel.put(b"".join(kernel.number(value) for value in (0x63061, len(LOG), 0, 256)) + LOG.ljust(256, b"\0"))
    kernel.pointer("msgbufp", ring)
    kernel.pointer("panicstr", 0)
    kernel.pointer("lwp0", 0)
    cpu = kernel.put(kernel.make("cpu_info", {}))
    kernel.pointer("cpu_infos", kernel.put(kernel.number(cpu)))
    kernel.variable("ncpu", struct.pack("<i", 1))
    creds = {
        uid: kernel.put(
            kernel.make(
                "kauth_cred",
                {"cr_refcnt": 9, "cr_uid": uid, "cr_euid": uid, "cr_svuid": uid, "cr_gid": 7, "cr_egid": 8,
                 "cr_svgid": 7, "cr_ngroups": 2, "cr_groups": struct.pack("<2I", 8, 9)},
            )
        )
        for uid in (0, 1000)
    }  # fmt: skip
    session = kernel.put(kernel.make("session", {"s_login": b"alice", "s_sid": 1}))
    group = kernel.put(kernel.make("pgrp", {"pg_session": session, "pg_id": 1}))
    stats = kernel.put(kernel.make("pstats", {"p_start": struct.pack("<qi", 1734350000, 500000)}))
    pmap = kernel.made["pmap"] = kernel.put(kernel.make("pmap", {"pm_pdirpa": ROOT, "pm_stats": struct.pack("<q", 3)}))
    space = kernel.put(
        kernel.make("vmspace", {"vm_map.pmap": pmap, "vm_map.size": 0x5000, "vm_ssize": 1, "vm_issize": 1})
    )
    procs: dict[int, int] = {}
    lwps: dict[tuple[int, int], int] = {}
    for pid, parent, command, flag, stat, lids in (
        (0, None, b"system", PK_SYSTEM, SACTIVE, (0, 3)),
        (1, 0, b"init", 0, SACTIVE, (1,)),
        (77, 1, b"threads", 0, SACTIVE, (77, 200)),
        (30001, 1, b"gone", 0, SZOMB, ()),
    ):
        values: Mapping[str, int | bytes] = {
            "p_pid": pid, "p_comm": command, "p_flag": flag, "p_stat": stat, "p_nlwps": len(lids), "p_nice": NZERO,
            "p_pptr": 0 if parent is None else procs[parent], "p_cred": creds[1000 if pid == 77 else 0],
            "p_pgrp": group, "p_stats": stats, "p_vmspace": space, "p_psstrp": STACK & (1 << 8 * kernel.word) - 1,
            "p_xexit": 3, "p_rtime": struct.pack("<qQ", 5, 1 << 63),
        }  # fmt: skip
        procs[pid] = kernel.put(kernel.make("proc", values))
        for lid in lids:
            stack = kernel.put(bytes(0x400))
            lwps[pid, lid] = kernel.put(
                kernel.make(
                    "lwp",
                    {"l_lid": lid, "l_proc": procs[pid], "l_cpu": cpu, "l_stat": LSSLEEP, "l_slptime": 2,
                     "l_flag": LW_SYSTEM if pid == 0 else LW_SINTR, "l_addr": stack, "l_priority": 43,
                     "l_name": kernel.string("pager") if (pid, lid) == (0, 3) else 0,
                     "l_wchan": 0x1234, "l_wmesg": kernel.string("nanoslp")},
                )
            )  # fmt: skip
            r = "r" if kernel.wide else "e"
            frame = {f"sf_{r}ip": kernel.symbols["mi_switch"][0] + 8, f"sf_{r}bx": lid}
            kernel.set(stack + 0x200, kernel.make("switchframe", frame))
            kernel.set(stack, kernel.make("pcb", {f"pcb_{r}sp": stack + 0x200, f"pcb_{r}bp": stack + 0x300}))
            returns = kernel.symbols["lwp_trampoline" if pid == 0 else "Xsyscall"][0] + 4
            kernel.set(stack + 0x300, kernel.number(0) + kernel.number(returns))
            trapped = {f"tf_{r}ip": 0x401234, "tf_cs": 0x53, f"tf_{r}sp": 0x7FFFF000, f"tf_{r}ax": 4}
            place = stack + 0x300 + 2 * kernel.word
            if not kernel.wide:
                kernel.set(place, kernel.number(place + 4))  # the frame's address, as an argument
                place += 4
            kernel.set(place, kernel.make("trapframe", trapped))
        kernel.link(
            procs[pid] + kernel.place("proc", "p_lwps")[0],
            [lwps[pid, lid] for lid in reversed(lids)],
            "lwp",
            "l_sibling",
        )
    kernel.set(cpu + kernel.place("cpu_info", "ci_curlwp")[0], kernel.number(lwps[77, 200]))
    marker = kernel.put(kernel.make("proc", {"p_flag": PK_MARKER, "p_pid": 1 << 30}))
    kernel.pointer("allproc", 0)
    kernel.pointer("zombproc", 0)
    kernel.link(kernel.symbols["allproc"][0], [procs[77], marker, procs[1], procs[0]], "proc", "p_list")
    kernel.link(kernel.symbols["zombproc"][0], [procs[30001]], "proc", "p_list")
    return Machine(kernel, procs, lwps, cpu)


@contextmanager
def opened(machine: Machine, tmp_path: Path, *, with_layout: bool = True, **options: object) -> Iterator[Kernel]:
    """Open a kernel's dump with its own symbols and its layout file, or without that."""
    if "kernel_symtab" not in machine.kernel.symbols:
        machine.kernel.add_ksyms()
    layout = machine.kernel.write_layout(tmp_path / "layout.json") if with_layout else None
    with open_image(machine.kernel.write_core(tmp_path / "netbsd.3.core")) as image:
        yield open_kernel(image, layout=layout, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_kernel_says_of_itself(tmp_path: Path, kind: str) -> None:
    machine = build(kind)
    little = machine.kernel
    with opened(machine, tmp_path) as kernel:
        (identity,) = identify_kernels(kernel.image)
        assert (identity.system, identity.release, identity.version) == ("NetBSD", "10.1", VERSION)
        assert identity.verified
        assert identity.arch == ("x86_64" if little.wide else "i386")
        for name, (address, size, _) in little.symbols.items():
            symbol = kernel.symbols.find(name)
            assert symbol is not None
            assert (symbol.address, symbol.size) == (address, size)
        version = little.symbols["version"][0]
        assert kernel.read(version, 20) == VERSION.encode()[:20]
        walk = walk_address(kernel, version)
        part = little.parts["rodata"]
        assert walk.paddr == version - part.vaddr + part.paddr
        assert [step.name for step in walk.steps] == (
            ["PML4E", "PDPTE", "PDE", "PTE"] if little.wide else ["PDE", "PTE"]
        )
        system = system_of(kernel)
        load = system.read_load_average(kernel)
        assert (load.one, load.five, load.fifteen) == (1.0, 0.5, 0.25)
        assert [record.text for record in system.for_each_log_record(kernel)] == LOG.decode().splitlines()
        summary = system.read_summary(kernel)
        assert (summary.release, summary.nodename, summary.cpus, summary.panic_message) == ("10.1", "little", 1, None)
        assert (summary.date, summary.uptime, summary.memory) == (1734354491.0, 4242.0, 0x1F000 * PAGE)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_and_lwps_of_10(tmp_path: Path, kind: str) -> None:
    """A marker in the list is no process; ids of LWPs are those of the table of PIDs."""
    machine = build(kind)
    with opened(machine, tmp_path) as kernel:
        system = system_of(kernel)
        found = {process.pid: process for process in system.for_each_process(kernel)}
        assert {pid: process.address for pid, process in found.items()} == machine.procs
        threads = found[77]
        assert (threads.command, threads.ppid, threads.uid, threads.gid, threads.groups) == (
            "threads",
            1,
            1000,
            8,
            (8, 9),
        )
        assert (threads.sid, threads.threads, threads.state, threads.nice) == (1, 2, "S", 0)
        assert (threads.rss, threads.vsize, threads.start_time) == (3 * PAGE, 0x5000, 1734350000.5)
        assert threads.unread == ()
        assert (found[30001].state, found[0].kernel_thread, found[30001].kinfo["p_xstat"]) == ("Z", True, 3)
        lwps = {(lwp.pid, lwp.lid): lwp for lwp in system.for_each_lwp(kernel)}
        assert {key: lwp.address for key, lwp in lwps.items()} == machine.lwps
        assert (lwps[0, 3].name, lwps[77, 200].name, lwps[1, 1].wait_channel) == ("pager", "threads", "nanoslp")
        assert lwps[77, 200].on_cpu
        target = Target(kernel, system)
        assert sorted(target.threads) == [1, 3, 77, 200, 100_000]
        assert target.threads[200].label == "77.200"
        for check in system.for_each_check(kernel, "procs"):
            assert check.grade != "suspect" or "dumpmag" in check.text


@pytest.mark.parametrize("kind", ["amd64", "scattered"])
def test_memory_without_a_word_on_page_tables(tmp_path: Path, kind: str) -> None:
    """They are found in memory by the entry that leads to themselves, and lead to the version wherever it is."""
    machine = build(kind)
    machine.kernel.add_ksyms()
    path = tmp_path / "memory"
    path.write_bytes(write_lime(machine.kernel.memory().items()))
    with open_image(path) as image:
        (identity,) = identify_kernels(image)
        assert (identity.version, identity.verified) == (VERSION, True)
        assert identity.paging is not None
        assert identity.paging.root == ROOT
        kernel = open_kernel(image, layout=machine.kernel.write_layout(tmp_path / "layout.json"))
        assert [process.pid for process in system_of(kernel).for_each_process(kernel)] == [0, 1, 77, 30001]


@pytest.mark.parametrize("kind", KINDS)
def test_stacks(tmp_path: Path, kind: str) -> None:
    """From the switch frame by frame pointers to where a kernel's LWP began, or through the trap frame to a user's."""
    machine = build(kind)
    names = ("rip", "rsp", "rbx", "rax") if machine.kernel.wide else ("eip", "esp", "ebx", "eax")
    with opened(machine, tmp_path) as kernel:
        system = system_of(kernel)
        for thread in system.for_each_thread(kernel):
            if thread.on_cpu:
                assert thread.why == "runs on CPU 0, whose registers were not recorded"
                continue
            assert thread.registers[names[2]] == thread.lid
            frames = list(system.unwind(kernel, thread))
            assert [frame.name for frame in frames] == (
                ["mi_switch", "lwp_trampoline"] if thread.pid == 0 else ["mi_switch", "Xsyscall", None]
            )
            assert not any(frame.why for frame in frames)
            if thread.pid:
                assert (frames[-1].pc, frames[-1].sp, frames[-1].stack) == (0x401234, 0x7FFFF000, "USER")
                assert frames[-1].registers is not None
                assert frames[-1].registers[names[3]] == 4


def test_a_relocatable_kernel_file_has_types_only(tmp_path: Path) -> None:
    """That of GENERIC_KASLR is an object: symbols are those in memory, if the version says that it is this one."""
    machine = build("scattered")
    writer = DwarfWriter()
    size = (dwarf.BYTE_SIZE, dwarf.DATA1, 4)
    number = Die(dwarf.BASE, [size, (dwarf.ENCODING, dwarf.DATA1, 5), (dwarf.NAME, dwarf.STRING, "int")], label="int")
    place: list[dwarf.Attribute] = [(dwarf.TYPE, dwarf.REF4, "int"), (dwarf.MEMBER_LOCATION, dwarf.DATA1, 12)]
    member = Die(dwarf.MEMBER, [(dwarf.NAME, dwarf.STRING, "p_pid"), *place])
    writer.unit(
        number, Die(dwarf.STRUCTURE, [(dwarf.NAME, dwarf.STRING, "proc"), (dwarf.BYTE_SIZE, dwarf.DATA1, 16)], [member])
    )
    path = tmp_path / "netbsd.gdb"
    for text, fits in ((VERSION, True), (VERSION.replace("#0", "#1"), False)):
        parts = [Part(".rodata", data=text.encode() + b"\n\0"), *writer.parts()]
        path.write_bytes(write_kernel_file(parts, [Entry("version", 0, 9, ".rodata")], kind=ET_REL))
        if not fits:
            with pytest.raises(KernelMismatchError, match="version"), opened(machine, tmp_path, vmlinux=str(path)):
                pass
            continue
        with opened(machine, tmp_path, with_layout=False, vmlinux=str(path)) as kernel:
            assert kernel.types.offset_of("struct proc", "p_pid") == 12
            assert kernel.symbols.address("allproc") == machine.kernel.symbols["allproc"][0]
            assert getattr(kernel, "vmlinux_path", "") is None
            assert any("no addresses of a running kernel" in quirk for quirk in getattr(kernel, "quirks", ()))


def test_symbols_of_savecore_s_list_are_run_time_ones(tmp_path: Path) -> None:
    machine = build("scattered")
    bss = Part(".bss", 8, 6, 0, b"", size=(1 << 64) - 1)
    entries = [Entry(name, at, size, ".bss", type=kind) for name, (at, size, kind) in machine.kernel.symbols.items()]
    (tmp_path / "netbsd.3").write_bytes(write_kernel_file([bss], entries))
    with opened(machine, tmp_path) as kernel:
        assert getattr(kernel, "vmlinux_path", None) == str(tmp_path / "netbsd.3")
        assert [process.pid for process in system_of(kernel).for_each_process(kernel)] == [0, 1, 77, 30001]


@pytest.mark.parametrize("user", ["missing", "zeros", "strings", "narrow"])
def test_arguments(tmp_path: Path, user: str) -> None:
    machine = build()
    little = machine.kernel
    if user != "missing":
        little.pages[0x400000] = bytearray(PAGE)
        little.map(ROOT, STACK, 0x400000)
    if user == "strings":
        little.write(0x400000, little.make("ps_strings", {"ps_argvstr": STACK + 64, "ps_nargvstr": 2}))
        little.write(0x400000 + 64, struct.pack("<3Q", STACK + 128, STACK + 160, 0))
    elif user == "narrow":
        little.map(ROOT, 0x7FFF0000, 0x400000)
        for pid in (1, 77):
            for member, value in (("p_flag", PK_32), ("p_psstrp", 0x7FFF0000)):
                offset, size = little.place("proc", member)
                little.set(machine.procs[pid] + offset, value.to_bytes(size, "little"))
        little.write(
            0x400000,
            struct.pack("<4I", 0x7FFF0040, 2, 0, 0) + bytes(48) + struct.pack("<3I", 0x7FFF0080, 0x7FFF00A0, 0),
        )
    if user in ("strings", "narrow"):
        little.write(0x400000 + 128, b"threads\0")
        little.write(0x400000 + 160, b"-j 4\0")
    with opened(machine, tmp_path) as kernel:
        system = system_of(kernel)
        process = next(one for one in system.for_each_process(kernel) if one.pid == 77)
        if user == "missing":
            with pytest.raises(NotMappedError, match="the entry is empty"):
                system.read_arguments(kernel, process)
        elif user == "zeros":
            with pytest.raises(CorruptError, match="nothing but zeros"):
                system.read_arguments(kernel, process)
        else:
            assert system.read_arguments(kernel, process) == [b"threads", b"-j 4"]


@pytest.mark.parametrize("kind", ["i386", "i386-pae"])
def test_arguments_on_i386(tmp_path: Path, kind: str) -> None:
    """With PAE, a process's page directories are anywhere."""
    machine = build(kind)
    little = machine.kernel
    stack, page = 0xBFBFE000, 0x400000
    little.pages[page] = bytearray(PAGE)
    if kind == "i386-pae":
        directories = (0x420000, 0x410000, 0x430000, ROOT + 3 * PAGE)
        for directory in directories[:3]:
            little.pages[directory] = bytearray(PAGE)
        little.map(directories[2] - 2 * PAGE, stack, page)  # the third gigabyte's
        pmap = little.made["pmap"]
        little.set(pmap + little.place("pmap", "pm_pdirpa")[0], struct.pack("<4Q", *directories))
    else:
        little.map(ROOT, stack, page)
    offset, size = little.place("proc", "p_psstrp")
    little.set(machine.procs[77] + offset, stack.to_bytes(size, "little"))
    little.write(page, little.make("ps_strings", {"ps_argvstr": stack + 64, "ps_nargvstr": 1}))
    little.write(page + 64, struct.pack("<2I", stack + 128, 0))
    little.write(page + 128, b"threads\0")
    with opened(machine, tmp_path) as kernel:
        system = system_of(kernel)
        process = next(one for one in system.for_each_process(kernel) if one.pid == 77)
        assert system.read_arguments(kernel, process) == [b"threads"]
        walk = walk_address(kernel, stack + 5, process.address)
        assert (walk.paddr, [step.name for step in walk.steps]) == (page + 5, ["PDE", "PTE"])
        with pytest.raises(NotMappedError):
            walk_address(kernel, 0x5000, process.address)


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        (20, 43, "kernel on fire, unit 3"),
        (250, 12, "NetBSD boots"),  # it goes on at the ring's start
        (-1, -1, "kernel on fire, unit %d"),
        (None, None, "kernel on fire, unit %d"),
        (5, 1 << 40, "kernel on fire, unit %d"),
    ],
)
def test_what_a_panic_said(tmp_path: Path, start: int | None, end: int | None, said: str) -> None:
    machine = build()
    little = machine.kernel
    little.set(little.symbols["panicstr"][0], little.number(little.string("kernel on fire, unit %d")))
    if start is not None and end is not None:
        little.variable("panicstart", struct.pack("<q", start))
        little.variable("panicend", struct.pack("<q", end))
    with opened(machine, tmp_path) as kernel:
        assert system_of(kernel).read_summary(kernel).panic_message == said


# i386 and others


@pytest.mark.parametrize("kind", ["i386", "i386-pae"])
@pytest.mark.parametrize("form", ["raw", "qemu"])
def test_i386_in_other_containers(tmp_path: Path, kind: str, form: str) -> None:
    """Raw RAM needs the kernel file, QEMU's notes have CR3: with PAE four entries above the page directories."""
    machine = build(kind)
    little = machine.kernel
    path, names = tmp_path / "memory", tmp_path / "netbsd"
    entries = [Entry(name, at, size, ".bss", type=kind_) for name, (at, size, kind_) in little.symbols.items()]
    names.write_bytes(write_kernel_file([Part(".bss", 8, 6, 0, b"", size=(1 << 32) - 1)], entries, bits=32))
    if form == "raw":
        path.write_bytes(write_lime(little.memory().items()))
    else:
        tops = 0x9000
        little.pages[tops] = bytearray(PAGE)
        little.write(tops + 0x20, struct.pack("<4Q", *((ROOT + number * PAGE) | 1 for number in range(4))))
        registers = {"rip": little.symbols["fn3"][0], "rsp": 0xD0001000, "rax": 77}
        cr3, cr4 = (tops + 0x20, 0x20) if kind == "i386-pae" else (ROOT, 0x10)
        note = write_note("QEMU", 0, write_cpu_state(registers, cr3=cr3, cr4=cr4, fs_base=machine.cpu))
        loads = [Load(paddr, data) for paddr, data in little.memory().items()]
        path.write_bytes(write_elfcore(loads, note, bits=32, machine=3))
    with open_image(path) as image:
        kernel = open_kernel(image, str(names), layout=little.write_layout(tmp_path / "layout.json"))
        assert kernel.arch.name == "i386"
        if form == "qemu":
            (identity,) = identify_kernels(image)
            assert (identity.arch, identity.release, identity.verified) == ("i386", "10.1", True)
            first = next(iter(system_of(kernel).for_each_thread(kernel)))
            assert (first.label, first.why) == ("77.200", "QEMU's CPU state, CPU 0")
            assert first.registers["eax"] == 77
            assert next(iter(system_of(kernel).unwind(kernel, first))).name == "fn3"
        assert [process.pid for process in system_of(kernel).for_each_process(kernel)] == [0, 1, 77, 30001]
        names.write_bytes(write_kernel_file([Part(".bss", 8, 6, 0, b"", size=(1 << 64) - 1)], entries))
        with pytest.raises((KernelMismatchError, KernelNotFoundError)):
            open_kernel(image, str(names))


def test_netbsd_on_other_processors_is_named(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    banner = f"{VERSION}\n\tbuilt\n\0".encode()
    path.write_bytes(write_elfcore([Load(0x200000, banner.ljust(PAGE, b"\0"))], machine=183))
    with open_image(path) as image, pytest.raises(UnsupportedError, match="NetBSD on aarch64"):
        find_boots(image)


def remove_page_table(machine: Machine) -> None:
    """Leave the lowest table of the kernel's data out."""
    little = machine.kernel
    table = ROOT
    for shift in (39, 30, 21):
        table = little.get(table + (little.parts["data"].vaddr >> shift & 511) * 8, 8) & 0xFFFFFFFFFF000
    del little.pages[table]


def test_a_missing_page_table_is_named(tmp_path: Path) -> None:
    machine = build("scattered")
    machine.kernel.add_ksyms()
    place = machine.kernel.symbols["allproc"][0]
    remove_page_table(machine)
    entries = [Entry(name, at, size, ".bss", type=kind) for name, (at, size, kind) in machine.kernel.symbols.items()]
    bss = Part(".bss", 8, 6, 0, b"", size=(1 << 64) - 1)
    (tmp_path / "netbsd.3").write_bytes(write_kernel_file([bss], entries))
    with opened(machine, tmp_path) as kernel:
        with pytest.raises(NotInImageError, match=f"the PTE of virtual address {place:#x}"):
            kernel.read(place, 8)
        with pytest.raises(NotInImageError, match="PTE of virtual"):
            list(system_of(kernel).for_each_process(kernel))


def test_a_list_that_loops_costs_what_follows(tmp_path: Path) -> None:
    machine = build()
    machine.kernel.set(machine.procs[0], struct.pack("<Q", machine.procs[77]))
    with opened(machine, tmp_path) as kernel:
        pids: list[int] = []
        with pytest.raises(CorruptError, match="loops back"):
            pids.extend(process.pid for process in system_of(kernel).for_each_process(kernel))
        assert pids == [0, 1, 77, 30001], "those of the other list as well"
