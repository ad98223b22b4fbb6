"""The tutorial shows what the program prints: its commands are run on the dump that comes with the project."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sample import unpack_sample

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(r"^```console\n\$ kvm-dbg (?!gdb )([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def bookshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bookshop")
    unpack_sample(directory)
    return directory


def test_the_tutorial_has_commands() -> None:
    assert len(BLOCK.findall(PAGE)) > 6


@pytest.mark.parametrize(("words", "shown"), BLOCK.findall(PAGE))
def test_the_tutorial_is_real(words: str, shown: str, bookshop: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvm_dbg.cli", *shlex.split(words)],
        cwd=bookshop,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(bookshop / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == shown
    assert done.returncode == 0
