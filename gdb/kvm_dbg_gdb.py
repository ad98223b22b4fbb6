"""kvm_dbg in gdb: open a kernel crash dump, and work on it with the gdb that you have.

    (gdb) source .../gdb/kvm_dbg_gdb.py
    (gdb) kvm open vmlinux vmcore
    (gdb) kvm procs

This file knows gdb and nothing about kernels. It starts a server as a child process, connects gdb to it, loads the
symbols where the server says they are, and registers the `kvm` commands. It runs in whatever Python gdb embeds (3.8
or newer, gdb 12 or newer) and needs nothing but the standard library; the server runs in the Python that has the
package: $KVM_DBG_PYTHON, else the one beside this file, else the one of the `kvm-dbg` program, else python3.

The child's standard input and output are the control channel: JSON, one object a line (see rsp/control.py in the
package). Its standard input ends when gdb does, however gdb ends, and then the server ends as well.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any, Callable, Generator, Iterator

import gdb

REMOTE_TIMEOUT = 60  # seconds; gdb's own 2 are too few for a busy machine
END_TIMEOUT = 3.0  # seconds that the server has to end by itself
NOT_OPEN = "no kernel image is open: use `kvm open [VMLINUX] IMAGE...` first"
OWN_COMMANDS = ("open", "close", "status", "geterr", "help")
HERE = os.path.dirname(os.path.realpath(os.path.abspath(os.path.expanduser(__file__))))

OPEN_HELP = """Open a kernel memory image and connect gdb to it.
Usage: kvm open [VMLINUX] IMAGE... [OPTION]...

The image becomes gdb's target: its CPUs and tasks are threads, memory reads
come from it, and the symbols of VMLINUX are placed where the kernel ran.
Without VMLINUX the usual places are searched for the right one.  What was
opened before is closed; if opening fails, it stays open.

  --no-symbols     do not load symbols into gdb
  --vmlinux FILE   the kernel file
  --search DIR     look for vmlinux in DIR first
  --kernel N       which kernel, if the image holds several
  --force          use a kernel file that does not match
  --base ADDRESS   physical address of raw RAM
  --hole RANGE     hole in raw RAM
  --format NAME    take the image for this format"""


class ServerGone(Exception):  # noqa: N818 - no mistake: it happened
    """The server has ended; the text says how."""


class Setup:
    """Settings of gdb that are changed for a while, and put back."""

    def __init__(self) -> None:
        self._saved: list[tuple[str, str]] = []

    def change(self, name: str, value: str) -> None:
        """Set a parameter, if this gdb has it, and remember what it was."""
        try:
            old = gdb.parameter(name)
            gdb.execute(f"set {name} {value}", to_string=True)
        except (gdb.error, RuntimeError):
            return
        if old is None:
            old = "unlimited"
        elif isinstance(old, bool):
            old = "on" if old else "off"
        self._saved.append((name, str(old)))

    def restore(self) -> None:
        """Put everything back, last change first."""
        while self._saved:
            name, value = self._saved.pop()
            with contextlib.suppress(gdb.error):
                gdb.execute(f"set {name} {value}", to_string=True)


def warn(text: str) -> None:
    """Say something that is no command's output: standard output stays clean for scripts."""
    gdb.write(f"kvm: {text}\n", gdb.STDERR)


def quiet(command: str) -> str:
    """Execute a gdb command without showing its output."""
    return str(gdb.execute(command, False, True))


def quoted(path: str) -> str:
    """Return the path as one word for gdb commands that split their arguments."""
    return "".join("\\" + character if character in " \t\n\"'\\" else character for character in path)


# The server


def interpreters() -> Iterator[str]:
    """Yield the programs that may be the Python with the package, likeliest first."""
    named = os.environ.get("KVM_DBG_PYTHON")
    if named:
        yield named
        return
    try:
        with open(os.path.join(HERE, "python-path"), encoding="utf-8") as file:
            yield file.readline().strip()
    except OSError:
        pass
    for directory in (os.path.join(HERE, "..", ".venv"), os.path.join(HERE, "..", "..", "..")):
        # a checkout's own environment; PREFIX of an installed PREFIX/share/kvm-dbg/gdb
        yield os.path.join(os.path.normpath(directory), "bin", "python3")
    program = shutil.which("kvm-dbg")
    if program:
        try:
            with open(program, "rb") as script:
                first = script.readline(256)
        except OSError:
            first = b""
        if first.startswith(b"#!/"):
            yield os.fsdecode(first[2:].strip())
    python = shutil.which("python3")
    if python:
        yield python


def server_environment() -> dict[str, str]:
    """Return the child's environment: without what a wrapped gdb sets for its own Python."""
    environment = dict(os.environ)
    for name in ("PYTHONHOME", "PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONSTARTUP"):
        environment.pop(name, None)
    root = os.path.dirname(HERE)
    if os.path.isfile(os.path.join(root, "kvm_dbg", "__init__.py")):
        environment["PYTHONPATH"] = root
    environment["PYTHONSAFEPATH"] = "1"  # the current directory is no place to import from
    return environment


class Server:
    """The child process, and the control channel to it."""

    def __init__(self, python: str, words: list[str]) -> None:
        self.name = python
        self.ready: dict[str, Any] = {}
        self._buffer = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [python, "-m", "kvm_dbg.cli", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=server_environment(),
            start_new_session=True,  # the terminal's Ctrl-C is gdb's
        )

    def alive(self) -> bool:
        """Return whether the server still runs."""
        return self._process.poll() is None

    def send(self, message: dict[str, Any]) -> None:
        """Send one message. Raises ServerGone."""
        data = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self._process.stdin.fileno(), data) :]  # type: ignore[union-attr]
        except (OSError, ValueError):
            raise ServerGone(self._epitaph()) from None

    def receive(self) -> dict[str, Any]:
        """Return the next message. Raises ServerGone, KeyboardInterrupt (nothing is lost then)."""
        while b"\n" not in self._buffer:
            try:
                data = os.read(self._process.stdout.fileno(), 1 << 18)  # type: ignore[union-attr]
            except (OSError, ValueError):
                data = b""
            if not data:
                raise ServerGone(self._epitaph())
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line.decode())
        except ValueError:
            raise ServerGone(f"the server said something that is no JSON: {line[:80]!r}") from None
        if "warning" in message:
            warn(str(message["warning"]))
            return self.receive()
        return dict(message)

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its one answer. Raises ServerGone, gdb.GdbError with the server's text."""
        answers = list(self.stream(message))
        return answers[-1] if answers else {}

    def stream(self, message: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Send a request and yield the answers; Ctrl-C stops what the server does, and the rest is dropped.

        Raises:
            ServerGone, gdb.GdbError with the server's text, KeyboardInterrupt once the server has stopped.
        """
        self.send(message)
        answer: dict[str, Any] = {}
        try:
            while True:
                answer = self.receive()
                if "error" in answer:
                    raise gdb.GdbError(str(answer["error"]))
                yield answer
                if "text" not in answer:
                    return
        except (KeyboardInterrupt, GeneratorExit):
            if "text" in answer or not answer:
                self._stop()
            raise

    def _stop(self) -> None:
        """Stop what the server does for us, and drop what it still says. A second Ctrl-C ends the server."""
        try:
            self.send({"interrupt": True})
            while "text" in self.receive():
                pass
        except KeyboardInterrupt:
            self.close()

    def close(self) -> None:
        """End the server and reap it: by the end of its input, and by force if it does not listen."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        for stop in (None, self._process.terminate, self._process.kill):
            if stop is not None:
                stop()
            try:
                self._process.wait(END_TIMEOUT)
                break
            except subprocess.TimeoutExpired:
                continue
        self._errors.close()
        address = str(self.ready.get("address", ""))
        if address.startswith("/"):  # after SIGKILL before anybody was connected
            for remove, path in ((os.unlink, address), (os.rmdir, os.path.dirname(address))):
                with contextlib.suppress(OSError):
                    remove(path)

    def last_words(self) -> str:
        """Return the last line on the server's standard error."""
        try:
            self._errors.seek(0)
            lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        except (OSError, ValueError):
            return ""
        return str(lines[-1]) if lines else ""

    def _epitaph(self) -> str:
        try:
            status = self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            return "the server does not answer any more"
        if status < 0:
            try:
                how = f"was killed by {signal.Signals(-status).name}"
            except ValueError:
                how = f"was killed by signal {-status}"
        else:
            how = f"has ended with status {status}"
        words = self.last_words()
        return f"the server {how}: {words}" if words else f"the server {how}"


def start_server(words: list[str]) -> Server:
    """Start a server that has opened the image, with the first Python that has the package.

    Raises:
        gdb.GdbError: there is no such Python, or the image could not be opened (the server's own text).
    """
    tried: list[str] = []
    for python in interpreters():
        if not python or python in tried or (os.sep in python and not os.access(python, os.X_OK)):
            if os.environ.get("KVM_DBG_PYTHON"):
                raise gdb.GdbError(f"KVM_DBG_PYTHON: {python} is no program that can be run")
            continue
        tried.append(python)
        try:
            server = Server(python, ["serve", "--control", *words])
        except OSError as error:
            if os.environ.get("KVM_DBG_PYTHON"):
                raise gdb.GdbError(f"KVM_DBG_PYTHON: {python}: {error.strerror}") from None
            continue
        try:
            first = server.receive()
        except ServerGone as gone:
            if "No module named" in server.last_words() or "SyntaxError" in server.last_words():
                server.close()
                continue
            server.close()
            raise gdb.GdbError(str(gone)) from None
        except KeyboardInterrupt:
            server.close()
            raise
        if "ready" not in first:
            server.close()
            raise gdb.GdbError(str(first.get("error", "the server could not start")))
        server.ready = first["ready"]
        return server
    raise gdb.GdbError(
        "no Python with the kvm-dbg package was found (tried: %s); set the environment variable KVM_DBG_PYTHON to it"
        % (", ".join(tried) or "nothing")
    )


# Symbols


def cache_directory() -> str | None:
    """Return the directory of this gdb's index cache, made if need be; None where none can be."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(base, "kvm-dbg", "gdb-index", str(gdb.VERSION).replace(os.sep, "_"))
    try:
        os.makedirs(path, exist_ok=True)
    except OSError:
        return None
    return path if os.access(path, os.W_OK) else None


class SymbolFiles:
    """The symbol files that were loaded for one image."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._replaced: str | None = None

    def load_kernel(self, ready: dict[str, Any]) -> None:
        """Load vmlinux at the kernel's slide; sections linked at address 0 (per-CPU data) stay there.

        Raises:
            gdb.error: gdb does not like the file.
        """
        path = str(ready["vmlinux"])
        main = gdb.selected_inferior().progspace.filename
        if main and os.path.realpath(main) == os.path.realpath(path):
            quiet("symbol-file")  # it is at its link address; the whole file is placed anew below
            self._replaced = main
        setup = Setup()
        directory = cache_directory()
        if directory is not None:
            setup.change("index-cache directory", directory)
            setup.change("index-cache enabled", "on")
        try:
            self.add(path, "-o {}".format(ready["slide"]), dict.fromkeys(ready["zero_based"], "0x0"))
            if directory is not None:
                self._finish_index(path, directory)
        finally:
            setup.restore()

    def _finish_index(self, path: str, directory: str) -> None:
        """Let a gdb that writes its index in the background (15 and newer) end that before the cache is off again."""
        for objfile in gdb.objfiles():
            if objfile.filename and os.path.realpath(objfile.filename) == os.path.realpath(path):
                name = f"{objfile.build_id}.gdb-index"
                if objfile.build_id and not os.path.exists(os.path.join(directory, name)):
                    with contextlib.suppress(gdb.error):
                        quiet("maintenance wait-for-index-cache")
                return

    def add(self, path: str, where: str, sections: dict[str, str]) -> None:
        """Load a symbol file. Raises gdb.error."""
        words = ["add-symbol-file", quoted(path), where]
        for name, address in sections.items():
            words += ["-s", name, address]
        quiet(" ".join(words))
        self._paths.append(path)

    def unload(self) -> None:
        """Remove everything that was loaded, and put back what was there."""
        while self._paths:
            with contextlib.suppress(gdb.error):  # the user may have removed it
                quiet(f"remove-symbol-file {quoted(self._paths.pop())}")
        if self._replaced is not None:
            with contextlib.suppress(gdb.error):
                quiet(f"symbol-file {quoted(self._replaced)}")
            self._replaced = None


# The session


class Kvm:
    """What is open in this gdb."""

    def __init__(self) -> None:
        self.server: Server | None = None
        self.symbols = SymbolFiles()
        self.setup = Setup()
        self.inferior = 0
        self.registered: set[str] = set()
        self.last_error = ""
        self.failed = False
        self.exit_code = 0
        self.batch_exit = True

    def open(self, words: list[str]) -> None:
        """Open an image; see OPEN_HELP. Raises gdb.GdbError."""
        with_symbols = "--no-symbols" not in words
        words = [os.path.expanduser(word) for word in words if word != "--no-symbols"]
        if not words:
            raise gdb.GdbError("no image given: kvm open [VMLINUX] IMAGE...")
        inferior = gdb.selected_inferior()
        if inferior.pid and (self.server is None or inferior.num != self.inferior):
            raise gdb.GdbError(
                f"inferior {inferior.num} already debugs something; end that first,"
                " or use `add-inferior` and `inferior N`"
            )
        server = start_server(words)
        try:
            self.close()
            self.server = server
            self.inferior = gdb.selected_inferior().num
            self._connect(server)
        except BaseException:
            self.close()
            raise
        if with_symbols:
            self._load_symbols(server)
        register_commands(self, server.ready["commands"])
        warn(
            "{}: Linux {}, {}, slide {}".format(
                ", ".join(server.ready["images"]), server.ready["release"], server.ready["arch"], server.ready["slide"]
            )
        )

    def _connect(self, server: Server) -> None:
        self.setup.change("debuginfod enabled", "off")
        self.setup.change("remotetimeout", str(REMOTE_TIMEOUT))
        self.setup.change("non-stop", "off")
        self.setup.change("print inferior-events", "off")  # a script ends with its own output, not with "detached"
        silence = Setup()
        silence.change("suppress-cli-notifications", "on")  # the frame would go to standard output
        try:
            server.ask({"offsets": False})
            quiet(f"target remote {server.ready['address']}")
        except ServerGone as gone:
            raise gdb.GdbError(str(gone)) from None
        except gdb.error as error:
            raise gdb.GdbError(f"gdb could not connect to the server: {error}") from None
        finally:
            silence.restore()

    def _load_symbols(self, server: Server) -> None:
        path = server.ready["vmlinux"]
        if path is None:
            warn("no vmlinux was found, so gdb has no symbols; kvm commands work without")
            return
        try:
            rules = server.ask({"unwind": True})["file"]
            if rules is not None:  # before vmlinux: gdb takes the first rule that it finds
                self.symbols.add(rules, "", {})
        except gdb.error as error:
            warn(f"backtraces may end in frames that never were: {error}")
        try:
            self.symbols.load_kernel(server.ready)
        except gdb.error as error:
            warn(f"{path}: gdb could not load its symbols: {error}")

    def close(self) -> None:
        """Undo everything that `open` did; harmless if nothing is open."""
        server, self.server = self.server, None
        if server is None:
            return
        current = gdb.selected_inferior().num
        if current != self.inferior:
            with contextlib.suppress(gdb.error):
                quiet(f"inferior {self.inferior}")
        try:
            if gdb.selected_inferior().num == self.inferior and gdb.selected_inferior().pid:
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
        return self.server

    def run(self, line: str) -> None:
        """Run one of the server's commands, its output to gdb's standard output as it comes. Raises gdb.GdbError."""
        server = self.need_server()
        with contextlib.closing(server.stream({"run": line})) as answers:
            for answer in answers:
                if "text" in answer:
                    gdb.write(answer["text"])
        gdb.flush()
        if line.split()[:1] == ["write"]:
            quiet("maintenance flush dcache")

    def guarded(self, action: Callable[[], None]) -> None:
        """Do something for a command: remember failures, and clear up after a server that has ended."""
        try:
            action()
        except ServerGone as gone:
            self.close()
            self._fail(f"{gone}; the image is closed, use `kvm open` again")
        except gdb.GdbError as error:
            self._fail(str(error))
        except gdb.error as error:
            self._fail(str(error))
        except KeyboardInterrupt:
            self.failed = True
            raise

    def _fail(self, text: str) -> None:
        gdb.flush()
        self.failed = True
        self.last_error = text
        raise gdb.GdbError(text) from None

    def load_modules(self, words: list[str]) -> None:
        """Load the symbols of the kernel's modules, from files in a directory or in the usual places."""
        server = self.need_server()
        rest = [word for word in words if word != "--load"]
        if len(rest) > 1 or any(word.startswith("-") for word in rest):
            raise gdb.GdbError("usage: kvm mods --load [DIRECTORY]")
        plan = server.ask({"modules": os.path.abspath(os.path.expanduser(rest[0])) if rest else None})["modules"]
        loaded = 0
        absent = [module["name"] for module in plan if module["file"] is None and module["problem"] is None]
        if absent:
            warn("no file was found of: " + ", ".join(absent))
        for module in plan:
            if module["problem"] is not None:
                warn(f"{module['name']}: {module['problem']}")
            if module["file"] is None:
                continue
            sections = dict(module["sections"])
            text = sections.pop(".text", None)
            try:
                self.symbols.add(module["file"], text if text is not None else "", sections)
                loaded += 1
            except gdb.error as error:
                warn("{}: gdb could not load {}: {}".format(module["name"], module["file"], error))
        gdb.write(f"symbols of {loaded} of {len(plan)} modules loaded\n")
        if plan and not loaded:
            raise gdb.GdbError("no module's symbols could be loaded")


# Commands


def split_words(text: str) -> list[str]:
    """Return the words of a command line. Raises gdb.GdbError."""
    try:
        return list(gdb.string_to_argv(text))
    except (gdb.error, ValueError) as error:
        raise gdb.GdbError(str(error)) from None


class KvmPrefix(gdb.Command):
    """Work on a kernel memory image: a crash dump, a RAM file, live memory.
    Start with `kvm open [VMLINUX] IMAGE...`; after that `kvm help` lists everything."""

    def __init__(self, kvm: Kvm) -> None:
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
            gdb.write(quiet("help kvm"))


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

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Run it."""
        self.dont_repeat()
        self._kvm.guarded(lambda: self._run(argument))

    def _run(self, argument: str) -> None:
        if self._action is not None:
            self._action(split_words(argument))
        elif self._name == "mods" and "--load" in split_words(argument):
            self._kvm.load_modules(split_words(argument))
        else:
            self._kvm.run((f"{self._name} {argument}").strip())

    def _complete(self, text: str, word: str | None) -> Any:
        """Return what the last word can become, as far as gdb's idea of a word lets it."""
        server = self._kvm.server
        if server is None or word is None:
            return gdb.COMPLETE_NONE if word is not None else []
        try:
            words = server.ask({"complete": f"{self._name} {text}"})["words"]
        except (ServerGone, gdb.GdbError, KeyError):
            return []
        last = text.split(" ")[-1]
        skip = len(last) - len(word)
        return [found[skip:] for found in words if found.startswith(last)] if skip >= 0 else []


def register(
    kvm: Kvm, name: str, text: str, action: Callable[[list[str]], None] | None = None, completer: int | None = None
) -> None:
    """Register a subcommand, unless somebody else's `kvm` has one of that name."""
    if name not in kvm.registered and ("kvm " + name) in quiet("complete kvm " + name).splitlines():
        warn(f"this gdb has a `kvm {name}` of its own, which stays; kvm_dbg's is not available")
        return
    kvm.registered.add(name)
    KvmCommand(kvm, name, text, action, completer)


def register_commands(kvm: Kvm, commands: list[dict[str, Any]]) -> None:
    """Register the server's commands, with their help; those of an earlier session stay as they are."""
    for command in commands:
        name = command["name"]
        if name in kvm.registered or name in OWN_COMMANDS:
            continue
        parts = [command["summary"] + ".", f"Options: `kvm {name} --help`."]
        if command["description"]:
            parts.insert(1, command["description"])
        if command["examples"]:
            parts.append("Examples:\n" + "\n".join("  kvm " + example for example in command["examples"]))
        register(kvm, name, "\n".join(parts))


def close_command(kvm: Kvm, words: list[str]) -> None:
    """Run `kvm close`."""
    if words:
        raise gdb.GdbError("kvm close takes no argument")
    if kvm.server is None:
        raise gdb.GdbError(NOT_OPEN)
    kvm.close()


def help_command(kvm: Kvm, words: list[str]) -> None:
    """Run `kvm help`."""
    if kvm.server is not None:
        kvm.run(" ".join(["help", *words]))
    else:
        gdb.write(quiet("help kvm " + " ".join(words)))


def status_command(kvm: Kvm, words: list[str]) -> None:
    """Run `kvm status`, which answers without an image as well."""
    if kvm.server is not None:
        kvm.run(" ".join(["status", *words]))
    elif "--json" in words:
        gdb.write('{"open": false}\n')
    else:
        gdb.write("no kernel image is open\n")


def geterr_command(kvm: Kvm, _words: list[str]) -> None:
    """Run `kvm geterr`."""
    if kvm.last_error:
        gdb.write(kvm.last_error + "\n")


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


def is_batch() -> bool:
    """Return whether gdb was started with -batch."""
    try:
        with open("/proc/self/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    for word in words:
        if word in (b"--args", b"-args"):
            return False
        if word.lstrip(b"-") in (b"batch", b"batch-silent") and word.startswith(b"-"):
            return True
    return False


def at_exit(kvm: Kvm) -> None:
    """Reap the server, and give gdb the exit status that its -batch does not know of."""
    server, kvm.server = kvm.server, None
    if server is not None:
        server.close()
    if kvm.failed and kvm.batch_exit and not kvm.exit_code and is_batch():
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
        register(
            kvm, "close", "Close the image: target, symbols, settings and server.", lambda w: close_command(kvm, w)
        )
        register(kvm, "status", "Show what is open.", lambda w: status_command(kvm, w))
        register(kvm, "geterr", "Print the text of the last error.", lambda w: geterr_command(kvm, w))
        register(kvm, "help", "List the commands, or explain one: kvm help [COMMAND].", lambda w: help_command(kvm, w))


main()
