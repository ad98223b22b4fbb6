"""One conversation with a debugger: a packet in, a reply out. No socket is seen here.

Facts: appendix "Gdb Remote Serial Protocol" of the gdb manual; docs/resources/lldbgdbremote of lldb for its own
packets (in `lldb.py`). gdb and lldb are told apart by their handshakes: only gdb's qSupported has `qRelocInsn+`,
only lldb sends QStartNoAckMode before it.

A dump does not run, and a machine that does has no breakpoints (see `run.py`). Resuming is refused with one clear
message, and breakpoints are accepted silently (gdb inserts them when it resumes, and its own message about a refused
breakpoint would hide ours). Memory writes go into the target's private copy, or into a kernel that runs, if they may;
registers cannot be written. Debuggers hide why a write was refused behind words of their own, so that is said beside
the protocol as well.
"""

from __future__ import annotations

from binascii import hexlify
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from kvm_dbg.errors import KvmDbgError, ProtocolError, ReadError
from kvm_dbg.rsp.packet import PACKET_SIZE, escape, unescape
from kvm_dbg.rsp.run import GONE, SIGINT, Runner, explain
from kvm_dbg.rsp.target_xml import quoted

if TYPE_CHECKING:
    from kvm_dbg.kernel.base import Thread
    from kvm_dbg.rsp.target import Target

Reply = bytes | Iterator[bytes] | None
RunLine = Callable[[str], Iterator[str]]

NO_USER_MEMORY = "the debugger does not say which thread it wants the memory of; `kvm read --pid PID` reads a process's"
NO_REGISTER_WRITES = "registers of a dump cannot be changed"
SIGTRAP = 5
MAX_READ = PACKET_SIZE  # bytes that one packet may ask for; debuggers ask again for the rest
PROCESS_OBJECTS = (b"auxv", b"exec-file", b"libraries-svr4")  # gdb 13 asks here for what another connection offered
OUTPUT_PIECE = PACKET_SIZE // 4  # characters of command output that one O packet carries


class DebuggerSession:
    """The stub's side of one connection.

    Args:
        target: threads, registers and memory.
        run_line: runs one kvm command (`monitor ...`) and yields its output.
        text_address: run-time address of the kernel's first byte of text, and `slide`: what was added to its
            link-time address; for qOffsets. None: symbols are placed by somebody else.
        notify: shows the user a line, beside the protocol; None where nothing can.

    Attributes:
        no_ack: neither side acknowledges packets any more.
        ended: the debugger has said goodbye.
        client: "gdb", "lldb" or "" while unknown.
        runner: what lets the machine run, and halts it.
    """

    def __init__(
        self,
        target: Target,
        run_line: RunLine,
        *,
        text_address: int | None = None,
        slide: int = 0,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self.target = target
        self.runner = Runner(target)
        self.run_line = run_line
        self.notify = notify
        self.text_address = text_address
        self.slide = slide
        self.no_ack = False
        self.ended = False
        self.client = ""
        self.error_messages = False  # the client understands E.text as a reply to everything
        self.thread_suffix = False
        self._thread = next(iter(target.threads))
        self._halted: int | None = None  # the thread that is said to have been interrupted when the machine was halted
        self._any_thread = False  # the debugger has asked for none in particular
        self._stop_seen = False  # it has read registers: of the thread that the reply to `?` names
        self._objects: dict[bytes, bytes] = {}  # of qXfer, as they were when their first piece was read

    @property
    def thread(self) -> int:
        """Return the id of the selected thread."""
        return self._thread

    def reply(self, packet: bytes) -> Reply:
        """Return the reply to a packet: one payload, several in order, or None where the protocol wants silence."""
        try:
            handler = _BY_LETTER.get(packet[:1])
            if handler is not None:
                return handler(self, packet)
            name = packet[: _name_length(packet)]
            handler = _BY_NAME.get(name)
            if handler is not None:
                return handler(self, packet)
            if self.client == "lldb" or name in (b"QThreadSuffixSupported", b"qHostInfo"):
                return self.reply_to_lldb(name, packet)
            return b""
        except ReadError as error:
            return self.error(str(error), b"E14")
        except (KvmDbgError, ValueError) as error:
            return self.error(str(error))

    def reply_to_lldb(self, name: bytes, packet: bytes) -> bytes:
        """Return the reply to a packet that only lldb sends; empty for those that are not served."""
        from kvm_dbg.rsp.lldb import reply_to_lldb

        return reply_to_lldb(self, name, packet)

    def error(self, text: str, code: bytes = b"E01") -> bytes:
        """Return an error reply: with its text for clients that said that they understand it."""
        return self.error_text(text) if self.error_messages else code

    @staticmethod
    def error_text(text: str) -> bytes:
        """Return the error reply with text, the protocol's own characters replaced."""
        clean = text.replace("}", ")").replace("$", "S").replace("#", "%").replace("*", "x").replace("\n", " ")
        return b"E." + clean.encode("ascii", "replace")

    # Handshake

    def _supported(self, packet: bytes) -> bytes:
        features = packet.partition(b":")[2].split(b";")
        if not self.client:
            self.client = "gdb" if b"qRelocInsn+" in features else "lldb" if self.no_ack else "gdb"
        self.error_messages = b"error-message+" in features
        # lldb before 20 does not know binary-upload and would take its "b" for memory.
        binary = b";binary-upload+" if self.client == "gdb" else b""
        usual = b"PacketSize=%x;QStartNoAckMode+;qXfer:features:read+;qXfer:threads:read+" % PACKET_SIZE
        return usual + binary + self.features()

    def features(self) -> bytes:
        """Return what this kind of target offers beside what every one does: `;name+`..."""
        return b""

    def _start_no_ack_mode(self, _packet: bytes) -> bytes:
        self.no_ack = True
        return b"OK"

    def _attached(self, _packet: bytes) -> bytes:
        return b"1"

    def _offsets(self, _packet: bytes) -> bytes:
        if self.text_address is None:
            return b""
        if self.client == "lldb":
            return b"Text=%x;Data=%x;Bss=%x" % (self.slide, self.slide, self.slide)
        return b"TextSeg=%x" % self.text_address

    def _halt_reason(self, _packet: bytes) -> bytes:
        return self.stop_reply(self._thread)

    def signal_of(self, tid: int) -> int:
        """Return the signal that has stopped a thread: SIGINT when the machine was halted, else SIGTRAP.

        It is one thread that has got it, for lldb shows every thread that has one whenever it shows a stop.
        """
        if self._halted is not None:
            return SIGINT if tid == self._halted else 0
        return SIGTRAP if tid == next(iter(self.target.threads)) else 0

    def stop_reply(self, tid: int) -> bytes:
        """Return why a thread is stopped."""
        signal = self.signal_of(tid) or SIGTRAP
        cpu = self.target.threads[tid].cpu
        core = b"" if cpu is None else b"core:%x;" % cpu
        if self.client == "lldb":
            from kvm_dbg.rsp.lldb import stop_reply

            return stop_reply(self, tid, core)
        return b"T%02xthread:%x;%b" % (signal, tid, core)

    # Objects

    def _transfer(self, packet: bytes) -> bytes:
        try:
            _, kind, operation, annex, span = packet.split(b":", 4)
            offset, length = (int(part, 16) for part in span.split(b","))
        except ValueError:
            return b"E00"
        if operation != b"read":
            return b""
        if kind == b"features" and annex != b"target.xml":
            return b"E00"
        if offset == 0 or kind not in self._objects:
            found = self.read_object(kind)
            if found is None:
                return b"E00" if kind in PROCESS_OBJECTS else b""
            self._objects[kind] = found
        data = self._objects[kind]
        if offset > len(data):
            return b"E01"
        length = min(length, PACKET_SIZE // 2)
        mark = b"l" if offset + length >= len(data) else b"m"
        return mark + escape(data[offset : offset + length])

    def read_object(self, kind: bytes) -> bytes | None:
        """Return the bytes of a qXfer object, None for unknown ones."""
        if kind == b"features":
            return self.target.description.xml()
        return self.threads_xml() if kind == b"threads" else None

    def threads_xml(self) -> bytes:
        """Return the list of threads with names; of a kernel that runs, as it is now."""
        if self.target.live:
            self.refresh()
        lines = ['<?xml version="1.0"?>', "<threads>"]
        describe = self.target.describe
        for tid, thread in self.target.threads.items():
            core = "" if thread.cpu is None else f' core="{thread.cpu}"'
            name = quoted(printable(thread_name(thread)))
            lines.append(f'<thread id="{tid:x}"{core} name={name}>{describe(thread)}</thread>')
        lines.append("</threads>\n")
        return "\n".join(lines).encode()

    # Threads and registers

    def thread_of(self, text: bytes) -> int:
        """Return the id that a packet names in hexadecimal; 0 and -1 (any, all) stand for the selected thread.

        Raises:
            ProtocolError: no such thread.
        """
        tid = int(text or b"0", 16)
        if tid in (0, -1):
            return self._thread
        if tid not in self.target.threads:
            raise ProtocolError(f"there is no thread {tid}")
        return tid

    def _set_thread(self, packet: bytes) -> bytes:
        tid = self.thread_of(packet[2:])
        if packet[1:2] == b"g":
            self._thread = tid
            # While it connects, gdb means the thread of the stop reply by "any", and goes on with it without a word.
            self._any_thread = self._stop_seen and int(packet[2:] or b"0", 16) in (0, -1)
        return b"OK"

    def _current_thread(self, _packet: bytes) -> bytes:
        return b"QC%x" % self._thread

    def _is_alive(self, packet: bytes) -> bytes:
        self.thread_of(packet[1:])
        return b"OK"

    def refresh(self) -> None:
        """Forget all that was read, and keep the selected thread in any case. Raises CommandError."""
        self.target.refresh([self._thread])

    def forget(self) -> None:
        """Forget what was read, where somebody else has looked at the machine again; as `refresh` otherwise."""
        self.target.forget([self._thread])

    def _first_threads(self, _packet: bytes) -> bytes:
        if self.target.live:
            self.refresh()
        return b"m" + b",".join([b"%x" % tid for tid in self.target.threads])

    def _more_threads(self, _packet: bytes) -> bytes:
        return b"l"

    def _thread_information(self, packet: bytes) -> bytes:
        tid = self.thread_of(packet.partition(b",")[2])
        return hexlify(self.target.describe(self.target.threads[tid]).encode())

    def _suffixed(self, packet: bytes) -> tuple[bytes, int]:
        """Return (packet without suffix, thread): lldb appends `;thread:ID;` to packets about registers."""
        body, _, suffix = packet.partition(b";thread:")
        return body, self.thread_of(suffix.rstrip(b";")) if suffix else self._thread

    def _read_registers(self, packet: bytes) -> bytes:
        if self.client == "lldb":
            return b""  # it takes the x of unknown registers for numbers, and asks for one after the other instead
        _, tid = self._suffixed(packet)
        self._stop_seen = True
        return self.target.description.encode_all(self.target.registers_of(tid))

    def _read_register(self, packet: bytes) -> bytes:
        body, tid = self._suffixed(packet)
        number = int(body[1:], 16)
        registers = self.target.description.registers
        if not 0 <= number < len(registers):
            return b"E01"
        values = self.target.registers_of(tid)
        if self.client == "lldb" and registers[number].name not in values:
            return b"E01"
        return self.target.description.encode(registers[number], values)

    def _write_register(self, _packet: bytes) -> bytes:
        return self.error(NO_REGISTER_WRITES)

    # Memory

    def _memory_span(self, text: bytes) -> tuple[int, int]:
        """Return (address, length) of `addr,length`.

        lldb's packets carry no thread, and it selects none before them; Inferior.read_memory of gdb 18 selects "any". A
        user address would be answered with the bytes of whichever task was looked at last.

        Raises:
            ProtocolError: it is something else.
            ReadError: it is a user address, and nobody knows whose.
        """
        vaddr, size = _span(text)
        nobody = not self.target.one_space and (self.client == "lldb" or self._any_thread)
        if nobody and size and self.target.kernel.arch.is_user(vaddr):
            raise ReadError(vaddr, NO_USER_MEMORY)
        return vaddr, size

    def _read_memory(self, packet: bytes) -> bytes:
        vaddr, size = self._memory_span(packet[1:])
        if not size:
            return b"E01"
        return hexlify(self.target.read(self._thread, vaddr, min(size, MAX_READ // 2)))

    def _read_memory_binary(self, packet: bytes) -> bytes:
        vaddr, size = self._memory_span(packet[1:])
        if self.client == "lldb":
            return escape(self.target.read(self._thread, vaddr, min(size, MAX_READ))) if size else b"OK"
        return b"b" + (escape(self.target.read(self._thread, vaddr, min(size, MAX_READ))) if size else b"")

    def _write_memory(self, packet: bytes) -> bytes:
        head, _, digits = packet[1:].partition(b":")
        return self._write(head, bytes.fromhex(digits.decode("ascii", "replace")))

    def _write_memory_binary(self, packet: bytes) -> bytes:
        head, _, data = packet[1:].partition(b":")
        return self._write(head, unescape(data))

    def _write(self, head: bytes, data: bytes) -> bytes:
        vaddr, size = self._memory_span(head)
        if size != len(data):
            raise ProtocolError(f"a memory write announces {size} bytes and carries {len(data)}")
        if data:
            try:
                self.target.write(self._thread, vaddr, data)
            except KvmDbgError as error:
                if self.notify is not None:
                    self.notify(str(error))
                raise
        return b"OK"

    # What a dump cannot do, and the end

    def _resume(self, packet: bytes) -> bytes | None:
        if packet == b"vCont?":
            return b"vCont;c;C;s;S"
        refusal = self.runner.refusal(packet)
        if not refusal:
            try:
                self.runner.resume()
                return None
            except KvmDbgError as error:
                refusal = str(error)
        if self.client == "lldb":
            from kvm_dbg.rsp.lldb import refuse_to_run

            return refuse_to_run(self, packet, refusal)
        return self.error_text(refusal)

    def interrupt(self) -> Reply:
        """Halt the machine if the debugger waits for it, and return the stop reply."""
        return self._stop(self.runner.halt) if self.runner.waiting else None

    def look(self) -> Reply:
        """Return the stop reply if the machine that the debugger waits for has stopped, None if it has not."""
        try:
            return self._stop(lambda: None) if self.runner.has_stopped() else None
        except KvmDbgError as error:
            return self._gone(error)

    def _stop(self, halt: Callable[[], None]) -> Reply:
        try:
            halt()
            self.refresh()
        except KvmDbgError as error:
            return self._gone(error)
        self._thread = self._halted = self.runner.stopped_thread()
        return self.stop_reply(self._thread)

    def _gone(self, error: KvmDbgError) -> Iterator[bytes]:
        self.runner.waiting = False
        self.ended = True
        yield from _console(explain(error))
        yield GONE

    def _breakpoint(self, packet: bytes) -> bytes:
        if self.client == "lldb":
            return self.error_text(self.runner.refusal(b"s"))
        (self.runner.breakpoints.add if packet[:1] == b"Z" else self.runner.breakpoints.discard)(packet[1:])
        return b"OK"

    def _detach(self, _packet: bytes) -> bytes:
        self.ended = True
        return b"OK"

    def _kill(self, _packet: bytes) -> None:
        self.ended = True

    # Commands

    def _command(self, packet: bytes) -> Reply:
        line = bytes.fromhex(packet[len(b"qRcmd,") :].decode("ascii", "replace")).decode("utf-8", "replace").strip()
        if line == "kvm" or line.startswith("kvm "):
            line = line[3:].strip()
        return self._run(line)

    def _run(self, line: str) -> Iterator[bytes]:
        failure = ""
        try:
            for text in self.run_line(line):
                yield from _console(text)
        except KvmDbgError as error:
            failure = str(error)
        except KeyboardInterrupt:
            failure = "interrupted"
        if not failure:
            yield b"OK"
            return
        if not self.error_messages:
            yield from _console(f"{failure}\n")
        yield self.error(failure)


def _console(text: str) -> Iterator[bytes]:
    for start in range(0, len(text), OUTPUT_PIECE):
        yield b"O" + hexlify(text[start : start + OUTPUT_PIECE].encode("utf-8", "backslashreplace"))


def thread_name(thread: Thread) -> str:
    """Return what a debugger calls a thread: the task's name and its thread id, "init/1"."""
    return f"{thread.name}/{thread.label}" if thread.plain else thread.name


def printable(name: str) -> str:
    """Return the name without what XML 1.0 cannot hold and a terminal would obey."""
    return "".join([character if character.isprintable() else "?" for character in name])


def _span(text: bytes) -> tuple[int, int]:
    """Return (address, length) of `addr,length`.

    Raises:
        ProtocolError: it is something else.
    """
    address, comma, length = text.partition(b",")
    try:
        if comma:
            return int(address, 16), int(length, 16)
    except ValueError:
        pass
    raise ProtocolError(f"{text[:40]!r} is not `address,length`")


def _name_length(packet: bytes) -> int:
    for position, byte in enumerate(packet):
        if byte in b":,;" or (byte == 0x3F and position):  # a question mark belongs to the name
            return position + (byte == 0x3F)
    return len(packet)


_Handler = Callable[[DebuggerSession, bytes], Reply]

_BY_LETTER: dict[bytes, _Handler] = {
    b"g": DebuggerSession._read_registers,
    b"G": DebuggerSession._write_register,
    b"p": DebuggerSession._read_register,
    b"P": DebuggerSession._write_register,
    b"m": DebuggerSession._read_memory,
    b"M": DebuggerSession._write_memory,
    b"x": DebuggerSession._read_memory_binary,
    b"X": DebuggerSession._write_memory_binary,
    b"H": DebuggerSession._set_thread,
    b"T": DebuggerSession._is_alive,
    b"?": DebuggerSession._halt_reason,
    b"c": DebuggerSession._resume,
    b"C": DebuggerSession._resume,
    b"s": DebuggerSession._resume,
    b"S": DebuggerSession._resume,
    b"Z": DebuggerSession._breakpoint,
    b"z": DebuggerSession._breakpoint,
    b"D": DebuggerSession._detach,
    b"k": DebuggerSession._kill,
}

_BY_NAME: dict[bytes, _Handler] = {
    b"qSupported": DebuggerSession._supported,
    b"QStartNoAckMode": DebuggerSession._start_no_ack_mode,
    b"qXfer": DebuggerSession._transfer,
    b"qAttached": DebuggerSession._attached,
    b"qC": DebuggerSession._current_thread,
    b"qOffsets": DebuggerSession._offsets,
    b"qfThreadInfo": DebuggerSession._first_threads,
    b"qsThreadInfo": DebuggerSession._more_threads,
    b"qThreadExtraInfo": DebuggerSession._thread_information,
    b"qRcmd": DebuggerSession._command,
    b"vCont?": DebuggerSession._resume,
    b"vCont": DebuggerSession._resume,
    b"vKill": DebuggerSession._detach,
}
