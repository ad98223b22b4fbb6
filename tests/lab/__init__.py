"""The lab: makes real crash dumps of real kernels, with the guest's own word for what is in them.

    from tests.lab import build, find, scenario_path, SCENARIOS
    dump = build("deb12-4level")        # makes it on first use; find() only looks into the cache
    dump.files["zlib-d31"].paths        # what to open
    dump.truth.processes[1].comm        # what must be in it

README.md tells what there is.
"""

from __future__ import annotations

from pathlib import Path

from tests.lab.build import build, find
from tests.lab.dump import CaughtFile, Dump, DumpFile, ProcessTruth, ThreadTruth, Truth
from tests.lab.scenario import KERNELS, SCENARIOS, LabError, Scenario, find_scenario

__all__ = [
    "KERNELS", "SCENARIOS", "CaughtFile", "Dump", "DumpFile", "LabError", "ProcessTruth", "Scenario", "ThreadTruth",
    "Truth", "build", "find", "find_scenario", "scenario_path",
]  # fmt: skip


def scenario_path(name: str) -> Path:
    """Return the directory of the scenario's dump, making it first if need be."""
    return build(name).path
