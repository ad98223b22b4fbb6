"""The program: its command line, its configuration, its pager, and how it ends."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvm_dbg import __version__, cli, launch
from kvm_dbg.cli import make_parser, read_configuration, split_files
from kvm_dbg.errors import FileAccessError, UsageError
from tests.unit.conftest import Little

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parent.parent.parent
LITTLE = [sys.executable, "-m", "tests.writers.system"]
SECONDS = 60.0


def child_environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **changes}


# Words


def test_without_words_it_shows_its_usage(capsys: Capture) -> None:
    assert cli.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: kvm-dbg COMMAND")


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_its_help_lists_the_commands(word: str, capsys: Capture) -> None:
    assert cli.main([word]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^procs +List the processes", text, re.MULTILINE)
    assert "kvm-dbg gdb" in text


def test_version(capsys: Capture) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"kvm-dbg {__version__}\n"


@pytest.mark.parametrize(
    ("words", "files", "rest"),
    [
        (["vmcore"], ["vmcore"], []),
        (["vmcore", "vmlinux"], ["vmcore", "vmlinux"], []),
        (["missing", "vmcore"], ["missing", "vmcore"], []),
        (["vmcore", "start", "64"], ["vmcore"], ["start", "64"]),
        (["vmcore", "start", "vmlinux"], ["vmcore"], ["start", "vmlinux"]),
        (["vmcore", "--", "vmlinux", "64"], ["vmcore"], ["--", "vmlinux", "64"]),
        (["--pid", "1", "vmcore", "start"], ["vmcore"], ["--pid", "1", "start"]),
        (["--pid=1", "vmcore", "--json", "start"], ["vmcore"], ["--pid=1", "--json", "start"]),
        (["vmcore", "--vmlinux", "vmlinux", "start"], ["vmcore"], ["--vmlinux", "vmlinux", "start"]),
        (["--json", "--", "-odd", "start"], ["-odd"], ["--json", "start"]),
        (["--json", "--pid"], [], ["--json", "--pid"]),
        (["kernel", "missing", "start"], ["kernel", "missing"], ["start"]),
        (["vmcore", "loop", "start"], ["vmcore", "loop"], ["start"]),
        ([], [], []),
        (["--live", "start"], [], ["--live", "start"]),
        (["--live", "vmcore", "start"], ["vmcore"], ["--live", "start"]),
        (["--qmp", "socket", "start"], [], ["--qmp", "socket", "start"]),
        (["--qmp=socket", "kernel", "start", "64"], ["kernel"], ["--qmp=socket", "start", "64"]),
        (["kernel", "vmcore", "--qmp", "socket"], ["kernel"], ["vmcore", "--qmp", "socket"]),
        (["vmcore", "64", "--", "--qmp"], ["vmcore"], ["64", "--", "--qmp"]),
    ],
)
def test_files_come_first(
    words: list[str], files: list[str], rest: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("vmcore", "vmlinux", "-odd"):
        (tmp_path / name).touch()
    (tmp_path / "kernel").write_bytes(b"\x7fELF\2\1\1" + bytes(9) + b"\2\0>\0")
    (tmp_path / "loop").symlink_to("loop")
    assert split_files(make_parser("read"), words) == (files, rest)


def test_a_symbol_may_be_called_like_a_file(little: Little, capsys: Capture) -> None:
    Path("banner").touch()
    assert cli.main(["read", little.image, "--", "banner", "16"]) == 0
    assert "Little version 1" in capsys.readouterr().out


# Configuration


def test_configuration_names_directories(little: Little, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "config" / "kvm-dbg").mkdir(parents=True)
    (tmp_path / "config" / "kvm-dbg" / "config.toml").write_text('search = ["/srv/kernels", "~/kernels"]\n')
    assert cli.main(["loadavg", little.image, "--search", "here"]) == 0
    options = little.entry.opened[-1]
    assert options["search"] == ("here", "/srv/kernels", os.path.expanduser("~/kernels"))
    assert options["index_directory"] == str(tmp_path / "cache" / "kvm-dbg" / "index")
    assert cli.main(["loadavg", little.image, "--no-index"]) == 0
    assert little.entry.opened[-1]["index_directory"] is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("search = 5", "`search` is not a list of directories"),
        ("search = [1]", "`search` is not a list of directories"),
        ("serach = []", "unknown setting 'serach'"),
        ("search = [", "not valid TOML"),
    ],
)
def test_a_wrong_configuration_is_an_error(text: str, complaint: str, little: Little, capsys: Capture) -> None:
    path = Path("config/kvm-dbg/config.toml")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert cli.main(["loadavg", little.image]) == 1
    error = capsys.readouterr().err
    assert complaint in error
    assert "config.toml" in error
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FileAccessError, match="not valid TOML"):
        read_configuration()


def test_without_home_there_is_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert read_configuration() == ((), None)
    monkeypatch.setenv("HOME", "/nowhere")
    assert read_configuration() == ((), "/nowhere/.cache/kvm-dbg/index")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert read_configuration() == ((), "/nowhere/.cache/kvm-dbg/index")


def test_a_full_disk_for_the_index_is_told(little: Little, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        f_bavail, f_frsize = 10, 4096

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    assert cli.main(["loadavg", little.image]) == 0
    captured = capsys.readouterr()
    assert captured.out == "0.50 1.25 12.00\n"
    assert captured.err.startswith("kvm-dbg: warning: no index is kept, which takes longer: ")
    assert captured.err.endswith("/index: No space left on device\n")
    assert little.entry.opened[-1]["index_directory"] is None


# Output


def test_a_closed_pipe_is_quiet(little: Little) -> None:
    with subprocess.Popen(
        [*LITTLE, "--endless", "log", little.image],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "[    0.000000] and so on\n"
        child.stdout.close()
        assert child.stderr.read() == ""
        assert child.wait(SECONDS) == 0


def test_ctrl_c_ends_it_with_130(little: Little) -> None:
    with subprocess.Popen(
        [*LITTLE, "--endless", "log", little.image],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        child.stdout.read()
        assert child.stderr.read() == "kvm-dbg: interrupted\n"
        assert child.wait(SECONDS) == 130


def test_a_full_disk_is_an_error(little: Little) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*LITTLE, "log", little.image],
            stdout=full,
            stderr=subprocess.PIPE,
            env=child_environment(),
            check=False,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "kvm-dbg: the output could not be written: No space left on device\n"


def test_a_poor_locale_escapes_what_it_cannot_print(little: Little) -> None:
    image = little.image + "\u4e16"
    os.rename(little.image, image)
    done = subprocess.run(
        [*LITTLE, "status", image], capture_output=True, env=child_environment(PYTHONIOENCODING="ascii"), check=False
    )
    assert done.returncode == 0
    assert b"vmcore\\u4e16" in done.stdout


# The terminal


def run_in_terminal(words: list[str], *, keys: bytes = b"", **changes: str) -> tuple[int, str]:
    """Run the little system's kvm-dbg in a terminal of 24 lines; return its status and what the terminal got."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(child_environment(TERM="xterm", LINES="24", COLUMNS="80", **changes))
        os.execv(sys.executable, [*LITTLE, *words])
    shown = b""
    deadline = time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 1.0)[0]:
                continue
            try:
                data = os.read(terminal, 65536)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            shown += data
            if keys and b"and so on" in shown:
                os.write(terminal, keys)
                keys = b""
    finally:
        os.close(terminal)
        if time.monotonic() >= deadline:
            os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def pager(directory: Path) -> str:
    """Return a pager that marks what it pages."""
    path = directory / "pager"
    path.write_text("#!/bin/sh\necho BEGIN\nhead -n 30\necho END\n")
    path.chmod(0o755)
    return str(path)


def test_long_output_is_paged_in_a_terminal(little: Little, tmp_path: Path) -> None:
    status, shown = run_in_terminal(["--endless", "log", little.image], PAGER=pager(tmp_path))
    assert status == 0
    assert shown.startswith("BEGIN")
    assert shown.rstrip().endswith("END")
    assert shown.count("and so on") == 30


def test_short_output_is_not_paged(little: Little, tmp_path: Path) -> None:
    status, shown = run_in_terminal(["log", little.image], PAGER=pager(tmp_path))
    assert status == 0
    assert "BEGIN" not in shown
    assert "Little version 1.0" in shown


def test_paging_can_be_switched_off(little: Little, tmp_path: Path) -> None:
    words = ["help", "procs"]
    assert "BEGIN" not in run_in_terminal(words, PAGER=pager(tmp_path))[1]
    status, shown = run_in_terminal(["read", little.image, "banner", "1k", "--no-pager"], PAGER=pager(tmp_path))
    assert (status, shown.count("|"), "BEGIN" in shown) == (0, 128, False)
    status, shown = run_in_terminal(["read", little.image, "banner", "1k"], PAGER="")
    assert (status, shown.count("|")) == (0, 128)


@pytest.mark.parametrize("broken", ["no-such-pager", "'", "/"])
def test_a_pager_that_cannot_run_is_done_without(broken: str, little: Little) -> None:
    status, shown = run_in_terminal(["read", little.image, "banner", "1k"], PAGER=broken)
    assert (status, shown.count("|")) == (0, 128)


def test_an_error_follows_the_paged_output(little: Little, tmp_path: Path) -> None:
    cat = shutil.which("cat")
    assert cat is not None
    status, shown = run_in_terminal(["read", little.image, "banner", "8k"], PAGER=cat)
    assert status == 1
    assert shown.splitlines()[-1].startswith("kvm-dbg: 4096 of 8192 bytes are not in the image")


def test_ctrl_c_in_a_terminal(little: Little) -> None:
    status, shown = run_in_terminal(["--endless", "log", little.image, "--no-pager"], keys=b"\x03")
    assert status == 130
    assert "Traceback" not in shown


# Into the debugger


def test_gdb_gets_the_adapter_and_the_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def execvp(program: str, words: list[str]) -> None:
        seen.append(words)
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "execvp", execvp)
    monkeypatch.setenv(launch.INTERPRETER, "")
    words = ["gdb", "--gdb", "my-gdb", "vm linux", "vmcore", "--force", "--gdb=other", "--", "-batch"]
    assert cli.main(words) == 1
    [command] = seen
    assert command[0] == "other"
    assert command[1] == "-iex"
    assert command[2].startswith("source ")
    assert command[3:] == ["-ex", "kvm open 'vm linux' vmcore --force", "-batch"]
    assert os.environ[launch.INTERPRETER] == sys.executable


def test_a_value_that_looks_like_the_option_is_kept() -> None:
    assert launch.without_option(["a", "--gdb", "--gdb", "b", "--gdb=c"], "--gdb") == ["a", "b"]


@pytest.mark.parametrize("what", ["gdb", "lldb", "serve"])
def test_the_doors_have_help_and_refuse_nonsense(what: str, capsys: Capture) -> None:
    assert cli.main([what, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: kvm-dbg {what}")
    assert cli.main([what, "--frobnicate", "vmcore"]) == 2
    assert "unrecognized arguments: --frobnicate" in capsys.readouterr().err


def test_a_port_must_be_one(capsys: Capture) -> None:
    assert cli.main(["serve", "vmcore", "--tcp", "70000"]) == 2
    assert "--tcp 70000 is no port" in capsys.readouterr().err


def test_one_kind_of_parser_complains_alike() -> None:
    for parser in (make_parser("procs"), launch.make_debugger_parser("gdb"), launch.make_debugger_parser("lldb")):
        with pytest.raises(UsageError, match=re.escape(f"{parser.title}: ")):
            parser.parse_args(["--frobnicate"])
