"""The commands as the adapters know them without a server: the same as the package's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from kvm_dbg.commands import COMMANDS, find_command

FILE = Path(__file__).resolve().parents[2] / "gdb" / "kvm_dbg_command.py"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("kvm_dbg_command", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_names_and_summaries_are_the_packages() -> None:
    expected = tuple((command.name, command.summary) for command in COMMANDS)
    assert list(load().COMMANDS) == list(expected)


def test_the_list_has_them_all_and_says_how_to_begin() -> None:
    lines = load().list_commands().splitlines()
    assert [line.split()[0] for line in lines] == ["COMMAND", *(command.name for command in COMMANDS), "note:"]
    assert "`kvm open [VMLINUX] IMAGE...`" in lines[-1]


def test_help_grows_by_what_a_server_knows() -> None:
    module, bt = load(), find_command("bt")
    short = module.help_of("bt", bt.summary)
    facts = {"description": bt.description, "examples": list(bt.examples)}
    long = module.help_of("bt", bt.summary, facts)
    assert short.splitlines()[0] == long.splitlines()[0] == f"{bt.summary}."
    assert bt.description not in short
    assert bt.description in long
    assert all(f"\n  kvm {example}" in long for example in bt.examples)


def test_a_thread_is_asked_for_by_one_number() -> None:
    request = load().thread_request
    assert request(["42"]) == {"select": 42}
    assert [request(words) for words in ([], ["1", "2"], ["-1"], ["init"], ["0x10"])] == [None] * 5
