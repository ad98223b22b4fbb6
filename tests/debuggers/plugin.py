"""The pytest plugin of the debugger tests.

Inside: a test marked `@pytest.mark.in_gdb` is run by pytest inside gdb's embedded Python, once for each gdb of the
list in `debugger.py`, and stands in this run as `test_x[gdb-13.1]` like any other. All such tests of one file share
one gdb for each version, which is started when the first of them is due. `in_gdb(timeout=N)` sets the seconds that
one test may take.

Outside: the fixtures `gdb` and `gdb_with_dap` hand out one gdb after the other, to be driven in batch mode or over
MI and DAP, and the fixture `lldb` one lldb after the other, in batch mode; see `driver.py`.

A debugger that is missing skips its tests with the reason.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.debuggers.child import TIMEOUT
from tests.debuggers.debugger import Debugger, Found, by_name, find, find_site, of_kind
from tests.debuggers.driver import Gdb, Lldb
from tests.debuggers.session import Outcome, Place, run_inside

MARKER = "in_gdb"
PARAMETER = "_in_gdb"
INSIDE = "KVM_DBG_INSIDE"
CACHE = pytest.StashKey[Path]()
"""The caches that all debuggers of this run share; see `driver.py`."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARKER}(timeout=seconds): run by pytest inside gdb's embedded Python")
    if INSIDE not in os.environ:
        config.stash[CACHE] = Path(tempfile.mkdtemp(prefix="debuggers-cache-"))
        config.pluginmanager.register(Outside(config), "debuggers-outside")


def pytest_unconfigure(config: pytest.Config) -> None:
    if CACHE in config.stash:
        shutil.rmtree(config.stash[CACHE], ignore_errors=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker(MARKER):
        metafunc.fixturenames.append(PARAMETER)
        names = [debugger.name for debugger in of_kind("gdb")]
        metafunc.parametrize(PARAMETER, names, ids=names, indirect=True)


@pytest.fixture(name=PARAMETER)
def _in_gdb(request: pytest.FixtureRequest) -> str:
    """Return the name of the gdb that a marked test is for."""
    return str(request.param)


@pytest.fixture(params=of_kind("gdb"), ids=lambda debugger: debugger.name)
def gdb(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Gdb]:
    """Return a gdb to drive from outside; the test runs once for each gdb."""
    yield from _driver(request.param, tmp_path, request.config.stash[CACHE])


@pytest.fixture(params=of_kind("gdb", dap=True), ids=lambda debugger: debugger.name)
def gdb_with_dap(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Gdb]:
    """Return a gdb that speaks the Debug Adapter Protocol; the test runs once for each."""
    yield from _driver(request.param, tmp_path, request.config.stash[CACHE])


@pytest.fixture(params=of_kind("lldb"), ids=lambda debugger: debugger.name)
def lldb(request: pytest.FixtureRequest, tmp_path: Path) -> Lldb:
    """Return an lldb to drive from outside; the test runs once for each lldb."""
    found = find(request.param)
    if not isinstance(found, Found):
        pytest.skip(found.reason)
    return Lldb(found, tmp_path / "home", request.config.stash[CACHE])


def _driver(debugger: Debugger, folder: Path, cache: Path) -> Iterator[Gdb]:
    found = find(debugger)
    if not isinstance(found, Found):
        pytest.skip(found.reason)
    with Gdb(found, folder / "home", cache) as driver:
        yield driver


class Outside:
    """The outer half: gives the marked tests to debuggers and reports what became of them."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._outcomes: dict[str, list[pytest.TestReport]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Take the marked tests out of pytest's hands; leave all others to it."""
        if not item.get_closest_marker(MARKER):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        if item.nodeid not in self._outcomes:
            self._run_group(item)
        for report in self._outcomes.pop(item.nodeid):
            item.ihook.pytest_runtest_logreport(report=report)
        # The fixtures of wider scope that end here, although the test itself needed none of them in this process.
        ended = _report(item, "teardown", lambda: item.session._setupstate.teardown_exact(nextitem))
        if ended.failed:
            item.ihook.pytest_runtest_logreport(report=ended)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _run_group(self, first: pytest.Item) -> None:
        """Run the tests of the file of `first` that are for the same gdb, and keep their reports."""
        name = _debugger_of(first)
        items = {
            item.nodeid: item
            for item in first.session.items
            if item.get_closest_marker(MARKER) and item.path == first.path and _debugger_of(item) == name
        }
        found = find(by_name(name))
        reason = found.reason if not isinstance(found, Found) else ""
        site = find_site(found.python) if isinstance(found, Found) else None
        if isinstance(found, Found) and site is None:
            reason = f"no pytest for the Python {found.python} of {name} in the cache directory; run ./test"
        if not isinstance(found, Found) or site is None:
            for nodeid, item in items.items():
                self._outcomes[nodeid] = [_report(item, "setup", lambda: pytest.skip(reason))]
            return
        place = Place(self._config.rootpath, self._config.inipath, self._config.stash[CACHE], _handed_on(self._config))
        timeout = max(_timeout_of(item) for item in items.values())
        waiting = dict(items)
        while waiting:
            outcome = run_inside(found, site, place, list(waiting), timeout)
            self._take(outcome, name, waiting)

    def _take(self, outcome: Outcome, name: str, waiting: dict[str, pytest.Item]) -> None:
        """Move the tests that `outcome` decides, at least one, from `waiting` to the outcomes."""
        before = len(waiting)
        for nodeid, reports in outcome.reports.items():
            if waiting.pop(nodeid, None) is not None:
                self._outcomes[nodeid] = [self._restore(report) for report in reports]
        trouble = f"{name} {outcome.trouble or 'ran pytest without running this test'}"
        if outcome.started in waiting:
            self._fail(waiting.pop(outcome.started), trouble)
        elif len(waiting) == before or outcome.trouble is None:
            while waiting:
                self._fail(waiting.popitem()[1], trouble)

    def _restore(self, data: dict[str, Any]) -> pytest.TestReport:
        """Return the report that the inner half wrote as `data`."""
        if isinstance(data["longrepr"], list):  # where a skip comes from, a tuple before it was JSON
            data["longrepr"] = tuple(data["longrepr"])
        report: pytest.TestReport = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
        return report

    def _fail(self, item: pytest.Item, text: str) -> None:
        self._outcomes[item.nodeid] = [_report(item, "call", lambda: pytest.fail(text, pytrace=False))]


def _report(item: pytest.Item, when: str, action: Callable[[], object]) -> pytest.TestReport:
    """Return the report of a phase of `item` in which `action` is done."""
    call = pytest.CallInfo.from_call(action, when=when)  # type: ignore[arg-type]  # one of pytest's own words
    report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
    return report


def _debugger_of(item: pytest.Item) -> str:
    assert isinstance(item, pytest.Function)
    return str(item.callspec.params[PARAMETER])


def _timeout_of(item: pytest.Item) -> float:
    marker = item.get_closest_marker(MARKER)
    return float(marker.kwargs.get("timeout", TIMEOUT)) if marker else TIMEOUT


def _handed_on(config: pytest.Config) -> tuple[str, ...]:
    """Return the options of this run that the inner ones take over."""
    return tuple(f"--tb={style}" for style in [config.getoption("tbstyle")] if style != "auto")
