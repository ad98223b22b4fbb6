"""What gdb executes (`gdb -batch -x bootstrap.py`) to run pytest in its own Python.

The orders lie in the JSON file that the environment variable KVM_DBG_INSIDE names; see `session.py`, which writes it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> int:
    """Run the ordered tests and return pytest's exit status."""
    orders = json.loads(Path(os.environ["KVM_DBG_INSIDE"]).read_text(encoding="utf-8"))
    sys.path[:0] = [orders["site"], orders["harness"]]
    sys.argv = ["pytest"]  # what gdb leaves there is not pytest's business

    import pytest

    from tests.debuggers.inside import Inside

    with Path(orders["reports"]).open("a", encoding="utf-8") as reports, Path(orders["trace"]).open("w") as trace:
        arguments = [
            "--rootdir=" + orders["rootdir"],
            "--config-file=" + orders["config"],
            *orders["arguments"],
            "-p",
            "no:cacheprovider",
            "-o",
            "faulthandler_timeout=0",  # the outer half has its own limit
            "--capture=no",
            "-q",
            *orders["tests"],
        ]
        inside = Inside(reports, trace, Path(orders["output"]), orders["timeout"])
        return int(pytest.main(arguments, plugins=[inside]))


STATUS = main()
import gdb  # noqa: E402 - the debugger's own module: this file runs nowhere else

gdb.execute(f"quit {STATUS}")
