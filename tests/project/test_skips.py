"""The account of skipped tests: what CI lets pass and what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.debuggers.test_harness import run_suite
from tests.skips import Allowed, find_allowed, read_allowed

TWO_SKIPS = """
import pytest
def test_passes(): pass
@pytest.mark.parametrize("n", [1, 2])
def test_skips(n): pytest.skip(f"reason {n}")
"""


def test_the_list_has_patterns_and_reasons() -> None:
    text = "# a comment\n\ntests/a.py::test_x[gdb-*]  # no such gdb  \n"
    assert read_allowed(text) == [Allowed("tests/a.py::test_x[gdb-*]", "no such gdb")]


def test_a_pattern_without_a_reason_is_refused() -> None:
    with pytest.raises(ValueError, match=r"line 2: tests/b\.py has no reason"):
        read_allowed("tests/a.py # fine\ntests/b.py\n")


@pytest.mark.parametrize(
    ("nodeid", "allowed"),
    [
        ("tests/a.py::test_x[gdb-13.1]", True),
        ("tests/a.py::test_x[lldb-13.1]", False),
        ("tests/a.py::test_xg", False),
    ],
)
def test_brackets_mean_themselves(nodeid: str, allowed: bool) -> None:
    assert (find_allowed(nodeid, [Allowed("tests/a.py::test_x[gdb-*]", "why")]) is not None) is allowed


@pytest.mark.parametrize(("ci", "status"), [("true", 1), ("", 0)])
def test_an_unexpected_skip_fails_only_ci(tmp_path: Path, ci: str, status: int) -> None:
    done = run_suite(tmp_path, {"test_a.py": TWO_SKIPS}, CI=ci)
    assert done.returncode == status
    assert "skips: 2, of them 2 not in allowed-skips.txt" in done.text
    assert "UNEXPECTED test_a.py::test_skips[1]: reason 1" in done.text


def test_a_skipped_file_counts(tmp_path: Path) -> None:
    text = "import pytest\npytest.importorskip('no_such_module')\n"
    done = run_suite(tmp_path, {"test_a.py": "def test_a(): pass", "test_b.py": text}, CI="true")
    assert done.returncode == 1
    assert "UNEXPECTED test_b.py: could not import 'no_such_module'" in done.text
