"""What the stub answers, packet by packet, to a kernel whose every byte is known."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

import pytest

from kvm_dbg.arch import find_arch
from kvm_dbg.arch.base import Arch
from kvm_dbg.arch.i386 import I386
from kvm_dbg.errors import CommandError
from kvm_dbg.rsp.packet import PACKET_SIZE, escape, unescape
from kvm_dbg.rsp.session import DebuggerSession
from kvm_dbg.rsp.target import DUPLICATE_BASE, IDLE_BASE, Target
from tests.writers.stand_in import (
    INIT_BYTES,
    KERNEL_BYTES,
    KERNEL_PAGES,
    PAGE,
    SHELL_BYTES,
    SLIDE,
    TASKS,
    TEXT,
    THREADS,
    USER,
    StandInKernel,
    StandInSystem,
)

GDB_13 = b"qSupported:multiprocess+;swbreak+;hwbreak+;qRelocInsn+;fork-events+;vfork-events+;exec-events+"
GDB_18 = GDB_13 + b";vContSupported+;QThreadOptions+;no-resumed+;memory-tagging+;error-message+"
LLDB_14 = b"qSupported:xmlRegisters=i386,arm,mips,arc;multiprocess+;fork-events+;vfork-events+"


def run_line(line: str) -> Iterator[str]:
    if line == "fail":
        yield "a bit\n"
        raise CommandError("no such thing")
    if line == "interrupted":
        yield "a bit\n"
        raise KeyboardInterrupt
    yield f"ran {line}\n"
    yield "x" * PACKET_SIZE


class Stub(DebuggerSession):
    """A session whose replies are always bytes, or a list of them."""

    def ask(self, packet: bytes) -> bytes:
        reply = self.reply(packet)
        assert isinstance(reply, bytes)
        return reply

    def ask_all(self, packet: bytes) -> list[bytes]:
        reply = self.reply(packet)
        assert reply is not None
        assert not isinstance(reply, bytes)
        return list(reply)


def make(handshake: bytes = GDB_13, *, system: StandInSystem | None = None) -> Stub:
    kernel = StandInKernel()
    target = Target(kernel, system or StandInSystem())  # type: ignore[arg-type]
    stub = Stub(target, run_line, text_address=TEXT, slide=SLIDE)
    if handshake == LLDB_14:
        stub.ask(b"QStartNoAckMode")
    stub.ask(handshake)
    return stub


# Handshake


def test_supported_is_answered_the_same_each_time() -> None:
    stub = make()
    first = stub.ask(GDB_13)
    assert b"PacketSize=100000;" in first
    assert b"binary-upload+" in first.split(b";")
    assert [stub.ask(GDB_13) for _ in range(3)] == [first] * 3
    assert stub.client == "gdb"


def test_lldb_is_told_by_its_handshake() -> None:
    stub = make(LLDB_14)
    assert stub.client == "lldb"
    assert b"binary-upload+" not in stub.ask(LLDB_14)


def test_offsets_are_an_address_for_gdb_and_a_slide_for_lldb() -> None:
    assert make().ask(b"qOffsets") == b"TextSeg=%x" % TEXT
    assert make(LLDB_14).ask(b"qOffsets") == b"Text=1000000;Data=1000000;Bss=1000000"


def test_offsets_can_be_left_to_the_adapter() -> None:
    stub = make()
    stub.text_address = None
    assert stub.ask(b"qOffsets") == b""


@pytest.mark.parametrize(
    "packet", [b"vMustReplyEmpty", b"!", b"qTStatus", b"vFile:open:00,0,0", b"qSymbol::", b"", b"\xff"]
)
def test_what_is_not_served_is_answered_by_nothing(packet: bytes) -> None:
    assert make().ask(packet) == b""


def test_it_is_attached_to() -> None:
    assert make().ask(b"qAttached") == b"1"


# Threads


def test_the_first_thread_is_the_stopped_one() -> None:
    stub = make()
    assert stub.ask(b"?") == b"T05thread:29;core:1;"
    assert stub.ask(b"qC") == b"QC29"


def transfer(stub: Stub, name: bytes, size: int = 100) -> bytes:
    data = b""
    while True:
        reply = stub.ask(b"qXfer:%b:%x,%x" % (name, len(data), size))
        data += unescape(reply[1:])
        if reply[:1] == b"l":
            return data
        assert reply[:1] == b"m"


def test_thread_list_names_every_thread_with_an_id_of_its_own() -> None:
    threads = ElementTree.fromstring(transfer(make(), b"threads:read:"))
    assert [(int(thread.attrib["id"], 16), thread.attrib["name"]) for thread in threads] == [
        (41, 'sh"<ell>/41'),
        (1, "init/1"),
        (2, "kthreadd/2"),
        (IDLE_BASE, "swapper/0/0"),
        (IDLE_BASE + 1, "swapper/1/0"),
    ]
    assert threads[0].attrib["core"] == "1"
    assert threads[0].text == f"pid 40 tid 41, on CPU 1, task {TASKS['shell']:#x}"


class Twins(StandInSystem):
    def for_each_thread(self, kernel: StandInKernel) -> Iterator[object]:  # type: ignore[override]
        yield from (THREADS[0], THREADS[0], THREADS[0])


def test_a_damaged_image_with_one_id_twice_still_has_unique_ids() -> None:
    assert list(make(system=Twins()).target.threads) == [41, DUPLICATE_BASE + 1, DUPLICATE_BASE + 2]


class Nobody(StandInSystem):
    def for_each_thread(self, kernel: StandInKernel) -> Iterator[object]:  # type: ignore[override]
        yield from ()


def test_an_image_without_tasks_has_one_thread_that_reads_kernel_memory() -> None:
    stub = make(system=Nobody())
    assert stub.ask(b"?") == b"T05thread:1;"
    assert stub.ask(b"m%x,4" % TEXT) == KERNEL_BYTES[:4].hex().encode()
    assert stub.ask(b"m%x,4" % USER) == b"E14"


def test_the_transfer_is_bounded_and_ends() -> None:
    stub = make()
    assert stub.ask(b"qXfer:threads:read::ffffff,10") == b"E01"
    assert stub.ask(b"qXfer:features:read:other.xml:0,10") == b"E00"
    assert stub.ask(b"qXfer:threads:read") == b"E00"
    assert stub.ask(b"qXfer:memory-map:read::0,10") == b""
    # gdb 13 asks here for what a process's connection offered, and takes "not supported" for a contradiction
    assert stub.ask(b"qXfer:auxv:read::0,10") == b"E00"
    assert stub.ask(b"qXfer:threads:write::0:00") in (b"", b"E00")


def test_no_thread_in_particular_has_no_user_memory() -> None:
    """Inferior.read_memory of gdb 18 selects none: the last one's bytes may be those of another process."""
    stub = make(GDB_18)
    assert stub.ask(b"?").startswith(b"T05thread:29;")
    assert stub.ask(b"Hg0") == b"OK"  # while it connects, it means the thread that has stopped
    assert stub.ask(b"g")
    assert stub.ask(b"m%x,4" % USER) == SHELL_BYTES[:4].hex().encode()
    for anybody in (b"Hg0", b"Hg-1"):
        assert stub.ask(anybody) == b"OK"
        assert stub.ask(b"x%x,4" % USER).startswith(b"E.the debugger does not say which thread")
        assert stub.ask(b"M%x,1:00" % USER).startswith(b"E.")
        assert stub.ask(b"m%x,4" % TEXT) == KERNEL_BYTES[:4].hex().encode()
        assert stub.ask(b"qC") == b"QC29"
    assert stub.ask(b"Hg1") == b"OK"
    assert stub.ask(b"m%x,4" % USER) == INIT_BYTES[:4].hex().encode()


def test_selecting_threads() -> None:
    stub = make()
    assert stub.ask(b"Hg1") == b"OK"
    assert stub.ask(b"qC") == b"QC1"
    assert stub.ask(b"Hc-1") == b"OK"
    assert stub.ask(b"Hg0") == b"OK"
    assert stub.ask(b"qC") == b"QC1"
    assert stub.ask(b"Hg7777") == b"E01"
    assert stub.ask(b"T29") == b"OK"
    assert stub.ask(b"T7777") == b"E01"
    assert stub.ask(b"Hgzz") == b"E01"


# Registers


def registers_of(stub: Stub) -> dict[str, str]:
    """Return the `g` reply by register name, cut up by the target description."""
    root = ElementTree.fromstring(transfer(stub, b"features:read:target.xml"))
    reply = stub.ask(b"g").decode()
    values = {}
    for register in root.iter("reg"):
        size = int(register.attrib["bitsize"]) // 4
        values[register.attrib["name"]], reply = reply[:size], reply[size:]
    assert reply == ""
    return values


def test_registers_are_little_endian_and_unknown_ones_said_to_be_so() -> None:
    values = registers_of(make())
    assert int.from_bytes(bytes.fromhex(values["rip"]), "little") == TEXT + 0x100
    assert values["eflags"] == "46020000"
    assert values["rbp"] == "x" * 16
    assert values["st0"] == "x" * 20
    assert values["gs_base"] == "x" * 16


def test_one_register_and_the_thread_suffix_of_lldb() -> None:
    stub = make(LLDB_14)
    assert stub.ask(b"p10") == (TEXT + 0x100).to_bytes(8, "little").hex().encode()
    assert stub.ask(b"p10;thread:0001;") == (TEXT + 0x200).to_bytes(8, "little").hex().encode()
    assert stub.ask(b"p6;thread:0001;") == b"3412000000000000"
    assert stub.ask(b"pffff") == b"E01"


def test_registers_cannot_be_written() -> None:
    assert make().ask(b"P10=0000000000000000") == b"E01"
    assert make(GDB_18).ask(b"G00") == b"E.registers of a dump cannot be changed"


# Memory


def test_kernel_memory_is_the_same_for_every_thread() -> None:
    stub = make()
    for tid in stub.target.threads:
        assert stub.ask(b"Hg%x" % tid) == b"OK"
        assert stub.ask(b"m%x,20" % (TEXT + 0xFF0)) == KERNEL_BYTES[0xFF0:0x1010].hex().encode()


def test_user_memory_is_that_of_the_selected_thread() -> None:
    stub = make()
    assert bytes.fromhex(stub.ask(b"m%x,c" % USER).decode()) == SHELL_BYTES[:12]
    stub.ask(b"Hg1")
    assert bytes.fromhex(stub.ask(b"m%x,c" % USER).decode()) == INIT_BYTES[:12]
    stub.ask(b"Hg2")
    assert stub.ask(b"m%x,c" % USER) == b"E14"


def test_binary_reads() -> None:
    data = KERNEL_BYTES[:PAGE]
    assert make().ask(b"x%x,1000" % TEXT) == b"b" + escape(data)
    assert make().ask(b"x%x,0" % TEXT) == b"b"
    lldb = make(LLDB_14)
    assert lldb.ask(b"x0,0") == b"OK"
    assert lldb.ask(b"x%x,1000" % TEXT) == escape(data)


def test_a_read_into_a_hole_ends_before_it() -> None:
    stub = make()
    last = TEXT + KERNEL_PAGES * PAGE - 0x10
    assert stub.ask(b"m%x,100" % last) == KERNEL_BYTES[-0x10:].hex().encode()
    start = TEXT + (KERNEL_PAGES - 3) * PAGE + 5
    assert unescape(stub.ask(b"x%x,10000" % start)[1:]) == KERNEL_BYTES[-3 * PAGE + 5 :]
    assert stub.ask(b"m%x,10" % (TEXT + KERNEL_PAGES * PAGE)) == b"E14"


def test_an_unreadable_address_is_explained_to_who_understands() -> None:
    reply = make(GDB_18).ask(b"x%x,10" % (TEXT - 0x1000))
    assert reply.startswith(b"E.virtual address 0xffffffff81fff000 is not mapped")
    assert not set(reply) & set(b"#$}*")


@pytest.mark.parametrize(
    "packet", [b"m", b"mzz,4", b"m10", b"x,", b"m%x,0" % TEXT, b"M%x,4" % TEXT, b"M%x,4:00" % TEXT]
)
def test_malformed_memory_packets_are_errors(packet: bytes) -> None:
    assert make().ask(packet) == b"E01"


def test_a_read_is_never_longer_than_a_packet() -> None:
    assert len(make().ask(b"m%x,7fffffffffffffff" % TEXT)) == 2 * KERNEL_PAGES * PAGE


def test_writes_go_to_the_private_copy() -> None:
    stub = make()
    below = stub.target.kernel.image.image  # type: ignore[attr-defined]
    address = TEXT + 0xFFE  # across a page
    assert stub.ask(b"M%x,4:deadbeef" % address) == b"OK"
    assert stub.ask(b"m%x,4" % address) == b"deadbeef"
    assert stub.ask(b"X%x,2:}\x03z" % address) == b"OK"
    assert stub.ask(b"m%x,4" % address) == b"237abeef"
    assert below.read((1 << 20) + 0xFFE, 4) == KERNEL_BYTES[0xFFE:0x1002]
    assert stub.ask(b"M%x,1:00" % (TEXT - 1)) == b"E14"


# What a dump cannot do


@pytest.mark.parametrize("packet", [b"c", b"s", b"C05", b"vCont;c", b"vCont;s:1;c", b"S05"])
def test_it_does_not_run(packet: bytes) -> None:
    assert make().ask(packet).startswith(b"E.this kernel is not running")


@pytest.mark.parametrize(("packet", "thread"), [(b"c", 41), (b"vCont;c", 41), (b"vCont;s:1", 1), (b"vCont;s:2;c", 2)])
def test_lldb_is_told_by_a_stop_for_an_error_would_end_its_process(packet: bytes, thread: int) -> None:
    """The keys are those of lldb's documentation of stop replies (docs/resources/lldbgdbremote)."""
    reply = make(LLDB_14).ask(packet)
    keys = dict(pair.split(b":") for pair in reply[3:].rstrip(b";").split(b";"))
    assert reply.startswith(b"T05")
    assert (int(keys[b"thread"], 16), keys[b"reason"]) == (thread, b"exception")
    assert bytes.fromhex(keys[b"description"].decode()).startswith(b"this kernel is not running")


def test_breakpoints() -> None:
    assert make().ask(b"Z0,%x,1" % TEXT) == b"OK"
    assert make(LLDB_14).ask(b"Z0,%x,1" % TEXT).startswith(b"E.")


@pytest.mark.parametrize(("packet", "reply"), [(b"D", b"OK"), (b"D;1", b"OK"), (b"vKill;1", b"OK"), (b"k", None)])
def test_the_end(packet: bytes, reply: bytes | None) -> None:
    stub = make()
    assert stub.reply(packet) == reply
    assert stub.ended


# Commands


def console(replies: list[bytes]) -> str:
    assert all(reply[:1] == b"O" for reply in replies)
    assert all(len(reply) <= PACKET_SIZE for reply in replies)
    return "".join(bytes.fromhex(reply[1:].decode()).decode() for reply in replies)


@pytest.mark.parametrize("line", ["procs --json", "kvm procs --json"])
def test_a_command_streams_its_output(line: str) -> None:
    *replies, last = make().ask_all(b"qRcmd," + line.encode().hex().encode())
    assert last == b"OK"
    assert len(replies) >= 2
    assert console(replies) == "ran procs --json\n" + "x" * PACKET_SIZE


def test_a_failed_command_says_why() -> None:
    *replies, last = make().ask_all(b"qRcmd," + b"fail".hex().encode())
    assert (console(replies), last) == ("a bit\nno such thing\n", b"E01")
    *replies, last = make(GDB_18).ask_all(b"qRcmd," + b"fail".hex().encode())
    assert (console(replies), last) == ("a bit\n", b"E.no such thing")


def test_an_interrupted_command_says_so() -> None:
    *replies, last = make(GDB_18).ask_all(b"qRcmd," + b"interrupted".hex().encode())
    assert (console(replies), last) == ("a bit\n", b"E.interrupted")


def test_a_command_that_is_no_text() -> None:
    assert make().ask(b"qRcmd,zz") == b"E01"


# lldb


def test_lldb_learns_the_machine() -> None:
    stub = make(LLDB_14)
    fields = dict(pair.split(b":") for pair in stub.ask(b"qHostInfo").strip(b";").split(b";"))
    assert bytes.fromhex(fields[b"triple"].decode()) == b"x86_64-unknown-linux-gnu"
    assert (fields[b"ptrsize"], fields[b"endian"]) == (b"8", b"little")
    assert stub.ask(b"QThreadSuffixSupported") == b"OK"
    assert stub.ask(b"qfThreadInfo").split(b",")[:2] == [b"m29", b"1"]
    assert stub.ask(b"qsThreadInfo") == b"l"
    assert bytes.fromhex(stub.ask(b"qThreadExtraInfo,1").decode()).startswith(b"pid 1, task ")


def test_lldb_finds_room_between_the_regions() -> None:
    stub = make(LLDB_14)
    assert stub.ask(b"qMemoryRegionInfo:1000") == b"start:0;size:7f0000000000;"
    assert b"permissions:rx;" in stub.ask(b"qMemoryRegionInfo:%x" % TEXT)


@pytest.mark.parametrize(
    ("arch", "first", "end"),
    [
        (find_arch("ppc64"), 0xC000000000000000, 1 << 64),
        (find_arch("riscv64"), 0xFF00000000000000, 1 << 64),
        (find_arch("i386"), 0xC0000000, 1 << 32),
        (I386.split_at(0x800000), 0x800000, 1 << 32),
    ],
)
def test_lldb_may_look_at_the_kernels_half_of_every_processor(arch: Arch, first: int, end: int) -> None:
    stub = make(LLDB_14)
    stub.target.kernel.arch = arch
    for address in (first, (first + end) // 2, end - 1):
        reply = stub.ask(b"qMemoryRegionInfo:%x" % address)
        assert reply == b"start:%x;size:%x;permissions:rx;" % (first, end - first)
    place, seen = 0, 0
    while place < first:  # no address is in two regions, or in none
        fields = dict(pair.split(b":") for pair in stub.ask(b"qMemoryRegionInfo:%x" % place).strip(b";").split(b";"))
        assert int(fields[b"start"], 16) == place
        assert b"x" not in fields.get(b"permissions", b"")
        place += int(fields[b"size"], 16)
        seen += 1
    assert place == first
    assert seen >= 1


def test_lldb_learns_each_threads_name_and_only_the_first_ones_reason() -> None:
    stub = make(LLDB_14)
    first, second = list(stub.target.threads)[:2]
    for tid, signal in ((first, b"T05"), (second, b"T00")):
        head, *fields = stub.ask(b"qThreadStopInfo%x" % tid).strip(b";").split(b";")
        values = dict(field.split(b":") for field in fields)
        assert head == signal + b"thread:%x" % tid
        assert (
            bytes.fromhex(values[b"hexname"].decode()).decode()
            == f"{stub.target.threads[tid].name}/{stub.target.threads[tid].lid}"
        )
        assert values[b"10"] == stub.ask(b"p10;thread:%x;" % tid)
    assert stub.ask(b"?") == stub.ask(b"qThreadStopInfo%x" % first)


def test_lldb_is_told_that_a_register_is_unknown() -> None:
    """It takes the letters x, which say so to gdb, for a number."""
    names = [register.name for register in make().target.description.registers]
    unknown = b"p%x" % names.index("st0")
    assert make().ask(unknown) == b"x" * 20
    stub = make(LLDB_14)
    assert stub.ask(unknown) == b"E01"
    assert stub.ask(b"g") == b""


@pytest.mark.parametrize("packet", [b"m%x,8", b"x%x,8", b"M%x,1:00", b"X%x,1:\x00"])
def test_user_memory_is_no_business_of_lldb(packet: bytes) -> None:
    """Its packets name no thread: the bytes would be those of whichever task was looked at last."""
    stub = make(LLDB_14)
    stub.ask(b"Hg29")
    assert stub.ask(packet % USER) == b"E14"
    assert stub.ask(packet % TEXT) != b"E14"
