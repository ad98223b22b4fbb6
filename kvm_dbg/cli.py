"""The `kvm-dbg` program: every command on the command line, and the doors into the debuggers.

    kvm-dbg COMMAND [VMLINUX] IMAGE... [ARGUMENT...] [OPTION...]
    kvm-dbg gdb [VMLINUX] IMAGE... [-- GDB-ARGUMENT...]

The environment is read here and nowhere below: XDG_CACHE_HOME and XDG_CONFIG_HOME for the index and the
configuration, PAGER for long output. Exit status: 0, 1 for a failure, 2 for wrong use, 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kvm_dbg import __version__
from kvm_dbg.errors import CommandError, FileAccessError, KvmDbgError

if TYPE_CHECKING:
    import argparse
    import subprocess

    from kvm_dbg.commands.base import Command
    from kvm_dbg.commands.session import Session

PROGRAM = "kvm-dbg"
OWN_FILES = ("open", "identify", "help")  # commands that take files as arguments of their own, or none
USAGE = f"""usage: {PROGRAM} COMMAND [VMLINUX] IMAGE... [ARGUMENT...] [OPTION...]
       {PROGRAM} gdb [VMLINUX] IMAGE... [OPTION...] [-- GDB-ARGUMENT...]
       {PROGRAM} COMMAND --help

Leading arguments that name existing files are the image (or the parts of a split one) and the kernel file.
"""


class Configuration(NamedTuple):
    """What the environment and the user's configuration file say.

    search: directories to look for vmlinux in. index_directory: where indexes are kept; None for nowhere.
    """

    search: tuple[str, ...]
    index_directory: str | None
    cache_directory: str | None


def read_configuration() -> Configuration:
    """Read the environment and `kvm-dbg/config.toml` in the user's configuration directory.

    Raises:
        FileAccessError: the configuration file cannot be read, or is not what it should be.
    """
    home = os.environ.get("HOME", "")
    caches = os.environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home else "")
    configurations = os.environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    cache = f"{caches}/{PROGRAM}" if caches else None
    path = f"{configurations}/{PROGRAM}/config.toml"
    search: tuple[str, ...] = ()
    if configurations and os.path.exists(path):
        search = _read_search(path)
    return Configuration(search, f"{cache}/index" if cache else None, cache)


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
    try:
        return _main(words)
    except CommandError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KvmDbgError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        print(f"{PROGRAM}: out of memory", file=sys.stderr)
        return 1


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        _write(_help_lines(), paged=False)
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"{PROGRAM} {__version__}")
        return 0
    if words[0] in ("gdb", "serve"):
        from kvm_dbg.commands.session import Session
        from kvm_dbg.launch import main as launch

        configuration = read_configuration()
        return launch(words[0], words[1:], Session(None, configuration.index_directory, configuration.search))
    return run(words)


def _help_lines() -> Iterator[str]:
    from kvm_dbg.commands.run import run_command
    from kvm_dbg.commands.session import Session

    yield from run_command(Session(), ["help"], program=PROGRAM)


def run(words: list[str]) -> int:
    """Run one command of the list on the image named on the command line."""
    from kvm_dbg.commands import find_command
    from kvm_dbg.commands.run import CommandParser, run_parsed
    from kvm_dbg.commands.session import Session

    command = find_command(words[0])
    parser = CommandParser(command, PROGRAM)
    _add_program_options(parser, command)
    if any(word in ("-h", "--help") for word in words[1:]):
        print(parser.format_help())
        return 0
    files, rest = split_files(parser, words[1:]) if command.name not in OWN_FILES else ([], words[1:])
    try:
        args = parser.parse_args(rest)
        if command.needs_kernel and not files:
            raise CommandError(f"{parser.prog}: no image given\n{parser.format_usage().rstrip()}")
    except CommandError as error:
        print(error, file=sys.stderr)
        return 2
    configuration = read_configuration()
    index_directory = None if args.no_index else configuration.index_directory
    session = Session(_progress if sys.stderr.isatty() else None, index_directory, configuration.search)
    try:
        if files:
            _open(session, args, files)
        _write(run_parsed(session, command, args), paged=not args.no_pager and sys.stdout.isatty())
    finally:
        session.close()
    return 0


def _open(session: Session, args: argparse.Namespace, files: list[str]) -> None:
    from kvm_dbg.commands.open import request_of

    session.open(request_of(args, files, session.index_directory, session.search))


def _add_program_options(parser: argparse.ArgumentParser, command: Command) -> None:
    if command.name not in OWN_FILES:
        from kvm_dbg.commands.open import add_open_arguments

        parser.usage = (
            parser.format_usage()
            .removeprefix("usage: ")
            .replace(f"{PROGRAM} {command.name}", f"{PROGRAM} {command.name} [VMLINUX] IMAGE...", 1)
        )
        add_open_arguments(parser)
    parser.add_argument("--no-index", action="store_true", help="neither use nor write the index of symbols and types")
    parser.add_argument("--no-pager", action="store_true", help="do not page long output in a terminal")


def split_files(parser: argparse.ArgumentParser, words: list[str]) -> tuple[list[str], list[str]]:
    """Return (files, the other words): the first argument that is no option, and those after it that exist as files.

    `--` ends the files early, for an argument of the command that happens to be the name of a file.
    """
    files: list[str] = []
    rest: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            rest.extend(words[position - 1 if not files else position :])
            break
        if word.startswith("-") and len(word) > 1:
            rest.append(word)
            action = parser._option_string_actions.get(word)
            if action is not None and action.nargs != 0 and position < len(words):
                rest.append(words[position])
                position += 1
        elif not files or os.path.exists(word):
            files.append(word)
        else:
            rest.append(word)
            rest.extend(words[position:])
            break
    return files, rest


def _progress(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr)


def _write(pieces: Iterable[str], *, paged: bool) -> None:
    """Write pieces of output as they come, through the user's pager if asked and if they fill a screen."""
    if not paged:
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
                _page(held, iterator)
                return
    except KvmDbgError as error:
        failure = error
    sys.stdout.write("".join(held))
    sys.stdout.flush()
    if failure is not None:
        raise failure


def _page(held: list[str], rest: Iterator[str]) -> None:
    import shlex
    import subprocess

    command = shlex.split(os.environ.get("PAGER", "")) or ["less"]
    environment = {"LESS": "FRX", **os.environ}
    try:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, errors="backslashreplace", env=environment)
    except OSError:  # no pager on this machine: the terminal scrolls
        _write([*held, *rest], paged=False)
        return
    if child.stdin is None:
        raise CommandError("the pager has no input")
    try:
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
