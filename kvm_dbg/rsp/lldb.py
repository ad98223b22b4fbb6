"""lldb's own packets: what it asks for before it shows threads and memory.

Facts: docs/resources/lldbgdbremote of lldb. A region that covers all memory, or none that is free, makes lldb fail
with "Couldn't malloc: address space is full", so user addresses up to 0x7f0000000000 are one region without
permissions, then nothing up to the kernel's half, which is readable and executable. An i386 has no such room: there
is what may be a user's, and the kernel's.
"""

from __future__ import annotations

from binascii import hexlify

from kvm_dbg.arch.base import Arch
from kvm_dbg.arch.i386 import I386Arch
from kvm_dbg.rsp.session import DebuggerSession, printable, thread_name

USER_END = 0x7F00_0000_0000
STACKS_END = 0x8000_0000_0000
KERNEL_START = 0xFF00_0000_0000_0000
KERNEL_STARTS = {"ppc64": 0xC000_0000_0000_0000}  # by processor, of those that differ
ADDRESSES = 1 << 64


def reply_to_lldb(session: DebuggerSession, name: bytes, packet: bytes) -> bytes:
    """Return the reply to a packet that only lldb sends; empty for those that are not served."""
    if name in (b"QThreadSuffixSupported", b"QListThreadsInStopReply"):
        session.client = "lldb"
        return b"OK"
    if name == b"QEnableErrorStrings":
        session.error_messages = False  # lldb's form of errors with text is another: codes are enough
        return b"OK"
    if name in (b"qHostInfo", b"qProcessInfo"):
        description = session.target.description
        pairs = b"triple:%b;ptrsize:%d;endian:%b;" % (
            hexlify(session.target.triple.encode()),
            description.pointer_size,
            description.byteorder.encode(),
        )
        return b"pid:1;" + pairs if name == b"qProcessInfo" else pairs
    if name.startswith(b"qThreadStopInfo"):
        return session.stop_reply(session.thread_of(name[len(b"qThreadStopInfo") :]))
    if name == b"qMemoryRegionInfo":
        frames = session.target.system.name != "Linux"
        return _region(session.target.kernel.arch, int(packet.partition(b":")[2], 16), readable_stacks=frames)
    return b""


def refuse_to_run(session: DebuggerSession, packet: bytes, text: str) -> bytes:
    """Return the reply to an order to run: the thread has stopped at once, and the reason that lldb shows is `text`.

    An error would be the end: lldb takes it for a lost connection.
    """
    action = packet.partition(b";")[2].partition(b";")[0]  # vCont;s:1f;c
    tid = session.thread_of(action.partition(b":")[2]) if b":" in action else next(iter(session.target.threads))
    return stop_reply(session, tid, b"", text)


def stop_reply(session: DebuggerSession, tid: int, core: bytes, why: str = "") -> bytes:
    """Return why a thread is stopped, its name, and the registers that lldb wants of every thread.

    One thread has a reason, unless there is one to tell: lldb shows every thread that has one whenever it shows a stop.
    """
    target = session.target
    thread = target.threads[tid]
    signal = 5 if why else session.signal_of(tid)
    reason = b"reason:exception;description:%b;" % hexlify(why.encode()) if why else b""
    expedited = b"".join(
        [
            b"%02x:%b;" % (number, target.description.encode(register, thread.registers))
            for number, register in enumerate(target.description.registers)
            if register.generic in ("pc", "sp", "fp") and register.name in thread.registers
        ]
    )
    name = hexlify(printable(thread_name(thread)).encode("utf-8", "replace"))
    return b"T%02xthread:%x;%b%bhexname:%b;%b" % (signal, tid, reason, core, name, expedited)


def _region(arch: Arch, address: int, *, readable_stacks: bool) -> bytes:
    """Return the region of an address.

    readable_stacks: where lldb follows frame pointers, the last frame of a kernel's stack has the user's, and lldb
    shows no frame whose frame pointer leads to what cannot be read.
    """
    if isinstance(arch, I386Arch):
        edges = [(0, arch.user_end, b"permissions:r;" if readable_stacks else b"")]
        edges.append((arch.user_end, 1 << 32, b"permissions:rx;"))
        edges.append((1 << 32, ADDRESSES, b""))
    else:
        first = KERNEL_STARTS.get(arch.name, KERNEL_START)
        edges = [(0, USER_END, b"")]
        edges.append((USER_END, STACKS_END, b"permissions:r;" if readable_stacks else b""))
        edges.append((STACKS_END, first, b""))
        edges.append((first, ADDRESSES, b"permissions:rx;"))
    for start, end, permissions in edges:
        if start <= address < end:
            return b"start:%x;size:%x;%b" % (start, end - start, permissions)
    return b""
