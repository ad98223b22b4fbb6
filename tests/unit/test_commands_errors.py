"""Wrong use, failures, and answers that are only partly there."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from kvm_dbg import cli
from kvm_dbg.commands import COMMANDS
from kvm_dbg.commands.complete import complete_line
from kvm_dbg.commands.open import request_of
from kvm_dbg.commands.parser import CommandParser, Parser
from kvm_dbg.commands.run import run_command, run_line
from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.errors import (
    CommandError,
    CorruptError,
    FileAccessError,
    KernelNotFoundError,
    SymbolNotFound,
    UsageError,
)
from tests.unit.conftest import Little
from tests.writers.system import DATA, GONE, TEXT

Capture = pytest.CaptureFixture[str]


def fail(capsys: Capture, *words: str, status: int) -> tuple[str, str]:
    """Run `kvm-dbg`, which must fail with `status` and one complaint; return its output and the complaint."""
    assert cli.main(words) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("kvm-dbg")
    assert "Traceback" not in captured.err
    return captured.out, captured.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["procs", "IMAGE", "--json", "--csv"], "not allowed with"),
        (["procs", "IMAGE", "--tree", "--threads"], "not allowed with"),
        (["procs", "IMAGE", "--state", "Q"], "'Q': states are R S D"),
        (["procs", "IMAGE", "--state", ""], "states are R S D"),
        (["procs", "IMAGE", "--pid", "init"], "invalid int value: 'init'"),
        (["procs", "IMAGE", "extra"], "unrecognized arguments: extra"),
        (["procs", "IMAGE", "--what"], "unrecognized arguments: --what"),
        (["log", "IMAGE", "--tail", "-1"], "'-1' is not a number"),
        (["log", "IMAGE", "--tail=-1"], "'-1' is not a number"),
        (["log", "IMAGE", "--tail", "\u00b2"], "is not a number"),
        (["log", "IMAGE", "--level", "8"], "levels are emerg"),
        (["log", "IMAGE", "--level", "\u00b2"], "levels are emerg"),
        (["log", "IMAGE", "--grep", "("], "'(': missing )"),
        (["nlist", "IMAGE"], "arguments are required: NAME"),
        (["read", "IMAGE", "0", "1_0"], "'1_0' is not a number"),
        (["read", "IMAGE", "0", "0x10000000000000000"], "does not fit into 64 bits"),
        (["read", "IMAGE", "0", "--phys", "--pid", "1"], "not allowed with"),
        (["write", "IMAGE", "--undo", "--log"], "not allowed with"),
        (["write", "IMAGE", "0", "--u8", "1", "--hex", "00"], "not allowed with"),
        (["args", "IMAGE", "one"], "invalid int value"),
        (["identify"], "arguments are required: FILE"),
        (["sys"], "no image given"),
        (["sys", "--"], "no image given"),
        (["procs", "IMAGE", "--hole", "5"], "is not START-END"),
        (["procs", "IMAGE", "--hole", "0x10-0x10"], "is not START-END"),
        (["procs", "IMAGE", "--base", "-4"], "'-4' is not a number"),
    ],
)
def test_wrong_use_is_status_2_and_shows_the_usage(
    words: list[str], complaint: str, little: Little, capsys: Capture
) -> None:
    out, error = fail(capsys, *(little.image if word == "IMAGE" else word for word in words), status=2)
    assert out == ""
    assert complaint in error
    assert f"usage: kvm-dbg {words[0]}" in error


@pytest.mark.parametrize(
    ("word", "hint"), [("proc", "did you mean procs?"), ("lgo", "did you mean log?"), ("frobnicate", "`help` lists")]
)
def test_an_unknown_command_names_its_neighbours(word: str, hint: str, capsys: Capture) -> None:
    assert hint in fail(capsys, word, status=2)[1]
    assert hint in fail(capsys, "help", word, status=2)[1]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["lwps", "IMAGE", "77"], "no process with PID 77"),
        (["files", "IMAGE", "77"], "no process with PID 77"),
        (["read", "IMAGE", "--pid", "77", "0"], "no process with PID 77"),
        (["read", "IMAGE", "--pid", "2", "0"], "it has no user memory"),
        (["read", "IMAGE", "nowhere"], "no symbol 'nowhere'"),
        (["read", "IMAGE", "a b"], "neither an address nor SYMBOL"),
        (["read", "IMAGE", "text-0xffffffffffffffff"], "does not fit into 64 bits"),
        (["read", "IMAGE", "0x10000000000000000"], "does not fit into 64 bits"),
        (["read", "IMAGE", "0xffffffffffffffff", "2"], "end beyond the last address"),
        (["read", "IMAGE", "--phys", "banner"], "'banner' is not a number"),
        (["write", "IMAGE", "0x1000", "1"], "not the name of a variable: say how many bytes"),
        (["write", "IMAGE", "counter+4", "1"], "not the name of a variable: say how many bytes"),
        (["write", "IMAGE", "--undo"], "nothing was written that could be taken back"),
        (["write", "IMAGE", "--save", "new.json"], "nothing was written that could be kept"),
        (["write", "IMAGE", "counter", "--u8", "256"], "0x100 does not fit into 8 bits"),
        (["write", "IMAGE", "counter", "--u8", "-129"], "does not fit into 8 bits"),
        (["write", "IMAGE", "counter", "--hex", "abc"], "not pairs of hexadecimal digits"),
        (["write", "IMAGE", "counter", "--hex", ""], "between 1 and"),
        (["write", "IMAGE", "0x1000", "--u8", "1"], "is not mapped"),
        (["vtop", "IMAGE", "0x1000"], "is not mapped"),
        (["vtop", "IMAGE", "0x8000000000000000"], "not canonical"),
        (["open", "IMAGE", "--format", "floppy"], "no format is called 'floppy'"),
    ],
)
def test_failures_are_status_1_and_one_line(words: list[str], complaint: str, little: Little, capsys: Capture) -> None:
    _, error = fail(capsys, *(little.image if word == "IMAGE" else word for word in words), status=1)
    assert complaint in error
    assert error.count("\n") == 1


# Partial answers: what is known first, then the error


def test_json_stays_valid_when_rows_fail_midway(little: Little, capsys: Capture) -> None:
    little.system.broken = {"processes"}
    out, error = fail(capsys, "procs", little.image, "--json", status=1)
    assert [row["pid"] for row in json.loads(out)] == [1, 2, 40, 41, 42, 50]
    assert "the list of processes leads nowhere" in error


def test_json_stays_valid_when_nothing_is_found_at_all(little: Little, capsys: Capture) -> None:
    little.system.broken = {"processes"}
    little.system.processes = ()
    assert json.loads(fail(capsys, "procs", little.image, "--json", status=1)[0]) == []


@pytest.mark.parametrize("words", [["procs"], ["procs", "--tree"], ["procs", "--threads"], ["args"], ["env"]])
def test_text_shows_what_was_found_before_the_error(words: list[str], little: Little, capsys: Capture) -> None:
    little.system.broken = {"processes"}
    out, _ = fail(capsys, words[0], little.image, *words[1:], status=1)
    assert "init" in out


@pytest.mark.parametrize("words", [[], ["--tail", "2"], ["--grep", "user"]])
def test_a_log_that_ends_in_an_error_is_shown(words: list[str], little: Little, capsys: Capture) -> None:
    little.system.broken = {"log"}
    out, _ = fail(capsys, "log", little.image, *words, status=1)
    assert "user says" in out
    out, _ = fail(capsys, "log", little.image, "--json", *words, status=1)
    assert json.loads(out)[-1]["seq"] == 2


def test_missing_pids_follow_those_that_exist(little: Little, capsys: Capture) -> None:
    out, error = fail(capsys, "args", little.image, "1", "77", "78", "--json", status=1)
    assert [row["pid"] for row in json.loads(out)] == [1]
    assert "no process with PID 77, 78 in this image" in error


def test_missing_names_follow_those_that_exist(little: Little, capsys: Capture) -> None:
    out, error = fail(capsys, "nlist", little.image, "nowhere", "banner", "--json", status=1)
    assert [(row["name"], row["address"]) for row in json.loads(out)] == [("nowhere", None), ("banner", hex(DATA))]
    assert "1 of 2 names not found: nowhere" in error


def test_missing_bytes_are_dashes_and_an_error(little: Little, capsys: Capture) -> None:
    out, error = fail(capsys, "read", little.image, hex(GONE - 2), "4", "--json", status=1)
    assert json.loads(out)[0]["data"] == "5a5a----"
    assert f"2 of 4 bytes are not in the image or not mapped, the first at {GONE:#x}" in error
    out, _ = fail(capsys, "read", little.image, hex(GONE - 2), "4", status=1)
    assert "5a 5a -- --" in out
    assert "|ZZ--|" in out


def test_csv_ends_after_the_last_row_that_was_found(little: Little, capsys: Capture) -> None:
    little.system.broken = {"modules"}
    out, _ = fail(capsys, "mods", little.image, "--csv", status=1)
    assert [row["name"] for row in csv.DictReader(io.StringIO(out, newline=""))] == ["ext9", "core9"]


def test_a_file_is_not_left_behind_half_written(little: Little, capsys: Capture) -> None:
    fail(capsys, "read", little.image, hex(GONE - 2), "4", "--raw", "out.bin", status=1)
    assert not Path("out.bin").exists()
    Path("there.bin").write_bytes(b"precious")
    _, error = fail(capsys, "read", little.image, hex(TEXT), "4", "--raw", "there.bin", status=1)
    assert "there.bin: File exists" in error
    assert Path("there.bin").read_bytes() == b"precious"


def test_errors_do_not_drive_the_terminal(little: Little, capsys: Capture) -> None:
    little.system.broken = {"load"}
    _, error = fail(capsys, "loadavg", little.image, status=1)
    assert r"leads nowhere\x1b]0;owned\x07\u202e" in error
    assert "\x1b" not in error


# In a debugger: lines instead of words


def open_session(little: Little) -> Session:
    session = Session()
    session.open(OpenRequest((little.image,)))
    return session


def test_lines_are_split_as_a_shell_would(little: Little) -> None:
    session = open_session(little)
    output = "".join(run_line(session, "log --grep 'on fire' --json"))
    assert [row["seq"] for row in json.loads(output)] == [1]
    with pytest.raises(UsageError, match="No closing quotation"):
        list(run_line(session, "log --grep 'on fire"))
    assert "No closing quotation" in session.last_error


def test_an_empty_line_lists_the_commands() -> None:
    assert "procs" in "".join(run_line(Session(), "  "))


def test_without_an_image_a_command_says_what_to_do() -> None:
    for command in COMMANDS:
        if command.needs_kernel:
            words = {"nlist": ["x"], "read": ["0"], "write": ["0", "--u8", "0"], "vtop": ["0"], "vm": ["1"]}
            words |= {"gcore": ["1", "never.core"], "vmlinux": ["-o", "never.elf"], "thread": ["1"]}
            with pytest.raises(CommandError, match="no image is open"):
                list(run_command(Session(), [command.name, *words.get(command.name, [])]))


def test_geterr_repeats_the_last_error(little: Little) -> None:
    session = open_session(little)
    assert "".join(run_line(session, "geterr")) == ""
    with pytest.raises(SymbolNotFound):
        list(run_line(session, "vtop nowhere"))
    assert "".join(run_line(session, "loadavg")) == "0.50 1.25 12.00\n"
    assert "".join(run_line(session, "geterr")) == "no symbol 'nowhere'\n"
    little.system.broken = {"load"}
    with pytest.raises(CorruptError):
        list(run_line(session, "loadavg"))
    assert "\x1b" not in "".join(run_line(session, "geterr"))


def test_a_failed_open_keeps_what_was_open(little: Little) -> None:
    session = open_session(little)
    Path("nothing").write_bytes(Path(little.image).read_bytes())
    with pytest.raises(KernelNotFoundError, match="no kernel is in it"):
        list(run_line(session, "open nothing"))
    assert session.is_open
    assert "0.50" in "".join(run_line(session, "loadavg"))


def test_writes_last_until_the_image_is_closed(little: Little) -> None:
    session = open_session(little)
    list(run_line(session, "write counter --u8 0x41"))
    assert "|A" in "".join(run_line(session, "read counter 4"))
    assert json.loads("".join(run_line(session, "status --json")))["written"] == 1
    list(run_line(session, f"open {little.image}"))
    assert "|." in "".join(run_line(session, "read counter 4"))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["write"], "what to write, and where"),
        (["write", "0"], "write what?"),
        (["write", "counter", "1", "--u8", "1"], "two values"),
        (["write", "counter", "--undo"], "they take no ADDRESS"),
    ],
)
def test_write_says_what_words_are_missing(words: list[str], complaint: str, little: Little, capsys: Capture) -> None:
    assert cli.main([words[0], little.image, *words[1:]]) == 2
    assert complaint in capsys.readouterr().err


def test_writes_are_logged_taken_back_and_kept(little: Little, tmp_path: Path) -> None:
    session = open_session(little)

    def ask(line: str) -> Any:
        return json.loads("".join(run_line(session, f"{line} --json")))

    first, second = ask("write counter --u8 0x41"), ask("write counter --text hi")
    assert (second["old"], second["new"]) == ("410000", "686900")
    log = ask("write --log")
    assert [(row["address"], row["new"]) for row in log] == [(first["address"], "41"), (first["address"], "686900")]
    back = ask("write --undo")
    assert (back["old"], back["new"]) == ("686900", "410000")
    assert ask("write --save kept.json")["size"] == 1
    assert ask("write --undo")["new"] == "00"
    assert ask("status")["written"] == 0
    list(run_line(session, f"open {little.image} --patch kept.json"))
    assert "|A" in "".join(run_line(session, "read counter 4"))
    with pytest.raises(FileAccessError, match="exists"):
        list(run_line(session, "write --save kept.json"))


def test_opening_options_reach_the_kernel(little: Little) -> None:
    session = Session(None, "index", ("configured",))
    list(run_line(session, f"open {little.image} --force --kernel 2 --search here --vmlinux my.elf"))
    options = little.entry.opened[-1]
    assert options["search"] == ("here", "configured")
    assert (options["force"], options["candidate"], options["index_directory"]) == (True, 2, "index")
    assert json.loads("".join(run_line(session, "status --json")))["kernel"] == "my.elf"


def test_two_kernel_files_are_one_too_many(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + b"\x02\x00" + bytes(46))
    parser = Parser("open")
    parser.add_argument("files", nargs="*")
    from kvm_dbg.commands.open import add_open_arguments

    add_open_arguments(parser)
    args = parser.parse_args([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(UsageError, match="two kernel files given"):
        request_of(args, args.files, None)
    with pytest.raises(UsageError, match="is a kernel file"):
        request_of(args, args.files[:1], None)


# Help


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_explains_itself_with_an_example(command: object, capsys: Capture) -> None:
    name = getattr(command, "name")  # noqa: B009 - a parametrised object
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert cli.main(["help", name]) == 0
    assert capsys.readouterr().out == text
    assert text.startswith(f"usage: kvm-dbg {name}")
    assert f"\nexamples:\n  kvm-dbg {name}" in text
    assert "--json" in text
    in_debugger = "".join(run_command(Session(), [name, "-h"]))
    assert f"\nexamples:\n  kvm {name}" in in_debugger
    assert "--vmlinux" not in in_debugger or name == "open"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_examples_are_valid(command: object) -> None:
    examples = getattr(command, "examples")  # noqa: B009
    import shlex

    from kvm_dbg.commands.base import Command

    assert isinstance(command, Command)
    assert examples
    for example in examples:
        name, *words = shlex.split(example)
        assert name == command.name
        CommandParser(command).parse_args(words)


# Completion


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("pr", ["procs"]),
        ("lo", ["loadavg", "log"]),
        ("log --ta", ["--tail"]),
        ("procs --t", ["--threads", "--tree"]),
        ("args 4", ["40", "41", "42"]),
        ("procs --pid ", ["1", "2", "40", "41", "42", "50"]),
        ("read b", ["banner"]),
        ("read banner b", []),
        ("nlist banner te", ["text"]),
        ("read --pid 1 b", ["banner"]),
        ("help log", ["log"]),
        ("log --tail ", []),
        ("procs ", []),
        ("frobnicate x", []),
        ("open --base t", []),
    ],
)
def test_completion(line: str, words: list[str], little: Little) -> None:
    assert complete_line(open_session(little), line) == words


def test_completion_without_an_image() -> None:
    assert complete_line(Session(), "args ") == []
    assert complete_line(Session(), "read b") == []
    assert "procs" in complete_line(Session(), "")


def test_completion_survives_a_broken_list(little: Little) -> None:
    little.system.broken = {"processes"}
    assert complete_line(open_session(little), "args 5") == ["50"]
