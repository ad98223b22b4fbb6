"""The gdb adapter over the Debug Adapter Protocol."""

from __future__ import annotations

from pathlib import Path

from tests.debuggers.conftest import SOURCE, use_stand_in
from tests.debuggers.driver import Gdb


def test_output_of_commands_is_the_answer(gdb_with_dap: Gdb, tmp_path: Path) -> None:
    use_stand_in(gdb_with_dap, tmp_path)
    dap = gdb_with_dap.dap()
    dap.request("initialize", {"adapterID": "test"})
    dap.evaluate(SOURCE)
    dap.evaluate(f"kvm open {tmp_path}/image")
    assert dap.evaluate("kvm loadavg") == "0.50 1.25 2.00\n"
    names = {thread["name"] for thread in dap.request("threads")["threads"]}
    assert {"init/1", "kthreadd/2", "swapper/1/0"} <= names
