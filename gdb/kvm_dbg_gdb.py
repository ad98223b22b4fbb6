"""kvm_dbg in gdb: open a kernel crash dump, and work on it with the gdb that you have.

    (gdb) source .../gdb/kvm_dbg_gdb.py
    (gdb) kvm open vmlinux vmcore
    (gdb) kvm procs

This file and its neighbours know gdb and nothing about kernels. It starts a server as a child process
(`kvm_dbg_client.py`), connects gdb to it, has the symbols loaded where the server says they are
(`kvm_dbg_gdb_symbols.py`), and registers the `kvm` commands. It runs in whatever Python gdb embeds (3.8 or newer, gdb
12 or newer) and needs nothing but the standard library; the server runs in the Python that has the package:
$KVM_DBG_PYTHON, else the one beside this file, else the one of the `kvm-dbg` program, else python3.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
from typing import Any, Callable

import gdb

HERE = os.path.dirname(os.path.realpath(os.path.abspath(os.path.expanduser(__file__))))
sys.path.insert(0, HERE)
try:
    from kvm_dbg_client import (
        NOT_OPEN,
        OPEN_OPTIONS,
        OWN_COMMANDS,
        SOCKET_OPTION,
        Server,
        ServerError,
        ServerGone,
        is_batch,
        start_server,
    )
    from kvm_dbg_command import (
        ATTACH_HELP,
        COMMANDS,
        PREFIX_HELP,
        THREAD_USAGE,
        help_of,
        list_commands,
        thread_request,
    )
    from kvm_dbg_gdb_attach import Attachment
    from kvm_dbg_gdb_setting import Setup, quiet, shows_color, split_words, warn
    from kvm_dbg_gdb_symbols import SymbolFiles
    from kvm_dbg_gdb_user import UserInferiors
    from kvm_dbg_stub import STUCK
finally:
    sys.path.remove(HERE)

BATCH = (b"-batch", b"--batch", b"-batch-silent", b"--batch-silent")
PROGRAM_ARGUMENTS = (b"--args", b"-args")  # what follows is not gdb's
PROBE = "linux_banner"  # whose place tells whether symbols are in theirs
LEFT = "gdb is not attached to the machine any more; connect again, and `kvm attach`"
REMOTE_TIMEOUT = 60  # seconds; gdb's own 2 are too few for a busy machine

OPEN_HELP = (
    """Open a kernel memory image and connect gdb to it.
Usage: kvm open [VMLINUX] IMAGE... [OPTION]...

The image becomes gdb's target: its CPUs and tasks are threads, memory reads
come from it, and the symbols of VMLINUX are placed where the kernel ran.
Without VMLINUX the usual places are searched for the right one.  What was
opened before is closed; if opening fails, it stays open.

  --no-symbols     do not load symbols into gdb
  --socket PATH    serve at this socket, for a debug adapter's own `target`"""
    + OPEN_OPTIONS
)


# The session


class Kvm:
    """What is open in this gdb."""

    def __init__(self) -> None:
        self.server: Server | None = None
        self.symbols = SymbolFiles()
        self.setup = Setup()
        self.users = UserInferiors(self.setup)
        self.inferior = 0
        self.attached: Attachment | None = None  # gdb's own connection, where that is used
        self.registered: dict[str, str] = {}  # name -> help
        self.last_error = ""
        self.failed = False
        self.exit_code = 0
        self.batch_exit = True
        self.from_tty = False  # a person has typed the command that runs

    def is_attended(self) -> bool:
        """Return whether a person is there who can be asked, and wants to be."""
        if not self.from_tty or is_batch(BATCH, PROGRAM_ARGUMENTS) or not gdb.parameter("confirm"):
            return False
        try:
            return os.isatty(0)
        except OSError:
            return False

    def open(self, words: list[str]) -> None:
        """Open an image; see OPEN_HELP. Raises gdb.GdbError."""
        with_symbols = "--no-symbols" not in words
        words = [os.path.expanduser(word) for word in words if word != "--no-symbols"]
        self.users.leave(self.inferior)
        inferior = gdb.selected_inferior()
        if inferior.pid and (self.server is None or self.attached or inferior.num != self.inferior):
            raise gdb.GdbError(
                f"inferior {inferior.num} already debugs something; end that first,"
                " or use `add-inferior` and `inferior N`"
            )
        server = start_server(words, warn, self.is_attended())
        try:
            self.close()
            self.server = server
            self.inferior = gdb.selected_inferior().num
            self._connect(server, at_once=SOCKET_OPTION not in words)
        except BaseException:
            self.close()
            raise
        self._begin(server, ", ".join(server.ready["images"]), with_symbols)

    def attach(self, words: list[str]) -> None:
        """Work on the machine that gdb is attached to; see ATTACH_HELP. Raises gdb.GdbError, ServerError."""
        with_symbols = "--no-symbols" not in words
        words = [os.path.expanduser(word) for word in words if word != "--no-symbols"]
        self.users.leave(self.inferior)
        if self.server is not None and self.attached is None and gdb.selected_inferior().num == self.inferior:
            raise gdb.GdbError("gdb is attached to an opened image: `kvm close` it first")
        attached = Attachment()
        server = start_server(["--attached", *words], warn, self.is_attended(), attached.stub)
        if attached.stub.stuck:
            warn(STUCK)
        try:
            self.close()
            self.server, self.attached = server, attached
            self.inferior = gdb.selected_inferior().num
            self.setup.change("debuginfod enabled", "off")
            if with_symbols and self._has_symbols(server):
                warn("gdb's symbols are where the kernel is, and stay")
                with_symbols = False
            self._begin(server, attached.name, with_symbols)
        except BaseException:
            self.close()
            raise

    def _has_symbols(self, server: Server) -> bool:
        """Return whether gdb's own symbols are in place."""
        try:
            found = server.ask({"symbol": PROBE})["address"]
        except ServerError:
            return False
        return self.attached is not None and self.attached.address(PROBE) == found

    def _begin(self, server: Server, what: str, with_symbols: bool) -> None:
        """Load symbols, register the server's commands, and say what is open."""
        if with_symbols:
            self.symbols.load(server)
        register_commands(self, server.ready["commands"])
        if server.ready.get("problem"):
            warn(server.ready["problem"])
        facts = [server.ready[name] for name in ("system", "release", "arch", "slide")]
        warn("{}: {} {}, {}, slide {}".format(what, *facts))

    def _connect(self, server: Server, at_once: bool) -> None:
        self.setup.change("debuginfod enabled", "off")
        self.setup.change("remotetimeout", str(REMOTE_TIMEOUT))
        self.setup.change("non-stop", "off")
        self.setup.change("print inferior-events", "off")  # a script ends with its own output, not with "detached"
        if server.ready["byteorder"] == "big":
            self.setup.change("endian", "big")  # a description of registers does not tell, and gdb thinks little
        server.ask({"offsets": False})
        if not at_once:
            return
        silence = Setup()
        silence.change("suppress-cli-notifications", "on")  # the frame would go to standard output
        try:
            quiet(f"target remote {server.ready['address']}")
        except ServerGone as gone:
            raise gdb.GdbError(str(gone)) from None
        except gdb.error as error:
            problem = server.ready.get("problem")
            why = f" ({problem})" if problem else ""
            raise gdb.GdbError(f"gdb could not connect to the server: {error}{why}") from None
        finally:
            silence.restore()

    def close(self) -> None:
        """Undo everything that `open` did; harmless if nothing is open."""
        server, self.server = self.server, None
        if server is None:
            return
        self.users.close()
        current = gdb.selected_inferior().num
        if current != self.inferior:
            with contextlib.suppress(gdb.error):
                quiet(f"inferior {self.inferior}")
        attached, self.attached = self.attached, None
        try:
            if attached is None and gdb.selected_inferior().num == self.inferior and gdb.selected_inferior().pid:
                quiet("disconnect")
        except gdb.error:
            pass  # the server is gone, and gdb has noticed
        self.symbols.unload()
        self.setup.restore()
        server.close()
        if gdb.selected_inferior().num != current:
            with contextlib.suppress(gdb.error):
                quiet(f"inferior {current}")

    def need_server(self) -> Server:
        """Return the server of the open image. Raises gdb.GdbError."""
        if self.server is None:
            raise gdb.GdbError(NOT_OPEN)
        if self.attached is not None:
            if self.attached.gone:
                self.close()
                raise gdb.GdbError(LEFT)
            self.attached.check_command()
        return self.server

    def run(self, line: str, from_tty: bool = False) -> None:
        """Run one of the server's commands, its output to gdb's standard output as it comes. Raises gdb.GdbError.

        from_tty: a person typed it; others get no colours.
        """
        server = self.need_server()
        if line.split()[:1] == ["mods"]:
            server.ask({"loaded": [objfile.filename for objfile in gdb.objfiles() if objfile.filename]})
        color = from_tty and shows_color(server.ready["pid"])
        request = {"run": line, "thread": self._selected(), "color": color, "attended": self.is_attended()}
        with contextlib.closing(server.stream(request)) as answers:
            for answer in answers:
                if "text" in answer:
                    gdb.write(answer["text"])
        gdb.flush()
        if line.split()[:1] == ["write"]:
            quiet("maintenance flush dcache")
        if line.split()[:1] in (["refresh"], ["halt"], ["resume"]):
            quiet("maintenance flush dcache")
            quiet("maintenance flush register-cache")

    def _selected(self) -> int | None:
        """Return the id of gdb's selected thread, if that is one of the image's."""
        inferior = gdb.selected_inferior()
        return gdb.selected_thread().ptid[1] if inferior.num == self.inferior and inferior.pid else None

    def select_thread(self, words: list[str]) -> None:
        """Select the thread of a process or thread id; gdb shows it. Raises gdb.GdbError, ServerError."""
        server = self.need_server()
        request = thread_request(words)
        if request is None:
            raise gdb.GdbError(THREAD_USAGE)
        tid = server.ask(request)["thread"]
        for inferior in gdb.inferiors():
            for thread in inferior.threads():
                if inferior.num == self.inferior and thread.ptid[1] == tid:
                    gdb.execute(f"thread {inferior.num}.{thread.num}")
                    return
        raise gdb.GdbError(f"gdb has no thread of {words[0]}")

    def guarded(self, action: Callable[[], None]) -> None:
        """Do something for a command: remember failures, and clear up after a server that has ended."""
        try:
            action()
        except ServerGone as gone:
            self.close()
            self._fail(f"{gone}; the image is closed, use `kvm open` again")
        except (ServerError, gdb.GdbError, gdb.error, OSError) as error:  # OSError: the current directory is gone, ...
            self._fail(str(error))
        except KeyboardInterrupt:
            self.failed = True
            raise

    def _fail(self, text: str) -> None:
        gdb.flush()
        self.failed = True
        self.last_error = text
        raise gdb.GdbError(text) from None


# Commands


class KvmPrefix(gdb.Command):
    """The command `kvm`, alone or with a subcommand that is not registered."""

    def __init__(self, kvm: Kvm) -> None:
        self.__doc__ = PREFIX_HELP
        super().__init__("kvm", gdb.COMMAND_DATA, gdb.COMPLETE_NONE, True)
        self._kvm = kvm

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Answer `kvm` alone, and subcommands that are not registered."""
        self.dont_repeat()
        self._kvm.guarded(lambda: self._run(argument.strip()))

    def _run(self, line: str) -> None:
        if self._kvm.server is not None:
            self._kvm.run(line or "help")
        elif line:
            raise gdb.GdbError(NOT_OPEN)
        else:
            gdb.write(list_commands())


class KvmCommand(gdb.Command):
    """One subcommand: an own one (`action`), or one of the server's."""

    def __init__(
        self,
        kvm: Kvm,
        name: str,
        text: str,
        action: Callable[[list[str]], None] | None = None,
        completer: int | None = None,
    ) -> None:
        self.__doc__ = text
        if completer is not None:
            super().__init__("kvm " + name, gdb.COMMAND_DATA, completer)
        else:
            self.complete = self._complete  # type: ignore[method-assign]
            super().__init__("kvm " + name, gdb.COMMAND_DATA)
        self._kvm = kvm
        self._name = name
        self._action = action

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Run it."""
        self.dont_repeat()
        self._kvm.guarded(lambda: self._run(argument, from_tty))

    def _run(self, argument: str, from_tty: bool) -> None:
        self._kvm.from_tty = from_tty
        if self._action is not None:
            self._action(split_words(argument))
        elif self._name == "mods" and "--load" in split_words(argument):
            self._kvm.symbols.load_modules(self._kvm.need_server(), split_words(argument))
        elif self._name == "user":
            self._kvm.users.run(self._kvm, argument)
        else:
            self._kvm.run((f"{self._name} {argument}").strip(), from_tty)

    def _complete(self, text: str, word: str | None) -> Any:
        """Return what the last word can become, as far as gdb's idea of a word lets it."""
        server = self._kvm.server
        if server is None or word is None:
            return gdb.COMPLETE_NONE if word is not None else []
        try:
            words = server.ask({"complete": f"{self._name} {text}"})["words"]
        except (ServerGone, ServerError, KeyError):
            return []
        last = text.split(" ")[-1]
        skip = len(last) - len(word)
        return [found[skip:] for found in words if found.startswith(last)] if skip >= 0 else []


def register(
    kvm: Kvm, name: str, text: str, action: Callable[[list[str]], None] | None = None, completer: int | None = None
) -> None:
    """Register a subcommand, or its new help, unless somebody else's `kvm` has one of that name."""
    if kvm.registered.get(name) == text:
        return
    if name not in kvm.registered and ("kvm " + name) in quiet("complete kvm " + name).splitlines():
        warn(f"this gdb has a `kvm {name}` of its own, which stays; kvm_dbg's is not available")
        return
    kvm.registered[name] = text
    KvmCommand(kvm, name, text, action, completer)


def register_commands(kvm: Kvm, commands: list[dict[str, Any]]) -> None:
    """Register the server's commands, now with everything that it knows of them."""
    for command in commands:
        if command["name"] not in OWN_COMMANDS:
            register(kvm, command["name"], help_of(command["name"], command["summary"], command))


def plain_command(kvm: Kvm, name: str, words: list[str]) -> None:
    """Run one of OWN_COMMANDS but `open`: those that answer without an open image as well, and `thread`."""
    if name == "geterr":
        gdb.write(kvm.last_error + "\n" if kvm.last_error else "")
    elif name in ("close", "detach"):
        if kvm.server is None:
            raise gdb.GdbError(NOT_OPEN)
        if name == "detach" and kvm.attached is None:
            raise gdb.GdbError("an image is open, and no machine attached to: `kvm close` closes it")
        kvm.close()
    elif name == "thread":
        kvm.select_thread(words)
    elif kvm.server is not None:
        kvm.run(" ".join([name, *words]))
    elif name == "help":
        gdb.write(quiet("help kvm " + " ".join(words)) if words else list_commands())
    else:
        gdb.write('{"open": false}\n' if "--json" in words else "no kernel image is open\n")


# Functions for expressions


class NlistFunction(gdb.Function):
    """Return the run-time address of a kernel symbol: $kvm_nlist("init_task")."""

    def __init__(self, kvm: Kvm) -> None:
        super().__init__("kvm_nlist")
        self._kvm = kvm

    def invoke(self, *names: gdb.Value) -> gdb.Value:
        """Ask the server."""
        return unsigned(ask_address(self._kvm, {"symbol": one("kvm_nlist", names).string()}))


class ProcFunction(gdb.Function):
    """Return the task of a process or thread id: $kvm_proc(1)->comm. A plain address without debug information."""

    def __init__(self, kvm: Kvm) -> None:
        super().__init__("kvm_proc")
        self._kvm = kvm

    def invoke(self, *pids: gdb.Value) -> gdb.Value:
        """Ask the server, and give the address its type."""
        address = unsigned(ask_address(self._kvm, {"process": int(one("kvm_proc", pids))}))
        with contextlib.suppress(gdb.error):
            return address.cast(gdb.lookup_type("struct task_struct").pointer())
        return address


def one(name: str, arguments: tuple[gdb.Value, ...]) -> gdb.Value:
    """Return the only argument of a function. Raises gdb.GdbError."""
    if len(arguments) != 1:
        raise gdb.GdbError(f"${name} takes one argument")
    return arguments[0]


def ask_address(kvm: Kvm, request: dict[str, Any]) -> int:
    """Return the address that the server answers. Raises gdb.GdbError."""
    found: list[int] = []
    kvm.guarded(lambda: found.append(int(kvm.need_server().ask(request)["address"], 16)))
    return found[0]


def unsigned(number: int) -> gdb.Value:
    """Return the number as an unsigned value as wide as an address."""
    return gdb.Value(number).cast(gdb.lookup_type("unsigned long long"))


# The end of gdb


class BatchExit(gdb.Parameter):
    """Whether a failed kvm command makes `gdb -batch` exit with status 1, even if later commands succeed."""

    set_doc = "Set whether a failed kvm command makes `gdb -batch` exit with status 1."
    show_doc = "Show whether a failed kvm command makes `gdb -batch` exit with status 1."

    def __init__(self, kvm: Kvm) -> None:
        super().__init__("kvm batch-exit", gdb.COMMAND_DATA, gdb.PARAM_BOOLEAN)
        self.value = True
        self._kvm = kvm

    def get_set_string(self) -> str:
        """Take the new value."""
        self._kvm.batch_exit = bool(self.value)
        return ""

    def get_show_string(self, value: str) -> str:
        """Say the value."""
        return f"A failed kvm command making `gdb -batch` fail is {value}."


def at_exit(kvm: Kvm) -> None:
    """Reap the server, and give gdb the exit status that its -batch does not know of."""
    server, kvm.server = kvm.server, None
    if server is not None:
        server.close()
    if kvm.failed and kvm.batch_exit and not kvm.exit_code and is_batch(BATCH, PROGRAM_ARGUMENTS):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def on_exiting(kvm: Kvm, event: Any) -> None:
    """Remember the status that gdb is about to exit with."""
    kvm.exit_code = getattr(event, "exit_code", 0) or 0
    gdb.flush(gdb.STDOUT)


def main() -> None:
    """Register everything; a second `source` keeps the first one's session."""
    kvm = getattr(gdb, "kvm_dbg_session", None)
    first = kvm is None
    if first:
        kvm = Kvm()
        gdb.kvm_dbg_session = kvm  # type: ignore[attr-defined]
        if "kvm" not in quiet("complete kvm").split("\n"):
            KvmPrefix(kvm)
        for verb in ("set", "show"):
            if f"{verb} kvm" not in quiet(f"complete {verb} kvm").split("\n"):
                gdb.Command(f"{verb} kvm", gdb.COMMAND_DATA, gdb.COMPLETE_NONE, True)
        BatchExit(kvm)
        NlistFunction(kvm)
        ProcFunction(kvm)
        atexit.register(at_exit, kvm)
        if hasattr(gdb.events, "gdb_exiting"):
            gdb.events.gdb_exiting.connect(lambda event: on_exiting(kvm, event))
        register(kvm, "open", OPEN_HELP, kvm.open, gdb.COMPLETE_FILENAME)
        for name, summary in COMMANDS[1:]:
            if name == "attach":
                register(kvm, name, ATTACH_HELP, kvm.attach, gdb.COMPLETE_FILENAME)
                continue
            own = functools.partial(plain_command, kvm, name) if name in OWN_COMMANDS else None
            register(kvm, name, help_of(name, summary), own)


main()
