"""kvm_dbg in lldb: open a kernel crash dump, and work on it with the lldb that you have.

    (lldb) command script import .../lldb/kvm_dbg_lldb.py
    (lldb) kvm open vmlinux vmcore
    (lldb) kvm procs

This file and its neighbour know lldb and nothing about kernels. It starts a server as a child process
(`kvm_dbg_client.py`, which lies with gdb's adapter), connects lldb to it, has the symbols placed where the server says
they are (`kvm_dbg_lldb_symbols.py`), and registers the `kvm` commands. It runs in whatever Python lldb embeds (3.8 or
newer, lldb 19 or newer) and needs nothing but the standard library; the server runs in the Python that has the package,
see `kvm_dbg_client.py`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from typing import Any, Callable

import lldb

HERE = os.path.dirname(os.path.realpath(os.path.abspath(os.path.expanduser(__file__))))
CLIENT = os.path.join(os.path.dirname(HERE), "gdb")
sys.path[:0] = [HERE, CLIENT]
try:
    from kvm_dbg_client import (
        NOT_OPEN,
        OPEN_OPTIONS,
        OWN_COMMANDS,
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
    from kvm_dbg_lldb_attach import Attachment
    from kvm_dbg_lldb_symbols import (
        CommandFailed,
        cache_directory,
        create_target,
        delete_target,
        find_symbols,
        lldb_version,
        load_modules,
        place,
        warn,
    )
    from kvm_dbg_lldb_user import UserError, UserTargets
    from kvm_dbg_stub import STUCK
finally:
    del sys.path[:2]

OWN_COMPLETION = 20  # the first version that asks a command what its words can become
KINDS = {"FILE": "disk-file", "PID": "thread-id", "NAME": "symbol", "ADDRESS": "symbol"}
"""For a command's first argument, what older versions can complete it by, of the kinds that they know themselves."""

FILES_FIRST = ("open", "attach")  # whose arguments are files
PROBE = "linux_banner"  # whose place tells whether symbols are in theirs
LEFT = "lldb is not attached to the machine any more; connect again, and `kvm attach`"

OPEN_HELP = (
    """Open a kernel memory image and connect lldb to it.
Usage: kvm open [VMLINUX] IMAGE... [OPTION]...

The image becomes lldb's target: its CPUs and tasks are threads, memory reads
come from it, and the symbols of VMLINUX are placed where the kernel ran.
Without VMLINUX the usual places are searched for the right one.  What was
opened before is closed; if opening fails, it stays open.  lldb does not say
which thread a memory read is for: user memory is read by `kvm read --pid`.

  --no-symbols     do not load symbols into lldb"""
    + OPEN_OPTIONS
)


def is_attended() -> bool:
    """Return whether a person is there who can be asked."""
    try:
        return os.isatty(0) and not is_batch((b"-b", b"--batch"), (b"--",))
    except OSError:
        return False


def split_words(text: str) -> list[str]:
    """Return the words of a command line. Raises CommandFailed."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise CommandFailed(f"{error}: {text}") from None


class Setup:
    """Settings of lldb that are changed for a while, and put back."""

    def __init__(self, debugger: Any) -> None:
        self._debugger = debugger
        self._saved: list[tuple[str, str]] = []

    def change(self, name: str, value: str) -> None:
        """Change a setting, if this lldb has it, and remember what it was."""
        instance = self._debugger.GetInstanceName()
        old = lldb.SBDebugger.GetInternalVariableValue(name, instance)
        if not old.IsValid() or not lldb.SBDebugger.SetInternalVariable(name, value, instance).Success():
            return
        self._saved.append((name, (old.GetStringAtIndex(0) if old.GetSize() else "").strip('"')))

    def restore(self) -> None:
        """Put everything back, last change first."""
        while self._saved:
            name, value = self._saved.pop()
            lldb.SBDebugger.SetInternalVariable(name, value, self._debugger.GetInstanceName())


class Kvm:
    """What is open in one of this program's debuggers."""

    def __init__(self, debugger: Any) -> None:
        self.debugger = debugger
        self.server: Server | None = None
        self.setup = Setup(debugger)
        self.users = UserTargets(debugger, warn, self._synchronous)
        self.target: Any = None
        self.attached: Attachment | None = None  # lldb's own connection, where that is used
        self.previous: Any = None
        self.ended: list[Any] = []  # see delete_target
        self.registered: dict[str, str] = {}  # name -> help
        self.last_error = ""
        self._interrupted = False

    def open(self, words: list[str]) -> None:
        """Open an image; see OPEN_HELP. Raises CommandFailed, ServerError, ServerGone."""
        if self.attached is not None:
            raise CommandFailed("lldb already debugs something, by `kvm attach`: `kvm detach` first")
        with_symbols = "--no-symbols" not in words
        words = [os.path.expanduser(word) for word in words if word != "--no-symbols"]
        server = start_server(words, warn, is_attended())
        server.look = self._look
        try:
            self.close()
            self.server = server
            self._connect(server, with_symbols)
        except BaseException:
            self.close()
            raise
        self._begin(server, ", ".join(server.ready["images"]))

    def attach(self, words: list[str]) -> None:
        """Work on the machine that lldb is attached to; see ATTACH_HELP.

        Raises CommandFailed, ServerError, ServerGone.
        """
        with_symbols = "--no-symbols" not in words
        words = [os.path.expanduser(word) for word in words if word != "--no-symbols"]
        if self.target is not None and self.attached is None and self.debugger.GetSelectedTarget() == self.target:
            raise CommandFailed("lldb is attached to an opened image: `kvm close` it first")
        attached = Attachment(self.debugger, self._execute_on)
        server = start_server(["--attached", *words], warn, is_attended(), attached.stub)
        server.look = self._look
        if attached.stub.stuck:
            warn(STUCK)
        try:
            self.close()
            self.server, self.attached, self.target = server, attached, attached.target
            if "--write" in words:
                attached.cache_nothing()
            if with_symbols and self._has_symbols(server, attached):
                warn("lldb's symbols are where the kernel is, and stay")
            elif with_symbols:
                self._keep_indexes()
                symbols = find_symbols(server)
                if symbols is not None:
                    attached.load(symbols, int(server.ready["slide"], 16))
            self._begin(server, attached.name)
        except BaseException:
            self.close()
            raise

    def _has_symbols(self, server: Server, attached: Attachment) -> bool:
        """Return whether lldb's own symbols are in place."""
        try:
            return attached.address(PROBE) == str(server.ask({"symbol": PROBE})["address"])
        except ServerError:
            return False

    def _begin(self, server: Server, what: str) -> None:
        """Register the server's commands, and say what is open."""
        register_commands(self, server.ready["commands"])
        if server.ready.get("problem"):
            warn(server.ready["problem"])
        facts = [server.ready[name] for name in ("system", "release", "arch", "slide")]
        warn("{}: {} {}, {}, slide {}".format(what, *facts))

    def _connect(self, server: Server, with_symbols: bool) -> None:
        self.previous = self.debugger.GetSelectedTarget()
        self._keep_indexes()
        symbols = find_symbols(server) if with_symbols else None
        self.target = create_target(self.debugger, symbols, str(server.ready["triple"]))
        self.debugger.SetSelectedTarget(self.target)
        server.ask({"offsets": False})
        address = str(server.ready["address"])
        kind = "unix-connect" if address.startswith("/") else "connect"
        with self._synchronous():
            result = self._execute(f'process connect -p gdb-remote "{kind}://{address}"')
        if not result.Succeeded() or self.target.GetProcess().GetState() != lldb.eStateStopped:
            problem = server.ready.get("problem")
            why = f" ({problem})" if problem else ""
            raise CommandFailed(f"lldb could not connect to the server: {result.GetError()}{why}")
        # So that what `kvm write` changes is seen at once. It is this process's own setting, and goes with it.
        self._execute("settings set target.process.disable-memory-cache true")
        if symbols is not None:
            place(self.target, int(server.ready["slide"], 16), symbols)

    def _keep_indexes(self) -> None:
        """Let lldb keep its indexes of symbol files, while something is open."""
        directory = cache_directory()
        if directory is not None:
            self.setup.change("symbols.lldb-index-cache-path", directory)
            self.setup.change("symbols.enable-lldb-index-cache", "true")

    def _look(self) -> None:
        """Raise KeyboardInterrupt, once in a command, after Ctrl-C: lldb only takes a note of that."""
        if not self._interrupted and self.debugger.GetCommandInterpreter().WasInterrupted():
            self._interrupted = True
            raise KeyboardInterrupt

    def _execute(self, command: str) -> Any:
        """Execute one of lldb's commands on the target without showing what it says, and return its result."""
        return self._execute_on(command, self.target)

    def _execute_on(self, command: str, target: Any) -> Any:
        """Execute one of lldb's commands on a target, likewise."""
        result = lldb.SBCommandReturnObject()
        context = lldb.SBExecutionContext(target)
        self.debugger.GetCommandInterpreter().HandleCommand(command, context, result)
        return result

    @contextlib.contextmanager
    def _synchronous(self) -> Iterator[None]:
        """Let a command return when the target has stopped, not before: then the news of that is its own output."""
        asynchronous = self.debugger.GetAsync()
        self.debugger.SetAsync(False)
        try:
            yield
        finally:
            self.debugger.SetAsync(asynchronous)

    def close(self) -> None:
        """Undo everything that `open` did; harmless if nothing is open."""
        server, self.server = self.server, None
        if server is None:
            return
        self.users.close()
        target, self.target = self.target, None
        attached, self.attached = self.attached, None
        if attached is not None:
            attached.unload()
        elif target is not None and target.IsValid():
            process = target.GetProcess()
            if process.IsValid():
                with self._synchronous():
                    process.Detach()
            self.ended.append(delete_target(self.debugger, target))
        if self.previous is not None and self.previous.IsValid():
            self.debugger.SetSelectedTarget(self.previous)
        self.setup.restore()
        server.close()

    def need_server(self) -> Server:
        """Return the server of the open image. Raises CommandFailed."""
        if self.server is None:
            raise CommandFailed(NOT_OPEN)
        if self.attached is not None:
            if self.attached.gone:
                self.close()
                raise CommandFailed(LEFT)
            self.attached.check_command()
        return self.server

    def run(self, line: str, result: Any) -> None:
        """Run one of the server's commands, its output into `result`. Raises ServerError, ServerGone."""
        server = self.need_server()
        if line.split()[:1] == ["mods"]:
            files = [module.GetFileSpec().fullpath for module in self.target.module_iter()]
            server.ask({"loaded": [path for path in files if path]})
        thread = self.target.GetProcess().GetSelectedThread()
        tid = thread.GetThreadID() if thread.IsValid() else None
        color = bool(self.debugger.GetUseColor()) and os.isatty(1) and not os.environ.get("NO_COLOR")
        request = {"run": line, "thread": tid, "color": color, "attended": is_attended()}
        with contextlib.closing(server.stream(request)) as answers:
            for answer in answers:
                if "text" in answer:
                    result.Print(answer["text"])

    def select_thread(self, words: list[str], result: Any) -> None:
        """Select the thread of a process or thread id; lldb shows it. Raises CommandFailed, ServerError."""
        server = self.need_server()
        request = thread_request(words)
        if request is None:
            raise CommandFailed(THREAD_USAGE)
        tid = server.ask(request)["thread"]
        thread = self.target.GetProcess().GetThreadByID(tid)
        if not thread.IsValid():
            raise CommandFailed(f"lldb has no thread of {words[0]}")
        self.target.GetProcess().SetSelectedThread(thread)
        status = lldb.SBStream()
        thread.GetStatus(status)
        result.Print(str(status.GetData()))

    def guarded(self, action: Callable[[], None], result: Any) -> None:
        """Do something for a command: failures are `result`'s, and a server that has ended is cleared up after."""
        self._interrupted = False
        try:
            action()
            result.SetStatus(lldb.eReturnStatusSuccessFinishResult)
        except ServerGone as gone:
            self.close()
            self._fail(f"{gone}; the image is closed, use `kvm open` again", result)
        except (ServerError, CommandFailed, UserError, OSError) as error:  # OSError: the current directory is gone, ...
            self._fail(str(error), result)
        except KeyboardInterrupt:
            self._fail("interrupted", result)

    def _fail(self, text: str, result: Any) -> None:
        self.last_error = text
        result.SetError(text)


# Commands


class Subcommand:
    """One subcommand; lldb makes an instance of a subclass for each."""

    name = ""
    text = ""

    def __init__(self, debugger: Any, _internal: Any) -> None:
        self._kvm = SESSIONS[debugger.GetID()]

    def __call__(self, _debugger: Any, command: Any, _context: Any, result: Any) -> None:
        """Run it: the rest of the line, or its words from versions that split it."""
        line = command.strip() if isinstance(command, str) else " ".join(map(shlex.quote, words_of(command)))
        self._kvm.guarded(lambda: self._run(self._kvm, line, result), result)

    def _run(self, kvm: Kvm, line: str, result: Any) -> None:
        if self.name in OWN_COMMANDS:
            run_own_command(kvm, self.name, split_words(line), result)
        elif self.name == "mods" and "--load" in split_words(line):
            load_modules(kvm.target, kvm.need_server(), split_words(line), result)
        elif self.name == "user":
            kvm.users.run(kvm, line, split_words(line), result)
        else:
            kvm.run(f"{self.name} {line}".strip(), result)

    def get_short_help(self) -> str:
        """Return the first line of the help."""
        return self.text.partition("\n")[0]

    def get_long_help(self) -> str:
        """Return the whole help."""
        return self.text

    def get_flags(self) -> int:
        """Return what the command needs of lldb: nothing."""
        return 0

    def get_options_definition(self) -> dict[str, Any]:
        """Return no options: all words come as arguments, and the server knows its options."""
        return {}

    def get_args_definition(self) -> list[list[dict[str, Any]]]:
        """Return what the arguments are, for lldb's own completion where ours declines."""
        kind = lldb.eArgTypePath if self.name in FILES_FIRST else lldb.eArgTypeNone
        return [[{"arg_type": kind, "repeat": "optional"}]]

    def handle_argument_completion(self, words: list[str], position: int, cursor: int) -> Any:
        """Return what the word at `position` can become; False for lldb's own completion, True for nothing."""
        last = words[position][:cursor]
        if self.name in FILES_FIRST:
            if not last.startswith("-"):
                return False
            found = [word for word in re.findall(r"--[a-z-]+", self.text) if word.startswith(last)]
        elif self._kvm.server is not None:
            try:
                line = " ".join([self.name, *words[:position], last])
                found = self._kvm.server.ask({"complete": line})["words"]
            except (ServerGone, ServerError, KeyError):
                found = []
        else:
            found = [name for name, _ in COMMANDS if self.name == "help" and name.startswith(last)]
        return {"values": found} if found else True


def words_of(arguments: Any) -> list[str]:
    """Return the words that lldb has split a command line into."""
    stream = lldb.SBStream()
    arguments.GetAsJSON(stream)
    return [str(word) for word in json.loads(stream.GetData() or "[]")]


def run_own_command(kvm: Kvm, name: str, words: list[str], result: Any) -> None:
    """Run `open`, `attach`, or one of those that answer without an open image as well. Raises as Kvm's methods do."""
    if name == "open":
        kvm.open(words)
    elif name == "attach":
        kvm.attach(words)
    elif name in ("close", "detach"):
        if kvm.server is None:
            raise CommandFailed(NOT_OPEN)
        if name == "detach" and kvm.attached is None:
            raise CommandFailed("an image is open, and no machine attached to: `kvm close` closes it")
        kvm.close()
    elif name == "thread":
        kvm.select_thread(words, result)
    elif name == "geterr":
        result.Print(kvm.last_error + "\n" if kvm.last_error else "")
    elif kvm.server is not None:
        kvm.run(" ".join([name, *words]), result)
    elif name == "help" and not words:
        result.Print(list_commands())
    elif name == "help":
        answer = lldb.SBCommandReturnObject()
        kvm.debugger.GetCommandInterpreter().HandleCommand(" ".join(["help kvm", *words]), answer)
        if not answer.Succeeded():
            raise CommandFailed(str(answer.GetError()).strip())
        result.Print(str(answer.GetOutput()))
    else:
        result.Print('{"open": false}\n' if "--json" in words else "no kernel image is open\n")


def register(kvm: Kvm, name: str, text: str, argument: str | None = None) -> None:
    """Register a subcommand, or its new help; `argument` is what its first argument is."""
    if kvm.registered.get(name) == text:
        return
    kvm.registered[name] = text
    class_name = f"Kvm_{name}"
    globals()[class_name] = type(class_name, (Subcommand,), {"name": name, "text": text, "__doc__": text})
    if lldb_version() >= OWN_COMPLETION:
        completion = "-p"
    else:
        completion = f"-C {KINDS[argument]}" if argument in KINDS else ""
    execute(kvm.debugger, f"command script add -o {completion} -c {__name__}.{class_name} kvm {name}")


def register_commands(kvm: Kvm, commands: list[dict[str, Any]]) -> None:
    """Register the server's commands, now with everything that it knows of them."""
    for command in commands:
        name = command["name"]
        if name not in OWN_COMMANDS or name == "thread":
            register(kvm, name, help_of(name, command["summary"], command), command["argument"])


def execute(debugger: Any, command: str) -> None:
    """Execute one of lldb's commands without showing what it says, unless it fails."""
    result = lldb.SBCommandReturnObject()
    debugger.GetCommandInterpreter().HandleCommand(command, result)
    if not result.Succeeded():
        warn(f"{command}: {result.GetError()}")


SESSIONS: dict[int, Kvm] = getattr(lldb, "kvm_dbg_sessions", {})
"""One per debugger of this program; a second import keeps the first one's."""


def __lldb_init_module(debugger: Any, _internal: dict[str, Any]) -> None:
    """Register the commands."""
    lldb.kvm_dbg_sessions = SESSIONS
    if debugger.GetID() in SESSIONS:
        return
    kvm = SESSIONS[debugger.GetID()] = Kvm(debugger)
    execute(debugger, f'command container add -o -h "{PREFIX_HELP}" kvm')
    register(kvm, "open", OPEN_HELP, "FILE")
    for name, summary in COMMANDS[1:]:
        if name == "attach":
            register(kvm, name, ATTACH_HELP, "FILE")
        else:
            register(kvm, name, help_of(name, summary))


def at_exit() -> None:
    """Reap the servers."""
    for kvm in SESSIONS.values():
        server, kvm.server = kvm.server, None
        if server is not None:
            server.close()


atexit.register(at_exit)
