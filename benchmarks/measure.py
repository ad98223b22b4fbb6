"""Time commands alternately and compare their medians."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvm-dbg"
RUNS = 7


class Command(NamedTuple):
    """A command to time. before: called before each run, outside the measured time. stdin: text that it reads."""

    argv: Sequence[str]
    stdin: str = ""
    environment: Mapping[str, str] = {}
    before: Callable[[], None] | None = None


class Figures(NamedTuple):
    """Seconds of all runs of one command, whole process: wall clock, and CPU of it and its children."""

    wall: list[float]
    cpu: list[float]

    @property
    def median(self) -> float:
        """Return the median of the wall times."""
        return statistics.median(self.wall)

    @property
    def median_cpu(self) -> float:
        """Return the median of the CPU times."""
        return statistics.median(self.cpu)


def run_once(command: Command) -> tuple[float, float, str]:
    """Run a command; (wall seconds, CPU seconds, its output). Raises RuntimeError if it fails."""
    if command.before is not None:
        command.before()
    before = os.times()
    start = time.perf_counter()
    result = subprocess.run(
        list(command.argv),
        input=command.stdin,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **command.environment},
        check=False,
    )
    wall = time.perf_counter() - start
    after = os.times()
    if result.returncode:
        raise RuntimeError(f"{' '.join(command.argv)}: status {result.returncode}\n{result.stdout}{result.stderr}")
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return wall, cpu, result.stdout


def compare(commands: Mapping[str, Command], runs: int = RUNS) -> dict[str, Figures]:
    """Run every command `runs` times, alternately, after one run of each that does not count."""
    figures = {name: Figures([], []) for name in commands}
    for command in commands.values():
        run_once(command)
    for _ in range(runs):
        for name, command in commands.items():
            wall, cpu, _ = run_once(command)
            figures[name].wall.append(wall)
            figures[name].cpu.append(cpu)
    return figures


def show(title: str, figures: Mapping[str, Figures], peer: str) -> None:
    """Print medians and ratios to the peer."""
    print(f"\n{title} (median of {len(figures[peer].wall)}; wall min..max; CPU; ratio of wall to {peer})")
    for name, found in figures.items():
        print(
            f"  {name:<42} {found.median:7.3f} s  {min(found.wall):.3f}..{max(found.wall):.3f}"
            f"  cpu {found.median_cpu:.3f}  x{found.median / figures[peer].median:.2f}"
        )


def installed_program(name: str = "kvm-dbg") -> Path:
    """Return a program of kvm_dbg's, installed from a wheel of this tree into an environment in the cache."""
    home = CACHE / "benchmark"
    program = home / "bin" / name
    venv.create(home, with_pip=True, clear=False, symlinks=True)
    with tempfile.TemporaryDirectory() as wheels:
        python = str(home / "bin" / "python")
        shutil.rmtree(ROOT / "build", ignore_errors=True)  # what setuptools left there would go into the wheel
        subprocess.run([sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "-w", wheels, str(ROOT)], check=True)
        shutil.rmtree(ROOT / "build", ignore_errors=True)
        wheel = next(Path(wheels).glob("*.whl"))
        subprocess.run([python, "-m", "pip", "-q", "install", str(wheel)], check=True)
        subprocess.run([python, "-m", "pip", "-q", "install", "--force-reinstall", "--no-deps", str(wheel)], check=True)
    return program
