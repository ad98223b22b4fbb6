"""halt and resume: the machine behind an image."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvm_dbg import cli
from kvm_dbg.commands.run import run_line
from kvm_dbg.commands.session import OpenRequest, Session
from kvm_dbg.errors import CommandError
from tests.unit.conftest import Little, LittleMachine

Capture = pytest.CaptureFixture[str]


def ask(capsys: Capture, *words: str) -> Any:
    assert cli.main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_halt_and_resume(little: Little, machine: LittleMachine, capsys: Capture) -> None:
    assert ask(capsys, "status", little.image)["running"] is True
    assert ask(capsys, "halt", little.image) == {"image": [little.image], "running": False}
    assert not machine.running
    assert ask(capsys, "sys", little.image)["running"] is False
    assert cli.main(["resume", little.image]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "running: yes"
    assert machine.running


def test_a_dump_has_no_machine(little: Little, capsys: Capture) -> None:
    assert ask(capsys, "status", little.image)["running"] is None
    session = Session()
    session.open(OpenRequest((little.image,)))
    with pytest.raises(CommandError, match="there is no machine that could be halted: a virtual one can"):
        list(run_line(session, "halt"))
    session.close()
