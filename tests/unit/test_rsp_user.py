"""What a connection about one process answers: its threads, memory and files, and nothing of anybody else's."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from kvm_dbg.commands.mapped_file import find_mapped_files
from kvm_dbg.commands.user_process import UserMemory, UserProcess
from kvm_dbg.kernel.base import Process, UserThread
from kvm_dbg.rsp.user_target import UserSession, UserTarget
from tests.unit.test_rsp_session import GDB_13, LLDB_14, run_line
from tests.writers.program import CODE_AT, DATA_ADDRESS, DYNAMIC_AT, PAGE, Pages, map_program, write_program
from tests.writers.stand_in import TEXT, StandInKernel, StandInSystem

ID = bytes(range(20))
PROGRAM, LIBRARY = 0x5555_0000_0000, 0x7F55_0000_0000
STACK = 0x7FFF_0000_0000
AT_ENTRY = 9
OFFERED = (b"qXfer:auxv:read+", b"qXfer:exec-file:read+", b"qXfer:libraries-svr4:read+")


def make(folder: Path, handshake: bytes = GDB_13, *, narrow: bool = False, missing: bool = False) -> UserSession:
    """Return a session about a process: executable, library, two threads, a stack of two pages, one of them lost."""
    files = {"/bin/program": write_program(ID, b"\x90"), "/lib/library": write_program(ID[::-1], b"\xcc")}
    for name, data in files.items():
        (folder / name[1:]).parent.mkdir(exist_ok=True)
        if not missing or name != "/bin/program":
            (folder / name[1:]).write_bytes(data)
    program, pages = map_program(files["/bin/program"], PROGRAM, "/bin/program")
    library, more = map_program(files["/lib/library"], LIBRARY, "/lib/library")
    space = Pages({**pages, **more, STACK: b"s" * PAGE, STACK + PAGE: None})
    registers = {"rip": PROGRAM + CODE_AT, "rsp": STACK + 16, "rax": 0xFFFF_FFFF_FFFF_FFDA, "orig_rax": 34, "cs": 0x33}
    threads = (UserThread(41, "gone", {}, False, "its stack is gone"), UserThread(40, "main", registers, narrow))
    found = find_mapped_files([*program, *library], space, [str(folder)], [])
    kernel = StandInKernel()
    user = UserProcess(
        kernel,
        Process(40, 0, command="main"),
        threads,
        (*program, *library),
        tuple(found),
        struct.pack("<2I" if narrow else "<2Q", AT_ENTRY, (PROGRAM + CODE_AT) & (0xFFFFFFFF if narrow else -1)),
        4 if narrow else 8,
        UserMemory(kernel, space, found),
        (),
    )
    session = UserSession(UserTarget(user, StandInSystem()), run_line)  # type: ignore[arg-type]
    if handshake == LLDB_14:
        session.reply(b"QStartNoAckMode")
    supported = ask(session, handshake).split(b";")
    gdb = handshake == GDB_13
    assert [name in supported for name in OFFERED] == [gdb, gdb and not missing and not narrow, gdb]
    return session


def ask(session: UserSession, packet: bytes) -> bytes:
    reply = session.reply(packet)
    assert isinstance(reply, bytes)
    return reply


def read(session: UserSession, name: str) -> bytes:
    reply = ask(session, f"qXfer:{name}:read::0,1000".encode())
    assert reply.startswith(b"l")
    return reply[1:]


def test_threads_with_registers_come_first(tmp_path: Path) -> None:
    session = make(tmp_path)
    assert ask(session, b"?") == b"T05thread:28;"
    assert ask(session, b"qfThreadInfo") == b"m28,29"
    root = ElementTree.fromstring(read(session, "threads"))
    assert [(one.get("name"), one.text) for one in root] == [("main/40", None), ("gone/41", "its stack is gone")]
    assert ask(session, b"g").startswith(b"daffffffffffffff" + b"x" * 16)
    assert ask(session, b"Hg29") == b"OK"
    assert set(ask(session, b"g")) == {ord("x")}


def test_files_by_their_names_here_and_places_there(tmp_path: Path) -> None:
    session = make(tmp_path)
    assert read(session, "exec-file").decode() == f"{tmp_path}/bin/program"
    [library] = ElementTree.fromstring(read(session, "libraries-svr4"))
    dynamic = hex(LIBRARY + DATA_ADDRESS + DYNAMIC_AT % PAGE)
    place = {"l_addr": hex(LIBRARY), "l_ld": dynamic, "lm": dynamic, "lmid": "0x0"}  # gdb 13 insists on lmid
    assert library.attrib == {"name": f"{tmp_path}/lib/library", **place}
    assert read(session, "auxv") == struct.pack("<2Q", AT_ENTRY, PROGRAM + CODE_AT)


def test_no_name_of_an_executable_that_is_not_here(tmp_path: Path) -> None:
    session = make(tmp_path, missing=True)
    assert ask(session, b"qXfer:exec-file:read::0,1000") == b"E00"
    assert b"/lib/library" in read(session, "libraries-svr4")


@pytest.mark.parametrize("thread", [b"Hg0", b"Hg-1", b"Hg28", b"Hg29"])
def test_memory_is_the_processs_whoever_asks(tmp_path: Path, thread: bytes) -> None:
    session = make(tmp_path)
    assert ask(session, b"g")
    assert ask(session, thread) == b"OK"
    assert ask(session, b"m%x,4" % STACK) == b"s".hex().encode() * 4
    assert ask(session, b"m%x,4" % (STACK + PAGE - 2)) == b"s".hex().encode() * 2  # as far as it goes
    assert ask(session, b"m%x,4" % (STACK + PAGE)) == b"E14"
    for kernel in (TEXT, (1 << 64) - 8):
        assert ask(session, b"m%x,4" % kernel) == b"E14"
        assert ask(session, b"M%x,1:00" % kernel) == b"E14"


def test_lldb_has_the_processs_memory_and_regions(tmp_path: Path) -> None:
    session = make(tmp_path, LLDB_14)
    assert ask(session, b"QThreadSuffixSupported") == b"OK"
    assert ask(session, b"x%x,4" % STACK) == b"ssss"
    assert ask(session, b"x%x,4" % TEXT) == b"E14"
    assert ask(session, b"qProcessInfo").startswith(b"pid:28;")
    name = b"/bin/program".hex().encode()
    code = PROGRAM + CODE_AT
    found = ask(session, b"qMemoryRegionInfo:%x" % (code + 5))
    assert found == b"start:%x;size:1000;permissions:rx;name:%b;" % (code, name)
    hole = ask(session, b"qMemoryRegionInfo:%x" % (LIBRARY - 1))
    end = PROGRAM + DATA_ADDRESS + PAGE
    assert hole == b"start:%x;size:%x;" % (end, LIBRARY - end)
    last = LIBRARY + DATA_ADDRESS + PAGE
    assert ask(session, b"qMemoryRegionInfo:ffffffffffffffff") == b"start:%x;size:%x;" % (last, (1 << 64) - last)


def test_a_process_of_32_bits_has_the_registers_of_an_i386(tmp_path: Path) -> None:
    session = make(tmp_path, narrow=True)
    reply = ask(session, b"qXfer:features:read:target.xml:0,8000")
    root = ElementTree.fromstring(reply[1:])
    assert root.findtext("architecture") == "i386"
    registers = [one.get("name") for one in root.iter("reg")]
    assert registers[:10] == ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip", "eflags"]
    assert ask(session, b"p0") == b"daffffff"
    assert ask(session, b"p%x" % registers.index("cs")) == b"33000000"
    assert ask(session, b"p%x" % registers.index("orig_eax")) == b"22000000"
    assert ask(session, b"p%x" % registers.index("edi")) == b"xxxxxxxx"
    session.client = "lldb"
    assert b"ptrsize:4;" in ask(session, b"qHostInfo")
