"""What gdb and lldb load of the kernel's modules: what `kvm mods` says of it, wrong files, and debug files by link."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.debuggers.child import Result
from tests.debuggers.conftest import IMPORT, SOURCE, Demo
from tests.debuggers.debugger import Found, find, of_kind
from tests.debuggers.demo_truth import TRUTH
from tests.debuggers.driver import Gdb, Lldb
from tests.debuggers.plugin import CACHE

Run = Callable[..., Result]
NAMES = sorted(line.split()[0] for line in (TRUTH / "modules").read_text().splitlines())
NOT_ASKED = "not loaded: `kvm mods --load`"
FRAME = r"take_back ?\(book=0x[0-9a-f]+\) at (?:\S*/)?shelf\.c:73"  # as gdb and as lldb show it


@pytest.fixture(params=(*of_kind("gdb"), *of_kind("lldb")), ids=lambda debugger: debugger.name)
def run(request: pytest.FixtureRequest, demo: Demo, tmp_path: Path) -> Run:
    """Return a function that runs commands in a debugger that has the dump open; failing ones do not end the run."""
    found = find(request.param)
    if not isinstance(found, Found):
        pytest.skip(found.reason)
    opening = f"kvm open {demo.vmlinux} {demo.vmcore}"
    place = (found, tmp_path / "home", request.config.stash[CACHE])

    def in_gdb(*commands: str) -> Result:
        gdb = Gdb(*place)
        gdb.env["KVM_DBG_PYTHON"] = sys.executable
        return gdb.run([SOURCE, opening, *commands])

    def in_lldb(*commands: str) -> Result:
        lldb = Lldb(*place)
        lldb.env["KVM_DBG_PYTHON"] = sys.executable
        quiet = [f"script lldb.debugger.HandleCommand({command!r})" for command in commands]
        return lldb.run([IMPORT, opening, *quiet])

    return in_gdb if request.param.kind == "gdb" else in_lldb


def symbols_of(result: Result) -> list[dict[str, str]]:
    """Return what each `kvm mods --json` says of the modules' symbols."""
    assert "Traceback" not in result.stderr
    answers = re.findall(r"^\[\n.*?^\]$", result.stdout, re.MULTILINE | re.DOTALL)
    return [{row["name"]: row["symbols"] for row in json.loads(answer)} for answer in answers]


def build_id(path: Path) -> str:
    """Return what readelf says of a file's build-id."""
    done = subprocess.run(["readelf", "-n", path], capture_output=True, text=True, check=True)
    (found,) = re.findall(r"Build ID: ([0-9a-f]+)", done.stdout)
    return str(found)


def test_mods_says_whose_symbols_are_loaded(run: Run, demo: Demo) -> None:
    before, after = symbols_of(run("kvm mods --json", f"kvm mods --load {demo.modules}", "kvm mods --json"))
    assert before == dict.fromkeys(NAMES, NOT_ASKED)
    assert after == {name: f"{demo.modules}/{name}.ko" for name in NAMES}


def test_wrong_files_are_refused_and_named(run: Run, demo: Demo, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    shutil.copy(demo.modules / "shelf.ko", wrong / "loop.ko")
    (wrong / "shelf.ko").write_bytes((demo.modules / "shelf.ko").read_bytes()[:1000])
    result = run(f"kvm mods --load {wrong}", "kvm mods --json", "kvm thread 42")
    (symbols,) = symbols_of(result)
    other = f"{wrong}/loop.ko is another build: {build_id(wrong / 'loop.ko')}, in the image "
    assert symbols["loop"] == other + build_id(demo.modules / "loop.ko")
    assert symbols["shelf"].startswith(f"{wrong}/shelf.ko: offset 0x")
    assert symbols["binfmt_misc"] == symbols["shelf_proc"] == "no file found"
    said = result.stdout + result.stderr  # within lldb's `script`, both are one
    for text in (f"kvm: loop: {other}", f"kvm: shelf: {wrong}/shelf.ko: offset 0x"):
        assert text in said
    assert "kvm: no file was found of: shelf_proc, binfmt_misc" in said
    assert "no module's symbols could be loaded" in said
    assert "symbols of 0 of 4 modules loaded" in said
    assert not re.search(FRAME, result.stdout)


def test_a_wrong_file_beside_right_ones(run: Run, demo: Demo, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(demo.modules, mixed)
    shutil.copy(demo.modules / "loop.ko", mixed / "binfmt_misc.ko")
    result = run(f"kvm mods --load {mixed}", "kvm mods --json", "kvm thread 42")
    (symbols,) = symbols_of(result)
    assert "symbols of 3 of 4 modules loaded" in result.stdout
    assert "is another build" in symbols.pop("binfmt_misc")
    assert symbols == {name: f"{mixed}/{name}.ko" for name in NAMES if name != "binfmt_misc"}
    assert re.search(FRAME, result.stdout)


def test_a_stripped_file_names_its_debug_file(run: Run, demo: Demo, tmp_path: Path) -> None:
    folder = tmp_path / "stripped"
    debug = folder / ".debug" / "shelf.symbols"
    debug.parent.mkdir(parents=True)
    whole, path = demo.modules / "shelf.ko", folder / "shelf.ko"
    subprocess.run(["objcopy", "--only-keep-debug", whole, debug], check=True)
    subprocess.run(["objcopy", "--strip-debug", f"--add-gnu-debuglink={debug}", whole, path], check=True)
    result = run(f"kvm mods --load {folder}", "kvm mods --json", "kvm thread 42")
    assert symbols_of(result)[0]["shelf"] == str(debug)
    assert re.search(FRAME, result.stdout)
    debug.write_bytes(debug.read_bytes() + b"\0")
    result = run(f"kvm mods --load {folder}", "kvm mods --json", "kvm thread 42")
    text = symbols_of(result)[0]["shelf"]
    assert text.startswith(f"{path} ({debug} is not its debug file: the CRC is 0x")
    assert "take_back" in result.stdout  # the stripped file still has names; lldb finds the rest by the build-id
