"""python -m tests.lab: list the scenarios, build them, say where they are."""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from tests.lab import SCENARIOS, LabError, build, find, find_scenario
from tests.lab.package import find_missing_tools


def main(arguments: list[str] | None = None) -> int:
    """Run one of the lab's commands and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what there is, and what is built")
    making = commands.add_parser("build", help="build the named scenarios, or all")
    making.add_argument("names", nargs="*", metavar="NAME")
    making.add_argument("--jobs", type=int, default=2, help="guests at a time (default 2)")
    showing = commands.add_parser("path", help="print where a built scenario is")
    showing.add_argument("name", metavar="NAME")
    commands.add_parser("install", help="install missing programs with apt-get (as root)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "list":
            return _list()
        if options.command == "build":
            return _build(options.names, options.jobs)
        if options.command == "path":
            return _path(options.name)
        return _install()
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _list() -> int:
    for scenario in SCENARIOS:
        dump = find(scenario.name)
        kinds = f"{dump.release}: {' '.join(dump.files)}" if dump else "not built"
        print(f"{scenario.name:16} {scenario.take.value:7} {scenario.levels} levels {scenario.memory:5} MiB  {kinds}")
    return 0


def _build(names: list[str], jobs: int) -> int:
    names = names or [scenario.name for scenario in SCENARIOS]
    for name in names:
        find_scenario(name)
    start = time.monotonic()
    lock = threading.Lock()
    failed: list[str] = []

    def report(text: str) -> None:
        with lock:
            print(f"[{time.monotonic() - start:5.0f} s] {text}", flush=True)

    def one(name: str) -> None:
        try:
            report(f"{name}: {build(name, report).path}")
        except LabError as error:
            failed.append(name)
            report(f"{name}: FAILED: {error}")

    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(one, names))
        except KeyboardInterrupt:
            report("interrupted: waiting for the guests to end")
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    report(f"{len(names) - len(failed)} of {len(names)} built" + (f"; failed: {' '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _path(name: str) -> int:
    dump = find(name)
    if dump is None:
        raise LabError(f"{name} is not built: run `python -m tests.lab build {name}`")
    print(dump.path)
    return 0


def _install() -> int:
    missing = sorted(set(find_missing_tools().values()))
    if not missing:
        return 0
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    print(" ".join(command), flush=True)
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
