"""The client of the Debug Adapter Protocol: a talk with each gdb that speaks it."""

from __future__ import annotations

import pytest

from tests.debuggers.child import ChildTimeoutError
from tests.debuggers.dap import DapError
from tests.debuggers.driver import Gdb


def test_a_talk_with_gdb(gdb_with_dap: Gdb) -> None:
    dap = gdb_with_dap.dap()
    assert dap.request("initialize", {"adapterID": "test"})["supportsConfigurationDoneRequest"] is True
    dap.wait_event("initialized")
    assert "\n42\n" in "\n" + dap.evaluate("python print(6 * 7)")
    with pytest.raises(DapError, match=r"^evaluate: .*[Uu]ndefined command"):
        dap.evaluate("nonsense")
    with pytest.raises(ChildTimeoutError, match="no answer"):
        dap.wait_event("never sent", timeout=0.2)
