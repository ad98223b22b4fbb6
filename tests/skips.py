"""The account of skipped tests: all are printed, and under CI one that nobody has allowed fails the run.

`allowed-skips.txt` lists what may be skipped, one `PATTERN  # REASON` a line. A pattern is a test's id, in which `*`
and `?` stand for any text and any character (brackets mean themselves).
"""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path
from typing import NamedTuple

import pytest

FILE = Path(__file__).with_name("allowed-skips.txt")


class Allowed(NamedTuple):
    """One line of the list: which tests may be skipped, and why that is right."""

    pattern: str
    reason: str


class Skipped(NamedTuple):
    """One test, or one file, that was skipped, and what it said."""

    nodeid: str
    reason: str


def read_allowed(text: str) -> list[Allowed]:
    """Return the lines of the list. Raises ValueError for a pattern without a reason."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        pattern, mark, reason = (part.strip() for part in line.partition("#"))
        if not pattern:
            continue
        if not mark or not reason:
            raise ValueError(f"{FILE.name}, line {number}: {pattern} has no reason behind a '#'")
        found.append(Allowed(pattern, reason))
    return found


def find_allowed(nodeid: str, allowed: list[Allowed]) -> Allowed | None:
    """Return the first line that lets `nodeid` be skipped, or None."""
    for line in allowed:
        if fnmatch.fnmatchcase(nodeid, line.pattern.replace("[", "[[]")):
            return line
    return None


def is_ci() -> bool:
    """Tell whether this is a run of continuous integration, which sets CI=true."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


class Account:
    """Collects the skips of one run."""

    def __init__(self, allowed: list[Allowed]) -> None:
        self.allowed = allowed
        self.skipped: list[Skipped] = []

    def unexpected(self) -> list[Skipped]:
        """Return the skips that no line of the list allows."""
        return [skip for skip in self.skipped if find_allowed(skip.nodeid, self.allowed) is None]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if is_ci() and exitstatus == pytest.ExitCode.OK and self.unexpected():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.skipped:
            return
        unexpected = self.unexpected()
        write = terminalreporter.write_line
        terminalreporter.section(f"skips: {len(self.skipped)}, of them {len(unexpected)} not in {FILE.name}")
        for skip in self.skipped:
            line = find_allowed(skip.nodeid, self.allowed)
            write(f"{'allowed   ' if line else 'UNEXPECTED'} {skip.nodeid}: {skip.reason}")
        if unexpected and is_ci():
            write("This run fails: under CI every skip must be allowed, with a reason.", red=True)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            where = report.longrepr
            reason = str(where[2]) if isinstance(where, tuple) else str(where)
            self.skipped.append(Skipped(report.nodeid, reason.removeprefix("Skipped: ")))


def pytest_configure(config: pytest.Config) -> None:
    allowed = read_allowed(FILE.read_text(encoding="utf-8")) if FILE.is_file() else []
    config.pluginmanager.register(Account(allowed), "skip-account")
