"""What of the adapter exists only inside gdb: its settings, its words, its commands. Run by gdb's own Python."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

# gdb's own import hook lacks a method that Python 3.11 warns of at every import.
pytestmark = [pytest.mark.in_gdb, pytest.mark.filterwarnings("ignore::ImportWarning")]
ADAPTER = Path(__file__).resolve().parents[2] / "gdb" / "kvm_dbg_gdb.py"


@pytest.fixture
def adapter() -> Any:
    """Return the adapter, loaded as a module of its own."""
    spec = importlib.util.spec_from_file_location("kvm_dbg_gdb", ADAPTER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_settings_are_put_back_last_first(adapter: Any) -> None:
    import gdb

    before = (gdb.parameter("remotetimeout"), gdb.parameter("print inferior-events"))
    setup = adapter.Setup()
    setup.change("remotetimeout", "60")
    setup.change("remotetimeout", "unlimited")
    setup.change("print inferior-events", "off")
    setup.change("no such setting", "1")
    assert gdb.parameter("print inferior-events") is False
    setup.restore()
    assert (gdb.parameter("remotetimeout"), gdb.parameter("print inferior-events")) == before


@pytest.mark.parametrize("path", ["/plain", "/with space", "/with 'quotes\" and\\slash"])
def test_a_quoted_path_is_one_word(adapter: Any, path: str) -> None:
    from kvm_dbg_gdb_setting import quoted  # type: ignore[import-not-found]

    assert adapter.split_words(quoted(path)) == [path]


def test_sourcing_leaves_the_module_path_alone(adapter: Any) -> None:
    assert str(ADAPTER.parent) not in sys.path


def test_the_server_does_not_inherit_the_debuggers_python(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import kvm_dbg_client  # type: ignore[import-not-found]

    for name in ("PYTHONHOME", "PYTHONNOUSERSITE"):
        monkeypatch.setenv(name, "/of/the/debugger")
    monkeypatch.setenv("PYTHONPATH", "/of/the/debugger")
    environment = kvm_dbg_client.server_environment()
    assert "PYTHONHOME" not in environment
    assert "PYTHONNOUSERSITE" not in environment
    assert environment["PYTHONPATH"] == str(ADAPTER.parents[1])


def test_commands_are_there_before_anything_is_open(adapter: Any) -> None:
    import gdb

    listed = str(gdb.execute("help kvm", False, True))
    for name in ("open", "close", "status", "geterr", "help", "procs", "bt", "thread"):
        assert f"\nkvm {name} -- " in listed
    with pytest.raises(gdb.error, match="no kernel image is open"):
        gdb.execute("kvm procs")


def test_a_setting_of_our_own(adapter: Any) -> None:
    import gdb

    assert gdb.parameter("kvm batch-exit") is True
    gdb.execute("set kvm batch-exit off")
    assert adapter.gdb.kvm_dbg_session.batch_exit is False
    gdb.execute("set kvm batch-exit on")
    adapter.gdb.kvm_dbg_session.failed = False  # the failures above are not this run's
