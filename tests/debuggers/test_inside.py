"""What the tests inside gdb rely on: the debugger's own Python, a home of their own, one gdb for each file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.in_gdb


def test_this_is_the_gdb_of_the_name(request: pytest.FixtureRequest) -> None:
    import gdb

    assert f"[gdb-{gdb.VERSION.split('-')[0]}]" in request.node.name


def test_the_home_is_not_the_callers() -> None:
    home = Path(os.environ["HOME"])
    assert list(home.iterdir()) == []
    assert Path(os.environ["XDG_CACHE_HOME"]).name.startswith("debuggers-cache-")


def test_the_python_of_the_package_is_named() -> None:
    assert Path(os.environ["KVM_DBG_TEST_PYTHON"]).is_file()
    assert os.environ["KVM_DBG_TEST_PYTHON"] != sys.executable
