"""A process as a debugger sees it: its threads with the registers of user code, its memory, its files.

The debugger is given a connection of its own for it, where everything it asks for is this process's: no thread has to
be named before memory is read, and there is nothing of the kernel or of another process that could be shown by
mistake. A core file would do the same, and would have to be written first: a process may map many GiB.

gdb is told by `qXfer:libraries-svr4` which files lie where, by their names on this machine. The addresses are those of
the kernel's mappings, which every dump has; what the dynamic linker keeps (`_r_debug`) is user memory that may have
been left out, and its names would make gdb load whatever has the same name here. lldb's adapter places the files.

Facts: appendix "Gdb Remote Serial Protocol" of the gdb manual ("Library List Format for SVR4 Targets", "qXfer auxiliary
vector read"); docs/resources/lldbgdbremote of lldb (qMemoryRegionInfo, qProcessInfo).
"""

from __future__ import annotations

from binascii import hexlify
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from kvm_dbg.errors import ReadError
from kvm_dbg.image.base import MachineControl
from kvm_dbg.kernel.base import AddressSpaceReader, OperatingSystem, Thread, UserThread
from kvm_dbg.kernel.write import write_memory
from kvm_dbg.rsp.session import DebuggerSession
from kvm_dbg.rsp.target import Target
from kvm_dbg.rsp.target_xml import NARROW, WIDE_NAMES, quoted

if TYPE_CHECKING:
    from kvm_dbg.commands.user_process import UserProcess

ADDRESSES = 1 << 64


class UserTarget(Target):
    """The debugger's view of one process."""

    one_space = True

    def __init__(self, user: UserProcess, system: OperatingSystem) -> None:
        super().__init__(user.kernel, system)
        self.user = user
        self._narrow = NARROW[self.kernel.arch.name] if user.word_size == 4 else None
        self.description = self._narrow or self.description

    @cached_property
    def threads(self) -> dict[int, Thread]:
        """Return the process's threads by their ids, the first one first, those without registers last."""
        pid = self.user.process.pid
        known = sorted(self.user.threads, key=lambda thread: not thread.registers)
        return {
            one.lid: Thread(one.lid, pid, one.name, 0, None, False, self._registers(one), one.problem)
            for one in known
            if one.lid > 0
        }

    def _registers(self, thread: UserThread) -> Mapping[str, int]:
        """Return a thread's registers by the names that its kind of process has for them."""
        if self._narrow is None:
            return thread.registers
        known = thread.registers
        names = [(register.name, WIDE_NAMES.get(register.name, register.name)) for register in self._narrow.registers]
        return {name: known[wide] for name, wide in names if wide in known}

    @property
    def control(self) -> MachineControl | None:
        """Return nothing: a machine is halted, not one of its processes."""
        return None

    def describe(self, thread: Thread) -> str:
        """Return why a thread has no registers."""
        return thread.why

    def space(self, _tid: int, vaddr: int) -> AddressSpaceReader:
        """Return the process's address space. Raises ReadError for the kernel's addresses."""
        if not self.kernel.arch.is_user(vaddr):
            raise ReadError(vaddr, f"{vaddr:#x} is an address of the kernel's, and no memory of this process")
        return self.user.memory.space

    def read(self, _tid: int, vaddr: int, size: int) -> bytes:
        """Return the bytes at `vaddr` that can be read. Raises ReadError if not even the first can."""
        return self.user.memory.read(vaddr, size)

    def write(self, tid: int, vaddr: int, data: bytes) -> None:
        """Write as `Target.write` does; raises the same."""
        write_memory(self.kernel, self.space(tid, vaddr), vaddr, data)

    def libraries_xml(self) -> bytes:
        """Return the files that were found, but for the executable."""
        executable = self.user.executable
        lines = ['<library-list-svr4 version="1.0">']
        for file in self.user.files:
            if file.path is not None and file.dynamic is not None and file is not executable:
                dynamic, bias = f'"{file.dynamic:#x}"', f'"{file.bias % ADDRESSES:#x}"'
                lines.append(
                    f'<library name={quoted(file.path)} lmid="0x0" lm={dynamic} l_addr={bias} l_ld={dynamic}/>'
                )
        return "\n".join([*lines, "</library-list-svr4>\n"]).encode("utf-8", "surrogateescape")

    def region(self, vaddr: int) -> bytes:
        """Return what lldb asks for of an address: its mapping, or the hole around it."""
        start, end = 0, ADDRESSES
        for mapping in self.user.mappings:
            if mapping.start <= vaddr < mapping.end:
                letters = "".join(letter for letter in mapping.permissions if letter in "rwx")
                name = hexlify((mapping.path or "").encode("utf-8", "surrogateescape"))
                size = mapping.end - mapping.start
                return b"start:%x;size:%x;permissions:%b;name:%b;" % (mapping.start, size, letters.encode(), name)
            if mapping.end <= vaddr:
                start = mapping.end
            else:
                end = mapping.start
                break
        return b"start:%x;size:%x;" % (start, end - start)


class UserSession(DebuggerSession):
    """The stub's side of one connection about a process."""

    target: UserTarget

    def features(self) -> bytes:
        """Return what is offered beside what every target has: to gdb, what it places the files by."""
        if self.client != "gdb":
            return b""
        auxv = b";qXfer:auxv:read+" if self.target.user.auxv else b""
        program = b";qXfer:exec-file:read+" if self._program() is not None else b""
        return b";qXfer:libraries-svr4:read+" + auxv + program

    def _program(self) -> str | None:
        executable = self.target.user.executable
        return executable.path if executable is not None else None

    def read_object(self, kind: bytes) -> bytes | None:
        """Return the bytes of a qXfer object, None for unknown ones."""
        if kind == b"auxv":
            return self.target.user.auxv
        if kind == b"libraries-svr4":
            return self.target.libraries_xml()
        if kind == b"exec-file" and (program := self._program()) is not None:
            return program.encode("utf-8", "surrogateescape")
        return super().read_object(kind)

    def reply_to_lldb(self, name: bytes, packet: bytes) -> bytes:
        """Return the reply to a packet that only lldb sends."""
        if name == b"qMemoryRegionInfo":
            return self.target.region(int(packet.partition(b":")[2], 16))
        reply = super().reply_to_lldb(name, packet)
        return reply.replace(b"pid:1;", b"pid:%x;" % self.target.user.process.pid) if name == b"qProcessInfo" else reply
