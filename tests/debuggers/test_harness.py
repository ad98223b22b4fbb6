"""The harness itself: every fate of a test inside gdb is reported as what it is."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.debuggers.child import ChildTimeoutError, Dialogue, run
from tests.debuggers.debugger import ROOT, Debugger, Found, Missing, cache_directory, clean_environment, find, of_kind
from tests.debuggers.driver import Gdb

SUITE = """
import os, time
import pytest

pytestmark = pytest.mark.in_gdb(timeout=4)

@pytest.fixture
def broken():
    raise ValueError("broken fixture")

@pytest.fixture
def leaking():
    yield
    raise ValueError("broken teardown")

def test_passes():
    import gdb
    assert int(gdb.parse_and_eval("6 * 7")) == 42

@pytest.mark.parametrize("number", [1, 2])
def test_fails_for_two(number, tmp_path):
    import gdb
    print("python wrote", number)
    gdb.execute("echo gdb wrote\\\\n")
    assert number == 1

def test_is_skipped():
    pytest.skip("a reason to skip")

def test_has_an_error(broken):
    pass

def test_ends_badly(leaking):
    pass

def test_hangs():
    time.sleep(600)

def test_crashes():
    os.write(2, b"last words")
    os.abort()

def test_after_a_crash():
    pass

def test_quits():
    import gdb
    gdb.execute("quit 0")

def test_after_a_quit():
    pass
"""


class Run(NamedTuple):
    """A finished outer run: the fates of its tests by node id, and all that it printed."""

    returncode: int
    fates: dict[str, list[str]]
    text: str

    def section(self, title: str) -> str:
        """Return what was printed about one test: from its ruler to the next."""
        told = re.search(rf"^_+ {re.escape(title)} _+$(.*?)(?=^[_=]{{3,}} )", self.text, re.MULTILINE | re.DOTALL)
        assert told is not None, f"nothing printed about {title}"
        return told[1]


def run_suite(folder: Path, files: dict[str, str], **environment: str) -> Run:
    """Run pytest on `files` with the plugin in a process of its own."""
    plugins = "-p tests.debuggers.plugin -p tests.skips -p no:cacheprovider"
    (folder / "pytest.ini").write_text(f"[pytest]\naddopts = {plugins} --import-mode=importlib\n")
    for name, text in files.items():
        (folder / name).write_text(text)
    env = clean_environment() | {"PYTHONPATH": str(ROOT), "CI": ""} | environment
    result = run([sys.executable, "-m", "pytest", "-v", "-rA"], env=env, cwd=str(folder), timeout=300)
    fates: dict[str, list[str]] = {}
    for nodeid, fate in re.findall(r"^(\S+\.py::\S+) (PASSED|FAILED|SKIPPED|ERROR)", result.stdout, re.MULTILINE):
        fates.setdefault(nodeid, []).append(fate)
    return Run(result.returncode, fates, result.stdout + result.stderr)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_suite(tmp_path_factory.mktemp("suite"), {"test_inner.py": SUITE})


@pytest.fixture(params=of_kind("gdb"), ids=lambda debugger: debugger.name)
def name(request: pytest.FixtureRequest) -> str:
    """Return the name of a gdb that is here."""
    found = find(request.param)
    if isinstance(found, Missing):
        pytest.skip(found.reason)
    return found.debugger.name


@pytest.mark.parametrize(
    ("test", "fates"),
    [
        ("test_passes[{}]", ["PASSED"]),
        ("test_fails_for_two[{}-1]", ["PASSED"]),
        ("test_fails_for_two[{}-2]", ["FAILED"]),
        ("test_is_skipped[{}]", ["SKIPPED"]),
        ("test_has_an_error[{}]", ["ERROR"]),
        ("test_ends_badly[{}]", ["PASSED", "ERROR"]),
        ("test_hangs[{}]", ["FAILED"]),
        ("test_crashes[{}]", ["FAILED"]),
        ("test_after_a_crash[{}]", ["PASSED"]),
        ("test_quits[{}]", ["FAILED"]),
        ("test_after_a_quit[{}]", ["PASSED"]),
    ],
)
def test_each_fate_is_reported_once(suite: Run, name: str, test: str, fates: list[str]) -> None:
    assert suite.fates[f"test_inner.py::{test.format(name)}"] == fates
    assert suite.returncode == 1


def test_a_failure_shows_its_source_and_all_output_in_order(suite: Run, name: str) -> None:
    text = suite.section(f"test_fails_for_two[{name}-2]")
    assert "assert 2 == 1" in text
    assert "python wrote 2\ngdb wrote\n" in text


def test_a_hang_names_its_line(suite: Run, name: str) -> None:
    text = suite.section(f"test_hangs[{name}]")
    assert f"{name} was killed after 4 s without progress" in text
    assert re.search(r'File ".*test_inner.py", line \d+ in test_hangs', text)


def test_a_crash_shows_the_last_words(suite: Run, name: str) -> None:
    text = suite.section(f"test_crashes[{name}]")
    assert f"{name} died of signal 6" in text
    assert "last words" in text
    assert re.search(r'File ".*test_inner.py", line \d+ in test_crashes', text)


def test_a_quit_is_not_a_pass(suite: Run, name: str) -> None:
    assert f"{name} ended with exit status 0" in suite.section(f"test_quits[{name}]")


def test_a_skip_keeps_its_reason(suite: Run, name: str) -> None:
    assert f"UNEXPECTED test_inner.py::test_is_skipped[{name}]: a reason to skip" in suite.text


def test_fixtures_of_other_tests_are_ended_around_inner_ones(tmp_path: Path, name: str) -> None:
    mixed = """
import pytest

@pytest.fixture(scope="module")
def shared():
    yield
    print("ended")

def test_before(shared): pass

@pytest.mark.in_gdb
def test_inside(): pass
"""
    (tmp_path / "folder").mkdir()
    done = run_suite(tmp_path, {"folder/test_a.py": mixed, "test_b.py": "def test_outside(): pass"})
    assert done.returncode == 0, done.text
    assert done.fates[f"folder/test_a.py::test_inside[{name}]"] == ["PASSED"]
    assert done.fates["test_b.py::test_outside"] == ["PASSED"]


def test_a_file_that_breaks_in_gdb_fails_its_tests_with_the_reason(tmp_path: Path, name: str) -> None:
    text = "import sys\nif 'gdb' in sys.modules: raise OSError('only inside')\nimport pytest\n"
    done = run_suite(tmp_path, {"test_a.py": text + "@pytest.mark.in_gdb\ndef test_inside(): pass\n"})
    assert done.fates[f"test_a.py::test_inside[{name}]"] == ["FAILED"]
    assert "OSError: only inside" in done.section(f"test_inside[{name}]")


def test_missing_debuggers_skip_with_advice(tmp_path: Path) -> None:
    gone = {debugger.variable: "/nonexistent/gdb" for debugger in of_kind("gdb")}
    text = "import pytest\n@pytest.mark.in_gdb\ndef test_inside(): pass\ndef test_outside(gdb): pass\n"
    done = run_suite(tmp_path, {"test_a.py": text}, **gone)
    assert set(map(tuple, done.fates.values())) == {("SKIPPED",)}
    assert len(done.fates) == 2 * len(of_kind("gdb"))
    assert "/nonexistent/gdb is not there; run ./test, or name it in KVM_DBG_GDB13" in done.text


def test_another_version_is_not_taken_for_the_one_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [found for found in map(find, of_kind("gdb")) if isinstance(found, Found)]
    if not here:
        pytest.skip("no gdb is here at all")
    monkeypatch.setenv("KVM_DBG_GDB_TEST", here[0].program)
    found = find(Debugger("gdb", "1.0", "KVM_DBG_GDB_TEST", (), dap=False))
    assert isinstance(found, Missing)
    assert f"{here[0].program} is version {here[0].debugger.version}" in found.reason


def test_batch_runs_are_isolated_and_complete(gdb: Gdb) -> None:
    result = gdb.run(["echo one\\n", "python import os; print(os.environ['HOME'])", "print 6 * 7"])
    assert result.returncode == 0
    assert result.stdout == f"one\n{gdb.home}\n$1 = 42\n"
    assert Path(gdb.env["XDG_CACHE_HOME"]) not in (cache_directory(), cache_directory().parent)
    assert gdb.run(["nonsense"]).returncode == 1


def test_a_batch_run_that_hangs_is_ended(gdb: Gdb) -> None:
    with pytest.raises(ChildTimeoutError, match=r"not done after 2 s(.|\n)*begun"):
        gdb.run(["shell echo begun", "shell sleep 100"], timeout=2)


def test_a_dialogue_tells_an_end_from_silence(tmp_path: Path) -> None:
    with Dialogue(["sh", "-c", "echo oops >&2; exit 3"], env=clean_environment(tmp_path)) as ended:
        assert ended.wait() == 3
        with pytest.raises(EOFError, match="oops"):
            ended.read_exactly(1, time.monotonic() + 60)
    with (
        Dialogue(["sleep", "100"], env=clean_environment(tmp_path)) as silent,
        pytest.raises(ChildTimeoutError, match="no answer"),
    ):
        silent.read_line(0.0)
