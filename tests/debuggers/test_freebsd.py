"""Every debugger on FreeBSD's dumps, whose kernel file has neither code nor debug information: threads and stacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.debuggers.debugger import Found
from tests.debuggers.neutral import Answers, Subject, kvm, kvm_open, step
from tests.debuggers.plugin import CACHE
from tests.shared import shared_data, unpack

DUMPS = ("vmcore-amd64-full", "vmcore-amd64-minidump")
HZ_ADDRESS = 0xFFFFFFFF81CD4C0C  # in the kernel file's symbol table
Expected = dict[str, Any]


@pytest.fixture(scope="module")
def kernel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(shared_data("freebsd") / "kernel-amd64.xz", tmp_path_factory.mktemp("freebsd-kernel"))


@pytest.fixture(scope="module", params=DUMPS)
def asked(
    request: pytest.FixtureRequest,
    debugger: Found,
    kernel_file: Path,
    pytestconfig: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Answers, Expected]:
    """Open a dump in a debugger, once, and ask everything."""
    folder, directory = shared_data("freebsd"), tmp_path_factory.mktemp("freebsd")
    dump = unpack(folder / f"{request.param}.bz2", directory)
    expected: Expected = json.loads((folder / "expected.json").read_text())[request.param]
    steps = {
        "open": kvm_open(kernel_file, dump),
        "threads": step("threads"),
        "stacks": step("stacks"),
        "hz": step("read", HZ_ADDRESS, 4),
        "end": kvm("close"),
    }
    with Subject(debugger, directory, pytestconfig.stash[CACHE]) as subject:
        answers = subject.ask(steps)
    dump.unlink()
    return answers, expected


def test_threads_have_the_names_of_freebsds_own_debuggers(asked: tuple[Answers, Expected]) -> None:
    answers, expected = asked
    names = [thread.name for thread in answers.threads("threads")]
    assert len(names) == expected["threads"]
    assert {number: names[int(number)] for number in expected["thread"]} == {
        number: thread["name"] for number, thread in expected["thread"].items()
    }


def test_stacks_follow_the_frame_pointers_and_end(asked: tuple[Answers, Expected]) -> None:
    answers, expected = asked
    ids = [thread.id for thread in answers.threads("threads")]
    stacks = answers.stacks("stacks")
    for number, thread in expected["thread"].items():
        assert [f"{frame.pc:#x}" for frame in stacks[ids[int(number)]]] == thread["pc"]


def test_variables_are_the_images(asked: tuple[Answers, Expected]) -> None:
    answers, expected = asked
    assert answers["hz"] == expected["hz"].to_bytes(4, "little").hex()
