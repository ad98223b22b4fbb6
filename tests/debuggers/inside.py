"""The half of the harness that runs in the debugger: pytest's reports leave it as one JSON object a line.

Three kinds of line: `{"start": nodeid}`, `{"report": {...}}` (pytest's own serial form of a TestReport), and
`{"collect": text}` for a file that could not be collected. Each is written out at once, so that the outer half knows
after a crash what was running.
"""

from __future__ import annotations

import faulthandler
import json
from collections.abc import Generator
from pathlib import Path
from typing import TextIO

import pytest

STACKS_BEFORE_END = 2.0
"""Seconds before the outer half loses patience at which the stacks of a hanging test are written."""


class Inside:
    """The plugin of the inner session; `output` is the file that the debugger writes to."""

    def __init__(self, reports: TextIO, trace: TextIO, output: Path, timeout: float) -> None:
        self._reports = reports
        self._trace = trace
        self._output = output
        self._stacks_after = max(0.5, timeout - STACKS_BEFORE_END)
        self._config: pytest.Config | None = None

    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        faulthandler.dump_traceback_later(self._stacks_after, file=self._trace)
        self._write("start", nodeid)

    def pytest_runtest_logfinish(self) -> None:
        faulthandler.cancel_dump_traceback_later()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        assert self._config is not None
        self._write("report", self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write("collect", report.longreprtext)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._captured(item, "setup"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._captured(item, "call"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._captured(item, "teardown"))

    def _captured(self, item: pytest.Item, when: str) -> Generator[None, object, object]:
        """Add to the report of a phase what Python and the debugger write while it runs.

        Both outputs of the debugger are one file, in which the text stays, in order, should the debugger crash.
        """
        start = self._output_size()
        try:
            return (yield)
        finally:
            text = self._output_from(start, self._output_size())
            if text:
                item.add_report_section(when, "output", text)

    def _output_size(self) -> int:
        """Let gdb write out what it buffers, and return how long the output is, in bytes."""
        import gdb

        gdb.flush(gdb.STDOUT)
        gdb.flush(gdb.STDERR)
        return self._output.stat().st_size

    def _output_from(self, start: int, end: int) -> str:
        with self._output.open("rb") as stream:
            stream.seek(start)
            return stream.read(end - start).decode(errors="replace")

    def _write(self, kind: str, value: object) -> None:
        self._reports.write(json.dumps({kind: value}) + "\n")
        self._reports.flush()
