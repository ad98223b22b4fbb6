"""The `kvm-dbg` program: every command on the command line, and the doors into the debuggers.

    kvm-dbg COMMAND [VMLINUX] IMAGE... [ARGUMENT...] [OPTION...]
    kvm-dbg gdb [VMLINUX] IMAGE... [-- GDB-ARGUMENT...]
    kvm-dbg lldb [VMLINUX] IMAGE... [-- LLDB-ARGUMENT...]

The environment is read here and nowhere below: XDG_CACHE_HOME and XDG_CONFIG_HOME for the index and the
configuration, PAGER and LESS for long output, NO_COLOR (https://no-color.org) and TERM for colours. Exit status: 0, 1
for a failure, 2 for wrong use, 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg import __version__
from kvm_dbg.errors import FileAccessError, KvmDbgError, UsageError

if TYPE_CHECKING:
    import argparse
    import subprocess

    from kvm_dbg.commands.parser import CommandParser
    from kvm_dbg.commands.session import Session

PROGRAM = "kvm-dbg"
LESS_FLAGS = "FRX"  # less, where the user does not say: leave a short text on the screen, and let colours through
INDEX_SPACE = 32 << 20  # bytes that must be free: more than the indexes of one kernel take
OWN_FILES = (
    "open",
    "attach",
    "detach",
    "identify",
    "layout",
    "help",
)  # commands that take files as arguments of their own, or none
FILES = "[VMLINUX] IMAGE..."
USAGE = f"""usage: {PROGRAM} COMMAND {FILES} [ARGUMENT...] [OPTION...]
       {PROGRAM} gdb {FILES} [OPTION...] [-- GDB-ARGUMENT...]
       {PROGRAM} lldb {FILES} [OPTION...] [-- LLDB-ARGUMENT...]
       {PROGRAM} serve {FILES} [OPTION...]
       {PROGRAM} COMMAND --help

The first argument is the image or the kernel file, and so are those after it that exist as files: the kernel file, an
image, the parts of a split image, in any order. `--` ends them.
"""


class Configuration(NamedTuple):
    """What the environment and the user's configuration file say.

    search: directories to look for vmlinux in. index_directory: where indexes are kept; None for nowhere.
    """

    search: tuple[str, ...]
    index_directory: str | None


def read_configuration() -> Configuration:
    """Read the environment and `kvm-dbg/config.toml` in the user's configuration directory.

    Raises:
        FileAccessError: the configuration file cannot be read, or is not what it should be.
    """
    caches = _base_directory("XDG_CACHE_HOME", ".cache")
    configurations = _base_directory("XDG_CONFIG_HOME", ".config")
    search: tuple[str, ...] = ()
    if configurations is not None:
        path = f"{configurations}/{PROGRAM}/config.toml"
        if os.path.exists(path):
            search = _read_search(path)
    return Configuration(search, None if caches is None else f"{caches}/{PROGRAM}/index")


def _base_directory(variable: str, below_home: str) -> str | None:
    """Return a directory of the XDG base directory specification, which has relative paths ignored."""
    path = os.environ.get(variable, "")
    if path.startswith("/"):
        return path
    home = os.environ.get("HOME", "")
    return f"{home}/{below_home}" if home else None


def usable_index_directory(configuration: Configuration) -> str | None:
    """Return the directory for indexes, made if need be; None, with a warning, if nothing can be kept in it."""
    path = configuration.index_directory
    if path is None:
        return None
    try:
        os.makedirs(path, exist_ok=True)
        system = os.statvfs(path)
        if system.f_bavail * system.f_frsize >= INDEX_SPACE:
            return path
        problem = "No space left on device"
    except OSError as error:
        problem = error.strerror or str(error)
    print(f"{PROGRAM}: warning: no index is kept, which takes longer: {path}: {problem}", file=sys.stderr)
    return None


def _read_search(path: str) -> tuple[str, ...]:
    import tomllib

    try:
        with open(path, "rb") as file:
            settings = tomllib.load(file)
    except OSError as error:
        raise FileAccessError(path, error.strerror or str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileAccessError(path, f"not valid TOML: {error}") from error
    unknown = set(settings) - {"search"}
    search = settings.get("search", [])
    if unknown or not isinstance(search, list) or not all(isinstance(item, str) for item in search):
        what = f"unknown setting {min(unknown)!r}" if unknown else "`search` is not a list of directories"
        raise FileAccessError(path, f'{what}; the file may have: search = ["DIR", ...]')
    return tuple(os.path.expanduser(item) for item in search)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stdout is None:  # closed by whoever started this
        return _complain("the output could not be written: standard output is closed", 1)
    if hasattr(sys.stdout, "reconfigure"):  # a locale that cannot print a character must not end the program
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _main(words)
        sys.stdout.flush()
        return status
    except UsageError as error:
        return _complain(error, 2)
    except KvmDbgError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        _discard_output()
        return 0
    except OSError as error:  # of standard output: everything else is a KvmDbgError by now
        _discard_output()
        return _complain(f"the output could not be written: {error.strerror or error}", 1)
    except MemoryError:
        return _complain("out of memory", 1)


def _complain(what: object, status: int) -> int:
    """Print an error, with what an image put into it made safe, and return `status`."""
    from kvm_dbg.commands.render import printable

    text = str(what)
    if not text.startswith(PROGRAM):
        text = f"{PROGRAM}: {text}"
    for line in text.split("\n"):
        print(printable(line), file=sys.stderr)
    return status


def _discard_output() -> None:
    """Send what is still to be written to nowhere, so that the interpreter does not try, and fail, on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _main(words: list[str]) -> int:
    if not words:
        print(USAGE, file=sys.stderr)
        return 2
    if words[0] in ("-h", "--help"):
        print(USAGE)
        _write(_help_lines(), paged=False)
        return 0
    if words[0] in ("-V", "--version"):
        print(f"{PROGRAM} {__version__}")
        return 0
    if words[0] in ("gdb", "lldb", "serve"):
        from kvm_dbg.commands.session import Session
        from kvm_dbg.launch import main as launch

        configuration = read_configuration()
        index_directory = usable_index_directory(configuration)
        return launch(words[0], words[1:], Session(None, index_directory, configuration.search))
    if words[0] == "help" and len(words) == 2 and not words[1].startswith("-"):
        words = [words[1], "--help"]
    return run(words)


def _help_lines() -> Iterator[str]:
    from kvm_dbg.commands.run import run_command
    from kvm_dbg.commands.session import Session

    yield from run_command(Session(), ["help"], program=PROGRAM)


def make_parser(name: str) -> CommandParser:
    """Return the parser of the command `name`, with the options that every command has here. Raises UsageError."""
    from kvm_dbg.commands import find_command
    from kvm_dbg.commands.open import add_open_arguments
    from kvm_dbg.commands.parser import CommandParser

    command = find_command(name)
    parser = CommandParser(command, PROGRAM, "" if name in OWN_FILES else FILES)
    if name not in OWN_FILES:
        usage = parser.format_usage().removeprefix("usage: ").rstrip()
        add_open_arguments(parser, [word for word in ("--search", "--force") if parser.find_option(word) is not None])
        parser.usage = f"{usage} [OPENING OPTION...]"
    parser.add_argument("--no-index", action="store_true", help="neither use nor write the index of symbols and types")
    parser.add_argument("--no-pager", action="store_true", help="do not page long output in a terminal")
    return parser


def run(words: list[str]) -> int:
    """Run one command of the list on the image named on the command line, and return the exit status.

    Raises:
        KvmDbgError: it failed, perhaps after some output.
    """
    from kvm_dbg.commands import find_command
    from kvm_dbg.commands.run import HELP_WORDS, run_parsed
    from kvm_dbg.commands.session import Session
    from kvm_dbg.commands.watch import find_interval, watch

    command = find_command(words[0])
    parser = make_parser(command.name)
    if any(word in HELP_WORDS for word in words[1:]):
        print(parser.format_help(), end="")
        return 0
    files, rest = ([], words[1:]) if command.name in OWN_FILES else split_files(parser, words[1:])
    args = parser.parse_args(rest)
    live = getattr(args, "live", False) or getattr(args, "qmp", None) is not None
    if command.needs_kernel and not files and not live:
        parser.error("no image given, nor --live for the memory of this machine, nor --qmp for that of a virtual one")
    configuration = read_configuration()
    index_directory = None if args.no_index else usable_index_directory(configuration)
    session = Session(_progress if sys.stderr.isatty() else None, index_directory, configuration.search)
    paged = not args.no_pager and sys.stdout.isatty()
    session.color = wants_color(paged=paged)
    if sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty():
        session.attended, session.ask = True, _ask
    try:
        if files or (live and command.name not in OWN_FILES):
            _open(session, args, files)
        interval = find_interval(session, command, args) if session.is_open else None
        if interval is not None and paged and args.output is None and sys.stdin is not None and sys.stdin.isatty():
            from kvm_dbg.screen import show

            show(lambda wait: watch(session, command, args, interval, wait))
        else:
            _write(run_parsed(session, command, args), paged=paged and interval is None)
    finally:
        session.close()
    return 0


def _open(session: Session, args: argparse.Namespace, files: list[str]) -> None:
    from kvm_dbg.commands.open import request_of

    session.open(request_of(args, files, session.index_directory, session.search))


def split_files(parser: CommandParser, words: list[str]) -> tuple[list[str], list[str]]:
    """Return (files, the other words): the first argument that is no option, and those after it that exist as files.

    What stands after a kernel file alone is the image, so that a missing one is called missing.
    With --live no image need be named, and only what exists is a file; with --qmp only a kernel file is one.
    `--` ends the files, for an argument of the command that is also the name of a file; before any file it ends the
    options, for a file whose name begins with a dash.
    """
    files: list[str] = []
    rest: list[str] = []
    options = True
    own = words[: words.index("--") if "--" in words else None]
    live = "--live" in own
    qmp = any(word == "--qmp" or word.startswith("--qmp=") for word in own)
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--" and options:
            if files:
                return files, [*rest, *words[position - 1 :]]
            options = False
        elif options and word.startswith("-") and len(word) > 1:
            rest.append(word)
            if parser.takes_value(word, words[position] if position < len(words) else ""):
                rest += words[position : position + 1]
                position += 1
        elif is_named_file(word, files, live=live, qmp=qmp):
            files.append(word)
        else:
            return files, [*rest, *words[position - 1 :]]
    return files, rest


def is_named_file(word: str, files: Sequence[str], *, live: bool, qmp: bool) -> bool:
    """Return whether a word that is no option names another file, after `files`; see `split_files`."""
    if qmp:
        return not files and only_kernel_file([word])
    return (not files and not live) or os.path.lexists(word) or only_kernel_file(files)


def only_kernel_file(files: Sequence[str]) -> bool:
    """Return whether there is one file so far, and it is a kernel file: the image must follow."""
    from kvm_dbg.commands.session import is_kernel_file

    return len(files) == 1 and is_kernel_file(files[0])


def _ask(question: str) -> bool:
    """Ask on the terminal; anything but yes is no."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _progress(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr)


def _write(pieces: Iterable[str], *, paged: bool) -> None:
    """Write pieces of output as they come, through the user's pager if asked and if they fill a screen."""
    pager = _pager_words() if paged else []
    if not pager:
        try:
            for piece in pieces:
                sys.stdout.write(piece)
        finally:
            sys.stdout.flush()
        return
    import shutil

    height = shutil.get_terminal_size().lines - 1
    iterator = iter(pieces)
    held: list[str] = []
    lines = 0
    failure: KvmDbgError | None = None
    try:
        for piece in iterator:
            held.append(piece)
            lines += piece.count("\n")
            if lines > height:
                _page(pager, held, iterator)
                return
    except KvmDbgError as error:
        failure = error
    sys.stdout.write("".join(held))
    sys.stdout.flush()
    if failure is not None:
        raise failure


def wants_color(*, paged: bool) -> bool:
    """Return whether standard output is a terminal that shows colours, and so does the pager in front of it."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return False
    pager = _pager_words() if paged else []
    if not pager:
        return True
    flags = " ".join([os.environ.get("LESS", LESS_FLAGS), *pager[1:]])
    return os.path.basename(pager[0]) == "less" and "r" in flags.lower()


def _pager_words() -> list[str]:
    """Return the user's pager and its arguments; none if PAGER is set to nothing or to nonsense."""
    import shlex

    try:
        return shlex.split(os.environ.get("PAGER", "less"))
    except ValueError:
        return []


def _page(pager: list[str], held: list[str], rest: Iterator[str]) -> None:
    import subprocess
    from itertools import chain

    environment = {"LESS": LESS_FLAGS, **os.environ}
    try:
        child = subprocess.Popen(pager, stdin=subprocess.PIPE, text=True, errors="backslashreplace", env=environment)
    except OSError:  # no pager on this machine: the terminal scrolls
        _write(chain(held, rest), paged=False)
        return
    try:
        if child.stdin is not None:
            child.stdin.writelines(held)
            child.stdin.writelines(rest)
    except BrokenPipeError:
        pass  # the reader has left
    finally:
        _finish_pager(child)


def _finish_pager(child: subprocess.Popen[str]) -> None:
    import contextlib

    if child.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
    while True:
        try:
            child.wait()
            return
        except KeyboardInterrupt:  # the pager's own business
            continue


if __name__ == "__main__":
    sys.exit(main())
