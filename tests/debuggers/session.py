"""One pytest session inside one debugger, seen from outside: start it, follow its reports, end it when it hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.debuggers.child import kill_group
from tests.debuggers.debugger import ROOT, Found, cache_directory, clean_environment

BOOTSTRAP = Path(__file__).resolve().with_name("bootstrap.py")
POLL_SECONDS = 0.02
START_SECONDS = 60.0
"""How long a debugger may take before its first test starts and after its last one ended."""


class Outcome(NamedTuple):
    """What one session left.

    `reports` has, for each test that ran to its end, pytest's serial reports in order of phases; `started` is the test
    that was running when the debugger went away, or None; `trouble` says what went wrong with the debugger itself.
    """

    reports: dict[str, list[dict[str, Any]]]
    started: str | None
    trouble: str | None


class Place(NamedTuple):
    """Where the tests come from and live.

    pytest's root directory, its configuration file, the caches that the run's debuggers share, and options to hand on.
    """

    rootdir: Path
    config: Path | None
    cache: Path
    arguments: tuple[str, ...]


def run_inside(found: Found, site: Path, place: Place, tests: Sequence[str], timeout: float) -> Outcome:
    """Run the node ids `tests` by pytest inside `found`; `timeout` is in seconds and for each single test."""
    with tempfile.TemporaryDirectory(prefix=f"{found.debugger.name}-") as name:
        folder = Path(name)
        home = folder / "home"
        home.mkdir()
        orders = folder / "orders.json"
        reports, trace, output = folder / "reports", folder / "trace", folder / "output"
        reports.touch()
        orders.write_text(
            json.dumps(
                {
                    "site": str(site),
                    "harness": str(ROOT),
                    "rootdir": str(place.rootdir),
                    "config": str(place.config or os.devnull),
                    "arguments": [*place.arguments, f"--basetemp={folder / 'basetemp'}"],
                    "tests": list(tests),
                    "reports": str(reports),
                    "trace": str(trace),
                    "output": str(output),
                    "timeout": timeout,
                }
            ),
            encoding="utf-8",
        )
        environment = clean_environment(home, place.cache)
        environment.setdefault("KVM_DBG_LAB_CACHE", str(cache_directory() / "lab"))
        environment.update(KVM_DBG_INSIDE=str(orders), KVM_DBG_TEST_PYTHON=sys.executable)
        command = [found.program, "-nx", "-batch", "-x", str(BOOTSTRAP)]
        with output.open("wb") as sink:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=place.rootdir,
                start_new_session=True,
            )
            follower = _Follower(reports)
            try:
                late = _wait(process, follower, timeout)
            finally:
                kill_group(process)
        return follower.outcome(late, process.returncode, _tail(output), _tail(trace))


class _Follower:
    """Reads the lines that the inner half writes, as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self.reports: dict[str, list[dict[str, Any]]] = {}
        self.started: str | None = None
        self.collect: list[str] = []

    def advance(self) -> bool:
        """Take the complete lines that are new; tell whether there were any."""
        with self._path.open("rb") as stream:
            stream.seek(self._read)
            data = stream.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._read += len(complete)
        for line in complete.splitlines():
            ((kind, value),) = json.loads(line).items()
            if kind == "start":
                self.started = value
            elif kind == "collect":
                self.collect.append(value)
            else:
                self.reports.setdefault(value["nodeid"], []).append(value)
                if value["when"] == "teardown":
                    self.started = None
        return bool(complete)

    def outcome(self, late: float | None, status: int, output: str, trace: str) -> Outcome:
        """Return the outcome of a session that has ended with exit status `status`, or was killed `late` seconds."""
        self.advance()
        if self.started is not None:
            self.reports.pop(self.started, None)
        trouble = None
        if late is not None:
            trouble = f"was killed after {late:g} s without progress"
        elif status < 0:
            trouble = f"died of signal {-status}"
        elif self.started is not None or status not in (0, 1):
            trouble = f"ended with exit status {status}"
        if trouble is not None:
            for title, text in (("collecting", "\n".join(self.collect)), ("output", output), ("stacks", trace)):
                if text.strip():
                    trouble += f"\n--- {title} ---\n{text.strip()}"
        return Outcome(self.reports, self.started, trouble)


def _wait(process: subprocess.Popen[bytes], follower: _Follower, timeout: float) -> float | None:
    """Wait for the end of `process`; return None, or the seconds without progress after which to give up."""
    progress = time.monotonic()
    while process.poll() is None:
        if follower.advance():
            progress = time.monotonic()
        limit = timeout if follower.started is not None else START_SECONDS
        if time.monotonic() - progress > limit:
            return limit
        time.sleep(POLL_SECONDS)
    return None


def _tail(path: Path, size: int = 8000) -> str:
    """Return the last `size` bytes of a file as text, or "" if there is none."""
    return path.read_bytes()[-size:].decode(errors="replace") if path.is_file() else ""
